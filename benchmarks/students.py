"""Students trained from encoded captures, against students trained from float32.

The teachers are those of real_logits.py. Training has soft targets alone at T = 4. The students of one seed have
the same first weights and the same batches in the same order. Their logits come from the captures of one store.
So the effect of an encoding is compared with the effect of another seed.

    MNIST      the student of experiments/mnist.toml (784-800-800-10), an error budget of 1e-2, five seeds
    Omniglot   a batch-norm convnet of three stages, transforms at 1e-2 and 1e-1 and top-16, three seeds

The errors of each student are kept in runs/benchmark/students.json, so an interrupted run resumes.

Not part of `make bench`, since it takes ten minutes and more:
python benchmarks/students.py [--data Omniglot] [--epochs 8] [--seeds 3]
"""

import argparse
import hashlib
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations, pairwise
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import torch
from encoding import bar
from numpy.typing import NDArray
from real_logits import RUNS, RealLogits, mnist_logits, omniglot_logits
from torch import Tensor, nn
from transform import drawn, row_bytes, whole_row
from ways import budget_for

import logitstore
from logitstore.pipeline import TorchStream
from logitstore.pipeline.experiment.training import Train
from logitstore.pipeline.losses import Distillation, soft_targets
from logitstore.pipeline.models.networks import Pixels, mlp
from logitstore.pipeline.runtime.inference import run_model
from logitstore.pipeline.stream.batch import TorchBatch
from logitstore.pipeline.trainer.loop import fit
from logitstore.pipeline.transfer import Examples, TransferRows

TEMPERATURE = 4.0
KEPT = RUNS / "benchmark" / "students.json"
"""Errors of the students trained so far, by `identity`."""
Errors = dict[str, list[int]]
"""Wrong predictions of the students of each capture, seed by seed."""


@dataclass(frozen=True)
class Subject:
    """A data set, its student and the captures that are compared."""

    teacher: Callable[[], RealLogits | str]
    """The teacher's logits, or a sentence if the data are missing."""
    student: Callable[[], nn.Module]
    """Make an untrained student from torch's global generator."""
    settings: Mapping[str, Any]
    """Settings of its training but `epochs`."""
    epochs: int
    seeds: int
    encodings: Callable[[NDArray[np.float32]], Mapping[str, Any]]
    """Encodings by the name of the capture, of logits that may fit them."""
    judged: str
    """The capture with a bar."""
    yardstick: str
    """Name of the difference in errors that the judged capture may have."""
    allowed: Callable[[Errors], float]
    """That difference."""


def batch_norm_convnet() -> nn.Module:
    """Make Omniglot's student: three stages of convolution, batch norm, ReLU and 2 x 2 maximum."""
    stages: list[nn.Module] = []
    for fan_in, fan_out in pairwise((1, 24, 48, 64)):
        convolution = nn.Conv2d(fan_in, fan_out, 3, padding=1)
        stages += [convolution, nn.BatchNorm2d(fan_out), nn.ReLU(), nn.MaxPool2d(2)]
    student = nn.Sequential(Pixels(), nn.Unflatten(1, (1, 28)), *stages, nn.Flatten(), nn.Linear(576, 964))
    return student.to(memory_format=torch.channels_last)  # a step on a CPU then takes two thirds of the time


def between_seeds(errors: Errors) -> float:
    """Return the mean difference of two students of one capture and two seeds."""
    return mean(abs(a - b) for found in errors.values() for a, b in combinations(found, 2))


SUBJECTS = {
    "MNIST": Subject(
        mnist_logits,
        lambda: mlp([800, 800], input_shape=(28, 28), num_classes=10),
        {"optimizer": "adam", "lr": 1e-3, "schedule": "cosine", "batch_size": 128},
        epochs=8,
        seeds=5,
        encodings=lambda logits: {"float32": "float32", "budget": budget_for(1e-2, logits, 0.0, 1024)},
        judged="budget",
        yardstick="mean difference of two seeds",
        allowed=between_seeds,
    ),
    "Omniglot": Subject(
        omniglot_logits,
        batch_norm_convnet,
        {
            "optimizer": "adamw",
            "lr": 3e-3,
            "weight_decay": 1e-3,
            "schedule": "cosine",
            "warmup_epochs": 2,
            "batch_size": 128,
        },
        epochs=8,
        seeds=3,
        encodings=lambda logits: {
            "float32": "float32",
            "transform-1e-2": {"transform": {"max_kl": 1e-2}},
            "transform-1e-1": {"transform": {"max_kl": 1e-1}},
            "top-16": {"top_k": 16},
        },
        judged="transform-1e-2",
        yardstick="standard deviation of float32's",
        allowed=lambda errors: stdev(errors["float32"]),
    ),
}


def make_store(
    path: Path, teacher: RealLogits, encodings: Callable[[NDArray[np.float32]], Mapping[str, Any]]
) -> logitstore.Store:
    """Write inputs and labels of the transfer set, and the teacher's logits in every encoding."""
    rows = TransferRows(teacher.experiment)
    inputs, labels = rows.rows(range(len(rows)))
    logits = teacher.logits[: teacher.transfer_rows]
    store = logitstore.create_store(
        path, class_names=rows.class_names, labels=labels, inputs=inputs, store_inputs=True
    )
    for name, encoding in encodings(logits).items():
        with store.capture(name, provenance={}, encoding=encoding, calibration=drawn(logits)) as capture:
            for block in capture.missing_blocks():
                capture.write(block, logits[block.start : block.stop])
    return store


