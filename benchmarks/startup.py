"""Time for the command line to print its help, and to report that an experiment is finished."""

import subprocess
import sys
import tempfile
from pathlib import Path

from timing import compare, line, seconds

LOGITSTORE = str(Path(sys.executable).with_name("logitstore"))


def call(*command: str) -> None:
    """Run a command, quietly; it must succeed."""
    subprocess.run(command, check=True, capture_output=True)


def main() -> None:
    """Print the table."""
    print("start-up: wall time of commands")
    help_page = compare(
        lambda: call(LOGITSTORE, "--help"), lambda: call(sys.executable, "-c", "import click")
    )
    print(line("logitstore --help / python -c 'import click'", f"{help_page.ratio:.2f}", help_page))
    with tempfile.TemporaryDirectory() as folder:
        demo = Path(folder) / "demo"
        first = seconds(lambda: call(LOGITSTORE, "-q", "demo", "--out", str(demo)))
        print(f"  {'logitstore demo, from nothing':58s} {first:8.1f} s")
        again = compare(
            lambda: call(LOGITSTORE, "run", str(demo / "digits.toml"), "--out", str(demo)),
            lambda: call(sys.executable, "-c", "import numpy"),
        )
        print(f"  {'logitstore run on the finished demo':58s} {again.ours:8.2f} s")


if __name__ == "__main__":
    main()
