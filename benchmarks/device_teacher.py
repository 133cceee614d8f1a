"""Speed of a large teacher in stage one, against the device's own speed.

The teacher is a ResNet-50 with 1000 classes in bfloat16 (autocast; channels last where stage one accepts it).
Images are 3 x 224 x 224 in batches of 256, and are not kept. Three run in turn:

1. The bare loop over batches that are on the device already: the device's own speed, and the yardstick of the
   bar.
2. The bare loop over the transfer set: each batch is fetched and sent to the device.
3. Stage one, the whole of `cache()`, into a new store.

The bar covers the whole, with reading the weights and trying the teacher. In a capture of hours these are
negligible, so the ratio is also given without the time of a capture of a single batch.

Then each task beside the teacher is timed by itself, as a share of the first loop's time. The tasks are
fetching and digesting the inputs, copying the logits to the host, encoding them, and committing them (sha256,
crc32c, fsync, seal). Tasks that overlap with the teacher cost nothing as long as each share is below 1.

Without a GPU a tiny net of the same form runs on images of 32 x 32. This tries the script, and measures
nothing.

Alone, with fewer rows: python benchmarks/device_teacher.py [rows]
"""

import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from encoding import bar
from measured_teachers import Net, bare_loop, batches, experiment_of
from resnet50 import resnet50, tiny_resnet
from timing import seconds
from torch import Tensor

import logitstore
from logitstore.pipeline.cache.stage import cache
from logitstore.pipeline.experiment.document import Experiment
from logitstore.pipeline.experiment.tables import Cache
from logitstore.pipeline.models.records import Models
from logitstore.pipeline.transfer import TransferRows
from logitstore.pipeline.workspace import Workspace
from logitstore.storage.digest import digest_rows

ROUNDS, LEAST, CLASSES, PRECISION = 5, 0.97, 1000, "bfloat16"


@dataclass(frozen=True)
class Size:
    """The teacher, images and rows for a kind of device."""

    shape: tuple[int, int, int]
    rows: int
    batch: int
    factory: str


SIZES = {
    "cuda": Size((3, 224, 224), 65_536, 256, "resnet50"),
    "cpu": Size((3, 32, 32), 2048, 64, "tiny_resnet"),
}


