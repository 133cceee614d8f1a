"""Codes of the transform encoding as tensors: decoded on any device as by the reader, by products of full precision."""

import gc
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from support import transform_stores
from support.torch_batches import context
from support.transform_stores import CLASSES, MAX_KL, Transformed
from torch.utils.data import DataLoader
from torchdata.stateful_dataloader import StatefulDataLoader

from logitstore.pipeline import losses, to_device
from logitstore.pipeline.losses.checks import check_floating
from logitstore.pipeline.stream import transform
from logitstore.pipeline.stream.batch import TorchBatch
from logitstore.pipeline.stream.torch_stream import TorchStream
from logitstore.pipeline.stream.transform import TransformTensors, decode_on_device, multiplies_in_full
from logitstore.storage.errors import BadLogitsError
from logitstore.storage.stream.batch import TransformRows

ALL = ("wide", "deep", "budget", "half", "largest")
CPU = torch.device("cpu")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="a product on a GPU needs a GPU")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Transformed:
    """The store of these tests."""
    return transform_stores.make(tmp_path_factory.mktemp("transform") / "store.zarr")


@pytest.fixture
def settings_of_torch() -> Iterator[None]:
    """Put the precision of products back."""
    yield
    torch.backends.fp32_precision = "none"
    torch.set_float32_matmul_precision("highest")
    torch.backends.mkldnn.matmul.fp32_precision = "none"
    torch.backends.cuda.matmul.fp32_precision = "none"


def arrays(made: Transformed, **settings: Any) -> Any:
    return made.store.stream(
        **{"batch_size": 16, "views": "all", "teachers": ["wide", "deep"], "inputs": False, "seed": 3}
        | settings
    )


def tensors(made: Transformed, device: str | None = None, **settings: Any) -> TorchStream:
    return TorchStream(arrays(made, **settings), device)


def stored(batch: TorchBatch, name: str = "wide") -> TransformTensors:
    """Return the rows of a teacher as they are stored."""
    rows = batch.logits[name]
    assert isinstance(rows, TransformTensors)
    return rows


def on_device(rows: TransformTensors) -> torch.Tensor:
    """Decode as on an accelerator, whose place the CPU takes."""
    return decode_on_device(rows, transform._on_device(rows.basis, rows.codes.device))


def assert_same_batches(found: list[TorchBatch], expected: list[TorchBatch]) -> None:
    """Assert that rows, views and every bit of the decoded logits are the same."""
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one.rows, other.rows) and torch.equal(one.views, other.views)
        again = other.teacher_logits()
        for name, logits in one.teacher_logits().items():
            assert torch.equal(logits, again[name])


# Numbers


def test_tensors_have_the_bits_of_the_arrays(made: Transformed) -> None:
    for one, other, raw in zip(tensors(made), arrays(made), tensors(made, decode=False), strict=True):
        for name in ("wide", "deep"):
            assert np.array_equal(one.logits[name].numpy(), other.logits[name])
            assert torch.equal(raw.teacher_logits()[name], one.logits[name])
            assert torch.equal(raw.decoded().logits[name], one.logits[name])


def test_a_device_decodes_the_rows_of_the_reader(made: Transformed) -> None:
    for batch in tensors(made, decode=False):
        for name in ("wide", "deep"):
            capture = made.store.teachers[name]
            decoded = on_device(stored(batch, name))
            assert decoded.dtype == torch.float32
            assert (decoded.amax(dim=1) == 0).all()
            for number, (view, row) in enumerate(zip(batch.views.tolist(), batch.rows.tolist(), strict=True)):
                np.testing.assert_allclose(decoded[number].numpy(), capture.read([row], view)[0], atol=2e-5)


def test_tensors_share_memory_with_the_arrays(made: Transformed) -> None:
    batch = next(iter(arrays(made, decode=False)))
    rows = batch.logits["wide"]
    assert isinstance(rows, TransformRows)
    wrapped = stored(TorchBatch.of(batch))
    assert np.shares_memory(wrapped.codes.numpy(), rows.codes)
    assert wrapped.basis is rows.basis


@pytest.mark.parametrize("count", [0, 1, 2, 7, 16, 20])
def test_the_first_rows_decode_to_the_first_rows(made: Transformed, count: int) -> None:
    for batch in tensors(made, decode=False):
        head = batch.head(count)
        assert len(head) == min(count, len(batch))
        for name, logits in head.teacher_logits().items():
            assert torch.allclose(logits, batch.teacher_logits()[name][:count], atol=2e-5)
            assert logits.shape == (len(head), CLASSES)
            assert torch.allclose(on_device(stored(head, name)), logits, atol=2e-5)


def test_a_batch_moves_as_codes(made: Transformed) -> None:
    batch = next(iter(tensors(made, decode=False)))
    moved = stored(batch.to("meta"))
    assert {moved.codes.device.type, moved.refine.device.type, moved.escape.device.type} == {"meta"}
    assert moved.basis is stored(batch).basis
    assert (moved.codes.dtype, moved.escape.dtype) == (torch.uint16, torch.uint16)


