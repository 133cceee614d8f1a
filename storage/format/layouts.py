"""The arrays of each form of part, and how each is cut into shards and chunks.

Shape, shards, chunks and fill value of an array follow from its name, its dtype and the grid of the store. A writer
makes layouts here. A reader makes them again and compares: it believes no size that a store states.
"""

import math
import re
from collections.abc import Collection, Mapping, Sequence
from itertools import pairwise
from typing import Final

import numpy as np

from ..errors import LimitExceeded, ManifestInvalid
from .codec import BLOSC, COLUMNS, RAW, ZSTD
from .constants import (
    CAPTURE,
    ERROR_BUDGET,
    FEATURES,
    INPUT_DTYPES,
    INPUT_FILES,
    MAX_ARRAYS,
    MAX_BASIS_BYTES,
    MAX_CHUNK_BYTES,
    MAX_SEAL_TABLE_BYTES,
    MAX_SHARD_BYTES,
    MAX_TEMPERATURES,
    MAX_VIEWS,
    PRIVATE,
    ROOT_METADATA,
    SAMPLES,
    TEMPERATURES,
    TOP_K,
    TRANSFORM,
)
from .documents import beyond, invalid
from .grid import Grid, plan_chunk_rows
from .metadata import ArrayLayout

SMALL_CHUNK_BYTES: Final = 32 << 20
"""Most bytes of a chunk of a small array (unless a single element of its first dimension is larger)."""
_EVERY_CAPTURE: Final = {"peak": ("view", "row"), "seen": ("view", "row"), "classes": ("class",)}
_MEASURED: Final = {"error": ("view", "row", "temperature")}
_EVERY_SAMPLES: Final = {
    "source": ("row",),
    "digest": ("row",),
    "label": ("row",),
    "id": ("row", "id_width"),
    "class_name": ("class", "class_name_width"),
}
DIMENSIONS: Final[Mapping[str, Mapping[str, tuple[str, ...]]]] = {
    SAMPLES: _EVERY_SAMPLES,
    INPUT_FILES: {"file": ("row", "file_width"), "file_bytes": ("row",), **_EVERY_SAMPLES},
    CAPTURE: {"logits": ("view", "row", "class"), **_EVERY_CAPTURE},
    ERROR_BUDGET: {"logits": ("view", "row", "class"), **_MEASURED, **_EVERY_CAPTURE},
    TOP_K: {
        "index": ("view", "row", "k"),
        "logits": ("view", "row", "k"),
        "tail": ("view", "row", "figure"),
        **_MEASURED,
        **_EVERY_CAPTURE,
    },
    TRANSFORM: {
        "codes": ("view", "row", "component"),
        "refine": ("view", "row"),
        **_MEASURED,
        "escape": ("view", "row", "class"),
        **_EVERY_CAPTURE,
        "basis": ("component", "class"),
        "centre": ("class",),
        "step": ("component",),
        "weight": ("class",),
    },
    "clustering": {
        "covariance": ("class", "other_class"),
        "assignment": ("class",),
        "centres": ("cluster", "class"),
        "sets": ("cluster", "member"),
        "projected": ("class", "dimension"),
        "projected_centres": ("cluster", "dimension"),
    },
}
"""Dimensions of the arrays of each form of part. `input` of samples has as many as an input has.

The form of a part is its kind; of an encoded capture, the feature that a reader needs for it.
"""
DTYPES_OF: Final[Mapping[str, str]] = {
    "source": "int64",
    "digest": "uint64",
    "label": "int64",
    "id": "uint8",
    "file": "uint8",
    "file_bytes": "uint32",
    "class_name": "uint8",
    "peak": "float32",
    "seen": "uint64",
    "error": "float16",
    "tail": "float32",
    "codes": "uint16",
    "refine": "uint8",
    "escape": "uint16",
    "basis": "float32",
    "centre": "float32",
    "step": "float32",
    "weight": "float32",
    "classes": "int64",
    "covariance": "float32",
    "assignment": "int64",
    "centres": "float32",
    "sets": "int64",
    "projected": "float32",
    "projected_centres": "float32",
}
"""Dtypes, by Zarr's names, of the arrays that may have one only."""
_CHOICES: Final[Mapping[tuple[str, str], tuple[str, ...]]] = {
    (SAMPLES, "input"): INPUT_DTYPES,
    (CAPTURE, "logits"): ("float16", "float32"),
    (ERROR_BUDGET, "logits"): ("uint8", "uint16"),
    (TOP_K, "logits"): ("float16",),
    (TOP_K, "index"): ("uint16", "uint32"),
}
"""Dtypes of the other arrays, by form and name."""
_CODECS: Final[Mapping[tuple[str, str, str], str]] = {
    (ERROR_BUDGET, "logits", "uint8"): ZSTD,
    (ERROR_BUDGET, "logits", "uint16"): BLOSC,
    (TOP_K, "index", "uint16"): BLOSC,
    (TOP_K, "index", "uint32"): BLOSC,
    (TOP_K, "logits", "float16"): BLOSC,
    # Behind a file stand as many zeros as the longest file is longer.
    (INPUT_FILES, "file", "uint8"): ZSTD,
    (TRANSFORM, "codes", "uint16"): COLUMNS,
    (TRANSFORM, "error", "float16"): COLUMNS,
    (TRANSFORM, "refine", "uint8"): ZSTD,
    # Most chunks hold the fill value alone, of which zstd makes a third of the bytes that blosc makes.
    (TRANSFORM, "escape", "uint16"): ZSTD,
}
"""Codecs of inner chunks, by form, name and dtype; raw by default."""
_LARGEST_FILLS: Final = frozenset(
    {
        (ERROR_BUDGET, "logits"),
        (TOP_K, "index"),
        (TRANSFORM, "refine"),
        (TRANSFORM, "escape"),
    }
)
"""Arrays of unsigned integers, by form and name, whose fill value is the largest: 0 has a meaning in them."""
_ROW_SHAPES: Final[Mapping[tuple[str, str], tuple[int, ...]]] = {
    (ERROR_BUDGET, "error"): (len(TEMPERATURES),),
    (TOP_K, "error"): (len(TEMPERATURES),),
    (TOP_K, "tail"): (3,),
}
"""Row shapes, by form and name, of the arrays that may have one only."""
BASIS: Final = ("basis", "centre", "step", "weight")
"""The small arrays that a capture in the transform encoding is decoded and encoded by."""
REQUIRED: Final[Mapping[str, frozenset[str]]] = {
    SAMPLES: frozenset({"source", "digest", "label"}),
    INPUT_FILES: frozenset({"source", "digest", "label", "file", "file_bytes"}),
    "clustering": frozenset(),
    TRANSFORM: frozenset(DIMENSIONS[TRANSFORM]) - {"peak"},
} | {form: frozenset(DIMENSIONS[form]) for form in (CAPTURE, ERROR_BUDGET, TOP_K)}
"""Arrays that every part of a form has."""
_LARGEST_FLOAT: Final = float(np.finfo(np.float32).max)
_CHUNK = re.compile(r"c\.(0|[1-9]\d{0,5})(\.0)*")
_OWN_FILE = re.compile(rf"{PRIVATE}/[a-z0-9][a-z0-9._-]{{0,63}}")
"""The spec, and files that a later minor version may add."""


