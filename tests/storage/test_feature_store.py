"""Captures of features in a store: the bytes are those of dense rows, and no block of rows is ever made."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import stores
from support.feature_heads import CLASSES, FEATURES, calibrated, head, like, mixed, narrow, worst

import logitstore
from logitstore import FeatureLogits, LinearHead
from logitstore.storage.api import Store, create_store, open_store
from logitstore.storage.encodings import feature_logits, transform
from logitstore.storage.encodings.basis import Basis
from logitstore.storage.encodings.products import TILE
from logitstore.storage.encodings.refine import ESCAPED
from logitstore.storage.encodings.transform import Transform
from logitstore.storage.errors import BadLogitsError
from logitstore.storage.integrity.verify import CLEAN, verify

pytestmark = pytest.mark.usefixtures("without_fsync")

ROWS, BLOCK_ROWS = 300, 128


def begin(path: Path) -> Store:
    return create_store(
        path,
        num_classes=CLASSES,
        digests=np.arange(ROWS, dtype=np.uint64),
        block_rows=BLOCK_ROWS,
        exist_ok=True,
    )


def write(
    path: Path, logits: Any, calibration: Any = None, blocks: int | None = None, **options: Any
) -> None:
    """Write the missing blocks, or some of them, of the capture `t`."""
    options = {"encoding": Transform(1e-2), "provenance": {}} | options
    with begin(path).capture("t", calibration=calibration, **options) as capture:
        for number, rows in enumerate(capture.missing_blocks()):
            if number == blocks:
                break
            capture.write(rows, logits[rows.start : rows.stop])


def test_a_store_of_features_has_the_bytes_of_one_of_dense_rows(tmp_path: Path) -> None:
    lazy, encoding = FeatureLogits(mixed(ROWS), head()), narrow()
    write(tmp_path / "features", lazy, encoding=encoding)
    write(tmp_path / "dense", lazy.dense(), encoding=encoding)
    assert stores.tree(tmp_path / "features") == stores.tree(tmp_path / "dense")
    capture = open_store(tmp_path / "features").teachers["t"]
    assert worst(lazy.dense(), capture.read(slice(None))) <= 1e-2
    assert (capture.read_stored(slice(None))["refine"] == ESCAPED).sum() == len(range(5, ROWS, 27))
    assert verify(tmp_path / "features", deep=True).exit_code == CLEAN


def test_features_calibrate_a_capture_which_is_resumed_without_them(tmp_path: Path) -> None:
    lazy = FeatureLogits(like(ROWS), head())
    cal = FeatureLogits(like(100, seed=7), head())
    write(tmp_path / "whole", lazy, cal)
    write(tmp_path / "resumed", lazy, lambda: cal, blocks=1)
    write(tmp_path / "resumed", lazy)
    assert stores.tree(tmp_path / "whole") == stores.tree(tmp_path / "resumed")
    found = open_store(tmp_path / "whole").teachers["t"].encoding
    assert isinstance(found, Transform) and found.basis is not None
    assert found.basis.num_components == FEATURES + 1


@pytest.mark.parametrize("is_ready", [False, True], ids=["calibration rows", "an encoding with its basis"])
def test_the_projection_on_a_new_basis_is_computed_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_ready: bool
) -> None:
    projection = Basis.__dict__["forward"]
    made: list[Basis] = []
    genuine = projection.func
    monkeypatch.setattr(projection, "func", lambda self: [made.append(self), genuine(self)][1])
    lazy, cal = FeatureLogits(like(ROWS), head()), FeatureLogits(like(100, seed=7), head())
    encoding = calibrated() if is_ready else Transform(1e-2)
    write(tmp_path / "s", lazy, cal, encoding=encoding)
    assert len(made) == 1
    # Control: one that is read from the store has a projection of its own.
    write(tmp_path / "other", lazy, encoding=open_store(tmp_path / "s").teachers["t"].encoding)
    assert len(made) == 2


def test_columns_in_another_order_are_those_of_the_head(tmp_path: Path) -> None:
    order = np.random.default_rng(0).permutation(CLASSES)
    layer = head()
    assert layer.bias is not None
    turned = LinearHead(layer.weight[order], layer.bias[order])
    write(
        tmp_path / "s",
        FeatureLogits(like(ROWS), turned),
        FeatureLogits(like(100, seed=7), turned),
        classes=order,
    )
    read = open_store(tmp_path / "s").teachers["t"].read(slice(None))
    assert worst(FeatureLogits(like(ROWS), layer).dense(), read) <= 1e-2


@pytest.mark.parametrize("encoding", ["float16", "float32", {"max_kl": 1e-2}, {"top_k": 7}], ids=str)
def test_other_encodings_take_the_dense_rows(tmp_path: Path, encoding: Any) -> None:
    lazy = FeatureLogits(like(ROWS), head())
    write(tmp_path / "features", lazy, encoding=encoding)
    write(tmp_path / "dense", lazy.dense(), encoding=encoding)
    assert stores.tree(tmp_path / "features") == stores.tree(tmp_path / "dense")


def test_a_block_of_features_is_never_dense(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, encoding = 3 * TILE, calibrated()
    store = create_store(
        tmp_path / "s", num_classes=CLASSES, digests=np.zeros(rows, np.uint64), block_rows=512
    )
    seen: list[int] = []
    genuine = FeatureLogits.dense
    monkeypatch.setattr(FeatureLogits, "dense", lambda self: [seen.append(len(self)), genuine(self)][1])
    monkeypatch.setattr(transform, "_PIECE_BYTES", 1)
    with store.capture("t", provenance={}, encoding=encoding) as capture:
        capture.write(range(rows), FeatureLogits(like(rows), head()))
    assert max(seen) == TILE and sum(seen) >= rows


def test_features_of_other_classes_are_refused(tmp_path: Path, sentence: Callable[..., None]) -> None:
    lazy = FeatureLogits(like(ROWS), head(classes=CLASSES - 1))
    with pytest.raises(BadLogitsError) as caught:
        write(tmp_path / "s", lazy, encoding=calibrated())
    sentence(caught.value)
    with pytest.raises(BadLogitsError, match="calibration: expected features and a head of logits of shape"):
        write(tmp_path / "s", lazy, lazy)
    with pytest.raises(BadLogitsError, match=rf"shape \(128, {CLASSES}\)"):
        write(tmp_path / "s", FeatureLogits(like(1), head())[:1], encoding=calibrated())
    assert "t" not in begin(tmp_path / "s").unsealed()


def test_a_block_with_a_bad_feature_leaves_no_trace(tmp_path: Path) -> None:
    features = like(ROWS)
    features[130, 3] = np.nan
    lazy = FeatureLogits(features, head())
    with pytest.raises(
        BadLogitsError, match=r"teacher 't', view 0, row 130, feature 3: .* found nan \(1 of 128"
    ):
        write(tmp_path / "s", lazy, encoding=calibrated())
    features[130, 3] = 0
    write(tmp_path / "s", FeatureLogits(features, head()), encoding=calibrated())
    assert verify(tmp_path / "s", deep=True).exit_code == CLEAN


def test_features_that_give_probabilities_are_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    weight = np.eye(CLASSES, FEATURES, dtype=np.float32)
    random = np.random.default_rng(0).random((ROWS, FEATURES)).astype(np.float32)
    random /= random.sum(axis=1, keepdims=True)
    lazy = FeatureLogits(random, LinearHead(weight))
    write(tmp_path / "s", lazy, lazy)
    assert "these look like probabilities" in caplog.text


def test_a_peak_beside_features_is_compared_with_their_logits(tmp_path: Path) -> None:
    features = like(ROWS)
    features[0] = 0
    lazy = FeatureLogits(features, LinearHead(head().weight))  # the largest logit of the first row is 0
    with (
        begin(tmp_path / "s").capture("t", provenance={}, encoding=calibrated()) as capture,
        pytest.raises(
            BadLogitsError, match=r"row 1: peak: expected a finite peak, and logits whose largest is 0"
        ),
    ):
        capture.write(range(BLOCK_ROWS), lazy[:BLOCK_ROWS], peak=np.zeros(BLOCK_ROWS, np.float32))


@pytest.mark.parametrize("name", ["FeatureLogits", "LinearHead"])
def test_the_names_are_public(name: str) -> None:
    assert name in logitstore.__all__
    assert getattr(logitstore, name) is getattr(feature_logits, name)
