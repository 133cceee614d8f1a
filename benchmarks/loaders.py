"""Speed of a stream, against five other loaders that can feed a student.

The data are 131,072 rows of (uint8 3 x 32 x 32, int64 label, float16 x 1000), in shuffled batches of 256 as
torch tensors. The page cache is hot, and `torch.set_num_threads(1)` is set. Each loader keeps the rows in its
own format and reads them in its own recommended way. The modules of rival_loaders/ name that way and the
reason for it. Each runs in an environment of its own under runs/, made at first use.

1. Every loader's epoch is compared with the data, value by value: every row once, shuffled. So is the
   stream's.
2. Every loader is tried with 0, 1, 2 and 4 workers. The two best settings take part in the rounds.
3. In every round the stream and each loader run in turn, and one ratio is taken. The loader's clock starts
   after sixteen batches. It stops after the epoch, or for a slow loader after 20,000 rows and two seconds.
   The stream's clock runs from `iter()` to the end of the epoch. Both give logits as they are stored,
   float16.

The figure is the median of the ratios of the better setting. A run takes about ten minutes, and as many more
at first use.

    python benchmarks/loaders.py [--rows 131072] [--rounds 5] [--json docs/figures/loaders.json]
"""

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import torch
from encoding import bar
from figures import write_figures
from rival_loaders import RIVALS, Rival
from rival_loaders.batches import BATCH, CLASSES, Batch, Source, check, check_the_check, make_source
from rival_loaders.environments import RUNS, python_of

import logitstore
from logitstore.pipeline import TorchStream
from logitstore.storage import Stream

ROWS, ROUNDS = 131_072, 5
WORKERS = (0, 1, 2, 4)
TRIAL_ROWS, TRIAL_SECONDS = 10_240, 1.0
TIMED_ROWS, TIMED_SECONDS = 20_000, 2.0
LONGEST = 900
"""Seconds without an answer after which a loader counts as hanging."""
ROW_BYTES = 3 * 32 * 32 + 8 + 2 * CLASSES
COPIES = 9
"""Copies of the rows on the disk, at most: data, store, five loaders, one twice, tar files half more."""

Setting = tuple[str, int]
"""A way of a loader, and its number of workers."""


class DidNotRun(Exception):
    """A loader that failed, with the last line of its output."""


