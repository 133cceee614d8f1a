"""Files of an image set: a folder or a zip, which of them are images, and a line for each that is left out.

    folder    each real folder once: real folders first, then links to folders, in the order of their names
    zip       the entries, their names with slashes

Files and folders whose names begin with a dot, and `__MACOSX`, are hidden. Nothing else is left out without a warning.
"""

import logging
import multiprocessing
import os
import re
import unicodedata
import warnings
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Final

from PIL import features

from ...storage.errors import BadDataError, described, some_of

log = logging.getLogger(__name__)
MAX_BYTES: Final = 1 << 28
"""Maximum size of an encoded image, 256 MiB: no file or zip entry fills the memory."""
_NO_IMAGES: Final = frozenset(
    {
        ".csv",
        ".db",
        ".html",
        ".ini",
        ".json",
        ".jsonl",
        ".log",
        ".md",
        ".toml",
        ".tsv",
        ".txt",
        ".xml",
        ".yaml",
    }
)
"""Suffixes of texts that lie beside images: they are left out with an information, not a warning."""
_DRIVE: Final = re.compile(r"[A-Za-z]:/")
_UTF8_NAME: Final = 0x800
"""Flag of a zip entry whose name is UTF-8; other names are in code page 437."""
_SHOWN: Final = 5
"""Names in a warning."""


