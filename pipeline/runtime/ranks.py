"""Ranks: processes that work on one job, and the collectives that they agree by.

`torchrun` starts a process a device and says in the environment which is which; `joined` makes them `Ranks`, and
one process without `torchrun` is the rank `ALONE`.

1. A step is of all ranks' rows: gradients are averaged by DistributedDataParallel, each rank's weighted by its rows.
2. Small numbers (rows of a step, states of generators) go over gloo, between the hosts, so that no device waits.
3. Whoever fails first says so in the store that all of them share, and is the only one to say it aloud; the others
   hear of it, at the latest when their collective breaks off or times out, and leave with the same exit code.
"""

import os
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from ...storage.errors import EX_SOFTWARE, ConfigError, TransientIOError

if TYPE_CHECKING:
    from torch import Tensor, nn


TIMEOUT_SECONDS = 600.0
"""How long a rank waits for the others: longer than compiling a network or writing a checkpoint takes."""
_VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_FAILED = "failed"


class OtherRankFailed(Exception):
    """Another rank has failed, and has said why; this one has nothing to add."""

    def __init__(self, rank: int, exit_code: int) -> None:
        super().__init__(rank, exit_code)
        self.rank = rank
        """Which."""
        self.exit_code = exit_code
        """What to leave with."""


@dataclass(frozen=True)
class Ranks:
    """The processes of a training, seen by one of them. All methods are called by all of them, in one order."""

    rank: int = 0
    """This one, from 0."""
    size: int = 1
    """How many there are."""
    local: int = 0
    """Number of this one on its machine: that of its GPU."""

    @property
    def is_first(self) -> bool:
        """Whether this is the one that writes."""
        return self.rank == 0

    def rows_each(self, batch_size: int) -> int:
        """Return the rows of a step for each rank. Raises ConfigError if they do not divide evenly."""
        if batch_size % self.size:
            raise ConfigError(
                "train.batch_size",
                expected=f"a multiple of the {self.size} ranks, as it counts the rows of all of them",
                found=str(batch_size),
                remedy="change it, or start another number of processes",
            )
        return batch_size // self.size

    def device(self, name: str | None) -> str | None:
        """Return the device of this rank: where `name` states only a kind, each rank has its own GPU."""
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

        found = [torch.empty_like(tensor) for _ in range(self.size)]
        distributed.all_gather(found, tensor)
        _LENT.append([tensor, *found])
        return found

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
        """Broadcast a value from the first rank; all others wait for it."""
        if self.size == 1:
            return text
        import torch
        from torch import distributed

        box = [text if self.is_first else ""]
        distributed.broadcast_object_list(box, src=0, device=torch.device("cpu"))
        return box[0]


_LENT: "deque[list[Tensor]]" = deque(maxlen=4)
"""What went through the last collectives. Threads of gloo may let go of it after the call has returned; were that the last
reference, they would ask for Python's lock, and Python ends a thread that does so while the process is leaving: torch
does not survive that."""
ALONE = Ranks()
"""One process."""


def are_several() -> bool:
    """Return whether this process is one of several. Needs no torch."""
    return all(name in os.environ for name in _VARIABLES) and os.environ["WORLD_SIZE"] != "1"


def check_place() -> None:
    """Refuse a rank that is outside its world: the others would wait for the one that is missing. Raises ConfigError."""
    rank, size = os.environ["RANK"], os.environ["WORLD_SIZE"]
    if not (rank.isdecimal() and size.isdecimal() and int(rank) < int(size)):
        raise ConfigError(
            "RANK",
            expected="an integer from 0 to WORLD_SIZE - 1",
            found=f"RANK={rank}, WORLD_SIZE={size}"[:80],
            remedy="start the processes by torchrun, or correct the two variables",
        )


@contextmanager
def joined(timeout: float = TIMEOUT_SECONDS) -> Iterator[Ranks]:
    """Join the process group that `torchrun` started; yield `ALONE` without it.

    timeout: seconds that a rank waits for the others.
    Raises OtherRankFailed where another one has failed, TransientIOError where one is gone without a word, or
    whatever the block raises, on the one rank that was first.
    """
    if not are_several():
        yield ALONE
        return
    import torch
    from torch import distributed
    from torch.distributed import PrefixStore  # type: ignore[attr-defined]  # documented, not in __all__
    from torch.distributed.rendezvous import rendezvous

    check_place()
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
        # The group is left as it is: ending it properly would wait for those that are gone.
        said = _judged(error, ranks, failures)
        if said is error:
            raise
        raise said from error
    # The first rank keeps the store that the others take their leave in: nobody goes before all are here.
    distributed.barrier()
    distributed.destroy_process_group()


def _judged(error: BaseException, ranks: Ranks, failures: Any) -> BaseException:
    """Return the error that this rank ends with: its own if it failed first."""
    if _is_lost_contact(error):
        error = TransientIOError(
            f"rank {ranks.rank} of {ranks.size}",
            expected="all ranks to go on",
            found="that one of them is gone or does not answer",
            remedy="run the same command again: it goes on from where it was kept last",
        )
    code = getattr(error, "exit_code", EX_SOFTWARE)
    mine = f"{ranks.rank} {code}"
    first = mine
    with suppress(Exception):  # whoever kept the store is gone as well: then everyone speaks for itself
        first = failures.compare_set(_FAILED, "", mine).decode()
    if first == mine:
        return error
    rank, code = map(int, first.split())
    return OtherRankFailed(rank, code)


def _is_lost_contact(error: BaseException | None) -> bool:
    """Return whether an error, or its cause, comes from a collective whose peers are gone."""
    from torch import distributed

    while error is not None:
        said = str(error)
        if isinstance(error, distributed.DistError) or (
            isinstance(error, RuntimeError) and any(word in said for word in _LOST)
        ):
            return True
        error = error.__cause__
    return False


_LOST: Sequence[str] = ("gloo", "Gloo", "NCCL", "Connection closed by peer", "Connection reset by peer")
