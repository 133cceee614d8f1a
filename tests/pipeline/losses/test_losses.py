"""Distillation and logit matching: the paper's equations 1 to 4 by autograd, and the hard term."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.toy_logits import CLASSES, ROWS, gradient_of, random_logits, relative_error
from torch import Tensor

from logitstore.pipeline.losses import (
    Distillation,
    LogitMatching,
    entropy,
    hard_cross_entropy,
    kl_divergence,
    logit_matching,
    soft_targets,
    soften,
)
from logitstore.storage.errors import BadLogitsError, ConfigError


def soft_gradient(z: Tensor, v: Tensor, temperature: float) -> Tensor:
    """dC/dz of the soft cross-entropy itself, without T²."""
    loss = Distillation(temperature)
    return gradient_of(lambda leaf: loss(leaf, soften(v, temperature)), z) / temperature**2


def row_errors(approximation: Tensor, exact: Tensor) -> Tensor:
    return (approximation - exact).norm(dim=1) / exact.norm(dim=1)


# Equation 1 --------------------------------------------------------------------------------------


@given(
    st.lists(st.floats(-50, 50), min_size=2, max_size=12),
    st.floats(0.5, 1000),
    st.floats(-100, 100),
)
def test_equation_1_and_an_added_constant_is_not_seen(
    row: list[float], temperature: float, constant: float
) -> None:
    z = torch.tensor([row], dtype=torch.float64)
    exponentials = [math.exp((value - max(row)) / temperature) for value in row]
    expected = torch.tensor([[value / sum(exponentials) for value in exponentials]], dtype=torch.float64)
    torch.testing.assert_close(soften(z, temperature), expected, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(soften(z + constant, temperature), expected, rtol=1e-10, atol=1e-13)


def test_a_higher_temperature_is_softer() -> None:
    z = random_logits(0)
    entropies = [
        float(-(soften(z, t) * soften(z, t).log()).sum(1).mean()) for t in (1.0, 2.0, 5.0, 20.0, 1000.0)
    ]
    assert entropies == sorted(entropies)
    assert entropies[-1] == pytest.approx(math.log(CLASSES), abs=1e-4)


# Equation 2 --------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0, 20.0, 1000.0])
def test_equation_2_is_exact(temperature: float) -> None:
    z, v = random_logits(1, zero_mean=False), random_logits(2, zero_mean=False)
    expected = (soften(z, temperature) - soften(v, temperature)) / temperature
    assert (soft_gradient(z, v, temperature) - expected).abs().max() < 1e-12


@pytest.mark.parametrize("temperature", [0.5, 1.0, 20.0, 1000.0])
def test_equation_2_in_float32(temperature: float) -> None:
    z, v = random_logits(1), random_logits(2)
    gradient = soft_gradient(z.float(), v.float(), temperature)
    expected = (soften(z, temperature) - soften(v, temperature)) / temperature
    assert (gradient - expected).abs().max() < 1e-6
    assert relative_error(gradient.double(), expected) < 1e-4


# Equations 3 and 4 -------------------------------------------------------------------------------


def equation_3(z: Tensor, v: Tensor, temperature: float) -> Tensor:
    def linear(logits: Tensor) -> Tensor:
        return (1 + logits / temperature) / (CLASSES + logits.sum(1, keepdim=True) / temperature)

    return (linear(z) - linear(v)) / temperature


def equation_4(z: Tensor, v: Tensor, temperature: float) -> Tensor:
    return (z - v) / (CLASSES * temperature**2)


@pytest.mark.parametrize("equation", [equation_3, equation_4])
def test_equations_3_and_4_are_limits_of_first_order(equation: Callable[..., Tensor]) -> None:
    z, v = random_logits(3), random_logits(4)
    errors = {
        t: row_errors(equation(z, v, t), soft_gradient(z, v, t)) for t in (20.0, 100.0, 1000.0, 10_000.0)
    }
    medians = {t: float(error.median()) for t, error in errors.items()}
    assert medians[20.0] == pytest.approx(0.11, rel=0.1)
    assert medians[1000.0] == pytest.approx(0.0022, rel=0.1)
    assert medians[100.0] / medians[1000.0] == pytest.approx(10, rel=0.1)
    assert medians[1000.0] / medians[10_000.0] == pytest.approx(10, rel=0.1)
    # Negative control: at a low temperature neither is an approximation of anything.
    assert float(row_errors(equation(z, v, 1.0), soft_gradient(z, v, 1.0)).median()) > 0.5


def test_equation_4_needs_zero_means() -> None:
    z, v = random_logits(3, zero_mean=False), random_logits(4, zero_mean=False)
    exact = soft_gradient(z, v, 10_000.0)
    assert relative_error(equation_4(z, v, 10_000.0), exact) > 0.2
    assert relative_error(equation_3(z, v, 10_000.0), exact) < 2e-3  # equation 3 does without


@pytest.mark.parametrize("zero_mean", [True, False])
def test_the_soft_term_becomes_logit_matching_over_the_number_of_classes(zero_mean: bool) -> None:
    z, v = random_logits(5, zero_mean=zero_mean), random_logits(6, zero_mean=zero_mean)
    temperature = 10_000.0
    loss = Distillation(temperature)
    soft = gradient_of(lambda leaf: loss(leaf, soften(v, temperature)), z)
    matched = gradient_of(lambda leaf: logit_matching(leaf, v), z)
    assert relative_error(matched / CLASSES, soft) < 5e-4


def test_the_gradient_of_logit_matching() -> None:
    z, v = random_logits(5, zero_mean=False), random_logits(6, zero_mean=False)
    expected = z - z.mean(1, keepdim=True) - v + v.mean(1, keepdim=True)
    torch.testing.assert_close(gradient_of(lambda leaf: logit_matching(leaf, v), z), expected)
    assert float(logit_matching(v + 7.0, v)) == pytest.approx(0, abs=1e-12)


# T² ----------------------------------------------------------------------------------------------


def test_t_squared_keeps_the_size_of_the_gradient() -> None:
    z, v = random_logits(7), random_logits(8)
    temperatures = (1.0, 5.0, 20.0, 100.0, 1000.0)
    plain = {t: float(soft_gradient(z, v, t).norm(dim=1).mean()) for t in temperatures}
    scaled = {t: t**2 * norm for t, norm in plain.items()}
    assert max(scaled.values()) / min(scaled.values()) < 1.7
    # Negative control: without the factor, the gradient falls as 1/T².
    assert plain[100.0] / plain[1000.0] == pytest.approx(100, rel=0.05)


# The loss ----------------------------------------------------------------------------------------


def test_the_loss_is_the_weighted_sum_of_its_terms() -> None:
    z, v = random_logits(11), random_logits(12)
    labels = torch.arange(ROWS) % CLASSES
    soft = Distillation(5.0)(z, soften(v, 5.0))
    expected = -(soften(v, 5.0) * soften(z, 5.0).log()).sum(1).mean() * 25
    assert float(soft) == pytest.approx(float(expected), rel=1e-12)
    both = Distillation(5.0, hard_weight=0.5)(z, soften(v, 5.0), labels)
    hard = -soften(z, 1.0).log()[torch.arange(ROWS), labels].mean()
    assert float(both) == pytest.approx(float(soft + 0.5 * hard), rel=1e-12)


def test_rows_without_a_label_count_for_nothing_in_the_hard_term() -> None:
    z = random_logits(13)
    labels = torch.arange(ROWS) % CLASSES
    some = torch.where(torch.arange(ROWS) % 3 == 0, labels, -1)
    known = some != -1
    assert float(hard_cross_entropy(z, some)) == pytest.approx(
        float(hard_cross_entropy(z[known], labels[known]))
    )
    gradient = gradient_of(lambda leaf: hard_cross_entropy(leaf, some), z)
    assert bool((gradient[~known] == 0).all()) and bool((gradient[known] != 0).any())


def test_without_any_label_the_hard_term_is_nought() -> None:
    z, v = random_logits(14), random_logits(15)
    unknown = torch.full((ROWS,), -1)
    targets = soften(v, 2.0)
    assert float(Distillation(2.0, 0.7)(z, targets, unknown)) == float(Distillation(2.0)(z, targets))
    assert not gradient_of(lambda leaf: hard_cross_entropy(leaf, unknown), z).any()


def test_half_precision_logits_are_widened_first() -> None:
    z, v = random_logits(16).bfloat16(), random_logits(17).bfloat16()
    wide = Distillation(20.0)(z.float(), soft_targets(v.float(), 20.0))
    assert torch.equal(Distillation(20.0)(z, soft_targets(v, 20.0)), wide)


# Numbers by hand -----------------------------------------------------------------------------------


def test_hard_cross_entropy_by_hand() -> None:
    logits = torch.tensor([[0.5, 0.25, 0.25], [0.25, 0.25, 0.5]], dtype=torch.float64).log()
    labels = torch.tensor([0, 1])
    assert float(hard_cross_entropy(logits, labels)) == pytest.approx((math.log(2) + math.log(4)) / 2)
    # 0.7 of the label and 0.1 of each class: (0.8 ln 2 + 0.1 ln 4 + 0.1 ln 4) and (0.8 ln 4 + 0.1 ln 4 + 0.1 ln 2).
    smoothed = (1.2 * math.log(2) + 1.9 * math.log(2)) / 2
    assert float(hard_cross_entropy(logits, labels, 0.3)) == pytest.approx(smoothed)


def test_label_smoothing_leaves_out_rows_without_a_label() -> None:
    z = random_logits(18)
    labels = torch.where(torch.arange(ROWS) % 3 == 0, -1, torch.arange(ROWS) % CLASSES)
    known = labels != -1
    some, alone = hard_cross_entropy(z, labels, 0.1), hard_cross_entropy(z[known], labels[known], 0.1)
    assert float(some) == pytest.approx(float(alone), rel=1e-12)
    assert float(some) != pytest.approx(float(hard_cross_entropy(z, labels)), rel=1e-3)


def test_the_best_logits_under_label_smoothing_are_its_targets() -> None:
    targets = torch.tensor([[0.9 + 0.1 / 4, 0.1 / 4, 0.1 / 4, 0.1 / 4]], dtype=torch.float64)
    gradient = gradient_of(lambda leaf: hard_cross_entropy(leaf, torch.tensor([0]), 0.1), targets.log())
    assert gradient.abs().max() < 1e-15


@pytest.mark.parametrize("smoothing", [-0.1, 1.0, math.nan])
def test_label_smoothing_is_a_share(smoothing: float) -> None:
    with pytest.raises(
        ConfigError, match=rf"^label_smoothing: expected a number from 0 to below 1, found {smoothing}"
    ):
        hard_cross_entropy(torch.zeros(1, 2), torch.tensor([0]), smoothing)


def test_logits_in_place_of_probabilities_are_refused() -> None:
    """The likeliest mistake: the other losses take logits there."""
    z, v = torch.zeros(2, 3), torch.tensor([[1.0, -2.0, 0.5], [0.0, 1.0, 2.0]])
    with pytest.raises(
        BadLogitsError,
        match=r"targets: expected probabilities, from 0 to 1, found numbers down to -2, as logits",
    ):
        Distillation(2.0)(z, v)


def test_logit_matching_by_hand() -> None:
    z = torch.tensor([[1.0, 2.0, 6.0], [0.0, 0.0, 3.0]])  # less their means: -2, -1, 3 and -1, -1, 2
    v = torch.tensor([[0.0, 0.0, 0.0], [10.0, 12.0, 11.0]])  # 0, 0, 0 and -1, 1, 0
    expected = ((4 + 1 + 9) / 2 + (0 + 4 + 4) / 2) / 2
    assert float(LogitMatching()(z, v)) == pytest.approx(expected)
    labels = torch.tensor([2, -1])
    hard = math.log(1 + math.exp(-4) + math.exp(-5))
    assert float(LogitMatching(0.5)(z, v, labels)) == pytest.approx(expected + 0.5 * hard)


def test_logit_matching_is_the_limit_of_distillation_with_an_error_of_one_over_t() -> None:
    z, v = random_logits(5, zero_mean=False), random_logits(6, zero_mean=False)
    matched = gradient_of(lambda leaf: LogitMatching()(leaf, v), z) / CLASSES
    errors = {
        t: relative_error(matched, gradient_of(lambda leaf, t=t: Distillation(t)(leaf, soften(v, t)), z))
        for t in (1.0, 100.0, 1000.0, 10_000.0)
    }
    assert errors[1.0] > 0.5  # negative control: no such thing at a low temperature
    assert errors[1000.0] == pytest.approx(0.0025, rel=0.05)
    assert errors[100.0] / errors[1000.0] == pytest.approx(10, rel=0.1)
    assert errors[1000.0] / errors[10_000.0] == pytest.approx(10, rel=0.1)


def test_a_divergence_is_that_of_torch_and_takes_probabilities_of_0() -> None:
    z, targets = torch.randn(5, 7), torch.softmax(torch.randn(5, 7) * 40, dim=1)
    targets[0] = torch.eye(7)[3]
    found = kl_divergence(z, targets, 2.0)
    expected = torch.nn.functional.kl_div(torch.log_softmax(z / 2, dim=1), targets, reduction="none").sum(
        dim=1
    )
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert entropy(targets)[0] == 0 and (entropy(targets) >= 0).all()
    assert entropy(torch.full((1, 7), 1 / 7)).item() == pytest.approx(math.log(7))
    with pytest.raises(BadLogitsError, match="expected probabilities"):
        kl_divergence(z, z, 2.0)
