"""Ranks: processes that work on one job, and their collectives.

`torchrun` starts one process per device and numbers them in the environment; `joined` turns them into `Ranks`. A process
without `torchrun` is the rank `ALONE`.

1. A step covers the rows of all ranks: DistributedDataParallel averages gradients, weighted by each rank's rows.
2. Small numbers (rows of a step, states of generators) go over gloo, between the hosts, so that no device waits.
3. The first rank that fails records it in the shared store, and alone reports its error. The others read the record, at the
   latest when their collective breaks or times out, and exit with the same code.
"""

import os
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from ...storage.errors import EX_SOFTWARE, ConfigError, TransientIOError

if TYPE_CHECKING:
    from torch import Tensor, nn


TIMEOUT_SECONDS = 600.0
"""Seconds that a rank waits for the others: more than it takes to compile a network or to write a checkpoint."""
_VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_FAILED = "failed"
_LOST = ("gloo", "Gloo", "NCCL", "Connection closed by peer", "Connection reset by peer")
"""Words in the errors of a collective whose peers are gone."""


class OtherRankFailed(Exception):
    """The failure of another rank, which has reported it."""

    def __init__(self, rank: int, exit_code: int) -> None:
        super().__init__(rank, exit_code)
        self.rank = rank
        """The rank that failed."""
        self.exit_code = exit_code
        """The exit code of all ranks."""


@dataclass(frozen=True)
class Ranks:
    """The processes of a job, as seen by one of them. All of them must call all methods, in the same order."""

    rank: int = 0
    """Number of this process, from 0."""
    size: int = 1
    """Number of processes."""
    local: int = 0
    """Number of this process on its machine, and of its GPU."""

    @property
    def is_first(self) -> bool:
        """Whether this process is the one that writes."""
        return self.rank == 0

    def rows_each(self, batch_size: int) -> int:
        """Return the rows of a step for each rank. Raises ConfigError if they do not divide evenly."""
        if batch_size % self.size:
            raise ConfigError(
                "train.batch_size",
                expected=f"a multiple of {self.size}, the number of ranks",
                found=str(batch_size),
                remedy="change batch_size, or start another number of processes",
            )
        return batch_size // self.size

    def device(self, name: str | None) -> str | None:
        """Return the device of this rank: its own GPU if `name` is only "cuda" or there is a GPU by default."""
        import torch

        wanted = name or ("cuda" if torch.cuda.is_available() else "cpu")
        return f"cuda:{self.local}" if self.size > 1 and wanted == "cuda" else name

    def wrap(self, module: "nn.Module") -> "nn.Module":
        """Wrap a module so that its backward pass averages gradients over ranks; return it as is for one rank."""
        if self.size == 1:
            return module
        from torch import nn

        from .inference import device_of

        place = device_of(module)
        return nn.parallel.DistributedDataParallel(
            module, device_ids=[place] if place.type == "cuda" else None, gradient_as_bucket_view=True
        )

    def counts(self, number: int) -> list[int]:
        """Gather one number from each rank."""
        if self.size == 1:
            return [number]
        import torch

        return [int(count) for count in self.tensors(torch.tensor([number]))]

    def mean(self, value: "Tensor") -> "Tensor":
        """Average a tensor over the ranks, on its device."""
        if self.size == 1:
            return value
        from torch import distributed

        total = value.detach().clone()
        distributed.all_reduce(total)
        _LENT.append([total])
        return total / self.size

    def tensors(self, tensor: "Tensor") -> "list[Tensor]":
        """Gather a tensor from each rank: all of one shape, on the same kind of device."""
        if self.size == 1:
            return [tensor]
        import torch
        from torch import distributed

        tensors = [torch.empty_like(tensor) for _ in range(self.size)]
        distributed.all_gather(tensors, tensor)
        _LENT.append([tensor, *tensors])
        return tensors

    def rows_of_all(self, rows: "Tensor") -> "Tensor":
        """Concatenate the rows of all ranks in rank order; gradients flow to this rank's own rows."""
        if self.size == 1:
            return rows
        import torch

        counts = self.counts(len(rows))
        padded = rows.detach().new_zeros((max(counts), *rows.shape[1:]))
        padded[: len(rows)] = rows.detach()
        parts = [part[:count] for part, count in zip(self.tensors(padded), counts, strict=True)]
        parts[self.rank] = rows
        return torch.cat(parts)

    def first_says(self, text: str) -> str:
        """Broadcast a text from the first rank to all others."""
        if self.size == 1:
            return text
        import torch
        from torch import distributed

        box = [text if self.is_first else ""]
        distributed.broadcast_object_list(box, src=0, device=torch.device("cpu"))
        return box[0]


