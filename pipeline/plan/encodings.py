"""Encodings that a plan compares, and the bytes and error of a sample in each.

`try_encoding` stores the sample as stage one would; `try_compression` as `logitstore compress` would, which takes the
capture of stage one and chooses its codes by it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from jaxtyping import Float32, Float64
from numpy.typing import NDArray

from ...storage.encodings.divergence import divergence, kl_of_error
from ...storage.encodings.encoding import Encoding
from ...storage.encodings.error_budget import ErrorBudget
from ...storage.encodings.half import FLOATS, FloatEncoding, rounding_error
from ...storage.encodings.named import encoding_named
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
    given: list[Any] = ["float32", "float16", *({"max_kl": budget} for budget in BUDGETS)]
    given += [{"top_k": k} for k in TOP_K if k <= num_classes]
    own = experiment.cache.chosen_encoding
    own.arrays(num_classes)
    return {encoding_name(encoding): encoding for encoding in [*map(encoding_named, given), own]}


def encoding_name(encoding: Encoding) -> str:
    """Return an encoding in the words of an experiment file.

    >>> encoding_name(ErrorBudget(1e-3, 2.0)), encoding_name(FLOATS["float16"])
    ('max_kl = 0.001, min_temperature = 2', 'float16')
    """
    about: Mapping[str, Any] = encoding.describe()
    if "k" in about:
        return f"top_k = {about['k']}"
    if "max_kl" not in about:
        return str(about["kind"])
    least = about["min_temperature"]
    return f"max_kl = {about['max_kl']!r}" + (f", min_temperature = {least:g}" if least != 1 else "")


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
    try:
        if isinstance(grid, Grid):
            stored = encoding.encode(found.logits, 0, f"teacher {teacher!r}, the sample")
            footprint = capture_footprint(encoding, found.logits.shape[1], grid, views, stored, identity)
            if not (found.is_rounded and encoding.kind == "float16"):  # these logits were rounded before
                kl = measured_divergence(encoding, found.logits, stored)
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
        smaller,
        not_compressed,
        refused,
    )


def measured_divergence(
    encoding: Encoding, logits: Float32[np.ndarray, "rows classes"], stored: Mapping[str, NDArray[Any]]
) -> Float64[np.ndarray, "rows temperatures"]:
    """Return KL(given ‖ stored) of each row at each of `TEMPERATURES`, in nats; the recorded one where there is one."""
    if "error" in stored:
        return kl_of_error(stored["error"])
    centred = logits - logits.max(axis=1, keepdims=True)
    decoded = encoding.decode(stored, logits.shape[1])
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
