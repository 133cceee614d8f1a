"""What does an encoding make of a sample of logits: how many bytes, and how large an error?

`considered` names the encodings that a plan compares. `try_encoding` stores the sample as stage one would, and
`try_compression` as `logitstore compress` would, which takes what stage one stored and chooses its codes by it.
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
from ...storage.parts.footprint import SampleRows, capture_footprint
from ..compress.choose import fit_budget
from ..experiment.document import Experiment
from .sample import Source, TeacherSample

BUDGETS: Final = (1e-2, 1e-3, 1e-4)
"""Error budgets that every plan shows."""


TOP_K: Final = (16, 64, 100)
"""Numbers of classes that every plan shows, where there are that many."""


_CODEC_CHUNKS: Final = 4
"""Chunks on which the packing of codes is chosen."""


@dataclass(frozen=True)
class Compressed:
    """What `logitstore compress` would make of a capture."""

    source: str
    """Encoding of the capture that it would be made from."""
    dtype: str
    """Of the codes: "uint8" where every code of the sample fits."""
    shift: int
    """As in `ErrorBudget`."""
    arrays: Mapping[str, int]
    """Bytes of each array that has rows, after the codec."""
    bytes: int
    """Of all files of the capture."""
    files: int
    """Number of them."""


@dataclass(frozen=True)
class CapturePlan:
    """One teacher in one encoding."""

    teacher: str
    """Name of the capture."""
    source: Source
    """Where the logits are from that this was measured on."""
    arrays: Mapping[str, int]
    """Bytes of each array that has rows, after the codec; empty where it cannot be stored."""
    bytes: int
    """Of all files of the capture."""
    files: int
    """Number of them."""
    kl_max: tuple[float, ...] | None
    """KL(given ‖ stored) of the worst row of the sample at T = 1, 2, 4, 8, 20, in nats; None where it cannot be told."""
    kl_mean: tuple[float, ...] | None
    """The same in the mean over the rows of the sample."""
    compressed: Compressed | None
    """What `compress` would make of the experiment's capture by this budget; None for what is none, or cannot be kept."""
    not_compressed: str | None
    """Why `compress` could not keep the budget; None where it can."""
    refused: str | None
    """Why the sample cannot be stored so; None where it can."""


def considered(experiment: Experiment, num_classes: int) -> dict[str, Encoding]:
    """The encodings that a plan shows, by name: those that every plan shows, and the experiment's own.

    Raises ConfigError where its own is none for so many classes.
    """
    given: list[Any] = ["float32", "float16", *({"max_kl": budget} for budget in BUDGETS)]
    given += [{"top_k": k} for k in TOP_K if k <= num_classes]
    encodings = [encoding_named(name) for name in given]
    own = experiment.cache.chosen_encoding
    own.arrays(num_classes)
    if own not in encodings:
        encodings.append(own)
    return {encoding_name(encoding): encoding for encoding in encodings}


def encoding_name(encoding: Encoding) -> str:
    """An encoding in the words of an experiment file.

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
    teacher: str,
    found: TeacherSample,
    sample: SampleRows,
    grid: Grid,
    views: int,
    identity: Mapping[str, Any],
) -> CapturePlan:
    """A capture of `teacher` in this encoding.

    grid, views: of the store. identity: about what its spec will say.
    Its `refused` says why the sample cannot be stored so, where it cannot.
    """
    try:
        stored = encoding.encode(found.logits, 0, f"teacher {teacher!r}, the sample")
        footprint = capture_footprint(encoding, found.logits.shape[1], grid, views, stored, sample, identity)
    except (BadLogitsError, LimitExceeded) as error:
        return refused_capture(teacher, found.source, str(error))
    kl = None
    if not (found.is_rounded and encoding.kind == "float16"):  # what it has lost was lost before
        kl = measured_divergence(encoding, found.logits, stored)
    return CapturePlan(
        teacher,
        found.source,
        footprint.arrays,
        footprint.bytes,
        footprint.files,
        None if kl is None else tuple(kl.max(axis=0).tolist()),
        None if kl is None else tuple(kl.mean(axis=0).tolist()),
        None,
        None,
        None,
    )


def refused_capture(teacher: str, source: Source, reason: str) -> CapturePlan:
    """A capture that cannot be."""
    return CapturePlan(teacher, source, {}, 0, 0, None, None, None, None, reason)


def measured_divergence(
    encoding: Encoding, logits: Float32[np.ndarray, "rows classes"], stored: Mapping[str, NDArray[Any]]
) -> Float64[np.ndarray, "rows temperatures"]:
    """KL(given ‖ stored) of each row at each of `TEMPERATURES`, in nats: what a capture records, where it records it."""
    if "error" in stored:
        return kl_of_error(stored["error"])
    centred = logits - logits.max(axis=1, keepdims=True)
    decoded = encoding.decode(stored, logits.shape[1])
    return np.stack([divergence(centred, decoded, t) for t in TEMPERATURES], axis=1)


def try_compression(
    budget: ErrorBudget,
    own: Encoding,
    found: TeacherSample,
    sample: SampleRows,
    grid: Grid,
    views: int,
    identity: Mapping[str, Any],
) -> Compressed | str:
    """What `logitstore compress` makes of the teacher's capture by this budget, or why it cannot keep it.

    own: the experiment's encoding, from which it compresses where that is float16 or float32; from float16 otherwise.
    Rows that are not in the sample may need codes that those of the sample do not.
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
        footprint = capture_footprint(chosen, given.shape[1], grid, views, stored, sample, identity)
    except (BadLogitsError, ConfigError, LimitExceeded) as error:
        return str(error)
    return Compressed(
        source.kind, chosen.dtype, chosen.shift, footprint.arrays, footprint.bytes, footprint.files
    )
