"""Logits as features and a head: the bytes are those of the dense rows, and a basis of the head serves rows of any kind."""

import tracemalloc
from collections.abc import Callable
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from support.feature_heads import (
    CLASSES,
    FEATURES,
    T,
    calibrated,
    head,
    like,
    mixed,
    narrow,
    unlike,
    worst,
)
from threadpoolctl import threadpool_limits

from logitstore import FeatureLogits, LinearHead
from logitstore.storage.encodings import basis, feature_logits, span, transform
from logitstore.storage.encodings.basis import make_basis
from logitstore.storage.encodings.products import TILE
from logitstore.storage.encodings.refine import ESCAPED
from logitstore.storage.encodings.transform import Transform, escaped_alone
from logitstore.storage.errors import BadLogitsError, ConfigError

# The rows


def test_dense_rows_are_those_of_the_head_whatever_stands_beside_them() -> None:
    features, layer = unlike(300), head()
    lazy = FeatureLogits(features, layer)
    assert lazy.shape == (300, CLASSES) and len(lazy) == 300 and lazy[5:9].shape == (4, CLASSES)
    whole = lazy.dense()
    assert layer.bias is not None
    exact = features.astype(np.float64) @ layer.weight.T.astype(np.float64) + layer.bias
    assert np.abs(whole - exact).max() < 1e-4
    assert np.array_equal(np.asarray(lazy), whole) and whole.dtype == np.float32
    for threads in (1, 2):
        with threadpool_limits(threads):
            for size in (300, TILE, 37, 1):
                parts = [lazy[first : first + size].dense() for first in range(0, 300, size)]
                assert np.concatenate(parts).tobytes() == whole.tobytes()


def test_a_plain_product_would_not_be_the_same_bits() -> None:
    """Negative control: what the tiles exclude does happen."""
    features, weight = unlike(257), head().weight
    parts = [features[row : row + 1] @ weight.T for row in range(257)]
    assert not np.array_equal(np.concatenate(parts), features @ weight.T)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_floats_of_any_width_are_widened_once(dtype: torch.dtype) -> None:
    weight, features = torch.randn(7, 3).to(dtype).requires_grad_(), torch.randn(5, 3).to(dtype)
    lazy = FeatureLogits(features, LinearHead(weight))
    assert lazy.head.weight.dtype == lazy.features.dtype == np.float32
    assert np.array_equal(lazy.head.weight, weight.detach().float().numpy())
    assert np.array_equal(lazy.features, features.float().numpy())
    assert np.allclose(lazy.dense(), (features.float() @ weight.detach().float().T).numpy(), atol=1e-5)
    if dtype != torch.bfloat16:
        same = LinearHead(weight.detach().numpy(), np.zeros(7, weight.detach().numpy().dtype))
        assert np.array_equal(same.weight, lazy.head.weight)


def test_there_is_no_view_of_rows_that_are_computed() -> None:
    with pytest.raises(ValueError, match="cannot be had without a copy"):
        np.array(FeatureLogits(unlike(3), head()), copy=False)


@pytest.mark.parametrize(
    ("weight", "bias", "message"),
    [
        (np.zeros(5, np.float32), None, "weight: expected floats of shape (classes, features), found float32"),
        (np.zeros((5, 0), np.float32), None, "found float32 of shape (5, 0)"),
        (np.zeros((5, 3), np.int64), None, "found int64 of shape (5, 3)"),
        ([["a"]], None, "head: weight"),
        (np.zeros((5, 3)), np.zeros(4), "bias: expected floats of shape (5,), found shape (4,)"),
        (np.zeros((5, 3)), np.zeros((5, 1)), "bias: expected floats of shape (5,), found float64 of shape (5, 1)"),
        (np.full((5, 3), np.nan), None, "weight[0, 0]: expected a finite number, found nan"),
        (np.diag([1.0, 1e300, 1.0]), None, "weight[1, 1]: expected a finite number, found inf"),
        (np.zeros((5, 3)), np.array([0, 0, 0, -np.inf, 0]), "bias[3]: expected a finite number, found -inf"),
        (torch.ones(5, 3, dtype=torch.int8), None, "found int8 of shape (5, 3)"),
        (np.ma.masked_equal(np.diag([1.0, 2.0, 3.0]), 0), None, "found a masked array that hides 6 of 9 values"),
        (np.zeros((5, 3)), np.ma.masked_equal(np.arange(5.0), 4), "found a masked array that hides 1 of 5 values"),
    ],
)  # fmt: skip
def test_a_head_of_other_numbers_is_refused(
    weight: Any, bias: Any, message: str, sentence: Callable[..., None]
) -> None:
    with pytest.raises(ConfigError) as caught:
        LinearHead(weight, bias)
    assert message in str(caught.value)
    sentence(caught.value)


