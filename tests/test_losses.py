"""Equations 1 to 4 of the paper by autograd, and the laws of soft targets and of the loss."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from logitstore.pipeline import losses
from logitstore.pipeline.losses import (
    Distillation,
    ensemble_shares,
    hard_cross_entropy,
    logit_matching,
    soft_targets,
    soften,
)
from logitstore.storage.errors import BadLogitsError, ConfigError

ROWS, CLASSES = 512, 10


def random_logits(seed: int, rows: int = ROWS, classes: int = CLASSES, *, zero_mean: bool = True) -> Tensor:
    """Random logits, (rows, classes) float64 of standard deviation 4."""
    logits = torch.from_numpy(np.random.default_rng(seed).normal(scale=4.0, size=(rows, classes)))
    return logits - logits.mean(dim=1, keepdim=True) if zero_mean else logits


def gradient_of(loss: Callable[[Tensor], Tensor], logits: Tensor) -> Tensor:
    """The gradient of each row's own loss: `loss` is a mean over rows."""
    leaf = logits.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(leaf), leaf)
    return gradient * len(logits)


def soft_gradient(z: Tensor, v: Tensor, temperature: float) -> Tensor:
    """dC/dz of the soft cross-entropy itself, without T²."""
    loss = Distillation(temperature)
    return gradient_of(lambda leaf: loss(leaf, soften(v, temperature)), z) / temperature**2


def relative_error(approximation: Tensor, exact: Tensor) -> float:
    return float((approximation - exact).norm() / exact.norm())


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


# Soft targets ------------------------------------------------------------------------------------

NAMES = ("wide", "deep", "other")


def ensemble(seed: int = 9) -> dict[str, Tensor]:
    return {name: random_logits(seed + place, rows=32) for place, name in enumerate(NAMES)}


@pytest.mark.parametrize("temperature", [0.5, 1.0, 20.0])
def test_the_arithmetic_mean_is_that_of_the_probabilities(temperature: float) -> None:
    logits = ensemble()
    expected = sum(
        share * soften(logits[name], temperature) for name, share in zip(NAMES, (0.5, 0.3, 0.2), strict=True)
    )
    targets = soft_targets(logits, temperature, {"wide": 5.0, "deep": 3.0, "other": 2.0})
    torch.testing.assert_close(targets, expected)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 20.0])
def test_the_geometric_mean_is_the_softmax_of_the_mean_logits(temperature: float) -> None:
    logits = ensemble()
    shares = dict(zip(NAMES, (0.5, 0.3, 0.2), strict=True))
    powers = torch.stack([soften(logits[name], temperature) ** share for name, share in shares.items()]).prod(
        0
    )
    mean_logits = sum(share * logits[name] for name, share in shares.items())
    targets = soft_targets(logits, temperature, shares, mean="geometric")
    torch.testing.assert_close(targets, powers / powers.sum(1, keepdim=True))
    assert isinstance(mean_logits, Tensor)
    torch.testing.assert_close(targets, soften(mean_logits, temperature))


def test_the_two_means_differ() -> None:
    logits = ensemble()
    assert (soft_targets(logits, 1.0) - soft_targets(logits, 1.0, mean="geometric")).abs().max() > 0.05


@given(
    st.lists(st.floats(0, 1000), min_size=3, max_size=3).filter(lambda weights: sum(weights) > 1e-3),
    st.floats(1e-3, 1e3),
    st.sampled_from(["arithmetic", "geometric"]),
    st.floats(0.5, 1000),
)
def test_only_the_ratio_of_the_weights_counts(
    weights: list[float], scale: float, mean: str, temperature: float
) -> None:
    logits = ensemble()
    named = dict(zip(NAMES, weights, strict=True))
    kind = "geometric" if mean == "geometric" else "arithmetic"
    targets = soft_targets(logits, temperature, named, kind)
    scaled = soft_targets(logits, temperature, {name: scale * weight for name, weight in named.items()}, kind)
    torch.testing.assert_close(targets, scaled)
    torch.testing.assert_close(targets.sum(1), torch.ones(32, dtype=targets.dtype))
    reversed_teachers = {name: logits[name] for name in reversed(NAMES)}
    torch.testing.assert_close(targets, soft_targets(reversed_teachers, temperature, named, kind))


@pytest.mark.parametrize("mean", ["arithmetic", "geometric"])
def test_an_ensemble_of_one_is_that_teacher(mean: str) -> None:
    logits = ensemble()
    kind = "geometric" if mean == "geometric" else "arithmetic"
    alone = soft_targets(logits["deep"], 3.0)
    torch.testing.assert_close(soft_targets({"deep": logits["deep"]}, 3.0, mean=kind), alone)
    weights = {"wide": 0.0, "deep": 2.0, "other": 0.0}
    torch.testing.assert_close(soft_targets(logits, 3.0, weights, kind), alone)


def test_soft_targets_are_float32() -> None:
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        logits = {name: tensor.to(dtype) for name, tensor in ensemble().items()}
        for kind in ("arithmetic", "geometric"):
            assert (
                soft_targets(logits, 20.0, mean="geometric" if kind == "geometric" else "arithmetic").dtype
                == torch.float32
            )


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


