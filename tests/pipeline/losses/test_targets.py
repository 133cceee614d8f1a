"""The targets of several teachers together, as probabilities and as logits."""

import math
from typing import Literal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.toy_logits import random_logits
from torch import Tensor

from logitstore.pipeline.losses import ensemble_logits, ensemble_shares, soft_targets, soften
from logitstore.storage.errors import BadLogitsError, ConfigError

Mean = Literal["arithmetic", "geometric"]
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


# Logits of the ensemble --------------------------------------------------------------------------


@given(
    st.lists(st.floats(0, 1000), min_size=3, max_size=3).filter(lambda weights: sum(weights) > 1e-3),
    st.sampled_from(["arithmetic", "geometric"]),
    st.floats(0.5, 1000),
    st.sampled_from([torch.float32, torch.float64]),
)
def test_the_softmax_of_the_ensembles_logits_is_the_soft_targets(
    weights: list[float], mean: Mean, temperature: float, dtype: torch.dtype
) -> None:
    logits = {name: tensor.to(dtype) for name, tensor in ensemble().items()}
    named = dict(zip(NAMES, weights, strict=True))
    combined = ensemble_logits(logits, temperature, named, mean)
    assert combined.dtype == dtype
    targets = soft_targets(logits, temperature, named, mean)
    precision = {"rtol": 1e-10, "atol": 1e-13} if dtype == torch.float64 else {"rtol": 1e-4, "atol": 1e-7}
    torch.testing.assert_close(soften(combined, temperature), targets, **precision)


def test_the_ensembles_logits_by_hand() -> None:
    logits = {
        "wide": torch.tensor([[0.5, 0.5]], dtype=torch.float64).log() * 2,
        "deep": torch.tensor([[0.9, 0.1]], dtype=torch.float64).log() * 2,
    }
    combined = ensemble_logits(logits, 2.0, {"wide": 3.0, "deep": 1.0})
    expected = [2 * math.log(0.75 * 0.5 + 0.25 * 0.9), 2 * math.log(0.75 * 0.5 + 0.25 * 0.1)]
    assert combined[0].tolist() == pytest.approx(expected, rel=1e-14)
    mean = ensemble_logits(logits, 2.0, {"wide": 3.0, "deep": 1.0}, "geometric")
    expected = [
        2 * (0.75 * math.log(0.5) + 0.25 * math.log(0.9)),
        2 * (0.75 * math.log(0.5) + 0.25 * math.log(0.1)),
    ]
    assert mean[0].tolist() == pytest.approx(expected, rel=1e-14)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1000.0])
def test_the_ensembles_logits_are_finite_where_probabilities_underflow(temperature: float) -> None:
    gap = 2e4 * temperature
    logits = {"wide": torch.tensor([[0.0, 2 * gap]]), "deep": torch.tensor([[0.0, gap]])}
    assert soft_targets(logits, temperature)[0, 0] == 0.0  # its logarithm would be lost
    # The deep teacher has the larger share of class 0, and half the weight: ln(½ exp(-gap / T)).
    expected = -gap - temperature * math.log(2)
    combined = ensemble_logits(logits, temperature)
    assert float(combined[0, 0] - combined[0, 1]) == pytest.approx(expected, rel=1e-6)


def test_at_a_high_temperature_the_arithmetic_mean_is_that_of_the_logits() -> None:
    logits = ensemble()
    mean = ensemble_logits(logits, 1.0, mean="geometric")
    errors = {}
    for temperature in (1.0, 1e3, 1e4):
        combined = ensemble_logits(logits, temperature)
        combined = combined - combined.mean(1, keepdim=True)
        errors[temperature] = float((combined - mean + mean.mean(1, keepdim=True)).abs().max())
    assert errors[1.0] > 1 and errors[1e4] < 0.01  # negative control, and the limit
    assert errors[1e3] / errors[1e4] == pytest.approx(10, rel=0.1)


def test_one_teachers_logits_come_back_as_they_are() -> None:
    wide = random_logits(3).float()
    assert torch.equal(ensemble_logits(wide, 7.0), wide)
    assert torch.equal(ensemble_logits({"wide": wide}, 7.0), wide)
    left_out = {"deep": random_logits(4).float(), "wide": wide}
    assert torch.equal(ensemble_logits(left_out, 7.0, {"wide": 2.0, "deep": 0.0}), wide)
    assert ensemble_logits(wide.half(), 7.0).dtype == torch.float32


# Bad arguments -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"wide": 1.0, "deep": -1.0}, "weights['deep']: expected a finite number of 0 or more, found -1.0; "),
        (
            {"wide": 1.0, "deep": math.nan},
            "weights['deep']: expected a finite number of 0 or more, found nan; ",
        ),
        ({"wide": 1.0}, "weights: expected a weight for each of wide, deep, found no weight for 'deep'; "),
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
    for combine in (soft_targets, ensemble_logits):
        with pytest.raises(ConfigError) as caught:
            combine(logits, 1.0, weights)
        assert str(caught.value).startswith(message)


def test_other_bad_ensembles_are_named() -> None:
    with pytest.raises(ConfigError, match=r"^teachers: expected 1 or more teachers, found 0; "):
        ensemble_shares([], None)
    with pytest.raises(ConfigError, match=r"^temperature: expected a finite number above 0, found 0.0; "):
        ensemble_logits(torch.zeros(1, 2), 0.0)
    with pytest.raises(
        ConfigError, match=r"^weights: expected weights=None for a single teacher, found 1 weights; "
    ):
        ensemble_logits(torch.zeros(1, 2), 1.0, {"wide": 1.0})
    with pytest.raises(
        ConfigError, match=r"^weights: expected weights=None for a single teacher, found 1 weights; "
    ):
        soft_targets(torch.zeros(1, 2), 1.0, {"wide": 1.0})
    with pytest.raises(BadLogitsError) as caught:
        soft_targets({"wide": torch.zeros(2, 3), "deep": torch.zeros(2, 4)}, 1.0)
    assert str(caught.value).startswith(
        "teacher 'deep': expected logits of shape (2, 3), like those of 'wide', found (2, 4); "
    )