def test_a_bad_number_behind_the_first_rows_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feature_logits, "_CHECKED_ROWS", 4)
    weight = np.zeros((11, 3), np.float32)
    weight[9, 2] = np.inf
    with pytest.raises(ConfigError, match=r"weight\[9, 2\]"):
        LinearHead(weight)


@pytest.mark.parametrize(
    ("features", "found"),
    [
        (np.zeros((4, FEATURES + 1), np.float32), f"{FEATURES + 1}"),
        (np.zeros(FEATURES, np.float32), f"float32 of shape ({FEATURES},)"),
        (np.zeros((4, FEATURES), np.int32), f"int32 of shape (4, {FEATURES})"),
        (torch.zeros(4, FEATURES, 1), f"float32 of shape (4, {FEATURES}, 1)"),
        (torch.zeros(4, FEATURES, dtype=torch.bool), f"bool of shape (4, {FEATURES})"),
        (
            np.ma.masked_less(np.arange(FEATURES, dtype=np.float32)[None], 2),
            f"a masked array that hides 2 of {FEATURES} values",
        ),
    ],
)
def test_features_of_another_shape_are_refused(
    features: Any, found: str, sentence: Callable[..., None]
) -> None:
    with pytest.raises(BadLogitsError) as caught:
        FeatureLogits(features, head())
    assert caught.value.found == found
    sentence(caught.value)


# The encoding


def test_codes_and_bytes_are_those_of_the_dense_rows() -> None:
    lazy = FeatureLogits(mixed(), head())
    encoding = narrow()
    wanted = encoding.encode(lazy.dense(), 0, "teacher")
    assert (wanted["refine"] == ESCAPED).any()  # control: escaped rows are compared as well
    for threads in (1, 2):
        with threadpool_limits(threads), mock.patch.object(transform, "_threads", lambda n=threads: n):
            for size in (290, TILE, 37, 1):
                parts = [
                    encoding.encode(lazy[first : first + size], first, "teacher")
                    for first in range(0, 290, size)
                ]
                for name, values in wanted.items():
                    assert np.concatenate([part[name] for part in parts]).tobytes() == values.tobytes(), name


def test_wide_rows_are_encoded_in_smaller_pieces_to_the_same_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    lazy, encoding = FeatureLogits(mixed(), head()), narrow()
    wanted = encoding.encode(lazy, 0, "teacher")
    seen: list[int] = []
    genuine = FeatureLogits.dense

    def noting(self: FeatureLogits) -> NDArray[np.float32]:
        seen.append(len(self))
        return genuine(self)

    monkeypatch.setattr(FeatureLogits, "dense", noting)
    monkeypatch.setattr(transform, "_PIECE_BYTES", 1)
    monkeypatch.setattr(transform, "_DENSE_BYTES", 1)
    again = encoding.encode(lazy, 0, "teacher")
    assert seen == [TILE, TILE, 290 - 2 * TILE]  # never more than a tile
    assert all(again[name].tobytes() == values.tobytes() for name, values in wanted.items())


@pytest.mark.parametrize("max_kl", [1e-1, 1e-3, 1e-5])
def test_every_row_keeps_its_budget_also_one_unlike_the_calibration(max_kl: float) -> None:
    encoding = calibrated(max_kl)
    for features in (like(150), unlike(150)):
        lazy = FeatureLogits(features, head())
        stored = encoding.encode(lazy, 0, "teacher")
        decoded = encoding.decode(escaped_alone(stored))
        assert worst(lazy.dense(), decoded) <= max_kl
        assert np.array_equal(decoded.argmax(axis=1), lazy.dense().argmax(axis=1))


def test_escape_of_no_row_takes_no_memory() -> None:
    encoding = calibrated()
    stored = encoding.encode(FeatureLogits(like(50), head()), 0, "teacher")
    assert stored["escape"].shape == (50, CLASSES) and stored["escape"].strides == (0, 0)
    assert (stored["escape"] == 65535).all()


