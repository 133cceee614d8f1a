"""Commands run in several processes by torchrun."""

import subprocess
import sys
from pathlib import Path

from support.children import environment


def torchrun(ranks: int, *arguments: str | Path, timeout: float = 150) -> subprocess.CompletedProcess[str]:
    """Run something in several processes."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    return subprocess.run(
        [*command, *map(str, arguments)],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def said(done: subprocess.CompletedProcess[str]) -> list[str]:
    """Return our lines on stderr, without those of torchrun."""
    return [line for line in done.stderr.splitlines() if line.startswith("logitstore: ")]
