"""Digests of inputs: 64 bits that bind a row to its input.

xxh3-64 over dtype, shape and C-order little-endian bytes (docs/format-v1.md, "Digests"): a fast fingerprint against
accidents, not a signature against malice.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import xxhash
from jaxtyping import Int64, UInt64
from numpy.typing import NDArray

from .checks import hidden_by_mask
from .errors import BadDataError, ConfigError, RowMismatch


def digest_rows(inputs: NDArray[Any] | Sequence[NDArray[Any]]) -> UInt64[np.ndarray, " rows"]:
    """Compute the digest of each input, as in a store's `digest` and `seen`.

    inputs: (rows, …) of any numeric dtype, or a sequence of rows.

    >>> import numpy as np
    >>> digest_rows(np.zeros((2, 3), np.uint8)).tolist() == digest_rows([np.zeros(3, np.uint8)] * 2).tolist()
    True
    """
    _refuse_masked([inputs] if isinstance(inputs, np.ndarray) else inputs)
    if isinstance(inputs, np.ndarray):
        return _digests(inputs)
    rows = [np.asarray(value) for value in inputs]
    if len({(row.dtype.str, row.shape) for row in rows}) == 1:
        return _digests(np.stack(rows))
    return np.concatenate([np.zeros(0, np.uint64), *(_digests(row[None], at) for at, row in enumerate(rows))])


def given_digests(given: NDArray[Any] | None, inputs: NDArray[Any] | None) -> UInt64[np.ndarray, " rows"]:
    """Return the digests of a store's inputs. Raises ConfigError for none, RowMismatch for those of other inputs."""
    if given is None and inputs is None:
        raise ConfigError(
            "digests",
            expected="digests or inputs",
            found="neither",
            remedy="pass digests=logitstore.digest_rows(inputs), or inputs=…",
        )
    own = None if inputs is None else digest_rows(inputs)
    if given is None:
        assert own is not None
        return own
    digests = np.asarray(given)
    # Fractions have no room for 64 bits, and a signed integer may be a hash of something else.
    if digests.ndim != 1 or digests.dtype != np.uint64 or hidden_by_mask(given):
        raise ConfigError(
            "digests",
            expected="uint64, one a row",
            found=f"{digests.dtype} of shape {digests.shape}",
            remedy="pass digests=logitstore.digest_rows(inputs), or inputs=…",
        )
    if own is not None:
        check_digests(range(len(own)), digests, own, np.arange(len(own)))
    return digests


def check_digests(
    rows: range,
    found: UInt64[np.ndarray, " rows"],
    expected: UInt64[np.ndarray, " rows"],
    source: Int64[np.ndarray, " rows"],
) -> None:
    """Refuse inputs other than those of the store. Raises RowMismatch with the first."""
    bad = np.flatnonzero(found != expected)
    if len(bad):
        first = int(bad[0])
        raise RowMismatch(
            f"row {rows.start + first} (index {int(source[first])} of the transfer set)",
            expected=f"an input with digest {int(expected[first]):016x}",
            found=f"{int(found[first]):016x} ({len(bad)} of {len(rows)} rows of this block differ)",
            remedy="use the transfer set that the store was made from, or make a new store",
        )


def _refuse_masked(inputs: Sequence[Any]) -> None:
    """Refuse arrays with hidden values, of which a digest would see what lies behind. Raises BadDataError."""
    if found := next(filter(None, map(hidden_by_mask, inputs)), None):
        raise BadDataError(
            "inputs", expected="arrays without masked values", found=found, remedy="fill the hidden values"
        )


def _digests(inputs: NDArray[Any], first_row: int = 0) -> UInt64[np.ndarray, " rows"]:
    """Compute the digests of rows of one dtype and shape: one hash of their header, no copy of their bytes."""
    if inputs.dtype.kind not in "biuf":
        raise BadDataError(
            f"row {first_row}",
            expected="an input of a numeric dtype",
            found=f"dtype {inputs.dtype}",
            remedy="let the transfer set return numeric numpy arrays",
        )
    dtype, shape = inputs.dtype.newbyteorder("<"), inputs.shape[1:]
    header = xxhash.xxh3_64(f"{dtype.str}\0{','.join(map(str, shape))}\0".encode())
    digests = np.empty(len(inputs), dtype=np.uint64)
    if not inputs.size:  # there may be rows without bytes
        digests[...] = header.intdigest()
        return digests
    stored = np.ascontiguousarray(inputs, dtype=dtype).reshape(len(inputs), -1).view(np.uint8)
    data, size = stored.data.cast("B"), stored.shape[1]
    for row in range(len(inputs)):
        state = header.copy()
        state.update(data[row * size : (row + 1) * size])
        digests[row] = state.intdigest()
    return digests
