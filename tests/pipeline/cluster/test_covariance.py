"""Laws of the covariance of softened outputs: any blocks, any order, any scheduler, the same matrix."""

from pathlib import Path
from typing import Any
from unittest import mock

import dask.callbacks
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.held_logits import Held, moments
from support.stores import softmax

from logitstore.pipeline.cluster import covariance as module
from logitstore.pipeline.cluster import moments as arithmetic
from logitstore.pipeline.cluster.covariance import covariance, lanes_of
from logitstore.pipeline.cluster.moments import Moments, merge
from logitstore.pipeline.cluster.softened import Softened, Source, softened_of, softened_outputs
from logitstore.storage.api import Store, create_store, open_store
from logitstore.storage.errors import BadDataError, BadLogitsError, ConfigError, SpecMismatch


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


def run(logits: np.ndarray, block_rows: int, temperature: float = 1.0, **how: Any) -> np.ndarray:
    return covariance(
        softened_of(Held(logits), temperature, block_rows), **{"scheduler": "synchronous"} | how
    )


@given(
    seed=st.integers(0, 2**32),
    rows=st.integers(2, 60),
    views=st.integers(1, 3),
    classes=st.integers(2, 12),
    block_rows=st.integers(1, 60),
    lanes=st.integers(1, 5),
    temperature=st.sampled_from([0.5, 1.0, 2.0, 20.0, 1000.0]),
)
def test_any_partition_gives_the_dense_matrix(
    seed: int, rows: int, views: int, classes: int, block_rows: int, lanes: int, temperature: float
) -> None:
    logits = draw(seed, views * rows, classes).reshape(views, rows, classes)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "LANES", lanes)
        found = run(logits, block_rows, temperature)
    assert error(found, dense(logits, temperature)) < 1e-5
    assert (found == found.T).all()
    assert np.abs(found.sum(axis=1)).max() <= 1e-5 * np.diag(found).max()


def test_large_blocks_are_summed_in_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = draw(0, 30_000, 10)[None]
    expected = dense(logits, 3.0)
    assert error(run(logits, 30_000, 3.0), expected) < 1e-6
    monkeypatch.setattr(arithmetic, "SLICE_ROWS", 7)
    monkeypatch.setattr(arithmetic, "PIECE_VALUES", 30)
    assert error(run(logits[:, :1000], 300, 3.0), dense(logits[:, :1000], 3.0)) < 1e-6


