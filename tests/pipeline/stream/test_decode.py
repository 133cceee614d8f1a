"""Decoding on the device: stored integers and top-k rows become the logits that the host reads."""

import numpy as np
import pytest
import torch

import logitstore
from logitstore.pipeline.losses import soft_targets
from logitstore.pipeline.stream.batch import TopKTensors, decode_codes, decode_top_k
from logitstore.pipeline.stream.torch_stream import TorchStream
from logitstore.storage.encodings.top_k import TopK
from logitstore.storage.errors import ConfigError

ROWS, CLASSES = 300, 70
ENCODINGS = {
    "floats": "float16",
    "codes": {"max_kl": 1e-3},
    "largest": {"top_k": 9},
    "all": {"top_k": CLASSES},
}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> logitstore.Store:
    """A store with one capture in each encoding, of the same logits."""
    random = np.random.default_rng(5)
    logits = (random.standard_normal((ROWS, CLASSES)) * 3).astype(np.float32)
    path = tmp_path_factory.mktemp("decode") / "store"
    made = logitstore.create_store(
        path, num_rows=ROWS, num_classes=CLASSES, digests=np.arange(ROWS, dtype=np.uint64), block_rows=128
    )
    for name, encoding in ENCODINGS.items():
        with made.capture(name, provenance={}, encoding=encoding) as capture:
            for rows in capture.missing_blocks():
                capture.write(rows, logits[rows.start : rows.stop])
    return logitstore.open_store(path)


def test_codes_decode_to_the_same_bits_as_on_the_host(store: logitstore.Store) -> None:
    stream = store.stream(64, teachers=["codes", "floats"], decode=False)
    for batch in TorchStream(stream):
        rows = np.sort(batch.rows.numpy())
        order = np.argsort(batch.rows.numpy())
        assert batch.logits["codes"].dtype == torch.uint16
        decoded = batch.teacher_logits()
        for name in ("codes", "floats"):
            assert decoded[name].dtype == torch.float32
            assert np.array_equal(decoded[name].numpy()[order], store.teachers[name].read(rows))


def test_a_stream_of_tensors_decodes_to_the_bits_of_the_stream_of_arrays(store: logitstore.Store) -> None:
    """torch decodes what numpy decodes otherwise: zeros with their sign, and every other bit."""
    arguments = {"batch_size": 64, "teachers": list(ENCODINGS), "temperature": 3.0, "seed": 2}
    for arrays, tensors in zip(
        store.stream(**arguments), TorchStream(store.stream(**arguments)), strict=True
    ):
        assert not tensors.scale
        for name in ("floats", "codes"):
            decoded = tensors.logits[name]
            assert decoded.dtype == torch.float32
            assert np.array_equal(decoded.numpy().view(np.uint32), arrays.logits[name].view(np.uint32)), name
        for name in ("largest", "all"):
            np.testing.assert_allclose(
                tensors.logits[name].numpy(), arrays.logits[name], rtol=1e-6, atol=1e-6
            )


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0, 20.0, 1000.0])
@pytest.mark.parametrize("name", ["largest", "all"])
def test_top_k_rows_decode_as_on_the_host(store: logitstore.Store, name: str, temperature: float) -> None:
    stored = store.teachers[name].read_stored(slice(None))
    tensors = TopKTensors(
        *(torch.from_numpy(stored[array]) for array in ("index", "logits", "tail")), num_classes=CLASSES
    )
    on_host = store.teachers[name].read(slice(None), temperature=temperature)
    assert torch.allclose(decode_top_k(tensors, temperature), torch.from_numpy(on_host), rtol=1e-6, atol=1e-6)


def test_a_stream_that_decodes_and_one_that_does_not_give_the_same_soft_targets(
    store: logitstore.Store,
) -> None:
    arguments = {"batch_size": 50, "teachers": ["codes", "largest"], "seed": 3}
    host = TorchStream(store.stream(**arguments, temperature=4.0))
    device = TorchStream(store.stream(**arguments, decode=False))
    for one, other in zip(host, device, strict=True):
        targets = soft_targets(one.teacher_logits(), 4.0)
        again = soft_targets(other.teacher_logits(4.0), 4.0)
        assert torch.equal(one.rows, other.rows)
        assert torch.allclose(targets, again, rtol=1e-5, atol=1e-7)


