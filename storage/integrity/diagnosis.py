"""Diagnosis of an opened store: every fault of every part, and the files that no part lists.

`verify` reports each fault. `repair` applies its cure before it asks for the next one, so that later faults are
judged by mended files.
"""

from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from ..errors import ManifestInvalid
from ..format.shard import COPY
from ..parts.journal import Seal
from ..parts.log import log_key
from ..parts.recovery import Plan
from ..parts.root import Root, open_root, unsealed_parts
from ..progress import Progress
from .checks import FAILURES, typed
from .faults import Fault
from .part_diagnosis import Search
from .sealed_faults import SealedDiagnosis
from .strays import find_remains, find_strays
from .unsealed_faults import UnsealedDiagnosis


def guarded(part: str, where: str, faults: Iterator[Fault]) -> Iterator[Fault]:
    """Yield the faults of a part; an error that ends the search becomes the last of them."""
    try:
        yield from faults
    except FAILURES as error:
        yield Fault(part, "", typed(error, where))


@dataclass(frozen=True)
class Mending:
    """The two things that only `repair` does to a part that is not sealed."""

    alone: Callable[[str], AbstractContextManager[None]]
    """Holds a part alone while its records are compared. Raises WriterBusy."""
    recover: Callable[[str, Plan], None]
    """Mends a part as its next writer would, once the cures of its faults have been applied."""


class Diagnosis:
    """A search for the faults of an opened store."""

    def __init__(self, root: Root, *, deep: bool, progress: Progress, mending: Mending | None = None) -> None:
        """Begin a search. deep: read the shards. mending: of the repair that it is for; None for `verify`."""
        self._root, self._mending = root, mending
        self.search = Search(root, deep, mending is not None, progress)
        """Its counts of compared files grow with the faults."""
        self.unsealed: list[str] = []
        """Parts that were begun and are not sealed; known after the sealed parts."""
        self.strays: list[str] = []
        """Keys of files that no seal lists and no reader takes for data; known at the end."""
        self.leftovers: list[str] = []
        """Parts that were removed, of which files are left; known after the sealed parts."""

    def faults(self) -> Generator[Fault, None, None]:
        """Find the faults of sealed parts, of unsealed ones, and strays that a plain reader takes for data."""
        root, seals = self._root, dict[str, Seal]()
        for record in root.records:
            part = SealedDiagnosis(self.search, record.part)
            yield from guarded(record.part, str(root.path / record.part), part.faults())
            if part.seal is not None:
                seals[record.part] = part.seal
        # The files before the parts: a part that is begun meanwhile is then known by its spec.
        files = root.folder.files()
        self.unsealed, self.leftovers = unsealed_parts(root), find_remains(root, files)
        # No record vouches for the last one. If its seal is lost, the record may be the damaged file, and a part that
        # seems to be unsealed may be the one that it named.
        last = root.log[-1] if root.log else None
        if self._mending and last and not last.removes and last.part not in seals:
            yield self._doubtful_record()
        else:
            for name in self.unsealed:
                yield from self._unsealed_faults(name)
        self.strays, seen = find_strays(open_root(root.folder) if self._mending else root, seals, files)
        for error in seen:
            yield Fault("", "", error)

    def _unsealed_faults(self, name: str) -> Iterator[Fault]:
        with nullcontext() if self._mending is None else self._mending.alone(name):
            part = UnsealedDiagnosis(self.search, name)
            yield from guarded(name, str(self._root.path / name), part.faults())
            if self._mending is not None and part.plan is not None:
                self._mending.recover(name, part.plan)

    def _doubtful_record(self) -> Fault:
        key = log_key(len(self._root.log))
        error = ManifestInvalid(
            str(self._root.path / key),
            expected="a record of a part with an intact seal",
            found=f"the record of {self._root.log[-1].part}, whose seal is lost",
            remedy=COPY,
        )
        return Fault("", key, error)