@dataclass
class Entry:
    """The settings, rates and failure of one loader."""

    rival: Rival
    folder: Path
    version: str = ""
    trials: dict[Setting, float] = field(default_factory=dict)
    """Rows/s of each setting in the trial."""
    rates: dict[Setting, list[float]] = field(default_factory=lambda: defaultdict(list))
    """Rows/s of each setting by round."""
    ratios: dict[Setting, list[float]] = field(default_factory=lambda: defaultdict(list))
    """Rows/s of the stream divided by them."""
    failure: str = ""

    def call(self, verb: str, **given: Any) -> dict[str, Any]:
        """Call a verb of the loader in a process of its environment. Raises DidNotRun."""
        environment = os.environ | {
            "HF_HUB_OFFLINE": "1",
            "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
            "OMP_NUM_THREADS": "1",
            "PYTHONWARNINGS": "ignore",
            "PYTHONPATH": str(Path(__file__).resolve().parent),
        }
        command = [python_of(self.rival.environment), "-m", "rival_loaders", self.rival.module, verb]
        try:
            done = subprocess.run(
                [*map(str, command), json.dumps(given | {"folder": str(self.folder)})],
                env=environment,
                cwd=self.folder.parent,
                capture_output=True,
                text=True,
                timeout=LONGEST,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise DidNotRun(f"{verb}: no answer in {LONGEST} s") from None
        if done.returncode:
            said = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
            raise DidNotRun(f"{verb}: {said[-1]}")
        answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        self.version = answer["version"]
        return answer

    def settings(self) -> list[Setting]:
        """Return the two best settings of the ways with a bar, and the ways that are only reported."""
        compared = [setting for setting in self.trials if setting[0] in self.rival.bars]
        compared.sort(key=self.trials.__getitem__, reverse=True)
        return compared[:2] + [setting for setting in self.trials if setting[0] not in self.rival.bars]

    def shown(self) -> tuple[Setting, list[Setting]]:
        """Return the compared setting, the best of the rounds, and the settings that are only reported."""
        compared = [setting for setting in self.rates if setting[0] in self.rival.bars]
        best = min(compared, key=lambda setting: median(self.ratios[setting]))
        return best, [setting for setting in self.rates if setting[0] not in self.rival.bars]

    def try_settings(self, source: Path) -> None:
        """Write the rows, find the best settings, and check the batches that they deliver."""
        ways = self.call("write", source=str(source))["ways"]
        settings = [(way, n) for way in ways for n in (WORKERS if way in self.rival.bars else (0,))]
        found = self.call("time", settings=settings, rows=TRIAL_ROWS, seconds=TRIAL_SECONDS)["found"]
        self.trials = {setting: rate for setting, (rate, _) in zip(settings, found, strict=True)}
        # One setting a way: the workers change who reads, not what.
        best = {way: max(WORKERS, key=lambda n: self.trials.get((way, n), -1.0)) for way in ways}
        checked = self.call("check", source=str(source), settings=list(best.items()))["found"]
        trials = ", ".join(f"{way} {n}: {rate:,.0f}" for (way, n), rate in self.trials.items())
        print(f"  {self.rival.title} {self.version}: rows/s by way and workers, one try: {trials}")
        for (way, n), counts in zip(best.items(), checked, strict=True):
            print(f"    {way}, {n} workers: {counts}", flush=True)


# The stream


def make_store(folder: Path, source: Source) -> logitstore.Store:
    """Write the same rows into a store."""
    inputs, labels = source["inputs"][...], source["labels"][...]
    store = logitstore.create_store(
        folder, num_classes=CLASSES, labels=labels, inputs=inputs, store_inputs=True
    )
    with store.capture("teacher", provenance={"made": "benchmark"}) as capture:
        for block in capture.missing_blocks():
            capture.write(block, source["logits"][block.start : block.stop].astype("float32"))
    return logitstore.open_store(folder)


def epoch(stream: Stream) -> Iterator[Batch]:
    """Yield one epoch of the stream, in the form of the loaders' batches."""
    for batch in TorchStream(stream):
        assert batch.inputs is not None
        logits = batch.logits["teacher"]
        assert isinstance(logits, torch.Tensor)
        yield batch.inputs, batch.labels, logits


def rate(stream: Stream) -> float:
    """Measure the rows/s of a whole epoch, its start included."""
    start = time.perf_counter()
    rows = sum(len(labels) for _, labels, _ in epoch(stream))
    return rows / (time.perf_counter() - start)


# The comparison


def compare(entries: list[Entry], stream: Stream, rounds: int) -> list[float]:
    """Run stream and loaders in turn, and return the rows/s of the stream in every turn."""
    ours = []
    for number in range(rounds):
        for entry in entries:
            if entry.failure:
                continue
            settings = entry.settings()
            try:
                # Every other round the loader goes first, so that neither always finds the caches of the other.
                before = rate(stream) if number % 2 == 0 else None
                found = entry.call("time", settings=settings, rows=TIMED_ROWS, seconds=TIMED_SECONDS)["found"]
                ours.append(rate(stream) if before is None else before)
            except DidNotRun as error:
                entry.failure = str(error)
                continue
            for setting, (theirs, _) in zip(settings, found, strict=True):
                entry.rates[setting].append(theirs)
                entry.ratios[setting].append(ours[-1] / theirs if theirs else float("inf"))
    return ours


def report(entry: Entry) -> None:
    """Print the lines of one loader: the ratio of its best setting beside the bar, and the reported ways."""
    least = min(entry.rival.bars.values())
    what = f"rows/s of the stream / of {entry.rival.title} {entry.version}"
    if entry.failure:
        bar(f"{what}: did not run, {entry.failure}", "-", f">= {least:g}", False)
        return
    best, reported = entry.shown()
    for setting in [best, *reported]:
        way, workers = setting
        ratios = entry.ratios[setting]
        figure = median(ratios)
        detail = f"{way}, {workers} workers: {median(entry.rates[setting]):,.0f} rows/s; {min(ratios):.3g} … {max(ratios):.3g}"
        if setting == best:
            bar(f"{what} ({detail})", f"{figure:.1f}", f">= {least:g}", figure >= least)
        else:
            print(f"          {f'{what} ({detail})':122s} {figure:14.1f}   (no bar)")


def as_row(
    loader: str, version: str, setting: Setting, rates: list[float], ratios: list[float]
) -> dict[str, Any]:
    """Return a row of the JSON file."""
    way, workers = setting
    return {
        "loader": loader,
        "version": version,
        "way": way,
        "workers": workers,
        "rows_per_second": round(median(rates)),
        "rows_per_second_low": round(min(rates)),
        "rows_per_second_high": round(max(rates)),
        "ratio": round(median(ratios), 2),
        "ratio_low": round(min(ratios), 2),
        "ratio_high": round(max(ratios), 2),
    }


def write_json(path: Path, rows: int, rounds: int, entries: list[Entry], ours: list[float]) -> None:
    """Write the stream, the best setting of each loader, and the reported ways without a bar."""
    found = [as_row("logitstore", logitstore.__version__, ("stream", 0), ours, [1.0])]
    for entry in entries:
        if entry.failure:
            continue
        best, reported = entry.shown()
        found += [
            as_row(entry.rival.title, entry.version, setting, entry.rates[setting], entry.ratios[setting])
            | {"compared": setting == best}
            for setting in [best, *reported]
        ]
    about = (
        f"{rows:,} rows of (uint8 3 x 32 x 32, int64 label, float16 x 1000), shuffled batches of {BATCH}, "
        f"page cache hot; medians of {rounds} rounds"
    )
    units = {
        "rows_per_second, …_low, …_high": "rows/s: median, least and most of a round",
        "ratio, ratio_low, ratio_high": "rows/s of the stream / rows/s of the loader: median, least and most of a round",
    }
    write_figures(path, about, units, found)


def main(rows: int, rounds: int, json_file: Path | None = None) -> None:
    """Print the table, and write it to `json_file` if given."""
    torch.set_num_threads(1)
    place = RUNS / "loaders"
    place.mkdir(parents=True, exist_ok=True)
    wanted, free = COPIES * rows * ROW_BYTES, shutil.disk_usage(place).free
    if free < wanted:
        sys.exit(
            f"{place}: expected {wanted / 2**30:.1f} GiB free, found {free / 2**30:.1f}; pass fewer --rows"
        )
    processor = platform.processor() or platform.machine()
    print(f"other loaders: {rows:,} rows, batches of {BATCH}, {rounds} rounds")
    print(
        f"  {os.cpu_count()} cores ({processor}), Python {platform.python_version()}, torch {torch.__version__}"
    )
    for rival in RIVALS:
        python_of(rival.environment)
    with tempfile.TemporaryDirectory(dir=place, prefix="data-") as temporary:
        folder = Path(temporary)
        source = make_source(folder / "source", rows)
        check_the_check({name: array[: 16 * BATCH] for name, array in source.items()})
        store = make_store(folder / "store.zarr", source)
        stream = store.stream(BATCH, seed=0, decode=False)
        print(f"  the stream: {check(epoch(stream), source, 0)}", flush=True)
        entries = [Entry(rival, folder / rival.module) for rival in RIVALS]
        for entry in entries:
            try:
                entry.try_settings(folder / "source")
            except DidNotRun as error:
                entry.failure = str(error)
        ours = compare(entries, stream, rounds)
        if ours:
            decoded = store.stream(BATCH, seed=0)
            print(
                f"  rows/s of the stream, a whole epoch: {median(ours):,.0f} ({min(ours):,.0f} … {max(ours):,.0f}); "
                f"decoded to float32: {median(rate(decoded) for _ in range(rounds)):,.0f}"
            )
        for entry in entries:
            report(entry)
        if json_file is not None and ours:
            write_json(json_file, rows, rounds, entries, ours)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=ROWS, help="rows, at least 8192")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--json", type=Path, help="file for the table, from which the plot is drawn")
    arguments = parser.parse_args()
    main(arguments.rows, arguments.rounds, arguments.json)
