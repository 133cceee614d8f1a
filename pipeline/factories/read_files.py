"""Files that factories read: their arguments of the type `Path`, and the digests of their contents.

A network may follow from a file as well as from its code: scales, a vocabulary, a table. Its content is therefore part of
what a result is made from, beside the local code (`local_code`).

A factory is imported only where it may read a file: an argument names one that is there, or its local code has a parameter
that is a path. So most finished experiments are recognised without torch.
"""

import contextlib
import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, Protocol, runtime_checkable

from ...storage.errors import FactoryError
from .call import argument_paths
from .file_digest import file_digest, folder_digest
from .in_hand import InHand
from .local_code import may_take_paths

log = logging.getLogger(__name__)
READ: Final = "files_read"
"""Key of an identity: the digest of each file or folder that a factory reads."""
_LONGEST: Final = 4096
"""Characters of the longest name of a file."""
_warned: set[str] = set()


@runtime_checkable
class Made(Protocol):
    """A table of an experiment file with a factory."""

    @property
    def factory(self) -> str:
        """ "package.module:function"."""

    @property
    def args(self) -> dict[str, Any]:
        """Its arguments."""

    @property
    def in_hand(self) -> InHand | None:
        """The product itself, if a caller has passed it."""


def files_read(tables: Iterable[Made], *, base: Path) -> dict[str, str]:
    """Return "sha256:…" of each file or folder that some factories read, by its name in the arguments.

    A file that is not there has no entry: the error of the factory names it. base: folder of the experiment file.
    """
    found: dict[str, str] = {}
    for table in (table for table in tables if table.in_hand is None):
        for name, path in _paths(table.factory, table.args, base):
            with contextlib.suppress(OSError):
                if (digest := _digest(path, base)) is not None:
                    found[name] = digest
    return dict(sorted(found.items()))


@contextlib.contextmanager
def unchanged_files(table: Made, *, base: Path) -> Iterator[None]:
    """Compare the files that a factory reads before and after the block, in which it is called. Raises FactoryError."""
    before = files_read([table], base=base)
    yield
    after = files_read([table], base=base)
    for name in sorted(before.keys() & after.keys()):
        if before[name] != after[name]:
            raise FactoryError(
                f"factory {table.factory!r}",
                expected=f"the file {name} as it was before the call, {before[name]}",
                found=after[name],
                remedy="run the same command again when nothing writes it; annotate a folder that the factory "
                "itself writes as str",
            )


def _paths(factory: str, args: Mapping[str, Any], base: Path) -> Iterator[tuple[str, Path]]:
    """Yield name and place of each path that a factory is called with."""
    texts = list(dict.fromkeys(_texts(args)))
    present = [text for text in texts if _exists(base / _home(text)) or _exists(Path(text))]
    if not present and not may_take_paths(factory, base=base):
        return
    try:
        paths = argument_paths(factory, args, base=base)
    except FactoryError:  # its call tells the reason
        paths = [base / _home(text) for text in present]
    # An argument goes by its text, which is the same wherever the experiment lies.
    names = {Path(text): text for text in texts} | {base / _home(text): text for text in texts}
    for path in paths:
        yield names.get(path) or _short(path, base), path
    if factory.partition(".")[0] != "logitstore":
        _warn_of_texts(
            factory, [text for text in present if not {base / _home(text), Path(text)} & {*paths}], base
        )


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str) and 0 < len(value) <= _LONGEST and "\0" not in value:
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _texts(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _texts(item)


def _home(text: str) -> Path:
    try:
        return Path(text).expanduser()
    except RuntimeError:  # of a user without a home
        return Path(text)


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # as of a name that is too long
        return False


def _short(path: Path, base: Path) -> str:
    """Return the name of a default: from the folder of the experiment file if it lies there."""
    place, whole = base.resolve(), Path(os.path.abspath(path))
    return whole.relative_to(place).as_posix() if whole.is_relative_to(place) else path.name


def _digest(path: Path, base: Path) -> str | None:
    """Return the digest of a file or folder; None for a folder that holds the experiment, and so its results."""
    if not path.is_dir():
        return file_digest(path)
    if base.resolve().is_relative_to(path.resolve()):
        if str(path) not in _warned:
            _warned.add(str(path))
            log.warning(
                "%s: holds the experiment file, so its content is not compared; name a folder of inputs alone",
                path,
            )
        return None
    return folder_digest(path)


def _warn_of_texts(factory: str, texts: Iterable[str], base: Path) -> None:
    """Warn once of a file that an argument names as a text: its content is not compared."""
    for text in texts:
        place = next((p for p in (base / _home(text), Path(text)) if p.is_file()), None)
        if place is not None and f"{factory} {text}" not in _warned:
            _warned.add(f"{factory} {text}")
            log.warning(
                "factory %r: the content of %s is not compared, as the argument is no Path; annotate it as "
                "pathlib.Path if the factory reads it",
                factory,
                text,
            )
