"""An error budget: it holds for every row, at every temperature, to the source and to the teacher.

Rows are made to break it: logits half-way between two codes and a digit to either side, where float32 rounds worst,
at the far end of the codes. What the bound rests on (the margin, the error of a source, exact division) is taken away in turn, and
the same checks must then see it.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from support.divergences import kl

from logitstore.storage.encodings import error_budget
from logitstore.storage.encodings.divergence import divergence, error_of_kl
from logitstore.storage.encodings.error_budget import ErrorBudget
from logitstore.storage.encodings.half import FLOATS, rounding_error
from logitstore.storage.encodings.named import encoding_named
from logitstore.storage.errors import BadLogitsError, ConfigError
from logitstore.storage.format.constants import TEMPERATURES

Logits = NDArray[np.float32]

ROWS = 90
"""Rows of each recipe of an example."""
WANTED = 10_000
"""Rows that `make test` tries at least, of each kind of source."""


# What is true


def temperatures(encoding: ErrorBudget, logits: Logits) -> Iterator[float]:
    """From the lowest, to those at which the farthest class counts as much as the nearest."""
    least, spread = encoding.min_temperature, float(logits.max() - logits.min())
    yield from (least, 1.01 * least, 2 * least, 20 * least, max(least, 4 * spread))


def of_bound(encoding: ErrorBudget, logits: Logits, decoded: Logits) -> float:
    """The largest KL of a row, of what is allowed at its temperature: at most 1."""
    return max(
        float((kl(logits, decoded, t) / encoding.bound(t)).max()) for t in temperatures(encoding, logits)
    )


def of_epsilon(encoding: ErrorBudget, logits: Logits, decoded: Logits) -> float:
    """The largest error of a logit, of the ε that the bound rests on: at most 1."""
    exact = logits.astype(np.float64)
    return float(np.abs(decoded - (exact - exact.max(axis=1, keepdims=True))).max()) / encoding.epsilon


def encoded(encoding: ErrorBudget, logits: Logits) -> Logits:
    """There and back."""
    return encoding.decode(encoding.encode(logits, 0, "x"))


# Rows that are meant to break it


@dataclass(frozen=True)
class Recipe:
    """How to make rows."""

    kind: str
    far: float
    """The largest code, of those that there are."""
    offset: float
    """The constant of the row."""


KINDS = ("ties", "two groups", "far end", "powers of two", "anything", "two alike")


def nudged(values: NDArray[np.floating], ulps: NDArray[np.integer] | int) -> Logits:
    """float32 of positive values, moved by some ulps."""
    bits = np.maximum(values, 2.0**-60).astype(np.float32).view(np.int32)
    return np.asarray((bits + np.asarray(ulps, np.int32)).view(np.float32))


def sizes_below(
    encoding: ErrorBudget, recipe: Recipe, classes: int, rng: np.random.Generator
) -> NDArray[np.float64]:
    """(ROWS, classes): how far each logit is below the row's largest, about."""
    top = max(1, int(recipe.far * (encoding.most_codes - 2)))
    shape = (ROWS, classes)
    if (
        recipe.kind == "two groups"
    ):  # of the same probability, one rounded up and one down: Hoeffding is tight there
        return np.tile((rng.integers(0, top, (ROWS, 1)) + 0.5) * encoding.step, (1, classes))
    if recipe.kind == "far end":
        return (np.maximum(top - rng.integers(0, 3, shape), 0) + 0.5) * encoding.step
    if recipe.kind == "powers of two":
        return np.asarray(2.0 ** np.floor(rng.uniform(-12, np.log2(top * encoding.step), shape)))
    if recipe.kind == "anything":
        return np.asarray(rng.uniform(0, top * encoding.step, shape))
    if recipe.kind == "two alike":  # p = 1/2, the others far below
        below = np.full(shape, top * encoding.step)
        below[:, 1] = encoding.step / 2
        return below
    return (rng.integers(0, top, shape) + 0.5) * encoding.step


