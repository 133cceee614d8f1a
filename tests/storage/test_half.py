"""Stored floats: the teacher's logits at every temperature; unstorable values are refused."""

import math
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from support import stores

from logitstore.storage.encodings.half import FLOATS, widened
from logitstore.storage.encodings.named import encoding_described, encoding_named
from logitstore.storage.errors import BadLogitsError, ConfigError, UnsupportedFeature

TEMPERATURES = (0.5, 1.0, 2.0, 5.0, 20.0)


@st.composite
def some_logits(draw: st.DrawFn, width: float = 60.0) -> NDArray[np.float32]:
    """(rows, classes) float32: rows of very different constants, spread over up to `width`."""
    rows, classes = draw(st.integers(1, 4)), draw(st.integers(2, 12))
    spread = draw(st.floats(0.0, width))
    offset = draw(st.sampled_from([0.0, -3.0, 100.0, 1e4, -1e4]))
    seed = draw(st.integers(0, 2**32))
    unit = np.random.Philox(key=seed).random_raw(rows * classes).astype(np.float64) / 2**64
    return (offset - spread * unit.reshape(rows, classes)).astype(np.float32)


def kl(p: NDArray[np.float64], q: NDArray[np.float64]) -> float:
    """The largest KL(p || q) of the rows, in nats."""
    terms = np.where(p > 0, p * (np.log(np.maximum(p, 1e-300)) - np.log(np.maximum(q, 1e-300))), 0.0)
    return float(terms.sum(axis=1).max())


@given(some_logits(), st.sampled_from(TEMPERATURES))
def test_the_soft_targets_of_float16_are_the_teachers(
    logits: NDArray[np.float32], temperature: float
) -> None:
    """KL <= eps² / (2 T²), where eps is half a float16 ulp at the largest |z - max z| (Hoeffding's lemma)."""
    encoding = FLOATS["float16"]
    decoded = encoding.decode(encoding.encode(logits, 0, "x"))
    centred = logits - logits.max(axis=1, keepdims=True)
    eps = max(float(np.spacing(np.float16(np.abs(centred).max()))) / 2, 2**-25)
    assert float(np.abs(decoded - centred).max()) <= eps
    found = kl(stores.softmax(centred, temperature), stores.softmax(decoded, temperature))
    assert found <= eps**2 / (2 * temperature**2) + 1e-12


@given(some_logits(), st.sampled_from(TEMPERATURES))
def test_the_soft_targets_of_float32_are_the_teachers(
    logits: NDArray[np.float32], temperature: float
) -> None:
    encoding = FLOATS["float32"]
    decoded = encoding.decode(encoding.encode(logits, 0, "x"))
    wanted = stores.softmax(logits, temperature)
    assert np.allclose(stores.softmax(decoded, temperature), wanted, rtol=0, atol=1e-5)


@given(some_logits(), st.sampled_from(sorted(FLOATS)))
def test_the_largest_of_a_row_is_zero_and_peak_gives_the_logits_back(
    logits: NDArray[np.float32], kind: str
) -> None:
    encoding = FLOATS[kind]
    stored = encoding.encode(logits, 0, "x")
    assert stored["logits"].dtype == np.dtype(kind)
    assert (stored["logits"].max(axis=1) == 0).all()
    assert np.array_equal(np.signbit(stored["logits"].max(axis=1)), np.zeros(len(logits), bool))
    assert np.array_equal(stored["peak"], logits.max(axis=1))
    raw = encoding.decode(stored).astype(np.float64) + stored["peak"][:, None]
    spread = float(np.abs(logits - logits.max()).max())
    ulp = float(np.spacing(np.dtype(kind).type(max(spread, 1e-3))))
    assert float(np.abs(raw - logits).max()) <= ulp + float(np.spacing(np.abs(logits).max()))


@given(some_logits(width=30.0), st.sampled_from([-512.0, 0.25, 64.0]))
def test_a_constant_is_not_stored(logits: NDArray[np.float32], constant: float) -> None:
    """A softmax does not see it; where float32 holds both exactly, the bytes are the same."""
    exact = np.round(logits % 32 * 64) / 64
    encoding = FLOATS["float16"]
    one = encoding.encode(exact.astype(np.float32), 0, "x")
    other = encoding.encode((exact + constant).astype(np.float32), 0, "x")
    assert one["logits"].tobytes() == other["logits"].tobytes()
    assert np.array_equal(one["peak"] + np.float32(constant), other["peak"])


def test_centring_comes_before_the_cast() -> None:
    """Negative control: the other way round, a large constant takes the differences away."""
    logits = (10_000 + np.array([[0.0, 0.5, 1.0]])).astype(np.float32)
    kept = FLOATS["float16"].encode(logits, 0, "x")["logits"]
    assert kept.tolist() == [[-1.0, -0.5, 0.0]]
    cast_first = logits.astype(np.float16)
    assert (cast_first - cast_first.max()).tolist() == [[0.0, 0.0, 0.0]]


