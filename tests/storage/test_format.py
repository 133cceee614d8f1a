"""The page docs/format-v1.md: every sentence is true, and every forbidden store is refused.

A store is walked with json, struct and hashlib alone and every sentence of the page that can be checked is:
the names and numbers that the page gives are read from its tables where that is possible. Then the layout
of arrays: written, read back, and refused where a word of it is changed.
"""

import json
import re
import struct
from collections.abc import Iterator
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st
from support import stores
from support.make_golden import GOLDEN, make_golden
from support.tree import ROOT

from logitstore.storage.api import open_store
from logitstore.storage.errors import (
    ConfigError,
    LimitExceeded,
    ManifestInvalid,
    NotAStoreError,
    UntrustedStoreError,
)
from logitstore.storage.format import constants
from logitstore.storage.format.codec import BLOSC, COLUMNS, RAW, ZSTD
from logitstore.storage.format.constants import DTYPES
from logitstore.storage.format.documents import canonical_json, check_name, parse_json, parse_spec
from logitstore.storage.format.grid import Grid
from logitstore.storage.format.layouts import block_array, check_layout
from logitstore.storage.format.metadata import ArrayLayout, RootAttributes
from logitstore.storage.integrity.verify import verify

PAGE = (ROOT / "docs" / "format-v1.md").read_text(encoding="utf-8")


def hexdigest(data: bytes) -> str:
    return sha256(data).hexdigest()