@pytest.mark.parametrize("place", [(0, 0), (63, 5), (200, FEATURES - 1)])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_features_that_are_not_finite_are_refused(place: tuple[int, int], value: float) -> None:
    features = like(201)
    features[place] = value
    lazy = FeatureLogits(features, head())
    where = rf"teacher, row {70 + place[0]}, feature {place[1]}: expected finite features, found "
    with pytest.raises(BadLogitsError, match=where):
        calibrated().encode(lazy, 70, "teacher")
    with pytest.raises(BadLogitsError, match=f"calibration, row {place[0]}, feature"):
        Transform(1e-2).calibrated(lazy, "calibration")


def test_finite_features_whose_logits_overflow_are_refused(sentence: Callable[..., None]) -> None:
    features = like(290)
    features[200] = 3e38
    with pytest.raises(
        BadLogitsError, match=r"teacher, row 207, class \d+: expected finite logits"
    ) as caught:
        calibrated().encode(FeatureLogits(features, head()), 7, "teacher")
    sentence(caught.value)


# The basis


def test_the_basis_spans_the_head_and_not_the_calibration_rows() -> None:
    lazy = FeatureLogits(like(200, seed=7), head())
    of_head, of_rows = calibrated(), Transform(1e-3).calibrated(lazy.dense(), "calibration")
    assert of_head.basis is not None and of_rows.basis is not None
    assert of_head.basis.num_components == FEATURES + 1  # the constant is a direction, too
    assert of_rows.basis.num_components <= 6
    rows = FeatureLogits(unlike(100), head())
    assert (of_head.encode(rows, 0, "teacher")["refine"] != ESCAPED).all()
    # Negative control: the span of the rows does not hold them.
    assert (of_rows.encode(rows, 0, "teacher")["refine"] == ESCAPED).all()


def test_rows_like_the_calibration_are_encoded_as_in_their_own_span() -> None:
    """The metric and the axes are those of the rows: the step is the same, and codes are no larger."""
    lazy, rows = FeatureLogits(like(200, seed=7), head()), FeatureLogits(like(300), head())
    of_head, of_rows = calibrated(), Transform(1e-3).calibrated(lazy.dense(), "calibration")
    stored = [encoding.encode(rows, 0, "teacher") for encoding in (of_head, of_rows)]
    assert of_head.basis is not None and of_rows.basis is not None
    np.testing.assert_allclose(of_head.basis.step[0], of_rows.basis.step[0], rtol=1e-5)
    np.testing.assert_allclose(of_head.basis.centre, of_rows.basis.centre, atol=1e-4)
    np.testing.assert_allclose(of_head.basis.weight, of_rows.basis.weight, rtol=1e-4)
    assert abs(stored[0]["refine"].mean(dtype=float) - stored[1]["refine"].mean(dtype=float)) < 0.2
    sums = [int(s["codes"].astype(np.int64).sum()) for s in stored]
    assert sums[0] < 1.02 * sums[1]


def test_the_metric_is_that_of_its_definition() -> None:
    """Oracle: the axes are orthonormal in the mean Fisher information, made as a matrix of classes by classes."""
    lazy = FeatureLogits(unlike(400), head(classes=40))
    logits = lazy.dense()
    made = make_basis(lazy, T, 1.0)
    metric = np.zeros((40, 40))
    for t in T:
        p = np.exp(logits.astype(np.float64) / t)
        p /= p.sum(axis=1, keepdims=True)
        metric += (np.diag(p.sum(axis=0)) - p.T @ p) / t**2
    metric /= len(logits) * sum(1 / t**2 for t in T)
    axes = made.basis.astype(np.float64)
    inside = axes @ metric @ axes.T
    free = np.diag(inside) < 0.5  # the constant, which no softmax sees
    assert free.sum() == 1
    np.testing.assert_allclose(inside[~free][:, ~free], np.eye(FEATURES), atol=0.02)
    projected = made.project(logits - logits.max(axis=1, keepdims=True))
    assert (np.diff(projected[:, ~free].std(axis=0)) <= 1e-3).all()  # principal axes, the widest first


@pytest.mark.parametrize("threads", [1, 2])
def test_the_same_basis_on_any_number_of_threads(threads: int) -> None:
    wanted = calibrated().basis
    with threadpool_limits(threads), mock.patch.object(transform, "_threads", lambda: threads):
        again = calibrated().basis
    assert wanted is not None and again is not None
    assert again.digest == wanted.digest and again.forward.tobytes() == wanted.forward.tobytes()


