"""Students trained from an error-budget capture of 1e-2, against students trained from float32.

The data are MNIST, with the teacher of real_logits.py and the student of experiments/mnist.toml
(784-800-800-10). Training has soft targets alone at T = 4. Each of five seeds has two students with the same
first weights and the same batches in the same order. The logits of one come from the float32 capture of a
store, those of the other from the budget's. The effect of the encoding is compared with the effect of another
seed.

Not part of `make bench`, since it takes ten minutes and more: python benchmarks/students.py [epochs]
"""

import sys
import tempfile
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from statistics import mean, stdev

import numpy as np
import torch
from encoding import bar
from numpy.typing import NDArray
from real_logits import RealLogits, mnist_logits
from torch import Tensor
from ways import budget_for

import logitstore
from logitstore.pipeline import TorchStream
from logitstore.pipeline.experiment.training import Train
from logitstore.pipeline.losses import Distillation, soft_targets
from logitstore.pipeline.models.networks import mlp
from logitstore.pipeline.runtime.inference import run_model
from logitstore.pipeline.stream.batch import TorchBatch
from logitstore.pipeline.trainer.loop import fit
from logitstore.pipeline.transfer import Examples, TransferRows

SEEDS, EPOCHS, TEMPERATURE, MAX_KL = range(5), 8, 4.0, 1e-2
SETTINGS = {"optimizer": "adam", "lr": 1e-3, "schedule": "cosine", "batch_size": 128}


def make_store(path: Path, teacher: RealLogits) -> logitstore.Store:
    """Write inputs and labels of the transfer set, and the teacher's logits as "float32" and as "budget"."""
    rows = TransferRows(teacher.experiment)
    inputs, labels = rows.rows(range(len(rows)))
    logits = teacher.logits[: teacher.transfer_rows]
    store = logitstore.create_store(
        path, class_names=rows.class_names, labels=labels, inputs=inputs, store_inputs=True
    )
    for name, encoding in (("float32", "float32"), ("budget", budget_for(MAX_KL, logits, 0.0, 1024))):
        with store.capture(name, provenance={}, encoding=encoding) as capture:
            for block in capture.missing_blocks():
                capture.write(block, logits[block.start : block.stop])
    return store


def train(store: logitstore.Store, capture: str, seed: int, epochs: int) -> torch.nn.Module:
    """Train a student of one capture and one seed."""
    torch.manual_seed(seed)
    module = mlp([800, 800], input_shape=(28, 28), num_classes=10)
    settings = Train.model_validate({**SETTINGS, "epochs": epochs})
    stream = TorchStream(store.stream(settings.batch_size, teachers=[capture], views=0, seed=seed))
    distillation = Distillation(TEMPERATURE)

    def batches(epoch: int) -> Iterator[TorchBatch]:
        stream.set_epoch(epoch)
        return iter(stream)

    def loss(logits: Tensor, batch: TorchBatch) -> Tensor:
        value: Tensor = distillation(
            logits, soft_targets(batch.teacher_logits()[capture], TEMPERATURE), batch.labels
        )
        return value

    where = f"student of {capture}, seed {seed}"
    fit(module, batches, store.num_rows, len(stream), settings, loss, where=where)
    return module


def test_errors(module: torch.nn.Module, inputs: NDArray[np.uint8], labels: NDArray[np.int64]) -> int:
    """Count the wrong predictions on the evaluation set."""
    logits = run_model(module.eval(), inputs, 1000, where="student")
    return int((logits.argmax(axis=1) != labels).sum())


def main(epochs: int = EPOCHS) -> None:
    """Print the table."""
    torch.set_num_threads(1)
    print("students: error budget 1e-2 against float32")
    teacher = mnist_logits()
    if isinstance(teacher, str):
        print(f"  {teacher}")
        return
    assert teacher.experiment.evaluation_set is not None
    examples = Examples(teacher.experiment.evaluation_set, teacher.experiment.base, "evaluation_set")
    inputs, labels = examples.fetch(range(len(examples)))
    print(f"  {teacher.about}")
    print(f"  {epochs} epochs at T = {TEMPERATURE:g}; errors of {len(labels):,}")
    errors: dict[str, list[int]] = {"float32": [], "budget": []}
    with tempfile.TemporaryDirectory() as folder:
        store = make_store(Path(folder) / "store.zarr", teacher)
        print(f"  {'seed':>6s} {'float32':>9s} {'budget ' + str(MAX_KL):>13s} {'difference':>11s}")
        for seed in SEEDS:
            for capture, found in errors.items():
                found.append(test_errors(train(store, capture, seed, epochs), inputs, labels))
            one, other = errors["float32"][-1], errors["budget"][-1]
            print(f"  {seed:6d} {one:9d} {other:13d} {other - one:+11d}", flush=True)
    means = {name: mean(found) for name, found in errors.items()}
    spreads = {name: stdev(found) for name, found in errors.items()}
    difference = means["budget"] - means["float32"]
    print(f"  {'mean':>6s} {means['float32']:9.1f} {means['budget']:13.1f} {difference:+11.1f}")
    print(f"  {'spread':>6s} {spreads['float32']:9.1f} {spreads['budget']:13.1f}")
    seeds = mean(abs(a - b) for found in errors.values() for a, b in combinations(found, 2))
    paired = mean(abs(a - b) for a, b in zip(errors["float32"], errors["budget"], strict=True))
    print(
        f"          two students of one seed and two encodings differ by {paired:.1f} errors on average, "
        f"two of two seeds and one encoding by {seeds:.1f}"
    )
    bar(
        "6. errors: |difference of the means| / mean difference of two seeds",
        f"{abs(difference) / seeds:.2f}",
        "<= 1",
        abs(difference) <= seeds,
    )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]))
