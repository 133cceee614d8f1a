"""Speed of stage one, against its teachers alone.

1. Stage one with a convnet of a few milliseconds a batch, against the bare loop `for batch: teacher(batch)`
   over the same transfer set. The sets have ten classes of 28 x 28, and 1000 classes of 3 x 32 x 32 with a
   hundred times as much to keep.
2. Three teachers in one pass, against loading alone plus each of the three alone over batches in memory.

Both sides have the same `TransferRows`, the same batches, `inference_mode` and one torch thread. Stage one is
the whole of `cache()`: weights read, teachers tried, inputs digested and kept, logits encoded, hashed,
synced, sealed. Blocks are of 4096 rows, the default of a store of 262,144 rows. Blocks of 1024 rows, the
default of this small store, have a line without a bar. The store of a round is deleted before the next one.

The work of stage one beside the teacher may use another core, which the bare loop cannot use. So two more
figures are given, both without a bar. One is the processor's seconds of both sides. The other is rows/s
against the teacher over batches in memory, where no loading can be hidden.

Alone, with fewer rows: python benchmarks/stage_one.py [rows]
"""

import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import torch
from encoding import bar
from measured_teachers import Net, bare_loop, batches, conv, experiment_of
from timing import Comparison, compare

from logitstore.pipeline.cache.stage import cache
from logitstore.pipeline.experiment.document import Experiment
from logitstore.pipeline.transfer import TransferRows
from logitstore.pipeline.workspace import Workspace
from logitstore.storage.format.grid import MIN_BLOCK_ROWS

ROWS, BLOCK_ROWS, ROUNDS, LEAST = 65_536, 4096, 5, 0.95


@dataclass
class Timed:
    """A function, and the processor's seconds of each of its calls, all threads together."""

    function: Callable[[], object]
    spent: list[float] = field(default_factory=list)

    def __call__(self) -> None:
        before = time.process_time()
        self.function()
        self.spent.append(time.process_time() - before)


@dataclass(frozen=True)
class Case:
    """A transfer set, and the teachers that run over it."""

    about: str
    shape: tuple[int, ...]
    classes: int
    batch: int
    nets: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]
    """Channels and hidden units of each teacher."""

    def made(self) -> list[Net]:
        """Build the teachers."""
        torch.manual_seed(0)
        return [conv(self.shape, self.classes, channels, hidden) for channels, hidden in self.nets]


SMALL = Case("28 x 28, 10 classes", (28, 28), 10, 64, (((8, 16), (64,)),))
WIDE = Case("3 x 32 x 32, 1000 classes", (3, 32, 32), 1000, 64, (((8, 16), (64,)),))
THREE = Case(
    "28 x 28, 10 classes", (28, 28), 10, 64, (((8, 16), (64,)), ((4, 8), (32,)), ((8, 8, 16), (32,)))
)


class Capture:
    """Stage one into a new store at each call."""

    def __init__(self, experiment: Experiment, rows: TransferRows, folder: Path) -> None:
        self._experiment, self._rows, self._folder = experiment, rows, folder
        self._number = 0

    def __call__(self) -> None:
        path = self._folder / f"store-{self._number}.zarr"
        self._number += 1
        models = self._folder / "models"
        work = Workspace.of_store(self._experiment, path, models, given_rows=self._rows, device="cpu")
        report = cache(work)
        assert len(report.captured) == len(self._experiment.teachers)

    def forget(self) -> None:
        """Delete the stores that were made."""
        for path in self._folder.glob("store-*.zarr"):
            shutil.rmtree(path)


def figures(found: Comparison, rows: int) -> str:
    """Format the spread, and the rows/s of the second side, stage one."""
    return f"{found.low:.2f} … {found.high:.2f}; {rows / found.theirs:,.0f} rows/s"


