"""Decoupled distillation: the two parts of the KL that its paper names."""

import math

import numpy as np
import pytest
import torch
from support.toy_logits import CLASSES, ROWS, gradient_of, random_logits, relative_error
from torch import Tensor
from torch.nn import functional as F

from logitstore.pipeline.losses import DecoupledDistillation, Distillation, hard_cross_entropy, soften

LABELS = torch.arange(ROWS) % CLASSES


def parts(z: Tensor, v: Tensor, labels: Tensor, temperature: float) -> tuple[float, float]:
    """TCKD and NCKD, as the loss has them, without T²."""
    target_class = DecoupledDistillation(temperature, alpha=1.0, beta=0.0, hard_weight=0.0)
    others = DecoupledDistillation(temperature, alpha=0.0, beta=1.0, hard_weight=0.0)
    return float(target_class(z, v, labels)) / temperature**2, float(others(z, v, labels)) / temperature**2


def test_both_parts_by_hand() -> None:
    v = 2 * torch.tensor([[1 / 2, 1 / 4, 1 / 4]], dtype=torch.float64).log()
    z = 2 * torch.tensor([[1 / 4, 1 / 4, 1 / 2]], dtype=torch.float64).log()
    target_class, others = parts(z, v, torch.tensor([0]), 2.0)
    assert target_class == pytest.approx(math.log(4 / 3) / 2)  # ½ ln(½ / ¼) + ½ ln(½ / ¾)
    assert others == pytest.approx(math.log(9 / 8) / 2)  # ½ ln(½ / ⅓) + ½ ln(½ / ⅔)
    loss = DecoupledDistillation(2.0, alpha=1.0, beta=8.0, hard_weight=0.5)(z, v, torch.tensor([0]))
    q = (1 / 16) / (1 / 16 + 1 / 16 + 1 / 4)  # at temperature 1
    expected = 4 * (math.log(4 / 3) / 2 + 8 * math.log(9 / 8) / 2) - 0.5 * math.log(q)
    assert float(loss) == pytest.approx(expected)


def test_the_defaults_are_those_of_the_authors() -> None:
    assert repr(DecoupledDistillation(4.0)) == (
        "DecoupledDistillation(temperature=4.0, alpha=1.0, beta=8.0, hard_weight=1.0)"
    )


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0, 1000.0])
def test_the_parts_in_numpy(temperature: float) -> None:
    z, v = random_logits(1), random_logits(2)
    q, p = (np.exp(tensor.numpy() / temperature) for tensor in (z, v))
    q, p = q / q.sum(1, keepdims=True), p / p.sum(1, keepdims=True)
    target_class, others = [], []
    for row, label in enumerate(LABELS.tolist()):
        p_target, q_target = p[row, label], q[row, label]
        target_class.append(
            p_target * np.log(p_target / q_target) + (1 - p_target) * np.log((1 - p_target) / (1 - q_target))
        )
        p_rest, q_rest = np.delete(p[row], label), np.delete(q[row], label)
        p_rest, q_rest = p_rest / p_rest.sum(), q_rest / q_rest.sum()
        others.append(np.sum(p_rest * np.log(p_rest / q_rest)))
    expected = float(np.mean(target_class)), float(np.mean(others))
    assert parts(z, v, LABELS, temperature) == pytest.approx(expected, rel=1e-8)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0, 1000.0])
def test_the_kl_is_the_target_part_and_the_other_one_by_what_the_teacher_leaves(temperature: float) -> None:
    z, v = random_logits(3, rows=20), random_logits(4, rows=20)
    without_factor = []
    for row in range(20):
        one_z, one_v, label = z[row : row + 1], v[row : row + 1], LABELS[row : row + 1]
        log_q, p = (one_z / temperature).log_softmax(1), soften(one_v, temperature)
        whole = float(F.kl_div(log_q, p, reduction="sum"))
        target_class, others = parts(one_z, one_v, label, temperature)
        rest = 1 - float(p[0, label])
        assert target_class + rest * others == pytest.approx(whole, rel=1e-9, abs=1e-15)
        without_factor.append(abs(target_class + others - whole) / whole)
    assert max(without_factor) > 0.05  # negative control: the factor is needed


def test_of_two_classes_all_is_target_part() -> None:
    z, v = random_logits(5, classes=2), random_logits(6, classes=2)
    target_class, others = parts(z, v, LABELS % 2, 2.0)
    whole = F.kl_div((z / 2).log_softmax(1), soften(v, 2.0), reduction="batchmean")
    assert others == 0.0 and target_class == pytest.approx(float(whole), rel=1e-12)


def test_at_a_high_temperature_both_parts_match_logits() -> None:
    """T² · KL becomes half a variance: of z - v over the other classes, and of the two groups' means."""
    z, v = random_logits(7), random_logits(8)
    difference = (z - v).numpy()
    others = np.stack([np.delete(row, label) for row, label in zip(difference, LABELS.tolist(), strict=True)])
    targets = difference[np.arange(ROWS), LABELS.numpy()]
    share = 1 / CLASSES
    expected = (
        float(np.mean(share * (1 - share) * (targets - others.mean(1)) ** 2) / 2),
        float(np.mean(others.var(axis=1)) / 2),
    )
    found = parts(z, v, LABELS, 1e5)
    assert (found[0] * 1e10, found[1] * 1e10) == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 20.0, 1000.0])
def test_the_gradient_in_float32(temperature: float) -> None:
    loss = DecoupledDistillation(temperature)
    z, v = random_logits(9), random_logits(10)
    exact = gradient_of(lambda leaf: loss(leaf, v, LABELS), z)
    single = gradient_of(lambda leaf: loss(leaf, v.float(), LABELS), z.float())
    assert relative_error(single.double(), exact) < 1e-4


def test_rows_without_a_label_are_left_out_of_every_term() -> None:
    z, v = random_logits(11), random_logits(12)
    some = torch.where(torch.arange(ROWS) % 3 == 0, LABELS, -1)
    known = some != -1
    loss = DecoupledDistillation(3.0)
    assert float(loss(z, v, some)) == pytest.approx(float(loss(z[known], v[known], LABELS[known])), rel=1e-12)
    gradient = gradient_of(lambda leaf: loss(leaf, v, some), z)
    assert bool((gradient[~known] == 0).all()) and bool((gradient[known] != 0).any())
    unknown = torch.full((ROWS,), -1)
    assert float(loss(z, v, unknown)) == 0.0
    assert not gradient_of(lambda leaf: loss(leaf, v, unknown), z).any()


def test_without_its_parts_it_is_the_hard_term() -> None:
    z, v = random_logits(13), random_logits(14)
    loss = DecoupledDistillation(3.0, alpha=0.0, beta=0.0, hard_weight=2.0)
    assert float(loss(z, v, LABELS)) == pytest.approx(2 * float(hard_cross_entropy(z, LABELS)), rel=1e-12)


def test_its_minimum_is_that_of_distillation() -> None:
    """Another weighing of the same KL: both gradients vanish at the teacher, and nowhere near it."""
    v = random_logits(15)
    losses = DecoupledDistillation(4.0, hard_weight=0.0), Distillation(4.0)
    for z, at_rest in ((v + 3.0, True), (v + 0.01 * random_logits(16), False)):
        gradients = (
            gradient_of(lambda leaf: losses[0](leaf, v, LABELS), z),
            gradient_of(lambda leaf: losses[1](leaf, soften(v, 4.0)), z),
        )
        for gradient in gradients:
            assert (float(gradient.abs().max()) < 1e-13) == at_rest