@pytest.mark.parametrize(
    ("kind", "bad", "found", "expected"),
    [
        ("float16", math.nan, "nan", "finite logits"),
        ("float32", math.nan, "nan", "finite logits"),
        ("float16", math.inf, "inf", "finite logits"),
        ("float32", -math.inf, "-inf", "finite logits"),
        ("float16", -65_520.0, "-65520.0", "logits within 65504 of the row's maximum, float16's range"),
        ("float32", -3.4e38, "-inf", "logits within"),
    ],
)
def test_what_cannot_be_kept_is_named(kind: str, bad: float, found: str, expected: str) -> None:
    logits = np.zeros((6, 4), np.float32)
    if bad == -3.4e38:
        logits[4, 0] = 3.4e38
    logits[4, 2] = bad
    with pytest.raises(BadLogitsError) as caught:
        FLOATS[kind].encode(logits, 100, "teacher 'wide', view 1")
    message = str(caught.value)
    assert message.startswith(f"teacher 'wide', view 1, row 104, class 2: expected {expected}")
    assert f", found {found} (1 of 6 rows" in message
    assert "(1 of 6 rows); correct the teacher (or its precision) and run it again" in message


def test_the_largest_difference_that_float16_keeps() -> None:
    logits = np.array([[0.0, -65_504.0]], np.float32)
    assert FLOATS["float16"].encode(logits, 0, "x")["logits"].tolist() == [[0.0, -65_504.0]]


def test_encodings_by_name_and_by_description() -> None:
    for kind, encoding in FLOATS.items():
        assert encoding_named(kind) is encoding
        assert encoding_described(encoding.describe(), "x") is encoding
    with pytest.raises(ConfigError, match=r"encoding: expected 'float16', 'float32', .*, found 'float8'"):
        encoding_named("float8")
    message = "open this capture with a newer logitstore"
    for description in ({"kind": "codes"}, None, "float16", {}):
        with pytest.raises(UnsupportedFeature, match=re.escape(message)):
            encoding_described(description, "teachers/wide")


def test_float16_is_rounded_as_numpy_rounds_it() -> None:
    """Every float16 from 0 down, every tie between two of them, and the float32 on either side of each tie."""
    halves = np.arange(0, 0x7C00, dtype=np.uint16).view(np.float16).astype(np.float32)
    ties = (halves[1:] + halves[:-1]) / 2
    sizes = np.concatenate(
        [halves, ties, np.nextafter(ties, np.float32(0)), np.nextafter(ties, np.float32(np.inf))]
    )
    logits = np.stack([np.zeros_like(sizes), -sizes], axis=1)
    stored = encoding_named("float16").encode(logits, 0, "here")["logits"]
    expected = logits.astype(np.float16) + np.float16(
        0
    )  # a zero has no sign, also where something was rounded to it
    assert (stored.view(np.uint16) == expected.view(np.uint16)).all()


def test_a_minus_zero_is_stored_as_zero() -> None:
    """Also where a logit is so little below the largest that float16 has only a zero for it."""
    logits = np.array(
        [[-0.0, 0.0, -1.0], [0.0, -0.0, -1.0], [-0.0, -0.0, -1.0], [0.0, -1e-31, -1.0]], np.float32
    )
    stored = encoding_named("float16").encode(logits, 0, "here")["logits"]
    assert stored.view(np.uint16).tolist() == [[0, 0, 0xBC00]] * 4


def test_every_float16_is_widened_as_numpy_widens_it() -> None:
    every = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    finite = every[np.isfinite(every)]
    for numbers in (finite, finite.reshape(-1, 2)[::3], finite[:0], np.tile(finite, 3)):
        assert widened(numbers).tobytes() == numbers.astype(np.float32).tobytes()
    assert np.array_equal(widened(every), every.astype(np.float32), equal_nan=True)


@pytest.mark.parametrize("encoding", ["float16", "float32", {"max_kl": 1e-3}, {"top_k": 3}])
def test_the_layout_of_logits_in_memory_makes_no_difference(encoding: object) -> None:
    """Columns picked by a list, and transposed arrays, lie column by column: once the largest of each row was lost."""
    logits = stores.some_logits(1, 9, 8)[0]
    encode = encoding_named(encoding).encode  # type: ignore[arg-type]
    expected = encode(logits, 0, "")
    wide = np.zeros((9, 16), np.float32)
    wide[:, ::2] = logits
    for other in (np.asfortranarray(logits), wide[:, ::2], logits[::-1][::-1], np.tile(logits.T, 2).T[:9]):
        found = encode(other, 0, "")
        for name, values in expected.items():
            assert np.array_equal(found[name], values), name
