"""Hostile metadata, written to harm the process that opens a store.

Arrays of Zarr's format 2 and codecs that bring code, bombs, other forms and absurd sizes, JSON that no writer spells,
and false statements of a root, a part or a spec. Everything is signed: see `forge`.
"""

import gzip
import json
import struct
from collections.abc import Callable
from typing import Any, Final

import google_crc32c

from .forge import (
    GADGET,
    HARMLESS,
    LOGITS,
    PLAIN,
    REFUSED,
    SHARD,
    SHOWN,
    Forge,
    Kinds,
    change_values,
    list_file,
)

KINDS: Final = Kinds()

# Code: arrays of Zarr's format 2, and codecs, that bring some


def _version_2(forge: Forge, **changes: Any) -> None:
    """Make the logits an array of format 2 with a gadget for a chunk."""
    value = {
        "zarr_format": 2, "shape": [1], "chunks": [1], "dtype": "|O", "order": "C", "fill_value": 0,
        "compressor": None, "filters": [{"id": "pickle", "protocol": 5}], **changes,
    }  # fmt: skip
    forge.put(f"{LOGITS}/.zarray", value)
    forge.put(f"{LOGITS}/0", GADGET)
    forge.file(f"{LOGITS}/zarr.json").unlink()
    forge.seal("teachers/wide", lambda seal: seal["files"].pop("logits/zarr.json") and None)


for _name, _changes in {
    "filter pickle": {},
    "filters vlen-utf8 and pickle": {"filters": [{"id": "vlen-utf8"}, {"id": "pickle", "protocol": 5}]},
    "compressor pickle": {"filters": None, "compressor": {"id": "pickle"}, "dtype": "<f4"},
    "filter msgpack2": {"filters": [{"id": "msgpack2"}]},
    "filter json2": {"filters": [{"id": "json2"}]},
    "filter vlen-utf8": {"filters": [{"id": "vlen-utf8"}]},
    "filter vlen-array": {"filters": [{"id": "vlen-array", "dtype": "|O"}]},
    "no filter and dtype object": {"filters": None},
    "unknown filter": {"filters": [{"id": "evil_package:Codec"}]},
}.items():
    KINDS.add(f"format 2, {_name}", lambda forge, changes=_changes: _version_2(forge, **changes))


@KINDS.one("format 2 metadata that the seal lists")
def _(forge: Forge) -> None:
    _version_2(forge)
    forge.seal("teachers/wide", lambda seal: seal["files"].update({"logits/.zarray": "0" * 64}))


def _sharded(**changes: Any) -> list[dict[str, Any]]:
    """The codecs of the logits of the good store, some of the configuration changed."""
    configuration = {
        "chunk_shape": [1, 4, 5],
        "codecs": PLAIN,
        "index_codecs": PLAIN,
        "index_location": "end",
    }
    return [{"configuration": {**configuration, **changes}, "name": "sharding_indexed"}]


_CODECS: dict[str, Any] = {
    "numcodecs.pickle": _sharded(codecs=[{"name": "numcodecs.pickle", "configuration": {}}]),
    "numcodecs.json2": _sharded(codecs=[{"name": "numcodecs.json2", "configuration": {}}]),
    "numcodecs.zlib": _sharded(codecs=[*PLAIN[:1], {"name": "numcodecs.zlib", "configuration": {}}]),
    "vlen-utf8": _sharded(codecs=[{"name": "vlen-utf8"}]),
    "vlen-bytes": _sharded(codecs=[{"name": "vlen-bytes"}]),
    "gzip": _sharded(codecs=[*PLAIN[:1], {"name": "gzip", "configuration": {"level": 9}}]),
    "zstd": _sharded(codecs=[*PLAIN[:1], {"name": "zstd", "configuration": {"level": 0, "checksum": False}}]),
    "blosc": _sharded(codecs=[*PLAIN[:1], {"name": "blosc", "configuration": {"cname": "lz4"}}]),
    "transpose": _sharded(codecs=[{"name": "transpose", "configuration": {"order": [2, 1, 0]}}, *PLAIN]),
    "entry point": _sharded(codecs=[{"name": "evil_package.codecs:Codec", "configuration": {}}]),
    "optional codec": _sharded(codecs=[*PLAIN, {"name": "evil", "must_understand": False}]),
    "big endian": _sharded(codecs=[{"name": "bytes", "configuration": {"endian": "big"}}, PLAIN[1]]),
    "no checksum": _sharded(codecs=PLAIN[:1]),
    "shards in shards": _sharded(codecs=_sharded()),
    "compressed index": _sharded(index_codecs=[*PLAIN, {"name": "gzip", "configuration": {"level": 1}}]),
    "index at the start": _sharded(index_location="start"),
    "not sharded": PLAIN,
    "no codec": [],
    "codecs of no list": "pickle",
    "codec of no object": ["pickle"],
}
for _name, _codecs in _CODECS.items():
    KINDS.add(f"codec: {_name}", lambda forge, codecs=_codecs: forge.array(LOGITS, codecs=codecs))


