"""Time and reads of a capture that resumes after a kill.

The capture has 1,000 blocks of 64 rows, of 28 x 28 and 1000 classes each. 999 of them exist. A new process
starts stage one on it, and is killed as soon as its teacher gets the first missing row; several times. Two
times are taken: from the start of the process, torch's import included, and from the call of `cache`. Then
the capture runs to its end.

The bytes of the store that come through `os.read`, `pread`, `preadv` and `readv` are counted by file. The
kinds are data of the existing blocks, data of the missing block (the digests of its inputs may exist), and
all else (records, metadata). Beside it stands the kernel's count for the whole process, without pages of
mapped files (`rchar`, Linux). At the end a row of an existing block is read and counted: this shows that the
count sees a read of the data.

Alone, with fewer blocks: python benchmarks/resume.py [blocks]
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from statistics import median
from typing import Any

BLOCKS, BLOCK_ROWS, CLASSES, SHAPE = 1000, 64, 1000, (28, 28)
ROUNDS, MOST_SECONDS, MOST_BYTES = 5, 2.0, 0
READS = ("pread", "preadv", "read", "readv")
"""Calls of `os` that read bytes of a file."""
SMALL = ("classes", "class_name")
"""Arrays that belong to no block."""
TRIES = 5
"""Starts of the capture until its 999 blocks exist, at most."""


class Reads:
    """Bytes read from a store by this process, all its threads, by kind of file."""

    def __init__(self, store: Path, last_block: int) -> None:
        self._inside, self._last = f"{store.resolve()}/", str(last_block)
        self._lock = threading.Lock()
        self.bytes = {"there": 0, "missing": 0, "else": 0}
        for name in READS:
            setattr(os, name, self._counted(getattr(os, name)))

    def _counted(self, call: Any) -> Any:
        def counted(handle: int, *args: Any) -> Any:
            result = call(handle, *args)
            # A file that has no name any more reads "… (deleted)".
            path = os.readlink(f"/proc/self/fd/{handle}")
            if path.startswith(self._inside):
                with self._lock:
                    self.bytes[self._kind(path)] += result if isinstance(result, int) else len(result)
            return result

        return counted

    def _kind(self, path: str) -> str:
        """Return the kind of a file by its path.

        Shards are teachers/<name>/<array>/c.<view>.<block>… and samples/<array>/c.<block>…
        """
        parts = path.removeprefix(self._inside).split("/")
        letter, *numbers = parts[-1].split(".")
        if letter != "c" or parts[-2] in SMALL:
            return "else"
        block = numbers[0] if parts[0] == "samples" else numbers[1]
        return "missing" if block == self._last else "there"


def read_in_all() -> int:
    """Return the bytes that this process has read through calls, by the kernel's count."""
    facts = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(facts["rchar"])


def child(folder: Path, how: str, blocks: int) -> None:
    """Cache in this process: "fail" at the marked block, "stop" at its first batch, or run to the "end"."""
    import torch
    from measured_teachers import Net, Watched, experiment_of, watched

    import logitstore
    from logitstore.pipeline.cache.stage import cache
    from logitstore.pipeline.workspace import Workspace

    torch.set_num_threads(1)
    torch.manual_seed(0)
    rows = blocks * BLOCK_ROWS
    data = {"rows": rows, "shape": list(SHAPE), "classes": CLASSES, "marked_from": rows - BLOCK_ROWS}
    net = Net("measured_teachers:watched", watched(SHAPE, CLASSES))
    table = {"block_rows": BLOCK_ROWS, "batch_size": BLOCK_ROWS}
    experiment = experiment_of(folder, [net], data, table)
    store = folder / "store.zarr"
    Watched.fails = how == "fail"
    reads, before = Reads(store, blocks - 1), read_in_all()
    called, spent = time.monotonic(), time.process_time()
    facts: dict[str, Any] = {}

    def reached() -> None:
        facts.update(
            reached=Watched.first_new,
            called=called,
            spent=time.process_time() - spent,
            known_rows=Watched.known_rows,
            bytes=dict(reads.bytes),
            in_all=read_in_all() - before,
        )
        if how == "stop":
            print(json.dumps(facts), flush=True)
            os._exit(0)  # as if killed: nothing is closed, nothing tidied up

    Watched.listeners.append(reached)
    cache(Workspace.of_store(experiment, store, folder / "models", device="cpu"))
    facts["bytes_to_the_end"] = dict(reads.bytes)
    capture = logitstore.open_store(store).teachers["teacher-0"]
    assert capture.read_stored(slice(0, 1))["logits"].shape == (1, CLASSES)
    facts["seen_by_the_count"] = reads.bytes["there"] - facts["bytes_to_the_end"]["there"]
    print(json.dumps(facts), flush=True)


