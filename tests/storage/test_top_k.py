"""Top-k: the k largest logits in order, and the others at their worth at each temperature."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from support import stores

from logitstore.storage.encodings.divergence import divergence, kl_of_error
from logitstore.storage.encodings.named import encoding_named
from logitstore.storage.encodings.top_k import TopK, largest, tail_level, tell_apart
from logitstore.storage.errors import BadLogitsError, ConfigError
from logitstore.storage.format.constants import TEMPERATURES

Logits = NDArray[np.float32]

ANY_TEMPERATURE = st.floats(math.log(0.3), math.log(1000.0)).map(math.exp)


def centred(logits: Logits) -> Logits:
    """Minus the largest of the row, in float32, as it is encoded."""
    return logits - logits.max(axis=1, keepdims=True)


@st.composite
def rows(draw: st.DrawFn, least: int = 1) -> tuple[Logits, int]:
    """Some rows, with ties in them, and a k of at most their classes."""
    num_rows, classes = draw(st.integers(1, 6)), draw(st.integers(least, 40))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    values = rng.normal(0, draw(st.sampled_from([0.0, 0.01, 1.0, 5.0, 300.0])), (num_rows, classes))
    levels = draw(st.sampled_from([0, 1, 4]))
    values = np.round(values * levels) / levels if levels else values
    return (values + draw(st.sampled_from([0.0, 50.0, -1e4]))).astype(np.float32), draw(
        st.integers(1, classes)
    )


def like_a_teacher(num_rows: int, classes: int, seed: int = 0) -> Logits:
    """Rows with a few classes that stand out of a broad rest."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2.5, (num_rows, classes)).astype(np.float32)
    for _ in range(5):
        logits[np.arange(num_rows), rng.integers(0, classes, num_rows)] += rng.uniform(2, 9, num_rows)
    return logits


def tail_of(logits: Logits, k: int) -> NDArray[np.float64]:
    """(rows, classes - k): the logits that are left out, in order, by sorting alone."""
    return np.sort(centred(logits), axis=1)[:, : logits.shape[1] - k].astype(np.float64)


def exact_level(tail: NDArray[np.float64], temperature: float) -> NDArray[np.float64]:
    """T·ln of the mean of exp(x/T): the one level that has the mass of the tail at a temperature."""
    return np.asarray(
        temperature * np.log(np.exp((tail - tail[:, -1:]) / temperature).mean(axis=1)) + tail[:, -1]
    )


def level_of(encoding: TopK, stored: Any, left_out: int, temperature: float) -> NDArray[np.float64]:
    smallest = stored["logits"][:, -1].astype(np.float32)
    return tail_level(stored["tail"], smallest, left_out, temperature)


# The k largest


@given(rows())
def test_the_k_largest_in_descending_order_and_of_equal_ones_the_lower_class(
    case: tuple[Logits, int],
) -> None:
    logits, k = case
    stored = TopK(k).encode(logits, 0, "x")
    for row, found in zip(centred(logits).tolist(), stored["index"].tolist(), strict=True):
        assert found == sorted(range(len(row)), key=lambda c: (-row[c], c))[:k]
    kept = np.take_along_axis(centred(logits), stored["index"].astype(np.int64), axis=1)
    assert stored["logits"].tobytes() == (kept.astype(np.float16) + np.float16(0)).tobytes()
    assert stored["peak"].tobytes() == logits.max(axis=1).tobytes()
    assert not stored["logits"][:, 0].any()
    assert not np.signbit(stored["logits"][:, 0]).any()


def test_a_sort_that_takes_the_higher_class_is_noticed() -> None:
    """Negative control: numpy's own order of equal logits, from behind, is not this one."""
    logits = np.zeros((1, 8), np.float32)
    assert largest(logits, 3).tolist() == [[0, 1, 2]]
    assert np.argsort(logits, axis=1)[:, ::-1][:, :3].tolist() != [[0, 1, 2]]


@given(rows(), ANY_TEMPERATURE)
def test_where_no_class_is_left_out_it_is_float16(case: tuple[Logits, int], temperature: float) -> None:
    logits, _ = case
    encoding = TopK(logits.shape[1])
    stored = encoding.encode(logits, 0, "x")
    assert not stored["tail"].any()
    decoded = encoding.decode(stored, logits.shape[1], temperature)
    assert np.array_equal(decoded, centred(logits).astype(np.float16).astype(np.float32))


