"""Captures on the CPU depend on the number of threads in the last bit: they record it, and keep it."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from support import small_experiment as small
from support import stores

from logitstore.pipeline.cache.stage import cache
from logitstore.pipeline.experiment.document import load_experiment
from logitstore.pipeline.runtime import inference
from logitstore.pipeline.workspace import Workspace
from logitstore.storage.api import open_store
from logitstore.storage.errors import LogitStoreError, SpecMismatch

SUM = """

class Summing(torch.nn.Module):
    # A sum of many numbers: torch divides it among the threads.
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(4, 3)
        self.many = torch.randn(6_400_000, generator=torch.Generator().manual_seed(1))

    def forward(self, inputs):
        return self.layer(inputs) + self.many.sum() * torch.tensor([0.0, 1.0, 2.0])


def summing():
    return Summing()
"""
CACHE = '[cache]\nencoding = "float32"'


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with an experiment whose teacher sums many numbers."""
    small.lay_out(tmp_path)
    (tmp_path / "faulty.py").write_text(small.MODULE + SUM)
    return tmp_path


@contextlib.contextmanager
def threads(number: int) -> Iterator[None]:
    """Run in a process of some threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def captured(folder: Path, out: str, number: int, *keys: str) -> dict[str, Any]:
    """Capture with some threads, or mend a capture; return the bytes of its logits by name."""
    changes = [("faulty:linear", "faulty:summing"), ("[cache]", "\n".join([CACHE, *keys]))]
    experiment = load_experiment(small.write_experiment(folder, *changes))
    with threads(number), mock.patch("os.fsync"):
        cache(Workspace.of_folder(experiment, folder / out, device="cpu"))
        assert torch.get_num_threads() == number
    return {key: data for key, data in stores.tree(folder / out / "store.zarr").items() if "/logits/" in key}


def lose_a_shard(folder: Path, out: str) -> None:
    """Remove the last shard of the logits."""
    max((folder / out / "store.zarr" / "teachers" / "line" / "logits").glob("c.*")).unlink()


def test_a_capture_keeps_the_threads_that_it_was_begun_with(folder: Path) -> None:
    one, two = captured(folder, "one", 1), captured(folder, "two", 2)
    assert one != two, "the sums do not depend on the threads, and this test says nothing"
    for out, whole, other in (("one", one, 2), ("two", two, 1)):
        lose_a_shard(folder, out)
        assert captured(folder, out, other) == whole
    for out, number in (("one", 1), ("two", 2)):
        identity = open_store(folder / out / "store.zarr").identity_of("teachers/line")
        assert identity is not None and identity["threads"] == number


def test_threads_that_are_not_kept_are_found_out(folder: Path) -> None:
    """Negative control: the block comes out otherwise, and a sealed part refuses it."""
    captured(folder, "two", 2)
    lose_a_shard(folder, "two")
    with (
        mock.patch.object(inference, "computing_threads", lambda number: contextlib.nullcontext()),
        pytest.raises(LogitStoreError),
    ):
        captured(folder, "two", 1)


def test_the_threads_of_the_experiment_make_new_captures_the_same(folder: Path) -> None:
    assert captured(folder, "a", 1, "threads = 2") == captured(folder, "b", 2, "threads = 2")
    with pytest.raises(SpecMismatch, match=r"teachers/line: expected threads = 2, .* found 1"):
        captured(folder, "a", 1, "threads = 1")


def test_a_capture_without_threads_is_the_same(folder: Path) -> None:
    """One of an earlier version, or of a GPU."""
    with mock.patch("logitstore.pipeline.cache.stage._threads", return_value=None):
        captured(folder, "old", 1)
    assert captured(folder, "old", 1, "threads = 1")