def form_of(kind: str, arrays: Collection[str]) -> str:
    """Return the form of a part, from its kind and the names of its arrays.

    >>> form_of("capture", ["logits", "error"]), form_of("clustering", ["sets"]), form_of("samples", ["file"])
    ('error-budget', 'clustering', 'input-files')
    """
    if kind == SAMPLES and "file" in arrays:
        return INPUT_FILES
    if kind == CAPTURE and "codes" in arrays:
        return TRANSFORM
    if kind != CAPTURE or "error" not in arrays:
        return kind
    return TOP_K if "index" in arrays else ERROR_BUDGET


def features_of(form: str) -> tuple[str, ...]:
    """Return the features that a reader needs for a part of a form."""
    return (form,) if form in FEATURES else ()


def dtypes_of(form: str, name: str) -> tuple[str, ...]:
    """Return the dtypes that an array may have; none if the format does not know it."""
    if name in DTYPES_OF:
        return (DTYPES_OF[name],)
    return _CHOICES.get((form, name), ())


def dimensions_of(form: str, name: str, num_dimensions: int) -> tuple[str, ...] | None:
    """Return the dimensions of an array; None if the format does not know it.

    >>> dimensions_of("samples", "input", 3)
    ('row', 'input_0', 'input_1')
    """
    if (form, name) == (SAMPLES, "input"):
        return ("row", *(f"input_{axis}" for axis in range(num_dimensions - 1)))
    return DIMENSIONS[form].get(name)


