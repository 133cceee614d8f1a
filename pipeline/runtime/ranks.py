"""Ranks: processes that work on one job, and their collectives.

`torchrun` starts one process per device and numbers them in the environment; `joined` turns them into `Ranks`. A process
without `torchrun` is the rank `ALONE`.

1. Ranks compare their settings, stores, sets and versions before they begin (`Ranks.agree`).
2. A step covers the rows of all ranks: DistributedDataParallel averages gradients, weighted by each rank's rows.
3. Small numbers (rows of a step, states of generators) go over gloo, between the hosts, so that no device waits.
4. A collective has ten minutes. Where one rank works for hours while the others have nothing to do, they `wait` instead: up
   to a day, and a signal ends the wait.
5. The first rank that fails records it in the shared store, and alone reports its error. The others read the record, at the
   latest when their collective breaks or times out, and exit with the same code.
"""

import errno
import json
import os
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

from ...storage.errors import EX_SOFTWARE, ConfigError, SpecMismatch, TransientIOError
from ...storage.identity import check_same
from .stopping import Stopped

if TYPE_CHECKING:
    from torch import Tensor, nn


TIMEOUT_SECONDS = 600.0
"""Seconds that a collective takes at most: more than it takes to compile a network or to write a checkpoint."""
JOIN_SECONDS = 300.0
"""Seconds in which all ranks must have started."""
PATIENCE_SECONDS = 86_400.0
"""Seconds of `Ranks.wait`. A rank that dies is noticed at once; this is for one that hangs."""
_POLL_SECONDS = 0.05
EX_INTERRUPTED: Final = 130
"""128 + SIGINT, as shells report it."""
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
    patient: Any = field(default=None, compare=False)
    """Process group of `wait`."""

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
        """Return the device of this rank: its own GPU if `name` is only "cuda" or there is a GPU by default.

        A scheduler may show each process one GPU alone, which is then cuda:0 whatever the number of the process.
        """
        import torch

        wanted = name or ("cuda" if torch.cuda.is_available() else "cpu")
        if self.size == 1 or wanted != "cuda":
            return name
        visible = torch.cuda.device_count()
        return f"cuda:{self.local % visible if visible else self.local}"

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

    def agree(self, value: Mapping[str, Any]) -> None:
        """Compare a JSON object of all ranks, before they begin.

        If any differs, the first rank raises SpecMismatch, and all others OtherRankFailed.
        """
        texts = self.texts(json.dumps(value, sort_keys=True, default=str))
        rank = next((rank for rank, text in enumerate(texts) if text != texts[0]), None)
        if rank is None:
            return
        if not self.is_first:
            raise OtherRankFailed(0, SpecMismatch.exit_code)
        check_same(
            f"rank {rank} of {self.size}",
            json.loads(texts[rank]),
            json.loads(texts[0]),
            made="as on rank 0",
            remedy="start all ranks with the same files, settings and versions",
        )

    def stop(self, signals: Sequence[int]) -> None:
        """End all ranks if one of them was asked to. signals: of each rank, 0 for none, as all ranks know them.

        The first of those that were asked raises Stopped, and all others OtherRankFailed.
        """
        rank = next((rank for rank, number in enumerate(signals) if number), None)
        if rank is not None:
            stopped = Stopped(signals[rank])
            raise stopped if rank == self.rank else OtherRankFailed(rank, stopped.exit_code)

    def wait(self) -> None:
        """Wait for all ranks, which may be at work for hours. A signal, or a rank that dies, ends the wait."""
        if self.size == 1:
            return
        import torch
        from torch import distributed

        mine = torch.zeros(1)
        every = [torch.empty(1) for _ in range(self.size)]
        _LENT.append([mine, *every])
        work: Any = distributed.all_gather(every, mine, group=self.patient, async_op=True)
        while not work.is_completed():  # not `wait`, in which Python handles no signal
            time.sleep(_POLL_SECONDS)
        work.wait()

    def counts(self, number: int) -> list[int]:
        """Gather one number from each rank."""
        return [count for (count,) in self.numbers(number)]

    def numbers(self, *numbers: int) -> list[tuple[int, ...]]:
        """Gather some numbers from each rank."""
        if self.size == 1:
            return [numbers]
        import torch

        return [tuple(map(int, each)) for each in self.tensors(torch.tensor(numbers))]

    def texts(self, text: str) -> list[str]:
        """Gather a text from each rank."""
        if self.size == 1:
            return [text]
        import torch

        encoded = text.encode()
        counts = self.counts(len(encoded))
        padded = torch.frombuffer(bytearray(encoded.ljust(max(counts), b" ")), dtype=torch.uint8)
        parts = self.tensors(padded)
        return [bytes(part.tolist())[:count].decode() for part, count in zip(parts, counts, strict=True)]

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

    def copy_first(self, tensors: "Iterable[Tensor]") -> None:
        """Copy tensors of the first rank into those of all others, in place."""
        if self.size == 1:
            return
        from torch import distributed

        for tensor in tensors:
            sent = tensor.detach().contiguous()
            distributed.broadcast(sent, src=0)
            _LENT.append([sent])
            tensor.detach().copy_(sent)

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
    """Refuse a rank outside its world, for which the others would wait, and a port that is none. Raises ConfigError."""
    rank, size, port = (os.environ[name] for name in ("RANK", "WORLD_SIZE", "MASTER_PORT"))
    local = os.environ.get("LOCAL_RANK", "0")
    if not (rank.isdecimal() and size.isdecimal() and local.isdecimal() and int(rank) < int(size)):
        raise ConfigError(
            "RANK",
            expected="an integer from 0 to WORLD_SIZE - 1",
            found=f"RANK={rank}, WORLD_SIZE={size}, LOCAL_RANK={local}"[:80],
            remedy="start the processes with torchrun, or correct the variables",
        )
    if not (port.isdecimal() and 0 < int(port) < 1 << 16):
        raise ConfigError(
            "MASTER_PORT",
            expected="a port from 1 to 65535",
            found=repr(port)[:80],
            remedy="start the processes with torchrun, or correct the variable",
        )