def rows_of(encoding: ErrorBudget, recipe: Recipe, classes: int, rng: np.random.Generator) -> Logits:
    """Rows by a recipe, as many of them as this encoding can keep."""
    below = nudged(sizes_below(encoding, recipe, classes, rng), rng.integers(-2, 3, (ROWS, classes)))
    below[:, 0] = 0
    rows = (np.float32(recipe.offset) - below).astype(np.float32)
    spread = rows.max(axis=1).astype(np.float64) - rows.min(axis=1)
    return rows[spread < (encoding.most_codes + 0.4) * encoding.step]


def searched(encoding: ErrorBudget, classes: int, *, offset: float = 0.0, tries: int = 100) -> Logits:
    """One row of the two logits that come back worst, one too high and one too low, many times each.

    They are looked for where codes are large and float32 is coarse, and where a product of code and step is rounded most.
    """
    codes = np.arange(int(0.9 * encoding.most_codes), encoding.most_codes)
    rounded = codes.astype(np.float32) * np.float32(encoding.step) - codes * encoding.step
    order = np.argsort(rounded)
    worst = codes[np.union1d(order[:tries], order[-tries:])]
    near = np.concatenate([np.linspace(-33, -31, 33), np.linspace(31, 33, 33)]) / 64  # of a step: half-way
    below = (worst[:, None] + near).ravel() * encoding.step
    tried = np.stack([np.full_like(below, offset), offset - below], axis=1).astype(np.float32)
    error = encoded(encoding, tried)[:, 1] - (tried[:, 1].astype(np.float64) - tried[:, 0])
    row = np.full((1, classes), offset, np.float32)
    row[0, 1::2], row[0, 2::2] = tried[error.argmax(), 1], tried[error.argmin(), 1]
    return row


def before_float16(encoding: ErrorBudget, classes: int, largest: float, rng: np.random.Generator) -> Logits:
    """Logits that float16 rounds by half a step, away from what their codes stand for: those that come back worst."""
    last = int(np.float16(largest).view(np.uint16))
    kept = -np.arange(last - 512, last + 1, dtype=np.uint16).view(np.float16).astype(np.float32)
    kept = np.concatenate([[np.float32(0)], kept])
    error = encoded(encoding, kept[None])[0] - kept
    half = np.spacing(kept.astype(np.float16)).astype(np.float32) / 2
    before = kept - np.sign(error) * np.abs(half) * np.float32(0.99)
    order = np.argsort(error[1:]) + 1
    rows = np.zeros((ROWS, classes), np.float32)
    rows[:, 1::2] = before[rng.choice(order[:16], rows[:, 1::2].shape)]
    rows[:, 2::2] = before[rng.choice(order[-16:], rows[:, 2::2].shape)]
    rows[0, -1] = -largest
    return rows


@st.composite
def encodings(draw: st.DrawFn) -> ErrorBudget:
    return ErrorBudget(
        10 ** draw(st.floats(-6, -1)),
        10 ** draw(st.floats(math.log10(0.5), math.log10(20))),
        dtype=draw(st.sampled_from(["uint16", "uint16", "uint8"])),
        shift=draw(st.integers(0, 4)),
    )


RECIPES = st.builds(
    Recipe,
    st.sampled_from(KINDS),
    st.sampled_from([1.0, 1.0, 0.5, 0.126, 0.125, 0.01, 0.001]),
    st.sampled_from([0.0, 0.0, 3.3, -100.0, 1e4, -1e6]),
)


# The laws