def fill_value(form: str, name: str, dtype: str) -> float | int:
    """Return the fill value of an array: NaN, -1, or for unsigned integers 0; the largest where 0 has a meaning.

    >>> [fill_value("capture", name, dtype) for name, dtype in (("logits", "float16"), ("seen", "uint64"))]
    [nan, 0]
    >>> fill_value("error-budget", "logits", "uint8")
    255
    """
    if (form, name) in _LARGEST_FILLS:
        return int(np.iinfo(dtype).max)
    return {"f": math.nan, "i": -1}.get(np.dtype(dtype).kind, 0)


def block_array(
    form: str,
    name: str,
    dtype: str,
    grid: Grid,
    *,
    views: int,
    row_shape: tuple[int, ...],
    where: str,
    attributes: Mapping[str, object] | None = None,
) -> ArrayLayout:
    """Lay out an array of rows. Raises LimitExceeded if a shard would pass 1 GiB, or a row 64 MiB.

    views: of a capture; ignored for samples. row_shape: shape of one row.
    """
    row_bytes = math.prod(row_shape) * np.dtype(dtype).itemsize
    if grid.block_rows * row_bytes > MAX_SHARD_BYTES:
        raise LimitExceeded(
            f"{where}: {name}",
            expected=f"shards of at most {MAX_SHARD_BYTES} bytes",
            found=f"{grid.block_rows} rows of {row_bytes} bytes",
            remedy="make a store with a smaller block_rows",
        )
    if row_bytes > MAX_CHUNK_BYTES:
        raise LimitExceeded(
            f"{where}: {name}",
            expected=f"rows of at most {MAX_CHUNK_BYTES} bytes",
            found=f"rows of {row_bytes} bytes",
            remedy="do not store the inputs, or cut them into smaller examples",
        )
    shape = (grid.num_rows, *row_shape) if _is_samples(form) else (views, grid.num_rows, *row_shape)
    dimensions = dimensions_of(form, name, len(shape))
    assert dimensions is not None  # writers name arrays of the format
    return ArrayLayout(
        name,
        shape,
        dtype,
        dimensions,
        grid.block_rows,
        # A file is read alone, and without the zeros behind it.
        1 if (form, name) == (INPUT_FILES, "file") else plan_chunk_rows(grid.block_rows, row_bytes),
        fill_value(form, name, dtype),
        _CODECS.get((form, name, dtype), RAW),
        dict(attributes or {}),
    )