def started(folder: Path, how: str, blocks: int) -> dict[str, Any] | None:
    """Run such a process; return its figures and start time, or None if it failed on purpose."""
    call = [sys.executable, str(Path(__file__).resolve()), "--child", str(folder), how, str(blocks)]
    began = time.monotonic()
    quiet = subprocess.DEVNULL if how == "fail" else None
    done = subprocess.run(call, stdout=subprocess.PIPE, stderr=quiet, text=True, check=how != "fail")
    return {**json.loads(done.stdout), "began": began} if done.stdout else None


def blocks_there(store: Path) -> int:
    """Count the committed blocks of the capture."""
    import logitstore

    begun = logitstore.open_store(store).begun("teachers/teacher-0")
    return 0 if begun is None else begun.blocks_done


def report(rounds: list[dict[str, Any]], blocks: int) -> None:
    """Print the times and reads of several resumptions."""
    for about, since in (("from the start of the process", "began"), ("from the call of cache()", "called")):
        seconds = [found["reached"] - found[since] for found in rounds]
        what = f"seconds to the first new batch, {blocks - 1:,} of {blocks:,} blocks finished, {about}"
        bar(
            f"{what} ({min(seconds):.2f} … {max(seconds):.2f})",
            f"{median(seconds):.2f}",
            f"< {MOST_SECONDS:g}",
            median(seconds) < MOST_SECONDS,
        )
    spent = median(found["spent"] for found in rounds)
    print(
        f"  {'':8s}{'the same from the call of cache(), seconds of the processor':122s} {spent:14.2f}",
        flush=True,
    )
    there, missing, rest = (max(found["bytes"][kind] for found in rounds) for kind in rounds[0]["bytes"])
    bar(
        f"bytes read of the data of finished blocks (of the missing block: {missing:,}; records and metadata: "
        f"{rest:,}; by the whole process: {max(found['in_all'] for found in rounds):,})",
        f"{there:,}",
        f"<= {MOST_BYTES}",
        there <= MOST_BYTES,
    )
    known = max(found["known_rows"] for found in rounds)
    what = "finished rows given to the teacher again (one trial batch is)"
    bar(what, f"{known}", f"<= {BLOCK_ROWS}", known <= BLOCK_ROWS)


def bar(what: str, figure: str, wanted: str, met: bool) -> None:
    """Print a figure beside its bar; imported late, as the timed process does not need it."""
    from encoding import bar as show

    show(what, figure, wanted, met)


def main(blocks: int = BLOCKS) -> None:
    """Print the table."""
    print(f"resume: {blocks:,} blocks of {BLOCK_ROWS} rows of {SHAPE} and float16 x {CLASSES}")
    if not Path("/proc/self/io").exists():
        print("  left out: no /proc here")
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        store = folder / "store.zarr"
        for _ in range(TRIES):
            started(folder, "fail", blocks)
            if blocks_there(store) == blocks - 1:
                break
        else:
            raise SystemExit(f"expected {blocks - 1} blocks, found {blocks_there(store)}")
        held = sum(path.stat().st_size for path in store.rglob("*") if path.is_file())
        print(f"  the store holds {held / 2**20:,.0f} MiB")
        rounds = [started(folder, "stop", blocks) for _ in range(ROUNDS)]
        assert blocks_there(store) == blocks - 1
        report([found for found in rounds if found is not None], blocks)
        last = started(folder, "end", blocks)
        assert last is not None and last["seen_by_the_count"] > 0, "the count sees no read of a shard"
        there = last["bytes_to_the_end"]["there"]
        what = "bytes read of the data of finished blocks, until the capture is sealed"
        print(f"  {'':8s}{what:122s} {there:14,}", flush=True)
        shutil.rmtree(store)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]))
    else:
        main(*map(int, sys.argv[1:2]))
