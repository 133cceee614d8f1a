"""Stores below a folder or a URL, found by the names there, and described from their metadata alone.

    teachers/                  no store: its folders are looked into, down to `depth`
      mnist.zarr/              zarr.json and __logitstore__: a store, which is not looked into
      omniglot/store.zarr/
      other.zarr/              zarr.json alone: a group of somebody else's, which is not looked into

Of a store are read: its root, its log, and of samples and captures `seal.json`, `seal.bin` and `spec.json`.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any, Final

from ..backends.local import Folder
from ..backends.place import Place
from ..backends.plain_files import PlainFiles
from ..backends.remote import access_of, folder_at
from ..errors import ConfigError, LimitExceeded, LogitStoreError, NotAStoreError
from ..format.constants import PRIVATE, ROOT_METADATA, SAMPLES, SPEC
from ..format.documents import parse_spec
from ..integrity.checks import typed
from ..parts.card import card_of
from ..parts.journal import read_checked, read_table
from ..parts.root import Root, open_root, unsealed_parts
from ..parts.sealed_part import Spec
from .in_flight import LOCAL, REMOTE

DEPTH: Final = 3
"""Levels below the prefix that are looked into, unless the caller says otherwise."""
MOST_FOLDERS: Final = 10_000
"""Folders that are looked into; each takes a request."""
_ZARR: Final = frozenset({ROOT_METADATA, ".zgroup", ".zarray", ".zattrs", ".zmetadata"})
"""Names that make a folder a group or an array of Zarr."""
_FILES: Final = frozenset(
    [
        ".bin",
        ".csv",
        ".gz",
        ".html",
        ".ini",
        ".ipynb",
        ".json",
        ".jpg",
        ".lock",
        ".log",
        ".md",
        ".npy",
        ".npz",
        ".parquet",
        ".pdf",
        ".png",
        ".pt",
        ".pth",
        ".py",
        ".safetensors",
        ".svg",
        ".tar",
        ".toml",
        ".txt",
        ".yaml",
        ".yml",
        ".zip",
    ]
)
"""Suffixes of files, which an object store lists like folders: to look into each would take a request."""


@dataclass(frozen=True)
class Found:
    """A store that was found. What damage hides is None, or empty."""

    name: str
    """Its path below the prefix; "." for the prefix itself."""
    path: PurePath
    """Its path or URL."""
    num_rows: int | None = None
    """Rows."""
    num_classes: int | None = None
    """Classes."""
    teachers: tuple[tuple[str, str], ...] = ()
    """Name and kind of encoding of each sealed capture, in the order of their seals."""
    bytes: int | None = None
    """Bytes of the shards of samples and captures."""
    sealed: bool = False
    """Whether its samples are sealed, and no part is unfinished."""
    digest: str | None = None
    """Digest of the store."""
    title: str | None = None
    """The name on its card."""
    problem: LogitStoreError | None = None
    """Why it could not be read."""


def find_stores(
    prefix: "str | os.PathLike[str] | Place",
    *,
    depth: int = DEPTH,
    in_flight: int | None = None,
    storage_options: Mapping[str, Any] | None = None,
    follow_links: bool = False,
) -> list[Found]:
    """Find the stores under a folder or a URL that lists its files, ordered by name; no shard is read.

    depth: levels below the prefix that are looked into; 0 for the prefix alone. Links to folders are not followed.
    in_flight: requests at a time; 24 by default, and 4 on a disk. storage_options: of the library that opens a URL, as for
    `open_store`. follow_links: look through links, as Hugging Face's cache, DVC and git-annex lay them.
    Raises ConfigError for a prefix that is no folder or does not list its files, StorageError if it cannot be listed,
    LimitExceeded for more than `MOST_FOLDERS` folders.
    """
    if depth < 0:
        raise ConfigError("depth", expected="0 or more", found=str(depth), remedy="leave it out")
    top = folder_at(prefix, access_of(storage_options, follow_links=follow_links))
    if isinstance(top, PlainFiles) and (kind := top.kind()) != "a folder":
        raise ConfigError(
            str(top.path),
            expected="a folder, or a URL that lists its files",
            found=kind,
            remedy="correct the path",
        )
    most = in_flight or (LOCAL if isinstance(top, PlainFiles) else REMOTE)
    with ThreadPoolExecutor(most, "logitstore-list") as pool:
        stores, frontier, looked = list[str](), [""], 0
        for level in range(depth + 1):
            looked += len(frontier)
            if looked > MOST_FOLDERS:
                raise LimitExceeded(
                    str(top.path),
                    expected=f"at most {MOST_FOLDERS:,} folders",
                    found=f"{looked:,} down to level {level}",
                    remedy="name a folder further down, or lower --depth",
                )
            looks = list(pool.map(lambda name: _look(_sub(top, name)), frontier))
            stores += [name for name, below in zip(frontier, looks, strict=True) if below is None]
            frontier = [
                f"{name}/{inner}".lstrip("/")
                for name, below in zip(frontier, looks, strict=True)
                for inner in below or ()
            ]
        found = pool.map(lambda name: _described(_sub(top, name), name or "."), sorted(stores))
        return [one for one in found if one is not None]


def _sub(top: Place, name: str) -> Place:
    return top.sub(name) if name else top


def _look(place: Place) -> list[str] | None:
    """Return the names below a folder that may be folders to look into; None for a store. Raises ConfigError."""
    if not place.can_list:
        if place.exists(ROOT_METADATA):
            return None
        raise ConfigError(
            str(place.path),
            expected="a store, or a place that lists its files",
            found="neither: a web server does not list",
            remedy="name the URL of a store",
        )
    names = set(place.names())
    if ROOT_METADATA in names and PRIVATE in names:
        return None
    if names & _ZARR:
        return []
    if isinstance(place, Folder):
        return sorted(_folders(place))
    return sorted(name for name in names if not _is_skipped(name) and PurePath(name).suffix not in _FILES)


def _folders(folder: Folder) -> Iterable[str]:
    """Yield the names of the folders in a local one; links are passed over."""
    with folder.directory() as handle, os.scandir(handle) as entries:
        for entry in entries:
            if not _is_skipped(entry.name) and entry.is_dir(follow_symlinks=False):
                yield entry.name


def _is_skipped(name: str) -> bool:
    return name.startswith(".") or len(os.fsencode(name)) > 255


def _described(place: Place, name: str) -> Found | None:
    """Describe a store; None for a group of Zarr in which a store has not been begun."""
    try:
        root = open_root(place)
    except NotAStoreError:
        return None
    except (LogitStoreError, OSError) as error:
        return Found(name, place.path, problem=typed(error, str(place.path)))
    attributes = root.attributes
    known: dict[str, Any] = {
        "num_rows": attributes.num_rows,
        "num_classes": attributes.num_classes,
        "digest": root.digest,
    }
    try:
        return Found(name, place.path, **known, **_contents(root))
    except (LogitStoreError, OSError) as error:
        return Found(name, place.path, **known, problem=typed(error, str(place.path)))


def _contents(root: Root) -> Mapping[str, Any]:
    """Return the figures of the sealed parts of a store."""
    size, title, teachers = 0, None, list[tuple[str, str]]()
    for record in root.records:
        group, _, name = record.part.partition("/")
        if group not in (SAMPLES, "teachers"):
            continue
        folder, seal = root.folder.sub(record.part), root.seal(record.part)
        where = str(folder.path / SPEC)
        spec = Spec(*parse_spec(read_checked(folder, SPEC, seal.files.get(SPEC, "")), where))
        if seal.arrays:
            size += read_table(folder, seal).total_bytes()
        if group == SAMPLES:
            title = card_of(spec.notes, f"{root.path}: {SAMPLES}").get("name")
        else:
            teachers.append((name, _encoding(spec)))
    sealed = root.has(SAMPLES) and not unsealed_parts(root)
    return {"bytes": size, "title": title, "teachers": tuple(teachers), "sealed": sealed}


def _encoding(spec: Spec) -> str:
    """Return the kind of a capture's encoding, as its spec states it."""
    encoding = spec.identity.get("encoding")
    kind = encoding.get("kind") if isinstance(encoding, Mapping) else None
    return kind if isinstance(kind, str) else "unknown"


def exit_code(stores: Sequence[Found]) -> int:
    """Return the exit code of a list: that of the worst problem, 0 without one."""
    return max((one.problem.exit_code for one in stores if one.problem is not None), default=0)
