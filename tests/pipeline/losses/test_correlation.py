"""DIST: the correlation of rows and of columns, also where float32 has little left of them."""

import math

import numpy as np
import pytest
import torch
from support.toy_logits import CLASSES, ROWS, gradient_of, random_logits, relative_error
from torch import Tensor

from logitstore.pipeline.losses import Dist, hard_cross_entropy, soften

LABELS = torch.arange(ROWS) % CLASSES


def parts(z: Tensor, v: Tensor, temperature: float) -> tuple[float, float]:
    """The inter-class and the intra-class term, as the loss has them, without T²."""
    inter = Dist(temperature, inter=1.0, intra=0.0, hard_weight=0.0)
    intra = Dist(temperature, inter=0.0, intra=1.0, hard_weight=0.0)
    return float(inter(z, v)) / temperature**2, float(intra(z, v)) / temperature**2


def in_numpy(z: Tensor, v: Tensor, temperature: float) -> tuple[float, float]:
    """The same from `numpy.corrcoef` of the probabilities, in float64."""
    q, p = soften(z.double(), temperature).numpy(), soften(v.double(), temperature).numpy()

    def mean_correlation(ours: np.ndarray, theirs: np.ndarray) -> float:
        return float(np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(ours, theirs, strict=True)]))

    return 1 - mean_correlation(q, p), 1 - mean_correlation(q.T, p.T)


def test_both_terms_by_hand() -> None:
    v = 2 * torch.tensor([[1 / 2, 1 / 4, 1 / 4], [1 / 4, 1 / 2, 1 / 4]], dtype=torch.float64).log()
    z = 2 * torch.tensor([[1 / 4, 1 / 4, 1 / 2], [1 / 4, 1 / 2, 1 / 4]], dtype=torch.float64).log()
    # Rows correlate by -½ and 1; columns by 0 (the student's is constant), 1, and 0 (the teacher's is).
    assert parts(z, v, 2.0) == pytest.approx((1 - 0.25, 1 - 1 / 3))
    loss = Dist(2.0, inter=3.0, intra=0.5, hard_weight=0.1)(z, v, torch.tensor([-1, 1]))
    hard = -math.log((1 / 4) / (1 / 4 + 1 / 16 + 1 / 16))
    assert float(loss) == pytest.approx(4 * (3 * 0.75 + 0.5 * 2 / 3) + 0.1 * hard)


def test_the_defaults_are_those_of_the_authors() -> None:
    assert repr(Dist()) == "Dist(temperature=1.0, inter=1.0, intra=1.0, hard_weight=1.0)"


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0, 20.0, 1000.0])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_terms_in_numpy(temperature: float, dtype: torch.dtype) -> None:
    z, v = random_logits(1), random_logits(2)
    z = z + v
    precision = 1e-8 if dtype == torch.float64 else 2e-5
    found = parts(z.to(dtype), v.to(dtype), temperature)
    assert found == pytest.approx(in_numpy(z, v, temperature), rel=precision)


def test_a_class_that_no_row_is_like_counts_like_any_other() -> None:
    z, v = random_logits(16), random_logits(17)
    z = z + v
    for logits in (z, v):
        logits[:, 0] -= 60.0  # probabilities of 1e-26, whose squares float32 does not have
    assert parts(z.float(), v.float(), 1.0) == pytest.approx(in_numpy(z, v, 1.0), rel=1e-4)


def test_the_authors_code_has_all_but_the_same_value_where_norms_are_not_small() -> None:
    def of_the_authors(z: Tensor, v: Tensor, temperature: float) -> float:
        q, p = soften(z, temperature).numpy(), soften(v, temperature).numpy()
        terms = []
        for ours, theirs in ((q, p), (q.T, p.T)):
            a, b = ours - ours.mean(1, keepdims=True), theirs - theirs.mean(1, keepdims=True)
            norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
            terms.append(1 - np.mean((a * b).sum(1) / (norms + 1e-8)))
        return float(temperature**2 * sum(terms))

    z, v = random_logits(3), random_logits(4)
    for temperature in (1.0, 4.0):
        expected = of_the_authors(z, v, temperature)
        assert float(Dist(temperature, hard_weight=0.0)(z, v)) == pytest.approx(expected, rel=1e-5)
    # Not so at T = 1000 and with many classes: there 1e-8 is most of the denominator.
    z = v = random_logits(5, rows=64, classes=1000)
    assert of_the_authors(v, v, 1000.0) > 1.2e6
    assert abs(float(Dist(1000.0, hard_weight=0.0)(z, v))) < 1e-6