def test_the_budget_is_never_exceeded_to_the_source_and_to_the_teacher() -> None:
    """The source is the teacher itself, or what a float32 or a float16 capture kept of it."""
    tried = {"teacher": 0, "float32": 0, "float16": 0}

    @given(encodings(), st.lists(RECIPES, min_size=3, max_size=3), st.integers(2, 200), st.integers(0, 2**32))
    def law(encoding: ErrorBudget, recipes: list[Recipe], classes: int, seed: int) -> None:
        rng = np.random.default_rng(seed)
        for recipe in recipes:
            rows = rows_of(encoding, recipe, classes, rng)
            if not len(rows):
                continue
            for source in ("teacher", "float32"):
                kept = rows if source == "teacher" else FLOATS[source].encode(rows, 0, "x")["logits"]
                decoded = encoded(encoding, kept)
                assert of_epsilon(encoding, rows, decoded) <= 1
                assert of_bound(encoding, rows, decoded) <= 1
                assert of_bound(encoding, kept, decoded) <= 1
                tried[source] += len(rows)
        # Half a step of float16 at the largest logit is what a share of ε allows, some codes away.
        share = rng.uniform(0.05, 0.95)
        largest = 1.5 * 2.0 ** math.floor(math.log2(share * encoding.epsilon * 2**11))
        wide = replace(encoding, source_error=rounding_error("float16", largest), dtype="uint16", shift=0)
        for _ in recipes:
            rows = before_float16(wide, classes, largest, rng)
            kept = FLOATS["float16"].decode(FLOATS["float16"].encode(rows, 0, "x"))
            assert wide.source_error == rounding_error("float16", float(-kept.min()))
            decoded = encoded(wide, kept)
            assert of_epsilon(wide, rows, decoded) <= 1
            assert of_bound(wide, rows, decoded) <= 1
            assert of_bound(wide, kept, decoded) <= 1
            tried["float16"] += len(rows)

    law()
    assert min(tried.values()) >= WANTED, tried


@given(encodings(), st.floats(0, 1))
def test_the_worst_row_that_a_search_finds_is_within_the_budget(encoding: ErrorBudget, share: float) -> None:
    row = searched(encoding, 200, offset=share * encoding.most_codes * encoding.step)
    decoded = encoded(encoding, row)
    assert of_epsilon(encoding, row, decoded) <= 1
    assert of_bound(encoding, row, decoded) <= 1


def test_hoeffding_is_tight() -> None:
    """The search is a hard one: it comes within 6 % of what is allowed, of which the margin is 3 %."""
    encoding = ErrorBudget(1e-4)
    row = searched(encoding, 200)
    assert 0.94 < of_bound(encoding, row, encoded(encoding, row)) < 1


@given(encodings(), RECIPES, st.integers(0, 15), st.integers(0, 2**32))
def test_a_shift_changes_no_decoded_value(
    encoding: ErrorBudget, recipe: Recipe, shift: int, seed: int
) -> None:
    other = replace(encoding, dtype="uint16", shift=shift)
    rows = rows_of(other, recipe, 7, np.random.default_rng(seed))
    one, two = replace(other, shift=0).encode(rows, 0, "x"), other.encode(rows, 0, "x")
    assert np.array_equal(one["logits"] << shift, two["logits"])
    assert replace(other, shift=0).decode(one).tobytes() == other.decode(two).tobytes()
    assert one["error"].tobytes() == two["error"].tobytes()


@given(encodings(), RECIPES, st.lists(st.integers(0, ROWS), max_size=4), st.integers(0, 2**32))
def test_each_row_is_encoded_by_itself(
    encoding: ErrorBudget, recipe: Recipe, cuts: list[int], seed: int
) -> None:
    """Any split of the rows gives the same bytes: a resumed capture has those of one that was never stopped."""
    rows = rows_of(encoding, recipe, 33, np.random.default_rng(seed))
    borders = [0, *sorted(cut for cut in cuts if cut < len(rows)), len(rows)]
    pieces = [
        encoding.encode(rows[start:stop], start, "x") for start, stop in pairwise(borders) if start < stop
    ]
    for name, values in encoding.encode(rows, 0, "x").items():
        joined = np.concatenate([piece[name] for piece in pieces]) if pieces else values
        assert joined.tobytes() == values.tobytes(), name


@pytest.mark.parametrize("constant", [0.0, -0.0, 7.25, -1e6, 3e38])
@pytest.mark.parametrize("classes", [1, 2, 1000])
def test_constant_rows_are_exact(constant: float, classes: int) -> None:
    stored = ErrorBudget(1e-3).encode(np.full((3, classes), constant, np.float32), 0, "x")
    assert not stored["logits"].any()
    assert not stored["error"].any()
    assert not ErrorBudget(1e-3).decode(stored).any()
    assert (stored["peak"] == np.float32(constant)).all()


