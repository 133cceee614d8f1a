"""Ways to combine a generalist with specialists: all find the same q, and q minimises the objective."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from logitstore.pipeline.combine import experts as experts_module
from logitstore.pipeline.combine import group_masses
from logitstore.pipeline.combine import solve as combination
from logitstore.pipeline.combine.experts import Experts, active_specialists
from logitstore.pipeline.combine.reference import gradient_descent, lbfgs, objective
from logitstore.pipeline.combine.solve import combine_rows, log_softmax
from logitstore.storage.errors import BadDataError, ConfigError


@dataclass(frozen=True)
class Case:
    """Rows of a generalist, all of whose specialists are active in all of them."""

    generalist: NDArray[np.float64]
    classes: list[NDArray[np.int64]]
    specialists: list[NDArray[np.float64]]

    @property
    def experts(self) -> Experts:
        return Experts.of(self.classes, self.generalist.shape[1])

    @property
    def everywhere(self) -> NDArray[np.bool_]:
        return np.ones((len(self.generalist), len(self.classes)), bool)

    def combined(self, dtype: Any = np.float64, **settings: Any) -> NDArray[Any]:
        said = [one.astype(dtype) for one in self.specialists]
        logits = self.generalist.astype(dtype)
        return combine_rows(logits, self.experts, self.everywhere, said, **settings)

    @property
    def normalised(self) -> tuple[NDArray[np.float64], list[NDArray[np.int64]], list[NDArray[np.float64]]]:
        return log_softmax(self.generalist), self.classes, [log_softmax(one) for one in self.specialists]

    def cost(self, log_q: NDArray[Any]) -> NDArray[np.float64]:
        return objective(log_q.astype(np.float64), *self.normalised)[0]

    def residual(self, log_q: NDArray[Any]) -> NDArray[np.float64]:
        return np.asarray(np.abs(objective(log_q.astype(np.float64), *self.normalised)[1]).sum(axis=1))


def some_set(rng: np.random.Generator, classes: int, with_class: int | None = None) -> NDArray[np.int64]:
    """Columns of a specialist: some classes in order, and the dustbin."""
    chosen = set(rng.choice(classes, int(rng.integers(1, classes - 1)), replace=False).tolist())
    chosen |= set() if with_class is None else {with_class}
    return np.array([*sorted(chosen), -1], np.int64)


def some_case(seed: int, active: int, rows: int = 1, classes: int = 12, spread: float = 2.0) -> Case:
    """A random case; sets overlap, as all of them hold the likeliest class of the first row."""
    rng = np.random.default_rng(seed)

    def numbers(columns: int) -> NDArray[np.float64]:
        # float32 has them exactly, so that what differs between dtypes is arithmetic.
        return rng.normal(0, spread, (rows, columns)).astype(np.float32).astype(np.float64)

    logits = numbers(classes)
    sets = [some_set(rng, classes, int(logits[0].argmax())) for _ in range(active)]
    return Case(logits, sets, [numbers(len(own)) for own in sets])


def apart(left: NDArray[Any], right: NDArray[Any]) -> float:
    """The largest difference of two q, given as logarithms."""
    return float(np.abs(np.exp(left.astype(np.float64)) - np.exp(right.astype(np.float64))).max())


cases = st.builds(
    some_case,
    seed=st.integers(0, 10**6),
    active=st.integers(0, 7),
    rows=st.integers(1, 5),
    classes=st.integers(3, 40),
    spread=st.sampled_from([0.1, 1.0, 3.0, 10.0, 40.0]),
)


@pytest.mark.parametrize("active", range(7))
def test_fast_and_general_minimisers_agree_on_random_cases(active: int) -> None:
    """143 cases each: 1,001 in all, in both dtypes."""
    for seed in range(143):
        case = some_case(1000 * active + seed, active, classes=4 + seed % 9, spread=1 + seed % 3)
        found = case.combined()
        assert apart(found, lbfgs(*case.normalised)) < 1e-6
        assert apart(case.combined(np.float32), found) < 1e-6
        assert case.residual(found).max() < 1e-8


def test_a_closed_form_is_what_the_fixed_point_ends_at() -> None:
    for seed in range(50):
        case = some_case(seed, 1, rows=3)
        log_p, (own,), (said,) = case.normalised
        special, outside = own[:-1], np.setdiff1d(np.arange(12), own)
        sums = np.logaddexp(log_p[:, special], said[:, :-1])
        groups = np.stack([np.logaddexp.reduce(part, axis=1) for part in (log_p[:, outside], sums)], axis=1)
        in_dustbin = np.broadcast_to(np.array([[1.0, 0.0]]), (3, 1, 2))
        masses = group_masses.group_masses(groups, in_dustbin, said[:, -1:])
        found = case.combined()
        expected = [np.logaddexp.reduce(found[:, part], axis=1) for part in (outside, special)]
        np.testing.assert_allclose(np.exp(masses).T, np.exp(expected), atol=1e-9)


def test_a_specialist_without_its_dustbin_would_be_noticed() -> None:
    """Negative control: the bar of 1e-6 tells the paper's q from one that leaves the dustbin out."""
    case = some_case(3, 1)
    (own,), (said,) = case.classes, case.specialists
    careless = Case(case.generalist, case.classes, [np.where(own == -1, -np.inf, said)])
    assert apart(case.combined(), careless.combined()) > 1e-3