def test_classes_that_are_hardly_ever_likely_keep_their_accuracy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Products of probabilities near 1e-26 are below float32; so is the variance of one near 1."""
    logits = draw(1, 5000, 6, sigma=1.0)
    logits -= logits.mean(axis=1, keepdims=True)
    logits[:, 0] += 60
    expected = dense(logits, 1.0)[1:, 1:]
    assert expected[0, 0] < 1e-40
    assert error(run(logits[None], 999)[1:, 1:], expected) < 1e-5
    with monkeypatch.context() as patch:
        patch.setattr(arithmetic, "_SMALLEST", 1.0)  # the control: columns that are not divided by their mean
        assert not error(run(logits[None], 999)[1:, 1:], expected) < 1e-5
    logits[:, 0] -= 45
    expected = dense(logits, 1.0)
    assert error(run(logits[None], 999), expected) < 1e-5

    # The control: the same in plain float32 misses by far more than the bound.
    plain = np.exp(logits - logits.max(axis=1, keepdims=True))
    plain /= plain.sum(axis=1, keepdims=True)
    plain -= plain.mean(axis=0)
    assert error((plain.T @ plain / len(plain)).astype(np.float64), expected) > 1e-3


def test_the_order_of_the_rows_does_not_matter() -> None:
    logits = draw(2, 500, 8)
    shuffled = logits[np.random.default_rng(0).permutation(len(logits))]
    first = run(logits[None], 64)
    assert error(run(shuffled[None], 100), first) < 1e-6
    assert error(run(shuffled.reshape(4, 125, 8), 50), first) < 1e-6


def test_the_same_blocks_give_the_same_bits_on_any_number_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = draw(2, 3000, 40)[None]
    first = run(logits, 16)
    for threads in (2, 7):
        monkeypatch.setattr(module, "CPU_COUNT", threads)
        assert (run(logits, 16, scheduler="threads") == first).all()
    assert (run(logits, 32) != first).any(), "other blocks: equal bits would mean that nothing was compared"


def test_lanes_hold_every_block_once() -> None:
    for count in (1, 5, 31, 32, 33, 100):
        lanes = lanes_of(range(count), 16)
        assert [block for lane in lanes for block in lane] == list(range(count))
        assert len(lanes) == min(count, module.LANES)
        assert max(map(len, lanes)) - min(map(len, lanes)) <= 1


def test_a_constant_added_to_a_row_is_not_seen() -> None:
    logits = np.round(draw(3, 100, 5))
    constants = np.arange(100, dtype=np.float32)[:, None]
    assert (run((logits + constants)[None], 30) == run(logits[None], 30)).all()


@pytest.mark.parametrize("rows", [1, 7])
def test_rows_that_are_all_the_same_have_no_covariance(rows: int) -> None:
    logits = np.repeat(draw(4, 1, 5), rows, axis=0)
    assert np.abs(run(logits[None], 2)).max() < 1e-30


def test_a_class_that_only_later_rows_know_keeps_its_covariance(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = draw(9, 80, 5)
    logits[:20, 2] -= 200  # in the first block its probability is about e-87: as a scale it leaves float32
    logits[40:60, 1:] -= 50
    monkeypatch.setattr(module, "LANES", 1)
    assert error(run(logits[None], 20), dense(logits[None], 1.0)) < 1e-5
    monkeypatch.setattr(arithmetic, "_SMALLEST", 1.0)
    logits[:, 2] -= 60
    assert not error(run(logits[None], 20), dense(logits[None], 1.0)) < 1e-5


def test_moments_of_a_union() -> None:
    logits = draw(5, 90, 4)
    whole = moments(logits, 2.0)
    merged = merge([moments(logits[:1], 2.0), moments(logits[1:50], 2.0), moments(logits[50:], 2.0)])
    assert merged.count == whole.count == 90
    np.testing.assert_allclose(merged.mean, whole.mean, rtol=1e-12)
    assert error(merged.scatter, whole.scatter) < 1e-6
    np.testing.assert_allclose(whole.mean, softmax(logits, 2.0).mean(axis=0))


def test_merging_changes_nothing_that_it_is_given() -> None:
    parts = [moments(draw(seed, 10, 3), 1.0) for seed in range(2)]
    before = [part.copy() for part in parts]
    merge(parts)
    for part, old in zip(parts, before, strict=True):
        assert (part.mean == old.mean).all()
        assert (part.scatter == old.scatter).all()


def test_threads_report_rows_and_agree() -> None:
    logits = draw(6, 300, 6).reshape(3, 100, 6)
    calls: list[tuple[str, int, int, str]] = []

    def progress(task: str, done: int, total: int, unit: str = "rows", detail: str = "") -> None:
        calls.append((task, done, total, unit))

    found = run(logits, 32, 2.0, scheduler="threads", progress=progress)
    assert error(found, dense(logits, 2.0)) < 1e-5
    assert len(calls) == 13 and calls[0] == ("covariance", 0, 300, "rows")
    assert [done for _, done, _, _ in calls] == sorted(done for _, done, _, _ in calls)
    assert calls[-1] == ("covariance", 300, 300, "rows")


def test_as_many_matrices_live_however_many_rows_there_are() -> None:
    class Counted(dask.callbacks.Callback):  # type: ignore[misc]
        most = 0

        def _posttask(self, key: object, result: object, dsk: object, state: dict, worker: object) -> None:
            alive = sum(isinstance(value, Moments) for value in state["cache"].values())
            self.most = max(self.most, alive)

    most = {}
    for blocks in (8, 32, 512):
        with Counted() as counted:
            run(draw(7, blocks, 3)[None], 1)
        most[blocks] = counted.most
    waiting = 3 + 3  # FAN_IN - 1 of each level: 16 lanes, 4 groups
    assert 4 <= most[32] == most[512] <= waiting + 2, most
    assert most[8] <= most[32]


def test_a_matrix_that_another_task_may_still_need_is_not_written_to() -> None:
    source = softened_of(Held(draw(5, 40, 4)[None]), 1.0, 20)
    before = module._with_block((source, None), 0, range(20), None, None)
    kept = before.copy()
    with mock.patch("distributed.get_worker"):  # on a cluster, which computes lost results again
        after = module._with_block((source, None), 0, range(20, 40), before, "topic")
    assert (before.scatter == kept.scatter).all() and (before.mean == kept.mean).all()
    assert (after.count, before.count) == (40, 20)
    alone = module._with_block((source, None), 0, range(20, 40), before, None)
    assert alone is before and (alone.scatter == after.scatter).all()  # a thread's result has one reader


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_logits_that_are_not_finite_are_placed(value: float) -> None:
    logits = draw(8, 60, 3).reshape(3, 20, 3)
    logits[2, 17, 1] = value
    with pytest.raises(BadLogitsError) as caught:
        run(logits, 8)
    assert str(caught.value) == (
        "logits: view 2, row 17: expected finite logits, found NaN or infinity; run `logitstore verify` on the store"
    )


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan"), float("inf")])
def test_a_temperature_that_is_none(temperature: float) -> None:
    with pytest.raises(ConfigError, match=r"^temperature: expected a finite number above 0, found "):
        run(draw(0, 2, 2)[None], 2, temperature)


def test_no_rows() -> None:
    with pytest.raises(BadDataError, match=r"found shape \(1, 0, 4\)"):
        run(np.zeros((1, 0, 4), np.float32), 2)


# Stores


ROWS, CLASSES, BLOCK_ROWS = 230, 6, 4


def stored(path: Path, **captures: dict[str, Any]) -> Store:
    """A store of captures, each float32 logits (view, row, class) with what else `Store.capture` takes."""
    store = create_store(
        path, num_rows=ROWS, num_classes=CLASSES, digests=np.zeros(ROWS, np.uint64), block_rows=BLOCK_ROWS
    )
    for name, how in captures.items():
        logits = how.pop("logits")
        with store.capture(name, provenance={}, views=len(logits), encoding="float32", **how) as capture:
            for view, values in enumerate(logits):
                for rows in capture.missing_blocks(view):
                    capture.write(rows, values[rows.start : rows.stop], view=view)
    return open_store(path)


def some(seed: int, views: int = 2) -> np.ndarray:
    return draw(seed, views * ROWS, CLASSES).reshape(views, ROWS, CLASSES)


@pytest.fixture(scope="module")
def ensemble(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, dict[str, np.ndarray]]:
    """Two teachers; the columns of "turned" stand in another order."""
    logits, order = {"wide": some(1), "turned": some(2)}, [3, 0, 5, 1, 4, 2]
    path = tmp_path_factory.mktemp("ensemble") / "store.zarr"
    turned = {"logits": logits["turned"][:, :, order], "classes": order}
    return stored(path, wide={"logits": logits["wide"]}, turned=turned), logits


def mean_of(logits: dict[str, np.ndarray], shares: dict[str, float], temperature: float) -> np.ndarray:
    """The covariance of the mean of the softmaxes, by the definition."""
    mean = np.zeros((2 * ROWS, CLASSES))
    for name, share in shares.items():
        scaled = np.exp(logits[name].reshape(-1, CLASSES).astype(np.float64) / temperature)
        mean += share * scaled / scaled.sum(axis=1, keepdims=True)
    return np.cov(mean.T, ddof=0)


def test_an_ensemble_is_the_weighted_mean_of_its_softmaxes(
    ensemble: tuple[Store, dict[str, np.ndarray]],
) -> None:
    store, logits = ensemble
    found = covariance(softened_outputs(store, {"wide": 3.0, "turned": 1.0}, 2.0))
    expected = mean_of(logits, {"wide": 0.75, "turned": 0.25}, 2.0)
    assert error(found, expected) < 1e-5
    assert (
        error(covariance(softened_outputs(store, {"turned": 1}, 2.0)), mean_of(logits, {"turned": 1}, 2.0))
        < 1e-5
    )
    assert error(covariance(softened_outputs(store, {"wide": 1.0, "turned": 1.0}, 2.0)), expected) > 1e-2


def test_an_ensemble_is_what_the_losses_take_it_for(ensemble: tuple[Store, dict[str, np.ndarray]]) -> None:
    torch = pytest.importorskip("torch")
    from logitstore.pipeline.losses import soft_targets

    store, logits = ensemble
    weights = {"wide": 3.0, "turned": 1.0}
    given = {name: torch.from_numpy(values[1, 40:70]) for name, values in logits.items()}
    found = softened_outputs(store, weights, 2.0).read(1, range(40, 70))
    np.testing.assert_allclose(found, soft_targets(given, 2.0, weights).numpy(), atol=1e-6)


def test_two_processes_on_a_cluster_give_the_same_matrix(
    ensemble: tuple[Store, dict[str, np.ndarray]],
) -> None:
    from distributed import Client, LocalCluster

    store, logits = ensemble
    source = softened_outputs(store, {"wide": 3.0, "turned": 1.0}, 2.0)
    done: list[tuple[int, int]] = []

    def progress(task: str, now: int, total: int, unit: str = "rows", detail: str = "") -> None:
        done.append((now, total))

    with (
        LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        found = covariance(source, scheduler=client, progress=progress)
        workers = client.run(lambda: __import__("os").getpid())
        with pytest.raises(BadLogitsError, match=r"^logits: view 0, row 3: expected finite logits"):
            bad = np.zeros((1, 9, 3), np.float32)
            bad[0, 3, 1] = np.nan
            run(bad, 4, scheduler=client)
    assert len(set(workers.values())) == 2
    assert error(found, mean_of(logits, {"wide": 0.75, "turned": 0.25}, 2.0)) < 1e-5
    assert error(found, covariance(source)) < 1e-12, "the same sums in the same order, on the same machine"
    assert done[0] == (0, 2 * ROWS) and done[-1] == (2 * ROWS, 2 * ROWS)
    assert [now for now, _ in done] == sorted(now for now, _ in done)


def test_captures_that_have_no_covariance_of_all_classes_are_refused(tmp_path: Path) -> None:
    store = stored(
        tmp_path / "store.zarr",
        wide={"logits": some(1)},
        short={"logits": some(2)[:, :, :3], "classes": [1, 4, -1]},
        one={"logits": some(3, views=1)},
    )
    with pytest.raises(BadDataError) as caught:
        softened_outputs(store, {"short": 1.0}, 1.0)
    assert str(caught.value) == (
        "teachers/short: expected a capture of all 6 classes of the store, found a capture of 2 classes and a dustbin class; "
        "cluster the generalist, or an ensemble of such teachers"
    )
    with pytest.raises(
        SpecMismatch, match=r"^teachers/one: views: expected 2, as teachers/wide has, found 1; "
    ):
        softened_outputs(store, {"wide": 1.0, "one": 1.0}, 1.0)
    for weights in ({}, {"wide": 0.0}, {"wide": float("nan")}):
        with pytest.raises(
            ConfigError, match=r"^teachers: expected at least one teacher, with a weight above 0, "
        ):
            softened_outputs(store, weights, 1.0)


def test_sources_say_where_a_row_is_wrong() -> None:
    good, bad = draw(0, 8, 3)[None], draw(1, 8, 3)[None]
    bad[0, 5, 0] = np.nan
    sources = (Source("good", 0.5, Held(good)), Source("bad", 0.5, Held(bad)))
    with pytest.raises(BadLogitsError, match=r"^bad: view 0, row 5: "):
        covariance(Softened(sources, 1.0, 4), scheduler="synchronous")
