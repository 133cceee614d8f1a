"""Laws of projected columns: what they keep, and that nothing but a seed is needed to make them again."""

import math

import numpy as np
import pytest
from support.held_logits import Held

from logitstore.pipeline.cluster import memory as matrix_memory
from logitstore.pipeline.cluster import projection
from logitstore.pipeline.cluster.covariance import covariance
from logitstore.pipeline.cluster.memory import GIB, choose_dimensions, fits
from logitstore.pipeline.cluster.projection import Projection, measure_error, projected_columns
from logitstore.pipeline.cluster.softened import Softened, softened_of
from logitstore.storage.errors import ConfigError

CLASSES = 200


def source(seed: int = 0, rows: int = 700, block_rows: int = 64, sigma: float = 2.0) -> Softened:
    logits = sigma * np.random.default_rng(seed).normal(size=(2, rows // 2, CLASSES))
    return softened_of(Held(logits.astype(np.float32)), 1.0, block_rows)


def whole(table: Projection) -> np.ndarray:
    """The matrix that is never whole."""
    return np.concatenate([stripe for _, stripe in table.stripes()])


def test_signs_follow_from_the_seed_and_the_class_alone() -> None:
    table = Projection(CLASSES, 128, seed=3)
    signs = table.signs(0, CLASSES)
    assert (np.abs(signs) == np.float32(1 / math.sqrt(128))).all()
    assert (table.signs(50, 60) == signs[50:60]).all()
    assert (Projection(10 * CLASSES, 128, seed=3).signs(0, CLASSES) == signs).all()
    assert (Projection(CLASSES, 128, seed=4).signs(0, CLASSES) != signs).mean() == pytest.approx(
        0.5, abs=0.02
    )
    assert abs(float(np.sign(signs).mean())) < 0.02
    products = signs @ signs.T
    np.testing.assert_allclose(np.diag(products), 1, rtol=1e-5)
    assert np.abs(products - np.eye(CLASSES)).max() < 6 / math.sqrt(128)


def test_stripes_are_the_matrix_however_it_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    table = Projection(CLASSES, 64, seed=1)
    expected = whole(table)
    monkeypatch.setattr(projection, "_STRIPE_VALUES", 17 * table.width)
    assert len(list(table.stripes())) == 12
    assert (whole(table) == expected).all()
    unit = expected[:, 64:]
    assert np.flatnonzero(unit.any(axis=1)).tolist() == list(table.sample)
    assert (unit.sum(axis=0) == 1).all()


@pytest.mark.parametrize("sigma", [1.0, 5.0])
def test_columns_are_the_projection_of_those_of_the_matrix(
    sigma: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = source(sigma=sigma)
    matrix = covariance(rows)
    monkeypatch.setattr(projection, "_STRIPE_VALUES", 5000)
    found = projected_columns(rows, 64, seed=2)
    expected = matrix @ Projection(CLASSES, 64, seed=2).signs(0, CLASSES)
    scale = np.sqrt(np.diag(matrix) * np.diag(matrix).sum())[:, None]
    assert (np.abs(found.columns - expected) / scale).max() < 1e-5
    assert (np.abs(found.columns - 1.001 * expected) / scale).max() > 1e-5, "control"


def test_what_is_said_of_the_error_is_what_it_is() -> None:
    rows = source(sigma=4.0)
    matrix = covariance(rows)
    for dimensions in (64, 1024):
        found = projected_columns(rows, dimensions, seed=5)
        sample = list(Projection(CLASSES, dimensions, seed=5).sample)
        pairs = np.triu_indices(len(sample), 1)
        exact, projected = (
            ((points[:, None] - points) ** 2).sum(axis=2)[pairs]
            for points in (matrix[sample], found.columns[sample])
        )
        relative = projected / exact - 1
        assert found.error.classes == len(sample) == 64
        assert found.error.rms == pytest.approx(math.sqrt((relative**2).mean()), rel=1e-3)
        assert found.error.largest == pytest.approx(np.abs(relative).max(), rel=1e-3)
        assert found.error.expected == math.sqrt(2 / dimensions)
        # of a column with few large values it is a little less than √(2/d), of one with many it is that
        assert found.error.rms < 1.5 * found.error.expected


def test_columns_that_are_the_same_have_no_error() -> None:
    ones = np.ones((5, 7))
    error = measure_error(ones, ones[:, :3])
    assert (error.rms, error.largest) == (0.0, 0.0)
    assert measure_error(np.eye(4), 2 * np.eye(4)).rms == pytest.approx(3)


def test_dimensions_follow_from_classes_and_memory() -> None:
    assert choose_dimensions(1000, 4 * GIB) is None and fits(1000, 4 * GIB)
    for classes, memory in ((8000, 4 * GIB), (50_000, GIB), (1 << 20, 4 * GIB)):
        chosen = choose_dimensions(classes, memory) if classes < 1 << 20 else 64
        if classes == 1 << 20:
            with pytest.raises(
                ConfigError, match=r"^memory: expected at least 9 GiB for 1,048,576 classes, found 4 GiB;"
            ):
                choose_dimensions(classes, memory)
            assert choose_dimensions(classes, 9 * GIB) == 64
            continue
        assert chosen is not None and chosen & (chosen - 1) == 0
        held = matrix_memory.MATRICES * 8 * classes * (chosen + matrix_memory.SAMPLE)
        assert held <= memory
        assert chosen == matrix_memory.MOST_DIMENSIONS or 2 * held > memory - held