@given(cases)
def test_q_is_a_distribution_that_no_direction_improves(case: Case) -> None:
    found = case.combined()
    np.testing.assert_allclose(np.exp(found).sum(axis=1), 1, atol=1e-9)
    assert case.residual(found).max() < 1e-5
    # Convex in ln q's logits along these lines: a step of any size that is not too small costs something.
    rng = np.random.default_rng(0)
    for _ in range(4):
        step = 1e-3 * rng.normal(size=found.shape)
        assert (case.cost(found + step) >= case.cost(found) - 1e-9).all()


@given(cases, st.randoms(use_true_random=False))
def test_the_order_of_the_specialists_changes_nothing(case: Case, random: Any) -> None:
    order = list(range(len(case.classes)))
    random.shuffle(order)
    other = Case(case.generalist, [case.classes[m] for m in order], [case.specialists[m] for m in order])
    # Where the specialists contradict a generalist that is very sure, q is found to about its residual.
    bar = 1e-9 if np.abs(case.generalist).max() < 12 else 1e-4
    assert apart(case.combined(), other.combined()) < bar


@given(cases)
def test_specialists_who_agree_with_the_generalist_change_nothing(case: Case) -> None:
    log_p = log_softmax(case.generalist)
    said = []
    for own in case.classes:
        outside = np.setdiff1d(np.arange(log_p.shape[1]), own)
        dustbin = np.logaddexp.reduce(log_p[:, outside], axis=1, keepdims=True)
        said.append(np.concatenate([log_p[:, own[:-1]], dustbin], axis=1))
    agreeing = Case(case.generalist, case.classes, said)
    np.testing.assert_allclose(np.exp(agreeing.combined()), np.exp(log_p), atol=1e-8)


@given(cases, st.sampled_from([np.float32, np.float64]))
def test_a_constant_of_a_row_changes_nothing(case: Case, dtype: Any) -> None:
    # Whole numbers, so that the sum rounds nothing away.
    whole = Case(np.rint(case.generalist), case.classes, [np.rint(one) for one in case.specialists])
    moved = Case(whole.generalist + 64, whole.classes, [one - 256 for one in whole.specialists])
    np.testing.assert_array_equal(whole.combined(dtype), moved.combined(dtype))


@pytest.mark.parametrize("spread", [1.0, 10.0, 40.0])
@pytest.mark.parametrize("active", [2, 3, 5, 6])
def test_the_objective_never_rises_from_step_to_step(active: int, spread: float) -> None:
    case = some_case(active, active, rows=40, spread=spread)
    said = [log_softmax(one) for one in case.specialists]
    sets = combination._Sets.of(case.experts, list(range(active)))
    piece = combination._Piece.of(case.generalist.copy(), np.arange(40), sets, said, "pq")
    log_sums = piece.log_groups
    outside = np.broadcast_to(sets.outside, (40, *sets.outside.shape))
    before = np.full(40, np.inf)
    for steps in range(60):
        log_masses = group_masses.group_masses(log_sums, outside, piece.log_dustbins, steps=steps)
        now = group_masses.objective(
            np.exp(log_masses), np.exp(log_sums), outside, np.exp(piece.log_dustbins)
        )
        assert (now <= before + 1e-13 * np.abs(now)).all()
        before = now


