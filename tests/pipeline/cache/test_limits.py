"""Captures that no seal could hold: refused before a teacher is built, and named by a plan."""

from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from support import experiments
from support.experiments import parsed

from logitstore.pipeline.cache import stage
from logitstore.pipeline.cache.limits import check_limits
from logitstore.pipeline.cache.stage import cache
from logitstore.pipeline.models.records import Models
from logitstore.pipeline.plan.stage import plan
from logitstore.pipeline.transfer import TransferRows
from logitstore.pipeline.workspace import Workspace
from logitstore.storage.encodings.named import encoding_named
from logitstore.storage.errors import ConfigError
from logitstore.storage.format.grid import Grid
from logitstore.storage.parts import sealable


@pytest.fixture
def base(tmp_path: Path) -> Path:
    experiments.write_data(tmp_path)
    return tmp_path


def test_no_teacher_is_trained_for_a_capture_that_cannot_be_sealed(base: Path, sentence: Any) -> None:
    """Three views of three blocks in records of 132 bytes."""
    work = Workspace.of_store(parsed(experiments.document(), base), base / "store.zarr", device="cpu")
    with (
        mock.patch.object(sealable, "MAX_SEAL_TABLE_BYTES", 1000),
        mock.patch.object(stage, "train_teacher", side_effect=AssertionError("a teacher was trained")),
        pytest.raises(ConfigError) as error,
    ):
        cache(work)
    sentence(error.value)
    assert not (base / "store.zarr").exists()


def test_a_plan_names_the_limit(base: Path, sentence: Any) -> None:
    experiment = parsed(experiments.document(), base)
    with mock.patch.object(sealable, "MAX_SEAL_TABLE_BYTES", 1000):
        made = plan(experiment, base / "store.zarr", Models(base / "models"), sample_rows=16, device="cpu")
    assert made.own.bytes is None
    sentence(made.own.refused)
    made = plan(experiment, base / "store.zarr", Models(base / "models"), sample_rows=16, device="cpu")
    assert made.own.refused is None  # negative control


@pytest.mark.parametrize(
    "encoding", ["float16", {"max_kl": 1e-3}, {"top_k": 3}, {"transform": {"max_kl": 1e-2}}]
)
def test_large_sets_of_usual_sizes_pass(base: Path, encoding: Any) -> None:
    """And millions of rows in tiny blocks do not."""
    rows, experiment = (
        TransferRows(parsed(experiments.document(), base)),
        parsed(experiments.document(), base),
    )
    check_limits(experiment, rows, encoding_named(encoding), Grid(14_000_000, 1024))
    with pytest.raises(ConfigError, match="block_rows = "):
        check_limits(experiment, rows, encoding_named(encoding), Grid(14_000_000, 64))
