"""Rows of several stores put into one: the data set grew, or two machines did a half each.

    A   rows 0 … 5     ──▶  rows 0 … 5    ┐
    B   rows 0 … 3     ──▶  rows 6 … 9    ├ OUT: samples and captures, sealed
    C   rows 0 … 7     ──▶  rows 10 … 17  ┘

Codes and floats are those of the sources, bit for bit: rows are cut into blocks anew, and nothing is encoded again. Parts
whose codes mean different logits are refused (`same_parts`). A call that was killed is completed by the next one, to the same
bytes.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from ..backends.place import Place
from ..backends.remote import access_of, folder_at, folder_to_write
from ..errors import ConfigError, PartNotFound, RowMismatch, SpecMismatch
from ..format.constants import MAX_SHARD_BYTES, SAMPLES
from ..format.documents import check_name, shorten
from ..format.grid import plan_block_rows
from ..format.metadata import ArrayLayout, RootAttributes
from ..parts.reader import Samples
from ..parts.root import Root, create_root, join_root, open_root
from ..progress import Progress, silent
from .card_file import refresh_card
from .concatenated_part import layouts_of, padded, write_part
from .destination import check_room
from .same_parts import check_alike

if TYPE_CHECKING:
    from zarr.abc.store import Store as ZarrStore
else:
    ZarrStore = Any
_METADATA_BYTES: Final = 1 << 16
"""Bytes of a part beside its shards, for the estimate of the room that is needed."""


@dataclass(frozen=True)
class ConcatenatedPart:
    """A part of the new store."""

    part: str
    """Its name: "samples", "teachers/wide"."""
    bytes: int
    """Bytes of its shards in the sources together."""
    made: bool
    """Whether it was missing, or a part of it."""


@dataclass(frozen=True)
class Concatenated:
    """The result of a concatenation; of one with `dry_run`, what it would be."""

    sources: tuple[PurePath, ...]
    """The stores whose rows were taken, in order."""
    path: PurePath
    """The new store."""
    dry_run: bool
    """Whether nothing was written."""
    digest: str | None
    """ "sha256:…" of the new store; None where it is not made yet."""
    num_rows: int
    """Its rows."""
    rows: tuple[int, ...]
    """Rows of each source."""
    parts: tuple[ConcatenatedPart, ...]
    """Samples and captures, in the order of the first source."""

    @property
    def bytes(self) -> int:
        """Bytes of the shards of all parts, in the sources."""
        return sum(part.bytes for part in self.parts)


def concat_stores(
    sources: "Sequence[str | os.PathLike[str] | ZarrStore | Place]",
    destination: "str | os.PathLike[str] | Place",
    *,
    teachers: Sequence[str] | None = None,
    allow_duplicates: bool = False,
    dry_run: bool = False,
    storage_options: Mapping[str, Any] | None = None,
    destination_options: Mapping[str, Any] | None = None,
    follow_links: bool = False,
    progress: Progress = silent,
) -> Concatenated:
    """Put the rows of several stores, in their order, into one new sealed store.

    Ids, labels, inputs and digests are taken, and of each capture all views, bit for bit as they are stored. Sources are not
    changed. Clusterings are not taken: they follow from all rows. A call that was killed resumes when it is called again.

    sources: two or more paths or URLs. destination: a path, or the URL of a bucket, with nothing there, or with what an
    earlier call of the same sources left. teachers: captures that are taken; None for all, which every source must have.
    allow_duplicates: take rows of one id from several stores, and a store twice. dry_run: count, and write nothing.
    storage_options, destination_options: of the libraries that open the URLs. follow_links: read sources whose files are
    links, as for `open_store`; the new store has plain files.
    Raises SpecMismatch for stores that do not fit together, RowMismatch for an id in two of them, PartNotFound or
    StoreIncomplete for a capture that one lacks, NameTaken if the destination holds something else, StorageFull before
    anything is written to a disk without room, and StoreCorrupt for a damaged source.
    """
    access = access_of(storage_options, follow_links=follow_links)
    roots = [open_root(folder_at(source, access)) for source in _several(sources)]
    parts = {name: check_alike(roots, name) for name in _chosen(roots, teachers)}
    counts = tuple(root.attributes.num_rows for root in roots)
    _check_classes(roots)
    if not allow_duplicates:
        _check_apart(roots)
    layouts = {name: list(layouts_of(name, found)) for name, found in parts.items()}
    attributes = _attributes(roots, [layout for found in layouts.values() for layout in found])
    place = folder_to_write(destination, access_of(destination_options))
    root = join_root(place, attributes.num_rows, attributes.num_classes, attributes.block_rows)
    sizes = {name: sum(part.table.total_bytes() for part in found) for name, found in parts.items()}
    if root is None:
        check_room(place, sum(sizes.values()) + len(sizes) * _METADATA_BYTES)
    missing = {name for name in parts if root is None or not root.is_whole(name)}
    if not dry_run:
        root = root or create_root(place, attributes)
        for name, found in parts.items():
            write_part(root, roots, name, found, layouts[name], progress)
        refresh_card(root, made=bool(missing))
    return Concatenated(
        tuple(one.path for one in roots),
        place.path,
        dry_run,
        root.digest if root is not None and (not dry_run or not missing) else None,
        attributes.num_rows,
        counts,
        tuple(ConcatenatedPart(name, sizes[name], name in missing) for name in parts),
    )


def _several(sources: Any) -> list[Any]:
    if isinstance(sources, str | os.PathLike) or len(sources) < 2:
        found = repr(sources) if isinstance(sources, str | os.PathLike) else f"{len(sources)}"
        raise ConfigError(
            "sources", expected="two stores or more", found=found[:80], remedy="name the stores in order"
        )
    return list(sources)


def _chosen(roots: Sequence[Root], teachers: Sequence[str] | None) -> list[str]:
    """Return the parts that are taken. Raises PartNotFound, StoreIncomplete, ConfigError."""
    if isinstance(teachers, str):
        raise ConfigError(
            "teachers", expected="a list of names", found=repr(teachers), remedy=f"pass [{teachers!r}]"
        )
    known = [record.part for record in roots[0].records if record.part.startswith("teachers/")]
    if teachers is not None:
        wanted = {f"teachers/{check_name(name, 'teachers')}" for name in teachers}
        known = [name for name in known if name in wanted] + sorted(wanted - set(known))
    for root in roots:
        root.digest_of(SAMPLES)
        for name in known:
            root.digest_of(name)
        more = [record.part for record in root.records if record.part.startswith("teachers/")]
        if teachers is None and (only := [name for name in more if name not in known]):
            raise PartNotFound(
                f"{roots[0].path}: {only[0]}",
                expected="the captures of every source",
                found=f"none of this name, which {root.path} has",
                remedy="name the captures that all have with --teacher (teachers=[…])",
            )
    return [SAMPLES, *known]


def _check_classes(roots: Sequence[Root]) -> None:
    first, *others = roots
    for root in others:
        ours, theirs = first.attributes.num_classes, root.attributes.num_classes
        if ours != theirs:
            raise SpecMismatch(
                str(root.path),
                expected=f"{ours} classes, as in {first.path}",
                found=f"{theirs}",
                remedy="concatenate stores of the same classes",
            )


def _check_apart(roots: Sequence[Root]) -> None:
    """Refuse stores that have an id, or all their samples, in common. Raises RowMismatch."""
    remedy = "take the rows of one of them out, or allow both (--allow-duplicates)"
    seals = dict[str, PurePath]()
    for root in roots:
        seal = root.digest_of(SAMPLES)
        if seal in seals:
            raise RowMismatch(
                str(root.path),
                expected=f"other rows than those of {seals[seal]}",
                found="the same samples",
                remedy=remedy,
            )
        seals[seal] = root.path
    readers = [Samples(root).reader for root in roots]
    if any("id" not in reader.part.layouts for reader in readers):
        return
    width = max(reader.layout("id").row_bytes for reader in readers)
    ids = np.concatenate([padded(reader.read("id", slice(None)), width) for reader in readers])
    texts = ids.view(f"S{width}").ravel()  # padded with zero bytes, as these are
    order = np.argsort(texts, kind="stable")
    owner = np.repeat(np.arange(len(roots)), [root.attributes.num_rows for root in roots])[order]
    twice = (texts[order][1:] == texts[order][:-1]) & (owner[1:] != owner[:-1]) & (texts[order][1:] != b"")
    if len(found := np.flatnonzero(twice)):
        first, second = (roots[owner[int(found[0]) + one]].path for one in (0, 1))
        name = bytes(texts[order[int(found[0])]]).decode(errors="replace")
        raise RowMismatch(
            f"{second}: id {shorten(name)}",
            expected=f"ids that {first} does not have",
            found=f"{len(found):,} of its ids there" if len(found) > 1 else "this id there as well",
            remedy=remedy,
        )


def _attributes(roots: Sequence[Root], layouts: Sequence[ArrayLayout]) -> RootAttributes:
    """Return the sizes of the new store."""
    num_rows, classes = sum(root.attributes.num_rows for root in roots), roots[0].attributes.num_classes
    widest = max(4 * classes, *(layout.row_bytes for layout in layouts if layout.is_block_array))
    block_rows = min(plan_block_rows(num_rows, widest), max(1, MAX_SHARD_BYTES // widest))
    return RootAttributes(num_rows, classes, block_rows)
