"""Rival stores of a teacher's logits, and the logits that a student gets at another temperature.

Two families of caches, each with its own way to fail:

    EvenlySpread    vision (TinyViT, Wu et al. 2022): the k largest *probabilities* at T = 1 in float16. The mass
                    missing to 1 is spread evenly over the other classes. Another temperature is p^(1/T),
                    renormalised.
    Renormalised    language models: the k largest *log-probabilities* in float16, renormalised over those; every
                    other class has probability 0.

A probability of 0 makes KL(teacher ‖ stored) infinite, whatever the rest. The convention here favours the
rivals. A probability that float16 rounds to 0 counts as 2⁻²⁴, the smallest positive float16, *before* it is
re-tempered. So does a missing mass that rounding makes negative. The classes that `Renormalised` leaves out,
which a student never sees at any temperature, count as 2⁻²⁴ at each of them.

One more way stores floats: float16 behind zstd, as any Zarr array would.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numcodecs import zstd
from numpy.typing import NDArray
from zarr.codecs import ZstdCodec

SMALLEST = 2.0**-24
"""The smallest positive float16."""


def log_softmax(logits: NDArray[Any], temperature: float = 1.0) -> NDArray[np.float64]:
    """Compute ln softmax(logits / T) in float64: (rows, classes)."""
    scaled = logits.astype(np.float64) / temperature
    scaled -= scaled.max(axis=1, keepdims=True)
    scaled -= np.log(np.exp(scaled).sum(axis=1, keepdims=True))
    return scaled


def _largest(values: NDArray[Any], k: int) -> NDArray[np.int64]:
    """Return the k largest of each row, in descending order."""
    kept = np.argpartition(-values, k - 1, axis=1)[:, :k] if k < values.shape[1] else np.argsort(-values)
    order = np.argsort(-np.take_along_axis(values, kept, axis=1), axis=1, kind="stable")
    return np.take_along_axis(kept, order, axis=1)


def _log_probabilities(logits: NDArray[np.float32], index: NDArray[np.int64]) -> NDArray[np.float32]:
    """Compute ln softmax(logits) of the classes in `index`, in float32."""
    centred = logits - logits.max(axis=1, keepdims=True)
    total = np.log(np.exp(centred).sum(axis=1, keepdims=True))
    kept: NDArray[np.float32] = np.take_along_axis(centred, index, axis=1) - total
    return kept


@dataclass(frozen=True)
class EvenlySpread:
    """The k largest probabilities at T = 1 in float16, the rest spread evenly."""

    k: int
    """Number of kept probabilities; all if there are fewer."""

    def encode(self, logits: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
        """Return `index` and `probability`."""
        index = _largest(logits, min(self.k, logits.shape[1]))
        kept = np.exp(_log_probabilities(logits, index))
        return {"index": index.astype(np.uint16), "probability": kept.astype(np.float16)}

    def decode(
        self, stored: Mapping[str, NDArray[Any]], num_classes: int, temperature: float
    ) -> NDArray[np.float32]:
        """Return ln p: its softmax at T is p^(1/T), renormalised."""
        kept = stored["probability"].astype(np.float32)
        dense = np.empty((len(kept), num_classes), np.float32)
        missing = (1 - kept.sum(axis=1)) / max(1, num_classes - kept.shape[1])
        dense[...] = np.log(np.maximum(missing, SMALLEST))[:, None]
        logits = np.log(np.maximum(kept, np.float32(SMALLEST)))
        np.put_along_axis(dense, stored["index"].astype(np.int64), logits, axis=1)
        return dense


@dataclass(frozen=True)
class Renormalised:
    """The k largest log-probabilities in float16, as if there were no other classes."""

    k: int
    """Number of kept log-probabilities; all if there are fewer."""

    def encode(self, logits: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
        """Return `index` and `log_probability`."""
        index = _largest(logits, min(self.k, logits.shape[1]))
        kept = _log_probabilities(logits, index)
        return {"index": index.astype(np.uint16), "log_probability": kept.astype(np.float16)}

    def decode(
        self, stored: Mapping[str, NDArray[Any]], num_classes: int, temperature: float
    ) -> NDArray[np.float32]:
        """Return logits for T: the softmax of the kept classes, the others at the smallest float16."""
        kept = stored["log_probability"].astype(np.float32)
        # Renormalised at T by a constant of the row, which lifts the kept ones over the others.
        kept -= temperature * np.log(np.exp(kept / temperature).sum(axis=1, keepdims=True))
        dense = np.full((len(kept), num_classes), temperature * np.log(SMALLEST), np.float32)
        np.put_along_axis(dense, stored["index"].astype(np.int64), kept, axis=1)
        return dense


class ZstdFloat16:
    """float16 logits on a disk behind zstd level 1, in two forms.

    One is a Zarr array with sharding. The other has the same chunks, read by a loop of our own.
    """

    def __init__(self, logits: NDArray[np.float16], folder: Path, chunk_rows: int, shard_rows: int) -> None:
        """Write both. chunk_rows, shard_rows: the cutting of the capture that it is compared with."""
        self._shape, self._chunk_rows, self._shard_rows = logits.shape, chunk_rows, shard_rows
        rows, classes = logits.shape
        self._array = zarr.create_array(
            folder / "float16.zarr",
            shape=(rows, classes),
            dtype="float16",
            chunks=(chunk_rows, classes),
            shards=(shard_rows, classes),
            compressors=ZstdCodec(level=1),
        )
        self._array[...] = logits
        self._path = folder / "float16.chunks"
        self._ends = [0]
        with self._path.open("wb") as file:
            for start in range(0, rows, chunk_rows):
                self._ends.append(
                    self._ends[-1] + file.write(zstd.compress(logits[start : start + chunk_rows], 1))
                )

    @property
    def num_bytes(self) -> int:
        """Bytes of the chunks."""
        return self._ends[-1]

    def read_by_zarr(self) -> None:
        """Read every row to float32 by zarr-python, a shard at a time."""
        for start in range(0, self._shape[0], self._shard_rows):
            np.asarray(self._array[start : start + self._shard_rows]).astype(np.float32)

    def read_by_loop(self) -> None:
        """Read every row to float32: pread, numcodecs' zstd into a buffer, astype. Nothing is checked."""
        file = os.open(self._path, os.O_RDONLY)
        try:
            for number, start in enumerate(range(0, self._shape[0], self._chunk_rows)):
                rows = min(self._chunk_rows, self._shape[0] - start)
                chunk = np.empty((rows, self._shape[1]), np.float16)
                first, last = self._ends[number : number + 2]
                zstd.decompress(os.pread(file, last - first, first), chunk)
                chunk.astype(np.float32)
        finally:
            os.close(file)
