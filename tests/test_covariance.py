"""Laws of the covariance of softened outputs: any blocks, any order, the same matrix."""

import dask.array
import dask.callbacks
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from logitstore.pipeline import covariance as module
from logitstore.pipeline.covariance import Moments, covariance, merge, moments, softmax
from logitstore.storage.errors import BadDataError, BadLogitsError, ConfigError


def draw(seed: int, rows: int, classes: int, sigma: float = 4.0) -> np.ndarray:
    """Logits (rows, classes) float32, with a different constant in each row."""
    generator = np.random.default_rng(seed)
    logits = sigma * generator.normal(size=(rows, classes)) + 10 * generator.normal(size=(rows, 1))
    return logits.astype(np.float32)


def dense(logits: np.ndarray, temperature: float) -> np.ndarray:
    """The definition, in float64 and in one piece."""
    scaled = logits.reshape(-1, logits.shape[-1]).astype(np.float64) / temperature
    probabilities = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    centred = probabilities - probabilities.mean(axis=0)
    return np.asarray(centred.T @ centred / len(centred))


def error(found: np.ndarray, expected: np.ndarray) -> float:
    """Largest difference, in units of sqrt(c_ii c_jj)."""
    deviation = np.sqrt(np.diag(expected))
    return float((np.abs(found - expected) / np.outer(deviation, deviation)).max())


def run(logits: np.ndarray, chunks: tuple[object, ...], temperature: float = 1.0) -> np.ndarray:
    array = dask.array.from_array(logits, chunks=(*chunks, -1))
    return covariance(array, temperature, scheduler="synchronous")


@given(
    seed=st.integers(0, 2**32),
    rows=st.integers(2, 60),
    views=st.integers(1, 3),
    classes=st.integers(2, 12),
    cuts=st.tuples(st.integers(1, 3), st.integers(1, 60)),
    temperature=st.sampled_from([0.5, 1.0, 2.0, 20.0, 1000.0]),
)
def test_any_partition_gives_the_dense_matrix(
    seed: int, rows: int, views: int, classes: int, cuts: tuple[int, int], temperature: float
) -> None:
    logits = draw(seed, views * rows, classes).reshape(views, rows, classes)
    found = run(logits, (min(cuts[0], views), min(cuts[1], rows)), temperature)
    assert error(found, dense(logits, temperature)) < 1e-5
    assert (found == found.T).all()
    assert np.abs(found.sum(axis=1)).max() <= 1e-5 * np.diag(found).max()


def test_large_blocks_are_summed_in_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = draw(0, 30_000, 10)[None]
    expected = dense(logits, 3.0)
    assert error(run(logits, (1, -1), 3.0), expected) < 1e-6
    monkeypatch.setattr(module, "SLICE_ROWS", 7)
    assert error(run(logits[:, :1000], (1, 300), 3.0), dense(logits[:, :1000], 3.0)) < 1e-6


def test_classes_that_are_hardly_ever_likely_keep_their_accuracy() -> None:
    """Products of probabilities near 1e-22 are below float32; so is the variance of one near 1."""
    logits = draw(1, 5000, 6, sigma=1.0)
    logits -= logits.mean(axis=1, keepdims=True)
    logits[:, 0] += 50
    expected = dense(logits, 1.0)[1:, 1:]
    assert expected[0, 0] < 1e-40
    assert error(run(logits[None], (1, 999))[1:, 1:], expected) < 1e-5
    logits[:, 0] -= 35
    expected = dense(logits, 1.0)
    assert error(run(logits[None], (1, 999)), expected) < 1e-5

    # The control: the same in plain float32 misses by far more than the bound.
    plain = np.exp(logits - logits.max(axis=1, keepdims=True))
    plain /= plain.sum(axis=1, keepdims=True)
    plain -= plain.mean(axis=0)
    assert error((plain.T @ plain / len(plain)).astype(np.float64), expected) > 1e-3


def test_the_order_of_the_rows_does_not_matter() -> None:
    logits = draw(2, 500, 8)
    shuffled = logits[np.random.default_rng(0).permutation(len(logits))]
    first = run(logits[None], (1, 64))
    assert error(run(shuffled[None], (1, 100)), first) < 1e-5
    assert error(run(shuffled.reshape(4, 125, 8), (2, 50)), first) < 1e-5


