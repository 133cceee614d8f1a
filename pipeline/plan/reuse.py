"""Rows that `--reuse` would spare the teachers, counted before one of them runs."""

from dataclasses import dataclass

import numpy as np

from ...storage.identity import as_json
from ...storage.parts.same_rows import augmentation_of, is_augmented
from ..cache.notes import source_note
from ..cache.reuse import OldCapture, match, old_sets
from ..cache.todo import capture_identity, find_teacher
from ..views import experiment_views, mixes_rows
from ..workspace import Workspace


@dataclass(frozen=True)
class ReusePlan:
    """Rows of the views of a teacher that would be taken from earlier stores."""

    teacher: str
    """Name of its capture."""
    reused: int
    """Rows of all views that would be taken."""
    rows: int
    """Rows of all views."""
    sources: tuple[str, ...]
    """Captures that they would be taken from."""
    reasons: tuple[str, ...]
    """Why a store holds no rows of this teacher, for each such store."""


def plan_reuse(work: Workspace) -> list[ReusePlan]:
    """Count the rows that each teacher would not be run on; reads every input once, and runs no teacher.

    An augmented view is counted where row, input and augmentation are the same, without being made. The partner of a mixture
    follows from the number of rows, so none is counted for a set of another size. Raises as `old_sets`.
    """
    experiment, rows, settings = work.experiment, work.rows, work.experiment.cache
    sets, plans = old_sets(work), list[ReusePlan]()
    if not sets:
        return plans
    looked = rows.looked
    if not looked.is_whole:
        looked = rows.look(np.arange(len(rows), dtype=np.int64))
    digests, numbers = looked.digests[rows.source], np.arange(len(rows), dtype=np.int64)
    mixes = mixes_rows(experiment_views(experiment, rows, made_twice=False))
    total = settings.views * len(rows)
    for member in experiment.teacher_members():
        record = find_teacher(work, member)
        found: list[OldCapture | str] = ["any store: it is not trained yet"]
        if record is not None:
            identity = as_json(capture_identity(experiment, member, rows, record.weights))
            augmentation, notes = augmentation_of(identity, member.name), source_note(experiment, member)
            encoding = settings.chosen_encoding
            found = [match(old, member.name, identity, notes, encoding, augmentation) for old in sets]
            found = [
                f"{one.store.path}: {why}" if isinstance(why, str) else why
                for one, why in zip(sets, found, strict=True)
            ]
        old = [one for one in found if isinstance(one, OldCapture)]
        reused = 0
        for view in range(settings.views):
            held = np.zeros(len(rows), bool)
            for one in old:
                if mixes and is_augmented(one.augmentation, view) and one.set.store.num_rows != len(rows):
                    continue
                held |= one.candidates(view, numbers, digests) >= 0
            reused += int(held.sum())
        reasons = tuple(one for one in found if isinstance(one, str))
        plans.append(ReusePlan(member.name, reused, total, tuple(one.where for one in old), reasons))
    return plans
