"""The result of an import."""

from dataclasses import dataclass
from pathlib import PurePath
from typing import Any


@dataclass(frozen=True)
class ImportedFile:
    """A file of an import."""

    file: str
    """Its name, without folders."""
    sha256: str
    """Of its bytes, in hexadecimal digits."""
    bytes: int
    """Its size."""
    rows: int
    """Rows that it gives."""


@dataclass(frozen=True)
class Imported:
    """The result of an import; of one with `dry_run`, what it would be."""

    path: PurePath
    """The store."""
    digest: str | None
    """ "sha256:…" of the store; None where nothing is there yet."""
    teacher: str
    """Name of the capture."""
    dry_run: bool
    """Whether nothing was written."""
    made: bool
    """Whether the capture was written now, or would be."""
    new_store: bool
    """Whether the store is of this import; False for a capture that was added to another one."""
    rows: int
    """Rows."""
    classes: int
    """Columns of the logits."""
    dtype: str
    """Of the logits in the files; the widest one."""
    log_probabilities: bool
    """Whether the values were taken as log-probabilities."""
    encoding: dict[str, Any]
    """Of the capture."""
    labelled: int
    """Rows with a known label."""
    has_ids: bool
    """Whether ids of the rows were given."""
    bytes: int
    """Of the logits as they are stored; of an encoding that codes them, before that."""
    files: tuple[ImportedFile, ...]
    """The files, in order."""
