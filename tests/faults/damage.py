"""A store for trials of damage: its numbers, its shards, and a writer that makes it whole again.

Everything in it follows from its arguments, so that a store that was damaged, repaired and written again must be
the same bytes. The trials run in interpreters of their own (`children.apart`): under pytest every annotation of the
package is checked at every call, and trials make thousands of calls.
"""

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from support import stores
from support.stores import Teacher

from logitstore.storage.api import Store, open_store
from logitstore.storage.format.constants import PRIVATE, SEAL_TABLE
from logitstore.storage.format.metadata import ArrayLayout
from logitstore.storage.format.shard import CRC_BYTES
from logitstore.storage.parts.part_reader import PartReader


@dataclass(frozen=True)
class Case:
    """A store of which everything is known, and how to write it."""

    path: Path
    """Where it is."""
    rows: int = 11
    block_rows: int = 4
    classes: int = 5
    teachers: Mapping[str, Teacher] | None = None
    clustering: bool = True
    store_inputs: bool = True
    names: bool = True
    input_dtype: str = "uint8"
    seed: int = 0

    @property
    def _teachers(self) -> Mapping[str, Teacher]:
        if self.teachers is not None:
            return self.teachers
        teachers = {
            "wide": Teacher(views=2),
            "deep": Teacher(encoding="float32", augmented=True),
            "codes": Teacher(encoding={"max_kl": 1e-2}),
            "largest": Teacher(encoding={"top_k": 2}),
        }
        if self.rows > 1:  # a basis needs rows that differ
            teachers["turned"] = Teacher(encoding={"transform": {"max_kl": 1e-2, "temperatures": [1.0]}})
        return teachers

    def write(self) -> Store:
        """Write the store, or what is missing of it."""
        store = stores.make(
            self.path,
            rows=self.rows,
            classes=self.classes,
            block_rows=self.block_rows,
            teachers=self._teachers,
            input_dtype=self.input_dtype,
            store_inputs=self.store_inputs,
            names=self.names,
            seed=self.seed,
            exist_ok=True,
        ).store
        if self.clustering:
            with mock.patch("os.fsync"):
                stores.add_clustering(store, classes=self.classes)
        return store

    @cached_property
    def shards(self) -> dict[str, "Shard"]:
        """Every shard by its key, taken when first asked for."""
        return shards_of(open_store(self.path))

    @cached_property
    def numbers(self) -> list[bytes]:
        """Every number of the store, read when first asked for."""
        return stores.read_everything(self.path)

    @cached_property
    def _affected(self) -> dict[str, list[bytes]]:
        return {}

    def numbers_of(self, key: str) -> list[bytes]:
        """What `read` gives of a file that is intact, read when first asked for."""
        if key not in self._affected:
            self._affected[key] = self.read(key)
        return self._affected[key]

    @cached_property
    def parts(self) -> list[str]:
        """Names of the sealed parts, taken when first asked for."""
        return [record.part for record in open_store(self.path).root.records]

    def read(self, key: str) -> list[bytes]:
        """Every number that a file has to do with: its rows, its array or its part; for a file of the root, the seals.

        Raises the errors that a user would get.
        """
        shards, parts = self.shards, self.parts
        store = open_store(self.path)
        part_name = part_of(key)
        if part_name is None:
            return [store.root.part(name).digest.encode() for name in parts]
        part = store.root.part(part_name)
        reader = PartReader(part, store.root.grid)
        if key in shards:
            shard = shards[key]
            return [reader.read(shard.layout.name, store.root.grid.rows(shard.block), shard.view).tobytes()]
        if kind_of(key, shards) == "small":
            return [part.small(key.split("/")[-2]).tobytes()]
        found = [repr(part.spec).encode()]
        for name, layout in part.layouts.items():
            if not layout.is_block_array:
                found.append(part.small(name).tobytes())
            else:
                for view in range(part.seal.views):
                    found.append(reader.read(name, slice(None), view).tobytes())
        return found

    @cached_property
    def whole(self) -> dict[str, bytes]:
        """Every file as it must be, by key; read when first asked for."""
        return stores.tree(self.path)

    def put_back(self, keys: "set[str] | None" = None) -> None:
        """Make files (all of them when None) what they were, and take away what was not there."""
        there = set(stores.tree(self.path))
        for key in there - set(self.whole) if keys is None else ():
            (self.path / key).unlink() if not key.endswith("/") else (self.path / key).rmdir()
        for key in set(self.whole) if keys is None else keys:
            file = self.path / key
            file.parent.mkdir(parents=True, exist_ok=True)
            if not file.is_file() or file.read_bytes() != self.whole[key]:
                file.write_bytes(self.whole[key])


# What a file is, and which read uses it


@dataclass(frozen=True)
class Shard:
    """The place of a shard."""

    part: str
    layout: ArrayLayout
    view: int
    block: int
    payload_spans: list[tuple[int, int]]
    """First byte and byte after the last of each inner chunk's payload; after each come four bytes of crc32c."""


def _payload_spans(
    store: Store, part: str, layout: ArrayLayout, view: int, block: int
) -> list[tuple[int, int]]:
    """Where the payloads lie in a shard that is intact, by its own index."""
    data = store.root.part(part).folder.read(layout.shard_key(view, block))
    chunks = -(-len(store.root.grid.rows(block)) // layout.chunk_rows)
    index = np.frombuffer(data[-16 * layout.chunks_per_shard - CRC_BYTES : -CRC_BYTES], "<u8").reshape(-1, 2)
    return [(int(start), int(start + length) - CRC_BYTES) for start, length in index[:chunks]]


def shards_of(store: Store) -> dict[str, Shard]:
    """Every shard of every sealed part, by key."""
    found = {}
    for record in store.root.records:
        part = store.root.part(record.part)
        for view in range(part.seal.views):
            for block in range(part.seal.blocks):
                for name, _ in part.seal.arrays:
                    layout = part.layouts[name]
                    spans = _payload_spans(store, record.part, layout, view, block)
                    found[f"{record.part}/{layout.shard_key(view, block)}"] = Shard(
                        record.part, layout, view, block, spans
                    )
    return found


def kind_of(key: str, shards: Mapping[str, Shard]) -> str:
    """Which class of file a key is of: "shard", "small", "record", "seal", "table", "log", "spec", "zarr.json"."""
    if key in shards:
        return "shard"
    name = key.rpartition("/")[2]
    if f"{PRIVATE}/commits/" in key:
        return "record"
    if f"{PRIVATE}/log/" in key:
        return "log"
    if key.endswith(SEAL_TABLE):
        return "table"
    return {"seal.json": "seal", "spec.json": "spec", "zarr.json": "zarr.json"}.get(name, "small")


def part_of(key: str) -> str | None:
    """The part in which a file stands; None for a file of the root."""
    pieces = key.split("/")
    depth = 1 if pieces[0] == "samples" else 2
    return None if pieces[0] == PRIVATE or len(pieces) <= depth else "/".join(pieces[:depth])


@contextlib.contextmanager
def unguarded(*targets: tuple[str, Any]) -> Any:
    """With guards of the package taken out: each target, by its dotted name, is replaced."""
    with contextlib.ExitStack() as stack:
        for name, replacement in targets:
            stack.enter_context(mock.patch(f"logitstore.storage.{name}", replacement))
        yield


def unchecked_chunks(*_: Any) -> None:
    """`shard.check_crc32c`, as it would be without its look at the checksums: a guard that is taken out."""
