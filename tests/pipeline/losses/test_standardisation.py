"""Standardised rows: equal to those of the paper's code, and safe for constant rows."""

import math

import numpy as np
import pytest
import torch
from support.toy_logits import CLASSES, ROWS, gradient_of, random_logits

from logitstore.pipeline.losses import (
    DecoupledDistillation,
    Dist,
    Distillation,
    LogitMatching,
    soft_targets,
    standardise,
)

LABELS = torch.arange(ROWS) % CLASSES


def test_a_row_by_hand() -> None:
    deviation = math.sqrt((2.25 + 0.25 + 0.25 + 2.25) / 3)  # the sample's: over classes less one
    expected = [value / deviation for value in (-1.5, -0.5, 0.5, 1.5)]
    found = standardise(torch.tensor([[1.0, 2.0, 3.0, 4.0]], dtype=torch.float64))
    assert found[0].tolist() == pytest.approx(expected, rel=1e-6)
    population = [value / math.sqrt(1.25) for value in (-1.5, -0.5, 0.5, 1.5)]
    assert found[0].tolist() != pytest.approx(population, rel=1e-2)


def test_rows_in_numpy() -> None:
    z = random_logits(1, zero_mean=False)
    rows = z.numpy()
    expected = (rows - rows.mean(1, keepdims=True)) / (rows.std(1, ddof=1, keepdims=True) + 1e-7)
    np.testing.assert_allclose(standardise(z).numpy(), expected, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(standardise(z.float()).numpy(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("constant", [-1e4, 0.0, 7.3, 1e4])
@pytest.mark.parametrize("scale", [1e-2, 1.0, 100.0])
def test_neither_scale_nor_constant_is_seen(constant: float, scale: float) -> None:
    z = random_logits(2)
    torch.testing.assert_close(standardise(scale * z + constant), standardise(z), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("value", [0.0, 0.1, -7.3, 1e4, -1e4])
def test_a_constant_row_becomes_nought_with_a_gradient_that_leads_away(
    value: float, dtype: torch.dtype
) -> None:
    z = torch.full((1, CLASSES), value, dtype=dtype, requires_grad=True)
    row = standardise(z)
    assert not row.any()
    (gradient,) = torch.autograd.grad(row[0, 3], z)
    # As if the deviation were 1: the row's mean is taken off, and that is all.
    expected = torch.full((1, CLASSES), -1 / CLASSES, dtype=dtype)
    expected[0, 3] += 1
    torch.testing.assert_close(gradient, expected)


def test_one_class_has_nothing_to_say() -> None:
    z = torch.tensor([[3.0], [-1e4]], requires_grad=True)
    row = standardise(z)
    assert row.tolist() == [[0.0], [0.0]]
    (gradient,) = torch.autograd.grad(row.sum(), z)
    assert gradient.isfinite().all()


def test_the_gradient_is_that_of_finite_differences() -> None:
    z = random_logits(3, rows=4, classes=5).requires_grad_()
    assert torch.autograd.gradcheck(standardise, (z,))


def test_a_student_of_another_scale_is_perfect_under_every_loss() -> None:
    v = random_logits(4)
    z = 0.3 * v + 5.0
    student, teacher = standardise(z), standardise(v)
    for loss in (LogitMatching(), DecoupledDistillation(2.0, hard_weight=0.0), Dist(2.0, hard_weight=0.0)):
        assert float(loss(student, teacher, LABELS)) == pytest.approx(0, abs=1e-9)
        assert float(loss(z, v, LABELS)) > (
            1e-3 if isinstance(loss, Dist) else 0.1
        )  # they do see it otherwise
    distillation = Distillation(2.0)
    gradient = gradient_of(
        lambda leaf: distillation(standardise(leaf), soft_targets(standardise(v), 2.0)), z.detach()
    )
    assert gradient.abs().max() < 1e-6
