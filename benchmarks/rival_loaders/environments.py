"""Where do the other loaders live, so that the project needs none of them?

In virtual environments under runs/, made at first use with pip, which takes minutes, and kept as long as what they were
made for is wanted.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

from . import ENVIRONMENTS

ROOT = Path(__file__).resolve().parents[2]
RUNS = Path(os.environ.get("LOGITSTORE_RUNS", ROOT / "runs")).resolve()
"""$LOGITSTORE_RUNS names another folder than runs/."""


def python_of(name: str) -> Path:
    """The interpreter of an environment, which is made where it is not there, or not what is wanted.

    Ends the program with one line where pip fails.
    """
    folder = RUNS / "loaders" / name
    wanted = [_torch(), *ENVIRONMENTS[name]]
    made_for = folder / "made-for.txt"
    python = folder / "bin" / "python"
    if not made_for.exists() or made_for.read_text().split() != wanted:
        print(
            f"  installing {' '.join(wanted)} into {folder}, once: it takes minutes",
            file=sys.stderr,
            flush=True,
        )
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        if subprocess.run([python, "-m", "pip", "install", "--quiet", *wanted], check=False).returncode:
            sys.exit(f"{folder}: expected pip to install {' '.join(wanted)}, and it failed: see above")
        made_for.write_text("\n".join(wanted))
    return python


def _torch() -> str:
    """The version of torch that the project is tested with."""
    found = re.search(r"^torch==\S+", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert found is not None
    return found[0]
