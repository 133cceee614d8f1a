"""The figures of a benchmark as JSON, from which docs/images/plots.py draws.

A file records its command, date, hardware and source beside its rows, so that you can make it again:

    {"about", "command", "date", "hardware", "source", "units": {column: unit}, "rows": [{column: value}]}
"""

import datetime
import json
import os
import platform
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

FIGURES = Path(__file__).resolve().parents[1] / "docs" / "figures"
"""The folder of the committed figures."""
MEASURED = "measured by the command"
"""The source of every file that a benchmark writes."""


def hardware() -> str:
    """Return the cores of this machine, and the versions that affect a speed."""
    import torch

    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [
            line.partition(":")[2].strip()
            for line in cpuinfo.read_text().splitlines()
            if "model name" in line
        ]
        model = names[0] if names else model
    return f"{os.cpu_count()} cores of {model}, Python {platform.python_version()}, torch {torch.__version__}"


def write_figures(
    path: Path, about: str, units: Mapping[str, str], rows: Sequence[Mapping[str, Any]]
) -> None:
    """Write the rows of a table, with the running command, today's date and this machine.

    about: a sentence that names the measured data. units: of each column that is a number.
    """
    command = shlex.join(["python", os.path.relpath(sys.argv[0]), *sys.argv[1:]])
    figures = {
        "about": about,
        "command": command,
        "date": datetime.date.today().isoformat(),
        "hardware": hardware(),
        "source": MEASURED,
        "units": dict(units),
        "rows": [dict(row) for row in rows],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(figures, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
