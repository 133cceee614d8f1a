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
from jaxtyping import Bool, Float32, Int64

from ...storage.api import Store
from ...storage.encodings.transform import Transform
from ...storage.progress import Progress, silent
from ...storage.sharing.card_file import refresh_card
from ..calibration_rows import drawn_of_views
from ..runtime.dask_tasks import over_blocks
from .experts import Experts, active_specialists
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
    refresh_card(store.root, made=not plan.done)
    names = tuple(one.name for one in plan.specialists)
    return CombineReport(
        plan.name, plan.generalist.name, names, not plan.done, store.digest, dict(sorted(active.items()))
    )


def _write(store: Store, plan: CombinePlan, progress: Progress) -> Counter[int]:
    """Write the missing blocks of the new capture and seal it; rows by number of active specialists."""
    chief, experts, encoding, views = plan.generalist, plan.experts, plan.encoding, plan.views

    def calibration() -> Float32[np.ndarray, "rows classes"]:
        assert isinstance(encoding, Transform)
        chosen = drawn_of_views(views, store.num_rows, encoding)
        return np.concatenate([_combined(plan, experts, view, rows)[0] for view, rows in chosen])

    with store.capture(
        plan.name,
        provenance=plan.identity,
        views=views,
        encoding=encoding,
        notes={"python": platform.python_version(), "numpy": np.__version__},
        calibration=calibration if isinstance(encoding, Transform) else None,
    ) as capture:

        def write(view: int, rows: range) -> Counter[int]:
            logits, active = _combined(plan, experts, view, np.arange(rows.start, rows.stop))
            capture.write(rows, logits, view, seen=chief.seen(rows, view))
            return Counter(active.sum(axis=1).tolist())

        missing = [(view, rows) for view in range(views) for rows in capture.missing_blocks(view)]
        done = views * store.num_rows - sum(len(rows) for _, rows in missing)
        counts = over_blocks(f"combine {plan.name}", missing, write, progress=progress, done=done)
    return sum(counts, Counter[int]())


def _combined(
    plan: CombinePlan, experts: Experts, view: int, rows: Int64[np.ndarray, " rows"]
) -> tuple[Float32[np.ndarray, "rows classes"], Bool[np.ndarray, "rows specialists"]]:
    """Combine some rows of a view, ascending; return their logits, and the specialists that are active in each."""
    chief = plan.generalist
    logits = chief.read(rows, view, temperature=1.0)
    # Decoded top-k rows may tie where the stored order tells them apart.
    ranked = logits if chief.encoding.is_dense else chief.read_ranked(rows, view, temperature=1.0)
    active = active_specialists(ranked, experts, plan.top)
    logits_of_each = [
        one.read(rows[np.flatnonzero(asked)], view, temperature=1.0)
        for one, asked in zip(plan.specialists, active.T, strict=True)
    ]
    combine_rows(
        logits, experts, active, logits_of_each, direction=plan.direction, method=plan.method, out=logits
    )
    return logits, active