def _bomb(forge: Forge, codec: dict[str, Any], data: bytes) -> None:
    forge.array(LOGITS, codecs=_sharded(codecs=[PLAIN[0], codec]))
    forge.shard(SHARD, data)


def zeros_in_gzip(size: int) -> bytes:
    """gzip of so many zero bytes, made of members of 1 MiB."""
    return gzip.compress(bytes(1 << 20), 9, mtime=0) * (size >> 20)


@KINDS.one("bomb: gzip")
def _(forge: Forge) -> None:
    _bomb(forge, {"name": "gzip", "configuration": {"level": 9}}, zeros_in_gzip(288 << 20))


@KINDS.one("bomb: zstd")
def _(forge: Forge) -> None:
    # A frame of one segment that states 512 MiB of content: a repeated byte, in blocks of 128 KiB.
    size = 512 << 20
    block = ((128 << 10) << 3 | 1 << 1).to_bytes(3, "little") + b"\0"
    last = ((128 << 10) << 3 | 1 << 1 | 1).to_bytes(3, "little") + b"\0"
    frame = b"\x28\xb5\x2f\xfd\xe0" + size.to_bytes(8, "little") + block * (size // (128 << 10) - 1) + last
    _bomb(forge, {"name": "zstd", "configuration": {"level": 0, "checksum": False}}, frame)


@KINDS.one("bomb: blosc header")
def _(forge: Forge) -> None:
    header = struct.pack("<4B3I", 2, 1, 0x21, 2, (2 << 30) - 1, 1 << 18, 64)
    _bomb(forge, {"name": "blosc", "configuration": {"cname": "lz4"}}, header + bytes(48))


@KINDS.one("bomb: vlen-utf8 item of 8 GiB")
def _(forge: Forge) -> None:
    _bomb(forge, {"name": "vlen-utf8"}, struct.pack("<II", 1, 0xFFFFFFFF) + b"xxxx")


# Metadata of other forms

_DTYPES = ["object", "string", "bool", "float64", "complex128", "r64", "variable_length_bytes", "", None, 7, [],
           {"name": "numpy.datetime64", "configuration": {"unit": "s"}},
           {"name": "fixed_length_utf32", "configuration": {"length_bytes": 1 << 40}},
           {"name": "structured", "configuration": {"fields": [["a", "object"]]}}]  # fmt: skip
for _dtype in _DTYPES:
    KINDS.add(
        f"dtype {json.dumps(_dtype)[:40]}",
        lambda forge, d=_dtype: change_values(forge, f"{LOGITS}/zarr.json", data_type=d),
    )


for _name, _changes in {
    "storage transformer": {
        "storage_transformers": [{"name": "evil", "configuration": {"url": "http://localhost:1"}}]
    },
    "no storage transformer, said aloud": {"storage_transformers": []},
    "unknown key": {"evil": {"must_understand": True}},
    "optional unknown key": {"evil": {"must_understand": False}},
    "chunk keys of format 2": {"chunk_key_encoding": {"name": "v2", "configuration": {"separator": "."}}},
    "chunk keys with slashes": {
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}}
    },
    "chunk keys that lead out": {
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/../../"}}
    },
    "another chunk grid": {"chunk_grid": {"name": "rectilinear", "configuration": {}}},
    "format 2 in zarr.json": {"zarr_format": 2},
    "a group in place of an array": {"node_type": "group"},
    "attributes of the array": {"attributes": {"_FillValue": 3, "scale_factor": 1e300}},
    "another fill value": {"fill_value": "0x7fc0"},
    "a fill value of 1e308": {"fill_value": 1e308},
    "dimension names of no text": {"dimension_names": [None, "row", ["class"]]},
    "no dimension names": {"dimension_names": []},
}.items():
    KINDS.add(_name, lambda forge, c=_changes: change_values(forge, f"{LOGITS}/zarr.json", **c))

