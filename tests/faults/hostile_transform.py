"""Hostile captures in the transform encoding, of the store of `support.transformed`.

Ranks, dtypes and sizes of the basis and of codes, numbers that no writer stores, refinements out of range, and codes that
no row has. Everything is signed, the digest of the basis included: see `forge`.
"""

import hashlib
import json
import os
import struct
from collections.abc import Callable
from typing import Any, Final

import google_crc32c
import numpy as np
from support import transformed as known

from logitstore.storage.format.constants import TRANSFORM
from logitstore.storage.format.grid import Grid
from logitstore.storage.format.layouts import BASIS, block_array, small_array

from .forge import SHOWN, UNREADABLE, Forge, Kinds, change_values

KINDS: Final = Kinds()
PART: Final = "teachers/plain"
SPEC: Final = f"{PART}/__logitstore__/spec.json"
GRID: Final = Grid(known.ROWS, known.BLOCK_ROWS)
_ROWS: Final = ("plain: logits", "plain: dask", "stream")
"""Steps of the sandbox that decode rows."""
_NAMED: Final = ("plain: provenance",)
"""The step that reads the spec alone."""


def make(path: Any) -> None:
    """Make the store that is forged."""
    known.write(known.begin(path), "plain")


def digest_of(forge: Forge) -> str:
    """Return the digest of the basis as it now is, by the page: its shape and its bytes, array by array."""
    total = hashlib.sha256()
    for name in BASIS:
        shape = json.loads(forge.file(f"{PART}/{name}/zarr.json").read_bytes())["shape"]
        (chunk,) = forge.file(f"{PART}/{name}").glob("c.*")
        total.update(json.dumps([name, shape]).encode() + chunk.read_bytes()[:-4])
    return f"sha256:{total.hexdigest()}"


def note(forge: Forge, digest: Any) -> None:
    """Let the notes hold anything in the place of the digest of the basis; None for nothing."""
    notes = {} if digest is None else {"basis": digest}
    forge.put(SPEC, json.loads(forge.file(SPEC).read_bytes()) | {"notes": notes})


def lay(forge: Forge, name: str, *row_shape: int, **attributes: Any) -> None:
    """Give an array of rows another shape in its metadata alone."""
    layout = block_array(
        TRANSFORM, name, {"error": "float16"}.get(name, "uint16"), GRID,
        views=known.VIEWS, row_shape=row_shape, where=name, attributes=attributes,
    )  # fmt: skip
    forge.put(f"{PART}/{name}/zarr.json", layout.to_bytes())


# Ranks and sizes, in metadata that are otherwise those of a writer