_LENT: "deque[list[Tensor]]" = deque(maxlen=4)
"""Tensors of the last collectives. A thread of gloo may drop its reference after the call has returned. If that were the last
one, the thread would take Python's lock; at interpreter exit Python ends such a thread, and torch crashes."""
ALONE = Ranks()
"""The only process of a job."""


def are_several() -> bool:
    """Return whether this process is one of several. Needs no torch."""
    return all(name in os.environ for name in _VARIABLES) and os.environ["WORLD_SIZE"] != "1"


def _check_rank() -> None:
    """Refuse a rank outside its world, for which the others would wait. Raises ConfigError."""
    rank, size = os.environ["RANK"], os.environ["WORLD_SIZE"]
    if not (rank.isdecimal() and size.isdecimal() and int(rank) < int(size)):
        raise ConfigError(
            "RANK",
            expected="an integer from 0 to WORLD_SIZE - 1",
            found=f"RANK={rank}, WORLD_SIZE={size}"[:80],
            remedy="start the processes with torchrun, or correct the two variables",
        )


@contextmanager
def joined(timeout: float = TIMEOUT_SECONDS) -> Iterator[Ranks]:
    """Join the process group that `torchrun` started; yield `ALONE` without it.

    timeout: seconds that a rank waits for the others.
    The rank that fails first raises its own error, all others OtherRankFailed. Raises TransientIOError if a rank is gone
    without a record.
    """
    if not are_several():
        yield ALONE
        return
    import torch
    from torch import distributed
    from torch.distributed import PrefixStore  # type: ignore[attr-defined]  # documented, not in __all__
    from torch.distributed.rendezvous import rendezvous

    _check_rank()
    limit = timedelta(seconds=timeout)
    store, rank, size = next(rendezvous("env://", timeout=limit))
    store.set_timeout(limit)
    ranks = Ranks(int(rank), int(size), int(os.environ.get("LOCAL_RANK", rank)))
    backend = "gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(ranks.local % torch.cuda.device_count())
        backend = "cpu:gloo,cuda:nccl"
    failures = PrefixStore("logitstore", store)
    try:
        distributed.init_process_group(
            backend,
            store=PrefixStore("group", store),
            rank=ranks.rank,
            world_size=ranks.size,
            timeout=limit,
        )
        yield ranks
    except (Exception, KeyboardInterrupt) as error:
        # The group is not destroyed: that would wait for ranks that are gone.
        verdict = _judged(error, ranks, failures)
        if verdict is error:
            raise
        raise verdict from error
    # The first rank serves the shared store: no rank exits before all are here.
    distributed.barrier()
    distributed.destroy_process_group()


def _judged(error: BaseException, ranks: Ranks, failures: Any) -> BaseException:
    """Return the error that this rank ends with: its own if it failed first."""
    if _is_lost_contact(error):
        error = TransientIOError(
            f"rank {ranks.rank} of {ranks.size}",
            expected="answers from all ranks",
            found="no answer from at least one",
            remedy="run the same command again; it resumes from the last saved state",
        )
    code = getattr(error, "exit_code", EX_SOFTWARE)
    mine = f"{ranks.rank} {code}"
    first = mine
    with suppress(Exception):  # if the store is gone too, each rank raises its own error
        first = failures.compare_set(_FAILED, "", mine).decode()
    if first == mine:
        return error
    rank, code = map(int, first.split())
    return OtherRankFailed(rank, code)


def _is_lost_contact(error: BaseException | None) -> bool:
    """Return whether an error, or its cause, comes from a collective whose peers are gone."""
    from torch import distributed

    while error is not None:
        is_lost = isinstance(error, RuntimeError) and any(word in str(error) for word in _LOST)
        if is_lost or isinstance(error, distributed.DistError):
            return True
        error = error.__cause__
    return False