_SHAPES: dict[str, Any] = {
    "2**50 rows": [1, 1 << 50, 5], "2**50 classes": [1, 11, 1 << 50], "2**62 views": [1 << 62, 11, 5],
    "2**70": [1, 1 << 70, 5], "a number of 4,000 digits": [1, 10**4000, 5], "zero rows": [1, 0, 5],
    "zero classes": [1, 11, 0], "negative": [1, -11, 5], "a float": [1, 11.0, 5], "text": [1, "11", 5],
    "true": [True, 11, 5], "null": [1, None, 5], "33 dimensions": [1] * 33, "no dimension": [],
    "an object": {"row": 11}, "lists": [[1], [11], [5]],
}  # fmt: skip
for _name, _shape in _SHAPES.items():
    KINDS.add(
        f"shape: {_name}",
        lambda forge, shape=_shape: change_values(forge, f"{LOGITS}/zarr.json", shape=shape),
    )


@KINDS.one("shape: 33 dimensions, with their names")
def _(forge: Forge) -> None:
    shape = [11] + [1] * 32
    _grid("samples/input", [4] + [1] * 32, [4] + [1] * 32, shape)(forge)
    change_values(
        forge, "samples/input/zarr.json", dimension_names=["row", *(f"input_{i}" for i in range(32))]
    )


def _grid(
    array: str, shard: list[Any], chunk: list[Any], shape: list[Any] | None = None
) -> Callable[[Forge], None]:
    """A builder that cuts an array anew, and shapes it where that is said."""

    def build(forge: Forge) -> None:
        key = f"{array}/zarr.json"
        grid = {"name": "regular", "configuration": {"chunk_shape": shard}}
        codecs = json.loads(forge.file(key).read_bytes())["codecs"]
        codecs[0]["configuration"]["chunk_shape"] = chunk
        change_values(forge, key, chunk_grid=grid, codecs=codecs, **({"shape": shape} if shape else {}))

    return build


KINDS.add("chunks of 0 rows", _grid(LOGITS, [1, 4, 5], [1, 0, 5]))
KINDS.add("shards of 0 rows", _grid(LOGITS, [1, 0, 5], [1, 0, 5]))
KINDS.add("chunks that do not divide the shard", _grid(LOGITS, [1, 4, 5], [1, 3, 5]))
KINDS.add("chunks of 2**40 bytes", _grid(LOGITS, [1, 1 << 38, 5], [1, 1 << 38, 5]))
KINDS.add("a shard index of 2**24 entries", _grid("samples/label", [1 << 24], [1]))
KINDS.add("a shard index of 2**40 entries", _grid("samples/label", [1 << 40], [1]))


@KINDS.one("a shard index of 2**24 entries that the seal lists")
def _(forge: Forge) -> None:
    _grid("samples/label", [1 << 24], [1])(forge)
    forge.seal(
        "samples",
        lambda seal: [a.__setitem__(1, 1 << 24) for a in seal["arrays"] if a[0] == "label"] and None,
    )


@KINDS.one("2**40 chunks of a small array")
def _(forge: Forge) -> None:
    _small_shape(forge, "teachers/wide/classes", [1 << 40], [1])


@KINDS.one("2**40 chunks of an array that the format does not know")
def _(forge: Forge) -> None:
    value = json.loads(forge.file("teachers/wide/classes/zarr.json").read_bytes())
    value["shape"], value["chunk_grid"]["configuration"]["chunk_shape"] = [1 << 40], [1]
    forge.put("teachers/wide/extra/zarr.json", value)
    forge.seal("teachers/wide", lambda seal: list_file(forge, seal, "teachers/wide", "extra/zarr.json"))


@KINDS.one("a chunk of 2**60 bytes of a small array")
def _(forge: Forge) -> None:
    _small_shape(forge, "clusters/wide-2x2/covariance", [1 << 30, 1 << 30], [1 << 30, 1 << 30])


@KINDS.one("33 arrays")
def _(forge: Forge) -> None:
    for number in range(33):
        forge.put(
            f"teachers/wide/extra{number}/zarr.json",
            forge.file("teachers/wide/classes/zarr.json").read_bytes(),
        )
        forge.seal(
            "teachers/wide",
            lambda seal, n=number: list_file(forge, seal, "teachers/wide", f"extra{n}/zarr.json"),
        )


def _small_shape(forge: Forge, array: str, shape: list[int], chunk: list[int]) -> None:
    grid = {"name": "regular", "configuration": {"chunk_shape": chunk}}
    change_values(forge, f"{array}/zarr.json", shape=shape, chunk_grid=grid)


# Shards: what lies in them, and what they say of it


