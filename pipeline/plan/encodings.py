"""Encodings that a plan compares, and the bytes, the error and the time of a sample in each.

`try_encoding` stores the sample as stage one would; `try_compression` as `logitstore compress` would, which takes the
capture of stage one and chooses its codes by it. A transform is calibrated with every other row of the sample and measured
on the rest: rows that made the basis would take fewer bytes than those of the capture.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import numpy as np
from jaxtyping import Float32, Float64
from numpy.typing import NDArray

from ...storage.encodings.divergence import divergence, kl_of_error
from ...storage.encodings.encoding import Encoding
from ...storage.encodings.error_budget import ErrorBudget
from ...storage.encodings.half import FLOATS, FloatEncoding, rounding_error
from ...storage.encodings.named import encoding_named
from ...storage.encodings.transform import CALIBRATION_ROWS, Transform, escaped_alone
from ...storage.encodings.transform import TEMPERATURES as GUARANTEED
from ...storage.encodings.widths import row_widths
from ...storage.errors import BadLogitsError, ConfigError, LimitExceeded
from ...storage.format.constants import TEMPERATURES
from ...storage.format.grid import Grid, plan_chunk_rows
from ...storage.parts.footprint import Footprint, capture_footprint
from ..compress.choose import fit_budget
from ..experiment.document import Experiment
from .sample import Origin, TeacherSample

BUDGETS: Final = (1e-2, 1e-3, 1e-4)
"""Error budgets that every plan shows, in nats."""
TOP_K: Final = (16, 64, 100)
"""Numbers of classes that every plan shows, where the store has as many."""
_CODEC_CHUNKS: Final = 4
"""Chunks on which the packing of codes is chosen."""
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Compressed:
    """A capture as `logitstore compress` would make it."""

    source: str
    """Encoding of the capture that it would be made from."""
    dtype: str
    """dtype of the codes: "uint8" where every code of the sample fits."""
    arrays: Mapping[str, int]
    """Bytes of each array that has rows, after the codec."""


@dataclass(frozen=True)
class CapturePlan:
    """One teacher in one encoding."""

    teacher: str
    """Name of the capture."""
    source: Origin
    """Origin of the logits that this was measured on."""
    arrays: Mapping[str, int]
    """Bytes of each array that has rows, after the codec; empty where refused."""
    bytes: int
    """Bytes of all files of the capture."""
    files: int
    """Number of files."""
    kl_max: tuple[float, ...] | None
    """KL(given ‖ stored) of the worst row of the sample at T = 1, 2, 4, 8, 20, in nats; None where unknown."""
    kl_mean: tuple[float, ...] | None
    """Mean of the same over the rows of the sample."""
    encode_rows_per_second: float | None
    """Rows a second that were encoded, without the codec and the disk; None where refused."""
    decode_rows_per_second: float | None
    """Rows a second that were decoded to all of their logits."""
    compressed: Compressed | None
    """What `compress` would make of the experiment's capture by this budget; None where it makes nothing."""
    not_compressed: str | None
    """Why `compress` cannot keep the budget; None where it can."""
    refused: str | None
    """Why the sample cannot be stored so; None where it can."""


def considered(experiment: Experiment, num_classes: int) -> dict[str, Encoding]:
    """Return the encodings of every plan and the experiment's own, by name.

    Raises ConfigError where its own cannot hold so many classes.
    """
    given: list[Any] = ["float32", "float16", *({"transform": {"max_kl": budget}} for budget in BUDGETS)]
    given += [{"max_kl": budget} for budget in BUDGETS]
    given += [{"top_k": k} for k in TOP_K if k <= num_classes]
    own = experiment.cache.chosen_encoding
    row_widths(own, num_classes)
    return {encoding_name(encoding): encoding for encoding in [*map(encoding_named, given), own]}


def encoding_name(encoding: Encoding) -> str:
    """Return an encoding in the words of an experiment file.

    >>> encoding_name(ErrorBudget(1e-3, 2.0)), encoding_name(FLOATS["float16"])
    ('max_kl = 0.001, min_temperature = 2', 'float16')
    >>> encoding_name(Transform(1e-2)), encoding_name(Transform(1e-2, (1.0, 4.0), rows=500))
    ('transform = 0.01', 'transform = 0.01, temperatures = [1, 4], rows = 500')
    """
    if isinstance(encoding, Transform):
        return _transform_name(encoding)
    about: Mapping[str, Any] = encoding.describe()
    if "k" in about:
        return f"top_k = {about['k']}"
    if "max_kl" not in about:
        return str(about["kind"])
    least = about["min_temperature"]
    return f"max_kl = {about['max_kl']!r}" + (f", min_temperature = {least:g}" if least != 1 else "")


def _transform_name(encoding: Transform) -> str:
    parts = [f"transform = {encoding.max_kl!r}"]
    if encoding.temperatures != GUARANTEED:
        parts.append(f"temperatures = [{', '.join(f'{t:g}' for t in encoding.temperatures)}]")
    parts += [f"rows = {encoding.rows}"] if encoding.rows != CALIBRATION_ROWS else []
    parts += [f"seed = {encoding.seed}"] if encoding.seed else []
    return ", ".join(parts + ["peak"] * encoding.keeps_peak)