def test_the_pieces_of_the_calibration_change_rounding_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    lazy = FeatureLogits(unlike(400), head())
    wanted = make_basis(lazy, T, 1.0)
    for module in (basis, span):
        monkeypatch.setattr(module, "_CLASSES", 7)
    monkeypatch.setattr(basis, "_PIECE_BYTES", 1)
    again = make_basis(lazy, T, 1.0)
    np.testing.assert_allclose(np.abs(again.basis), np.abs(wanted.basis), rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(again.weight, wanted.weight, rtol=1e-5)


@pytest.mark.parametrize("classes", [5, FEATURES, FEATURES + 1])
def test_more_features_than_classes_make_as_many_axes_as_classes(classes: int) -> None:
    lazy = FeatureLogits(unlike(300), head(classes=classes))
    encoding = Transform(1e-3).calibrated(lazy, "calibration")
    assert encoding.basis is not None and encoding.basis.num_components == classes
    stored = encoding.encode(lazy, 0, "teacher")
    assert worst(lazy.dense(), encoding.decode(escaped_alone(stored))) <= 1e-3
    assert (stored["refine"] != ESCAPED).all()


def test_features_without_an_effect_make_no_axes() -> None:
    """Columns of zeros, equal columns and a constant one: their directions are there already."""
    weight = head().weight.copy()
    weight[:, 3], weight[:, 4], weight[:, 5] = 0, weight[:, 6], 2.5
    lazy = FeatureLogits(unlike(300), LinearHead(weight))
    encoding = Transform(1e-3).calibrated(lazy, "calibration")
    assert encoding.basis is not None and encoding.basis.num_components == FEATURES - 2
    stored = encoding.encode(lazy, 0, "teacher")
    assert worst(lazy.dense(), encoding.decode(escaped_alone(stored))) <= 1e-3
    assert (stored["refine"] != ESCAPED).all()


def test_features_of_very_different_scales_are_all_kept() -> None:
    scales = np.logspace(-4, 4, FEATURES).astype(np.float32)
    weight = head().weight * scales
    lazy = FeatureLogits(unlike(300) / scales, LinearHead(weight))
    encoding = Transform(1e-3).calibrated(lazy, "calibration")
    assert encoding.basis is not None and encoding.basis.num_components == FEATURES + 1
    assert (encoding.encode(lazy, 0, "teacher")["refine"] != ESCAPED).all()


@pytest.mark.parametrize("rows", [np.repeat(like(1), 50, axis=0), like(1)], ids=["equal", "one"])
def test_calibration_rows_that_are_the_same_are_refused(rows: NDArray[np.float32]) -> None:
    with pytest.raises(BadLogitsError, match=f"calibration rows that differ, found {len(rows)} rows"):
        Transform(1e-2).calibrated(FeatureLogits(rows, head()), "calibration")


def test_features_that_a_head_does_not_tell_apart_are_refused() -> None:
    blind = LinearHead(np.zeros((CLASSES, FEATURES)), np.arange(CLASSES, dtype=np.float64))
    with pytest.raises(BadLogitsError, match="calibration rows that differ, found 200 rows"):
        Transform(1e-2).calibrated(FeatureLogits(like(200), blind), "calibration")
    seeing = np.zeros((CLASSES, FEATURES))
    seeing[7, 3] = 1
    Transform(1e-2).calibrated(FeatureLogits(like(200), LinearHead(seeing)), "calibration")  # control


def test_calibration_rows_whose_logits_overflow_are_named() -> None:
    features = like(200)
    features[150] = 3e38
    with pytest.raises(BadLogitsError, match=r"calibration, row 150, class \d+: expected finite logits"):
        Transform(1e-2).calibrated(FeatureLogits(features, head()), "calibration")


def test_memory_grows_with_features_and_codes_and_not_with_rows_of_classes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    classes = 4000
    layer = head(classes=classes)
    monkeypatch.setattr(transform, "_PIECE_BYTES", 1)
    monkeypatch.setattr(transform, "_threads", lambda: 1)
    monkeypatch.setattr(basis, "_PIECE_BYTES", 1)

    def peak(rows: int) -> int:
        lazy = FeatureLogits(like(rows), layer)
        tracemalloc.start()
        encoding = Transform(1e-2).calibrated(lazy, "calibration")
        encoding.encode(lazy, 0, "teacher")
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most

    small, large = peak(4 * TILE), peak(8 * TILE)
    a_row = (large - small) / (4 * TILE)
    assert a_row < 0.1 * 4 * classes
    assert small > 2 * TILE * 4 * classes  # control: the rows of a tile are seen
