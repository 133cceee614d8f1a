"""All benchmarks, one after another: ratios of one run, medians of several rounds (see timing.py)."""

import os
import platform

import capture
import encoding
import startup
import stream
import torch


def main() -> None:
    """Print every table, with what it was measured on."""
    processor = platform.processor() or platform.machine()
    print(
        f"{os.cpu_count()} cores ({processor}), Python {platform.python_version()}, torch {torch.__version__}"
    )
    for benchmark in (startup, stream, capture, encoding):
        benchmark.main()


if __name__ == "__main__":
    main()
