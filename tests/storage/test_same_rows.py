"""Rows that a teacher saw as they are, compared with the samples in each view that is not augmented."""

from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from support import stores

from logitstore.storage.api import create_store
from logitstore.storage.digest import digest_rows
from logitstore.storage.errors import RowMismatch
from logitstore.storage.integrity.verify import CLEAN, CORRUPT, verify
from logitstore.storage.parts.same_rows import is_augmented

ROWS, CLASSES, BLOCK_ROWS = 20, 3, 8
INPUTS = stores.some_inputs(ROWS, shape=(2,))
OTHERS = INPUTS + np.uint8(100)
LOGITS = stores.some_logits(3, ROWS, CLASSES)


def captured(path: Path, first_view: int | None, other_view: int, row: int = 0) -> None:
    """Seal three views, of which one shows other inputs from a row on, without any comparison."""
    augmentation = {} if first_view is None else {"augmentation": {"first_view": first_view}}
    store = create_store(path, num_classes=CLASSES, inputs=INPUTS, block_rows=BLOCK_ROWS)
    with (
        mock.patch("logitstore.storage.parts.writer.check_seen", lambda *_: None),
        store.capture("t", provenance=augmentation, views=3) as writer,
    ):
        for view in range(3):
            shown = INPUTS.copy()
            if view == other_view:
                shown[row:] = OTHERS[row:]
            for rows in writer.missing_blocks(view):
                seen = digest_rows(shown[rows.start : rows.stop])
                writer.write(rows, LOGITS[view, rows.start : rows.stop], view, seen)


@pytest.mark.parametrize(
    ("first_view", "view", "row"), [(None, 0, 0), (None, 1, 8), (None, 2, 19), (1, 0, 3), (2, 1, 16)]
)
def test_other_rows_are_found_in_every_view_and_block(
    tmp_path: Path, first_view: int | None, view: int, row: int
) -> None:
    captured(tmp_path / "store", first_view, view, row)
    (problem,) = verify(tmp_path / "store", deep=True).problems
    assert isinstance(problem, RowMismatch)
    assert problem.where.endswith(f"teachers/t, view {view}, row {row}")
    assert verify(tmp_path / "store", deep=True).exit_code == CORRUPT


@pytest.mark.parametrize(("first_view", "view"), [(0, 0), (1, 1), (1, 2), (2, 2)])
def test_augmented_views_show_other_inputs_by_right(tmp_path: Path, first_view: int, view: int) -> None:
    captured(tmp_path / "store", first_view, view)
    assert verify(tmp_path / "store", deep=True).exit_code == CLEAN


def test_views_are_augmented_from_the_first_one_on() -> None:
    assert [is_augmented({"first_view": 1}, view) for view in range(3)] == [False, True, True]
    assert [is_augmented({}, view) for view in range(2)] == [True, True]
    assert not is_augmented(None, 0)
