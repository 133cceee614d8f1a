"""Identities of students, and the students that are missing. Imports no torch."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from jaxtyping import Int64

from ...storage.api import Store
from ...storage.errors import ConfigError, PartNotFound
from ...storage.format.constants import SAMPLES
from ...storage.random import philox_permutation
from ..evaluation_set import content_of
from ..experiment.document import Experiment
from ..experiment.schema import settled
from ..experiment.tables import Student
from ..experiment.training import IDLE_KEYS, Loss, validation_identity
from ..factories.local_code import SOURCE
from ..factories.products import local_code_of
from ..factories.read_files import READ, files_read
from ..held_out import held_out_rows, others
from ..models.initial import initial_identity
from ..models.loaders import stable_name
from ..models.records import Record
from ..workspace import Workspace

_NETWORK: Final = {
    *("hugging_face", "timm", "torchvision"),
    *("weights", "weights_key", "allow_pickle", "reset_classifier"),
}
"""Keys of a student that its factory, its arguments and `initial_identity` stand for."""
_ROWS_STREAM = 1 << 63
"""Random numbers that choose a student's rows: no epoch is numbered so high, so no order of batches uses them."""


@dataclass(frozen=True)
class StudentSeed:
    """One student, trained once from one seed."""

    student: Student
    """Its table."""
    seed: int
    """Seed of its weights and of its batches."""

    @property
    def name(self) -> str:
        """Name of its files."""
        return f"{self.student.name}-seed{self.seed}"


def student_seeds(experiment: Experiment) -> Iterator[StudentSeed]:
    """Yield every training of every student, in order."""
    for student in experiment.students:
        for seed in student.train.seeds:
            yield StudentSeed(student, seed)


def shown_captures(experiment: Experiment, student: Student) -> list[str]:
    """Return the captures that a student reads: its teachers, or with hard targets the first, for its views."""
    return list(experiment.teacher_weights(student)) or [experiment.teacher_members()[0].name]


def student_identity(experiment: Experiment, run: StudentSeed, store: Store) -> dict[str, Any]:
    """Return the identity of a student, which holds the seals of all that it reads.

    Raises PartNotFound or StoreIncomplete for a capture that is not sealed.
    """
    student = run.student
    source = local_code_of([student], base=experiment.base)
    loss = {"name": student.loss.name, **student.loss.numbers}
    return {
        **settled(
            student, later={"rows", "standardise"}, idle={"name", "teachers", "train", "loss", *_NETWORK}
        ),
        "factory": stable_name(student.factory),
        **initial_identity(student, experiment.base),
        **({} if student.loss == Loss() else {"loss": loss}),
        "teachers": experiment.teacher_weights(student),
        "train": settled(
            student.train,
            later={"clip_norm", "ema", "label_smoothing", "precision"},
            idle={"compile", "seeds", *IDLE_KEYS},
        ),
        **validation_identity(student.train, lambda: content_of(experiment.validation_set, experiment.base)),
        "seed": run.seed,
        "samples": store.digest_of(SAMPLES),
        "seals": {name: store.digest_of(f"teachers/{name}") for name in shown_captures(experiment, student)},
        **({SOURCE: source} if source else {}),
        **({READ: files} if (files := files_read([student], base=experiment.base)) else {}),
    }


def student_rows(run: StudentSeed, num_rows: int) -> Int64[np.ndarray, "rows"] | None:
    """Return the rows that a student learns from, ascending; None for all of them.

    Students of the same share and seed learn from the same rows, whatever their targets. Rows that are held out for the
    validation come off first.
    """
    share, held = run.student.rows, run.student.train.held_out
    if share == 1.0 and held is None:
        return None
    order = philox_permutation(num_rows, run.seed, stream=_ROWS_STREAM, counter=0)
    if held is not None:
        order = others(order, held_out_rows(num_rows, held))
    return np.sort(order[: max(1, round(share * len(order)))])


def check_compressed(work: Workspace) -> None:
    """Refuse a student that names a compressed capture that is not there, before anything is run for it.

    Raises PartNotFound for an absent capture, StoreIncomplete for an unfinished one, ConfigError for one of other classes.
    """
    for student in work.experiment.students:
        for name, source in work.experiment.compressed_captures(student).items():
            where, store = f"student {student.name!r}", work.find_store()
            part = f"teachers/{name}"
            if store is None or (
                store.find_spec(part) is None and store.begun(part) is None and part not in store.root.gone
            ):
                raise PartNotFound(
                    where,
                    expected=f"teachers/{name} in {work.path}",
                    found="no such capture" if store else "no store yet",
                    remedy=f"run `logitstore compress {work.path} --teacher {source} --max-kl 1e-3 --name {name}` when "
                    f"{source} is captured, or correct teachers",
                )
            store.digest_of(part)  # raises for one that is not sealed, or was removed
            classes = store.teachers[name].shape[2]
            if classes != store.num_classes:
                raise ConfigError(
                    where,
                    expected=f"a capture of all {store.num_classes} classes",
                    found=f"teachers/{name} of {classes} columns",
                    remedy="name a teacher, a combination, or a capture compressed from one",
                )


def find_student(work: Workspace, run: StudentSeed) -> Record | None:
    """Return the record of a student; None if it is still to be trained."""
    store = work.find_store()
    captures = [f"teachers/{name}" for name in shown_captures(work.experiment, run.student)]
    if store is None or any(store.find_spec(part) is None for part in (SAMPLES, *captures)):
        return None
    return work.models.find("students", run.name, student_identity(work.experiment, run, store))


def missing_students(work: Workspace) -> list[StudentSeed]:
    """Return the students that are not trained yet, or were trained from something else."""
    return [run for run in student_seeds(work.experiment) if find_student(work, run) is None]
