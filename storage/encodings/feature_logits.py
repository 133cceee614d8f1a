"""Logits that are a linear map of features: the last layer of a teacher, applied a few rows at a time.

    logits = features · weightᵀ + bias        (rows, classes) = (rows, features) · (features, classes)

21,843 classes of 768 features take 28 times fewer bytes as features. `FeatureLogits` holds those, and makes the rows of a tile
when they are looked at. Their bits depend neither on the division of the rows nor on the threads (`products`).
"""

from collections.abc import Iterator
from typing import Any, Final

import numpy as np
from jaxtyping import Float32
from numpy.typing import NDArray

from ..checks import as_logits, bad_logits, check_finite, hidden_by_mask
from ..errors import BadLogitsError, ConfigError
from .products import one_thread, tiled_product

_CHECKED_ROWS: Final = 1 << 12
"""Rows of a weight whose finiteness is looked at together."""


class LinearHead:
    """The last layer of a teacher, in float32."""

    def __init__(self, weight: Any, bias: Any = None) -> None:
        """Bring weight and bias to float32, once.

        weight: (classes, features), as `torch.nn.Linear` has it. bias: (classes,), or None. NumPy arrays or torch tensors of
        any floating dtype. Raises ConfigError for other shapes or dtypes, for a NaN or an infinity, and for values that a
        mask hides.
        """
        self.weight: Float32[np.ndarray, "classes features"] = _as_float32(
            weight, 2, "head: weight", "(classes, features)"
        )
        """A row a class."""
        _check_finite(self.weight, "head: weight")
        self.bias: Float32[np.ndarray, " classes"] | None = None
        """Added to each class; None for nothing."""
        if bias is not None:
            shape = f"({self.num_classes},)"
            self.bias = _as_float32(bias, 1, "head: bias", shape)
            if len(self.bias) != self.num_classes:
                raise _wrong("head: bias", f"floats of shape {shape}", f"shape {self.bias.shape}")
            _check_finite(self.bias[None], "head: bias")

    @property
    def num_classes(self) -> int:
        """Rows of the weight."""
        return len(self.weight)

    @property
    def num_features(self) -> int:
        """Columns of the weight."""
        return int(self.weight.shape[1])


