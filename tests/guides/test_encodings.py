"""The examples of docs/encodings.md: codes from features, and batches as they are stored."""

import re
import runpy
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from support.divergences import kl
from support.tree import ROOT

import logitstore
from logitstore.pipeline.experiment.document import parse_experiment

PAGE = (ROOT / "docs" / "encodings.md").read_text(encoding="utf-8")
FEATURES, AS_STORED = re.findall(r"^```python\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
(HEAD,) = re.findall(r"^```toml\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)


def run(source: str, given: dict[str, object]) -> dict[str, object]:
    """Run an example as a script of its own. given: names that it starts with."""
    script = Path("example.py")
    script.write_text("import logitstore\n" + source, encoding="utf-8")
    return runpy.run_path(str(script), given)


def test_the_examples_run_one_after_the_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    model, features = SimpleNamespace(fc=torch.nn.Linear(5, 30)), 9 * torch.randn(600, 5)
    logits = model.fc(features).detach().numpy()
    store = logitstore.create_store(
        "mine.zarr", num_classes=30, labels=logits.argmax(1), inputs=features.numpy(), store_inputs=True
    )
    with store.capture("small", provenance={}, encoding={"max_kl": 1e-2}) as capture:
        for rows in capture.missing_blocks():
            capture.write(rows, logits[rows.start : rows.stop])
    run(FEATURES, {"store": store, "model": model, "features": features, "some_features": features[:99]})
    for name in ("wide", "small"):
        worst = kl(logits, store.teachers[name].read(slice(None)), 1.0).max()
        assert 0 < worst <= 1e-2
    targets = run(AS_STORED, {})["targets"]
    assert targets.shape[1] == 30  # type: ignore[attr-defined]


def test_the_head_of_the_page_is_a_key_of_a_teacher() -> None:
    (teacher,) = tomllib.loads(HEAD)["teacher"]
    document = {
        "transfer_set": {"factory": "logitstore.pipeline.datasets:digits"},
        "teacher": [{**teacher, "factory": "a:b", "weights": "wide.safetensors"}],
        "cache": {"encoding": {"transform": {"max_kl": 1e-2}}},
    }
    experiment = parse_experiment(document, where="page", base=Path())
    assert experiment.teachers[0].head == teacher["head"] == "fc"
