"""IDX files, the format of MNIST.

An IDX file is a header and raw bytes, both big-endian:

    0      1      2      3      4 … 4 + 4 d                    …
    00     00     type   d      d axis lengths, uint32 each    the items, last axis fastest

1. Gzip is recognised by its first two bytes, not by the name of the file.
2. The header must be that of uint8 images (00 00 08 03) or labels (00 00 08 01).
3. There must be exactly as many bytes as the header says: a file cut short is named with both counts.
"""

import gzip
import io
import math
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from ...storage.errors import BadDataError
from .arrays import ArrayDataset, require_file

_GZIP = b"\x1f\x8b"
_UINT8 = 0x08
_PIECE = 1 << 20
_CONTENTS = {3: "images (rows, height, width)", 1: "labels (rows,)"}


def idx(
    images: Path,
    labels: Path | None = None,
    *,
    subset: str | None = None,
    omit_classes: Sequence[int | str] = (),
    fraction: float = 1.0,
    seed: int = 0,
) -> ArrayDataset:
    """Read a set in the format of MNIST: inputs (rows, height, width) uint8, labels where a file is given.

    images, labels: IDX files, gzipped or not. Classes are "0" … up to the largest label in the file.
    Further arguments: `datasets.selection`.
    Raises BadDataError if a file is missing, is none of IDX, is too short or too long, or if the two
    files hold different numbers of examples.
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
    dataset = ArrayDataset(inputs, targets, where=str(images))
    return dataset.selected(omit_classes=omit_classes, fraction=fraction, seed=seed, subset=subset)


def read_idx(path: Path, axes: int) -> UInt8[np.ndarray, "..."]:
    """Read one IDX file of uint8, gzipped or not.

    axes: how many it must have, 3 for images and 1 for labels.
    Returns the array, uint8. Raises BadDataError if the file is missing or not exactly that.
    """
    require_file(path, f"an IDX file of {_CONTENTS.get(axes, f'{axes} axes')}")
    with path.open("rb") as raw:
        zipped = raw.read(2) == _GZIP
        raw.seek(0)
        stream: io.BufferedIOBase = gzip.GzipFile(fileobj=raw) if zipped else raw
        header, whole = _read(stream, 4 + 4 * axes)
        magic = bytes((0, 0, _UINT8, axes))
        if header[:4] != magic:
            raise BadDataError(
                str(path),
                expected=f"an IDX file that begins {magic.hex(' ')}, uint8 {_CONTENTS.get(axes, '')}".rstrip(),
                found=_describe_magic(bytes(header[:4])),
                remedy="name the file of that content",
            )
        if len(header) < 4 + 4 * axes:
            raise _cut_short(path, "header", 4 + 4 * axes, len(header), zipped)
        shape = struct.unpack(f">{axes}I", header[4:])
        size = math.prod(shape)
        contents = f"header and {' x '.join(map(str, shape))}"
        content, whole = _read(stream, size)
        if len(content) < size or not whole:
            raise _cut_short(path, contents, len(header) + size, len(header) + len(content), zipped)
        rest, whole = _read(stream, 1)
        if rest:
            raise BadDataError(
                str(path),
                expected=f"{len(header) + size} bytes{_unzipped(zipped)} ({contents})",
                found="more than that",
                remedy="fetch the file again",
            )
        if not whole:  # the checksum at the end of gzip is missing or another one
            raise _cut_short(path, contents, len(header) + size, len(header) + size, zipped)
    return np.frombuffer(bytes(content), dtype=np.uint8).reshape(shape).copy()


def _read(stream: io.BufferedIOBase, size: int) -> tuple[bytearray, bool]:
    """Read up to `size` bytes; also tell whether the stream was sound as far as it was read.

    Piece by piece, so that a size that a broken header invents is never allocated; by `read1`, so that
    what gzip gave before it broke off is counted.
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


def _cut_short(path: Path, content: str, expected: int, found: int, zipped: bool) -> BadDataError:
    return BadDataError(
        str(path),
        expected=f"{expected} bytes{_unzipped(zipped)} ({content})",
        found=f"{found}" if found < expected else f"{found} whose gzip checksum is wrong or missing",
        remedy="the file is cut short or damaged: fetch it again",
    )


def _unzipped(zipped: bool) -> str:
    return " after decompression" if zipped else ""


def _describe_magic(magic: bytes) -> str:
    if len(magic) == 4 and magic[:3] == bytes((0, 0, _UINT8)) and magic[3] in _CONTENTS:
        return f"{magic.hex(' ')}, uint8 {_CONTENTS[magic[3]]}"
    return magic.hex(" ") or "an empty file"
