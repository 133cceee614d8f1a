"""The processors of this machine."""

import os


def processors() -> int:
    """Return the number of processors that this process may use, which a container or a batch system may limit."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