def test_rows_that_the_fixed_point_leaves_far_from_rest_are_brought_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Negative control of the Newton steps: without them these rows are not at rest."""
    case = some_case(0, 2, rows=200, classes=30, spread=10.0)
    assert case.residual(case.combined()).max() < 1e-8
    monkeypatch.setattr(group_masses, "_newton_step", lambda em, *more: em)
    assert case.residual(case.combined()).max() > 1e-7


@pytest.mark.parametrize("active", [1, 2, 3, 6])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_extreme_logits_give_numbers(active: int, dtype: Any) -> None:
    for seed in range(20):
        case = some_case(seed, active, rows=3)
        rng = np.random.default_rng(seed)
        said = [rng.choice([-1e4, 0.0, 1e4], one.shape) for one in case.specialists]
        said[0][:, -1] = -np.inf  # a dustbin of probability 0
        hard = Case(rng.choice([-1e4, 0.0, 1e4], case.generalist.shape), case.classes, said)
        with np.errstate(all="raise", under="ignore"):
            found = hard.combined(dtype)
        assert np.isfinite(found).all()
        np.testing.assert_allclose(np.exp(found.astype(np.float64)).sum(axis=1), 1, atol=1e-4)


def test_neighbours_keep_what_their_logits_say_far_below_what_a_float_holds() -> None:
    """p^g outside the set is e^-5000 and the specialist says dustbin: all of its mass goes there, in p^g's shares."""
    logits = np.array([[0.0, -1.0, -5000.0, -5001.0]])
    own, said = np.array([0, 1, -1]), np.log(np.array([[0.1, 0.1, 0.8]]))
    for dtype in (np.float32, np.float64):
        found = Case(logits, [own], [said]).combined(dtype)
        q = np.exp(found.astype(np.float64))
        np.testing.assert_allclose(q[0, 2:].sum(), 0.4, rtol=1e-6)
        np.testing.assert_allclose(found[0, 2] - found[0, 3], 1.0, rtol=1e-5)