def test_top_k_rows_are_not_decoded_without_a_temperature(store: logitstore.Store) -> None:
    batch = next(iter(TorchStream(store.stream(50, teachers=["largest"], decode=False))))
    with pytest.raises(ConfigError, match="teacher 'largest': temperature"):
        batch.teacher_logits()
    with pytest.raises(ConfigError, match="temperature"):
        decode_top_k(batch.logits["largest"], 0.0)


def test_top_k_rows_that_are_decoded_serve_no_other_temperature(store: logitstore.Store) -> None:
    arguments = {"batch_size": 50, "teachers": ["codes", "largest"]}
    streamed = next(iter(TorchStream(store.stream(**arguments, temperature=4.0))))
    once = next(iter(TorchStream(store.stream(**arguments, decode=False)))).decoded(4.0)
    for batch in (streamed, once, once.head(7), streamed.to("cpu"), once.decoded(4.0)):
        assert torch.equal(batch.teacher_logits(4.0)["largest"], batch.teacher_logits()["largest"])  # control
        with pytest.raises(
            ConfigError, match="expected 4, for which these top-k rows are decoded, found 1; stream"
        ):
            batch.teacher_logits(1.0)
    dense = next(iter(TorchStream(store.stream(50, teachers=["codes"], temperature=4.0))))
    assert torch.equal(dense.teacher_logits(1.0)["codes"], dense.teacher_logits()["codes"])


def test_a_batch_as_stored_moves_to_a_device_whole(store: logitstore.Store) -> None:
    batch = next(iter(TorchStream(store.stream(50, decode=False, teachers=["codes", "largest"]))))
    moved = batch.to("cpu")
    assert moved.scale == batch.scale == {"codes": store.teachers["codes"].encoding.scale}
    assert torch.equal(moved.logits["largest"].index, batch.logits["largest"].index)


def test_codes_of_any_width_and_sign_decode() -> None:
    codes = torch.tensor([[0, 254, 7]], dtype=torch.uint8)
    assert decode_codes(codes, -0.5).tolist() == [[0.0, -127.0, -3.5]]
    assert decode_codes(codes.to(torch.uint16), -0.5).tolist() == [[0.0, -127.0, -3.5]]


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
@pytest.mark.parametrize("scale", [-0.0883, -1e-3, -7.25])
def test_every_code_decodes_to_the_bits_of_numpy(dtype: str, scale: float) -> None:
    codes = np.arange(np.iinfo(dtype).max + 1).astype(dtype).reshape(-1, 16)
    step = float(np.float32(scale))  # a store has float32 steps
    expected = codes.astype(np.float32) * np.float32(step)
    found = decode_codes(torch.from_numpy(codes), step).numpy()
    assert np.array_equal(found.view(np.uint32), expected.view(np.uint32))


def test_every_float16_decodes_to_the_bits_of_numpy() -> None:
    """Subnormal ones and both zeros too; a capture has no NaN."""
    halves = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    halves = halves[~np.isnan(halves)][None]
    found = torch.from_numpy(halves).to(torch.float32).numpy()
    assert np.array_equal(found.view(np.uint32), halves.astype(np.float32).view(np.uint32))


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.0, 9.0])
def test_the_level_of_the_tail_is_within_its_bounds_whatever_its_figures(temperature: float) -> None:
    """As on the host. Rounded figures, and those of a store that nobody vouches for, lead beyond the bounds."""
    random = np.random.default_rng(7)
    rows, k, classes = 400, 3, 12
    kept = -np.sort(random.exponential(4, (rows, k)).astype(np.float16), axis=1)
    figures = random.normal(0, 6, (rows, 3)).astype(np.float32)
    figures[:, 2] = abs(figures[:, 2]) * 10
    index = np.tile(np.arange(k, dtype=np.uint8), (rows, 1))
    expected = TopK(k).decode({"index": index, "logits": kept, "tail": figures}, classes, temperature)
    tensors = TopKTensors(*(torch.from_numpy(value) for value in (index, kept, figures)), classes)
    found = decode_top_k(tensors, temperature).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    log_sum, mean, variance = figures.astype(np.float64).T
    at_one = np.maximum(log_sum - np.log(classes - k), mean)
    below = 2 * (at_one - mean) * (1 - 1 / temperature) + variance / temperature
    free = mean + (at_one - mean) * variance / temperature / below
    assert (abs(free - expected[:, -1]) > 0.1).any() or temperature == 1.0, "no bound would be needed"