def canonical(value: object) -> bytes:
    """Canonical JSON as the page has it."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode() + b"\n"


def table(heading: str) -> list[list[str]]:
    """The cells of the table under a heading of the page, without its head."""
    section = PAGE.split(f"\n{heading}\n", 1)[1]
    rows = re.findall(r"^\|(.*)\|$", re.split(r"\n#", section, maxsplit=1)[0], flags=re.MULTILINE)
    return [[cell.strip() for cell in row.split("|")] for row in rows[2:]]


def names_in(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


class Walk:
    """A store as the page says it is: raises AssertionError at the first sentence that is not true."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.files = {key: data for key, data in stores.tree(path).items() if not key.endswith("/")}
        self.listed: set[str] = set()
        self.check_json()
        self.check_root()
        self.check_log()
        for part, seal in self.parts.items():
            self.check_part(part, seal)
        assert set(self.files) == self.listed, set(self.files) ^ self.listed

    def json(self, key: str) -> dict[str, Any]:
        self.listed.add(key)
        value: dict[str, Any] = json.loads(self.files[key])
        return value

    def check_json(self) -> None:
        for key, data in self.files.items():
            if key.endswith(".json"):
                assert canonical(json.loads(data)) == data, f"{key} is not canonical"
                assert b"NaN" not in data.replace(b'"NaN"', b""), key
                assert len(data) <= 1 << 20

    def check_root(self) -> None:
        root = self.json("zarr.json")
        assert root["node_type"] == "group" and root["zarr_format"] == 3
        self.root: dict[str, Any] = root["attributes"]["logitstore"]
        assert set(self.root) == {names_in(row[0])[0] for row in table("## Root")}
        assert self.root["format_version"] == "1.0"
        self.rows, self.classes = self.root["num_rows"], self.root["num_classes"]
        self.block_rows = self.root["block_rows"]
        assert self.rows >= 1 and self.classes >= 2
        assert self.block_rows & (self.block_rows - 1) == 0
        self.blocks = -(-self.rows // self.block_rows)
        for group in ("teachers", "clusters"):
            assert self.json(f"{group}/zarr.json") == {
                "attributes": {},
                "node_type": "group",
                "zarr_format": 3,
            }

    def check_log(self) -> None:
        root_files = ("zarr.json", "teachers/zarr.json", "clusters/zarr.json")
        first = self.json("__logitstore__/log/0.json")
        assert first == {"previous": None, "root": {key: hexdigest(self.files[key]) for key in root_files}}
        self.parts: dict[str, str] = {}
        self.digests = [hexdigest(self.files["__logitstore__/log/0.json"])]
        number = 1
        while (key := f"__logitstore__/log/{number}.json") in self.files:
            record = self.json(key)
            assert set(record) == {"part", "previous", "seal"}
            assert record["previous"] == self.digests[-1]
            assert re.fullmatch(r"samples|(teachers|clusters)/[a-z0-9][a-z0-9._-]{0,63}", record["part"])
            assert record["part"] not in self.parts
            self.parts[record["part"]] = record["seal"]
            self.digests.append(hexdigest(self.files[key]))
            number += 1

    def check_part(self, part: str, seal_digest: str) -> None:
        kind = {"samples": "samples", "teachers": "capture", "clusters": "clustering"}[part.split("/")[0]]
        attributes = self.json(f"{part}/zarr.json")["attributes"]["logitstore"]
        assert attributes == {"format_version": "1.0", "kind": kind, "required_features": []}
        private = f"{part}/__logitstore__"
        seal = self.json(f"{private}/seal.json")
        assert hexdigest(self.files[f"{private}/seal.json"]) == seal_digest
        assert set(seal) == {name for row in table("## Seals")[3:] for name in names_in(row[0])}
        spec = self.json(f"{private}/spec.json")
        assert set(spec) == {"identity", "notes"}
        assert seal["samples"] == (None if part == "samples" else self.parts["samples"])
        arrays = {
            key.split("/")[-2]: self.check_array(part, key)
            for key in sorted(self.files)
            if re.fullmatch(rf"{part}/[a-z_]+/zarr\.json", key)
        }
        self.check_names(part, kind, arrays)
        self.check_files(part, seal, arrays)
        self.check_table(part, seal, arrays)

    def check_names(self, part: str, kind: str, arrays: dict[str, dict[str, Any]]) -> None:
        """The arrays are those of the page's tables, with their dimensions and dtypes."""
        if kind == "clustering":
            sentence = PAGE.split("### Clusterings\n", 1)[1].split("\n## ", 1)[0]
            for name, meta in arrays.items():
                dimensions = ", ".join(meta["dimension_names"])
                dimensions += "," if len(meta["dimension_names"]) == 1 else ""
                assert f"`{name} ({dimensions})` {meta['data_type']}" in sentence.replace("\n", " ")
            return
        rows = {
            names_in(row[0])[0]: row
            for row in table("### Captures" if kind == "capture" else "### `samples`")
        }
        assert set(arrays) <= set(rows)
        assert {name for name, row in rows.items() if not row[3].startswith("optional")} <= set(arrays)
        for name, meta in arrays.items():
            wanted = [d for d in names_in(rows[name][1])]
            found = meta["dimension_names"]
            assert found == wanted or (name == "input" and found[0] == "row"), name
            assert meta["data_type"] in re.split(r", | or ", rows[name][2]), name
            fill = str(meta["fill_value"]).replace("-", "−")
            assert fill in rows[name][4].split(", "), name
            if "row" in wanted:
                assert meta["shape"][found.index("row")] == self.rows

    def check_array(self, part: str, key: str) -> dict[str, Any]:
        meta = self.json(key)
        plain = [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}]
        assert meta["chunk_key_encoding"] == {"name": "default", "configuration": {"separator": "."}}
        assert meta["data_type"] in DTYPES and "storage_transformers" not in meta
        assert len(meta["dimension_names"]) == len(meta["shape"])
        chunk = meta["chunk_grid"]["configuration"]["chunk_shape"]
        if "row" not in meta["dimension_names"]:
            assert meta["codecs"] == plain
            assert chunk[1:] == meta["shape"][1:]
            return meta
        (codec,) = meta["codecs"]
        assert codec["name"] == "sharding_indexed"
        inner = codec["configuration"]["chunk_shape"]
        assert codec["configuration"] == {
            "chunk_shape": inner,
            "codecs": plain,
            "index_codecs": plain,
            "index_location": "end",
        }
        axis = meta["dimension_names"].index("row")
        after = meta["shape"][axis + 1 :]
        assert chunk == [1] * axis + [self.block_rows, *after]
        row_bytes = int(np.prod(after)) * np.dtype(meta["data_type"]).itemsize
        run_rows = max(self.block_rows // 16, min(self.block_rows, 1024))
        largest = 1
        while largest * 2 * row_bytes <= 2 << 20 and largest * 2 <= run_rows:
            largest *= 2
        assert inner == [1] * axis + [largest, *after]
        return meta

    def check_files(self, part: str, seal: dict[str, Any], arrays: dict[str, dict[str, Any]]) -> None:
        wanted = {"zarr.json", "__logitstore__/spec.json"}
        for name, meta in arrays.items():
            wanted.add(f"{name}/zarr.json")
            if "row" not in meta["dimension_names"]:
                chunk, shape = meta["chunk_grid"]["configuration"]["chunk_shape"], meta["shape"]
                rest = ".0" * (len(shape) - 1)
                keys = [f"{name}/c.{i}{rest}" for i in range(-(-shape[0] // chunk[0]))]
                wanted |= set(keys)
                for key in keys:
                    data = self.files[f"{part}/{key}"]
                    assert google_crc32c.value(data[:-4]) == int.from_bytes(data[-4:], "little")
        assert seal["files"] == {key: hexdigest(self.files[f"{part}/{key}"]) for key in wanted}
        self.listed |= {f"{part}/{key}" for key in wanted}

    def check_table(self, part: str, seal: dict[str, Any], arrays: dict[str, dict[str, Any]]) -> None:
        """seal.bin by struct, from the page's table; each shard and commit record against it."""
        if not seal["arrays"]:
            assert (seal["views"], seal["blocks"], seal["seal_bin"]) == (0, 0, None)
            return
        key = f"{part}/__logitstore__/seal.bin"
        data = self.files[key]
        self.listed.add(key)
        assert seal["seal_bin"] == {"sha256": hexdigest(data), "size": len(data)}
        assert seal["blocks"] == self.blocks
        assert {name for name, _ in seal["arrays"]} == {
            name for name, meta in arrays.items() if "row" in meta["dimension_names"]
        }
        offset = 0
        for view in range(seal["views"]):
            for block in range(seal["blocks"]):
                objects = {}
                for name, chunks in seal["arrays"]:
                    size, digest, *sums = struct.unpack_from(f"<Q32s{chunks}I", data, offset)
                    offset += struct.calcsize(f"<Q32s{chunks}I")
                    self.check_shard(part, name, arrays[name], view, block, size, digest, sums)
                    objects[name] = {"size": size, "sha256": digest.hex(), "crc32c": sums}
                self.check_commit(part, view, block, objects)
        assert offset == len(data)

    def check_shard(
        self,
        part: str,
        name: str,
        meta: dict[str, Any],
        view: int,
        block: int,
        size: int,
        digest: bytes,
        sums: list[int],
    ) -> None:
        dimensions = meta["dimension_names"]
        axis = dimensions.index("row")
        place = [*([view] * axis), block, *([0] * (len(dimensions) - axis - 1))]
        key = f"{part}/{name}/c.{'.'.join(map(str, place))}"
        self.listed.add(key)
        data = self.files[key]
        assert (len(data), sha256(data).digest()) == (size, digest)
        inner = meta["codecs"][0]["configuration"]["chunk_shape"]
        chunk_rows = inner[axis]
        payload = int(np.prod(inner)) * np.dtype(meta["data_type"]).itemsize
        rows = min(self.block_rows, self.rows - block * self.block_rows)
        present = -(-rows // chunk_rows)
        index = struct.unpack(f"<{2 * len(sums)}Q", data[-16 * len(sums) - 4 : -4])
        for chunk, checksum in enumerate(sums):
            start = chunk * (payload + 4)
            if chunk >= present:
                assert index[2 * chunk : 2 * chunk + 2] == (2**64 - 1, 2**64 - 1) and checksum == 0
                continue
            assert index[2 * chunk : 2 * chunk + 2] == (start, payload + 4)
            assert google_crc32c.value(data[start : start + payload]) == checksum
            assert int.from_bytes(data[start + payload : start + payload + 4], "little") == checksum
        assert google_crc32c.value(data[-16 * len(sums) - 4 : -4]) == int.from_bytes(data[-4:], "little")
        assert len(data) == present * (payload + 4) + 16 * len(sums) + 4

    def check_commit(self, part: str, view: int, block: int, objects: dict[str, Any]) -> None:
        record = self.json(f"{part}/__logitstore__/commits/{view}-{block}.json")
        assert set(record) == {name for row in table("## Commit records") for name in names_in(row[0])}
        own = record.pop("self")
        assert own == hexdigest(canonical(record))
        assert record == {
            "view": view,
            "block": block,
            "rows": [block * self.block_rows, min((block + 1) * self.block_rows, self.rows)],
            "spec": hexdigest(self.files[f"{part}/__logitstore__/spec.json"]),
            "objects": objects,
        }


def some_stores(folder: Path) -> Iterator[stores.Made]:
    yield make_golden(folder / "golden.zarr")
    yield stores.make(folder / "floats.zarr", rows=32, block_rows=16, input_dtype="float32", names=False)
    yield stores.make(folder / "chunks.zarr", rows=4500, block_rows=2048, teachers={"wide": stores.Teacher()})


def test_the_page_tells_the_truth(tmp_path: Path) -> None:
    for made in some_stores(tmp_path):
        walk = Walk(made.path)
        assert made.store.digest == f"sha256:{walk.digests[-1]}"
        assert list(made.store.teachers) == [p.split("/")[1] for p in walk.parts if p.startswith("teachers/")]
        assert not [key for key in stores.tree(made.path) if key.endswith("/")]


def test_the_walk_notices_every_byte(tmp_path: Path) -> None:
    """Negative control: one bit of any file, and a stray file, are found by the walk itself."""
    path = make_golden(tmp_path / "store.zarr").path
    for number, key in enumerate(stores.files_of(path)):
        size = (path / key).stat().st_size
        bit = (number * 7919) % (8 * size)
        stores.flip(path / key, bit)
        with pytest.raises((AssertionError, ValueError, KeyError, struct.error)):
            Walk(path)
        stores.flip(path / key, bit)
    Walk(path)
    (path / "samples" / "stray").write_bytes(b"")
    with pytest.raises(AssertionError, match="stray"):
        Walk(path)


def test_digests_are_what_the_page_says(tmp_path: Path) -> None:
    made = stores.make(tmp_path / "store.zarr", rows=3, input_dtype="float32", teachers={})
    for row, digest in enumerate(made.store.samples.digests.tolist()):
        message = b"<f4\x003,2\x00" + made.inputs[row].astype("<f4").tobytes()
        assert digest == xxhash.xxh3_64_intdigest(message, seed=0)


def test_the_digest_of_an_earlier_record_is_the_store_as_it_was(tmp_path: Path) -> None:
    made = make_golden(tmp_path / "store.zarr")
    digests = Walk(made.path).digests
    assert list(open_store(made.path, expect=f"sha256:{digests[2]}").teachers) == ["wide"]
    assert list(open_store(made.path, expect=f"sha256:{digests[0]}").teachers) == []


# The golden store


def test_the_golden_store_reads_bit_for_bit(tmp_path: Path) -> None:
    made = make_golden(tmp_path / "store.zarr")
    store = open_store(GOLDEN)
    for name, dtype in (("wide", "float16"), ("deep", "float32"), ("special", "float16")):
        capture = store.teachers[name]
        for view in range(capture.num_views):
            assert capture.read(slice(None), view).tobytes() == made.centred(name, dtype)[view].tobytes()
            assert capture.peak(slice(None), view).tobytes() == made.logits[name][view].max(axis=1).tobytes()
    assert store.teachers["special"].classes.tolist() == [1, 3, -1]
    assert store.samples.inputs is not None
    assert np.array_equal(store.samples.inputs[:], made.inputs)
    assert np.array_equal(store.samples.labels, made.labels)
    assert store.class_names == [f"clàss {c}" for c in range(5)]
    assert store.clustering("wide-2x2").small("sets").tolist() == [[0, 2], [1, 3]]
    assert verify(GOLDEN, deep=True).exit_code == 0
    Walk(GOLDEN)


def test_the_golden_store_is_still_what_the_code_writes(tmp_path: Path) -> None:
    made = make_golden(tmp_path / "store.zarr")
    assert stores.tree(made.path) == stores.tree(GOLDEN)
    assert sum(len(data) for data in stores.tree(GOLDEN).values()) < 100 << 10


# JSON

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


@given(st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), JSON, max_size=4))
def test_canonical_json_is_one_spelling(value: dict[str, Any]) -> None:
    try:
        data = canonical_json(value)
    except UnicodeEncodeError:  # lone surrogates are no text
        return
    assert parse_json(data, "x") == value
    assert canonical_json(parse_json(data, "x")) == data == canonical(value)
    assert canonical_json(dict(reversed(list(value.items())))) == data


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (b'{"a":1,"a":2}\n', "14 bytes of JSON that are not spelled canonically"),
        (b'{"a":1}', "7 bytes of JSON that are not spelled canonically"),
        (b'{"a": 1}\n', "9 bytes of JSON that are not spelled canonically"),
        (b'{"b":1,"a":2}\n', "14 bytes of JSON that are not spelled canonically"),
        (b'{"a":1E5}\n', "10 bytes of JSON that are not spelled canonically"),
        (b'{"a":"\\u0041"}\n', "15 bytes of JSON that are not spelled canonically"),
        (b'\xef\xbb\xbf{"a":1}\n', "11 bytes of JSON that are not spelled canonically"),
        ('{"a":1}\n'.encode("utf-16"), "18 bytes of JSON that are not spelled canonically"),
        (b'{"a":"\\ud800"}\n', "15 bytes that do not parse (UnicodeEncodeError)"),
        (b'{"a":NaN}\n', "10 bytes that do not parse (ValueError)"),
        (b'{"a":-Infinity}\n', "16 bytes that do not parse (ValueError)"),
        (b'{"a":1e999}\n', "12 bytes that do not parse (ValueError)"),
        (b'{"a":' + b"9" * 5000 + b"}\n", "5007 bytes that do not parse (ValueError)"),
        (b"[1]\n", "a JSON list"),
        (b"null\n", "a JSON NoneType"),
        (b"", "0 bytes that do not parse (JSONDecodeError)"),
        (b'{"a":"\xff"}', "9 bytes that do not parse (UnicodeDecodeError)"),
    ],
)
def test_json_that_is_not_ours_is_refused(data: bytes, found: str) -> None:
    with pytest.raises(ManifestInvalid) as caught:
        parse_json(data, "file.json")
    assert str(caught.value) == (
        f"file.json: expected a JSON object as logitstore writes it, found {found}; "
        "run `logitstore verify` and restore the file from a copy"
    )


def test_json_over_a_mebibyte_is_refused() -> None:
    with pytest.raises(LimitExceeded, match="at most 1048576 bytes of JSON, found 1048590 bytes"):
        parse_json(b'{"a":"' + b"x" * (1 << 20) + b'"}      ', "file.json")


@pytest.mark.parametrize("opened", ["[", '{"":'])
def test_json_is_followed_to_a_depth_and_no_deeper(opened: str) -> None:
    def nested(levels: int) -> bytes:
        inner = opened * levels + ("0" if ":" in opened else "")
        return f'{{"a":{inner}{("]" if opened == "[" else "}") * levels}}}\n'.encode()

    assert set(parse_json(nested(31), "file.json")) == {"a"}
    for levels in (32, 900, 20_000, 200_000):
        with pytest.raises(LimitExceeded) as caught:
            parse_json(nested(levels), "file.json")
        assert str(caught.value) == (
            "file.json: expected at most 32 levels of JSON, found 33 or more; "
            "do not use this store: logitstore writes none like it"
        )


def test_keys_that_are_numbers_are_sorted_as_the_text_that_they_become() -> None:
    data = canonical_json({"classes": {10: "ten", 9: "nine", True: 1}})
    assert data == b'{"classes":{"10":"ten","9":"nine","true":1}}\n'
    assert parse_json(data, "x") == {"classes": {"10": "ten", "9": "nine", "true": 1}}
    with pytest.raises(ValueError, match="two keys with the same spelling"):
        canonical_json({"a": {1: 2, "1": 3}})


# Array metadata


@st.composite
def layout_arguments(draw: st.DrawFn) -> tuple[Any, ...]:
    """What an `ArrayLayout` is made from."""
    dtype = draw(st.sampled_from(sorted(DTYPES)))
    integer_fill = draw(st.sampled_from([0, 1] if dtype[0] == "u" else [0, -1]))
    fill = float("nan") if dtype.startswith("float") else integer_fill
    views, rows = draw(st.integers(1, 5)), draw(st.integers(1, 10_000))
    after = draw(st.lists(st.integers(1, 30), max_size=3))
    chunk_rows = 1 << draw(st.integers(0, 6))
    shard_rows = chunk_rows << draw(st.integers(0, 4))
    kind = draw(st.sampled_from(["small", "block", "views"]))
    names = [f"d{axis}" for axis in range(len(after))]
    if kind == "small":
        return "a", (rows, *after), dtype, ("class", *names), shard_rows, 0, fill
    codec = draw(st.sampled_from([RAW, ZSTD, BLOSC, COLUMNS]))
    if kind == "block":
        return "a", (rows, *after), dtype, ("row", *names), shard_rows, chunk_rows, fill, codec
    return "a", (views, rows, *after), dtype, ("view", "row", *names), shard_rows, chunk_rows, fill, codec


@given(layout_arguments())
def test_metadata_reads_back(arguments: tuple[Any, ...]) -> None:
    layout = ArrayLayout(*arguments)
    data = layout.to_bytes()
    again = ArrayLayout.from_bytes("a", data, "x")
    assert again.to_bytes() == data
    assert repr(again) == repr(layout)


def test_a_fill_value_of_nan_is_the_same_layout_on_every_python() -> None:
    """Python 3.13 compares dataclasses field by field, so that a NaN differs from itself, as this NaN does in any."""
    grid = Grid(10, 4)
    layout = block_array("capture", "logits", "float16", grid, views=1, row_shape=(3,), where="x")
    other = replace(layout, fill=float("nan"))
    assert vars(other) != vars(layout)  # negative control: what a comparison of the fields says
    check_layout(other, "capture", grid, 1, "x")
    with pytest.raises(ManifestInvalid):
        check_layout(replace(layout, fill=0), "capture", grid, 1, "x")
    assert layout != block_array("capture", "logits", "float16", grid, views=1, row_shape=(3,), where="x")


@given(layout_arguments(), st.data())
def test_changed_metadata_is_never_misread(arguments: tuple[Any, ...], data: st.DataObject) -> None:
    """One value of the JSON is changed: it is refused, or read as exactly what it then says."""
    value = json.loads(ArrayLayout(*arguments).to_bytes())
    places = list(leaves(value))
    path = data.draw(st.sampled_from(places))
    new = data.draw(st.sampled_from([None, -1, 0, 7, "blosc", [], {}, "float64", 2**70, 0.5, True]))
    holder = value
    for key in path[:-1]:
        holder = holder[key]
    holder[path[-1]] = new
    try:
        read = ArrayLayout.from_bytes("a", canonical(value), "x")
    except (UntrustedStoreError, ManifestInvalid):
        return
    assert canonical(json.loads(read.to_bytes())) == canonical(value)


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths of all values in a JSON value."""
    if path:
        yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from leaves(inner, (*path, key))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"data_type": "float64"}, UntrustedStoreError, "found 'float64' with metadata of another form"),
        ({"data_type": "string"}, UntrustedStoreError, "an array of format 1.1"),
        ({"codecs": [{"name": "numcodecs.pickle"}]}, UntrustedStoreError, "an array of format 1.1"),
        ({"storage_transformers": [{"name": "x"}]}, UntrustedStoreError, "an array of format 1.1"),
        ({"node_type": "group"}, UntrustedStoreError, "an array of format 1.1"),
        ({"zarr_format": 2}, UntrustedStoreError, "an array of format 1.1"),
    ],
)
def test_another_form_is_refused(change: dict[str, Any], error: type[Exception], message: str) -> None:
    layout = ArrayLayout("a", (2, 9, 3), "float16", ("view", "row", "class"), 4, 2, float("nan"))
    value = json.loads(layout.to_bytes()) | change
    with pytest.raises(error, match=re.escape(message)):
        ArrayLayout.from_bytes("a", canonical(value), "x")


def test_absurd_sizes_are_refused_before_anything_is_allocated() -> None:
    def read(layout: ArrayLayout) -> None:
        ArrayLayout.from_bytes("a", layout.to_bytes(), "x")

    with pytest.raises(LimitExceeded, match="at most 1073741824 bytes a shard, found"):
        read(ArrayLayout("a", (1 << 40, 1 << 20), "uint8", ("row", "x"), 1 << 20, 1 << 4))
    with pytest.raises(LimitExceeded, match="at most 67108864 bytes a chunk, found 134217728"):
        read(ArrayLayout("a", (1 << 20, 1 << 10), "uint8", ("row", "x"), 1 << 17, 1 << 17))
    with pytest.raises(LimitExceeded, match="at most 8 dimensions, found 9"):
        read(ArrayLayout("a", (1,) * 9, "uint8", ("row", *"abcdefgh"), 1, 1))
    with pytest.raises(ManifestInvalid, match="chunks that divide the shard, found 6 rows a shard, 4 rows"):
        read(ArrayLayout("a", (9,), "uint8", ("row",), 6, 4))


def test_the_limits_of_the_page_are_those_of_the_code() -> None:
    listed = {names_in(row[2])[0]: int(row[1].replace(",", "")) for row in table("## Limits of readers")}
    assert listed == {name: value for name, value in vars(constants).items() if name.startswith("MAX_")}


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        (ArrayLayout("a", (0, 3), "uint8", ("class", "x"), 4), "sizes of at least 1"),
        (ArrayLayout("a", (4, 0), "uint8", ("row", "x"), 4, 2), "sizes of at least 1"),
        (ArrayLayout("a", (4,), "uint8", ("row",), 4, 0), "sizes of at least 1"),
        (ArrayLayout("a", (4,), "uint8", ("class",), 0), "sizes of at least 1"),
        (ArrayLayout("a", (1 << 41,), "uint8", ("row",), 4, 2), "at most 1099511627776 elements"),
        (
            ArrayLayout("a", (1 << 40,), "uint8", ("class",), 4),
            "at most 16384 chunks of an array without rows",
        ),
        (
            ArrayLayout("a", (9,), "uint8", ("row",), 1 << 21, 1),
            "at most 1048576 chunks a shard, found 2097152",
        ),
        (ArrayLayout("a", (1, 65 << 20), "uint8", ("row", "x"), 1, 1), "at most 67108864 bytes a chunk"),
    ],
)
def test_sizes_that_no_array_has_are_refused(layout: ArrayLayout, message: str) -> None:
    with pytest.raises((ManifestInvalid, LimitExceeded), match=message):
        ArrayLayout.from_bytes("a", layout.to_bytes(), "x")


@pytest.mark.parametrize("name", ["", "A", "a b", "../a", "a/b", "__logitstore__", "é", "a" * 65, "a\n"])
def test_names_that_no_array_has_are_refused(name: str) -> None:
    layout = ArrayLayout("a", (4,), "uint8", ("class",), 4)
    with pytest.raises(UntrustedStoreError, match="expected an array of format"):
        ArrayLayout.from_bytes(name, layout.to_bytes(), "x")


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        (
            RootAttributes(1 << 41, 2, 1 << 22),
            "num_rows: expected at most 1099511627776, the limit of readers",
        ),
        (RootAttributes(9, (1 << 20) + 1, 4), "num_classes: expected at most 1048576, the limit of readers"),
        (
            RootAttributes(1 << 30, 2, 256),
            "blocks: expected at most 1048576, the limit of readers, found 4194304",
        ),
    ],
)
def test_a_store_that_no_reader_would_open_is_not_made(attributes: RootAttributes, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        attributes.to_bytes()
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    "change",
    [{"num_rows": 1 << 41}, {"num_classes": 1 << 21}, {"num_rows": 1 << 30}, {"block_rows": 1 << 31}],
)
def test_a_root_beyond_the_limits_is_refused(change: dict[str, Any]) -> None:
    value = json.loads(RootAttributes(9, 2, 4).to_bytes())
    value["attributes"]["logitstore"] |= change
    with pytest.raises(LimitExceeded, match="expected at most"):
        RootAttributes.from_bytes(canonical(value), "zarr.json")


@pytest.mark.parametrize(
    "value", [{"identity": []}, {"identity": {}, "notes": "x"}, {"identity": None}, {"identity": 1}]
)
def test_a_spec_of_other_types_is_refused(value: dict[str, Any]) -> None:
    with pytest.raises(ManifestInvalid, match="expected a JSON object, found"):
        parse_spec(canonical(value), "spec.json")
    assert parse_spec(b"{}\n", "spec.json") == ({}, {})


# The root, and names


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format_version": "2.0"}, "expected format version 1.x, found format version '2.0'"),
        ({"format_version": None}, "found format version None"),
        ({"num_rows": 0}, "num_rows: expected an integer of at least 1, found 0"),
        ({"num_classes": 1}, "num_classes: expected an integer of at least 2, found 1"),
        ({"num_rows": True}, "expected an integer of at least 1, found True"),
        ({"block_rows": 12}, "block_rows: expected a power of two, found 12"),
    ],
)
def test_a_root_that_is_wrong_is_refused(change: dict[str, Any], message: str) -> None:
    value = json.loads(RootAttributes(9, 2, 4).to_bytes())
    value["attributes"]["logitstore"] |= change
    with pytest.raises((ManifestInvalid, NotAStoreError), match=re.escape(message)):
        RootAttributes.from_bytes(canonical(value), "zarr.json")


def test_another_minor_version_and_unknown_keys_are_read() -> None:
    value = json.loads(RootAttributes(9, 2, 4).to_bytes())
    value["attributes"]["logitstore"] |= {"format_version": "1.7", "colour": "blue"}
    assert RootAttributes.from_bytes(canonical(value), "zarr.json") == RootAttributes(9, 2, 4)


@pytest.mark.parametrize("name", ["", "Wide", "../wide", ".wide", "a/b", "a" * 65, "ä", "wide\n"])
def test_names_that_could_be_paths_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="expected a name of 1 to 64 of a-z, 0-9"):
        check_name(name, "capture")
