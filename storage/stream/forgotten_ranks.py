"""A warning about streams that are not told their rank, where several processes train together."""

import logging
import os

log = logging.getLogger(__name__)
_warned: set[str] = set()
"""Set once the warning is out."""


def processes_of_torchrun() -> int:
    """Return the number of processes in the environment, as torchrun, Lightning and accelerate set it; 1 without one."""
    try:
        return int(os.environ.get("WORLD_SIZE", "1"))
    except ValueError:
        return 1


def warn_of_forgotten_ranks(processes: int) -> None:
    """Warn once in this process that each of several processes reads every row."""
    if processes > 1 and not _warned:
        _warned.add("")
        log.warning(
            "stream: %d processes train together, and rank and world_size are not given: each of them reads "
            "every row; pass rank=… and world_size=… to divide the rows, or rank=0 and world_size=1 to keep it so",
            processes,
        )
