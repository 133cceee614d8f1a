"""Diagnosis of an opened store: every fault of every part, and the files that no part lists.

`verify` reports each fault. `repair` applies its cure before it asks for the next one, so that later faults are
judged by mended files.
"""

from collections.abc import Callable, Iterator
from contextlib import nullcontext

from ..errors import LogitStoreError, ManifestInvalid
from ..parts.journal import Seal, log_key
from ..parts.root import Root, open_root, unsealed_parts
from ..progress import Progress
from .checks import COPY, no_file, too_large
from .faults import Fault, Tally
from .mending import Mending
from .sealed_faults import SealedDiagnosis
from .strays import find_strays
from .unsealed_faults import UnsealedDiagnosis


def guarded(part: str, where: str, faults: Iterator[Fault]) -> Iterator[Fault]:
    """Yield the faults of a part; an error that ends the search becomes the last of them."""
    try:
        yield from faults
    except LogitStoreError as error:
        yield Fault(part, "", error)
    except (FileNotFoundError, NotADirectoryError):
        yield Fault(part, "", no_file(where))
    except (MemoryError, RecursionError, OverflowError) as error:
        yield Fault(part, "", too_large(where, error))


class Diagnosis:
    """A search for the faults of an opened store."""

    def __init__(self, root: Root, *, deep: bool, progress: Progress, mending: Mending | None = None) -> None:
        """deep: read the shards. mending: the repair that the search is for; None for `verify`."""
        self._root, self._deep, self._progress, self._mending = root, deep, progress, mending
        self.tally = Tally()
        """The files that were compared so far."""
        self.unsealed: list[str] = []
        """Parts that were begun and are not sealed; known after the sealed parts."""
        self.strays: list[str] = []
        """Keys of files that no seal lists and no reader takes for data; known at the end."""

    def faults(self) -> Iterator[Fault]:
        """Find the faults of sealed parts, of unsealed ones, and strays that a plain reader takes for data."""
        root, seals = self._root, dict[str, Seal]()
        for record in root.records:
            part = SealedDiagnosis(
                root,
                record,
                self.tally,
                deep=self._deep,
                rebuild=self._mending is not None,
                progress=self._blocks_of(record.part),
            )
            yield from guarded(record.part, self._where(record.part), part.faults())
            if part.seal is not None:
                seals[record.part] = part.seal
        # The files before the parts: a part that is begun meanwhile is then known by its spec.
        files = root.folder.files()
        self.unsealed = unsealed_parts(root)
        # No record vouches for the last one. If its seal is lost, the record may be the damaged file, and a part that
        # seems to be unsealed may be the one that it named.
        if self._mending and root.records and root.records[-1].part not in seals:
            yield self._doubtful_record()
        else:
            for name in self.unsealed:
                yield from self._unsealed_faults(name)
        self.strays, seen = find_strays(open_root(root.folder) if self._mending else root, seals, files)
        for error in seen:
            yield Fault("", "", error)

    def _unsealed_faults(self, name: str) -> Iterator[Fault]:
        mending = self._mending
        with nullcontext() if mending is None else mending.alone(name):
            part = UnsealedDiagnosis(
                self._root,
                name,
                self.tally,
                deep=self._deep,
                alone=mending is not None,
                progress=self._blocks_of(name),
            )
            yield from guarded(name, self._where(name), part.faults())
            if mending is not None and part.plan is not None:
                mending.recover(name, part.plan)

    def _doubtful_record(self) -> Fault:
        key = log_key(len(self._root.records))
        error = ManifestInvalid(
            self._where(key),
            expected="a record of a part with an intact seal",
            found=f"one of {self._root.records[-1].part}, whose seal is lost",
            remedy=COPY,
        )
        return Fault("", key, error)

    def _blocks_of(self, part: str) -> Callable[[int, int], None]:
        task = f"{'verifying' if self._mending is None else 'repairing'} {part}"
        return lambda done, total: self._progress(task, done, total, "blocks")

    def _where(self, key: str) -> str:
        return str(self._root.path / key)
