"""A sealed part: metadata and small arrays, each checked against the digest that the log has of its seal.

    log        teachers/wide = sha256 of seal.json
    seal.json  sha256 of each small file, sizes and checksums of each shard (seal.bin)
    files      zarr.json of the part and its arrays, spec.json, chunks of small arrays

Blocks are read by `part_reader`.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from numpy.typing import NDArray

from ..backends.place import Place
from ..errors import LogitStoreError, ManifestInvalid, PartNotFound, UnsupportedFeature
from ..format.constants import (
    CAPTURE,
    ERROR_BUDGET,
    FEATURES,
    FORMAT_VERSION,
    INPUT_FILES,
    MAX_JSON_BYTES,
    NEWEST_VERSION,
    ROOT_METADATA,
    SAMPLES,
    SEAL,
    SEAL_TABLE,
    SPEC,
    TOP_K,
    TRANSFORM,
    VERSIONS,
)
from ..format.documents import invalid, parse_spec, texts
from ..format.grid import Grid
from ..format.layouts import check_part, features_of, form_of
from ..format.metadata import ArrayLayout, group_attributes, group_metadata
from ..format.shard import CRC_BYTES, decode_small
from .journal import Seal, SealTable, read_checked, read_table
from .log import LogRecord, is_gone

KINDS = {"samples": "samples", "teachers": "capture", "clusters": "clustering"}
"""First component of a part's name -> its kind."""

_SMALL = ("classes/c.0", "class_name/c.0")
"""Chunks that every reader of a part needs."""


@dataclass(frozen=True)
class Spec:
    """The identity and the notes of a part, as in its `spec.json`."""

    identity: Mapping[str, Any]
    """Teacher, augmentation, encoding, data …; a part is resumed only with the same identity."""
    notes: Mapping[str, Any]
    """Versions, device …; not compared."""


def part_metadata(kind: str, features: Sequence[str] = ()) -> bytes:
    """Return the `zarr.json` of a part, of the version of the format that has its features."""
    version = next((VERSIONS[feature] for feature in features if feature in VERSIONS), FORMAT_VERSION)
    attributes = {"format_version": version, "kind": kind, "required_features": list(features)}
    return group_metadata(attributes)


def part_metadatas(name: str) -> list[bytes]:
    """Return every `zarr.json` that a part of this name may have: one for each form of its kind."""
    kind = KINDS[name.partition("/")[0]]
    forms = {CAPTURE: (CAPTURE, ERROR_BUDGET, TOP_K, TRANSFORM), SAMPLES: (SAMPLES, INPUT_FILES)}.get(
        kind, (kind,)
    )
    return [part_metadata(kind, features_of(form)) for form in forms]


def begun_form(folder: Place, name: str) -> str:
    """Return the form of an unfinished part from its `zarr.json`, or from its arrays if that is lost."""
    kind = KINDS[name.partition("/")[0]]
    try:
        features = group_attributes(folder.read(ROOT_METADATA), name).get("required_features")
    except (FileNotFoundError, LogitStoreError):
        features = None
    known = {SAMPLES: frozenset({INPUT_FILES}), CAPTURE: FEATURES - {INPUT_FILES}}.get(kind, frozenset())
    if isinstance(features, list) and len(features) == 1 and features[0] in known:
        return str(features[0])
    return kind if features == [] else form_of(kind, folder.names())


