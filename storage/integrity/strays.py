"""Strays: files below a store that no seal, record or log lists."""

import re
from collections.abc import Mapping
from typing import Final

from ..errors import LogitStoreError, ManifestInvalid
from ..format.constants import (
    CARD_FILE,
    LOCK,
    LOG,
    PRIVATE,
    ROOT_METADATA,
    SAMPLES,
    SEAL,
    SEAL_TABLE,
    STAGING,
)
from ..parts.journal import Seal, commit_key
from ..parts.log import ROOT_FILES, is_part
from ..parts.removal import PART_KEY
from ..parts.root import Root, unsealed_parts

MAX_STRAYS: Final = 1000
"""Strays that are listed; the search ends with the last of them."""
_ZARR_METADATA = frozenset({ROOT_METADATA, ".zarray", ".zgroup", ".zattrs", ".zmetadata"})
"""Names that make a folder an array or a group for a plain reader, of any version of Zarr."""
_LOG_KEY = re.compile(rf"{LOG}/(0|[1-9]\d*)\.json")


_BESIDE: Final = frozenset({CARD_FILE, "README.md", ".gitattributes"})
"""Files of the root that are for people, or for the hub that a store is published on. No reader needs them."""
_OF_TOOLS: Final = (".cache/huggingface/", ".git/")
"""Folders of the root that belong to the tools by which a store was fetched."""


def find_strays(
    root: Root, seals: Mapping[str, Seal], files: list[str]
) -> tuple[list[str], list[LogitStoreError]]:
    """Find strays: the keys of those that no reader sees, and errors of those that plain readers take for data.

    seals: of the sealed parts whose seal is intact; the other sealed parts are passed over. files: keys of all files.
    At most `MAX_STRAYS` of them.
    """
    known: dict[str, set[str] | None] = {name: _known_keys(root, name, seal) for name, seal in seals.items()}
    known |= dict.fromkeys([*unsealed_parts(root), *root.gone])
    ignored = {*root.later, *(record.part for record in root.records)} - set(seals)
    strays: list[str] = []
    errors: list[LogitStoreError] = []
    for key in files:
        part = _part_of(key)
        inner = key if part is None else key[len(part) + 1 :]
        if part in ignored or inner.startswith((f"{STAGING}/", LOCK)):  # the files that writers work with
            continue
        if part is None:
            is_known = inner in ROOT_FILES or _LOG_KEY.fullmatch(inner) is not None
        else:
            # None: in a part that is unsealed or removed, or whose metadata are damaged, the form of a name decides.
            keys = known.get(part, set())
            is_known = PART_KEY.fullmatch(inner) is not None if keys is None else inner in keys
        if is_known:
            continue
        if _is_seen_by_zarr(inner, seals.get(part) if part else None):
            errors.append(
                ManifestInvalid(
                    str(root.path / key),
                    expected="a file that a seal lists",
                    found="a file that no seal lists and that plain readers of Zarr take for a part of the store",
                    remedy="move it away; logitstore itself does not read it",
                )
            )
        elif key not in _BESIDE and not key.startswith(_OF_TOOLS):
            strays.append(key)
        if len(strays) + len(errors) >= MAX_STRAYS:
            break
    return strays, errors


def find_remains(root: Root, files: list[str]) -> list[str]:
    """Return the parts that the log says are gone, and of which files are left. files: keys of all files."""
    there = {part for key in files if (part := _part_of(key)) and PART_KEY.fullmatch(key[len(part) + 1 :])}
    return sorted(there & root.gone.keys())


def _part_of(key: str) -> str | None:
    """Return the part in which a file stands, by its name; None for a file of the root.

    >>> _part_of("samples/label/c.0"), _part_of("teachers/wide/zarr.json"), _part_of("teachers/zarr.json")
    ('samples', 'teachers/wide', None)
    """
    pieces = key.split("/")
    depth = 1 if pieces[0] == SAMPLES else 2
    name = "/".join(pieces[:depth])
    return name if is_part(name) and len(pieces) > depth else None


def _known_keys(root: Root, name: str, seal: Seal) -> set[str] | None:
    """Return the key of every file of a sealed part, relative to it; None if its metadata are damaged."""
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
                known.add(commit_key(view, block))
                known.update(part.layouts[array].shard_key(view, block) for array, _ in seal.arrays)
    return known


def _is_seen_by_zarr(key: str, seal: Seal | None) -> bool:
    """Return whether a plain reader takes a file for metadata or data, by its key relative to its part."""
    folder, _, name = key.rpartition("/")
    if PRIVATE in folder.split("/"):
        return False
    of_array = seal is not None and f"{folder}/{ROOT_METADATA}" in seal.files
    return name in _ZARR_METADATA or (of_array and bool(re.match(r"c(\.|$)", name)))