def try_encoding(
    encoding: Encoding,
    own: Encoding,
    teacher: str,
    found: TeacherSample,
    grid: Grid | str,
    own_grid: Grid,
    views: int,
    identity: Mapping[str, Any],
) -> CapturePlan:
    """Plan the capture of `teacher` in this encoding.

    own, own_grid: the experiment's encoding and blocks. grid: the blocks of a store in this encoding, or why there are
    none. identity: of the capture's spec.
    """
    compressed: Compressed | str | None = None
    if isinstance(encoding, ErrorBudget):
        compressed = try_compression(encoding, own, found, own_grid, views, identity)
    smaller, not_compressed = (None, compressed) if isinstance(compressed, str) else (compressed, None)
    footprint, kl, refused = Footprint({}, 0, 0), None, None
    speeds: tuple[float | None, float | None] = (None, None)
    where = f"teacher {teacher!r}, the sample"
    try:
        if isinstance(grid, Grid):
            tried, logits = _calibrated(encoding, found, where)
            stored, seconds = _timed(lambda: tried.encode(logits, 0, where))
            footprint = capture_footprint(tried, logits.shape[1], grid, views, stored, identity)
            decoded, also = _timed(lambda: _decoded(tried, logits.shape[1], stored))
            speeds = len(logits) / seconds, len(logits) / also
            if not (found.is_rounded and encoding.kind == "float16"):  # these logits were rounded before
                kl = measured_divergence(tried, logits, stored, decoded)
        else:
            refused = grid
    except (BadLogitsError, LimitExceeded) as error:
        refused = str(error)
    return CapturePlan(
        teacher,
        found.source,
        footprint.arrays,
        footprint.bytes,
        footprint.files,
        None if kl is None else tuple(kl.max(axis=0).tolist()),
        None if kl is None else tuple(kl.mean(axis=0).tolist()),
        *speeds,
        smaller,
        not_compressed,
        refused,
    )


def _calibrated(
    encoding: Encoding, found: TeacherSample, where: str
) -> tuple[Encoding, Float32[np.ndarray, "some classes"]]:
    """Return an encoding that can encode, and the rows of a sample that it is measured on. Raises BadLogitsError."""
    logits = found.logits
    if not isinstance(encoding, Transform) or encoding.basis is not None:
        return encoding, logits
    others = logits[1::2] if len(logits) > 2 else logits
    given = logits if found.features is None else found.features
    return encoding.calibrated(given[: 2 * encoding.rows : 2], where), others


def _timed(call: Callable[[], _Result]) -> tuple[_Result, float]:
    """Return the result of a call, and its seconds, which are above 0."""
    started = time.perf_counter()
    result = call()
    return result, max(1e-9, time.perf_counter() - started)


def _decoded(
    encoding: Encoding, num_classes: int, stored: Mapping[str, NDArray[Any]]
) -> Float32[np.ndarray, "rows classes"]:
    """Decode a sample, at T = 1 where that matters."""
    if isinstance(encoding, Transform):
        stored = escaped_alone(stored)
    return encoding.decode(stored, num_classes, 1.0)


def measured_divergence(
    encoding: Encoding,
    logits: Float32[np.ndarray, "rows classes"],
    stored: Mapping[str, NDArray[Any]],
    decoded: Float32[np.ndarray, "rows classes"],
) -> Float64[np.ndarray, "rows temperatures"]:
    """Return KL(given ‖ stored) of each row at each of `TEMPERATURES`, in nats.

    As recorded, where it is recorded at these temperatures. decoded: by an encoding that decodes alike at any temperature.
    """
    if "error" in stored and not isinstance(encoding, Transform):
        return kl_of_error(stored["error"])
    centred = logits - logits.max(axis=1, keepdims=True)
    return np.stack([divergence(centred, decoded, t) for t in TEMPERATURES], axis=1)


def try_compression(
    budget: ErrorBudget,
    own: Encoding,
    found: TeacherSample,
    grid: Grid,
    views: int,
    identity: Mapping[str, Any],
) -> Compressed | str:
    """Plan what `logitstore compress` makes of the teacher's capture by this budget, or return why it cannot keep it.

    own: the experiment's encoding, from which it compresses where that is float16 or float32; from float16 otherwise.
    Rows outside the sample may need wider codes.
    """
    source = own if isinstance(own, FloatEncoding) else FLOATS["float16"]
    chunk_rows = plan_chunk_rows(grid.block_rows, 2 * found.logits.shape[1])
    starts = range(0, len(found.logits), chunk_rows)
    try:
        given = source.decode(source.encode(found.logits, 0, "the sample"))
        spread = -float(given.min())
        chosen = fit_budget(
            budget.max_kl,
            budget.min_temperature,
            spread=spread,
            source_error=rounding_error(source.kind, spread),
            samples=(given[s : s + chunk_rows] for s in starts[:: -(-len(starts) // _CODEC_CHUNKS)]),
            where=f"a capture in {source.kind}",
        )
        stored = chosen.encode(given, 0, "the sample")
        footprint = capture_footprint(chosen, given.shape[1], grid, views, stored, identity)
    except (BadLogitsError, ConfigError, LimitExceeded) as error:
        return str(error)
    return Compressed(source.kind, chosen.dtype, footprint.arrays)