@given(
    seed=st.integers(0, 10**6),
    rows=st.integers(1, 60),
    specialists=st.integers(0, 12),
    cached=st.sampled_from([1, 50, 1 << 16]),
    together_rows=st.sampled_from([1, 20, 1 << 12]),
)
def test_rows_do_not_hear_of_each_other(
    seed: int, rows: int, specialists: int, cached: int, together_rows: int
) -> None:
    """However they are cut into pieces, rows of any pattern come out as they do alone."""
    rng = np.random.default_rng(seed)
    classes = int(rng.integers(4, 20))
    logits = rng.normal(0, 2, (rows, classes))
    sets = [some_set(rng, classes) for _ in range(specialists)]
    experts = Experts.of(sets, classes)
    active = active_specialists(logits, experts, top=int(rng.integers(1, 3)))
    said = [rng.normal(0, 2, (int(active[:, m].sum()), len(own))) for m, own in enumerate(sets)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(experts_module, "_CACHED", cached)
        patch.setattr(combination, "_TOGETHER", together_rows)
        together = combine_rows(logits, experts, active, said)
        in_place = logits.copy()
        assert combine_rows(in_place, experts, active, said, out=in_place) is in_place
    np.testing.assert_array_equal(in_place, together)
    for row in range(rows):
        mine = np.flatnonzero(active[row]).tolist()
        own = [said[m][[int(active[:row, m].sum())]] for m in mine]
        alone = Case(logits[[row]], [sets[m] for m in mine], own)
        np.testing.assert_allclose(np.exp(together[[row]]), np.exp(alone.combined()), atol=1e-9)


# KL(q, p)


@pytest.mark.parametrize("spread", [0.5, 3.0, 20.0])
def test_the_other_direction_meets_its_own_conditions(spread: float) -> None:
    """At the minimum of KL(q, p^g) + KL(q, p^m) the derivative is the same for every class: q sums to 1, convex."""
    for seed in range(40):
        case = some_case(seed, 1, rows=3, spread=spread)
        log_p, (own,), (said,) = case.normalised
        found = case.combined(direction="qp")
        outside = np.setdiff1d(np.arange(12), own)
        mass = np.logaddexp.reduce(found[:, outside], axis=1, keepdims=True)
        derivative = found - log_p
        derivative[:, own[:-1]] += found[:, own[:-1]] - said[:, :-1]
        derivative[:, outside] += mass - said[:, -1:]
        np.testing.assert_allclose(derivative, derivative[:, :1].repeat(12, 1), atol=1e-9)
        np.testing.assert_allclose(np.exp(found).sum(axis=1), 1, atol=1e-12)
        assert apart(case.combined(np.float32, direction="qp"), found) < 1e-6
        assert apart(case.combined(), found) > 1e-6  # and it is another q


def test_the_other_direction_without_specialists_is_the_generalist() -> None:
    case = some_case(0, 0, rows=4)
    np.testing.assert_allclose(case.combined(direction="qp"), log_softmax(case.generalist), atol=1e-12)


def test_the_other_direction_refuses_rows_of_two_specialists() -> None:
    with pytest.raises(ConfigError, match="direction 'qp': row 0: expected at most one active specialist"):
        some_case(0, 2).combined(direction="qp")


# The paper's gradient descent


@pytest.mark.parametrize("active", [2, 3, 6])
def test_gradient_descent_comes_to_the_same(active: int) -> None:
    case = some_case(active, active, rows=5, classes=8, spread=1.0)
    assert apart(case.combined(method="gradient_descent"), case.combined()) < 1e-4


def test_gradient_descent_never_rises() -> None:
    case = some_case(5, 4, rows=10, spread=5.0)
    before = np.full(10, np.inf)
    for steps in (0, 1, 2, 3, 5, 10, 50, 200):
        now = case.cost(gradient_descent(*case.normalised, steps=steps))
        assert (now <= before + 1e-13).all()
        before = now


def test_the_gradient_is_that_of_the_objective() -> None:
    case = some_case(7, 3, rows=2)
    z = np.random.default_rng(0).normal(size=case.generalist.shape)
    _, gradient = objective(z, *case.normalised)
    for column in range(z.shape[1]):
        step = np.zeros_like(z)
        step[:, column] = 1e-6
        up, down = (objective(z + sign * step, *case.normalised)[0] for sign in (1, -1))
        np.testing.assert_allclose((up - down) / 2e-6, gradient[:, column], atol=1e-8)


# Who is active


@given(st.integers(0, 10**6), st.integers(1, 9), st.sampled_from([1, 50, 1 << 16]))
def test_those_are_active_whose_set_meets_the_likeliest_classes(seed: int, top: int, cached: int) -> None:
    rng = np.random.default_rng(seed)
    logits = rng.integers(0, 4, (17, 9)).astype(np.float32)  # with many ties
    sets = [some_set(rng, 9) for _ in range(4)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(experts_module, "_CACHED", cached)
        found = active_specialists(logits, Experts.of(sets, 9), top)
    for row in range(17):
        likeliest = sorted(range(9), key=lambda c: (-logits[row, c], c))[:top]
        assert found[row].tolist() == [bool(set(likeliest) & set(own.tolist())) for own in sets]


def test_without_specialists_nobody_is_active() -> None:
    assert active_specialists(np.zeros((3, 5)), Experts.of([], 5)).shape == (3, 0)


# Bad input


@pytest.mark.parametrize(
    ("columns", "found"),
    [
        ([0, 1], "no dustbin column"),
        ([0, -1, -1], "2 dustbin columns"),
        ([0, 0, -1], "a class twice"),
        ([0, 5, -1], "class 5"),
        ([0, -2, -1], "class -2"),
        ([-1], "a set of 0 of 5 classes"),
        ([0, 1, 2, 3, 4, -1], "a set of 5 of 5 classes"),
    ],
)
def test_columns_that_are_no_specialists_are_refused(columns: Sequence[int], found: str) -> None:
    with pytest.raises(ConfigError, match=f"specialist 1: expected columns for some .*, found {found}; "):
        Experts.of([[0, -1], columns], 5)


def test_the_columns_may_come_in_any_order() -> None:
    case = some_case(4, 3, rows=3, classes=8, spread=1.0)
    orders = [np.random.default_rng(m).permutation(len(own)) for m, own in enumerate(case.classes)]
    other = Case(
        case.generalist,
        [own[order] for own, order in zip(case.classes, orders, strict=True)],
        [said[:, order] for said, order in zip(case.specialists, orders, strict=True)],
    )
    np.testing.assert_allclose(other.combined(), case.combined(), atol=1e-12)
    assert apart(other.combined(method="gradient_descent"), case.combined()) < 1e-3


@pytest.mark.parametrize("top", [0, -1, 13])
def test_a_top_that_is_no_number_of_classes_is_refused(top: int) -> None:
    case = some_case(0, 1)
    with pytest.raises(ConfigError, match="top: expected a number of classes from 1 to 12"):
        active_specialists(case.generalist, case.experts, top)


def test_arrays_that_do_not_fit_are_refused() -> None:
    case = some_case(0, 2, rows=3)
    for specialists in ([case.specialists[0]], [one[:2] for one in case.specialists]):
        with pytest.raises(BadDataError, match="logits, active, specialists: expected arrays of shapes"):
            combine_rows(case.generalist, case.experts, case.everywhere, specialists)


@pytest.mark.parametrize("word", ["direction", "method"])
def test_words_that_say_no_way_are_refused(word: str) -> None:
    with pytest.raises(ConfigError, match=f"{word}: expected '.*' or '.*', found 'pg'"):
        combination.check_settings(**{"direction": "pq", "method": "fixed_point", word: "pg"})