@pytest.mark.parametrize("temperature", [0.5, 1.0, 20.0, 1000.0])
def test_the_gradient_in_float32(temperature: float) -> None:
    loss = Dist(temperature)
    z, v = random_logits(6), random_logits(7)
    exact = gradient_of(lambda leaf: loss(leaf, v, LABELS), z)
    single = gradient_of(lambda leaf: loss(leaf, v.float(), LABELS), z.float())
    assert relative_error(single.double(), exact) < 1e-3


def test_a_student_that_is_an_affine_function_of_its_teacher_is_perfect() -> None:
    """That is the point of it: distillation asks such a student for more."""
    p = soften(random_logits(8), 4.0)
    q = 0.5 * p + 0.5 / CLASSES
    assert parts(q.log(), p.log(), 1.0) == pytest.approx((0.0, 0.0), abs=1e-12)
    assert float(torch.nn.functional.kl_div(q.log(), p, reduction="batchmean")) > 0.05


def test_a_reversed_student_costs_twice_that_of_an_unrelated_one() -> None:
    p = soften(random_logits(9), 4.0)
    reversed_p = 2 / CLASSES - p
    kept = (reversed_p > 0).all(1)
    assert int(kept.sum()) > 20
    inter, _ = parts(reversed_p[kept].log(), p[kept].log(), 1.0)
    assert inter == pytest.approx(2.0, rel=1e-9)


def test_a_batch_of_one_row_learns_from_the_row_alone() -> None:
    z, v = random_logits(10, rows=1), random_logits(11, rows=1)
    correlation = np.corrcoef(soften(z, 2.0).numpy()[0], soften(v, 2.0).numpy()[0])[0, 1]
    assert parts(z, v, 2.0) == pytest.approx((1 - float(correlation), 1.0), rel=1e-9)


def test_a_constant_student_gets_away_from_there() -> None:
    """A last layer of zeros. Divided by a norm of next to nothing, the gradient would be that much larger."""
    v = random_logits(12)
    for temperature in (1.0, 1000.0):
        loss = Dist(temperature, hard_weight=0.0)
        start = torch.zeros_like(v)
        assert float(loss(start, v)) == pytest.approx(2 * temperature**2)
        gradient = gradient_of(lambda leaf, loss=loss: loss(leaf, v), start)
        assert 0 < float(gradient.abs().max()) < temperature * (1 + ROWS / CLASSES)
        assert float(loss(start - 0.1 * gradient / gradient.abs().max(), v)) < 1.5 * temperature**2


def test_rows_that_differ_by_rounding_alone_do_not_correlate() -> None:
    random = torch.Generator().manual_seed(0)
    z = 5 * torch.randn(1, CLASSES, generator=random) + 1e-7 * torch.randn(ROWS, CLASSES, generator=random)
    v = random_logits(13).float()
    loss = Dist(1.0, inter=0.0, hard_weight=0.0)
    assert float(z.std(0).max()) > 0  # they do differ
    assert float(loss(z, v)) == pytest.approx(1.0, abs=1e-4)
    assert float(gradient_of(lambda leaf: loss(leaf, v), z).abs().max()) < 10


def test_without_its_terms_it_is_the_hard_term() -> None:
    z, v = random_logits(14), random_logits(15)
    loss = Dist(inter=0.0, intra=0.0, hard_weight=2.0)
    assert float(loss(z, v, LABELS)) == pytest.approx(2 * float(hard_cross_entropy(z, LABELS)), rel=1e-12)
    assert float(Dist(hard_weight=0.0)(z, v, torch.full((ROWS,), -1))) == float(Dist(hard_weight=0.0)(z, v))
