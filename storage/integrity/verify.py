"""Verification of a store: the faults of `diagnosis`, reported and not mended.

No file is changed, no teacher is run, nothing that the store names is imported.
"""

from dataclasses import dataclass, field
from pathlib import Path

from ..backends.paths import local_folder
from ..backends.place import Place
from ..errors import LogitStoreError, NotAStoreError, StorageError, StoreCorrupt, UntrustedStoreError
from ..format.constants import GROUPS, SAMPLES
from ..parts.log import is_gone, log_key
from ..parts.root import Root, open_root
from ..progress import Progress, silent
from .diagnosis import Diagnosis, guarded
from .root_faults import root_faults

CLEAN, CORRUPT, UNTRUSTED, IO_ERROR, INCOMPLETE = 0, 1, 3, 4, 5
"""Exit codes of `logitstore verify`."""


@dataclass
class Report:
    """The result of a verification."""

    digest: str | None = None
    """Digest of the store; None if it cannot be opened."""
    objects: int = 0
    """Files that were compared."""
    bytes: int = 0
    """Bytes of the shards that were compared or, without `deep`, counted."""
    problems: list[LogitStoreError] = field(default_factory=list)
    """The errors, in the order in which they were found; one for each file."""
    unsealed: list[str] = field(default_factory=list)
    """Parts that were begun and are not sealed."""
    later: list[str] = field(default_factory=list)
    """Parts that were sealed after the expected digest; they were not checked."""
    strays: list[str] = field(default_factory=list)
    """Keys of files that no seal lists and no reader takes for data; the first `MAX_STRAYS`."""
    leftovers: list[str] = field(default_factory=list)
    """Parts that were removed, of which files are left; `rm` or `repair` removes these."""

    _reported: set[str] = field(default_factory=set, repr=False)

    @property
    def exit_code(self) -> int:
        """0 clean, 1 corrupt, 3 untrusted, 4 I/O, 5 incomplete: the worst of the problems."""
        if any(isinstance(problem, UntrustedStoreError) for problem in self.problems):
            return UNTRUSTED
        if any(not isinstance(problem, StorageError) for problem in self.problems):
            return CORRUPT
        if self.problems:
            return IO_ERROR
        return INCOMPLETE if self.unsealed else CLEAN

    def add(self, error: LogitStoreError) -> None:
        """Add a problem, unless one of the same file was added before."""
        if error.where not in self._reported:  # a hostile seal may list thousands of files
            self._reported.add(error.where)
            self.problems.append(error)


def verify(
    place: Path | Place, *, deep: bool = False, expect: str | None = None, progress: Progress = silent
) -> Report:
    """Check every file of a store. Problems are collected in one report, not raised.

    deep: read every shard, and compare its sha256 and its commit record; without it, sizes and presence.
    expect: a digest of the store, as of which it is checked.
    Raises NotAStoreError if the place holds no store at all, ConfigError if its files cannot be listed.
    """
    top = place if isinstance(place, Place) else local_folder(place)
    if not top.can_list:
        top.files()  # raises
    report = Report()
    root = _opened(top, expect, report)
    if root is None:
        return report
    report.digest, report.later = root.digest, list(root.later)
    diagnosis = Diagnosis(root, deep=deep, progress=progress)
    for fault in diagnosis.faults():
        report.add(fault.error)
    if report.problems:
        _drop_removed(root, report)
    report.objects = diagnosis.search.objects + len(root.log) + 2 + len(GROUPS)
    report.bytes = diagnosis.search.bytes
    report.unsealed, report.strays = diagnosis.unsealed, diagnosis.strays
    report.leftovers = diagnosis.leftovers
    if not root.has(SAMPLES) and SAMPLES not in report.unsealed:
        report.unsealed.insert(0, SAMPLES)
    return report


def _drop_removed(root: Root, report: Report) -> None:
    """Drop the problems of parts that another process has removed meanwhile."""
    gone = [record.part for record in root.records if is_gone(root.folder, record.part)]
    names = [name for part in gone for name in (str(root.path / part), f"{root.path}: {part}")]
    within = tuple(f"{name}{end}" for name in names for end in ("/", ",", ":", " "))
    if names:
        report.problems = [
            problem
            for problem in report.problems
            if problem.where not in names and not problem.where.startswith(within)
        ]


def _opened(top: Place, expect: str | None, report: Report) -> Root | None:
    """Open a store; if that fails, report each damaged file of the root and the log."""
    try:
        return open_root(top, expect)
    except LogitStoreError as error:
        if isinstance(error, NotAStoreError) and not top.exists(log_key(0)):
            raise
        if isinstance(error, StoreCorrupt | NotAStoreError):
            for fault in guarded("", str(top.path), root_faults(top, rebuild=False)):
                report.add(fault.error)
        if not report.problems:
            report.add(error)
        return None