@pytest.mark.parametrize("temperature", [0.5, 1.0, 20.0, 1000.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_extreme_logits_stay_finite(temperature: float, dtype: torch.dtype) -> None:
    z = torch.tensor(
        [[3e4, -3e4, 0.0], [0.0, 0.0, 0.0], [-3e4, -3e4, -2.9e4]], dtype=dtype, requires_grad=True
    )
    v = -z.detach()
    loss = Distillation(temperature, 0.5)(z, soft_targets(v, temperature), torch.tensor([1, -1, 2]))
    loss.backward()
    assert loss.dtype == torch.float32 and bool(loss.isfinite())
    assert z.grad is not None and bool(z.grad.isfinite().all())


def test_autocast_does_not_lower_the_precision() -> None:
    z, v = random_logits(16).float(), random_logits(17).float()
    labels = torch.arange(ROWS) % CLASSES

    def losses() -> list[Tensor]:
        targets = soft_targets({"a": v, "b": z}, 20.0, mean="geometric")
        return [
            Distillation(20.0, 0.3)(z, targets, labels),
            logit_matching(z, v),
            hard_cross_entropy(z, labels),
        ]

    outside = losses()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = losses()
        assert (z @ v.T).dtype == torch.bfloat16  # negative control: autocast is on
    for plain, cast in zip(outside, inside, strict=True):
        assert cast.dtype == torch.float32 and torch.equal(plain, cast)


def test_half_precision_logits_are_widened_first() -> None:
    z, v = random_logits(16).bfloat16(), random_logits(17).bfloat16()
    wide = Distillation(20.0)(z.float(), soft_targets(v.float(), 20.0))
    assert torch.equal(Distillation(20.0)(z, soft_targets(v, 20.0)), wide)


# Bad arguments -----------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan, math.inf])
def test_a_temperature_must_be_finite_and_above_zero(temperature: float) -> None:
    logits = torch.zeros(1, 2)
    for attempt in (soften, soft_targets, lambda _, t: Distillation(t)):
        with pytest.raises(
            ConfigError, match=r"^temperature: expected a finite number above 0, found "
        ) as caught:
            attempt(logits, temperature)
        assert str(caught.value).endswith(f"found {temperature}; correct temperature")


@pytest.mark.parametrize("weight", [-0.1, math.nan, math.inf])
def test_a_hard_weight_must_be_finite_and_not_negative(weight: float) -> None:
    with pytest.raises(
        ConfigError, match=rf"^hard_weight: expected a finite number of 0 or more, found {weight}; "
    ):
        Distillation(1.0, weight)


def test_a_hard_weight_needs_labels() -> None:
    with pytest.raises(
        ConfigError, match=r"^labels: expected labels, for a hard_weight of 0\.1, found none; pass"
    ):
        Distillation(1.0, 0.1)(torch.zeros(1, 2), torch.full((1, 2), 0.5))


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"wide": 1.0, "deep": -1.0}, "weights['deep']: expected a finite number of 0 or more, found -1.0; "),
        (
            {"wide": 1.0, "deep": math.nan},
            "weights['deep']: expected a finite number of 0 or more, found nan; ",
        ),
        ({"wide": 1.0}, "weights: expected a weight for each of wide, deep, found none for 'deep'; "),
        (
            {"wide": 1.0, "deep": 1.0, "dep": 1.0},
            "weights['dep']: expected a teacher among wide, deep, found 'dep'",
        ),
        ({"wide": 0.0, "deep": 0.0}, "weights: expected a finite sum above 0, found 0.0; "),
        ({"wide": 1e308, "deep": 1e308}, "weights: expected a finite sum above 0, found inf; "),
    ],
)
def test_bad_weights_are_named(weights: dict[str, float], message: str) -> None:
    logits = {"wide": torch.zeros(2, 3), "deep": torch.zeros(2, 3)}
    with pytest.raises(ConfigError) as caught:
        soft_targets(logits, 1.0, weights)
    assert str(caught.value).startswith(message)


def test_other_bad_ensembles_are_named() -> None:
    with pytest.raises(ConfigError, match=r"^teachers: expected one or more, found none; "):
        ensemble_shares([], None)
    with pytest.raises(ConfigError, match=r"^weights: expected none for a single teacher, found 1; "):
        soft_targets(torch.zeros(1, 2), 1.0, {"wide": 1.0})
    with pytest.raises(BadLogitsError) as caught:
        soft_targets({"wide": torch.zeros(2, 3), "deep": torch.zeros(2, 4)}, 1.0)
    assert str(caught.value).startswith(
        "teacher 'deep': expected logits of shape (2, 3), like those of 'wide', found (2, 4); "
    )


def test_codes_that_nobody_decoded_are_no_logits() -> None:
    """Their order is upside down: the softmax of raw codes would be a quiet disaster."""
    codes = torch.tensor([[0, 9, 40]], dtype=torch.uint8)
    floats = codes.float()
    for mean in ("arithmetic", "geometric"):
        with pytest.raises(BadLogitsError, match=r"expected floating logits, found torch.uint8 codes"):
            soft_targets({"wide": floats, "deep": codes}, 2.0, mean=mean)
    # The annotations refuse them first where they are checked, which outside of tests they are not.
    for stored in (codes, object()):
        with pytest.raises(BadLogitsError, match="decode them first"):
            losses._check_floating(stored)
