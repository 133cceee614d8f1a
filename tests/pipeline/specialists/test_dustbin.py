"""The dustbin correction: it restores the posteriors of the natural prior, exactly and once.

The world is made of Gaussian classes, so that Bayes' rule gives every posterior: that of the transfer set, and that of a
specialist which was trained to the end on batches of other shares.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from support.stores import softmax
from torch import nn

from logitstore.pipeline.specialists.dustbin import correct_dustbin, dustbin_shift, shifts
from logitstore.pipeline.specialists.heads import Corrected
from logitstore.storage.errors import ConfigError

shares = st.floats(0.01, 0.99)


@dataclass(frozen=True)
class Gaussians:
    """Classes that are Gaussians in the plane, of which some are special."""

    priors: NDArray[np.float64]
    centres: NDArray[np.float64]
    special: NDArray[np.int64]
    points: NDArray[np.float64]

    @property
    def rest(self) -> NDArray[np.int64]:
        return np.setdiff1d(np.arange(len(self.priors)), self.special)

    @property
    def prior(self) -> float:
        return float(self.priors[self.special].sum())

    def log_joint(self, priors: NDArray[np.float64]) -> NDArray[np.float64]:
        """log p(x, c) by point and class, up to one constant."""
        distances = ((self.points[:, None] - self.centres) ** 2).sum(axis=2)
        return np.log(priors) - distances / 2

    def of_columns(self, log_joint: NDArray[np.float64]) -> NDArray[np.float64]:
        """Special classes, and the others as one."""
        rest = np.logaddexp.reduce(log_joint[:, self.rest], axis=1)
        return np.column_stack([log_joint[:, self.special], rest])

    def trained_logits(self, share: float) -> NDArray[np.float64]:
        """What a specialist says that knows all of its batches, of which `share` is special."""
        drawn = self.priors.copy()
        drawn[self.special] *= share / self.prior
        drawn[self.rest] *= (1 - share) / (1 - self.prior)
        return self.of_columns(self.log_joint(drawn)) + 7.0  # any constant


def gaussians(seed: int = 0, classes: int = 9, special: int = 3) -> Gaussians:
    draw = np.random.default_rng(seed)
    return Gaussians(
        draw.dirichlet(np.full(classes, 0.7)) * 0.99 + 0.01 / classes,
        draw.normal(size=(classes, 2)) * 1.5,
        np.sort(draw.choice(classes, special, replace=False)),
        draw.normal(size=(50, 2)) * 2,
    )


@given(seed=st.integers(0, 1000), share=shares)
def test_the_posteriors_of_the_natural_prior_come_back(seed: int, share: float) -> None:
    world = gaussians(seed)
    natural = softmax(world.of_columns(world.log_joint(world.priors)), 1.0)
    head = {"prior": world.prior, "share": share, "dustbin_corrected": False}
    classes = np.append(world.special, -1)
    corrected, after = correct_dustbin(world.trained_logits(share), classes, head)
    np.testing.assert_allclose(softmax(corrected, 1.0), natural, rtol=1e-9, atol=1e-12)
    assert after == head | {"dustbin_corrected": True}


def test_without_it_they_are_those_of_the_batches() -> None:
    """Negative control: what the correction is there for is there."""
    world = gaussians()
    natural = softmax(world.of_columns(world.log_joint(world.priors)), 1.0)
    trained = softmax(world.trained_logits(0.95), 1.0)
    assert abs(trained - natural).max() > 0.1
    wrong = world.trained_logits(0.95)
    wrong[:, -1] -= dustbin_shift(world.prior, 0.95)  # the other sign
    assert abs(softmax(wrong, 1.0) - natural).max() > 0.1


def test_of_halves_it_is_the_odds_of_the_rest() -> None:
    assert dustbin_shift(0.02, 0.5) == pytest.approx(np.log(0.98 / 0.02), rel=1e-15)


@given(prior=shares, share=shares)
def test_it_is_the_log_of_the_oversampling(prior: float, share: float) -> None:
    expected = np.log(share / prior) - np.log((1 - share) / (1 - prior))
    assert dustbin_shift(prior, share) == pytest.approx(expected, abs=1e-12)
    assert dustbin_shift(share, share) == 0
    assert dustbin_shift(prior, share) == pytest.approx(-dustbin_shift(share, prior), abs=1e-12)


def test_it_is_never_applied_twice() -> None:
    logits, head = np.zeros((2, 3)), {"prior": 0.1, "share": 0.5}
    corrected, after = correct_dustbin(logits, np.array([1, 4, -1]), head)
    assert not logits.any()  # whose are left as they are
    with pytest.raises(ConfigError) as caught:
        correct_dustbin(corrected, np.array([1, 4, -1]), after)
    assert str(caught.value) == (
        "dustbin: expected logits as the specialist was trained, found logits that are corrected already; "
        "take them as they are"
    )
    network = Corrected(nn.Identity(), torch.zeros(3))
    with pytest.raises(ConfigError, match="corrected already"):
        Corrected(network, torch.zeros(3))


@pytest.mark.parametrize("classes", [[1, 2, 3], [1, -1, -1]])
def test_logits_without_one_dustbin_are_refused(classes: list[int]) -> None:
    with pytest.raises(ConfigError, match="expected one column of class -1"):
        correct_dustbin(np.zeros((2, 3)), np.array(classes), {"prior": 0.1, "share": 0.5})


@pytest.mark.parametrize(("prior", "share"), [(0.0, 0.5), (1.0, 0.5), (0.2, 0.0), (0.2, 1.0)])
def test_a_prior_of_nothing_or_all_is_refused(prior: float, share: float) -> None:
    with pytest.raises(ConfigError, match="a number between 0 and 1"):
        dustbin_shift(prior, share)


def test_a_network_and_an_array_are_corrected_alike() -> None:
    classes, special = np.array([2, 5, -1]), np.array([2, 5])
    logits = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    head: dict[str, Any] = {"prior": 0.1, "share": 0.25}
    network = Corrected(nn.Identity(), torch.from_numpy(shifts(classes, special, **head)))
    expected, _ = correct_dustbin(logits, classes, head)
    np.testing.assert_array_equal(network(torch.from_numpy(logits)).numpy(), expected)


def test_of_a_full_softmax_all_other_classes_are_raised() -> None:
    """Section 6.1: where no target of other rows has mass on special classes, that is exact as well."""
    world = gaussians(3)
    share = 0.6
    drawn = world.priors.copy()
    drawn[world.special] *= share / world.prior
    drawn[world.rest] *= (1 - share) / (1 - world.prior)
    raised = world.log_joint(drawn) + shifts(np.arange(9), world.special, world.prior, share)
    natural = softmax(world.log_joint(world.priors), 1.0)
    np.testing.assert_allclose(softmax(raised, 1.0), natural, atol=1e-6)
    assert abs(softmax(world.log_joint(drawn), 1.0) - natural).max() > 0.05