@needs_gpu
def test_a_gpu_decodes_the_rows_of_the_reader(made: Transformed, settings_of_torch: None) -> None:
    """Pinned, copied and decoded on a side stream, with TensorFloat32 allowed to others."""
    torch.set_float32_matmul_precision("high")
    for one, other in zip(tensors(made, "cuda"), tensors(made), strict=True):
        for name, logits in one.teacher_logits().items():
            assert torch.allclose(logits.cpu(), other.logits[name], atol=2e-5)


# Precision


def lowered(name: str) -> None:
    """Allow torch to multiply float32 by less, in one of its ways."""
    if name in ("high", "medium"):
        torch.set_float32_matmul_precision(name)
    elif name == "all":
        torch.backends.fp32_precision = "tf32"
    elif name == "matmul":
        torch.backends.cuda.matmul.fp32_precision = "tf32"
    elif name == "allow_tf32":
        torch.backends.cuda.matmul.allow_tf32 = True


@pytest.mark.parametrize("name", ["high", "medium", "all", "matmul", "allow_tf32"])
def test_every_way_to_lower_the_precision_is_noticed(name: str, settings_of_torch: None) -> None:
    assert multiplies_in_full(torch.device("cuda")) and multiplies_in_full(CPU)
    torch.set_float32_matmul_precision("highest")
    assert multiplies_in_full(torch.device("cuda"))
    lowered(name)
    assert not multiplies_in_full(torch.device("cuda"))


def test_devices_of_unknown_settings_are_not_trusted() -> None:
    assert not multiplies_in_full(torch.device("meta"))
    assert multiplies_in_full(torch.device("mps"))  # has no float64


class Products(torch.utils._python_dispatch.TorchDispatchMode):
    """Records the dtypes of products, and computes those of float32 as TensorFloat32 or less would."""

    def __init__(self) -> None:
        super().__init__()
        self.dtypes: list[torch.dtype] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is torch.ops.aten.mm.default:
            self.dtypes.append(args[0].dtype)
            if args[0].dtype != torch.float64 and torch.get_float32_matmul_precision() != "highest":
                args = [factor.to(torch.bfloat16).to(factor.dtype) for factor in args]
        return function(*args, **(kwargs or {}))


def test_a_lower_precision_of_products_leaves_the_rows_as_they_are(
    made: Transformed, settings_of_torch: None
) -> None:
    for batch in tensors(made, decode=False):
        rows = stored(batch)
        expected = batch.teacher_logits()["wide"]
        torch.set_float32_matmul_precision("highest")
        with Products() as products:
            assert torch.allclose(on_device(rows), expected, atol=2e-5)
        assert products.dtypes == [torch.float32]
        torch.set_float32_matmul_precision("high")
        with Products() as products:
            assert torch.allclose(on_device(rows), expected, atol=2e-5)
        assert products.dtypes == [torch.float64]