def capture_of(
    folder: Path,
    nets: list[Net],
    data: Mapping[str, object],
    case: Case,
    loader: TransferRows,
    block_rows: int,
) -> tuple[Capture, Timed]:
    """Return stage one with blocks of `block_rows` rows, and the same timed."""
    experiment = experiment_of(folder, nets, data, {"batch_size": case.batch, "block_rows": block_rows})
    made = Capture(experiment, loader, folder)
    return made, Timed(made)


def one_teacher(case: Case, folder: Path, rows: int) -> None:
    """Time stage one against its teacher."""
    (net,) = nets = case.made()
    data = {"rows": rows, "shape": list(case.shape), "classes": case.classes}
    loader = TransferRows(experiment_of(folder, nets, data, {}))
    held = list(batches(loader, case.batch))
    bare = Timed(lambda: bare_loop(net.module, batches(loader, case.batch)))
    capture, captured = capture_of(folder, nets, data, case, loader, BLOCK_ROWS)
    found = compare(bare, captured, ROUNDS, capture.forget)
    a_batch = 1000 * found.ours / len(held)
    what = f"rows/s of stage one / bare loop, {case.about}, {a_batch:.1f} ms a batch of {case.batch}"
    bar(f"{what} ({figures(found, rows)})", f"{found.ratio:.2f}", f">= {LEAST:g}", found.ratio >= LEAST)
    more = median(captured.spent) / median(bare.spent)
    print(f"  {'':8s}{'the same, processor seconds, all threads':122s} {more:14.2f}", flush=True)
    found = compare(lambda: bare_loop(net.module, iter(held)), captured, ROUNDS, capture.forget)
    what = f"rows/s of stage one / of the teacher over batches in memory ({figures(found, rows)})"
    print(f"  {'':8s}{what:122s} {found.ratio:14.2f}", flush=True)
    capture, captured = capture_of(folder, nets, data, case, loader, MIN_BLOCK_ROWS)
    found = compare(bare, captured, ROUNDS, capture.forget)
    what = f"rows/s of stage one / bare loop, blocks of {MIN_BLOCK_ROWS} rows ({figures(found, rows)})"
    print(f"  {'':8s}{what:122s} {found.ratio:14.2f}", flush=True)


def three_teachers(case: Case, folder: Path, rows: int) -> None:
    """Time three teachers in one pass, against the sum of loading and of each alone."""
    nets = case.made()
    data = {"rows": rows, "shape": list(case.shape), "classes": case.classes}
    loader = TransferRows(experiment_of(folder, nets, data, {}))
    held = list(batches(loader, case.batch))
    alone: dict[str, list[float]] = {name: [] for name in ("loading", *map(str, range(len(nets))))}

    def one_after_another() -> None:
        start = time.perf_counter()
        for _ in batches(loader, case.batch):
            pass
        alone["loading"].append(time.perf_counter() - start)
        for number, net in enumerate(nets):
            start = time.perf_counter()
            bare_loop(net.module, iter(held))
            alone[str(number)].append(time.perf_counter() - start)

    parts = Timed(one_after_another)
    capture, captured = capture_of(folder, nets, data, case, loader, BLOCK_ROWS)
    found = compare(parts, captured, ROUNDS, capture.forget)
    split = " + ".join(f"{median(times):.2f}" for times in alone.values())
    what = f"rows/s of three teachers in one pass / of loading and each alone in sequence ({split} s) ({figures(found, rows)})"
    bar(what, f"{found.ratio:.2f}", f">= {LEAST:g}", found.ratio >= LEAST)
    more = median(captured.spent) / median(parts.spent)
    print(f"  {'':8s}{'the same, processor seconds, all threads':122s} {more:14.2f}", flush=True)


def main(rows: int = ROWS) -> None:
    """Print the table."""
    torch.set_num_threads(1)
    print(f"stage one: {rows:,} rows, one torch thread on both sides, {ROUNDS} rounds in turn")
    for case in (SMALL, WIDE):
        with tempfile.TemporaryDirectory() as folder:
            one_teacher(case, Path(folder), rows)
    with tempfile.TemporaryDirectory() as folder:
        three_teachers(THREE, Path(folder), rows)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]))
