"""The measured KL: accurate from 1e-12 to 100 nats, and rounded upwards where it is kept.

The reference is Python's `decimal`, with fifty digits: it shares neither a formula nor a rounding with the module.
"""

from decimal import Decimal, localcontext

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from logitstore.storage.encodings import divergence as module
from logitstore.storage.encodings.divergence import (
    divergence,
    divergences,
    float16_up,
    kl_of_error,
    logit_error,
)
from logitstore.storage.format.constants import TEMPERATURES

Logits = NDArray[np.float32]


def reference(exact: Logits, decoded: Logits, temperature: float) -> list[float]:
    """Σ p·(ln p − ln p̃) of each row, as it is written."""
    found = []
    with localcontext(prec=50):
        for row in range(len(exact)):
            z = [Decimal(float(value)) / Decimal(temperature) for value in exact[row]]
            y = [Decimal(float(value)) / Decimal(temperature) for value in decoded[row]]
            p, q = [value.exp() for value in z], [value.exp() for value in y]
            ln_p, ln_q = sum(p).ln(), sum(q).ln()
            terms = [a / sum(p) * (b - ln_p - c + ln_q) for a, b, c in zip(p, z, y, strict=True)]
            found.append(float(sum(terms)))
    return found


@st.composite
def pairs(draw: st.DrawFn) -> tuple[Logits, Logits]:
    """Logits and others that are near or far, with different constants."""
    rows, classes = draw(st.integers(1, 4)), draw(st.integers(1, 12))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    exact = rng.normal(0, draw(st.sampled_from([0.1, 3.0, 30.0])), (rows, classes)).astype(np.float32)
    exact += np.float32(draw(st.sampled_from([0.0, 0.0, 7.0, -1e4])))
    size = 10 ** draw(st.floats(-6, 2))
    decoded = exact - exact.max(axis=1, keepdims=True) + rng.uniform(-size, size, exact.shape)
    return exact, decoded.astype(np.float32)


@given(pairs(), st.sampled_from([0.5, 1.0, 4.0, 20.0]))
def test_it_is_the_kl(pair: tuple[Logits, Logits], temperature: float) -> None:
    found = divergence(*pair, temperature)
    for one, wanted in zip(found, reference(*pair, temperature), strict=True):
        assert one == pytest.approx(wanted, rel=1e-3, abs=1e-12)
        assert one >= 0


@pytest.mark.parametrize("size", [1.5e-6, 1e-5, 1e-4, 1e-3, 0.01, 0.1, 0.4999, 0.5001, 1, 10, 100])
@pytest.mark.parametrize("constant", [0.0, 3.0, 1000.0])
def test_it_is_the_kl_at_every_size(size: float, constant: float) -> None:
    """Two to a hundred classes, from 1e-12 to 100 nats, on both sides of where the series ends."""
    rng = np.random.default_rng(int(size * 1e7))
    smallest, largest = np.inf, 0.0
    for classes in (2, 5, 30, 100):
        exact = rng.normal(0, 2, (2, classes)).astype(np.float32)
        exact -= exact.max(axis=1, keepdims=True)
        decoded = (exact + size * np.sign(rng.normal(0, 1, exact.shape))).astype(np.float32)
        decoded[:, 0] = exact[:, 0] + np.float32(size)
        decoded[:, 1] = exact[:, 1] - np.float32(size)
        exact = exact + np.float32(constant)
        wanted = reference(exact, decoded, 1.0)
        assert np.allclose(divergence(exact, decoded, 1.0), wanted, rtol=1e-3, atol=0)
        smallest, largest = min(smallest, *wanted), max(largest, *wanted)
    if constant == 0:
        assert smallest < size**2
    if size == 100:
        assert largest > 50
    if size == 1.5e-6 and constant == 0:
        assert smallest < 3e-12


@pytest.mark.parametrize("size", [0.3, 0.45, 0.49])
def test_the_series_has_all_its_terms(size: float) -> None:
    """Near its end the last term is 2e-4 of the KL of errors of one sign: ten times its remainder."""
    for seed in range(20):
        rng = np.random.default_rng(seed)
        exact = rng.normal(0, 0.1, (1, 20)).astype(np.float32)
        decoded = exact.copy()
        decoded[0, 1] += np.float32(size * (-1) ** seed)  # one class in twenty: the others hardly move
        (found,), (wanted,) = divergence(exact, decoded, 1.0), reference(exact, decoded, 1.0)
        assert found == pytest.approx(wanted, rel=2e-5)