def test_products_of_lower_precision_would_be_noticed(
    made: Transformed, settings_of_torch: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Negative control: were the setting not looked at, the rows would be others."""
    monkeypatch.setattr(transform, "multiplies_in_full", lambda *_: True)
    with pytest.raises(AssertionError):
        test_a_lower_precision_of_products_leaves_the_rows_as_they_are(made, settings_of_torch)


def test_autocast_leaves_the_rows_as_they_are(made: Transformed) -> None:
    for batch in tensors(made, decode=False):
        expected = batch.teacher_logits()["wide"]
        with torch.autocast("cpu", torch.bfloat16):
            found = on_device(stored(batch))
            lower = torch.ones(2, 2) @ torch.ones(2, 2)
        assert lower.dtype == torch.bfloat16  # control: autocast is on
        assert found.dtype == torch.float32 and torch.allclose(found, expected, atol=2e-5)


def test_rows_decoded_on_a_device_keep_the_budget(made: Transformed) -> None:
    for batch in tensors(made, decode=False):
        exact = torch.from_numpy(made.logits["wide"][batch.views.numpy(), batch.rows.numpy()]).double()
        for temperature in (1, 2, 4, 8):
            p = torch.log_softmax(exact / temperature, 1)
            q = torch.log_softmax(on_device(stored(batch)).double() / temperature, 1)
            assert (p.exp() * (p - q)).sum(1).max() <= MAX_KL


# The basis on a device


def test_a_basis_moves_once_to_a_device(made: Transformed, monkeypatch: pytest.MonkeyPatch) -> None:
    moves = []
    of = transform._OnDevice.of

    def counted(*arguments: Any) -> Any:
        moves.append(arguments)
        return of(*arguments)

    monkeypatch.setattr(transform._OnDevice, "of", counted)
    transform._moved.clear()
    for _ in range(2):
        threads = [
            threading.Thread(target=lambda b=batch: on_device(stored(b)))
            for batch in tensors(made, decode=False)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(moves) == 1


def test_a_basis_that_was_moved_in_inference_mode_serves_training(made: Transformed) -> None:
    transform._moved.clear()
    batch = next(iter(tensors(made, decode=False)))
    with torch.inference_mode():
        on_device(stored(batch))
    weights = torch.zeros(CLASSES, CLASSES, requires_grad=True)
    (on_device(stored(batch)) @ weights).sum().backward()
    assert weights.grad is not None and bool(weights.grad.any())


def test_a_basis_leaves_the_device_with_the_last_stream_and_batch(made: Transformed) -> None:
    gc.collect()
    batch = next(iter(tensors(made, decode=False, teachers=["deep"])))
    basis = stored(batch, "deep").basis
    on_device(stored(batch, "deep"))
    count = len(transform._moved)
    assert basis in transform._moved
    del batch, basis
    gc.collect()
    assert len(transform._moved) == count - 1


# Ensembles and losses


def test_a_batch_holds_teachers_of_all_encodings(made: Transformed) -> None:
    settings = {"teachers": ALL, "seed": 5}
    decoded = tensors(made, temperature=4.0, **settings)
    for one, other in zip(decoded, tensors(made, decode=False, **settings), strict=True):
        given, again = one.teacher_logits(4.0), other.teacher_logits(4.0)
        assert list(given) == list(ALL)
        for mean in ("arithmetic", "geometric"):
            targets = losses.soft_targets(given, 4.0, mean=mean)  # type: ignore[arg-type]
            assert torch.allclose(targets, losses.soft_targets(again, 4.0, mean=mean), atol=1e-6)  # type: ignore[arg-type]
            exact = {
                name: torch.from_numpy(made.logits[name][one.views.numpy(), one.rows.numpy()])
                for name in ALL[:4]
            }
            kept = {name: given[name] for name in exact}
            difference = losses.soft_targets(kept, 4.0, mean=mean) - losses.soft_targets(  # type: ignore[arg-type]
                exact,
                4.0,
                mean=mean,  # type: ignore[arg-type]
            )
            assert difference.abs().sum(dim=1).max() <= 2 * (MAX_KL * 10 / 2) ** 0.5  # Pinsker


def test_every_loss_takes_the_decoded_rows(made: Transformed) -> None:
    one, other = (next(iter(tensors(made, decode=decode))) for decode in (True, False))
    student = torch.zeros(len(one), CLASSES, requires_grad=True)
    mixed = losses.ensemble_logits(one.logits, 4.0)  # type: ignore[arg-type]
    values = [
        losses.Distillation(4.0, 0.1)(student, losses.soft_targets(one.logits, 4.0), one.labels),  # type: ignore[arg-type]
        losses.LogitMatching()(student, mixed, one.labels),
        losses.DecoupledDistillation(4.0)(student, mixed, one.labels.clamp(min=0)),
        losses.Dist(4.0)(student + torch.arange(CLASSES), mixed, one.labels),
    ]
    for value in values:
        assert bool(torch.isfinite(value))
        value.backward(retain_graph=True)
    with pytest.raises(
        BadLogitsError, match=r"found TransformTensors, as they are stored; decode them first"
    ):
        check_floating(other.logits["wide"])


# Workers


def loader_of(stream: TorchStream, kind: Any, method: str, workers: int = 2) -> Any:
    return kind(stream, batch_size=None, num_workers=workers, multiprocessing_context=context(method))


@pytest.mark.parametrize("method", ["forkserver", "spawn"])
def test_workers_send_codes_and_no_basis(made: Transformed, method: str) -> None:
    settings = {"batch_size": 60, "decode": False}
    stream = tensors(made, **settings)
    found = list(loader_of(stream, DataLoader, method))
    bases = {id(stored(batch).basis) for batch in found}
    assert bases == {id(stored(batch).basis) for batch in tensors(made, **settings)}
    assert_same_batches(found, list(tensors(made, **settings)))
    assert_same_batches(
        list(to_device(loader_of(tensors(made, **settings), DataLoader, method), "cpu", TorchBatch.decoded)),
        list(tensors(made, batch_size=60)),
    )


def test_workers_decode_if_the_stream_does(made: Transformed) -> None:
    stream = tensors(made, batch_size=60)
    assert_same_batches(list(loader_of(stream, DataLoader, "forkserver")), list(tensors(made, batch_size=60)))


@pytest.mark.filterwarnings("ignore:.set_vital. is deprecated:UserWarning")  # torchdata 0.11 calls it
def test_a_stateful_loader_resumes_with_the_rest(made: Transformed) -> None:
    settings = {"batch_size": 60, "decode": False}
    expected = list(tensors(made, **settings))
    loader = loader_of(tensors(made, **settings), StatefulDataLoader, "forkserver")
    iterator = iter(loader)
    assert_same_batches([next(iterator) for _ in range(2)], expected[:2])
    state = loader.state_dict()
    again = loader_of(tensors(made, **settings), StatefulDataLoader, "forkserver")
    again.load_state_dict(state)
    assert_same_batches(list(again), expected[2:])
    assert_same_batches(list(iterator), expected[2:])
