"""Calibration of the transform encoding in stage one: each teacher is run over a draw of the transfer set.

    first rank     runs each new teacher over view 0 of the drawn rows, and makes its basis, before the store is written to
                   begins the captures: their spec, and the basis
    other ranks    wait, and read the basis from the store

A capture that is begun keeps the basis that is there. Its teacher is run again only where files of the basis are lost.
"""

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

import numpy as np

from ...storage.encodings.feature_logits import Rows, check_finite_rows
from ...storage.encodings.transform import Transform
from ...storage.errors import BadLogitsError
from ...storage.stream.inputs import Augment
from ..calibration_rows import drawn
from ..runtime.inference import check_classes
from ..workspace import Workspace
from .capture import ReadyTeacher
from .rows import naming_indices

log = logging.getLogger(__name__)
_LARGE: Final = 0.5
"""Share of the bytes of all rows in float16 from which a basis is warned of."""


def calibrate_teachers(
    work: Workspace, teachers: Sequence[ReadyTeacher], make_view: Augment | None
) -> list[ReadyTeacher]:
    """Return teachers whose encodings can encode: on the first rank, those of new captures with their basis.

    Called by all ranks, after the trial of the teachers. Raises BadLogitsError for a teacher whose logits are not finite, are
    the same in all rows, or spread too far for the budget; nothing is written.
    """
    ready = list(teachers)
    if work.ranks.is_first:
        for number, teacher in enumerate(ready):
            encoding = teacher.encoding
            if isinstance(encoding, Transform) and encoding.basis is None and not teacher.is_begun:
                logits = calibration_logits(work, teacher, make_view)
                calibrated = encoding.calibrated(logits, f"{teacher.runner.where}, its calibration rows")
                _try_encoding(work, teacher, calibrated, logits)
                _warn_of_basis(work, teacher, calibrated)
                ready[number] = replace(teacher, encoding=calibrated)
    work.ranks.wait()  # for hours, if the teachers are slow
    return ready


def _try_encoding(work: Workspace, teacher: ReadyTeacher, encoding: Transform, logits: Rows) -> None:
    """Encode the calibration rows, so that a budget out of reach is found before the store is written to."""
    where = f"{teacher.runner.where}, view 0"
    try:
        encoding.encode(logits, 0, where)
    except BadLogitsError:
        with naming_indices(work.rows.source):
            for number, row in enumerate(drawn(len(work.rows), encoding).tolist()):
                # Raises with the row's number in the store.
                encoding.encode(logits[number : number + 1], row, where)
        raise


def _warn_of_basis(work: Workspace, teacher: ReadyTeacher, encoding: Transform) -> None:
    """Warn of a basis that is large beside the rows that it serves."""
    assert encoding.basis is not None
    size = sum(values.nbytes for values in encoding.basis.arrays().values())
    rows, row_bytes = len(work.rows) * work.experiment.cache.views, 2 * len(teacher.columns)
    if size > _LARGE * rows * row_bytes:
        log.warning(
            "%s: its basis takes %s bytes, %.0f for each of %s rows and views, and float16 %d: with so few rows a "
            "transform may not pay; `logitstore plan` compares it with max_kl = %g",
            teacher.runner.where,
            f"{size:,}",
            size / rows,
            f"{rows:,}",
            row_bytes,
            encoding.max_kl,
        )


def calibration_logits(work: Workspace, teacher: ReadyTeacher, make_view: Augment | None) -> Rows:
    """Run a teacher over view 0 of its calibration rows, in its batches and precision. Raises BadLogitsError."""
    assert isinstance(teacher.encoding, Transform)
    runner, rows = teacher.runner, work.rows
    chosen = drawn(len(rows), teacher.encoding)
    width = runner.width(len(teacher.columns))
    logits = np.empty((len(chosen), width), np.float32)
    task = f"calibrating {teacher.name}"
    work.progress(task, 0, len(chosen), "rows")
    with naming_indices(rows.source):
        for batch in runner.batches(len(chosen)):
            numbers = chosen[batch]
            inputs, _ = rows.fetch(rows.source[numbers].tolist())
            values = runner.logits(inputs if make_view is None else make_view(inputs, 0, numbers))
            check_classes(values, width, runner.where)
            # Rows of a batch are no neighbours: the message names the first that is not finite.
            first = int(np.argmin(np.isfinite(values).all(axis=1)))
            check_finite_rows(runner.rows(values[first:]), int(numbers[first]), f"{runner.where}, view 0")
            logits[batch] = values
            work.progress(task, batch.stop, len(chosen), "rows")
    return runner.rows(logits)