def _index(forge: Forge, entries: list[tuple[int, int]]) -> None:
    data = forge.file(SHARD).read_bytes()
    footer = b"".join(struct.pack("<QQ", *entry) for entry in entries)
    forge.shard(SHARD, data[: -len(footer) - 4] + footer + google_crc32c.value(footer).to_bytes(4, "little"))


KINDS.add("a shard index that leads out of the shard", lambda forge: _index(forge, [(1 << 62, 44)]), HARMLESS)
KINDS.add("a shard index of 2**63 bytes", lambda forge: _index(forge, [(0, 1 << 63)]), HARMLESS)
KINDS.add("a shard index that overlaps itself", lambda forge: _index(forge, [(40, 44)]), HARMLESS)
KINDS.add("a shard whose chunk is absent", lambda forge: _index(forge, [(2**64 - 1, 2**64 - 1)]), HARMLESS)
KINDS.add(
    "a shard longer than the seal may say",
    lambda forge: forge.shard(SHARD, forge.file(SHARD).read_bytes() + bytes(9)),
)
KINDS.add("an empty shard", lambda forge: forge.shard(SHARD, b""))


def _sparse(key: str) -> Callable[[Forge], None]:
    """A builder that makes a file as long as the file system allows, of no bytes on the disk."""

    def build(forge: Forge) -> None:
        with forge.file(key).open("wb") as file:
            for size in ((1 << 63) - 1, 1 << 43, 1 << 40):
                try:
                    file.truncate(size)
                    return
                except OSError:
                    continue

    return lambda forge: forge.last.append(build)


KINDS.add("a sparse shard of up to 8 EiB", _sparse(SHARD))
KINDS.add(
    "a sparse shard of up to 8 EiB that the seal lists",
    lambda forge: (_stated_size(forge), _sparse(SHARD)(forge)),
)
KINDS.add("a sparse zarr.json", _sparse(f"{LOGITS}/zarr.json"))
KINDS.add("a sparse root", _sparse("zarr.json"))
KINDS.add("a sparse seal.bin", _sparse("teachers/wide/__logitstore__/seal.bin"))
KINDS.add("a sparse seal.json", _sparse("teachers/wide/__logitstore__/seal.json"))
KINDS.add(
    "a sparse record of the log",
    _sparse("__logitstore__/log/4.json"),
)
KINDS.add("a sparse chunk of a small array", _sparse("samples/class_name/c.0.0"))


def _stated_size(forge: Forge) -> None:
    key = "teachers/wide/__logitstore__/seal.bin"
    forge.put(key, struct.pack("<Q", (1 << 63) - 1) + forge.file(key).read_bytes()[8:])


# JSON


def _raw(key: str, data: bytes, name: str, outcome: str = REFUSED) -> None:
    KINDS.add(f"JSON: {name}", lambda forge: forge.put(key, data), outcome)


_SPEC = "teachers/wide/__logitstore__/spec.json"
_raw(_SPEC, b'{"identity":' + b"[" * 200_000 + b"]" * 200_000 + b"}\n", "200,000 levels")
_raw(_SPEC, b'{"identity":' + b'{"a":' * 200 + b"0" + b"}" * 200 + b"}\n", "200 levels")
_raw(f"{LOGITS}/zarr.json", b'{"attributes":{"a":"' + b"x" * (64 << 20) + b'"}}\n', "64 MiB of attributes")
_raw(
    _SPEC,
    b'{"identity":{"encoding":{"kind":"float16"},"views":2},"identity":{"encoding":{"kind":"float16"},"views":1}}\n',
    "duplicate keys",
)
_raw(_SPEC, b'{"identity":{"encoding":{"kind":"float16"},"x":NaN},"notes":{}}\n', "NaN")
_raw(_SPEC, b'{"identity":{"encoding":{"kind":"float16"},"x":1e999},"notes":{}}\n', "1e999")
_raw(
    _SPEC,
    b'{"identity":{"encoding":{"kind":"float16"},"x":' + b"9" * 100_000 + b'},"notes":{}}\n',
    "100,000 digits",
)
_raw(_SPEC, b'{"identity":{"encoding":{"kind":"float16"},"x":"\\ud800"},"notes":{}}\n', "lone surrogate")
_raw(_SPEC, b'\xef\xbb\xbf{"identity":{"encoding":{"kind":"float16"}},"notes":{}}\n', "byte order mark")
_raw(_SPEC, '{"identity":{"encoding":{"kind":"float16"}},"notes":{}}\n'.encode("utf-16"), "UTF-16")
_raw(_SPEC, b'{"identity":{"encoding":{"kind":"\xff"}},"notes":{}}\n', "bytes that are no UTF-8")
_raw(_SPEC, b'{ "identity" : {"encoding":{"kind":"float16"}},"notes":{}}\n', "another spelling")
_raw(_SPEC, b"[]\n", "a list")
_raw(_SPEC, b"", "nothing")
_raw("teachers/zarr.json", b'{"zarr_format":3,"node_type":"group"', "half a group")
_raw(
    "clusters/zarr.json",
    b'{"attributes":{"evil":1},"node_type":"group","zarr_format":3}\n',
    "a group with attributes",
)

