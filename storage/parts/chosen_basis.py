"""The basis that a capture in the transform encoding is written with: that of the store, or one of calibration rows.

A capture that is begun has its basis in the store, which is used whatever calibration rows are given. They are needed to
begin, and where files of the basis are lost: the same rows then give the same basis, which its digest proves.
"""

from typing import Any

import numpy as np

from ..encodings.basis import MOST_LOGIT, Basis
from ..encodings.feature_logits import as_rows
from ..encodings.transform import Transform
from ..errors import BadLogitsError, ConfigError, SpecMismatch
from ..format.constants import MAX_BASIS_BYTES, SPEC
from ..format.documents import parse_spec
from .part_spec import compare_identity
from .root import Root
from .stored_basis import HeldBasis, StoredBasis


def choose_basis(
    root: Root, name: str, encoding: Transform, columns: int, spec: bytes, calibration: Any
) -> Basis:
    """Return the basis of the capture `name` if it is begun; else that of the encoding, or one of calibration rows.

    encoding: with a basis of its own, or without. columns: of the capture. spec: as the writer would begin it.
    calibration: logits of some rows of the teacher, (rows, columns), or their features and head, or a function that returns
    them, called if needed.
    Raises ConfigError without rows, BadLogitsError for rows of another shape or without a basis, SpecMismatch for another
    identity or for rows of another basis than the capture was begun with, ManifestInvalid for a damaged basis.
    """
    part = f"teachers/{name}"
    where = f"{root.path}: {part}"
    if "basis" in parse_spec(spec, where)[1]:
        raise ConfigError(
            f"capture {name!r}: notes",
            expected="no key of the writer's own, basis",
            found="basis",
            remedy="give it another name",
        )
    held, basis = _held_basis(root, part), None
    if held is not None:
        folder = root.folder.sub(part)
        compare_identity(folder, where, spec, held.spec, sealed=root.has(part))
        basis = held.read()
    if basis is None:
        basis = _new_basis(encoding, columns, calibration, where)
        if held is not None and basis.digest != held.digest:
            raise SpecMismatch(
                where,
                expected=f"the basis with which it was begun, {held.digest[:19]}…, whose files are not all there",
                found=f"{basis.digest[:19]}… of these calibration rows",
                remedy="restore basis, centre, step and weight from a copy, or begin the capture under another name",
            )
    _check_columns(basis, columns, where)
    return basis


def _held_basis(root: Root, part: str) -> HeldBasis | None:
    """Return the basis of a capture that is begun or sealed; None for a free name. Raises ManifestInvalid."""
    folder = root.folder.sub(part)
    if root.has(part):
        return HeldBasis(folder, root.grid, root.seal(part))
    return HeldBasis(folder, root.grid) if folder.exists(SPEC) else None


def _new_basis(encoding: Transform, columns: int, calibration: Any, where: str) -> Basis:
    """Return the basis that an encoding brings along, or one of calibration rows."""
    if encoding.basis is None:
        encoding = encoding.calibrated(_rows(calibration, columns, where), f"{where}: calibration")
    basis = encoding.basis
    assert basis is not None
    if isinstance(basis, StoredBasis):
        basis = Basis(**basis.arrays())  # one of another capture is read now, with its columns in order
    if basis.basis.nbytes > MAX_BASIS_BYTES:
        raise ConfigError(
            f"{where}: basis",
            expected=f"at most {MAX_BASIS_BYTES} bytes, the limit of readers",
            found=f"{basis.num_components} components of {basis.num_classes} classes",
            remedy="keep the largest logits: encoding { top_k = 64 }; or calibrate with fewer rows of dense logits",
        )
    if not basis.reach <= MOST_LOGIT:
        raise BadLogitsError(
            f"{where}: calibration",
            expected=f"logits whose basis leads to magnitudes up to {MOST_LOGIT:g}, the limit of readers",
            found=f"{basis.reach:.3g}",
            remedy="mask a class by a logit such as -1e3, or capture the other classes alone (classes=…)",
        )
    return basis


def _rows(calibration: Any, columns: int, where: str) -> Any:
    """Return calibration rows as float32, or as features and their head."""
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
    expected = (shape[0] if shape else 0, columns)
    return as_rows(calibration, expected, f"{where}: calibration", is_lazy=True)[0]


def _check_columns(basis: Basis, columns: int, where: str) -> None:
    if basis.num_classes != columns:
        raise SpecMismatch(
            where,
            expected=f"the columns of its basis, {basis.num_classes}",
            found=f"{columns} columns",
            remedy="name the classes with which the basis was made, or choose another name",
        )