def new_student(subject: Subject, seed: int) -> nn.Module:
    """Make the untrained student of a seed."""
    torch.manual_seed(seed)
    return subject.student()


def train(store: logitstore.Store, capture: str, subject: Subject, settings: Train, seed: int) -> nn.Module:
    """Train a student of one capture and one seed."""
    module = new_student(subject, seed)
    of_capture = store.stream(
        settings.batch_size, teachers=[capture], views=0, seed=seed, temperature=TEMPERATURE
    )
    stream = TorchStream(of_capture)
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


def test_errors(module: nn.Module, inputs: NDArray[np.uint8], labels: NDArray[np.int64]) -> int:
    """Count the wrong predictions on the evaluation set."""
    logits = run_model(module.eval(), inputs, 1000, where="student")
    return int((logits.argmax(axis=1) != labels).sum())


def identity(store: logitstore.Store, capture: str, subject: Subject, settings: Train, seed: int) -> str:
    """Return a digest of all that the errors of a student follow from."""
    about = [
        store.teachers[capture].digest,
        store.samples.digest,
        str(new_student(subject, seed)),
        settings.model_dump_json(),
        seed,
        TEMPERATURE,
        torch.__version__,
    ]
    return hashlib.sha256(json.dumps(about).encode()).hexdigest()


def kept_or(key: str, count: Callable[[], int]) -> int:
    """Return the errors kept under a key; without any, count and keep them."""
    kept: dict[str, int] = json.loads(KEPT.read_text()) if KEPT.exists() else {}
    if key not in kept:
        found = count()
        KEPT.parent.mkdir(parents=True, exist_ok=True)
        # Read again, as another run may have kept some in the meantime.
        kept = json.loads(KEPT.read_text()) if KEPT.exists() else {}
        kept[key] = found
        KEPT.write_text(json.dumps(kept, indent=1))
    return kept[key]


def show(subject: Subject, errors: Errors, examples: int) -> None:
    """Print means and spreads, and the bar of the judged capture."""
    print(f"  {'mean':>6s}" + "".join(f" {mean(found):15.1f}" for found in errors.values()))
    print(f"  {'spread':>6s}" + "".join(f" {stdev(found):15.1f}" for found in errors.values()))
    print(f"  {'right':>6s}" + "".join(f" {1 - mean(found) / examples:15.2%}" for found in errors.values()))
    exact, seeds = errors["float32"], between_seeds(errors)
    for name, found in errors.items():
        if name != "float32":
            paired = mean(abs(a - b) for a, b in zip(exact, found, strict=True))
            print(
                f"          {name}: {mean(found) - mean(exact):+.1f} errors in the mean; two students of one seed and "
                f"two encodings differ by {paired:.1f} on average, two of two seeds and one encoding by {seeds:.1f}"
            )
    difference, allowed = abs(mean(errors[subject.judged]) - mean(exact)), subject.allowed(errors)
    bar(
        f"6. errors: |difference of the means of {subject.judged} and float32| / {subject.yardstick}",
        f"{difference:.1f} / {allowed:.1f}",
        "<= 1",
        difference <= allowed,
    )


def main(data: str, epochs: int | None = None, seeds: int | None = None) -> None:
    """Print the table."""
    torch.set_num_threads(1)
    subject = SUBJECTS[data]
    settings = Train.model_validate({**subject.settings, "epochs": epochs or subject.epochs})
    print(f"students: {subject.judged} against float32")
    teacher = subject.teacher()
    if isinstance(teacher, str):
        print(f"  {teacher}")
        return
    assert teacher.experiment.evaluation_set is not None
    examples = Examples(teacher.experiment.evaluation_set, teacher.experiment.base, "evaluation_set")
    inputs, labels = examples.fetch(range(len(examples)))
    print(f"  {teacher.about}")
    print(f"  {settings.epochs} epochs at T = {TEMPERATURE:g}; errors of {len(labels):,}")
    with tempfile.TemporaryDirectory() as folder:
        store = make_store(Path(folder) / "store.zarr", teacher, subject.encodings)
        errors: Errors = {name: [] for name in store.teachers}
        print(f"  {'':6s}" + "".join(f" {name:>15s}" for name in errors))
        sizes = [whole_row(row_bytes(store, name)) for name in errors]
        print(f"  {'B/row':>6s}" + "".join(f" {size:15.1f}" for size in sizes), flush=True)
        for seed in range(seeds or subject.seeds):
            print(f"  {seed:6d}", end="", flush=True)
            for capture, found in errors.items():

                def count(capture: str = capture, seed: int = seed) -> int:
                    return test_errors(train(store, capture, subject, settings, seed), inputs, labels)

                found.append(kept_or(identity(store, capture, subject, settings, seed), count))
                print(f" {found[-1]:15d}", end="", flush=True)
            print()
    show(subject, errors, len(labels))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", choices=SUBJECTS, default="MNIST")
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--seeds", type=int)
    arguments = parser.parse_args()
    if arguments.seeds is not None and arguments.seeds < 2:
        parser.error(f"--seeds: expected 2 or more, which have a spread, found {arguments.seeds}")
    main(arguments.data, arguments.epochs, arguments.seeds)