@given(rows(least=2), ANY_TEMPERATURE)
def test_kept_logits_are_those_of_the_dense_row_and_the_others_one_level(
    case: tuple[Logits, int], temperature: float
) -> None:
    logits, k = case
    k = min(k, logits.shape[1] - 1)
    encoding = TopK(k)
    stored = encoding.encode(logits, 0, "x")
    decoded = encoding.decode(stored, logits.shape[1], temperature)
    index = stored["index"].astype(np.int64)
    assert np.array_equal(np.take_along_axis(decoded, index, axis=1), stored["logits"].astype(np.float32))
    level = level_of(encoding, stored, logits.shape[1] - k, temperature)
    left_out = np.ones(logits.shape, np.bool_)
    np.put_along_axis(left_out, index, False, axis=1)
    expected = np.repeat(level.astype(np.float32), logits.shape[1] - k)
    assert np.array_equal(decoded[left_out], expected)


# The others


@given(rows(least=2))
def test_the_figures_are_those_of_the_classes_left_out(case: tuple[Logits, int]) -> None:
    logits, k = case
    tail = tail_of(logits, min(k, logits.shape[1] - 1))
    found = TopK(min(k, logits.shape[1] - 1)).encode(logits, 0, "x")["tail"]
    wanted = np.stack(
        [exact_level(tail, 1.0) + np.log(tail.shape[1]), tail.mean(axis=1), tail.var(axis=1)], 1
    )
    assert np.allclose(found, wanted, rtol=2e-7, atol=1e-6)


@given(rows(least=2))
def test_at_one_the_tail_has_exactly_its_mass(case: tuple[Logits, int]) -> None:
    """To the digits of float32."""
    logits, k = case
    k = min(k, logits.shape[1] - 1)
    stored = TopK(k).encode(logits, 0, "x")
    tail = tail_of(logits, k)
    allowed = 2e-7 * (np.abs(tail).max(axis=1) + np.log(tail.shape[1])) + 1e-9
    level = level_of(TopK(k), stored, tail.shape[1], 1.0)
    assert (np.abs(level - exact_level(tail, 1.0)) <= allowed).all()


@given(rows(least=2), ANY_TEMPERATURE)
def test_at_any_temperature_it_is_between_its_two_bounds(
    case: tuple[Logits, int], temperature: float
) -> None:
    """From T = 1 on the mean and the level at 1; below, the level at 1 and the smallest logit kept. So is the exact one."""
    logits, k = case
    k = min(k, logits.shape[1] - 1)
    stored = TopK(k).encode(logits, 0, "x")
    tail = tail_of(logits, k)
    level = level_of(TopK(k), stored, tail.shape[1], temperature)
    at_one = level_of(TopK(k), stored, tail.shape[1], 1.0)
    mean, smallest = stored["tail"][:, 1].astype(np.float64), stored["logits"][:, -1].astype(np.float64)
    least, most = (mean, at_one) if temperature >= 1 else (at_one, np.maximum(at_one, smallest))
    assert (level >= least).all()
    assert (level <= most).all()
    assert np.isfinite(level).all()
    exact = exact_level(tail, temperature)
    # The smallest one that was kept was rounded to float16, and ln Σ exp(x) to float32.
    digits = 1e-6 * (np.abs(tail).max(axis=1) + np.log(tail.shape[1]))
    slack = digits + np.spacing(np.abs(stored["logits"][:, -1])) + 1e-9
    assert (exact >= least - slack).all()
    assert (exact <= most + slack).all()


@given(rows(least=3))
def test_it_is_near_where_the_tail_is_narrow(case: tuple[Logits, int]) -> None:
    """What three figures do not tell is of the fourth order: within a nat, thousandths of one at any T from 1 on."""
    logits, k = case
    narrow = (np.tanh(centred(logits)) / 2).astype(np.float32)
    k = min(k, logits.shape[1] - 2)
    stored = TopK(k).encode(narrow, 0, "x")
    tail = tail_of(narrow, k)
    for temperature in (1.0, 1.5, 2.0, 5.0, 50.0):
        level = level_of(TopK(k), stored, tail.shape[1], temperature)
        assert np.abs(level - exact_level(tail, temperature)).max() < 0.005


def test_where_one_class_is_left_out_it_comes_back() -> None:
    """Mean and mass of one are the logit itself."""
    logits = like_a_teacher(50, 7)
    for temperature in (0.001, 0.3, 1.0, 2.0, 1000.0):
        encoding = TopK(6)
        decoded = encoding.decode(encoding.encode(logits, 0, "x"), 7, temperature)
        left_out = centred(logits).argmin(axis=1)
        error = np.take_along_axis(decoded - centred(logits), left_out[:, None], axis=1)
        assert np.abs(error).max() <= 0.004  # half a step of float16 at 8, where the last kept one is so near


