"""The KL divergence of decoded logits in float64, by the definition."""

import numpy as np
from numpy.typing import NDArray

Logits = NDArray[np.float32]


def log_softmax(logits: NDArray[np.floating], temperature: float) -> NDArray[np.float64]:
    exact = logits.astype(np.float64)
    scaled = (exact - exact.max(axis=1, keepdims=True)) / temperature
    return np.asarray(scaled - np.log(np.exp(scaled).sum(axis=1, keepdims=True)))


def kl(teacher: Logits, decoded: Logits, temperature: float) -> NDArray[np.float64]:
    """Return the KL of each row in float64: Σ p·(q/p − 1 − ln(q/p)), whose terms are not negative."""
    ln_p = log_softmax(teacher, temperature)
    ratio = log_softmax(decoded, temperature) - ln_p
    return np.asarray((np.exp(ln_p) * (np.expm1(ratio) - ratio)).sum(axis=1))
