"""How do specialists come about, from the clustering to the capture that combines them, doing only what is not done?

1. Train those that are not trained (`specialists`).
2. Run those that are not captured over the transfer set (`specialist_captures`).
3. Put them together with the generalist, where the experiment asks for that (`combine`).
"""

from dataclasses import dataclass
from typing import Any

from ...storage.api import Store
from ...storage.progress import Progress, silent
from ..experiment.document import Experiment
from ..models.records import Models
from ..runtime.ranks import ALONE, Ranks
from ..transfer import TransferRows
from .todo import (
    check_combined_names,
    missing_specialist_captures,
    missing_specialists,
    names_of,
    needs_combination,
    specialist_runs,
)


@dataclass(frozen=True)
class SpecialistsDone:
    """What a call of `make_specialists` did."""

    trained: tuple[str, ...] = ()
    """Specialists that were trained now."""
    captured: tuple[str, ...] = ()
    """Specialists whose logits were sealed now."""
    combined: str | None = None
    """The capture that was combined now."""


@dataclass(frozen=True)
class SpecialistsPending:
    """What of the specialists is still to be done."""

    train: tuple[str, ...] = ()
    """Specialists to be trained."""
    capture: tuple[str, ...] = ()
    """Specialists to be run."""
    combine: str | None = None
    """The capture to be combined."""

    def __bool__(self) -> bool:
        return bool(self.train or self.capture or self.combine)

    def lines(self) -> list[str]:
        """A line for each thing to do."""
        lines = [f"train specialist {name}" for name in self.train]
        lines += [f"capture specialist {name}" for name in self.capture]
        return lines + ([f"combine into {self.combine}"] if self.combine else [])


def pending_specialists(
    experiment: Experiment, rows: TransferRows, models: Models, store: Store | None
) -> SpecialistsPending:
    """What of an experiment's specialists is still to be done. Changes nothing.

    Raises PartNotFound for a clustering that is not there and will not be made, SpecMismatch where something in the
    store has a name of the experiment and is something else.
    """
    if experiment.specialists is None:
        return SpecialistsPending()
    if store is not None:
        check_combined_names(experiment, store)
    train = names_of(missing_specialists(experiment, rows, models, store))
    capture = names_of(missing_specialist_captures(experiment, rows, models, store))
    combine = None
    if experiment.combine is not None and (
        train or capture or store is None or needs_combination(experiment, store)
    ):
        combine = experiment.combine.name
    return SpecialistsPending(tuple(train), tuple(capture), combine)


def make_specialists(
    experiment: Experiment,
    store: Store,
    models: Models,
    *,
    rows: TransferRows | None = None,
    device: str | None = None,
    progress: Progress = silent,
    ranks: Ranks = ALONE,
    scheduler: Any = None,
) -> SpecialistsDone:
    """Train, capture and combine what of an experiment's specialists is not; nothing for an experiment without.

    rows: the transfer set, where the caller has it at hand. ranks: processes that do it together, all of which call
    this. scheduler: a `distributed.Client` on whose workers they are trained. Raises whatever a step raises; called
    again it goes on.
    """
    if experiment.specialists is None:
        return SpecialistsDone()
    from .captures import capture_specialists
    from .training import train_specialists

    rows = TransferRows(experiment) if rows is None else rows
    common: dict[str, Any] = {"rows": rows, "device": device, "progress": progress, "ranks": ranks}
    trained = train_specialists(experiment, store, models, scheduler=scheduler, **common)
    captured: list[str] = []
    if experiment.specialists.capture:
        captured = capture_specialists(experiment, store, models, **common)
    combined = None
    if experiment.combine is not None:
        if ranks.is_first and needs_combination(experiment, store):
            combined = _combine(experiment, store, progress)
        ranks.counts(0)
        if not ranks.is_first:
            store.refresh()
    return SpecialistsDone(tuple(trained), tuple(captured), combined)


def _combine(experiment: Experiment, store: Store, progress: Progress) -> str:
    """Write the capture that `[combine]` asks for; its name."""
    from ..combine.stage import combine

    table = experiment.combine
    assert table is not None  # whoever asks has looked
    combine(
        store,
        generalist=experiment.generalist.name,
        specialists=[run.name for run in specialist_runs(experiment, store)],
        name=table.name,
        top=table.top,
        direction=table.direction,
        progress=progress,
    )
    return table.name
