"""Memory of stage one beyond its teacher and its loader, against the amount that it logs beforehand.

Each case takes two fresh processes. One runs the bare loop `for batch: teacher(batch)`; the other runs stage
one over the same transfer set. Before measuring, both import everything, make the teachers, make a small
capture twice and run a few batches. Then the peak of their memory (VmHWM, Linux) is reset.

The use of a process is its peak minus its memory just before. The difference of the two is the memory beyond
the teacher's activations and a batch of inputs. 1024 drawn inputs are repeated, so that the transfer set
itself takes nothing. All captures have 1000 classes.

1. Inputs of 3 x 32 x 32 in blocks of 8192 rows, the largest for such rows, kept in the store.
2. The same as an error budget, whose scale has to be searched for.
3. The same, three teachers in one pass.
4. Inputs of 3 x 224 x 224, not kept, in blocks of 8192 rows: the inputs of one block are 1.1 GiB.

Alone, with fewer rows a block: python benchmarks/capture_memory.py [block rows]
"""

import json
import logging
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from encoding import bar

BLOCK_ROWS, BATCH, CLASSES, SMALL_ROWS = 8192, 256, 1000, 512
MIB, MOST_MIB = 1 << 20, 512
WARM_BATCHES = 4
STATED = re.compile(r"(?:at most|bounded by) ([\d,]+) bytes")
"""Pattern of the log line with the limit of stage one's queue."""


@dataclass(frozen=True)
class Case:
    """A capture."""

    about: str
    shape: tuple[int, ...]
    blocks: int
    teachers: int = 1
    store_inputs: bool = True
    cache: Mapping[str, Any] = field(default_factory=dict)


CASES = {
    "small": Case("3 x 32 x 32, kept", (3, 32, 32), 4),
    "budget": Case("the same, max_kl = 1e-2", (3, 32, 32), 4, cache={"encoding": {"max_kl": 1e-2}}),
    "three": Case("the same, three teachers", (3, 32, 32), 4, teachers=3),
    "large": Case("3 x 224 x 224, not kept", (3, 224, 224), 2, store_inputs=False),
}


class Said(logging.Handler):
    """A handler that keeps the limit of the queue that stage one logs."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.bytes: int | None = None

    def emit(self, record: logging.LogRecord) -> None:
        """Take the number out of a line that has one."""
        found = STATED.search(record.getMessage())
        if found is not None:
            self.bytes = int(found[1].replace(",", ""))


def status(key: str) -> int:
    """Read a field of this process's status from Linux, bytes."""
    facts = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(facts[key].split()[0]) * 1024


def child(folder: Path, case: Case, how: str, block_rows: int) -> None:
    """Run the bare loop ("bare") or stage one ("captured"), and print the memory that it took."""
    import torch
    from measured_teachers import Net, bare_loop, batches, experiment_of, thumbnail

    from logitstore.pipeline.cache.stage import cache
    from logitstore.pipeline.models.records import Models
    from logitstore.pipeline.transfer import TransferRows
    from logitstore.pipeline.workspace import Workspace

    torch.set_num_threads(1)
    torch.manual_seed(0)
    step = case.shape[-1] // 16
    nets = [
        Net("measured_teachers:thumbnail", thumbnail(case.shape, CLASSES, step), {"step": step})
        for _ in range(case.teachers)
    ]
    said = Said()
    logging.getLogger("logitstore").addHandler(said)
    logging.getLogger("logitstore").setLevel(logging.INFO)
    experiments = {}
    for name, rows in (("warm", SMALL_ROWS), ("measured", case.blocks * block_rows)):
        data = {
            "rows": rows,
            "shape": list(case.shape),
            "classes": CLASSES,
            "store_inputs": case.store_inputs,
        }
        table = {"batch_size": BATCH, "block_rows": block_rows, **case.cache}
        experiments[name] = experiment_of(folder, nets, data, table)
    for number in range(2):
        path = folder / f"{how}-{number}.zarr"
        cache(Workspace.of_store(experiments["warm"], path, folder / "models", device="cpu"))
    loader = TransferRows(experiments["measured"])
    for net in nets:
        bare_loop(
            net.module, (batch for _, batch in zip(range(WARM_BATCHES), batches(loader, BATCH), strict=False))
        )
    said.bytes = None
    Path("/proc/self/clear_refs").write_text("5")
    before = status("VmRSS")
    if how == "bare":
        for batch in batches(loader, BATCH):
            for net in nets:
                bare_loop(net.module, iter([batch]))
    else:
        models = Models(folder / "models")
        path = folder / "measured.zarr"
        cache(Workspace(experiments["measured"], path, models, device="cpu", given_rows=loader))
    peak = status("VmHWM")
    print(json.dumps({"used": peak - before, "total": peak, "stated": said.bytes}))


def measure(name: str, block_rows: int) -> None:
    """Run both processes of a case, and print their difference."""
    case = CASES[name]
    found: dict[str, dict[str, Any]] = {}
    for how in ("bare", "captured"):
        with tempfile.TemporaryDirectory() as folder:
            call = [
                sys.executable,
                str(Path(__file__).resolve()),
                "--child",
                folder,
                name,
                how,
                str(block_rows),
            ]
            done = subprocess.run(call, check=True, stdout=subprocess.PIPE, text=True)
            found[how] = json.loads(done.stdout)
    beyond = found["captured"]["used"] - found["bare"]["used"]
    stated = found["captured"]["stated"]
    what = (
        f"MiB of stage one beyond the bare loop, {case.about} (the loop {found['bare']['used'] / MIB:.1f}; the process "
        f"{found['captured']['total'] / MIB:.0f})"
    )
    bar(what, f"{beyond / MIB:.1f}", f"< {MOST_MIB}", beyond < MOST_MIB * MIB)
    if stated is None:
        bar("the same, against the stated limit of the queue", "none stated", "<= the stated limit", False)
    else:
        bar(
            "the same, against the stated limit of the queue",
            f"{beyond / MIB:.1f}",
            f"<= {stated / MIB:.1f}",
            beyond <= stated,
        )


def main(block_rows: int = BLOCK_ROWS) -> None:
    """Print the table."""
    print(f"memory of stage one: {CLASSES} classes, blocks of {block_rows:,} rows, batches of {BATCH}")
    if not Path("/proc/self/clear_refs").exists():
        print("  left out: no /proc here")
        return
    for name in CASES:
        measure(name, block_rows)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(Path(sys.argv[2]), CASES[sys.argv[3]], sys.argv[4], int(sys.argv[5]))
    else:
        main(*map(int, sys.argv[1:2]))
