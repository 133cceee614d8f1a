"""Tensors of a batch: equal to the arrays that were read, on any device."""

from typing import Any

import numpy as np
import pytest
import torch
from jaxtyping import TypeCheckError
from support import stores
from support.torch_batches import array_stream, make_store, tensor_stream

from logitstore.pipeline.stream.batch import TorchBatch
from logitstore.storage.api import Store, open_store


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> stores.Made:
    """The store of these tests."""
    return make_store(tmp_path_factory.mktemp("store") / "store.zarr")


@pytest.fixture
def store(made: stores.Made) -> Store:
    """The store, opened anew."""
    return open_store(made.path)


def test_tensors_are_the_arrays(store: Store) -> None:
    arrays, tensors = (list(make(store)) for make in (array_stream, tensor_stream))
    assert len(arrays) == len(tensors) == len(tensor_stream(store))
    for array, tensor in zip(arrays, tensors, strict=True):
        assert len(array) == len(tensor)
        for name in ("rows", "views", "labels", "inputs"):
            np.testing.assert_array_equal(getattr(array, name), getattr(tensor, name).numpy())
        assert set(array.logits) == set(tensor.logits) == {"wide", "deep"}
        for name in array.logits:
            assert tensor.logits[name].dtype == torch.float32
            np.testing.assert_array_equal(array.logits[name], tensor.logits[name].numpy())


def test_a_batch_is_a_window_onto_the_arrays_and_not_a_copy(store: Store) -> None:
    batch = next(iter(array_stream(store)))
    assert np.shares_memory(TorchBatch.of(batch).logits["wide"].numpy(), batch.logits["wide"])


def test_batches_do_not_share_memory_with_one_another(store: Store) -> None:
    """Who keeps a batch keeps its numbers, whatever is read afterwards."""
    kept = list(tensor_stream(store))
    again = list(tensor_stream(store))
    for one, other in zip(kept, again, strict=True):
        assert torch.equal(one.rows, other.rows)
        assert one.inputs is not None and other.inputs is not None and torch.equal(one.inputs, other.inputs)
        assert all(torch.equal(one.logits[name], other.logits[name]) for name in one.logits)


def test_a_batch_without_inputs_or_teachers(store: Store) -> None:
    batch = next(iter(tensor_stream(store, inputs=False, teachers=[], views=0)))
    assert (batch.inputs, dict(batch.logits)) == (None, {})
    moved = batch.to("cpu")
    assert (moved.inputs, dict(moved.logits)) == (None, {})


def test_moving_a_batch_keeps_all_of_it(store: Store) -> None:
    batch = next(iter(tensor_stream(store)))
    moved = batch.to("meta")
    assert moved.inputs is not None
    assert {moved.inputs.device.type, moved.labels.device.type} == {"meta"}
    assert {logits.device.type for logits in moved.logits.values()} == {"meta"}
    assert {moved.rows.device.type, moved.views.device.type} == {"cpu"}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="page-locked memory needs a GPU")
def test_a_pinned_batch_is_the_same(store: Store) -> None:
    batch = next(iter(tensor_stream(store)))
    pinned = batch.pin_memory()
    assert pinned.inputs is not None
    assert pinned.inputs.is_pinned() and all(logits.is_pinned() for logits in pinned.logits.values())
    torch.testing.assert_close(dict(pinned.logits), dict(batch.logits))


def test_a_batch_of_other_shapes_or_dtypes_is_refused_here() -> None:
    """The annotations are enforced in tests: this fails if the import hook is off."""
    three = torch.zeros(3, dtype=torch.int64)
    logits = {"wide": torch.zeros(3, 4)}
    assert len(TorchBatch(three, three, None, three, logits)) == 3
    wrong: list[tuple[Any, ...]] = [
        (three.float(), three, None, three, logits),
        (three, three[:2], None, three, logits),
        (three, three, None, three, {"wide": torch.zeros(3, 4).double()}),
        (three, three, None, three, {"wide": torch.zeros(2, 4)}),
    ]
    for fields in wrong:
        with pytest.raises(TypeCheckError):
            TorchBatch(*fields)
