"""Logits at the ends of what the transform encoding can keep: masked classes, rows unlike the calibration, temperatures."""

import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.special import log_softmax

from logitstore.storage.api import Store, create_store, open_store
from logitstore.storage.encodings.feature_logits import FeatureLogits, LinearHead
from logitstore.storage.encodings.transform import Transform
from logitstore.storage.errors import BadLogitsError, ConfigError, LogitStoreError

ROWS, CLASSES, FEATURES, MAX_KL = 60, 12, 4, 1e-2
TRANSFORM = {"transform": {"max_kl": MAX_KL}}
LEAST = float(np.finfo(np.float32).min)
"""A usual logit of masked classes."""


def features(seed: int = 0) -> NDArray[np.float32]:
    """Return features (rows, features)."""
    return np.random.default_rng(seed).standard_normal((ROWS, FEATURES), dtype=np.float32)


def head(masked: float) -> LinearHead:
    """Return a head whose class 3 has one logit in all rows."""
    weight = 3 * np.random.default_rng(1).standard_normal((CLASSES, FEATURES), dtype=np.float32)
    bias = np.zeros(CLASSES, np.float32)
    weight[3], bias[3] = 0, masked
    return LinearHead(weight, bias)


def rows_of(kind: str, masked: float, seed: int = 0) -> Any:
    """Return logits of `head`, dense or as features."""
    lazy = FeatureLogits(features(seed), head(masked))
    return lazy if kind == "features" else lazy.dense()


def write(path: Path, logits: Any, calibration: Any) -> Store:
    """Write logits of both kinds as the capture "net"."""
    store = create_store(path, num_classes=CLASSES, digests=np.arange(ROWS, dtype=np.uint64), exist_ok=True)
    with store.capture("net", provenance={}, encoding=TRANSFORM, calibration=calibration) as capture:
        for rows in capture.missing_blocks():
            capture.write(rows, logits[rows.start : rows.stop])
    return open_store(path)


def refused(kind: type[LogitStoreError], call: Callable[[], object]) -> LogitStoreError:
    """Return the error that a call ends with."""
    with pytest.raises(kind) as caught:
        call()
    return caught.value


@pytest.mark.parametrize("kind", ["dense", "features"])
def test_a_mask_beyond_the_reach_of_readers_is_refused_before_anything_is_written(
    tmp_path: Path, kind: str, sentence: Callable[..., None]
) -> None:
    logits = rows_of(kind, LEAST)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sentence(refused(BadLogitsError, lambda: write(tmp_path / "s", logits, logits)))
    assert [file.name for file in (tmp_path / "s/teachers").iterdir()] == ["zarr.json"]


@pytest.mark.parametrize("masked", [-1e3, -1e9, -1e20])
@pytest.mark.parametrize("kind", ["dense", "features"])
def test_what_is_written_is_read_within_the_budget(tmp_path: Path, kind: str, masked: float) -> None:
    logits = rows_of(kind, masked)
    found = write(tmp_path / "s", logits, logits).teachers["net"].read(slice(None))
    ln_p, ln_q = (log_softmax(np.asarray(z, np.float64), axis=1) for z in (rows_of("dense", masked), found))
    assert (np.exp(ln_p) * (ln_p - ln_q)).sum(axis=1).max() <= MAX_KL


@pytest.mark.parametrize(
    ("masked", "is_written"), [(-1e28, True), (-1e29, False), (-1e30, False), (-1e31, False), (-1e38, False)]
)
def test_no_mask_is_written_that_no_reader_takes(tmp_path: Path, masked: float, is_written: bool) -> None:
    logits = rows_of("dense", masked)
    try:
        store = write(tmp_path / "s", logits, logits)
    except BadLogitsError:
        assert not is_written
        return
    assert is_written and store.teachers["net"].read(slice(None)).shape == logits.shape


def test_a_basis_whose_logits_no_reader_takes_is_refused(
    tmp_path: Path, sentence: Callable[..., None]
) -> None:
    """Calibration rows are checked before; a basis that is brought along has none."""
    logits = rows_of("dense", -1.0)
    encoding = Transform(MAX_KL).calibrated(logits, "calibration")
    assert encoding.basis is not None
    for factor, is_written in ((1e20, True), (1e31, False)):
        basis = replace(encoding.basis, centre=encoding.basis.centre * np.float32(factor))
        store = create_store(tmp_path / f"{factor:g}", num_classes=CLASSES, digests=np.zeros(ROWS, np.uint64))
        take = partial(store.capture, "net", provenance={}, encoding=replace(encoding, basis=basis))
        if is_written:
            assert take().missing_blocks()
        else:
            sentence(refused(BadLogitsError, take))


def test_a_class_that_is_masked_by_an_infinity_is_told_what_to_do(
    tmp_path: Path, sentence: Callable[..., None]
) -> None:
    logits = rows_of("dense", -1.0)
    logits[:, 3] = -np.inf
    sentence(refused(BadLogitsError, lambda: write(tmp_path / "s", logits, logits)))
    logits[:, 3] = np.nan  # a teacher that is wrong
    sentence(refused(BadLogitsError, lambda: write(tmp_path / "s", logits, logits)))


def test_a_row_that_no_basis_serves_and_no_code_reaches_is_refused(
    tmp_path: Path, sentence: Callable[..., None]
) -> None:
    logits = rows_of("dense", -1.0)
    logits[40, 5] = -1e5
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sentence(refused(BadLogitsError, lambda: write(tmp_path / "s", logits, logits[:30])))
    # Negative control: within that reach it is kept.
    logits[40, 5] = -9e3
    assert write(tmp_path / "t", logits, logits[:30]).teachers["net"].read([40])[0].argmin() == 5


def test_many_rows_without_the_basis_are_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    logits = rows_of("dense", -1.0)
    write(tmp_path / "s", logits, logits)
    assert not caplog.messages
    write(tmp_path / "t", logits, logits[:2])
    assert [message.partition(";")[0] for message in caplog.messages] == [
        "teacher 'net': 97 % of the rows are unlike the calibration rows, and stored whole without the basis"
    ]


@pytest.mark.parametrize("temperatures", [(0.5,), (1.0, 1001.0), (1e30,), (float("nan"),)])
def test_temperatures_without_a_guarantee_are_refused(
    temperatures: tuple[float, ...], sentence: Callable[..., None]
) -> None:
    sentence(refused(ConfigError, lambda: Transform(MAX_KL, temperatures)))


def test_a_layer_in_the_place_of_a_head_is_refused(sentence: Callable[..., None]) -> None:
    sentence(refused(LogitStoreError, lambda: FeatureLogits(features(), head(0.0).weight)))