def test_a_difference_of_cross_entropies_would_not_do() -> None:
    """Negative control: what the formula is for. In float32 the obvious one has no digit of it right."""
    rng = np.random.default_rng(0)
    exact = rng.normal(0, 3, (20, 50)).astype(np.float32)
    decoded = (exact + rng.uniform(-1e-4, 1e-4, exact.shape)).astype(np.float32)
    wanted = np.array(reference(exact, decoded, 1.0))

    def log_softmax(z: Logits) -> Logits:
        z = z - z.max(axis=1, keepdims=True)
        return np.asarray(z - np.log(np.exp(z).sum(axis=1, keepdims=True)))

    ln_p, ln_q = log_softmax(exact), log_softmax(decoded)
    obvious = (np.exp(ln_p) * ln_p).sum(axis=1) - (np.exp(ln_p) * ln_q).sum(axis=1)
    assert np.abs(obvious / wanted - 1).max() > 1
    assert np.abs(divergence(exact, decoded, 1.0) / wanted - 1).max() < 1e-3


def test_huge_ranges_do_not_overflow() -> None:
    cases = [
        ([0.0, -3e38], [0.0, -1e38], 0.0),
        ([3e38, -3e38], [0.0, -1.0], np.log1p(np.exp(-1.0))),
        ([0.0, -1e30, -5.0], [0.0, -5.0, -1e30], None),
        ([0.0, -1.0], [0.0, -1e5], None),
        ([0.0, -1e5], [-1e5, 0.0], 1e5),
    ]
    for exact, decoded, wanted in cases:
        (found,) = divergence(np.array([exact], np.float32), np.array([decoded], np.float32), 1.0)
        assert np.isfinite(found)
        if wanted is not None:
            assert found == pytest.approx(wanted, rel=1e-6)
    # A class that had mass e⁻⁵/(1 + e⁻⁵) and has none: 10³⁰ nats for its share of the mass.
    exact = np.array([[0.0, -5.0]], np.float32)
    (found,) = divergence(exact, np.array([[0.0, -1e30]], np.float32), 1.0)
    assert found == pytest.approx(1e30 / (1 + np.exp(5.0)), rel=1e-5)


@given(pairs(), st.integers(0, 4))
def test_each_row_by_itself(pair: tuple[Logits, Logits], cut: int) -> None:
    """A row that is far, or has a constant, changes no digit of its neighbours."""
    exact, decoded = pair
    whole = divergence(exact, decoded, 2.0)
    parts = [divergence(exact[rows], decoded[rows], 2.0) for rows in (slice(0, cut), slice(cut, None))]
    assert np.concatenate(parts).tobytes() == whole.tobytes()
    other = np.concatenate([exact, exact + np.float32(50), exact])
    also = np.concatenate([decoded, decoded * np.float32(7), decoded])
    found = divergence(other, also, 2.0)
    assert found[: len(exact)].tobytes() == whole.tobytes() == found[2 * len(exact) :].tobytes()


def test_many_rows_are_cut_into_pieces() -> None:
    rng = np.random.default_rng(0)
    exact = rng.normal(0, 3, (3000, 50)).astype(np.float32)
    decoded = (exact + rng.uniform(-0.1, 0.1, exact.shape)).astype(np.float32)
    found = divergence(exact, decoded, 1.0)
    rows = [0, 1, 1309, 1310, 1311, 2999]
    assert np.allclose(found[rows], reference(exact[rows], decoded[rows], 1.0), rtol=1e-4)


# At all temperatures at once, from moments


def at_all(exact: Logits, decoded: Logits) -> NDArray[np.float64]:
    """`divergences` of arrays."""
    return divergences(exact.shape, lambda rows: (exact[rows], decoded[rows]))


def wide_pair(classes: int, rows: int = 3, size: float = 0.1) -> tuple[Logits, Logits]:
    """Centred logits of many classes, some of them masked, and close ones."""
    rng = np.random.default_rng(classes)
    exact = rng.normal(0, 3, (rows, classes)).astype(np.float32)
    exact[:, ::7] = -1000
    exact -= exact.max(axis=1, keepdims=True)
    return exact, (exact + size * np.sign(rng.normal(0, 1, exact.shape))).astype(np.float32)


@given(pairs())
def test_moments_give_the_same_kl(pair: tuple[Logits, Logits]) -> None:
    """Whether rows are centred or not, near or far."""
    found = at_all(*pair)
    for column, temperature in enumerate(TEMPERATURES):
        wanted = divergence(*pair, temperature)
        assert found[:, column] == pytest.approx(wanted, rel=1e-4, abs=1e-12)