@given(encodings(), RECIPES, st.integers(0, 2**32))
def test_the_error_that_is_recorded_is_that_of_each_row(
    encoding: ErrorBudget, recipe: Recipe, seed: int
) -> None:
    """T·√(2·KL), rounded up to float16: never less, but for float32's last digits, and little more."""
    rows = rows_of(encoding, recipe, 9, np.random.default_rng(seed))
    stored = encoding.encode(rows, 0, "x")
    decoded = encoding.decode(stored)
    for column, temperature in enumerate((1.0, 2.0, 4.0, 8.0, 20.0)):
        true = temperature * np.sqrt(2 * kl(rows, decoded, temperature))
        found = stored["error"][:, column].astype(np.float64)
        # A source with a constant was centred in float32, which is not an error of the encoding.
        slack = 1e-3 * true + 2e-6 + 2.0**-22 * (abs(recipe.offset) + float(-decoded.min(initial=0)))
        assert (found >= true - slack).all()
        assert (found <= 1.001 * true + slack).all()


# Codes and errors by their definition, which stores of earlier versions have


def by_definition(encoding: ErrorBudget, logits: Logits) -> tuple[NDArray[np.integer], NDArray[np.float16]]:
    """Codes row by row, in float32 where that is exact enough, and errors at one temperature after another."""
    codes = np.empty(logits.shape, encoding.dtype)
    for row, values in enumerate(logits):
        below = values.max() - values
        with np.errstate(over="ignore"):
            rounded = np.rint(below * np.float32(1 / encoding.step))
        if not rounded.max() <= 1 << 13:
            exact = (values.max().astype(np.float64) - values) / encoding.step
            rounded = np.minimum(np.rint(exact), encoding.most_codes).astype(np.float32)
        codes[row] = rounded.astype(encoding.dtype) << np.array(encoding.shift, encoding.dtype)
    decoded, centred = encoding.decode({"logits": codes}), logits - logits.max(axis=1, keepdims=True)
    return codes, error_of_kl([divergence(centred, decoded, t) for t in TEMPERATURES])


def check_definition(encoding: ErrorBudget, logits: Logits) -> None:
    """The same bits of codes; errors that differ, if at all, by the rounding of the last digit.

    Below the normal numbers of float16 a KL of some 1e-17 is rounded to 0 by the definition itself.
    """
    stored = encoding.encode(logits, 0, "x")
    codes, error = by_definition(encoding, logits)
    assert stored["logits"].tobytes() == codes.tobytes()
    assert stored["peak"].tobytes() == logits.max(axis=1).tobytes()
    steps = stored["error"].view(np.int16).astype(int) - error.view(np.int16)
    is_normal = np.maximum(stored["error"], error) >= np.finfo(np.float16).smallest_normal
    assert np.abs(steps[is_normal]).max(initial=0) <= 1
    assert np.abs(steps[~is_normal]).max(initial=0) <= 2


@given(encodings(), RECIPES, st.integers(2, 700), st.integers(0, 2**32))
def test_codes_are_those_of_the_definition(
    encoding: ErrorBudget, recipe: Recipe, classes: int, seed: int
) -> None:
    """Half-way between codes, at their far end, beside large constants; and what float16 kept of these rows."""
    rows = rows_of(encoding, recipe, classes, np.random.default_rng(seed))
    check_definition(encoding, rows)
    if len(rows) and float(rows.max() - rows.min()) < 6e4:
        kept = FLOATS["float16"].encode(rows, 0, "x")["logits"].astype(np.float32)
        fits = kept.min(axis=1) > -encoding.most_codes * encoding.step
        check_definition(encoding, kept[fits])


@pytest.mark.parametrize("max_kl", [1e-2, 1e-4, 5.0])
def test_codes_of_unusual_rows_are_those_of_the_definition(max_kl: float) -> None:
    """Constant, masked, one-hot and alternating rows among ordinary ones."""
    rows = np.random.default_rng(0).normal(0, 3, (40, 1300)).astype(np.float32)
    rows[::7] = 3.5
    rows[1::7, 5:] = -500
    rows[2::7, ::2] = -100
    rows[3::7] = 0
    rows[3::7, 9] = 90
    check_definition(ErrorBudget(max_kl), rows)


