"""Several processes whose streams are not told their rank: one warning in each, and none where it was decided."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import distributed

import logitstore
from logitstore.pipeline.stream.torch_stream import TorchStream
from logitstore.storage.api import Store
from logitstore.storage.stream import forgotten_ranks

WARNING = "2 processes train together, and rank and world_size are not given: each of them reads every row"


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """A store without captures, in a process that has not warned."""
    monkeypatch.setattr(forgotten_ranks, "_warned", set())
    return logitstore.create_store(
        tmp_path / "s.zarr", num_classes=3, labels=np.zeros(20, int), inputs=np.zeros((20, 2))
    )


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.message for record in caplog.records if record.levelno == logging.WARNING]


def test_a_stream_that_is_not_told_its_rank_warns_once(
    store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    for _ in range(3):
        rows = sum(len(batch.rows) for batch in store.stream(batch_size=5, inputs=False))
    assert rows == 20
    (line,) = warnings(caplog)
    assert WARNING in line
    assert "pass rank=… and world_size=…" in line


DECIDED: dict[str, dict[str, Any]] = {
    "ranks": {"rank": 1, "world_size": 2},
    "one rank": {"rank": 0, "world_size": 1},
    "rows": {"rows": slice(0, 10)},
    "strata": {"strata": [slice(0, 10), slice(10, 20)]},
}


@pytest.mark.parametrize("kind", DECIDED)
def test_where_it_was_decided_nothing_is_said(
    store: Store, kind: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    TorchStream(store.stream(batch_size=4, inputs=False, **DECIDED[kind]))
    assert warnings(caplog) == []


@pytest.mark.parametrize("size", ["1", "", "many", None])
def test_one_process_is_not_warned(
    store: Store, size: str | None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    if size is not None:
        monkeypatch.setenv("WORLD_SIZE", size)
    TorchStream(store.stream(batch_size=4, inputs=False))
    assert warnings(caplog) == []


@pytest.fixture
def group(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A process group of two, as a program that starts its processes itself has it."""
    monkeypatch.setattr(distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(distributed, "get_world_size", lambda: 2)
    yield


@pytest.mark.usefixtures("group")
def test_a_torch_stream_looks_at_the_process_group(
    store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert torch.distributed.is_available()
    TorchStream(store.stream(batch_size=4, inputs=False, rank=0, world_size=1))
    assert warnings(caplog) == []
    TorchStream(store.stream(batch_size=4, inputs=False))
    assert [WARNING in line for line in warnings(caplog)] == [True]
