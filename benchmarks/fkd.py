"""Bytes of a crop's soft label: in the files of FKD, and in a store.

The files of docs/guides/fast-distillation.md make the images, the crops and the teacher. The teacher's logits of all crops
are kept by each encoding, and the soft labels of one image as FKD's `generate_soft_label.py` keeps them: a pickle of
coordinates (crops, 4), flips (crops,), and the five likeliest classes beside their probabilities (crops, 2, 5). KL is at
T = 1. A store measured its own when it was written; that of FKD's labels is computed here, from the float16 capture.

Alone: python benchmarks/fkd.py
"""

import importlib
import io
import re
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import logitstore
from logitstore.storage.describe import describe

GUIDE = Path(__file__).resolve().parents[1] / "docs" / "guides" / "fast-distillation.md"
CROPS, MANY_CROPS, KEPT = 4, 500, 5
ENCODINGS: Mapping[str, Any] = {
    "float16": "float16",
    "top-k, k = 5": {"top_k": KEPT},
    "transform, max_kl 1e-2": {"transform": {"max_kl": 1e-2}},
    "error budget, max_kl 1e-2": {"max_kl": 1e-2},
}


def fkd_bytes(crops: int) -> tuple[float, float]:
    """Return the bytes of a crop in a file of FKD: those of its arrays, and those of the file."""
    coordinates, flips = np.zeros((crops, 4), np.float32), np.zeros(crops, np.bool_)
    labels = np.zeros((crops, 2, KEPT), np.float32)
    file = io.BytesIO()
    torch.save([coordinates, flips, labels], file)
    arrays = coordinates.nbytes + flips.nbytes + labels.nbytes
    return arrays / crops, len(file.getvalue()) / crops


def fkd_divergence(logits: NDArray[np.float32]) -> tuple[float, float]:
    """Return the mean and the worst KL(teacher ‖ label), of labels whose rest is spread evenly. logits: (crops, classes).

    The even rest is FKD's `marginal_smoothing_k5`.
    """
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    p, likeliest = np.exp(log_p), np.argpartition(-log_p, KEPT, axis=1)[:, :KEPT]
    kept = np.take_along_axis(p, likeliest, axis=1)
    label = np.repeat((1 - kept.sum(axis=1, keepdims=True)) / (p.shape[1] - KEPT), p.shape[1], axis=1)
    np.put_along_axis(label, likeliest, kept, axis=1)
    divergence = (p * (log_p - np.log(label))).sum(axis=1)
    return float(divergence.mean()), float(divergence.max())


def capture_figures(record: Mapping[str, Any], crops: int) -> tuple[float, float, float, float]:
    """Return the bytes of a crop, those of the basis shared among the crops, and mean and worst KL at T = 1."""
    basis = 0 if record["transform"] is None else record["transform"]["basis_bytes"]
    at_one = [(row["mean"], row["max"]) for row in record["divergence"] or () if row["temperature"] == 1]
    return record["row_bytes"], basis / crops, *(at_one[0] if at_one else (float("nan"),) * 2)


def files_of_guide(folder: Path) -> None:
    """Write the files of the guide into a folder."""
    blocks = re.findall(
        r"^```python\n# (\w+\.py)\n(.*?)^```$", GUIDE.read_text("utf-8"), re.DOTALL | re.MULTILINE
    )
    for name, source in blocks:
        (folder / name).write_text(source, encoding="utf-8")


def measured(folder: Path) -> Iterator[str]:
    """Yield the rows of the table, of stores in a folder."""
    teaching = importlib.import_module("teaching")
    teacher, logits = teaching.trained(), None
    for number, (name, encoding) in enumerate(ENCODINGS.items()):
        store = logitstore.cache(
            folder / f"{number}.zarr",
            {"teacher": teacher},
            (teaching.inputs, teaching.labels),
            views=CROPS,
            augment=teaching.crops,
            first_view=0,
            encoding=encoding,
            store_inputs=False,
            progress=False,
        )
        record, _ = describe(store)
        row, basis, mean, worst = capture_figures(record["captures"][0], CROPS * store.num_rows)
        if logits is None:
            logits = np.concatenate(
                [store.teachers["teacher"].read(slice(None), view) for view in range(CROPS)]
            )
            yield f"| {name} | {row:.1f} | | rounding alone | rounding alone |"
            mean_of_fkd, worst_of_fkd = fkd_divergence(logits)
            for crops in (CROPS, MANY_CROPS):
                arrays, file = fkd_bytes(crops)
                kl = f"{mean_of_fkd:.1e} | {worst_of_fkd:.1e}"
                yield f"| FKD's files, {crops} crops an image | {file:.1f}, {arrays:.1f} of them arrays | | {kl} |"
        else:
            yield f"| {name} | {row:.1f} | {f'{basis:.1f}' if basis else ''} | {mean:.1e} | {worst:.1e} |"


def main() -> None:
    """Print the table."""
    torch.set_num_threads(1)
    print("| kept as | bytes a crop | and its share of the basis | mean KL, T = 1 | worst KL, T = 1 |")
    print("| --- | ---: | ---: | ---: | ---: |")
    with tempfile.TemporaryDirectory() as name:
        files_of_guide(Path(name))
        sys.path.insert(0, name)
        for row in measured(Path(name)):
            print(row)


if __name__ == "__main__":
    main()
