"""The basis that a capture in the transform encoding is written with: that of the store, or one of calibration rows.

A capture that is begun has its basis in the store, which is used whatever calibration rows are given. They are needed to begin,
and where files of the basis are lost: the same rows then give the same basis, which its digest proves.
"""

from typing import Any

import numpy as np

from ..checks import as_logits
from ..encodings.basis import Basis
from ..encodings.transform import Transform
from ..errors import ConfigError, SpecMismatch
from ..format.constants import MAX_BASIS_BYTES, SPEC
from .root import Root
from .stored_basis import HeldBasis


def held_basis(root: Root, name: str) -> HeldBasis | None:
    """Return the basis of a capture that is begun or sealed; None for a free name. Raises ManifestInvalid."""
    folder = root.folder.sub(name)
    if root.has(name):
        return HeldBasis(folder, root.grid, root.seal(name))
    return HeldBasis(folder, root.grid) if folder.exists(SPEC) else None


def with_basis(
    encoding: Transform, held: HeldBasis | None, columns: int, calibration: Any, where: str
) -> Transform:
    """Return an encoding with the basis that is held, or one of calibration rows.

    encoding: with a basis of its own, or without. columns: of the capture. calibration: logits of some rows of the teacher,
    (rows, columns), or a function that returns them, called if they are needed. where: the capture.
    Raises ConfigError without rows, BadLogitsError for rows of another shape or without a basis, SpecMismatch for rows of
    another basis than the capture was begun with, ManifestInvalid for a basis in the store that is damaged.
    """
    basis = None if held is None else held.read()
    if basis is not None:
        _check_columns(basis, columns, where)
        return encoding.with_basis(basis)
    if encoding.basis is None:
        encoding = encoding.calibrated(_rows(calibration, columns, where), f"{where}: calibration")
    assert encoding.basis is not None
    basis = Basis(**encoding.basis.arrays())  # one of another capture is read now
    _check_columns(basis, columns, where)
    _check_size(basis, where)
    if held is not None and basis.digest != held.digest:
        raise SpecMismatch(
            where,
            expected=f"the basis with which it was begun, {held.digest[:19]}…, whose files are not all there",
            found=f"{basis.digest[:19]}… of these calibration rows",
            remedy="restore basis, centre, step and weight from a copy, or begin the capture under another name",
        )
    return encoding.with_basis(basis)


def _rows(calibration: Any, columns: int, where: str) -> Any:
    """Return calibration rows as float32."""
    if callable(calibration):
        calibration = calibration()
    if calibration is None:
        raise ConfigError(
            f"{where}: calibration",
            expected="logits of some rows of the teacher, from which the basis is made",
            found="None, and no basis in the store",
            remedy="pass calibration=…, the logits of some 2,000 rows",
        )
    shape = tuple(getattr(calibration, "shape", None) or np.shape(calibration))
    return as_logits(calibration, (shape[0] if shape else 0, columns), f"{where}: calibration")[0]


def _check_columns(basis: Basis, columns: int, where: str) -> None:
    if basis.num_classes != columns:
        raise SpecMismatch(
            where,
            expected=f"the columns of its basis, {basis.num_classes}",
            found=f"{columns} columns",
            remedy="name the classes with which the basis was made, or choose another name",
        )


def _check_size(basis: Basis, where: str) -> None:
    if basis.basis.nbytes > MAX_BASIS_BYTES:
        raise ConfigError(
            f"{where}: basis",
            expected=f"at most {MAX_BASIS_BYTES} bytes, the limit of readers",
            found=f"{basis.num_components} components of {basis.num_classes} classes",
            remedy="calibrate with fewer rows, or keep the largest logits: encoding { top_k = 64 }",
        )
