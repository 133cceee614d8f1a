"""One way to store logits: its bytes, its divergence from the teacher, its speed.

KL(teacher ‖ stored) is computed in float64 softmaxes, apart from the product's own. Bytes are those of the
chunks and their checksums, cut as a store cuts them. Rows/s are of one thread, from logits in memory to
compressed chunks and back.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rival_encodings import EvenlySpread, Renormalised, log_softmax
from timing import seconds

from logitstore.pipeline.compress.choose import fit_budget
from logitstore.storage.encodings.encoding import Encoding
from logitstore.storage.encodings.error_budget import ErrorBudget
from logitstore.storage.format.codec import BLOSC, RAW, compress, decompress
from logitstore.storage.format.constants import TEMPERATURES
from logitstore.storage.format.grid import Grid, plan_block_rows
from logitstore.storage.format.layouts import block_array
from logitstore.storage.format.shard import CRC_BYTES

ROWS_AT_ONCE = 64
"""Rows of a softmax at a time: their float64 arrays stay in a core's cache."""

Stored = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Way:
    """One way to store logits."""

    name: str
    """Its name in the table."""
    encode: Callable[[NDArray[np.float32]], Stored]
    """From logits to the stored arrays."""
    decode: Callable[[Stored, int, float], NDArray[np.float32]]
    """From stored arrays, classes and T to logits; their softmax at T is what a student gets."""
    codecs: Mapping[str, str]
    """The codec of each array's chunks."""
    needed: Sequence[str]
    """The arrays that `decode` needs."""
    any_temperature: bool
    """Whether it decodes to the same logits at every temperature."""
    encoding: Encoding | None = None
    """Our encoding, or None for a rival's way."""


@dataclass(frozen=True)
class Measured:
    """The bytes, divergences and speeds of one way, on some logits."""

    way: Way
    bytes: Mapping[str, float]
    """Bytes a row of each array."""
    kl: NDArray[np.float64]
    """(rows, temperatures): KL(teacher ‖ stored)."""
    encode_rows: float
    """Rows/s."""
    decode_rows: float
    """Rows/s."""

    @property
    def needed_bytes(self) -> float:
        """Bytes a row of the arrays that `decode` needs."""
        return sum(self.bytes[name] for name in self.way.needed)

    @property
    def row_bytes(self) -> float:
        """The same with `peak`, if there is one."""
        return self.needed_bytes + self.bytes.get("peak", 0)


def chunk_rows(num_rows: int, num_classes: int) -> tuple[Grid, int]:
    """Return the grid of a store of that size, and the rows of a chunk of float16 logits."""
    grid = Grid(num_rows, plan_block_rows(num_rows, 4 * num_classes))
    layout = block_array("capture", "logits", "float16", grid, views=1, row_shape=(num_classes,), where="")
    return grid, layout.chunk_rows


def ours(name: str, encoding: Encoding, grid: Grid, num_classes: int) -> Way:
    """Wrap an encoding of the store, with the codecs of its layouts."""
    layouts = [
        block_array(encoding.form, spec.name, spec.dtype, grid, views=1, row_shape=spec.row_shape, where="")
        for spec in encoding.arrays(num_classes)
    ]
    return Way(
        name,
        lambda logits: encoding.encode(logits, 0, "benchmark"),
        encoding.decode,
        {layout.name: layout.codec for layout in layouts},
        encoding.decoded_from,
        encoding.is_dense,
        encoding,
    )


def theirs(name: str, rival: "EvenlySpread | Renormalised") -> Way:
    """Wrap a rival's way, behind our codec for indices and halves."""
    values = "probability" if isinstance(rival, EvenlySpread) else "log_probability"
    arrays = ("index", values)
    same = isinstance(rival, EvenlySpread)
    return Way(name, rival.encode, rival.decode, dict.fromkeys(arrays, BLOSC), arrays, same)


