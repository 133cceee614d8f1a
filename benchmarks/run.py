"""All benchmarks, one after another: ratios of one run, medians of several rounds (see timing.py)."""

import os
import platform

import budget_encode
import capture
import capture_memory
import checked_inputs
import combine
import covariance
import device_teacher
import encoding
import live_teacher
import memory
import ranks
import resume
import stage_one
import startup
import stream
import torch
import training_step
import transform
import transform_read
import variety
import views


def main() -> None:
    """Print every table, with the machine and the versions."""
    processor = platform.processor() or platform.machine()
    print(
        f"{os.cpu_count()} cores ({processor}), Python {platform.python_version()}, torch {torch.__version__}"
    )
    streaming = (stream, transform_read, training_step, live_teacher, checked_inputs, ranks, memory, variety)
    caching = (stage_one, resume, capture_memory, views, capture, device_teacher)
    for benchmark in (startup, *streaming, *caching, encoding, budget_encode, transform, covariance, combine):
        benchmark.main()


if __name__ == "__main__":
    main()
