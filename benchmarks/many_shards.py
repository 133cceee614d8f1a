"""Time to open a store of 100,000 shards, on a disk, and the requests to open it behind a network.

Each row is a block of its own, so that a small store has many shards. It is made in memory (`/dev/shm`), where a file takes
no sync.

1. Seconds of `open_store`, and of the metadata of its capture after that, in new processes, without imports.
2. Requests of the two to a web server that answers after 20 ms, and their seconds.

Fewer shards: python benchmarks/many_shards.py 2000
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

import numpy as np
from encoding import bar
from remote import LATENCY_MS, serving

import logitstore

SHARDS, ROUNDS = 100_000, 5
LOCAL_BAR, REQUESTS_BAR = 1.0, 10
_OPEN = """
import json, sys, time
from urllib.request import urlopen
import logitstore
from logitstore.storage import api
if "://" in sys.argv[1]:
    import zarr, obstore.store
def asked():
    return int(urlopen(sys.argv[2] + "/count").read().split()[0]) if len(sys.argv) > 2 else 0
marks = []
def mark():
    marks.append((time.perf_counter(), asked()))
mark()
store = logitstore.open_store(sys.argv[1], cache=False)
mark()
assert store.teachers["wide"].shape[1] == store.num_rows
mark()
print(json.dumps([[later[0] - first[0], later[1] - first[1]] for first, later in zip(marks, marks[1:])]))
"""


def make(path: Path, most: int) -> int:
    """Make a store of about `most` shards, one block a row; return their number."""
    trial = _filled(path.with_name("trial.zarr"), 8)
    rows = max(8, -(-most // (trial // 8)))
    return _filled(path, rows)


def _filled(path: Path, rows: int) -> int:
    store = logitstore.create_store(
        path,
        num_classes=2,
        digests=np.arange(rows, dtype=np.uint64),
        labels=np.zeros(rows, np.int64),
        block_rows=1,
    )
    logits = np.zeros((1, 2), np.float32)
    with store.capture("wide", provenance={"teacher": {"name": "wide"}}) as capture:
        for row in range(rows):
            capture.write(slice(row, row + 1), logits)
    return sum(1 for part in ("samples", "teachers/wide") for _ in (path / part).glob("*/c.*"))


def opened(*address: str) -> list[list[float]]:
    """Open a store in a new process; return seconds and requests of the store, and of its capture."""
    done = subprocess.run([sys.executable, "-c", _OPEN, *address], check=True, capture_output=True, text=True)
    found: list[list[float]] = json.loads(done.stdout)
    return found


def main(most: str = str(SHARDS)) -> None:
    """Print the table."""
    memory = "/dev/shm" if Path("/dev/shm").is_dir() else None
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        path = Path(folder) / "store.zarr"
        count = make(path, int(most))
        print(f"many shards: {count:,} shards, {ROUNDS} new processes", flush=True)
        local = [opened(str(path)) for _ in range(ROUNDS)]
        with serving(path.parent, LATENCY_MS / 1000, 0.0) as url:
            remote = [opened(f"{url}/store.zarr", url) for _ in range(ROUNDS)]
        for number, what in enumerate(("the store", "the metadata of its capture, after that")):
            seconds = median(one[number][0] for one in local)
            most_s = LOCAL_BAR if number == 0 else None
            bar(
                f"time to open {what}, on a disk",
                f"{seconds:.4f} s",
                "none" if most_s is None else f"< {most_s:g} s",
                most_s is None or seconds < most_s,
            )
            requests = max(one[number][1] for one in remote)
            most_r = REQUESTS_BAR if number == 0 else None
            bar(
                f"requests to open {what}, over HTTP",
                f"{requests:g}",
                "none" if most_r is None else f"<= {most_r}",
                most_r is None or requests <= most_r,
            )
            seconds = median(one[number][0] for one in remote)
            bar(f"time of these at {LATENCY_MS:g} ms an answer", f"{seconds:.3f} s", "none", True)


if __name__ == "__main__":
    main(*sys.argv[1:])