def small_array(form: str, name: str, shape: tuple[int, ...]) -> ArrayLayout:
    """Lay out an array without rows."""
    dtype, dimensions = DTYPES_OF[name], DIMENSIONS[form][name]
    element_bytes = max(1, math.prod(shape[1:]) * np.dtype(dtype).itemsize)
    rows = max(1, min(shape[0], SMALL_CHUNK_BYTES // element_bytes))
    return ArrayLayout(name, shape, dtype, dimensions, rows, 0, fill_value(form, name, dtype))


def check_part(
    form: str,
    layouts: Mapping[str, ArrayLayout],
    grid: Grid,
    where: str,
    *,
    arrays: Sequence[tuple[str, int]],
    shape: tuple[int, int],
    table_bytes: int,
    files: Collection[str],
) -> None:
    """Refuse arrays, and a seal of them, that no part of this store has. Raises ManifestInvalid or LimitExceeded.

    layouts: every array of the part. where: the part. From its seal: arrays, as (name, chunks a shard) of the block
    arrays; shape, as (views, blocks); table_bytes, of seal.bin; files, the keys that it lists.
    """
    if len(layouts) > MAX_ARRAYS:
        raise beyond(where, MAX_ARRAYS, "arrays", len(layouts))
    missing = REQUIRED[form] - set(layouts)
    if missing:
        raise invalid(where, f"the arrays of a part of form {form!r}", f"no array {min(missing)!r}")
    sharded = {name: layout.chunks_per_shard for name, layout in layouts.items() if layout.is_block_array}
    if len(arrays) != len(sharded) or dict(arrays) != sharded:
        listed = [name for name, _ in arrays]
        raise invalid(where, f"a seal of the block arrays {sorted(sharded)}", f"a seal of {listed}")
    views, blocks = shape
    if blocks != (grid.num_blocks if sharded else 0) or bool(views) != bool(sharded):
        raise invalid(
            where, f"{grid.num_blocks if sharded else 0} blocks a view", f"{views} views x {blocks}"
        )
    most = 1 if _is_samples(form) else MAX_VIEWS
    if views > most:
        raise beyond(where, most, "views", views)
    expected = views * blocks * sum(40 + 4 * chunks for chunks in sharded.values())
    if expected > MAX_SEAL_TABLE_BYTES:
        raise beyond(where, MAX_SEAL_TABLE_BYTES, "bytes of seal.bin", expected)
    if table_bytes != expected:
        raise invalid(where, f"{expected} bytes of seal.bin", table_bytes)
    _check_files(layouts, files, where)
    for name, layout in layouts.items():
        check_layout(layout, form, grid, views, f"{where}/{name}/zarr.json")
    if "classes" in REQUIRED[form]:
        _check_columns(form, layouts, where)
    if form == INPUT_FILES and "input" in layouts:
        raise invalid(where, "inputs as files or as arrays", "both")


def _is_samples(form: str) -> bool:
    return form in (SAMPLES, INPUT_FILES)


def _check_columns(form: str, layouts: Mapping[str, ArrayLayout], where: str) -> None:
    """Refuse a capture whose arrays differ in their classes."""
    (classes,) = layouts["classes"].shape
    if form == TRANSFORM:
        check_basis(layouts, classes, where)
        (width,) = layouts["escape"].row_shape
    else:
        (width,) = layouts["logits"].row_shape
    if form == TOP_K:
        if width > classes or layouts["index"].row_shape != (width,):
            raise invalid(where, f"an index and a logit of at most {classes} classes a row", f"{width} a row")
    elif width != classes:
        raise invalid(where, f"{width} classes, one a column of logits", f"{classes} classes")


def check_basis(layouts: Mapping[str, ArrayLayout], classes: int, where: str) -> None:
    """Refuse a basis of other classes or components than the capture has, before it is read.

    layouts: of `BASIS`, and of "codes" if it is known. Raises ManifestInvalid or LimitExceeded.
    """
    components, columns = layouts["basis"].shape
    if components * columns * layouts["basis"].numpy_dtype.itemsize > MAX_BASIS_BYTES:
        found = f"{components} components of {columns} classes"
        raise beyond(f"{where}/basis", MAX_BASIS_BYTES, "bytes", found)
    shapes = {"centre": (classes,), "weight": (classes,), "step": (components,)}
    found_shapes = {name: layouts[name].shape for name in shapes}
    if columns != classes or found_shapes != shapes:
        found = ", ".join(
            f"{name} {shape}" for name, shape in [("basis", (components, columns)), *found_shapes.items()]
        )
        raise invalid(where, f"a basis of {classes} classes, one length of components", found)
    if components > classes:
        raise invalid(f"{where}/basis", f"at most {classes} components, one a class", components)
    codes = layouts["codes"].row_shape if "codes" in layouts else (components,)
    if codes != (components,):
        raise invalid(where, f"codes of {components} components, as the basis has", f"{codes[0]} a row")


def _check_files(layouts: Mapping[str, ArrayLayout], files: Collection[str], where: str) -> None:
    """Refuse a seal that lists too few files of the arrays and of the part itself, or others."""
    chunks = dict.fromkeys((name for name, layout in layouts.items() if not layout.is_block_array), 0)
    for key in files:
        name, _, chunk = key.rpartition("/")
        number = _CHUNK.fullmatch(chunk)
        if name in chunks and number and layouts[name].key(int(number[1])) == key:
            chunks[name] += 1
        elif not (
            key == ROOT_METADATA or _OWN_FILE.fullmatch(key) or (name in layouts and chunk == ROOT_METADATA)
        ):
            raise invalid(where, "a seal that lists files of the part only", f"{key[:80]!r}")
    for name, count in chunks.items():
        layout = layouts[name]
        expected = -(-layout.shape[0] // layout.shard_rows)
        # Keys are unique: as many as there are chunks, and none beyond the last, are all of them.
        if count != expected or layout.key(expected) in files:
            raise invalid(f"{where}/{name}", f"{expected} chunks in the seal", count)


def check_layout(layout: ArrayLayout, form: str, grid: Grid, views: int, where: str) -> None:
    """Refuse a layout that no array of this store has. Raises ManifestInvalid.

    Arrays that the format does not know pass: no reader reads them.
    """
    name, dtype = layout.name, layout.dtype
    dimensions = dimensions_of(form, name, len(layout.shape))
    if dimensions is None:
        return
    expected = None
    if (
        layout.dimensions == dimensions
        and dtype in dtypes_of(form, name)
        and layout.row_shape == _ROW_SHAPES.get((form, name), layout.row_shape)
        and _are_attributes(layout, form)
    ):
        if layout.is_block_array:
            expected = block_array(
                form,
                name,
                dtype,
                grid,
                views=views,
                row_shape=layout.row_shape,
                where=where,
                attributes=layout.attributes,
            )
        else:
            expected = small_array(form, name, layout.shape)
    # By their bytes: a fill value of NaN is not equal to itself.
    if expected is None or layout.to_bytes() != expected.to_bytes():
        raise ManifestInvalid(
            where,
            expected=f"an array {layout.name!r} of this store: {grid.num_rows} rows, blocks of {grid.block_rows}",
            found=f"{layout.dtype} {dict(zip(layout.dimensions, layout.shape, strict=True))}, "
            f"shards of {layout.shard_rows}",
            remedy="run `logitstore verify`; do not read this part",
        )


def _are_attributes(layout: ArrayLayout, form: str) -> bool:
    """Return whether an array has the attributes of the format; a scale may be any negative float32."""
    attributes = dict(layout.attributes)
    if (form, layout.name) == (TRANSFORM, "error"):
        return set(attributes) == {"temperature"} and _are_temperatures(
            attributes["temperature"], layout.row_shape
        )
    if layout.name == "error" and form in FEATURES:
        return attributes == {"temperature": list(TEMPERATURES)}
    if (form, layout.name) not in ((ERROR_BUDGET, "logits"), (TRANSFORM, "escape")):
        return not attributes
    scale = attributes.pop("scale_factor", None)
    return (
        attributes == {"_FillValue": layout.fill}
        and type(scale) is float
        and -_LARGEST_FLOAT <= scale < 0
        and float(np.float32(scale)) == scale
    )


def _are_temperatures(value: object, row_shape: tuple[int, ...]) -> bool:
    """Return whether a value is a list of temperatures, ascending, one an element of a row.

    >>> [_are_temperatures(value, (2,)) for value in ([1.0, 4.0], [4.0, 1.0], [1.0], [0.0, 1.0], [1, 4], 4.0)]
    [True, False, False, False, False, False]
    """
    if not isinstance(value, list) or not all(type(t) is float and 0 < t < math.inf for t in value):
        return False
    return (
        (len(value),) == row_shape
        and 1 <= len(value) <= MAX_TEMPERATURES
        and all(low < high for low, high in pairwise(value))
    )
