"""A generalist and its specialists, combined into one capture of the store.

Block by block, on all cores: the rows of the generalist are read, and of each specialist those rows in which it is active;
`solve` finds the distribution q nearest to all of them. ln q is written as the logits of an ordinary capture of all
classes, whose identity holds the seals of its captures; a single network can be distilled from it.

Killed anywhere and started again, it ends with the same bytes. Source: Hinton et al. 2015, section 5.4, eq. 5.
"""

import platform
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ...storage.api import Store
from ...storage.progress import Progress, silent
from ..runtime.dask_tasks import over_blocks
from .experts import active_specialists
from .solve import combine_rows
from .todo import CombinePlan, plan_combination


@dataclass(frozen=True)
class CombineReport:
    """A combination that is there."""

    name: str
    """Name of the new capture."""
    generalist: str
    """The capture of all classes."""
    specialists: tuple[str, ...]
    """The captures of some classes."""
    made: bool
    """Whether blocks of it were still missing."""
    digest: str
    """Digest of the store."""
    active: Mapping[int, int] = field(default_factory=dict)
    """Of the rows that were written now, of all views: how many had this many active specialists."""


def combine(store: Store, *, progress: Progress = silent, **settings: Any) -> CombineReport:
    """Make and seal `teachers/<name>`, the combination of a generalist and its specialists, or resume it.

    settings, errors: as of `plan_combination`. Captures are combined at temperature 1.
    """
    plan = plan_combination(store, **settings)
    if not plan.done:
        store.check_writable()
    active = Counter[int]() if plan.done else _write(store, plan, progress)
    names = tuple(one.name for one in plan.specialists)
    return CombineReport(
        plan.name, plan.generalist.name, names, not plan.done, store.digest, dict(sorted(active.items()))
    )


def _write(store: Store, plan: CombinePlan, progress: Progress) -> Counter[int]:
    """Write the missing blocks of the new capture and seal it; rows by number of active specialists."""
    chief, experts, views = plan.generalist, plan.experts, plan.views
    with store.capture(
        plan.name,
        provenance=plan.identity,
        views=views,
        encoding=plan.encoding,
        notes={"python": platform.python_version(), "numpy": np.__version__},
    ) as capture:

        def write(view: int, rows: range) -> Counter[int]:
            logits = chief.read(rows, view, temperature=1.0)
            # Decoded top-k rows may tie where the stored order tells them apart.
            is_dense = chief.encoding.is_dense
            ranked = logits if is_dense else chief.read_ranked(rows, view, temperature=1.0)
            active = active_specialists(ranked, experts, plan.top)
            logits_of_each = []
            for one, asked in zip(plan.specialists, active.T, strict=True):
                logits_of_each.append(one.read(rows.start + np.flatnonzero(asked), view, temperature=1.0))
            combine_rows(
                logits,
                experts,
                active,
                logits_of_each,
                direction=plan.direction,
                method=plan.method,
                out=logits,
            )
            capture.write(rows, logits, view, seen=chief.seen(rows, view))
            return Counter(active.sum(axis=1).tolist())

        missing = [(view, rows) for view in range(views) for rows in capture.missing_blocks(view)]
        done = views * store.num_rows - sum(len(rows) for _, rows in missing)
        counts = over_blocks(f"combine {plan.name}", missing, write, progress=progress, done=done)
    return sum(counts, Counter[int]())
