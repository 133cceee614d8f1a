"""The ranks of a script that makes several calls: they join once, and stay together until it ends.

A command is one job of all ranks, and `ranks.joined` is its whole life. A script that `torchrun` starts makes one call after
the other, with work of its own between them. Its process group is therefore kept. If the script has made one itself, that
is used.
"""

import atexit
import contextlib
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager
from datetime import timedelta
from typing import Any

from ...storage.errors import ConfigError
from .ranks import ALONE, PATIENCE_SECONDS, Ranks, are_several, joined

_joint: tuple[AbstractContextManager[Ranks], Ranks] | None = None
"""The process group of this script, and its ranks."""
_borrowed: Ranks | None = None
"""The ranks of a process group that the script has made."""


@contextlib.contextmanager
def session() -> Iterator[Ranks]:
    """Yield the ranks of this script; `ALONE` without `torchrun`.

    The rank that fails first raises its own error, all others OtherRankFailed; the group is then gone.
    """
    global _joint
    if not are_several() and not _is_made():
        yield ALONE
        return
    if _joint is None and _is_made():
        yield _ranks_of_script()
        return
    if _joint is None:
        begun: AbstractContextManager[Ranks] = joined()
        _joint = begun, begun.__enter__()
        atexit.register(_leave)
    manager, ranks = _joint
    try:
        yield ranks
    except BaseException as error:
        _joint = None
        manager.__exit__(type(error), error, error.__traceback__)  # raises the verdict of all ranks
        raise


def _is_made() -> bool:
    from torch import distributed

    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


def _ranks_of_script() -> Ranks:
    """Return the ranks of the script's own process group. Raises ConfigError for one without the CPU."""
    global _borrowed
    from torch import distributed

    if _borrowed is None:
        backend = str(distributed.get_backend_config())
        if "gloo" not in backend:
            raise ConfigError(
                "torch.distributed",
                expected="a process group of the CPU as well, such as init_process_group('cpu:gloo,cuda:nccl')",
                found=backend,
                remedy="name both backends, or leave the group to logitstore",
            )
        rank = distributed.get_rank()
        patient: Any = distributed.new_group(backend="gloo", timeout=timedelta(seconds=PATIENCE_SECONDS))
        local = int(os.environ.get("LOCAL_RANK", rank))
        _borrowed = Ranks(rank, distributed.get_world_size(), local, patient)
    return _borrowed


def _leave() -> None:
    """Remove the process group at the end of the script, without waiting for ranks that may have failed."""
    from torch import distributed

    if _joint is not None and distributed.is_initialized():
        with contextlib.suppress(RuntimeError):
            distributed.destroy_process_group()
