"""The file `STORE.md` of a store: written by every command that makes or completes one, and read by no reader.

It is the one file of a store that is replaced. On a disk it is staged and renamed, in a bucket put without a condition, so
the last writer wins. A writer reads the log again afterwards, and writes again if a part was sealed meanwhile.
"""

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, Final, Protocol, runtime_checkable

from ..backends.lease import lease
from ..backends.local import Folder, writable
from ..backends.place import Place
from ..backends.posix import replace_file
from ..backends.remote import access_of, folder_at
from ..errors import ConfigError, LogitStoreError
from ..format.constants import CARD_FILE
from ..parts.root import Root, open_root
from .store_card import Score, card_text, scores_in, states

if TYPE_CHECKING:
    from zarr.abc.store import Store as ZarrStore
else:
    ZarrStore = Any

log = logging.getLogger(__name__)
_MOST_BYTES: Final = 1 << 20
"""Of a card that is read for its scores."""
_ATTEMPTS: Final = 5
"""Cards that are written while other processes seal parts."""


class Opened(Protocol):
    """An opened store."""

    @property
    def root(self) -> Root:
        """Its root."""


@runtime_checkable
class Replacing(Place, Protocol):
    """A place in which a file can be replaced."""

    def replace(self, key: str, data: bytes) -> None:
        """Write a file in the place of one that has its name."""


@dataclass(frozen=True)
class WrittenCard:
    """The card of a store, as `write_card` wrote it."""

    path: PurePath
    """The file."""
    digest: str
    """ "sha256:…" of the store."""
    text: str
    """Its Markdown."""
    changed: bool
    """Whether the file is another one than before; with `dry_run`, whether it would be."""
    dry_run: bool
    """Whether nothing was written."""


def write_card(
    store: "Opened | str | os.PathLike[str] | ZarrStore | Place",
    out: "str | os.PathLike[str] | None" = None,
    *,
    location: str | None = None,
    dry_run: bool = False,
    storage_options: Mapping[str, Any] | None = None,
) -> WrittenCard:
    """Write `STORE.md`, the card of a store for people, anew: what it is, its teachers and digest, how to load it.

    The text follows from the store's metadata; no shard is read. Scores in the card that is there are kept. The commands that
    make or copy a store write it by themselves, and your own loop does not.

    store: an opened store, its path or its URL. out: another file to write the text to, such as the `README.md` of a data set
    on a hub; by default `STORE.md` in the store. location: place of the store in the lines that load it, such as a URL.
    dry_run: return the text, and write nothing. storage_options: of the library that opens a URL.
    Returns the text, its path, the digest of the store, and whether the file changed.
    Raises NotAStoreError, ManifestInvalid for a store that cannot be read; ConfigError, StorageError where it cannot be
    written.
    """
    # Paths and some stores of Zarr's have another `root`.
    own = getattr(store, "root", None)
    root = own if isinstance(own, Root) else open_root(folder_at(store, access_of(storage_options)))
    card = _Card(root)
    if out is not None:
        path, text = Path(out), card.text(location=location)
        before = path.read_bytes() if path.is_file() else None
        changed = before != text.encode()
        if changed and not dry_run:
            replace_file(path, text.encode())
        return WrittenCard(path, root.digest, text, changed, dry_run)
    if not dry_run:
        writable(root.folder)  # raises
    text = card.text(location=location)
    changed = card.there != text
    if changed and not dry_run:
        text = card.write(text, location=location)
    return WrittenCard(root.folder.path / CARD_FILE, root.digest, text, changed, dry_run)


def refresh_card(
    root: Root, scores: Mapping[str, Score] | None = None, *, source: Root | None = None, made: bool = True
) -> None:
    """Write the card of a store if it is not that of its digest; where that fails, log it, and go on.

    scores: new ones, by capture. source: a store whose card has scores for this one. made: whether the command made anything:
    without, as in a run that finds all work done, a failure is not worth a warning.
    """
    try:
        card = _Card(root)
        if scores is None and states(card.there or "", root.digest):
            return
        known = {} if source is None else _Card(source).scores
        text = card.text({**known, **card.scores, **(scores or {})})
        if text != card.there:
            card.write(text)
    except (LogitStoreError, OSError) as error:
        level = logging.WARNING if made else logging.DEBUG
        _log_failure(level, root.path, error)


def refresh_copy(place: Place, digest: str, source: Root) -> None:
    """Write the card of a copy, with the scores of its source's, if it is not that of its digest; as `refresh_card`."""
    try:
        if states(_read(place) or "", digest):
            return
        root = open_root(place)
    except (LogitStoreError, OSError) as error:
        _log_failure(logging.WARNING, place.path, error)
        return
    refresh_card(root, source=source)


def _log_failure(level: int, path: PurePath, error: Exception) -> None:
    log.log(level, "%s: its card was not written: %s", path, " ".join(str(error).split()))


def _read(folder: Place) -> str | None:
    """Return the text of the card that is there; None without one that can be read."""
    try:
        return folder.read(CARD_FILE, _MOST_BYTES).decode()
    except (LogitStoreError, OSError, UnicodeDecodeError):
        return None


class _Card:
    """The card of one store."""

    def __init__(self, root: Root) -> None:
        self._root = root
        self.there = _read(root.folder)
        """The text that is there; None without one that can be read."""
        self.scores = scores_in(self.there or "")
        """Its scores."""

    def text(self, scores: Mapping[str, Score] | None = None, location: str | None = None) -> str:
        """Return the text of the store as it was opened. scores: instead of those that are there."""
        self._scores = self.scores if scores is None else scores
        return card_text(self._root, self._scores, location)

    def write(self, text: str, location: str | None = None) -> str:
        """Write the text, and again while other processes seal parts; return what was written."""
        for _ in range(_ATTEMPTS):
            self._put(text.encode())
            digest = self._root.digest
            if self._root.expect is not None:
                return text
            self._root.refresh()
            if self._root.digest == digest:
                return text
            text = card_text(self._root, self._scores, location)
        return text

    def _put(self, data: bytes) -> None:
        folder = writable(self._root.folder)
        if not isinstance(folder, Replacing):
            raise ConfigError(
                str(folder.path),
                expected="a place in which a file can be replaced",
                found=f"a {type(folder).__name__}",
                remedy="write the card to a file, with --out",
            )
        if not isinstance(folder, Folder):
            folder.replace(CARD_FILE, data)
            return
        held = folder.hold()  # so that the card gets into this very store
        try:
            self._root.check_log(held)
            with lease(held):  # a writer that is alone removes what is staged
                held.replace(CARD_FILE, data)
        finally:
            held.let_go()
