"""Covariance of softened outputs over all rows and views of a capture.

1. The blocks are dealt to `LANES` lanes. A lane goes through its blocks one after another, one dask task a block, which adds
   the block to the moments of the blocks before it.
2. A tree of `merge` joins the lanes.
3. `covariance` runs that graph on threads or on a cluster. `second_moments` does the same for combinations of the classes,
   where their matrix would be too large.

Memory does not grow with the rows: it is the matrices of the blocks in flight and of the lanes that wait to be joined, at
most `FAN_IN - 1` a level of the tree. The order of all sums follows from rows and blocks alone, so that every run on the same
machine gives the same bits. Source: Hinton et al. 2015, section 5.3 (the covariance of the generalist's predictions, which
needs no labels).
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any, Final
from uuid import uuid4

import numpy as np
from dask.base import compute
from dask.callbacks import Callback
from dask.delayed import delayed
from dask.system import CPU_COUNT
from jaxtyping import Float64
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]  # it has no annotations

from ...storage.errors import BadDataError
from ...storage.progress import Progress, silent
from ..runtime.dask_tasks import completed, result_of
from .memory import FAN_IN, LANES, threads_within
from .moments import Combinations, Moments, merge, scratch
from .softened import Softened

_TASK: Final = "covariance"
_TOPIC: Final = "logitstore-covariance"


def covariance(
    softened: Softened,
    *,
    scheduler: Any = "threads",
    memory: int | None = None,
    progress: Progress = silent,
) -> Float64[np.ndarray, "classes classes"]:
    """Compute the population covariance of softened outputs over all rows and views.

    scheduler: as `dask.compute` takes it: "threads", "synchronous", a `distributed.Client`.
    memory: bytes that the matrices of all threads together may take; one thread runs in any case.
    progress: receives the number of rows that are done.

    Returns a symmetric matrix whose rows sum to 0, equal to the float64 one within
    1e-5 · sqrt(c_ii c_jj), however the rows are cut into blocks.
    Raises BadDataError without rows, BadLogitsError, with view and row, for a logit that is not finite, TransientIOError
    where the scheduler of a client is lost.
    """
    total = second_moments(softened, scheduler=scheduler, memory=memory, progress=progress)
    matrix = np.asarray(total.scatter / total.count)
    return (matrix + matrix.T) / 2


def second_moments(
    softened: Softened,
    combinations: Combinations | None = None,
    *,
    scheduler: Any = "threads",
    memory: int | None = None,
    progress: Progress = silent,
) -> Moments:
    """Compute the moments of softened outputs over all rows and views, or of `combinations` of them with each class.

    Other arguments and errors are those of `covariance`.
    """
    if 0 in softened.shape:
        raise BadDataError(
            "logits",
            expected="at least one view, row and class",
            found=f"shape {softened.shape}",
            remedy="check the capture",
        )
    blocks = softened.blocks()
    total = sum(len(rows) for _, rows in blocks)
    name = f"moments-{uuid4().hex}"
    graph = _graph(softened, combinations, name, None if _is_local(scheduler) else f"{_TOPIC}-{name}")
    progress(_TASK, 0, total)
    if not _is_local(scheduler):
        return _on_cluster(graph, scheduler, f"{_TOPIC}-{name}", total, progress)
    classes = softened.shape[2]
    lines = classes if combinations is None else combinations.width
    threads = 1 if scheduler != "threads" else threads_within(memory, 8 * lines * classes, CPU_COUNT)
    with (
        ThreadPoolExecutor(threads, "logitstore-covariance") as pool,
        _Report(name, {(view, rows.start): len(rows) for view, rows in blocks}, total, progress),
        # One product a thread: BLAS with threads of its own would have them wait for each other.
        threadpool_limits(max(1, CPU_COUNT // threads), user_api="blas"),
    ):
        try:
            (moments,) = compute(graph, scheduler=scheduler, pool=pool, optimize_graph=False)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    assert isinstance(moments, Moments)
    return moments


def lanes_of(blocks: Sequence[Any], lanes: int) -> list[Sequence[Any]]:
    """Split blocks into runs whose lengths differ by one at most.

    >>> lanes_of([0, 1, 2, 3, 4], lanes=2), lanes_of([0], lanes=2)
    ([[0, 1], [2, 3, 4]], [[0]])
    """
    count = min(lanes, len(blocks))
    edges = [number * len(blocks) // count for number in range(count + 1)]
    return [blocks[first:last] for first, last in pairwise(edges)]


def _graph(softened: Softened, combinations: Combinations | None, name: str, topic: str | None) -> Any:
    """Build the dask graph whose value is the moments of all blocks."""
    source = delayed((softened, combinations), traverse=False, pure=False)
    task = delayed(_with_block, pure=False)
    level = []
    for lane in lanes_of(softened.blocks(), LANES):
        total = None
        for view, rows in lane:
            total = task(source, view, rows, total, topic, dask_key_name=f"{name}-{view}-{rows.start}")
        level.append(total)
    join = delayed(merge, pure=False)
    while len(level) > 1:
        level = [join(level[first : first + FAN_IN]) for first in range(0, len(level), FAN_IN)]
    return level[0]


def _with_block(
    source: tuple[Softened, Combinations | None],
    view: int,
    rows: range,
    before: Moments | None,
    topic: str | None,
) -> Moments:
    """Return the moments of the rows before and those of a block together."""
    softened, combinations = source
    classes = softened.shape[2]
    lines = classes if combinations is None else combinations.width
    total = Moments.zeros(lines, classes) if before is None else before
    if topic is not None and before is not None:
        total = before.copy()  # on a cluster a lost result is computed again from `before`
    for some in softened.slices(rows):
        kept = scratch("probabilities", (len(some), classes), np.float64)
        total.add(softened.read(view, some, kept), combinations, overwrite=True)
    if topic is not None:
        from distributed import get_worker

        get_worker().log_event(topic, len(rows))
    return total


def _is_local(scheduler: Any) -> bool:
    return isinstance(scheduler, str)


def _on_cluster(graph: Any, client: Any, topic: str, total: int, progress: Progress) -> Moments:
    """Run a graph by a `distributed.Client`, whose workers log an event for each block that is done."""
    done = 0

    def advance(event: tuple[float, int]) -> None:
        nonlocal done
        done = min(total, done + event[1])  # a block that a lost worker did is done again
        progress(_TASK, done, total)

    client.subscribe_topic(topic, advance)
    try:
        (future,) = completed(client, [client.compute(graph, optimize_graph=False)], _TASK)
        moments = result_of(future, _TASK)
    finally:
        client.unsubscribe_topic(topic)
    if done < total:
        progress(_TASK, total, total)
    assert isinstance(moments, Moments)
    return moments


class _Report(Callback):
    """A dask callback that reports the rows of each block whose task has ended."""

    def __init__(self, name: str, sizes: dict[tuple[int, int], int], total: int, progress: Progress) -> None:
        self._sizes = {f"{name}-{view}-{first}": rows for (view, first), rows in sizes.items()}
        self._done, self._total, self._progress = 0, total, progress

    def _posttask(self, key: object, *_: object) -> None:
        if rows := self._sizes.get(str(key)):
            self._done += rows
            self._progress(_TASK, self._done, self._total)
