"""Transfer sets of arrays in memory or in NumPy files.

`ArrayDataset` holds inputs, labels and class names, checked once. `digits` and `idx` return one, and `arrays` reads one
from an `.npz` file. `TransferSet` is the protocol of every set: `len` and `[i]`. logitstore also uses `__getitems__`,
`class_names`, `ids` and `fingerprint()`, if the set has them.
"""

import hashlib
import json
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int64, Shaped

from ...storage.errors import BadDataError, described
from .class_names import as_names, checked_class_names
from .selection import omitted_numbers, select


@runtime_checkable
class TransferSet(Protocol):
    """A map-style data set, as `torch.utils.data.DataLoader` takes it."""

    def __len__(self) -> int:
        """Return the number of examples."""

    def __getitem__(self, index: int, /) -> object:
        """Return `(input, label)` or `input` of one example; -1 is an unknown label."""


Example = np.ndarray | tuple[np.ndarray, int]
"""An item of a set: an input, or an input and its label."""
_MOST_NUMBERED = 1_000_000
"""Maximum number of classes that are numbered for lack of class names."""


class ArrayDataset:
    """Examples held in memory as one array.

    >>> digits = ArrayDataset(np.zeros((3, 8, 8), dtype=np.uint8), np.array([0, 1, -1]))
    >>> len(digits), digits.input_shape, digits[1][1], digits.class_names
    (3, (8, 8), 1, ('0', '1'))
    """

    def __init__(
        self,
        inputs: Shaped[np.ndarray, "rows ..."],
        labels: Shaped[np.ndarray, "..."] | None = None,
        class_names: Sequence[str] | None = None,
        ids: Sequence[str] | None = None,
        *,
        where: str = "transfer set",
    ) -> None:
        """Check and keep the arrays, uncopied if they are contiguous and of native byte order.

        inputs: (rows, …) uint8 or float, finite, or (rows, length) int64 token ids. labels: (rows,) integers, -1 where
        unknown, or None. class_names: one a class; by default "0" … up to the largest label. ids: one a row.
        where: name of the set in messages. Raises BadDataError for wrong dtypes, shapes, lengths or values.
        """
        self.inputs = _checked_inputs(inputs, where)
        """(rows, …) uint8 or float, or (rows, length) int64."""
        self.is_numbered = class_names is None
        """Whether the class names are only the numbers up to the largest label."""
        self.omitted: tuple[int, ...] = ()
        """Classes whose examples were left out on purpose."""
        if class_names is None:
            class_names = _numbered_classes(labels, where)
        self.class_names = checked_class_names(class_names, where)
        """One name a class, or () if the classes are unknown."""
        self.labels = None if labels is None else checked_labels(labels, self.class_names, where)
        """(rows,) int64, -1 where unknown; None for a set without labels."""
        self.ids = None if ids is None else tuple(ids)
        """A name a row, or None."""
        for name, column in (("labels", self.labels), ("ids", self.ids)):
            if column is not None and len(column) != len(self.inputs):
                raise BadDataError(
                    where,
                    expected=f"{len(self.inputs)} {name}, one an input",
                    found=f"{len(column)}",
                    remedy=f"give the {name} that belong to these inputs",
                )
        self._fingerprint: str | None = None

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one input."""
        return self.inputs.shape[1:]

    def __len__(self) -> int:
        """Return the number of examples."""
        return len(self.inputs)

    def __getitem__(self, index: int) -> Example:
        """Return the input of one example, and its label if the set has labels."""
        return self.inputs[index] if self.labels is None else (self.inputs[index], int(self.labels[index]))

    def __getitems__(self, indices: list[int]) -> list[Example]:
        """Return several examples, as DataLoader requests them."""
        return [self[index] for index in indices]

    def take(self, rows: Int64[np.ndarray, "kept"]) -> "ArrayDataset":
        """Return the set of some of the examples, with the same classes."""
        if len(rows) == len(self) and np.array_equal(rows, np.arange(len(self))):
            return self
        taken = ArrayDataset(
            self.inputs[rows],
            None if self.labels is None else self.labels[rows],
            self.class_names,
            None if self.ids is None else [self.ids[row] for row in rows.tolist()],
        )
        taken.is_numbered, taken.omitted = self.is_numbered, self.omitted
        return taken

    def selected(
        self,
        *,
        omit_classes: Sequence[int | str] = (),
        fraction: float = 1.0,
        seed: int = 0,
        subset: str | None = None,
    ) -> "ArrayDataset":
        """Return the set of the examples that `selection.select` keeps."""
        rows = select(
            len(self),
            self.labels,
            self.class_names,
            omit_classes=omit_classes,
            fraction=fraction,
            seed=seed,
            subset=subset,
        )
        taken = self.take(rows)
        taken.omitted += omitted_numbers(omit_classes, self.class_names)
        return taken

    def fingerprint(self) -> str:
        """Digest dtypes, shapes, class names, ids and all bytes, "sha256:…"; computed once."""
        if self._fingerprint is None:
            digest = hashlib.sha256()
            for array in (self.inputs, self.labels):
                head = None if array is None else [array.dtype.newbyteorder("<").str, list(array.shape)]
                digest.update(json.dumps(head).encode() + b"\n")
                if array is not None:
                    little = array.astype(array.dtype.newbyteorder("<"), copy=False)
                    digest.update(np.ascontiguousarray(little).data)
            digest.update(json.dumps([self.class_names, self.ids]).encode())
            self._fingerprint = f"sha256:{digest.hexdigest()}"
        return self._fingerprint


def arrays(
    file: Path,
    inputs: str = "inputs",
    labels: str = "labels",
    class_names: str = "class_names",
    *,
    first_label: int = 0,
    subset: str | None = None,
    omit_classes: Sequence[int | str] = (),
    fraction: float = 1.0,
    seed: int = 0,
) -> ArrayDataset:
    """Read a set from an `.npz` file, as `numpy.savez` writes it.

    inputs, labels, class_names: names of the arrays in the file; `labels=""` for a set without labels. The array of
    class names is optional. float64 inputs, NumPy's default, become float32.
    first_label: label of class 0, 1 for labels that count from 1. Further arguments: `datasets.selection`.
    Raises BadDataError if the file or an array is missing or has wrong values.
    """
    where = str(file)
    require_file(file, "an .npz file")
    wanted = [name for name in (inputs, labels) if name]
    try:
        # Open with zipfile first: numpy.load alone would accept an .npy file
        with zipfile.ZipFile(file), np.load(file, allow_pickle=False) as archive:
            known = list(archive.files)
            missing = [name for name in wanted if name not in known]
            held = {} if missing else {name: archive[name] for name in {*wanted, class_names} & {*known}}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise BadDataError(
            where,
            expected="an .npz file of plain arrays",
            found=described(error),
            remedy="write it with numpy.savez, without object arrays",
        ) from error
    if missing:
        raise BadDataError(
            where,
            expected=f"an array {missing[0]!r}",
            found=f"the arrays {known}",
            remedy='name the arrays: inputs = "…", labels = "…" (labels = "" for a set without labels)',
        )
    names = as_names(held[class_names], f"{where}: {class_names}") if class_names in held else None
    dataset = ArrayDataset(
        _as_float32(held[inputs], where),
        from_zero(held[labels], first_label, where) if labels else None,
        names,
        where=where,
    )
    return dataset.selected(omit_classes=omit_classes, fraction=fraction, seed=seed, subset=subset)


def from_zero(labels: Shaped[np.ndarray, "..."], first_label: int, where: str) -> Shaped[np.ndarray, "..."]:
    """Return labels that count from 0 instead of `first_label`; -1 stays -1. Raises BadDataError for smaller labels.

    >>> from_zero(np.array([1, 3, -1]), 1, "set").tolist()
    [0, 2, -1]
    """
    if first_label == 0 or not np.issubdtype(labels.dtype, np.integer):
        return labels  # other dtypes are refused with the set
    wide = labels.astype(np.int64)
    below = np.flatnonzero((wide < first_label) & (wide != -1))
    if len(below):
        raise BadDataError(
            f"{where}, example {below[0]}",
            expected=f"labels from first_label = {first_label}, or -1",
            found=str(labels.flat[below[0]]),
            remedy="correct first_label",
        )
    return np.where(wide == -1, -1, wide - first_label)


def require_file(path: Path, expected: str) -> None:
    """Raise BadDataError unless `path` is a file."""
    if not path.is_file():
        raise BadDataError(
            str(path),
            expected=expected,
            found="a folder" if path.is_dir() else "nothing there",
            remedy="correct the file name (relative ones start at the experiment file's folder)",
        )


def checked_labels(
    labels: Shaped[np.ndarray, "..."], class_names: Sequence[str], where: str
) -> Int64[np.ndarray, "rows"]:
    """Return labels as int64; raise BadDataError unless they are integers from -1 to the last class."""
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise BadDataError(
            where,
            expected="integer labels of shape (rows,)",
            found=f"{labels.dtype} of shape {labels.shape}",
            remedy="give class numbers, -1 where unknown",
        )
    beyond = np.flatnonzero((labels < -1) | (labels >= len(class_names)))
    if len(beyond):
        raise BadDataError(
            f"{where}, example {beyond[0]}",
            expected=f"a label from -1 to {len(class_names) - 1} ({len(class_names)} classes)",
            found=str(labels[beyond[0]]),
            remedy="correct the labels, or name all classes",
        )
    return labels.astype(np.int64)


def _numbered_classes(labels: Shaped[np.ndarray, "..."] | None, where: str) -> list[str]:
    if labels is None or labels.size == 0 or not np.issubdtype(labels.dtype, np.integer):
        return []
    largest = int(labels.max())
    if largest >= _MOST_NUMBERED:  # 2³¹ - 1 for "no label" would create as many names
        raise BadDataError(
            f"{where}, example {int(labels.argmax())}",
            expected=f"a label below {_MOST_NUMBERED}, for a set without class names",
            found=str(largest),
            remedy="write -1 for an unknown label, or give class names",
        )
    return [str(number) for number in range(largest + 1)]


def _as_float32(inputs: Shaped[np.ndarray, "..."], where: str) -> Shaped[np.ndarray, "..."]:
    """Cast wider floats to float32, keep other dtypes; raise BadDataError if a number overflows."""
    if inputs.dtype.kind != "f" or inputs.dtype.itemsize <= 4:
        return inputs
    with np.errstate(over="ignore"):
        cast = inputs.astype(np.float32)
    beyond = np.isfinite(inputs) & ~np.isfinite(cast)
    if beyond.any():
        raise BadDataError(
            where,
            expected=f"inputs up to {np.finfo(np.float32).max:.4g}, the maximum of float32",
            found=f"{inputs[beyond][0]:g}",
            remedy="scale the inputs",
        )
    return cast


def _checked_inputs(inputs: Shaped[np.ndarray, "rows ..."], where: str) -> Shaped[np.ndarray, "rows ..."]:
    if inputs.ndim < 1 or inputs.size == 0:
        raise BadDataError(
            where,
            expected="inputs of shape (rows, …), with 1 or more rows",
            found=f"inputs of shape {inputs.shape}",
            remedy="give inputs of that shape",
        )
    # Token ids: int64 images are refused, because they would not be scaled.
    is_sequence = inputs.dtype == np.int64 and inputs.ndim == 2
    if inputs.dtype != np.uint8 and not is_sequence and not np.issubdtype(inputs.dtype, np.floating):
        raise BadDataError(
            where,
            expected="inputs as uint8 or float, or rows of token ids as int64",
            found=f"inputs as {inputs.dtype} of {inputs.ndim} axes",
            remedy="convert them (uint8 for pixels from 0 to 255)",
        )
    if inputs.dtype != np.uint8 and not np.isfinite(inputs).all():
        row = int(np.argmin(np.isfinite(inputs).reshape(len(inputs), -1).all(axis=1)))
        raise BadDataError(
            f"{where}, example {row}",
            expected="finite inputs",
            found="NaN or an infinite number",
            remedy="replace them in the data",
        )
    return np.ascontiguousarray(inputs, dtype=inputs.dtype.newbyteorder("="))