def test_other_codes_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control: a rounding that differs on ties alone."""
    encoding = ErrorBudget(1e-2)
    rows = rows_of(encoding, Recipe("ties", 0.01, 0.0), 500, np.random.default_rng(0))
    check_definition(encoding, rows)
    monkeypatch.setattr(error_budget, "_FAST_CODES", 0)
    with pytest.raises(AssertionError):
        check_definition(encoding, rows)


# Negative controls: what the guarantee rests on, taken away


def violations(encoding: ErrorBudget, offset: float) -> tuple[float, float]:
    """The worst that a search finds: of a logit's error, and of a row's KL."""
    row = searched(encoding, 200, offset=offset, tries=500)
    decoded = encoded(encoding, row)
    return of_epsilon(encoding, row, decoded), of_bound(encoding, row, decoded)


def test_without_the_margin_the_budget_breaks(monkeypatch: pytest.MonkeyPatch) -> None:
    assert max(violations(ErrorBudget(0.002304345217260863), 0.0)) < 1
    monkeypatch.setattr(error_budget, "_MARGIN", 1.0)
    logit, row = violations(ErrorBudget(0.002304345217260863), 0.0)
    assert logit > 1
    assert row > 1


def test_without_the_error_of_its_source_the_budget_breaks() -> None:
    """To the teacher; to the source it still holds, which is why only this one sees it."""
    forgetful = ErrorBudget(1e-4)
    mindful = replace(forgetful, source_error=rounding_error("float16", 12.0))
    for encoding, holds in ((mindful, True), (forgetful, False)):
        rows = before_float16(encoding, 200, 12.0, np.random.default_rng(0))
        kept = FLOATS["float16"].decode(FLOATS["float16"].encode(rows, 0, "x"))
        decoded = encoded(encoding, kept)
        assert of_bound(encoding, kept, decoded) <= 1
        assert (of_epsilon(encoding, rows, decoded) <= 1) is holds
        assert (of_bound(encoding, rows, decoded) <= 1) is holds


def test_with_float32_division_of_large_codes_a_logit_is_too_far(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the reciprocal of the step, the difference from the maximum and their product are all rounded up.

    The bound on KL wants logits that err as far to the other side, too, and a reciprocal does not: the search finds
    none that breaks it. But the proof goes by the error of a logit.
    """
    encoding = ErrorBudget(1.4210526315789473e-4)
    offset = 0.7 * encoding.most_codes * encoding.step
    assert violations(encoding, offset)[0] < 1
    monkeypatch.setattr(error_budget, "_FAST_CODES", 1 << 17)
    assert violations(encoding, offset)[0] > 1


# What is refused


@pytest.mark.parametrize("bad", [0.0, -1e-3, math.nan, math.inf, -math.inf])
def test_a_budget_that_is_none_is_refused(bad: float) -> None:
    message = f"encoding: max_kl: expected a positive number of nats, found {bad!r}; choose one, such as 1e-3"
    with pytest.raises(ConfigError) as caught:
        encoding_named({"max_kl": bad})
    assert str(caught.value) == message
    message = f"encoding: min_temperature: expected a positive number, found {bad!r}; leave it out for 1"
    with pytest.raises(ConfigError) as caught:
        encoding_named({"max_kl": 1e-3, "min_temperature": bad})
    assert str(caught.value) == message


def test_budgets_beyond_float32_are_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"encoding: max_kl: expected at least 3.3e-61, found 1e-80; raise max_kl"
    ):
        ErrorBudget(1e-80)
    assert ErrorBudget(3.3e-61).step > 0
    for max_kl, min_temperature in ((1e300, 1.0), (1e300, 1e300)):
        with pytest.raises(ConfigError, match=r"expected a budget with a step of at most 1.26765e\+30"):
            ErrorBudget(max_kl, min_temperature)