def test_constant_rows_come_back() -> None:
    logits = np.full((3, 9), 4.5, np.float32)
    encoding = TopK(2)
    stored = encoding.encode(logits, 0, "x")
    assert stored["index"].tolist() == [[0, 1]] * 3
    assert not stored["error"].any()
    for temperature in (0.3, 1.0, 50.0):
        assert np.abs(encoding.decode(stored, 9, temperature)).max() < 1e-6


def test_masked_classes_leave_the_mass_at_one_exact() -> None:
    """Their variance is a number of twenty digits; it must cancel, not drown what is there."""
    logits = like_a_teacher(20, 200)
    logits[:, 100:] = -1e9
    stored = TopK(10).encode(logits, 0, "x")
    exact = exact_level(tail_of(logits, 10), 1.0)
    assert np.abs(level_of(TopK(10), stored, 190, 1.0) - exact).max() < 1e-5
    assert np.isfinite(TopK(10).decode(stored, 200, 2.0)).all()


# How far it is from the truth


def evenly(encoding: TopK, stored: Any, classes: int) -> Logits:
    """What others make of it: the missing mass at T = 1 spread evenly, whatever the temperature."""
    return encoding.decode(stored, classes, 1.0)


@pytest.mark.parametrize("k", [4, 16, 64])
def test_it_is_never_worse_than_a_mass_that_is_spread_evenly(k: int) -> None:
    logits = like_a_teacher(300, 500)
    encoding = TopK(k)
    stored = encoding.encode(logits, 0, "x")
    for temperature in TEMPERATURES:
        ours = divergence(logits, encoding.decode(stored, 500, temperature), temperature).mean()
        theirs = divergence(logits, evenly(encoding, stored, 500), temperature).mean()
        assert ours <= theirs * (1 + 1e-9)
        if temperature in (2.0, 4.0, 8.0, 20.0):
            assert ours < 0.99 * theirs  # the comparison would notice if the temperature were not used
        floor = encoding.decode(stored, 500, temperature)
        level = exact_level(tail_of(logits, k), temperature).astype(np.float32)
        left_out = np.ones(logits.shape, np.bool_)
        np.put_along_axis(left_out, stored["index"].astype(np.int64), False, axis=1)
        floor[left_out] = np.repeat(level, 500 - k)
        assert ours <= 1.02 * divergence(logits, floor, temperature).mean() + 1e-9


@pytest.mark.parametrize(("mask", "most"), [(-20.0, 1.0), (-50.0, 1.0), (-1000.0, 1.1), (-1e9, 1.1)])
def test_nor_much_where_classes_are_masked(mask: float, most: float) -> None:
    """Three figures do not tell a tail of two kinds: the bounds then keep it from being worth more than at T = 1.

    Without that bound a mean KL is 1.7 times that of the mass spread evenly.
    """
    logits = like_a_teacher(300, 500)
    logits[:, 250:] = mask
    encoding = TopK(16)
    stored = encoding.encode(logits, 0, "x")
    for temperature in TEMPERATURES:
        ours = divergence(logits, encoding.decode(stored, 500, temperature), temperature).mean()
        theirs = divergence(logits, evenly(encoding, stored, 500), temperature).mean()
        assert ours <= most * theirs * (1 + 1e-6)


def test_the_more_are_kept_the_nearer_it_is() -> None:
    logits = like_a_teacher(200, 300)
    for temperature in TEMPERATURES:
        mean = []
        for k in (1, 4, 16, 64, 150, 299, 300):
            encoding = TopK(k)
            decoded = encoding.decode(encoding.encode(logits, 0, "x"), 300, temperature)
            mean.append(float(divergence(logits, decoded, temperature).mean()))
        assert mean[:-1] == sorted(mean[:-1], reverse=True)
        assert mean[-2] < 1e-3 * mean[-3]  # one left out is as good as none: what is left is float16's error
        assert mean[-1] < 1e-3 * mean[-3]


@given(rows())
def test_the_error_that_is_recorded_is_that_of_each_row(case: tuple[Logits, int]) -> None:
    logits, k = case
    stored = TopK(k).encode(logits, 0, "x")
    recorded = kl_of_error(stored["error"])
    for column, temperature in enumerate(TEMPERATURES):
        p = stores.softmax(centred(logits), temperature)
        q = stores.softmax(TopK(k).decode(stored, logits.shape[1], temperature), temperature)
        with np.errstate(divide="ignore", invalid="ignore"):
            true = np.where(p > 0, p * (np.log(p) - np.log(q)), 0).sum(axis=1)
        assert (recorded[:, column] >= true * (1 - 1e-3) - 1e-9).all()
        assert (recorded[:, column] <= true * (1 + 4e-3) + 1e-9).all()


# Bytes


