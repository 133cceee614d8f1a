"""The basis of a capture in the transform encoding, one for all batches of a process.

A batch holds codes, and a reference to the basis in which they are written. A pickled batch, such as one that a worker of a
DataLoader sends, holds the name of the basis instead of its numbers:

    worker     batch ── codes, "sha256:…" ──>  main process: the basis that a stream has registered here

The name is the digest of the capture's seal, which covers the basis, and the order of its columns.
"""

import threading
from weakref import WeakValueDictionary

import numpy as np
from jaxtyping import Float32, UInt8, UInt16

from ..encodings.transform import Transform
from ..errors import ConfigError
from ..parts.reader import CaptureReader


class SharedBasis:
    """A basis that many batches refer to; its arrays are read with the first row that is decoded."""

    def __init__(self, key: str, encoding: Transform | None) -> None:
        """Refer to a basis. key: its name. encoding: of the capture; None if no stream of this process has it."""
        self._key, self._encoding = key, encoding

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return _find, (self._key,)

    def __repr__(self) -> str:
        return f"<SharedBasis of capture {self._key[:19]}…>"

    @property
    def encoding(self) -> Transform:
        """The encoding, with its basis. Raises ConfigError in a process without a stream of this capture."""
        if self._encoding is None:
            raise ConfigError(
                "a batch of another process",
                expected=f"a stream of the capture {self._key[:19]}… in this process, which has its basis",
                found="0 streams of it",
                remedy="make the stream before its batches are loaded, and keep it, or send batches that are decoded",
            )
        return self._encoding

    def decode(
        self,
        codes: UInt16[np.ndarray, "rows components"],
        refine: UInt8[np.ndarray, " rows"],
        escape: UInt16[np.ndarray, "escaped classes"],
    ) -> Float32[np.ndarray, "rows classes"]:
        """Decode rows to centred logits: the largest of a row is 0. escape: of the rows with refine 255, in order."""
        return self.encoding.decode({"codes": codes, "refine": refine, "escape": escape})


_known: WeakValueDictionary[str, SharedBasis] = WeakValueDictionary()
"""The bases of this process by name, as long as a stream or a batch has them."""
_lock = threading.Lock()


def share_basis(capture: CaptureReader) -> SharedBasis | None:
    """Return the basis of a capture, the same object at every call; None for one in another encoding."""
    if not isinstance(capture.encoding, Transform):
        return None
    # The columns of one capture are in order in a store of its classes, and as stored in a store of more.
    key = f"{capture.digest}{'' if capture.has_all_classes else ', own columns'}"
    with _lock:
        found = _known.get(key)
        if found is None:
            found = _known[key] = SharedBasis(key, capture.encoding)
        return found


def _find(key: str) -> SharedBasis:
    """Return the basis of a name; one without numbers, which fails on decoding, if this process has none."""
    with _lock:
        return _known.get(key) or SharedBasis(key, None)