@pytest.mark.parametrize(
    "change",
    [
        {"dtype": "int8"},
        {"dtype": "uint32"},
        {"dtype": "uint8", "shift": 8},
        {"shift": 16},
        {"shift": -1},
        {"source_error": -1e-3},
        {"source_error": math.nan},
        {"source_error": math.inf},
    ],
)
def test_codes_that_cannot_be_are_refused(change: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="encoding: dtype, shift, source_error: expected uint8 or uint16"):
        ErrorBudget(1e-3, **change)  # type: ignore[arg-type]


def named_budget(error: Exception) -> float:
    """The budget that a message names."""
    (found,) = re.findall(r"set max_kl to (\S+), the smallest|expected at least ([^,\s]+), since", str(error))
    return float("".join(found))


@given(encodings(), st.floats(1.001, 1e3), st.floats(0, 0.9), st.floats(-10, 10))
def test_a_row_that_is_too_wide_is_told_the_smallest_budget_that_fits(
    encoding: ErrorBudget, times: float, share: float, offset: float
) -> None:
    encoding = replace(encoding, shift=0, source_error=share * encoding.epsilon)
    reach = (encoding.most_codes + 0.5) * encoding.step
    rows = np.zeros((3, 4), np.float32)
    rows[2, 1] = -times * reach
    rows += np.float32(offset)
    with pytest.raises(BadLogitsError) as caught:
        encoding.encode(rows, 100, "teacher 'wide', view 1")
    expected = f"logits within {reach:.6g} of the row's maximum, the reach of {encoding.dtype} at max_kl"
    assert str(caught.value).startswith(f"teacher 'wide', view 1, row 102, class 1: expected {expected}")
    if "store them as float32" in str(caught.value):
        assert encoding.budget_of(times * reach) > 9
        return
    named = named_budget(caught.value)
    wider = replace(encoding, max_kl=named)
    assert of_epsilon(wider, rows, encoded(wider, rows)) <= 1
    with pytest.raises((BadLogitsError, ConfigError)):
        replace(encoding, max_kl=0.9 * named).encode(rows, 0, "x")


def test_the_last_code_is_used_and_the_one_after_it_is_not() -> None:
    for encoding in (ErrorBudget(1e-2), ErrorBudget(1e-2, dtype="uint8"), ErrorBudget(1e-2, shift=4)):
        last = np.array([[0.0, -encoding.most_codes * encoding.step]], np.float32)
        assert encoding.encode(last, 0, "x")["logits"].tolist() == [
            [0, encoding.most_codes << encoding.shift]
        ]
        assert encoding.most_codes << encoding.shift < encoding.fill
        beyond = np.array([[0.0, -(encoding.most_codes + 0.51) * encoding.step]], np.float32)
        with pytest.raises(BadLogitsError, match="the reach of uint"):
            encoding.encode(beyond, 0, "x")


def test_a_range_beyond_float32_is_refused_as_any_other() -> None:
    with pytest.raises(BadLogitsError, match=r"row 0, class 1: expected logits within .* found -inf"):
        ErrorBudget(1e-3).encode(np.array([[3.4e38, -3.4e38]], np.float32), 0, "x")


@given(st.floats(-6, -1), st.floats(1, 1e4))
def test_a_source_that_eats_the_budget_is_told_one_that_works(exponent: float, times: float) -> None:
    encoding = ErrorBudget(10**exponent)
    with pytest.raises(ConfigError) as caught:
        replace(encoding, source_error=times * encoding.epsilon)
    assert str(caught.value).endswith(
        f"found {encoding.max_kl!r}; raise max_kl, or capture the teacher in float32"
    )
    named = named_budget(caught.value)
    assert ErrorBudget(named, 1.0, times * encoding.epsilon).step > 0
    with pytest.raises(ConfigError):
        ErrorBudget(0.9 * named, 1.0, times * encoding.epsilon)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_is_named(bad: float) -> None:
    logits = np.zeros((6, 4), np.float32)
    logits[4, 2] = bad
    with pytest.raises(BadLogitsError) as caught:
        ErrorBudget(1e-3).encode(logits, 100, "teacher 'wide', view 1")
    assert str(caught.value).startswith(
        f"teacher 'wide', view 1, row 104, class 2: expected finite logits, found {bad} (1 of 6 rows"
    )