@given(rows(), st.integers(0, 6))
def test_each_row_is_encoded_by_itself(case: tuple[Logits, int], cut: int) -> None:
    logits, k = case
    whole = TopK(k).encode(logits, 0, "x")
    pieces = [TopK(k).encode(piece, 0, "x") for piece in (logits[:cut], logits[cut:]) if len(piece)]
    for name, values in whole.items():
        assert np.concatenate([piece[name] for piece in pieces]).tobytes() == values.tobytes(), name


@pytest.mark.parametrize(("classes", "dtype"), [(65_535, "uint16"), (65_536, "uint32"), (150_000, "uint32")])
def test_indexes_are_as_wide_as_the_classes_ask_for(classes: int, dtype: str) -> None:
    """The largest number is what stands for no class."""
    logits = np.random.default_rng(0).normal(0, 1, (2, classes)).astype(np.float32)
    logits[0, -1] = 30
    encoding = TopK(3)
    stored = encoding.encode(logits, 0, "x")
    assert stored["index"].dtype == dtype
    assert stored["index"][0, 0] == classes - 1
    assert int(stored["index"].max()) < np.iinfo(dtype).max
    assert encoding.decode(stored, classes, 1.0).argmax(axis=1).tolist() == logits.argmax(axis=1).tolist()


# What is refused


@pytest.mark.parametrize("k", [0, -1, True, 2.0, "3", None])
def test_a_k_that_is_no_number_of_classes_is_refused(k: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        encoding_named({"top_k": k})
    assert str(caught.value) == (
        f"encoding: top_k: expected an integer of at least 1, found {k!r}; choose another k"
    )


def test_a_k_beyond_the_classes_is_refused() -> None:
    for refused in (lambda: TopK(6).arrays(5), lambda: TopK(6).encode(np.zeros((1, 5), np.float32), 0, "x")):
        with pytest.raises(ConfigError, match=r"expected at most 5, the classes of this capture, found 6"):
            refused()


@pytest.mark.parametrize("temperature", [None, 0.0, -1.0, math.nan, math.inf, 1e-200])
def test_a_temperature_that_is_none_is_refused(temperature: float | None) -> None:
    stored = TopK(2).encode(like_a_teacher(2, 5), 0, "x")
    with pytest.raises(
        ConfigError,
        match="temperature: expected a temperature from 1e-06: top-k rows decode differently at each",
    ):
        TopK(2).decode(stored, 5, temperature)


@pytest.mark.parametrize(
    ("bad", "expected"),
    [
        (math.nan, "finite logits, found nan"),
        (math.inf, "finite logits, found inf"),
        (-math.inf, "finite logits, found -inf"),
        (-3.4028235e38, "logits within 1e+19 of the row's maximum, found -3.4028234663852886e+38"),
        (-1e20, "logits within 1e+19 of the row's maximum, found -1.0000000200408773e+20"),
    ],
)
def test_what_cannot_be_kept_is_named(bad: float, expected: str) -> None:
    logits = np.zeros((6, 4), np.float32)
    logits[4, 2] = bad
    with pytest.raises(BadLogitsError) as caught:
        TopK(3).encode(logits, 100, "teacher 'wide', view 1")
    assert str(caught.value).startswith(
        f"teacher 'wide', view 1, row 104, class 2: expected {expected} (1 of 6"
    )


def test_a_logit_that_would_be_kept_must_fit_into_float16() -> None:
    """One that is left out need not."""
    logits = np.array([[0.0, -1.0, -70_000.0, -70_001.0]], np.float32)
    assert np.isfinite(TopK(2).decode(TopK(2).encode(logits, 0, "x"), 4, 1.0)).all()
    expected = (
        r"row 7, class 2: expected the k largest logits within float16's range of 65504, found -70000.0"
    )
    with pytest.raises(BadLogitsError, match=expected):
        TopK(3).encode(logits, 7, "x")


@given(st.integers(0, 2**32), st.integers(2, 9), st.data())
def test_equal_logits_are_told_apart_as_they_were_given(seed: int, classes: int, data: st.DataObject) -> None:
    """Logits so near each other that float16 makes some equal; the order of the k largest is that of the given ones."""
    k = data.draw(st.integers(1, classes))
    logits = (-5 + np.random.default_rng(seed).random((6, classes)) * 4e-3).astype(np.float32)
    logits[:, seed % classes] = 0
    stored = TopK(k).encode(logits, 0, "")
    dense = TopK(k).decode(stored, classes, 1.0)
    told = tell_apart(dense, stored["index"])
    assert np.abs(told - dense).max() < 4e-3, "a step of float16"
    order = np.argsort(-logits, axis=1, kind="stable")[:, :k]
    assert np.array_equal(np.argsort(-told, axis=1, kind="stable")[:, :k], order)
    assert np.array_equal(told.argmax(axis=1), logits.argmax(axis=1))
