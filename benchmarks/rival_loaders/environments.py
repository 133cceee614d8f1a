"""Virtual environments of the other loaders, so that the project needs none of them.

They lie under runs/. pip makes them at first use, which takes minutes. They are kept until their list of
packages changes.
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
    """Return the interpreter of an environment, and make the environment if it is missing or out of date.

    Ends the program with one line if pip fails.
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
    """Return the version of torch that the project is tested with."""
    found = re.search(r"^torch==\S+", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert found is not None
    return found[0]