class SealedPart:
    """A part that the log names, its metadata checked."""

    def __init__(self, folder: Place, record: LogRecord, grid: Grid, store: Place | None = None) -> None:
        """Open a part. store: the folder of its store. Raises ManifestInvalid, UntrustedStoreError or UnsupportedFeature."""
        self.folder = folder
        self._store = store
        self.name = record.part
        """Its name in the store: "teachers/wide"."""
        self.kind = KINDS[record.part.partition("/")[0]]
        self.digest = f"sha256:{record.seal}"
        """sha256 of its seal."""
        where = str(folder.path / SEAL)
        self._table: SealTable | None = None
        self._held: dict[str, bytes] = {}
        with self._unless_gone():
            self.seal = Seal.from_bytes(read_checked(folder, SEAL, record.seal), where)
        ahead = [key for key in self.seal.files if key.endswith(ROOT_METADATA) or key in (SPEC, *_SMALL)]
        if 0 < self.seal.table_size <= MAX_JSON_BYTES:
            ahead.append(SEAL_TABLE)
        with folder.read_ahead(ahead):
            self._open(grid)

    def _open(self, grid: Grid) -> None:
        features = self._check_attributes()
        arrays = [
            key.removesuffix("/zarr.json") for key in sorted(self.seal.files) if key.endswith("/zarr.json")
        ]
        self.layouts = {array: self._layout(array) for array in arrays}
        """Its arrays by name."""
        self.form = form_of(self.kind, self.layouts)
        """Its kind, or the encoding of a capture; determines its arrays."""
        if features != list(features_of(self.form)):
            where = str(self.folder.path / ROOT_METADATA)
            raise invalid(where, f"the features of its arrays, {self.form}", features)
        check_part(
            self.form,
            self.layouts,
            grid,
            str(self.folder.path),
            arrays=self.seal.arrays,
            shape=(self.seal.views, self.seal.blocks),
            table_bytes=self.seal.table_size,
            files=self.seal.files,
        )
        if self.folder.is_remote:
            # What every reader needs, and what has been read ahead.
            _ = self.spec
            if 0 < self.seal.table_size <= MAX_JSON_BYTES:
                _ = self.table
            self._held = {key: self._file(key) for key in _SMALL if key in self.seal.files}

    def __repr__(self) -> str:
        return f"<SealedPart {self.name!r}: {', '.join(self.layouts)}>"

    def _check_attributes(self) -> list[str]:
        """Return the features that the part requires. Raises UnsupportedFeature if one is unknown here."""
        where = str(self.folder.path / ROOT_METADATA)
        attributes = group_attributes(self._file(ROOT_METADATA), where)
        if attributes.get("kind") != self.kind:
            raise ManifestInvalid(
                where,
                expected=f"a part of kind {self.kind!r}",
                found=repr(attributes.get("kind"))[:40],
                remedy="run `logitstore verify`",
            )
        features = texts(attributes.get("required_features"), where, "required_features")
        lacking = sorted(set(features) - FEATURES)
        if lacking:
            raise UnsupportedFeature(
                where,
                expected=f"features that logitstore's format {NEWEST_VERSION} has here",
                found=", ".join(lacking),
                remedy="open this part with a newer logitstore; the other parts can be read",
            )
        return features

    def _file(self, key: str, most: int = MAX_JSON_BYTES) -> bytes:
        """Read a file that the seal lists, of at most `most` bytes, and check it."""
        if key not in self.seal.files:
            raise ManifestInvalid(
                str(self.folder.path / SEAL),
                expected=f"a digest of {key}",
                found="no digest",
                remedy="run `logitstore verify`",
            )
        with self._unless_gone():
            return self._held.get(key) or read_checked(self.folder, key, self.seal.files[key], most)

    def _layout(self, name: str) -> ArrayLayout:
        key = f"{name}/zarr.json"
        return ArrayLayout.from_bytes(name, self._file(key), str(self.folder.path / key))

    @cached_property
    def spec(self) -> Spec:
        """The identity and the notes of the part."""
        return Spec(*parse_spec(self._file(SPEC), str(self.folder.path / SPEC)))

    @contextlib.contextmanager
    def _unless_gone(self) -> Iterator[None]:
        """Turn the error of a lost file into that of a part which was removed since. Raises PartNotFound."""
        try:
            yield
        except ManifestInvalid:
            if not self.is_gone:
                raise
            raise PartNotFound(
                str(self.folder.path),
                expected="a sealed part",
                found="a part that `logitstore rm` has removed",
                remedy="choose another one; a copy of the store that was made before may have it still",
            ) from None

    @property
    def is_gone(self) -> bool:
        """Whether it was removed since it was opened, by the log as it is now."""
        return self._store is not None and is_gone(self._store, self.name)

    @property
    def table(self) -> SealTable:
        """Sizes and checksums of the shards, read on first use."""
        # No cached_property: in Python 3.11 a thread that reads one would stop all threads that read another.
        if self._table is None:
            with self._unless_gone():
                self._table = read_table(self.folder, self.seal)
        return self._table

    def absent_blocks(self) -> set[tuple[int, int]]:
        """Return (view, block) of every block that lacks a shard, by name alone.

        A whole store has none; `repair` removes torn shards, on a disk. A place that does not list its files, such as a web
        server, is taken as whole: nobody writes there, and a shard that is missing is an error where it is read.
        """
        if not self.folder.can_list:
            return set()
        return absent_blocks(self.folder, self.seal, [self.layouts[name] for name, _ in self.seal.arrays])

    def small(self, name: str) -> NDArray[Any]:
        """Return a small array (one without rows) as a whole. Raises PartNotFound for another name."""
        layout = self.layouts.get(name)
        if layout is None or layout.is_block_array:
            raise PartNotFound(
                self.name,
                expected="one of its small arrays",
                found=repr(name),
                remedy="look at the parts with `logitstore inspect`",
            )
        chunk_bytes = layout.shard_rows * layout.row_bytes + CRC_BYTES
        chunks = [self._file(key, chunk_bytes) for key in small_keys(layout)]
        return decode_small(layout, chunks, str(self.folder.path / name))


def absent_blocks(folder: Place, seal: Seal, layouts: Sequence[ArrayLayout]) -> set[tuple[int, int]]:
    """Return (view, block) of every block of a sealed part that lacks a shard, by name alone."""
    absent = set()
    for layout in layouts:
        there = set(folder.names(layout.name))
        for view in range(seal.views):
            for block in range(seal.blocks):
                if layout.shard_key(view, block).rpartition("/")[2] not in there:
                    absent.add((view, block))
    return absent


def small_keys(layout: ArrayLayout) -> list[str]:
    """Return the keys of a small array's chunks, relative to the part."""
    return [layout.key(chunk) for chunk in range(-(-layout.shape[0] // layout.shard_rows))]