@contextmanager
def joined(timeout: float = TIMEOUT_SECONDS) -> Iterator[Ranks]:
    """Join the process group that `torchrun` started; yield `ALONE` without it.

    timeout: seconds that a collective takes at most.
    The rank that fails first raises its own error, all others OtherRankFailed. Raises ConfigError for a port that is taken,
    TransientIOError if a rank does not start, or is gone without a record.
    """
    if not are_several():
        yield ALONE
        return
    import torch
    from torch import distributed
    from torch.distributed import PrefixStore  # type: ignore[attr-defined]  # documented, not in __all__

    _check_rank()
    store, rank, size = _rendezvous()
    ranks = Ranks(rank, size, int(os.environ.get("LOCAL_RANK", rank)))
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
            timeout=timedelta(seconds=timeout),
        )
        patient = distributed.new_group(backend="gloo", timeout=timedelta(seconds=PATIENCE_SECONDS))
        ranks = replace(ranks, patient=patient)
        yield ranks
        # The first rank serves the shared store: no rank exits before all are here.
        ranks.wait()
    except (Exception, KeyboardInterrupt) as error:
        # The group is not destroyed: that would wait for ranks that are gone.
        verdict = _judged(error, ranks, failures)
        if verdict is error:
            raise
        raise verdict from error
    distributed.destroy_process_group()


def _rendezvous() -> tuple[Any, int, int]:
    """Join the other ranks; return the shared store, this rank and the number of ranks."""
    from torch import distributed
    from torch.distributed.rendezvous import rendezvous

    place = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    limit = timedelta(seconds=JOIN_SECONDS)
    try:
        store, rank, size = next(rendezvous("env://", timeout=limit))
    except (distributed.DistError, OSError, RuntimeError) as error:
        if "EADDRINUSE" in str(error) or getattr(error, "errno", None) == errno.EADDRINUSE:
            raise ConfigError(
                "MASTER_PORT",
                expected="a free port, at which the ranks meet",
                found=f"{place}, which another process uses",
                remedy="set another MASTER_PORT, or start the processes with `torchrun --standalone`",
            ) from error
        raise TransientIOError(
            "MASTER_ADDR and MASTER_PORT",
            expected=f"all ranks at {place} within {JOIN_SECONDS:.0f} s",
            found=" ".join(str(error).split())[:120] or type(error).__name__,
            remedy="correct the two variables, or start all ranks again",
        ) from error
    store.set_timeout(limit)
    return store, int(rank), int(size)


def _judged(error: BaseException, ranks: Ranks, failures: Any) -> BaseException:
    """Return the error that this rank ends with: its own if it failed first."""
    if isinstance(error, OtherRankFailed):
        return error
    if _is_lost_contact(error):
        error = TransientIOError(
            f"rank {ranks.rank} of {ranks.size}",
            expected="answers from all ranks",
            found="no answer from at least one",
            remedy="run the same command again; it resumes from the last saved state",
        )
    code = getattr(error, "exit_code", EX_SOFTWARE)
    if isinstance(error, KeyboardInterrupt) and not isinstance(error, Stopped):
        code = EX_INTERRUPTED
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
