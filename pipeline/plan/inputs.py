"""The time of the inputs of a plan, beside that of the networks that are shown them.

Some rows from all over the transfer set are fetched, digested and augmented as stage one and the trainings do it, in this
process and by one thread. Each is read once before it is timed: a disk that is slower than the page cache adds to it.

Inputs are made while a network runs on those before. So the longer of the two counts, or what the processors of this
machine have to do in all where a network runs on them too:

    inputs      n processes make them:        ─ ─ ─ ─ ─ ─        seconds / n
    network                                       ──  ──  ──     seconds
    processors  all seconds of both, on so many processors
"""

import statistics
import time
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import torch

from ...storage.format.grid import Grid
from ..cache.capture import cut_of
from ..cache.rows import prepare
from ..views import experiment_views, shown_views
from ..workspace import Workspace

Bound = Literal["inputs", "network", "processors"]
_CHUNKS: Final = 5
"""Places in the transfer set whose rows are timed."""
_FIRST_ROWS: Final = 16
"""Rows by which the size of the chunks is chosen."""
_CHUNK_SECONDS: Final = 0.05
"""Time that a chunk should take."""
_MOST_ROWS: Final = 256
"""Maximum number of rows in a chunk."""


@dataclass(frozen=True)
class InputTimes:
    """Seconds to make an input, by one thread."""

    fetch: float
    """To fetch it from the transfer set, decoded, and to digest it."""
    view: float
    """To make an augmented view of it, and to digest that; 0 without an augmentation."""


def measure_inputs(work: Workspace) -> InputTimes:
    """Time the inputs of some rows: the median over chunks. Raises the errors of the transfer set and the augmentation."""
    rows, settings = work.rows, work.experiment.cache
    make_view, table = experiment_views(work.experiment, rows, made_twice=False), settings.augment
    augmented = None if table is None or table.first_view >= settings.views else settings.views - 1

    def timed(start: int, count: int) -> InputTimes:
        """Time some rows, a row, after they were read."""
        which = range(start, start + count)
        prepare(rows, which, make_view)
        begun = time.perf_counter()
        _, view_of = prepare(rows, which, make_view)
        fetch, view = (time.perf_counter() - begun) / count, 0.0
        if augmented is not None:
            view_of(augmented)
            begun = time.perf_counter()
            view_of(augmented)
            view = (time.perf_counter() - begun) / count
        return InputTimes(fetch, view)

    few = min(_FIRST_ROWS, len(rows))
    timed(0, few)  # imports decoders
    first = timed(0, few)
    count = int(_CHUNK_SECONDS / max(first.fetch + first.view, 1e-9))
    count = max(1, min(count, _MOST_ROWS, len(rows)))
    chunks = list[InputTimes]()
    for number in range(_CHUNKS):
        work.progress("timing inputs", number, _CHUNKS, "chunks")
        chunks.append(timed((len(rows) - count) * number // (_CHUNKS - 1), count))
    work.progress("timing inputs", _CHUNKS, _CHUNKS, "chunks")
    return InputTimes(
        statistics.median(chunk.fetch for chunk in chunks), statistics.median(chunk.view for chunk in chunks)
    )


@dataclass(frozen=True)
class Together:
    """Inputs and networks that work at the same time."""

    seconds: float
    """Of both."""
    bound: Bound
    """The one that takes that long."""


def together(inputs: float, network: float, workers: int, threads: int, processors: int) -> Together:
    """Return the time of inputs and of a network that runs beside them.

    inputs: seconds to make them by one thread. network: seconds. workers: processes that make inputs; 0 for a thread of this
    process. threads: processors that the network runs on; 0 for one on a GPU.

    >>> together(8.0, 2.0, 0, 0, 16), together(8.0, 2.0, 8, 0, 16)
    (Together(seconds=8.0, bound='inputs'), Together(seconds=2.0, bound='network'))
    >>> together(8.0, 6.0, 2, 2, 2)
    Together(seconds=10.0, bound='processors')
    """
    made = inputs / max(1, min(workers, processors))
    busy = (inputs + network * min(threads, processors)) / processors
    longest = max(made, network)
    if busy > longest and made and network:
        return Together(busy, "processors")
    return Together(longest, "inputs" if made > network else "network")


def network_threads(device: torch.device, threads: int | None = None) -> int:
    """Return the processors that a network runs on; 0 on another device than the CPU."""
    return (threads or torch.get_num_threads()) if device.type == "cpu" else 0


def row_seconds(work: Workspace, times: InputTimes, grid: Grid) -> float:
    """Return the seconds of one thread of stage one for all views of a row."""
    experiment, settings = work.experiment, work.experiment.cache
    members, first = experiment.teacher_members(), settings.augment
    block_rows = min(grid.block_rows, grid.num_rows)
    row_bytes = max(work.rows.first.nbytes, work.shown_few[:1].nbytes)
    cut = cut_of(
        block_rows,
        4 * work.rows.num_classes * len(members),
        settings.batch_size,
        row_bytes,
        keeps_inputs=experiment.transfer_set.store_inputs is True,
    )
    # The rows of a block of several pieces are fetched again for each sweep.
    sweeps = len(cut.sweeps(range(block_rows), list(range(settings.views))))
    augmented = 0 if first is None else max(0, settings.views - first.first_view)
    return sweeps * times.fetch + augmented * times.view


def student_seconds(work: Workspace, times: InputTimes, views: int | str, *, augments: bool) -> float:
    """Return the seconds of one thread to make an input of a student. views: of its table. augments: whether it sees views."""
    experiment, settings = work.experiment, work.experiment.cache
    kept = experiment.transfer_set.store_inputs is True
    made = 0.0 if kept else times.fetch
    if not augments or settings.augment is None:
        return made
    first = settings.augment.first_view
    share = float(np.mean([view >= first for view in shown_views(views, settings.views)]))
    return made + share * times.view
