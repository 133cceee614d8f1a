"""Which input does a row belong to? A 64-bit digest of each input, so that no mix-up is silent.

xxh3-64 over dtype, shape and C-order little-endian bytes (docs/format-v1.md, "Digests"): a fast
fingerprint against accidents, not a signature against malice.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import xxhash
from jaxtyping import UInt64
from numpy.typing import NDArray

from .errors import BadDataError


def digest_rows(inputs: NDArray[Any] | Sequence[NDArray[Any]]) -> UInt64[np.ndarray, " rows"]:
    """The digest of each input, as a store's `digest` and `seen` have it.

    inputs: (rows, …) of any numeric dtype, or a sequence of rows.

    >>> import numpy as np
    >>> digest_rows(np.zeros((2, 3), np.uint8)).tolist() == digest_rows([np.zeros(3, np.uint8)] * 2).tolist()
    True
    """
    digests = np.empty(len(inputs), dtype=np.uint64)
    headers: dict[tuple[str, tuple[int, ...]], Any] = {}
    for row, value in enumerate(inputs):
        array = np.asarray(value)
        if array.dtype.kind not in "biuf":
            raise BadDataError(
                f"row {row}",
                expected="an input of a numeric dtype",
                found=f"dtype {array.dtype}",
                remedy="let the transfer set return numpy arrays",
            )
        array = np.asarray(array, dtype=array.dtype.newbyteorder("<"))
        key = (array.dtype.str, array.shape)
        if key not in headers:
            header = f"{array.dtype.str}\0{','.join(map(str, array.shape))}\0"
            headers[key] = xxhash.xxh3_64(header.encode())
        state = headers[key].copy()
        state.update(array.tobytes())
        digests[row] = state.intdigest()
    return digests