@dataclass(frozen=True)
class Loops:
    """The same teacher over the same rows, with less and less around it."""

    experiment: Experiment
    module: torch.nn.Module
    """The teacher, on the device."""
    rows: TransferRows
    size: Size
    device: str
    folder: Path

    def _run(self, inputs: Iterator[Tensor]) -> None:
        form = torch.channels_last if self._channels_last else torch.contiguous_format
        shaped = (batch.to(self.device, non_blocking=True).contiguous(memory_format=form) for batch in inputs)
        with torch.autocast(self.device, dtype=getattr(torch, PRECISION)):
            bare_loop(self.module, shaped)
        wait(self.device)

    @property
    def _channels_last(self) -> bool:
        return bool(getattr(self.experiment.cache, "channels_last", False))

    def on_device(self) -> None:
        """Run the teacher on one batch that is on the device, once for each batch of the set."""
        held = next(batches(self.rows, self.size.batch)).to(self.device)
        wait(self.device)
        self._run(iter(repeat(held, len(self.rows) // self.size.batch)))

    def over_the_set(self) -> None:
        """Run the bare loop over the transfer set."""
        self._run(batches(self.rows, self.size.batch))

    def captured(self) -> None:
        """Run stage one."""
        capture(self.experiment, self.rows, self.device, self.folder)


def capture(experiment: Experiment, rows: TransferRows, device: str, folder: Path) -> None:
    """Run stage one into a new store."""
    with tempfile.TemporaryDirectory(dir=folder) as name:
        path, models = Path(name) / "store.zarr", Models(Path(name) / "models")
        report = cache(Workspace(experiment, path, models, given_rows=rows, device=device))
        assert len(report.captured) == 1


def wait(device: str) -> None:
    """Wait until the device has finished all its work."""
    if device == "cuda":
        torch.cuda.synchronize()


def shares(loops: Loops, whole: float) -> None:
    """Print the time of each task beside the teacher, as a share of the teacher's own time."""
    rows, size = loops.rows, loops.size
    logits = torch.randn(size.batch, CLASSES, device=loops.device)
    count = len(rows) // size.batch
    encoding = loops.experiment.cache.chosen_encoding

    def fetch() -> None:
        for batch in batches(rows, size.batch):
            digest_rows(batch.numpy())

    def copy() -> None:
        host = torch.empty(logits.shape, pin_memory=loops.device == "cuda")
        for _ in range(count):
            host.copy_(logits, non_blocking=True)
        wait(loops.device)

    given = logits.cpu().numpy()

    def encode() -> None:
        for number in range(count):
            encoding.encode(given, number * size.batch, "benchmark")

    def commit() -> None:
        with tempfile.TemporaryDirectory(dir=loops.folder) as folder:
            path = Path(folder) / "store.zarr"
            store = logitstore.create_store(path, num_classes=CLASSES, digests=np.zeros(len(rows), np.uint64))
            with store.capture("teacher", provenance={}, encoding=loops.experiment.cache.encoding) as writer:
                for block in writer.missing_blocks():
                    writer.write(block, np.resize(given, (len(block), CLASSES)))

    found = {
        about: median(seconds(part) for _ in range(3)) for about, part in parts(fetch, copy, encode, commit)
    }
    # Committing from memory encodes as well.
    found["committing the logits"] = max(0.0, found["committing the logits"] - found["encoding the logits"])
    for about, took in found.items():
        print(
            f"  {'':8s}{f'share of the time of the teacher, {about} ({took:.3f} s)':122s} {took / whole:14.3f}"
        )


def parts(*functions: Callable[[], None]) -> Iterator[tuple[str, Callable[[], None]]]:
    """Yield each function with its label."""
    names = (
        "fetching and digesting the inputs",
        "copying the logits to the host",
        "encoding the logits",
        "committing the logits",
    )
    return zip(names, functions, strict=True)


def measure(device: str, folder: Path, rows: int) -> None:
    """Time the three in turn."""
    size = SIZES[device]
    torch.manual_seed(0)
    make = resnet50 if size.factory == "resnet50" else tiny_resnet
    net = Net(f"resnet50:{size.factory}", make(CLASSES).eval())
    data: dict[str, Any] = {"shape": list(size.shape), "classes": CLASSES, "store_inputs": False}
    table: dict[str, object] = {"batch_size": size.batch, "precision": PRECISION}
    if "channels_last" in Cache.model_fields:
        table["channels_last"] = True
    experiment = experiment_of(folder, [net], data | {"rows": rows}, table)
    one_batch = experiment_of(folder, [net], data | {"rows": size.batch}, table)
    module = net.module.to(device)
    if "channels_last" in table:
        module = module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    loops = Loops(experiment, module, TransferRows(experiment), size, device, folder)
    ways = (loops.on_device, loops.over_the_set, loops.captured)
    for way in ways:
        way()
    # In turn, each round beginning with another, so that what slows the machine down slows all.
    times: list[list[float]] = [[], [], []]
    for number in range(ROUNDS):
        for place in range(3):
            which = (number + place) % 3
            times[which].append(seconds(ways[which]))
    device_own, over_set, ours = times
    whole = median(device_own)
    for about, theirs, least in (
        ("the device's own speed", device_own, LEAST),
        ("bare loop over the set", over_set, None),
    ):
        ratios = [a / b for a, b in zip(theirs, ours, strict=True)]
        what = (
            f"rows/s of stage one / {about} ({min(ratios):.2f} … {max(ratios):.2f}; "
            f"{rows / median(ours):,.0f} and {rows / median(theirs):,.0f} rows/s)"
        )
        ratio = median(ratios)
        if least is None or device != "cuda":
            print(f"  {'':8s}{what:122s} {ratio:14.2f}", flush=True)
        else:
            bar(what, f"{ratio:.3f}", f">= {least:g}", ratio >= least)
    first = TransferRows(one_batch)
    start = median(seconds(lambda: capture(one_batch, first, device, folder)) for _ in range(ROUNDS))
    what = f"rows/s of stage one without the time for one batch ({start:.2f} s) / the device's own speed"
    steady = whole / (median(ours) - start) * (rows - size.batch) / rows
    print(f"  {'':8s}{what:122s} {steady:14.2f}", flush=True)
    shares(loops, whole)


def main(rows: int | None = None) -> None:
    """Print the table."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    size = SIZES[device]
    rows = max(size.batch, (rows or size.rows) // size.batch * size.batch)
    name = torch.cuda.get_device_name() if device == "cuda" else "CPU"
    print(
        f"a teacher on its device: {size.factory}, {PRECISION}, {name}, {rows:,} rows of {size.shape}, batches of {size.batch}"
    )
    if device == "cpu":
        torch.set_num_threads(1)
        print("  not measured on a GPU: a tiny net, to try the script; without a bar")
    with tempfile.TemporaryDirectory() as folder:
        measure(device, Path(folder), rows)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]))