def test_a_constant_added_to_a_row_is_not_seen() -> None:
    logits = np.round(draw(3, 100, 5))
    constants = np.arange(100, dtype=np.float32)[:, None]
    assert (run((logits + constants)[None], (1, 30)) == run(logits[None], (1, 30))).all()


@pytest.mark.parametrize("rows", [1, 7])
def test_rows_that_are_all_the_same_have_no_covariance(rows: int) -> None:
    logits = np.repeat(draw(4, 1, 5), rows, axis=0)
    assert np.abs(run(logits[None], (1, 2))).max() < 1e-30


def test_moments_of_a_union() -> None:
    logits = draw(5, 90, 4)
    whole = moments(logits, 2.0)
    merged = merge([moments(logits[:1], 2.0), moments(logits[1:50], 2.0), moments(logits[50:], 2.0)])
    assert merged.count == whole.count == 90
    np.testing.assert_allclose(merged.mean, whole.mean, rtol=1e-12)
    np.testing.assert_allclose(merged.scatter, whole.scatter, atol=1e-6)
    np.testing.assert_allclose(whole.mean, softmax(logits, 2.0).mean(axis=0))


def test_merging_changes_nothing_that_it_is_given() -> None:
    parts = [moments(draw(seed, 10, 3), 1.0) for seed in range(2)]
    before = [Moments(part.count, part.mean.copy(), part.scatter.copy()) for part in parts]
    merge(parts)
    for part, old in zip(parts, before, strict=True):
        assert (part.mean == old.mean).all()
        assert (part.scatter == old.scatter).all()


def test_threads_report_rows_and_agree() -> None:
    logits = draw(6, 300, 6).reshape(3, 100, 6)
    array = dask.array.from_array(logits, chunks=(1, 32, -1))
    calls: list[tuple[str, int, int, str]] = []

    def progress(task: str, done: int, total: int, unit: str = "rows", detail: str = "") -> None:
        calls.append((task, done, total, unit))

    found = covariance(array, 2.0, progress=progress)
    assert error(found, dense(logits, 2.0)) < 1e-5
    assert len(calls) == 12
    assert [done for _, done, _, _ in calls] == sorted(done for _, done, _, _ in calls)
    assert calls[-1] == ("covariance", 300, 300, "rows")


def test_one_block_lives_at_a_time_whatever_the_rows() -> None:
    """The number of moments that wait to be merged grows with the logarithm of the blocks."""

    class Counted(dask.callbacks.Callback):  # type: ignore[misc]
        most = 0

        def _posttask(self, key: object, result: object, dsk: object, state: dict, worker: object) -> None:
            alive = sum(isinstance(value, Moments) for value in state["cache"].values())
            self.most = max(self.most, alive)

    most = {}
    for blocks in (64, 512):
        with Counted() as counted:
            run(draw(7, blocks, 3)[None], (1, 1))
        most[blocks] = counted.most
    assert most[64] <= 2 * module.FAN_IN + 1
    assert most[512] <= 3 * module.FAN_IN + 1


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_logits_that_are_not_finite_are_placed(value: float) -> None:
    logits = draw(8, 60, 3).reshape(3, 20, 3)
    logits[2, 17, 1] = value
    with pytest.raises(BadLogitsError) as caught:
        run(logits, (1, 8))
    assert str(caught.value) == (
        "view 2, row 17: expected finite logits, found NaN or infinity; run `logitstore verify` on the store"
    )


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan"), float("inf")])
def test_a_temperature_that_is_none(temperature: float) -> None:
    with pytest.raises(ConfigError, match=r"^temperature: expected a number above 0, found "):
        run(draw(0, 2, 2)[None], (1, 2), temperature)


def test_arrays_of_another_form() -> None:
    with pytest.raises(BadDataError, match=r"all classes in a chunk, found float32 \(1, 4, 4\)"):
        covariance(dask.array.zeros((1, 4, 4), dtype="float32", chunks=(1, 4, 2)))
    with pytest.raises(BadDataError, match=r"found float64 \(1, 4, 4\)"):
        covariance(dask.array.zeros((1, 4, 4), chunks=-1))
    with pytest.raises(BadDataError, match=r"found shape \(1, 0, 4\)"):
        covariance(dask.array.zeros((1, 0, 4), dtype="float32"))