for _name, _identity in {
    "encoding of text": {"encoding": "float16"}, "encoding without a kind": {"encoding": {}},
    "a kind that is a list": {"encoding": {"kind": ["float16"]}}, "an unknown kind": {"encoding": {"kind": "evil:Codec"}},
    "another kind than the array": {"encoding": {"kind": "float32"}}, "augmentation of text": {"augmentation": "os:system"},
    "first view of text": {"augmentation": {"first_view": "x"}}, "a negative first view": {"augmentation": {"first_view": -5}},
}.items():  # fmt: skip
    KINDS.add(f"spec: {_name}", lambda forge, i=_identity: forge.spec("teachers/wide", **i))
KINDS.add("spec: identity is a list", lambda forge: forge.put(_SPEC, {"identity": [["a", 1]], "notes": {}}))
KINDS.add("spec: notes are text", lambda forge: change_values(forge, _SPEC, notes="x"))
KINDS.add(
    "spec: of the samples, a list",
    lambda forge: forge.put("samples/__logitstore__/spec.json", {"identity": []}),
)

_PROVENANCE = ("wide: provenance",)
KINDS.add(
    "a factory in the provenance",
    lambda forge: forge.spec("teachers/wide", teacher={"factory": "this:s", "weights": "file:///etc/passwd"}),
    SHOWN,
    _PROVENANCE,
)
KINDS.add(
    "a URL in the provenance",
    lambda forge: forge.spec("teachers/wide", url="http://127.0.0.1:9/"),
    SHOWN,
    _PROVENANCE,
)

# The root


for _name, _attributes in {
    "2**50 rows": {"num_rows": 1 << 50}, "2**40 rows": {"num_rows": 1 << 40}, "2**50 classes": {"num_classes": 1 << 50},
    "2**40 rows a block": {"block_rows": 1 << 40}, "no rows": {"num_rows": 0}, "-1 rows": {"num_rows": -1},
    "11.0 rows": {"num_rows": 11.0}, "rows in text": {"num_rows": "11"}, "true classes": {"num_classes": True},
    "one row too many": {"num_rows": 12}, "2**40 rows in few blocks": {"num_rows": 1 << 40, "block_rows": 1 << 30},
    "blocks of 3 rows": {"block_rows": 3}, "version 2.0": {"format_version": "2.0"}, "version \\x1b": {"format_version": "1\x1b[31m"},
    "fewer classes than the arrays have": {"num_classes": 3}, "2**20 classes": {"num_classes": 1 << 20},
}.items():  # fmt: skip
    KINDS.add(f"root: {_name}", lambda forge, a=_attributes: forge.root(**a))
KINDS.add("root: an unknown key", lambda forge: forge.root(evil="os:system"), HARMLESS)


@KINDS.one("root: consolidated metadata that name other files")
def _(forge: Forge) -> None:
    foreign = {"../outside/secret": {"zarr_format": 3, "node_type": "array"}, "/etc": {"node_type": "group"}}
    consolidated = {"kind": "inline", "must_understand": False, "metadata": foreign}
    change_values(forge, "zarr.json", consolidated_metadata=consolidated)


@KINDS.one("a part with consolidated metadata")
def _(forge: Forge) -> None:
    change_values(
        forge, "teachers/wide/zarr.json", consolidated_metadata={"kind": "inline", "metadata": {"../x": {}}}
    )


def _part_attributes(**changes: Any) -> Callable[[Forge], None]:
    def build(forge: Forge) -> None:
        value = json.loads(forge.file("teachers/wide/zarr.json").read_bytes())
        value["attributes"]["logitstore"] |= changes
        forge.put("teachers/wide/zarr.json", value)

    return build


KINDS.add("a part of another kind", _part_attributes(kind="clustering"))
KINDS.add("features that are a number", _part_attributes(required_features=7))
KINDS.add("features that are text", _part_attributes(required_features="evil"))
KINDS.add("features that are lists", _part_attributes(required_features=[["evil"]]))
KINDS.add("a feature with escapes", _part_attributes(required_features=["\x1b]0;owned\x07"]))
