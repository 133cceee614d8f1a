"""Logits of trained nets, and generated ones, on which benchmarks measure.

The trained nets are the teachers of experiments/mnist.toml and of experiments/omniglot.toml, which has 964
classes. If such an experiment has run (`logitstore run`), its weights come from runs/<experiment>/models.
Otherwise the net is trained here, once, into the same folder (MNIST: fewer epochs, into runs/benchmark).
Missing data are no error: the block is left out, and one line gives the reason. The generator is that of the
first figures.

$LOGITSTORE_RUNS names another folder than runs/.
"""

import os
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from logitstore.pipeline.cache.teachers import load_teacher, train_teacher
from logitstore.pipeline.cache.todo import find_teacher
from logitstore.pipeline.experiment.document import Experiment, load_experiment
from logitstore.pipeline.runtime.inference import run_model
from logitstore.pipeline.transfer import Examples
from logitstore.pipeline.workspace import Workspace
from logitstore.storage.errors import BadDataError

EXPERIMENTS = Path(__file__).resolve().parents[1] / "experiments"
RUNS = Path(os.environ.get("LOGITSTORE_RUNS", "runs"))
SHORT_EPOCHS = 6
"""Epochs of MNIST's teacher if trained for the benchmark alone; the experiment has 25."""
HUNDRED = 100
"""Classes of the smaller set of Omniglot."""


@dataclass(frozen=True)
class RealLogits:
    """Logits of a trained net, of its own training examples and of others."""

    about: str
    """The net, its training and its accuracy: for the heading of a table."""
    logits: NDArray[np.float32]
    """(rows, classes) float32, as the net gave them; the transfer set, then the evaluation set."""
    labels: NDArray[np.int64]
    """The class of each row."""
    transfer_rows: int
    """Number of rows of the transfer set."""
    experiment: Experiment
    """The experiment that trained it."""


def mnist_logits() -> "RealLogits | str":
    """Compute the logits of the first teacher of experiments/mnist.toml, ten classes.

    Returns a sentence if the data are missing.
    """
    return _logits("mnist", "wide-0", SHORT_EPOCHS)


def omniglot_logits() -> "RealLogits | str":
    """Compute the logits of the teacher of experiments/omniglot.toml, 964 classes.

    Returns a sentence if the data are missing.
    """
    return _logits("omniglot", "conv", None)


def hundred_logits() -> "RealLogits | str":
    """Return the first 100 columns of Omniglot's teacher, of the drawings of these classes.

    Returns a sentence if the data are missing.
    """
    found = omniglot_logits()
    if isinstance(found, str):
        return found
    few = found.labels < HUNDRED
    return replace(
        found,
        about=f"the first {HUNDRED} classes, and the drawings of these, of {found.about}",
        logits=np.ascontiguousarray(found.logits[few, :HUNDRED]),
        labels=found.labels[few],
        transfer_rows=int(few[: found.transfer_rows].sum()),
    )


def _logits(name: str, teacher: str, short_epochs: int | None) -> "RealLogits | str":
    experiment = load_experiment(EXPERIMENTS / f"{name}.toml")
    work = Workspace.of_folder(experiment, RUNS / name)
    try:
        rows = work.rows
    except BadDataError as error:
        return f"{name}: left out, its data are not there ({error})"
    member = next(m for m in experiment.teacher_members() if m.name == teacher)
    if short_epochs is not None and find_teacher(work, member) is None:
        experiment = _shortened(experiment, short_epochs)
        member = next(m for m in experiment.teacher_members() if m.name == teacher)
        work = Workspace.of_folder(experiment, RUNS / "benchmark" / name, given_rows=rows)
    if find_teacher(work, member) is None:
        print(f"  training {name}'s teacher {teacher}, once: it takes minutes", flush=True)
    record = train_teacher(work, member)
    module = load_teacher(work, member)
    assert experiment.evaluation_set is not None and member.teacher.train is not None
    examples = Examples(experiment.evaluation_set, experiment.base, "evaluation_set")
    inputs, known = rows.rows(range(len(rows)))
    unseen, labels = examples.fetch(range(len(examples)))
    both = np.concatenate([inputs, unseen])
    logits = run_model(module, both, experiment.cache.batch_size, where=f"teacher {teacher}")
    accuracy = float((logits[len(inputs) :].argmax(axis=1) == labels).mean())
    about = (
        f"{name}, {logits.shape[1]} classes: {len(inputs):,} examples that {teacher} was trained on "
        f"({member.teacher.train.epochs} epochs, {record.facts['seconds']:.0f} s) and {len(unseen):,} others, of "
        f"which it knows {accuracy:.1%}"
    )
    return RealLogits(about, logits, np.concatenate([known, labels]), len(inputs), experiment)


def _shortened(experiment: Experiment, epochs: int) -> Experiment:
    """Return the same experiment with fewer epochs for every teacher."""
    teachers = tuple(
        teacher.model_copy(
            update={"train": teacher.train and teacher.train.model_copy(update={"epochs": epochs})}
        )
        for teacher in experiment.teachers
    )
    shorter = experiment.model_copy(update={"teachers": teachers})
    shorter._base = experiment.base
    return shorter


def synthetic_logits(num_rows: int = 16_384, num_classes: int = 1000, seed: int = 0) -> NDArray[np.float32]:
    """Draw logits of standard deviation 2.5, and raise five random classes of each row by 8."""
    random = np.random.default_rng(seed)
    logits = random.normal(0, 2.5, (num_rows, num_classes)).astype(np.float32)
    every = np.arange(num_rows)
    for _ in range(5):
        logits[every, random.integers(0, num_classes, num_rows)] += 8
    return logits
