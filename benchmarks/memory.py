"""Memory of a stream, against the amount that it states beforehand.

The stream of stream.py (131,072 rows, one teacher as float16, inputs, batches of 256) runs one epoch in a
process of its own. Before it, the process imports everything, runs through a small store in the same way, and
opens the large store. Then the peak of its memory (VmHWM, Linux) is reset. The figure is the peak after the
epoch minus the memory just before the stream was made.

`Stream.memory_bytes` states the amount beforehand: two windows (`Stream.window_bytes`) and the queue. The
queue holds two batches, and the buffers from which each reading thread decodes.

Alone, with fewer rows: python benchmarks/memory.py [rows]
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from encoding import bar
from measured_stores import BATCH, CLASSES, INPUT_SHAPE, ROWS, make_store, random_inputs

MIB = 1 << 20
MOST_MIB = 512
SMALL_ROWS = 64

CHILD = """
import json, sys
import torch
import logitstore
from logitstore.pipeline import TorchStream

torch.set_num_threads(1)
small, large, batch, decode = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4] == "decoded"


def status(key):
    for line in open("/proc/self/status"):
        if line.startswith(key + ":"):
            return int(line.split()[1]) * 1024


def epoch(stream):
    return sum(len(rows) for rows in TorchStream(stream))


for _ in range(2):
    epoch(logitstore.open_store(small).stream(batch, seed=0, decode=decode))
store = logitstore.open_store(large)
with open("/proc/self/clear_refs", "w") as peak:
    peak.write("5")
before = status("VmRSS")
stream = store.stream(batch, seed=0, decode=decode)
windows, stated = 2 * stream.window_bytes, stream.memory_bytes
assert epoch(stream) == store.num_rows
print(json.dumps({"windows": windows, "stated": stated, "used": status("VmHWM") - before, "total": status("VmHWM")}))
"""


def measure(small: Path, large: Path, how: str) -> None:
    """Run an epoch in a process of its own, and print its peak."""
    call = [sys.executable, "-c", CHILD, str(small), str(large), str(BATCH), how]
    found = json.loads(subprocess.run(call, check=True, stdout=subprocess.PIPE, text=True).stdout)
    stated, queue = found["stated"], found["stated"] - found["windows"]
    over = found["used"] - stated
    bar(
        f"MiB of a stream, {how}: limit of two windows ({found['windows'] / MIB:.1f}) and queue "
        f"({queue / MIB:.1f}), difference {'+' if over > 0 else ''}{over / MIB:.1f} (the process {found['total'] / MIB:.0f})",
        f"{found['used'] / MIB:.1f}",
        f"<= {stated / MIB:.1f}",
        over <= 0,
    )
    bar(f"the same, {how}", f"{found['used'] / MIB:.1f}", f"< {MOST_MIB}", found["used"] < MOST_MIB * MIB)


def main(rows: int = ROWS) -> None:
    """Print the table."""
    print(f"memory: {rows:,} rows of inputs {INPUT_SHAPE} and float16 x {CLASSES}")
    if not Path("/proc/self/clear_refs").exists():
        print("  left out: no /proc here")
        return
    with tempfile.TemporaryDirectory() as folder:
        small, large = Path(folder) / "small.zarr", Path(folder) / "large.zarr"
        for path, count in ((small, SMALL_ROWS), (large, rows)):
            make_store(path, count, {"float16": "float16"}, inputs=random_inputs(count))
        for how in ("as stored", "decoded"):
            measure(small, large, how)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]))