def budget_for(max_kl: float, logits: NDArray[np.float32], source_error: float, rows: int) -> ErrorBudget:
    """Fit the budget as `logitstore compress` would for these logits: its dtype and its shift.

    rows: of a chunk.
    """
    spread = float((logits.max(axis=1) - logits.min(axis=1)).max())
    starts = np.linspace(0, len(logits) - rows, 6).astype(int)[1:-1]
    samples = [logits[start : start + rows] for start in starts]
    return fit_budget(max_kl, spread=spread, source_error=source_error, samples=samples)


def encoded_chunks(way: Way, logits: NDArray[np.float32], rows: int) -> list[dict[str, Any]]:
    """Encode every chunk as stored: bytes of an array with a codec, the array itself without one."""
    chunks = []
    for start in range(0, len(logits), rows):
        stored = way.encode(logits[start : start + rows])
        chunks.append(
            {
                name: values
                if way.codecs[name] == RAW
                else (compress(way.codecs[name], values), values.dtype, values.shape)
                for name, values in stored.items()
            }
        )
    return chunks


def decoded_chunk(way: Way, chunk: Mapping[str, Any], num_classes: int, temperature: float) -> Any:
    """Decode a chunk to float32 logits."""
    return way.decode({name: _whole(way, chunk, name) for name in way.needed}, num_classes, temperature)


def _whole(way: Way, chunk: Mapping[str, Any], name: str) -> NDArray[Any]:
    if way.codecs[name] == RAW:
        values: NDArray[Any] = chunk[name]
        return values
    data, dtype, shape = chunk[name]
    out = np.empty(shape, dtype)
    decompress(way.codecs[name], np.frombuffer(data, np.uint8), out)
    return out


def array_bytes(chunks: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Return the bytes of each array, the checksum of each chunk included."""
    return {
        name: sum(
            (len(c[name][0]) if isinstance(c[name], tuple) else c[name].nbytes) + CRC_BYTES for c in chunks
        )
        for name in chunks[0]
    }


def kl_of(
    exact: NDArray[np.float32], decoded_at: Callable[[float], NDArray[np.float32]]
) -> NDArray[np.float64]:
    """Compute KL(softmax(exact/T) ‖ softmax(decoded/T)) in float64: (rows, temperatures)."""
    kl = np.empty((len(exact), len(TEMPERATURES)))
    for column, temperature in enumerate(TEMPERATURES):
        decoded = decoded_at(temperature)
        for start in range(0, len(exact), ROWS_AT_ONCE):
            rows = slice(start, start + ROWS_AT_ONCE)
            log_p = log_softmax(exact[rows], temperature)
            log_q = log_softmax(decoded[rows], temperature)
            kl[rows, column] = (np.exp(log_p) * (log_p - log_q)).sum(axis=1)
    return kl


def always(decoded: NDArray[np.float32]) -> Callable[[float], NDArray[np.float32]]:
    """Return logits that are the same at any temperature."""
    return lambda temperature: decoded


def measure(way: Way, logits: NDArray[np.float32], rows: int) -> Measured:
    """Store logits in chunks of `rows` rows, read them back, and compare the two."""
    num_classes = logits.shape[1]
    chunks: list[dict[str, Any]] = []
    encode_seconds = seconds(lambda: chunks.extend(encoded_chunks(way, logits, rows)))

    def decode() -> None:
        for chunk in chunks:
            decoded_chunk(way, chunk, num_classes, 4.0)

    decode_seconds = median(seconds(decode) for _ in range(3))
    kl = np.empty((len(logits), len(TEMPERATURES)))
    for number, chunk in enumerate(chunks):
        part = slice(number * rows, (number + 1) * rows)
        kl[part] = kl_of(logits[part], _decoder(way, chunk, num_classes))
    sizes = {name: size / len(logits) for name, size in array_bytes(chunks).items()}
    return Measured(way, sizes, kl, len(logits) / encode_seconds, len(logits) / decode_seconds)


def _decoder(way: Way, chunk: Mapping[str, Any], num_classes: int) -> Callable[[float], NDArray[np.float32]]:
    """Return the decoder of a chunk at a temperature; it decodes once if no temperature matters."""
    if way.any_temperature:
        return always(decoded_chunk(way, chunk, num_classes, 1.0))
    return lambda temperature: decoded_chunk(way, chunk, num_classes, temperature)
