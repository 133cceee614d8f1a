"""Files below a store that none of its parts lists."""

import re
from collections.abc import Mapping
from typing import Final

from ..errors import LogitStoreError, ManifestInvalid
from ..format.constants import (
    COMMITS,
    GROUPS,
    LOCK,
    LOG,
    PRIVATE,
    ROOT_METADATA,
    SAMPLES,
    SEAL,
    SEAL_TABLE,
    SPEC,
    STAGING,
)
from ..parts.journal import Seal, is_part
from ..parts.root import Root, unsealed_parts

MAX_STRAYS: Final = 1000
"""Strays that are listed; the search ends with the last of them."""


_ZARR_METADATA = frozenset({ROOT_METADATA, ".zarray", ".zgroup", ".zattrs", ".zmetadata"})
"""Names that make a folder an array or a group for a plain reader, of any version of Zarr."""


_COMMIT_KEY = re.compile(rf"{COMMITS}/(0|[1-9]\d*)-(0|[1-9]\d*)\.json")


_LOG_KEY = re.compile(rf"{LOG}/(0|[1-9]\d*)\.json")


# Strays


def find_strays(
    root: Root, seals: Mapping[str, Seal], files: list[str]
) -> tuple[list[str], list[LogitStoreError]]:
    """The files that nothing knows: those that no reader sees, and, as problems, those that plain readers take for data.

    seals: of the sealed parts whose seal is intact; nothing is said of the others. files: keys of all files.
    At most `MAX_STRAYS` of them.
    """
    known = {name: _known_keys(root, name, seal) for name, seal in seals.items()}
    ignored = {*root.later, *(record.part for record in root.records if record.part not in seals)}
    unsealed = set(unsealed_parts(root))
    strays: list[str] = []
    problems: list[LogitStoreError] = []
    for key in files:
        part = _part_of(key)
        inner = key if part is None else key[len(part) + 1 :]
        if part in ignored or _is_working_file(inner):
            continue
        keys = _ROOT_KEYS if part is None else known.get(part, frozenset())
        # None: of a part that was begun, or whose metadata cannot be read, one goes by the form of the names.
        if part in unsealed or keys is None:
            if _has_form_of_part(inner):
                continue
        elif inner in keys or (part is None and _LOG_KEY.fullmatch(inner)):
            continue
        if _is_seen_by_zarr(inner, seals.get(part) if part else None):
            problems.append(
                ManifestInvalid(
                    str(root.path / key),
                    expected="files that a seal lists",
                    found="one that none lists, and that plain readers of Zarr take for a part of the store",
                    remedy="move it away; logitstore itself does not read it",
                )
            )
        else:
            strays.append(key)
        if len(strays) + len(problems) >= MAX_STRAYS:
            break
    return strays, problems


_ROOT_KEYS = frozenset({ROOT_METADATA, *(f"{group}/{ROOT_METADATA}" for group in GROUPS)})


def _part_of(key: str) -> str | None:
    """The part that a file stands in, by its name; None for a file of the root.

    >>> _part_of("samples/label/c.0"), _part_of("teachers/wide/zarr.json"), _part_of("teachers/zarr.json")
    ('samples', 'teachers/wide', None)
    """
    pieces = key.split("/")
    depth = 1 if pieces[0] == SAMPLES else 2
    name = "/".join(pieces[:depth])
    return name if is_part(name) and len(pieces) > depth else None


def _known_keys(root: Root, name: str, seal: Seal) -> set[str] | None:
    """Keys of every file of a sealed part, relative to it; None where its metadata cannot be read."""
    known = {*seal.files, SEAL}
    if seal.arrays:
        known.add(SEAL_TABLE)
        try:
            part = root.part(name)
            _ = part.table  # as long as there are blocks: a seal cannot ask for more keys than it has bytes
        except LogitStoreError:
            return None
        for view in range(seal.views):
            for block in range(seal.blocks):
                known.add(f"{COMMITS}/{view}-{block}.json")
                known.update(part.layouts[array].shard_key(view, block) for array, _ in seal.arrays)
    return known


def _is_working_file(key: str) -> bool:
    """Whether a key, relative to a part or to the root, is one of those that writers work with."""
    return key.startswith((f"{STAGING}/", LOCK))


def _has_form_of_part(key: str) -> bool:
    """Whether a key, relative to a part, is one that a writer may have put.

    >>> [_has_form_of_part(key) for key in ("peak/c.0.1", "__logitstore__/commits/0-1.json", "peak/c.01", "x")]
    [True, True, False, False]
    """
    if key in {SPEC, SEAL, SEAL_TABLE, ROOT_METADATA} or _COMMIT_KEY.fullmatch(key):
        return True
    return bool(re.fullmatch(r"[a-z][a-z0-9_]*/(zarr\.json|c(\.(0|[1-9]\d*))+)", key))


def _is_seen_by_zarr(key: str, seal: Seal | None) -> bool:
    """Whether a plain reader would take a file, by its key relative to a part or the root, for metadata or data."""
    folder, _, name = key.rpartition("/")
    if PRIVATE in folder.split("/"):
        return False
    of_array = seal is not None and f"{folder}/{ROOT_METADATA}" in seal.files
    return name in _ZARR_METADATA or (of_array and bool(re.match(r"c(\.|$)", name)))
