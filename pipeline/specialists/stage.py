"""Specialists from the clustering to the capture that combines them: trained, run over the transfer set, combined."""

from dataclasses import dataclass
from typing import Any

from ..combine.todo import needs_combination
from ..experiment.tables import Combine
from ..workspace import Workspace
from .todo import (
    SpecialistsTodo,
    find_specialists,
    find_todo,
    missing_captures,
    names_of,
    specialist_runs,
)


@dataclass(frozen=True)
class SpecialistsDone:
    """The work of a call of `make_specialists`."""

    trained: tuple[str, ...] = ()
    """Specialists that were trained now."""
    captured: tuple[str, ...] = ()
    """Specialists whose logits were sealed now."""
    combined: str | None = None
    """The capture that was combined now."""


def make_specialists(
    work: Workspace, todo: SpecialistsTodo | None = None, *, scheduler: Any = None
) -> SpecialistsDone:
    """Train, capture and combine the missing specialists; nothing for an experiment without any.

    todo: the missing ones, if the caller has found them (`find_todo`). All ranks call this. scheduler: a
    `distributed.Client` on whose workers they are trained. Raises what a step raises; called again, it resumes.
    """
    experiment, ranks = work.experiment, work.ranks
    table = experiment.specialists
    if table is None:
        return SpecialistsDone()
    from .captures import capture_specialists
    from .training import train_specialists

    todo = find_todo(work) if todo is None else todo
    if todo and ranks.is_first:
        work.check_writable(store=table.capture)
    trained = train_specialists(work, todo.train, scheduler=scheduler)
    captured: list[str] = []
    if table.capture:
        missing = missing_captures(work, find_specialists(work)) if trained else todo.capture
        captured = capture_specialists(work, missing)
    combined = None
    if experiment.combine is not None:
        names = names_of(specialist_runs(experiment, work.store))
        generalist = experiment.generalist.name
        if ranks.is_first and needs_combination(work.store, experiment.combine, generalist, names):
            combined = _combine(work, experiment.combine, names)
        ranks.wait()
        if not ranks.is_first:
            work.store.refresh()
    return SpecialistsDone(tuple(trained), tuple(captured), combined)


def _combine(work: Workspace, table: Combine, specialists: list[str]) -> str:
    """Write the capture of `[combine]`; its name."""
    from ..combine.stage import combine

    combine(
        work.store,
        generalist=work.experiment.generalist.name,
        specialists=specialists,
        name=table.name,
        top=table.top,
        direction=table.direction,
        encoding=table.chosen_encoding,
        progress=work.progress,
    )
    return table.name