def _formats() -> dict[str, str]:
    """Return the format of each suffix that this Pillow decodes."""
    suffixes = {
        "BMP": ".bmp",
        "GIF": ".gif",
        "JPEG": ".jfif .jpe .jpeg .jpg",
        "PNG": ".apng .png",
        "PPM": ".pbm .pgm .pnm .ppm",
        "TGA": ".tga",
        "TIFF": ".tif .tiff",
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # an older Pillow warns of a feature that it does not know
        for feature, name, more in (
            ("avif", "AVIF", ".avif"),
            ("jpg_2000", "JPEG2000", ".j2k .jp2 .jpx"),
            ("webp", "WEBP", ".webp"),
        ):
            if features.check(feature):
                suffixes[name] = more
    return {suffix: name for name, some in suffixes.items() for suffix in some.split()}


FORMATS: Final = _formats()
"""Pillow's format by suffix. No other format is ever opened."""


@dataclass
class Found:
    """The files of a folder or a zip by relative name, and those that cannot be read as they are."""

    names: list[str] = field(default_factory=list)
    """Visible files, with slashes."""
    folders: set[str] = field(default_factory=set)
    """Visible folders below the root."""
    hidden: list[str] = field(default_factory=list)
    """Hidden files with the suffix of an image, and hidden folders that hold one."""
    repeated: list[str] = field(default_factory=list)
    """Links to folders that belong to the set already: not followed."""
    outside: list[str] = field(default_factory=list)
    """Links to folders outside the root: followed."""
    doubles: list[str] = field(default_factory=list)
    """Links to images that belong to the set by another name."""
    special: list[str] = field(default_factory=list)
    """Pipes, sockets and devices: reading one may wait for ever."""
    foreign: list[str] = field(default_factory=list)
    """Names of a zip in code page 437."""


class FolderFiles:
    """The files below a folder."""

    def __init__(self, root: Path) -> None:
        """List the files. Raises BadDataError for a folder that cannot be listed, and for a link that leads nowhere."""
        if not root.is_dir():
            raise BadDataError(
                str(root),
                expected="a folder of class folders, or a zip of one",
                found="nothing there",
                remedy="correct the name (relative ones start at the experiment file's folder)",
            )
        self.root = root
        self.found = _Walk(root).run()

    def stamp(self, name: str) -> tuple[int, int]:
        """Return size and time of a file; they change with its content. A file that is gone has none: (-1, -1)."""
        try:
            status = (self.root / name).stat()
        except OSError:
            return -1, -1
        return status.st_size, status.st_mtime_ns

    def read(self, name: str) -> bytes:
        """Return the content of a file. Raises OSError."""
        with (self.root / name).open("rb") as file:
            return _bounded(file.read(MAX_BYTES + 1))


class ZipFiles:
    """The files of a zip, opened once in each process; `directory` holds their sizes and CRC-32."""

    def __init__(self, root: Path) -> None:
        """List the entries. Raises BadDataError for a damaged zip, and for names that are no relative paths."""
        try:
            with zipfile.ZipFile(root) as archive:
                entries = archive.infolist()
        except (OSError, zipfile.BadZipFile, NotImplementedError) as error:
            raise BadDataError(
                str(root),
                expected="a zip of class folders",
                found=described(error),
                remedy="name a folder or a zip, or fetch the file again",
            ) from error
        self.root = root
        self.directory: dict[str, tuple[int, int]] = {}
        self.found = Found()
        self._entries: dict[str, str] = {}
        taken: set[PurePosixPath] = set()
        for entry in entries:
            # Some programs of Windows write backslashes; the format allows slashes alone.
            name = entry.filename.replace("\\", "/")
            path = PurePosixPath(name)
            if name.startswith("/") or _DRIVE.match(name) or ".." in path.parts or path in taken:
                raise BadDataError(
                    str(root),
                    expected="distinct relative file names",
                    found=f"{entry.filename!r}" + (" twice" if path in taken else ""),
                    remedy="pack the folder again",
                )
            hidden = is_hidden(name)
            if not hidden:
                self.found.folders |= {str(parent) for parent in path.parents} - {"."}
            if name.endswith("/"):
                if not hidden:
                    self.found.folders.add(str(path))
                continue
            taken.add(path)
            if hidden:
                if is_image(name) and not is_apple_double(name):
                    self.found.hidden.append(name)
                continue
            if is_image(name) and entry.file_size > MAX_BYTES:
                raise BadDataError(
                    f"{root}: {name}",
                    expected=f"an image of {MAX_BYTES:,} bytes at most",
                    found=f"{entry.file_size:,} bytes",
                    remedy="remove the file",
                )
            if not entry.flag_bits & _UTF8_NAME and not name.isascii():
                self.found.foreign.append(name)
            self.directory[name] = (entry.file_size, entry.CRC)
            self._entries[name] = entry.filename
            self.found.names.append(name)
        self._opened: tuple[int, zipfile.ZipFile] | None = None

    def __getstate__(self) -> dict[str, object]:
        return self.__dict__ | {"_opened": None}

    def stamp(self, name: str) -> tuple[int, int]:
        """Return size and CRC-32 of a file."""
        return self.directory[name]

    def read(self, name: str) -> bytes:
        """Return the content of a file. Raises the errors of `zipfile`."""
        process, opened = os.getpid(), self._opened
        if opened is None or opened[0] != process:
            opened = self._opened = process, zipfile.ZipFile(self.root)
        return opened[1].read(self._entries[name])


def list_images(files: FolderFiles | ZipFiles) -> list[str]:
    """Return the names of the images in order, and log what is left out. Raises BadDataError without an image."""
    root, found = files.root, files.found
    names = sorted(name for name in found.names if is_image(name))
    others = Counter(suffix_of(name) for name in found.names if not is_image(name))
    unread = Counter({suffix: count for suffix, count in others.items() if suffix not in _NO_IMAGES})
    if not names:
        shown = f" ({_counts(unread)})" if unread else ""
        raise BadDataError(
            str(root),
            expected=f"images ({', '.join(sorted(FORMATS))}) in class folders",
            found=f"0 images{shown}",
            remedy="name the folder or the zip that holds the class folders",
        )
    for name in names:
        try:
            name.encode()
        except UnicodeEncodeError:
            raise BadDataError(
                str(root),
                expected="file names in UTF-8",
                found=ascii(name),
                remedy="rename the file or its folder",
            ) from None
    if unread:
        total = len(found.names)
        _warn(
            f"{root}: {unread.total():,} of {total:,} files are left out, as no image format is read by their suffix: "
            f"{_counts(unread)}"
        )
    if rest := others - unread:
        log.info("%s: %s files are no images: %s", root, f"{rest.total():,}", _counts(rest))
    _warn_of_folders(root, found, names)
    for some, text in (
        (found.hidden, "hidden files or folders of images are left out"),
        (found.repeated, "links to folders that are in the set already are not followed"),
        (found.special, "pipes, sockets or devices are left out"),
        (found.doubles, "links to images of the set are read as examples of their own"),
        (
            found.foreign,
            "names are not marked as UTF-8 and read in code page 437; if they look wrong, pack the folder again",
        ),
    ):
        if some:
            _warn(f"{root}: {text} ({len(some):,}): {_few(some)}")
    if found.outside:
        log.info("%s: %d links lead to folders elsewhere: %s", root, len(found.outside), _few(found.outside))
    return names


def is_image(name: str) -> bool:
    """Return whether a name has the suffix of an image that is read."""
    return suffix_of(name) in FORMATS


def suffix_of(name: str) -> str:
    """Return the suffix of a name in lower case, "" without one."""
    return PurePosixPath(name).suffix.lower()


def is_hidden(name: str) -> bool:
    """Return whether a file, or a folder above it, is hidden.

    >>> is_hidden("a/.cache/1.png"), is_hidden("__MACOSX/a/1.png"), is_hidden("a/1.png")
    (True, True, False)
    """
    return any(part.startswith((".", "__MACOSX")) for part in PurePosixPath(name).parts)


def is_apple_double(name: str) -> bool:
    """Return whether a file is of the kind that macOS writes beside each file of a zip: no image."""
    parts = PurePosixPath(name).parts
    return parts[-1].startswith("._") or any(part.startswith("__MACOSX") for part in parts)


def check_forms(class_names: Sequence[str], where: str) -> None:
    """Refuse class names that differ in Unicode form alone, and warn of those that differ in case alone.

    Raises BadDataError: "é" as one character or as two looks the same, and file systems disagree on the two.
    """
    by_form: dict[str, str] = {}
    by_case: dict[str, str] = {}
    for name in class_names:
        form = unicodedata.normalize("NFC", name)
        if form in by_form and by_form[form] != name:
            raise BadDataError(
                where,
                expected="class names that differ in more than their Unicode form",
                found=f"{by_form[form]!a} and {name!a}",
                remedy="move the files into one folder, or give the class one name",
            )
        by_form[form] = name
        case = form.casefold().strip()
        if by_case.setdefault(case, name) != name:
            _warn(f"{where}: two classes differ in case or blanks alone: {by_case[case]!r} and {name!r}")


def warn_of_skipped(root: str, skipped: Mapping[str, str], total: int) -> None:
    """Warn of files that are left out for their content, and log each of them with its reason."""
    _warn(
        f'{root}: {len(skipped):,} of {total:,} images cannot be used and are left out (on_error = "skip"): '
        f"{_few(list(skipped))}"
    )
    for name, reason in skipped.items():
        log.info("%s: %s is left out: %s", root, name, reason)


class _Walk:
    """A walk over the folders below a root: each real folder once, so that a link upwards does not lead round."""

    def __init__(self, root: Path) -> None:
        self.found = Found()
        self._root, self._base = root, os.path.realpath(root)
        self._seen = {self._base}
        self._links: list[str] = []
        self._broken: list[str] = []
        self._files: set[tuple[int, int]] = set()
        """Device and inode of each file."""
        self._linked: dict[str, tuple[int, int]] = {}
        """The same of each link to a file, by name."""

    def run(self) -> Found:
        """List all files. Raises BadDataError for a folder that cannot be listed, and links that lead nowhere."""
        self._list_tree("")
        while self._links:
            links, self._links = sorted(self._links), []
            for name in links:
                if self._enters(name):
                    if os.path.commonpath([self._base, os.path.realpath(self._root / name)]) != self._base:
                        self.found.outside.append(name)
                    self._list_tree(name)
        if images := [name for name in self._broken if is_image(name) or not suffix_of(name)]:
            raise BadDataError(
                str(self._root),
                expected="links to files or folders that exist",
                found=f"{len(images)} that lead nowhere: {_few(images)}",
                remedy="restore the files, or remove the links",
            )
        for name, file in sorted(self._linked.items()):
            if is_image(name) and file in self._files:
                self.found.doubles.append(name)
            self._files.add(file)
        return self.found

    def _list_tree(self, top: str) -> None:
        """List a folder and the real folders below it; links to folders come later."""
        waiting = [top]
        while waiting:
            folder = waiting.pop()
            device = (self._root / folder).stat().st_dev
            for entry in _entries(self._root, folder):
                name = f"{folder}/{entry.name}" if folder else entry.name
                kind = _kind(entry)
                if is_hidden(entry.name):
                    if not is_apple_double(name) and _holds_image(entry, kind):
                        self.found.hidden.append(name)
                elif kind == "folder":
                    if entry.is_symlink():
                        self._links.append(name)
                    elif self._enters(name):
                        waiting.append(name)
                elif kind == "file":
                    self.found.names.append(name)
                    if entry.is_symlink():
                        status = entry.stat()
                        self._linked[name] = (status.st_dev, status.st_ino)
                    else:
                        self._files.add((device, entry.inode()))
                else:
                    (self._broken if entry.is_symlink() else self.found.special).append(name)

    def _enters(self, name: str) -> bool:
        """Note a folder by its real place; return whether it is new."""
        place = os.path.realpath(self._root / name)
        if place in self._seen:
            self.found.repeated.append(name)
            return False
        self._seen.add(place)
        self.found.folders.add(name)
        return True


def _kind(entry: os.DirEntry[str]) -> str:
    """Return "folder", "file" or "" of an entry, a link being what it leads to."""
    try:
        return "folder" if entry.is_dir() else "file" if entry.is_file() else ""
    except OSError:  # a link to itself, for example
        return ""


def _entries(root: Path, folder: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(root / folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise BadDataError(
            str(root / folder),
            expected="a folder that can be listed",
            found=described(error),
            remedy="allow reading it, or move it out of the set",
        ) from error


def _holds_image(entry: os.DirEntry[str], kind: str) -> bool:
    """Return whether a hidden entry is an image, or a folder that holds one."""
    if kind != "folder":
        return kind == "file" and is_image(entry.name)
    try:
        with os.scandir(entry.path) as inside:
            return any(is_image(one.name) for one in inside)
    except OSError:
        return False


def _bounded(content: bytes) -> bytes:
    if len(content) > MAX_BYTES:
        raise OSError(f"more than {MAX_BYTES:,} bytes")
    return content


def _warn_of_folders(root: Path, found: Found, images: Iterable[str]) -> None:
    """Warn of innermost folders without an image: whoever counts folders as classes would miss them."""
    full = {parent for name in images for parent in _parents(name)}
    inner = {parent for folder in found.folders for parent in _parents(folder)}
    empty = sorted(folder for folder in found.folders if folder not in full and folder not in inner)
    if empty:
        _warn(f"{root}: folders without an image are no classes ({len(empty):,}): {_few(empty)}")


def _parents(name: str) -> Iterator[str]:
    return (str(parent) for parent in PurePosixPath(name).parents)


def _counts(counter: Counter[str]) -> str:
    most = sorted(counter.items(), key=lambda item: (-item[1], item[0]))
    return some_of([f"{suffix or 'no suffix'} {count:,}" for suffix, count in most], _SHOWN)


def _few(names: Sequence[str]) -> str:
    return some_of([repr(name) for name in sorted(names)], _SHOWN)


def _warn(message: str) -> None:
    """Log a warning once a process, and not in workers: the process that started them has logged it."""
    if message not in _said:
        _said.add(message)
        log.log(logging.DEBUG if multiprocessing.parent_process() else logging.WARNING, "%s", message)


_said: set[str] = set()