class FeatureLogits:
    """Rows of logits as the features that a linear head makes them of.

    `Store.capture` and `CaptureWriter.write` take them in the place of an array. The transform encoding makes a few dense rows
    at a time; other encodings make all rows of a block.
    """

    def __init__(self, features: Any, head: Any) -> None:
        """Bring features to float32. head: a `LinearHead`.

        features: (rows, features), the inputs of the head: a NumPy array or a torch tensor of any floating dtype.
        Raises BadLogitsError for another shape or dtype, and for values that a mask hides. Rows that are not finite are
        refused where they are stored.
        """
        if not isinstance(head, LinearHead):  # such as the layer itself
            raise ConfigError(
                "head",
                expected="a logitstore.LinearHead",
                found=f"a {type(head).__name__}",
                remedy="pass LinearHead(layer.weight, layer.bias)",
            )
        wanted = head.num_features
        try:
            values = _as_float32(features, 2, "features", f"(rows, {wanted})")
        except ConfigError as error:
            raise _wrong_features(error.expected, error.found) from None
        if values.shape[1] != wanted:
            raise _wrong_features(f"{wanted} features a row, as the head's weight has", f"{values.shape[1]}")
        self.features: Float32[np.ndarray, "rows features"] = values
        """The inputs of the head."""
        self.head: LinearHead = head
        """The map to logits."""

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, classes)."""
        return len(self.features), self.head.num_classes

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, rows: slice) -> "FeatureLogits":
        """Return some rows; nothing is computed."""
        return FeatureLogits(self.features[rows], self.head)

    def dense(self) -> Float32[np.ndarray, "rows classes"]:
        """Return the logits as an array."""
        # Whoever stores them refuses an infinity.
        with one_thread, np.errstate(over="ignore", invalid="ignore"):
            logits = tiled_product(self.features, self.head.weight.T)
            if self.head.bias is not None:
                logits += self.head.bias
        return logits

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        """Return the logits as NumPy asks for them. Raises ValueError where no copy is wanted."""
        if copy is False:
            raise ValueError("logits of features are computed: they cannot be had without a copy")
        return self.dense().astype(dtype or np.float32, copy=False)

    def check_finite(self, first_row: int, where: str) -> None:
        """Refuse a row with a NaN or an infinity among its features. Raises BadLogitsError."""
        bad = ~np.isfinite(self.features)
        if bad.any():
            raise bad_logits(bad, self.features, first_row, where, expected="finite features", kind="feature")


Rows = Float32[np.ndarray, "rows classes"] | FeatureLogits
"""Rows of logits, dense or not."""


def check_finite_rows(logits: Rows, first_row: int, where: str) -> None:
    """Refuse a row of logits, or of features, with a NaN or an infinity. Raises BadLogitsError."""
    if isinstance(logits, FeatureLogits):
        logits.check_finite(first_row, where)
    else:
        check_finite(logits, first_row, where)


def dense(logits: Rows) -> Float32[np.ndarray, "rows classes"]:
    """Return logits as an array: the same one, or the rows of features."""
    return logits.dense() if isinstance(logits, FeatureLogits) else logits


def checked_rows(
    logits: Rows, part: slice, first_row: int, where: str
) -> Float32[np.ndarray, "some classes"]:
    """Return some rows as an array. first_row: number of the first of all. Raises BadLogitsError for features whose logits
    overflow.
    """
    rows = dense(logits[part])
    if isinstance(logits, FeatureLogits):
        check_finite(rows, first_row + part.start, where)
    return rows


def as_rows(
    logits: Any, expected: tuple[int, int], where: str, *, is_lazy: bool
) -> tuple[Rows, Float32[np.ndarray, " rows"] | None]:
    """Return logits as `as_logits` does; features as they are. is_lazy: whether they may stay features.

    Raises BadLogitsError as `as_logits`.
    """
    if not isinstance(logits, FeatureLogits):
        return as_logits(logits, expected, where)
    if logits.shape != expected:
        raise BadLogitsError(
            where,
            expected=f"features and a head of logits of shape {expected} (rows, classes)",
            found=f"those of shape {logits.shape}",
            remedy="use a head with the classes of this store, and write whole blocks",
        )
    return logits if is_lazy else logits.dense(), None


def row_slices(rows: int, step: int) -> Iterator[slice]:
    """Cut rows into slices.

    >>> list(row_slices(5, 2))
    [slice(0, 2, None), slice(2, 4, None), slice(4, 5, None)]
    """
    return (slice(first, min(first + step, rows)) for first in range(0, rows, step))


def _as_float32(values: Any, dimensions: int, where: str, shape: str) -> Float32[np.ndarray, "..."]:
    """Return floats of any width as contiguous float32. Raises ConfigError."""
    if hasattr(values, "detach"):  # a torch tensor, by duck typing: storage imports no torch
        tensor = values.detach()
        # NumPy has no bfloat16. Integers stay as they are, to be refused: those of a quantised layer lack their scale.
        is_narrow = tensor.is_floating_point() and tensor.element_size() < 4
        values = (tensor.float() if is_narrow else tensor).cpu()
    if found := hidden_by_mask(values):
        raise _wrong(where, f"floats of shape {shape}", found)
    array = np.asarray(values)
    if array.ndim != dimensions or array.dtype.kind != "f" or not all(array.shape[1:]):
        raise _wrong(where, f"floats of shape {shape}", f"{array.dtype} of shape {array.shape}")
    with np.errstate(over="ignore"):  # an infinity is refused
        return np.ascontiguousarray(array, np.float32)


def _check_finite(values: Float32[np.ndarray, "rows columns"], where: str) -> None:
    """Refuse a NaN or an infinity. Raises ConfigError."""
    for part in row_slices(len(values), _CHECKED_ROWS):
        if not np.isfinite(values[part]).all():
            row, column = (int(i) for i in np.argwhere(~np.isfinite(values[part]))[0])
            number = f"[{part.start + row}, {column}]" if len(values) > 1 else f"[{column}]"
            raise _wrong(f"{where}{number}", "a finite number", str(values[part][row, column]))


def _wrong_features(expected: str, found: str) -> BadLogitsError:
    remedy = "pass the inputs of that very layer, (rows, features)"
    return BadLogitsError("features", expected=expected, found=found, remedy=remedy)


def _wrong(where: str, expected: str, found: str) -> ConfigError:
    return ConfigError(
        where, expected=expected, found=found, remedy="pass weight and bias as torch.nn.Linear has them"
    )