def _small(**shapes: tuple[int, ...]) -> Callable[[Forge], None]:
    """Return a builder that gives small arrays other shapes, and the seal the names of their chunks."""

    def build(forge: Forge) -> None:
        listed: dict[str, str] = {}
        for name, shape in shapes.items():
            layout = small_array(TRANSFORM, name, shape)
            forge.put(f"{PART}/{name}/zarr.json", layout.to_bytes())
            chunks = min(64, -(-shape[0] // max(1, layout.shard_rows)))
            listed |= {layout.key(chunk): "0" * 64 for chunk in range(1, chunks)}
        forge.seal(PART, lambda seal: seal["files"].update(listed))

    return build


def _rows(name: str, *row_shape: int, **attributes: Any) -> Callable[[Forge], None]:
    """Return a builder that gives the rows of an array another shape."""
    return lambda forge: lay(forge, name, *row_shape, **attributes)


for _count in (1, 4, 2**14):
    KINDS.add(f"codes of {_count} components for a basis of 3", _rows("codes", _count))
for _name, _shapes in {
    "a basis of 1 component": {"basis": (1, 8), "step": (1,)},
    "a basis of more components than classes": {"basis": (9, 8), "step": (9,)},
    "a basis of other classes": {"basis": (3, 7), "centre": (7,), "weight": (7,)},
    "a basis of 2 GiB": {"basis": (1 << 14, 1 << 15), "step": (1 << 14,)},
    "a basis of 2**40 components": {"basis": (1 << 40, 8), "step": (1 << 40,)},
    "a basis of 2**40 classes": {"basis": (3, 1 << 40), "centre": (1 << 40,), "weight": (1 << 40,)},
    "steps of fewer components": {"step": (2,)},
    "steps of 2**31 components": {"step": (1 << 31,)},
    "a centre of fewer classes": {"centre": (1,)},
    "a centre of 2**31 classes": {"centre": (1 << 31,)},
    "weights of more classes": {"weight": (9,)},
}.items():
    KINDS.add(_name, _small(**_shapes))
for _name, _shape in {"3 dimensions": [3, 8, 1], "1 dimension": [24], "no components": [0, 8]}.items():
    KINDS.add(
        f"a basis of {_name}",
        lambda forge, shape=_shape: change_values(forge, f"{PART}/basis/zarr.json", shape=shape),
    )
for _array, _dtypes in {
    "basis": ("float16", "float64"), "step": ("float16",), "codes": ("uint8", "float32"), "refine": ("uint16",),
    "escape": ("uint8",), "error": ("float32",),
}.items():  # fmt: skip
    for _dtype in _dtypes:
        KINDS.add(
            f"{_array} in {_dtype}",
            lambda forge, array=_array, d=_dtype: change_values(
                forge, f"{PART}/{array}/zarr.json", data_type=d
            ),
        )


def _unlisted(name: str) -> Callable[[Forge], None]:
    """Return a builder that takes an array out of the seal."""

    def unlist(seal: dict[str, Any]) -> None:
        seal["files"] = {key: digest for key, digest in seal["files"].items() if not key.startswith(name)}

    return lambda forge: forge.seal(PART, unlist)


for _name in ("basis", "step", "codes", "refine", "escape"):
    KINDS.add(f"no array {_name}", _unlisted(f"{_name}/"))


@KINDS.one("a sparse chunk of a basis, of 1 TiB")
def _(forge: Forge) -> None:
    forge.last.append(lambda done: os.truncate(done.file(f"{PART}/basis/c.0.0"), 1 << 40))


# Codecs that state more than a chunk


def _chunk(array: str, payload: bytes) -> Callable[[Forge], None]:
    """Return a builder that puts a shard of one chunk, whose checksums fit."""

    def build(forge: Forge) -> None:
        data = payload + google_crc32c.value(payload).to_bytes(4, "little")
        index = struct.pack("<QQ", 0, len(data))
        data += index + google_crc32c.value(index).to_bytes(4, "little")
        layout = json.loads(forge.file(f"{PART}/{array}/zarr.json").read_bytes())
        assert layout["shape"][1] == known.ROWS
        key = f"c.0.0{'' if array == 'refine' else '.0'}"
        forge.shard(f"{PART}/{array}/{key}", data, [google_crc32c.value(payload)])

    return build


_BLOSC: Final = struct.pack("<4B3I", 2, 1, 0x94, 2, (2 << 30) - 16, 1 << 20, 64) + bytes(48)
_ZSTD: Final = b"\x28\xb5\x2f\xfd\xe0" + (512 << 20).to_bytes(8, "little") + b"\x02\x00\x10\x00"
KINDS.add("bomb: codes of 2 GiB by blosc", _chunk("codes", _BLOSC), UNREADABLE)
KINDS.add("bomb: refine of 512 MiB by zstd", _chunk("refine", _ZSTD), UNREADABLE)
KINDS.add("bomb: an escape of 512 MiB by zstd", _chunk("escape", _ZSTD), UNREADABLE)
KINDS.add("codes that are no blosc", _chunk("codes", b"no blosc"), UNREADABLE)


# Numbers of the basis


def _numbers(name: str, place: Any, value: float) -> Callable[[Forge], None]:
    """Return a builder that changes numbers of the basis, and the digest that the notes have of it."""

    def build(forge: Forge) -> None:
        values = known.known_basis().arrays()[name].copy()
        values[place] = value
        forge.small(PART, name, values.tobytes())
        note(forge, digest_of(forge))

    return build


for _name, _values in {
    "basis": (np.nan, np.inf, 3e38),
    "centre": (-np.inf,),
    "step": (np.nan, 3e38, 0.0, -0.25),
    "weight": (np.inf, -0.0),
}.items():
    for _value in _values:
        KINDS.add(f"{_value} in {_name}", _numbers(_name, 0, _value), differs=_NAMED)
KINDS.add("a smaller step", _numbers("step", 1, 0.0625), SHOWN, (*_ROWS, *_NAMED))
KINDS.add("another centre", _numbers("centre", 2, 1.0), SHOWN, (*_ROWS, *_NAMED))
for _digest in (7, "sha256:" + "0" * 64, "x" * 10_000):
    KINDS.add(
        f"notes: basis {str(_digest)[:12]!r}",
        lambda forge, digest=_digest: note(forge, digest),
        differs=_NAMED,
    )
KINDS.add("notes: no basis", lambda forge: note(forge, None), differs=_NAMED)


@KINDS.one("a basis without the digest that would fit")
def _(forge: Forge) -> None:
    forge.small(PART, "basis", (-known.known_basis().basis).tobytes())


# Numbers of rows


def _block(array: str, change: Callable[[Any], Any]) -> Callable[[Forge], None]:
    """Return a builder that changes the rows of the first block of view 0, as `encode` gives them."""

    def build(forge: Forge) -> None:
        rows = known.known_logits()[0, : known.BLOCK_ROWS]
        values = known.encoding().encode(rows, 0, "forged")[array].copy()
        change(values)
        forge.block(PART, array, values)

    return build


def _set(place: Any, value: Any) -> Callable[[Any], None]:
    return lambda values: values.__setitem__(place, value)


_ESCAPED: Final = known.FAR[0][1]
for _value in (121, 200, 254):
    KINDS.add(f"refine {_value}", _block("refine", _set(1, _value)), UNREADABLE)
for _value in (101, 120):  # beyond what a writer tries, and within the format
    KINDS.add(f"refine {_value}", _block("refine", _set(1, _value)), SHOWN, _ROWS)
KINDS.add("refine 255 in a row of codes", _block("refine", _set(1, 255)), UNREADABLE)
KINDS.add("refine 255 in all rows", _block("refine", _set(slice(None), 255)), UNREADABLE)
KINDS.add("refine 0 in an escaped row", _block("refine", _set(_ESCAPED, 0)), SHOWN, _ROWS)
KINDS.add("codes of the largest magnitude", _block("codes", _set(slice(None), 65535)), SHOWN, _ROWS)
KINDS.add("an escaped row of fill", _block("escape", _set(_ESCAPED, 65535)), UNREADABLE)
KINDS.add("an escaped row without a largest", _block("escape", _set(_ESCAPED, 9)), UNREADABLE)
KINDS.add("an escaped row of one class of fill", _block("escape", _set((_ESCAPED, 2), 65535)), UNREADABLE)
for _value in (np.nan, -1.0, np.inf):
    KINDS.add(f"error {_value}", _block("error", _set(1, _value)), UNREADABLE if _value != np.inf else SHOWN)


# Encodings and attributes


for _changes in (
    {"max_kl": 0}, {"max_kl": "1e-2"}, {"max_kl": 1e308}, {"temperatures": [0.5]}, {"temperatures": [1.0] * 100_000},
    {"calibration": []}, {"calibration": {"rows": 10**400, "seed": 0}}, {"peak": True}, {"kind": "transform "},
):  # fmt: skip
    KINDS.add(
        f"encoding: {str(_changes)[:50]}",
        lambda forge, changes=_changes: forge.spec(PART, encoding={**known.encoding().describe(), **changes}),
        differs=_NAMED,
    )
for _temperatures in ([4.0, 2.0, 1.0], [1, 2, 4], [1.0, 2.0], None):
    KINDS.add(f"error at temperatures {_temperatures}", _rows("error", 3, temperature=_temperatures))
KINDS.add("error at 17 temperatures", _rows("error", 17, temperature=[float(t) for t in range(1, 18)]))
for _scale in (0.5, -0.5, -1e308, None):
    KINDS.add(f"an escape scale of {_scale}", _rows("escape", 8, scale_factor=_scale, _FillValue=65535))
KINDS.add("an escape of other classes", _rows("escape", 7, scale_factor=-0.125, _FillValue=65535))
