"""Shares of the rows: one that leaves too little is refused before anything is written, lost classes are warned of."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support import experiments
from support.trainings import content, finished_store, trained
from torch import nn

from logitstore.pipeline.experiment.training import StudentTrain
from logitstore.pipeline.held_out import check_shares, warn_of_lost_classes
from logitstore.pipeline.trainer.loop import fit
from logitstore.pipeline.trainer.validation_sets import LabelledBatch
from logitstore.storage.errors import ConfigError

pytestmark = pytest.mark.usefixtures("one_thread")


def documents() -> dict[str, dict[str, Any]]:
    """Documents with a share that leaves too little, by the table that has it."""
    few = experiments.train(validation=0.9999)
    specialists = experiments.whole_document()
    specialists["specialists"] = {"train": experiments.train(batch_size=16, validation=0.9999)}
    return {
        "teacher": experiments.document()
        | {"teacher": [experiments.teacher("wide", train=few)]}
        | {"student": []},
        "student": experiments.document() | {"student": [experiments.student("a", train=few)]},
        "rows": experiments.document() | {"student": [experiments.student("a", rows=0.01)]},
        "specialists": specialists,
    }


@pytest.mark.parametrize("of", documents())
def test_a_share_that_leaves_less_than_a_batch_is_refused_before_anything_is_written(
    of: str, tmp_path: Path, sentence: Callable[[Any], None]
) -> None:
    experiments.write_data(tmp_path)
    with pytest.raises(ConfigError) as refused:
        experiments.run_document(documents()[of], tmp_path, tmp_path / "out")
    sentence(refused.value)
    assert not (tmp_path / "out" / "store.zarr").exists()
    assert not list((tmp_path / "out").rglob("*.safetensors"))


def test_a_share_that_leaves_a_batch_is_not_refused() -> None:
    """Negative control: at the limit, without a share, and in a set that has no batch by itself."""
    check_shares(StudentTrain(lr=1, epochs=1, batch_size=32, validation=0.68), 100, "a")
    with pytest.raises(ConfigError, match="which leaves 31 of 100 rows"):
        check_shares(StudentTrain(lr=1, epochs=1, batch_size=32, validation=0.69), 100, "a")
    check_shares(StudentTrain(lr=1, epochs=1, batch_size=32), 9, "a")
    check_shares(StudentTrain(lr=1, epochs=1, batch_size=32), 100, "a", rows=0.32)
    with pytest.raises(ConfigError, match="a: rows: "):
        check_shares(StudentTrain(lr=1, epochs=1, batch_size=32), 100, "a", rows=0.31)


def test_classes_that_a_share_leaves_out_are_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, sentence: Callable[[Any], None]
) -> None:
    """Of two rows for the validation, of four classes."""
    with caplog.at_level(logging.WARNING):
        trained(content({"epochs": 1, "validation": 0.01}), finished_store(), tmp_path / "few")
    (line,) = [text for text in caplog.messages if "to validate on" in text]
    sentence(line)
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        trained(content({"epochs": 1, "validation": 0.2}), finished_store(), tmp_path / "more")
    assert not [text for text in caplog.messages if "classes to" in text]


def test_classes_without_a_row_to_learn_from_are_warned_of(
    caplog: pytest.LogCaptureFixture, sentence: Callable[[Any], None]
) -> None:
    labels = np.array([0, 1, 2, 2, -1], np.int64)
    warn_of_lost_classes(labels, np.array([0, 2]), np.array([1, 3]), "a")
    for line in caplog.messages:
        sentence(line)
    assert len(caplog.messages) == 2
    caplog.clear()
    warn_of_lost_classes(labels, np.arange(5), None, "a")
    warn_of_lost_classes(np.full(5, -1), np.array([0]), np.array([1]), "a")
    assert caplog.messages == []


@pytest.mark.parametrize(("ema", "warned"), [(0.999, True), (0.5, False)])
def test_an_average_of_hardly_more_than_the_first_step_is_warned_of(
    ema: float, warned: bool, caplog: pytest.LogCaptureFixture, sentence: Callable[[Any], None]
) -> None:
    batch = LabelledBatch(torch.ones(4, 3), torch.zeros(4, dtype=torch.int64))
    with caplog.at_level(logging.WARNING):
        fit(
            nn.Linear(3, 2),
            lambda _: [batch] * 10,
            40,
            10,
            StudentTrain(lr=1e-3, epochs=2, ema=ema),
            lambda logits, one: nn.functional.cross_entropy(logits, one.labels),
            where="training student a",
        )
    assert len(caplog.messages) == warned
    for line in caplog.messages:
        sentence(line)
