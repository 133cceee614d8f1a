"""Views replayed for a student: those of the capture, from its first augmented view on."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import experiments
from support.experiments import document, parsed

from logitstore.pipeline.augment import augment_rows, shift
from logitstore.pipeline.views import experiment_views, replay

INPUTS = np.random.default_rng(0).integers(1, 256, size=(20, 6, 7), dtype=np.uint8)
ROWS = np.arange(20)


@pytest.mark.parametrize("first_view", [0, 1, 3])
def test_a_replay_begins_with_the_first_augmented_view_of_the_capture(first_view: int) -> None:
    again = replay(shift(2), 5, first_view)
    for view in range(5):
        expected = augment_rows(INPUTS, shift(2), 5, view, ROWS, first_view)
        np.testing.assert_array_equal(again(INPUTS, view, ROWS), expected)
        assert (again(INPUTS, view, ROWS) != INPUTS).any() == (view >= first_view)


@pytest.mark.parametrize("first_view", [0, 2])
def test_the_views_of_an_experiment_begin_with_its_first_view(tmp_path: Path, first_view: int) -> None:
    experiments.write_data(tmp_path)
    content: dict[str, Any] = document()
    content["cache"]["augment"] |= {"first_view": first_view}
    make_view = experiment_views(parsed(content, tmp_path))
    assert make_view is not None
    changed = [(make_view(INPUTS, view, ROWS) != INPUTS).any() for view in range(3)]
    assert changed == [view >= first_view for view in range(3)]
