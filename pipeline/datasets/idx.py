"""IDX files, the format of MNIST.

An IDX file is a header and raw bytes, both big-endian:

    0      1      2      3      4 … 4 + 4 d                    …
    00     00     type   d      d axis lengths, uint32 each    the items, last axis fastest

1. Gzip is recognised by its first two bytes, not by the name of the file.
2. The header must be that of uint8 images (00 00 08 03) or labels (00 00 08 01).
3. The number of bytes must match the header; the message for a truncated file states both counts.
"""

import gzip
import io
import math
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import UInt8

from ...storage.errors import BadDataError
from .arrays import ArrayDataset, from_zero, require_file

_GZIP = b"\x1f\x8b"
_UINT8 = 0x08
_PIECE = 1 << 20
_CONTENTS = {3: "images (rows, height, width)", 1: "labels (rows,)"}


def idx(
    images: Path,
    labels: Path | None = None,
    *,
    first_label: int = 0,
    subset: str | None = None,
    omit_classes: Sequence[int | str] = (),
    fraction: float = 1.0,
    seed: int = 0,
) -> ArrayDataset:
    """Read a set in the format of MNIST: inputs (rows, height, width) uint8, labels where a file is given.

    images, labels: IDX files, gzipped or not. Classes are "0" … up to the largest label in the file.
    first_label: label of class 0, 1 for labels that count from 1, as EMNIST's letters do.
    Further arguments: `datasets.selection`.
    Raises BadDataError if a file is missing or damaged, or if the two files hold different numbers of examples.
    """
    inputs = read_idx(images, 3)
    targets = None if labels is None else read_idx(labels, 1)
    if targets is not None and len(targets) != len(inputs):
        raise BadDataError(
            str(labels),
            expected=f"{len(inputs)} labels, one an image of {images.name}",
            found=f"{len(targets)}",
            remedy="name the labels that belong to these images",
        )
    if targets is not None:
        targets = from_zero(targets, first_label, str(labels))
    dataset = ArrayDataset(inputs, targets, where=str(images))
    return dataset.selected(omit_classes=omit_classes, fraction=fraction, seed=seed, subset=subset)


def read_idx(path: Path, axes: Literal[1, 3]) -> UInt8[np.ndarray, "..."]:
    """Read an IDX file of images (3 axes) or labels (1 axis), gzipped or not.

    Raises BadDataError if the file is missing, has another header, or another number of bytes.
    """
    require_file(path, f"an IDX file of {_CONTENTS[axes]}")
    with path.open("rb") as raw:
        zipped = raw.read(2) == _GZIP
        raw.seek(0)
        stream: io.BufferedIOBase = gzip.GzipFile(fileobj=raw) if zipped else raw
        header, _ = _read(stream, 4 + 4 * axes)
        magic = bytes((0, 0, _UINT8, axes))
        if header[:4] != magic:
            raise BadDataError(
                str(path),
                expected=f"an IDX file that begins {magic.hex(' ')}, uint8 {_CONTENTS[axes]}",
                found=_describe_magic(bytes(header[:4])),
                remedy="name the file of that content",
            )
        if len(header) < 4 + 4 * axes:
            raise _wrong_size(path, "header", 4 + 4 * axes, f"{len(header)}", zipped)
        shape = struct.unpack(f">{axes}I", header[4:])
        size = math.prod(shape)
        content, is_sound = _read(stream, size + 1)
    if len(content) != size or not is_sound:
        found = f"{len(header) + len(content)}"
        if len(content) > size:
            found += " or more"
        elif len(content) == size:
            found += " with a wrong or missing gzip checksum"
        contents = f"header and {' x '.join(map(str, shape))}"
        raise _wrong_size(path, contents, len(header) + size, found, zipped)
    return np.frombuffer(content, dtype=np.uint8).reshape(shape)


def _read(stream: io.BufferedIOBase, size: int) -> tuple[bytearray, bool]:
    """Read up to `size` bytes, and return whether the stream was sound so far.

    Reading in pieces avoids allocating the absurd size of a broken header. `read1` returns the bytes that gzip
    decompressed before a failure.
    """
    content = bytearray()
    try:
        while len(content) < size:
            piece = stream.read1(min(_PIECE, size - len(content)))
            if not piece:
                break
            content += piece
    except (EOFError, gzip.BadGzipFile, zlib.error):
        return content, False
    return content, True


def _wrong_size(path: Path, contents: str, expected: int, found: str, zipped: bool) -> BadDataError:
    after = " after decompression" if zipped else ""
    return BadDataError(
        str(path),
        expected=f"{expected} bytes{after} ({contents})",
        found=found,
        remedy="fetch the file again, which is damaged",
    )


def _describe_magic(magic: bytes) -> str:
    if len(magic) == 4 and magic[:3] == bytes((0, 0, _UINT8)) and magic[3] in _CONTENTS:
        return f"{magic.hex(' ')}, uint8 {_CONTENTS[magic[3]]}"
    return magic.hex(" ") or "an empty file"
