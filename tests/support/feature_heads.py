"""Logits of a linear head: features like calibration rows, features unlike them, and the encodings of both."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from logitstore import FeatureLogits, LinearHead
from logitstore.storage.encodings.transform import Transform
from support.divergences import kl

CLASSES, FEATURES = 301, 24
T = (1.0, 2.0, 4.0, 8.0)


def head(seed: int = 0, classes: int = CLASSES, features: int = FEATURES) -> LinearHead:
    random = np.random.default_rng(seed)
    return LinearHead(random.standard_normal((classes, features)), random.standard_normal(classes))


def like(rows: int, seed: int = 1) -> NDArray[np.float32]:
    """Return features of few directions, as calibration rows have them."""
    random = np.random.default_rng(seed)
    mixing = np.random.default_rng(99).standard_normal((5, FEATURES))
    return np.asarray(random.standard_normal((rows, 5)) @ mixing, np.float32)


def unlike(rows: int, seed: int = 2) -> NDArray[np.float32]:
    """Return features of all directions."""
    return np.random.default_rng(seed).standard_normal((rows, FEATURES)).astype(np.float32) * 2


def worst(exact: NDArray[Any], decoded: NDArray[Any]) -> float:
    return float(max(kl(exact, decoded, t).max() for t in T))


def calibrated(max_kl: float = 1e-3, rows: int = 200) -> Transform:
    return Transform(max_kl).calibrated(FeatureLogits(like(rows, seed=7), head()), "calibration")


def narrow(max_kl: float = 1e-2) -> Transform:
    """Return the encoding with a basis that spans calibration rows alone: others are escaped."""
    return Transform(max_kl).calibrated(FeatureLogits(like(200, seed=7), head()).dense(), "calibration")


def mixed(rows: int = 290) -> NDArray[np.float32]:
    """Return features like the calibration, and some unlike it."""
    features = like(rows)
    features[5::27] = unlike(rows)[5::27]
    return features
