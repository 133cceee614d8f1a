"""Tasks of dask over the blocks of a store, on threads or on a cluster.

One dask task a block, on threads: what is slow of a block (hashing, coding, numpy) lets go of Python's lock, and nothing
is copied from one process to another. Memory is a few blocks a thread, however many there are.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from typing import Any, Final, TypeVar

from dask.base import compute
from dask.callbacks import Callback
from dask.delayed import delayed
from dask.system import CPU_COUNT

from ...storage.errors import TransientIOError
from ...storage.format.grid import Grid
from ...storage.progress import Progress, silent

Block = tuple[int, range]
"""(view, rows) of a block."""
_MOST_THREADS: Final = 16
"""Each holds a block as float32 and what is made of it: some hundred MiB where rows are wide."""
_Result = TypeVar("_Result")


def every_block(grid: Grid, views: int) -> list[Block]:
    """List the blocks of all views, in order.

    >>> every_block(Grid(num_rows=5, block_rows=4), views=1)
    [(0, range(0, 4)), (0, range(4, 5))]
    """
    return [(view, grid.rows(block)) for view in range(views) for block in range(grid.num_blocks)]


def over_blocks(
    task: str,
    blocks: Sequence[Block],
    function: Callable[[int, range], _Result],
    *,
    progress: Progress = silent,
    done: int = 0,
) -> list[_Result]:
    """Return `function(view, rows)` of each block in the order of `blocks`; they may run in any order.

    task: what progress is reported as. done: rows that an earlier run did.
    Raises what a call raises; calls that are under way then are waited for, others are not begun.
    """
    total = done + sum(len(rows) for _, rows in blocks)
    progress(task, done, total)
    if not blocks:
        return []
    sizes = {f"{task}-{view}-{rows.start}": len(rows) for view, rows in blocks}
    calls = [
        delayed(function, pure=False)(view, rows, dask_key_name=key)
        for key, (view, rows) in zip(sizes, blocks, strict=True)
    ]
    threads = min(CPU_COUNT, _MOST_THREADS)
    # Our own pool, so that no call is still writing when this returns or raises.
    with (
        ThreadPoolExecutor(threads, "logitstore-block") as pool,
        _Report(task, sizes, done, total, progress),
    ):
        try:
            return list(compute(*calls, scheduler="threads", pool=pool, optimize_graph=False))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


class _Report(Callback):
    """Tells `progress` the rows of each block that is done, in the thread that asked."""

    def __init__(self, task: str, sizes: dict[str, int], done: int, total: int, progress: Progress) -> None:
        self._task, self._sizes, self._done, self._total = task, sizes, done, total
        self._progress = progress

    def _posttask(self, key: object, *_: Any) -> None:
        if rows := self._sizes.get(str(key)):
            self._done += rows
            self._progress(self._task, self._done, self._total)


def result_of(future: Any, task: str) -> Any:
    """Wait for the result of a `distributed.Future`.

    task: what it is part of, for the message. Raises what the task raised, TransientIOError where the scheduler did not
    stay until it was done.
    """
    try:
        return future.result()
    except (CancelledError, OSError) as error:
        if future.status == "error":  # the task's own
            raise
        said = getattr(error, "reason", None) or str(error) or type(error).__name__
        raise TransientIOError(
            task,
            expected="a dask scheduler that answers until the work is done",
            found=" ".join(str(said).split()),
            remedy="start it again and run the same command: what is finished is kept",
        ) from error


def cancel(client: Any, futures: list[Any]) -> None:
    """Cancel the unfinished tasks of a cluster; do nothing if its scheduler is gone."""
    if client.status == "running":
        client.cancel(futures)
