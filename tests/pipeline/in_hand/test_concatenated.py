"""Stores of two data sets that were concatenated: a student reads the sets one behind the other, compared row by row."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.hands import Net, Pictures
from torch.utils.data import ConcatDataset

import logitstore
from logitstore.pipeline.augment import mixup, shift
from logitstore.storage.errors import ConfigError, RowMismatch
from logitstore.storage.sharing.concatenating import concat_stores

SETTINGS: dict[str, Any] = {"lr": 1e-2, "epochs": 1, "device": "cpu"}


def both(folder: Path, **options: Any) -> tuple[logitstore.Store, list[Pictures]]:
    """Cache a teacher of two sets, and concatenate the stores."""
    sets = [Pictures(24, 1), Pictures(16, 2)]
    for number, one in enumerate(sets):
        logitstore.cache(folder / f"{number}.zarr", {"net": Net()}, one, device="cpu", **options)
    concat_stores([folder / "0.zarr", folder / "1.zarr"], folder / "both.zarr")
    return logitstore.open_store(folder / "both.zarr"), sets


def test_a_student_learns_from_the_sets_one_behind_the_other(tmp_path: Path, without_fsync: None) -> None:
    store, sets = both(tmp_path, store_inputs=False)
    assert store.samples.inputs is None and not np.array_equal(store.samples.source, np.arange(40))
    joined: Any = ConcatDataset(sets)  # type: ignore[arg-type]
    logitstore.distill(store, Net(4), dataset=joined, **SETTINGS)
    swapped: Any = ConcatDataset(sets[::-1])  # type: ignore[arg-type]
    with pytest.raises(RowMismatch):
        logitstore.distill(store, Net(4), dataset=swapped, **SETTINGS)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_teacher_that_comes_later_sees_the_views_of_the_others(
    tmp_path: Path, without_fsync: None, workers: int
) -> None:
    options: dict[str, Any] = {"views": 2, "augment": shift(pixels=1)}
    store, sets = both(tmp_path, **options)
    joined: Any = ConcatDataset(sets)  # type: ignore[arg-type]
    late = {"late": Net(seed=1)}
    logitstore.cache(store.path, late, joined, device="cpu", workers=workers, **options)
    store.refresh()
    for view in range(2):
        first, other = (store.teachers[name].seen(slice(None), view) for name in ("net", "late"))
        assert np.array_equal(first, other)
    logitstore.distill(store, Net(4), augment=shift(pixels=1), **SETTINGS)


def test_no_mixture_of_a_concatenated_store_is_cached(tmp_path: Path, without_fsync: None) -> None:
    store, sets = both(tmp_path)
    joined: Any = ConcatDataset(sets)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="found mixtures of rows") as caught:
        logitstore.cache(store.path, {"late": Net()}, joined, device="cpu", views=2, augment=mixup())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_student_sees_the_views_of_both_teachers(tmp_path: Path, without_fsync: None, workers: int) -> None:
    store, _ = both(tmp_path, views=2, augment=shift(pixels=1))
    student = Net(4)
    before = [parameter.detach().clone() for parameter in student.parameters()]
    logitstore.distill(
        store, student, augment=shift(pixels=1), views="all", workers=workers, **SETTINGS | {"epochs": 2}
    )
    after = list(student.parameters())
    assert not all(torch.equal(one, other) for one, other in zip(before, after, strict=True))