@pytest.mark.parametrize("classes", [1, 2, 512, 1300])
@pytest.mark.parametrize("size", [1e-5, 0.1, 0.99])
def test_moments_have_six_digits(classes: int, size: float) -> None:
    """Of T·√(2·KL), which is half of the KL's relative error; from one class to several sums."""
    exact, decoded = wide_pair(classes, rows=1, size=size)
    found = at_all(exact, decoded)
    for column in (0, 2, 4):
        wanted = reference(exact, decoded, TEMPERATURES[column])
        assert found[:, column] == pytest.approx(wanted, rel=2e-6, abs=1e-13)


@pytest.mark.parametrize("classes", [10, 700, 25_000])
def test_moments_of_each_row_by_itself(classes: int) -> None:
    """The same bits in any division of the rows, with neighbours that are far."""
    exact, decoded = wide_pair(classes, rows=7)
    decoded[3] *= np.float32(7)
    whole = at_all(exact, decoded)
    single = [at_all(exact[row : row + 1], decoded[row : row + 1]) for row in range(7)]
    assert np.concatenate(single).tobytes() == whole.tobytes()
    times = 700 if classes == 10 else 30
    many = at_all(np.concatenate([exact] * times), np.concatenate([decoded] * times))
    assert many.tobytes() == whole.tobytes() * times


def without(guard: str, value: float, pair: tuple[Logits, Logits]) -> tuple[float, float]:
    """The largest relative error of the KL at T = 1, as it is and with a guard taken away."""
    wanted = np.array(reference(*pair, 1.0))
    kept = np.abs(at_all(*pair)[:, 0] / wanted - 1).max()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, guard, value)
        return float(kept), float(np.abs(at_all(*pair)[:, 0] / wanted - 1).max())


def test_a_mean_that_hides_the_kl_is_not_subtracted() -> None:
    """Negative control: all classes but one move alike, and float32 has few digits left for the rest."""
    exact = np.zeros((1, 3000), np.float32)
    decoded = exact - np.float32(1e-3)
    decoded[:, 5] = 0
    kept, lost = without("_SPREAD", 2.0, (exact, decoded))
    assert kept < 2e-6
    assert lost > 1e-5


def test_errors_too_large_for_nine_moments_are_measured_otherwise() -> None:
    """Negative control."""
    exact, decoded = wide_pair(200, size=3.0)
    kept, lost = without("_CLOSE", 10.0, (exact, decoded))
    assert kept < 1e-6
    assert lost > 1e-4


# Kept as float16


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=50))
def test_float16_is_rounded_upwards(values: list[float]) -> None:
    """And to the very next one that there is."""
    found = float16_up(np.array(values))
    assert found.dtype == np.float16
    for value, kept in zip(values, found, strict=True):
        assert float(kept) >= value
        below = np.nextafter(kept, np.float16(-np.inf))
        assert kept == 0 or float(below) < value


def test_the_nearest_float16_would_be_too_small() -> None:
    """Negative control."""
    values = np.array([0.1, 1.0004, 3.3e-7])
    assert (values.astype(np.float16).astype(np.float64) < values).any()
    assert (float16_up(values).astype(np.float64) >= values).all()


@given(pairs())
def test_what_is_kept_is_not_less_than_the_kl(pair: tuple[Logits, Logits]) -> None:
    """At each temperature, to float32's digits; and more by two steps of float16 at the most."""
    exact, decoded = pair
    error = logit_error(exact.shape, lambda rows: (exact[rows], decoded[rows]))
    kept = kl_of_error(error)
    assert (error.shape, kept.shape) == ((len(exact), 5), (len(exact), 5))
    for column, temperature in enumerate(TEMPERATURES):
        true = divergence(exact, decoded, temperature)
        assert (kept[:, column] >= true * (1 - 4e-6)).all()
        assert (kept[:, column] <= true * 1.005 + 1e-12).all()


@given(st.floats(1e-4, 3), st.integers(2, 60), st.integers(0, 2**32))
def test_an_error_of_every_logit_bounds_it_at_every_temperature(size: float, classes: int, seed: int) -> None:
    """Hoeffding: T·√(2·KL) is at most the largest error, so that one scale of float16 serves all temperatures."""
    rng = np.random.default_rng(seed)
    exact = rng.normal(0, 4, (8, classes)).astype(np.float32)
    decoded = (exact + size * np.sign(rng.normal(0, 1, exact.shape))).astype(np.float32)
    error = logit_error(exact.shape, lambda rows: (exact[rows], decoded[rows]))
    assert float(error.max()) <= np.abs(exact - decoded).max() * (1 + 2e-3)
