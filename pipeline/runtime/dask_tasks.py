"""Tasks of dask over the blocks of a store, on threads or on a cluster.

Each block is one dask task. Threads suffice: the slow parts (hashing, coding, numpy) release Python's lock, and nothing is
copied between processes. Memory is a few blocks per thread, whatever the number of blocks.
"""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
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
"""Each thread holds a block as float32 and its result: some hundred MiB if rows are wide."""
WORKERS_WITHIN: Final = 60.0
"""Seconds that a scheduler may be without workers, or without an answer."""
_ANSWER_SECONDS: Final = 10.0
_POLL_SECONDS: Final = 0.05
_LOOK_SECONDS: Final = 2.0
"""Seconds between two looks at the workers of a cluster."""
log = logging.getLogger(__name__)
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
    """Return `function(view, rows)` of each block, in the order of `blocks`. Calls run in any order.

    task: its name in progress reports. done: rows of earlier runs. Raises the first error of a call, after the running calls
    have ended; no further call is started.
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

    def report(key: object, *_: Any) -> None:
        # dask calls this in the thread that called `compute`.
        nonlocal done
        if rows := sizes.get(str(key)):
            done += rows
            progress(task, done, total)

    # Our own pool, so that no call is still writing when this returns or raises.
    threads = min(CPU_COUNT, _MOST_THREADS)
    with ThreadPoolExecutor(threads, "logitstore-block") as pool, Callback(posttask=report):
        try:
            return list(compute(*calls, scheduler="threads", pool=pool, optimize_graph=False))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def completed(client: Any, futures: Sequence[Any], task: str) -> Iterator[Any]:
    """Yield each `distributed.Future` when it has ended: done, failed or lost.

    task: the job in messages. Raises TransientIOError if the scheduler does not answer or has no worker for a while, for which
    a warning is logged first.
    """
    left, looked = list(futures), time.monotonic()
    missing: float | None = None
    while left:
        ended = [future for future in left if future.done()]
        left = [future for future in left if future not in ended]
        yield from ended
        if ended or not left:
            continue
        time.sleep(_POLL_SECONDS)
        if (now := time.monotonic()) - looked < _LOOK_SECONDS:
            continue
        looked = now
        if (found := _lacking(client)) is None:
            missing = None
        elif missing is None:
            missing = now
            log.warning("%s: %s; waiting %.0f s for workers", task, found, WORKERS_WITHIN)
        elif now - missing > WORKERS_WITHIN:
            raise TransientIOError(
                task,
                expected=f"a dask scheduler with workers within {WORKERS_WITHIN:.0f} s",
                found=found,
                remedy=f"start workers with `dask worker {client.scheduler.address}` and run the same command again; "
                "finished work is kept",
            )


def _lacking(client: Any) -> str | None:
    """Return the deficiency of a cluster in words; None if it works."""
    if client.status != "running":
        return None  # its futures are lost, as they say themselves
    try:
        state = client.sync(client.scheduler.identity, callback_timeout=_ANSWER_SECONDS)
    except TimeoutError:
        return "a scheduler that does not answer"
    except OSError:
        return None  # the client notices, and its futures end
    return None if state["workers"] else "a scheduler without workers"


def result_of(future: Any, task: str) -> Any:
    """Wait for the result of a `distributed.Future`.

    task: the job in messages. Raises the task's own error, or TransientIOError if the scheduler ended before the task.
    """
    try:
        return future.result()
    except (CancelledError, OSError) as error:
        if future.status == "error":  # the task's own
            raise
        reason = getattr(error, "reason", None) or str(error) or type(error).__name__
        raise TransientIOError(
            task,
            expected="a dask scheduler that answers until the work is done",
            found=" ".join(str(reason).split()),
            remedy="start the scheduler again and run the same command; finished work is kept",
        ) from error


def cancel(client: Any, futures: list[Any]) -> None:
    """Cancel the unfinished tasks of a cluster, unless its scheduler is gone."""
    if client.status == "running":
        client.cancel(futures)
