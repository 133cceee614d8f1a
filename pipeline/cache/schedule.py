"""The order in which the teachers are shown the missing views of the missing blocks.

1. `plan_blocks` lists the incomplete blocks, each as a `BlockTodo`.
2. `Cut` divides a block: a block of small inputs is one piece; another is cut into pieces of whole batches, and gone over in
   as many sweeps as the logits of its views need.
3. `shown_rows` fetches the inputs of each piece once a sweep, in this process or by workers, and yields its views.
"""

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass

import numpy as np
from jaxtyping import Shaped, UInt64

from ...storage.format.grid import Grid
from ...storage.stream.inputs import Augment
from ..experiment.document import Experiment
from ..transfer import TransferRows
from .rows import Prepared, ViewOf, prepare, prepared_by_workers


@dataclass(frozen=True)
class BlockTodo:
    """Missing views of a block."""

    block: int
    """Its number."""
    views: Mapping[int, tuple[str, ...]]
    """By view, the teachers that lack it; views that none lacks are left out."""


def plan_blocks(
    grid: Grid,
    views: int,
    teachers: Sequence[str],
    has_samples: Callable[[int], bool],
    has_block: Callable[[str, int, int], bool],
) -> list[BlockTodo]:
    """List the incomplete blocks, in order.

    has_samples: function of a block. has_block: function of a teacher, a view and a block.

    >>> plan_blocks(Grid(10, 4), 2, ["a", "b"], lambda block: True, lambda name, view, block: (name, block) != ("b", 1))
    [BlockTodo(block=1, views={0: ('b',), 1: ('b',)})]
    """
    todo = []
    for block in range(grid.num_blocks):
        wanted = {
            view: tuple(name for name in teachers if not has_block(name, view, block))
            for view in range(views)
        }
        missing = {view: names for view, names in wanted.items() if names}
        if missing or not has_samples(block):
            todo.append(BlockTodo(block, missing))
    return todo


@dataclass(frozen=True)
class Cut:
    """Division of a block into pieces and sweeps."""

    piece_rows: int
    """Rows whose inputs are held together: whole batches of every teacher."""
    views_a_sweep: int
    """Views whose logits are gathered together, if a block is more than one piece."""

    def pieces(self, rows: range) -> list[range]:
        """Cut the rows of a block into pieces.

        >>> Cut(4, 1).pieces(range(10, 20))
        [range(10, 14), range(14, 18), range(18, 20)]
        """
        starts = range(rows.start, rows.stop, self.piece_rows)
        return [range(start, min(start + self.piece_rows, rows.stop)) for start in starts]

    def sweeps(self, rows: range, views: Sequence[int]) -> list[tuple[int, ...]]:
        """List the views of each sweep over a block; a block of one piece needs a single sweep.

        >>> Cut(4, 2).sweeps(range(10, 20), [0, 1, 2]), Cut(10, 2).sweeps(range(10, 20), [0, 1, 2])
        ([(0, 1), (2,)], [(0, 1, 2)])
        """
        step = self.views_a_sweep if len(rows) > self.piece_rows else max(1, len(views))
        return [tuple(views[start : start + step]) for start in range(0, len(views), step)] or [()]


@dataclass(frozen=True)
class Shown:
    """One view of a piece of a block."""

    todo: BlockTodo
    """The block."""
    view: int | None
    """Number of the view; None for a block that lacks its samples alone."""
    inputs: Shaped[np.ndarray, "inputs ..."]
    """Inputs of the teachers, one a row; fewer where an earlier store holds some rows (`reuse.Rest`)."""
    seen: UInt64[np.ndarray, " rows"]
    """Digests of these inputs."""
    prepared: Prepared
    """The piece."""
    is_new: bool
    """Whether these rows are shown for the first time."""
    is_last: bool
    """Whether this view of the block is complete with it."""


@dataclass(frozen=True)
class _Piece:
    """Rows that are prepared together in a sweep over their block."""

    todo: BlockTodo
    rows: range
    views: tuple[int, ...]
    is_new: bool
    is_last: bool


def _pieces(grid: Grid, todo: Sequence[BlockTodo], cut: Cut) -> Iterator[_Piece]:
    for one in todo:
        rows = grid.rows(one.block)
        for number, views in enumerate(cut.sweeps(rows, list(one.views))):
            for piece in cut.pieces(rows):
                yield _Piece(one, piece, views, number == 0, piece.stop == rows.stop)


def shown_rows(
    experiment: Experiment,
    rows: TransferRows,
    grid: Grid,
    todo: Sequence[BlockTodo],
    cut: Cut,
    make_view: Augment | None,
    check: Callable[[Prepared], None],
) -> Generator[Shown, None, None]:
    """Yield every missing view of every piece, in order, and at least one item of each piece.

    check: called with each piece before it is shown. Raises the errors of the transfer set and the augmentation.
    """
    pieces = list(_pieces(grid, todo, cut))
    prepared_pieces: Generator[tuple[Prepared, ViewOf], None, None] = (
        prepared_by_workers(experiment, rows, [(piece.rows, piece.views) for piece in pieces], make_view)
        if experiment.cache.workers
        else (prepare(rows, piece.rows, make_view) for piece in pieces)
    )
    with closing(prepared_pieces):
        for piece in pieces:
            prepared, view_of = next(prepared_pieces)
            check(prepared)
            if not piece.views:
                yield Shown(
                    piece.todo,
                    None,
                    prepared.inputs,
                    prepared.digests,
                    prepared,
                    piece.is_new,
                    piece.is_last,
                )
            for number, view in enumerate(piece.views):
                inputs, seen = view_of(view)
                is_new = piece.is_new and number == 0
                yield Shown(piece.todo, view, inputs, seen, prepared, is_new, piece.is_last)
                del inputs, seen
            del prepared, view_of  # not held while the next ones are fetched
