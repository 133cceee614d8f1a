"""Metrics of predictions: errors, negative log-likelihood, calibration, top-k; agreement and ensembles.

An `Accumulator` keeps sums over batches, and two of them can be merged; `Metrics` are the result. All is float64 inside, so
that the division of the rows into batches does not matter.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float, Float64, Int64

from ...storage.checks import check_temperature
from ...storage.errors import BadDataError, BadLogitsError, ConfigError


@dataclass(frozen=True)
class Metrics:
    """Metrics of a model's predictions on labelled rows."""

    rows: int
    """Labelled rows."""
    errors: int
    """Rows whose most probable class is not the label; of equal probabilities the first counts."""
    nll: float
    """Mean negative log-likelihood of the labels, nats a row."""
    calibration_error: float
    """Expected calibration error: mean over rows of |accuracy - confidence| of the row's bin of confidence."""
    top_k: int
    """The k of `top_k_errors`."""
    top_k_errors: int
    """Rows whose label is not among the k most probable classes."""
    ties: int
    """Rows in which several classes are the most probable: the one of the lowest number counts as such."""

    @property
    def accuracy(self) -> float:
        """Share of the rows that are right."""
        return 1 - self.errors / self.rows

    @property
    def top_k_accuracy(self) -> float:
        """Share of the rows whose label is among the k most probable classes."""
        return 1 - self.top_k_errors / self.rows


class Accumulator:
    """Sums over batches; memory does not grow with rows.

    >>> accumulator = Accumulator(num_classes=3)
    >>> accumulator.update(np.array([[2.0, 1.0, 0.0], [0.0, 9.0, 0.0]]), np.array([0, 2]))
    >>> accumulator.result().errors
    1
    """

    def __init__(self, num_classes: int, *, temperature: float = 1.0, bins: int = 15, top_k: int = 5) -> None:
        """Start from nothing.

        temperature: of the softmax for likelihood and confidence, above 0.
        bins: equal intervals of confidence for the calibration error.
        top_k: at most num_classes; a larger one is reduced.
        Raises ConfigError for numbers out of range.
        """
        for name, value in (("num_classes", num_classes), ("bins", bins), ("top_k", top_k)):
            if value < 1:
                raise ConfigError(name, expected="1 or more", found=str(value), remedy="raise it")
        check_temperature(temperature)
        self.num_classes = num_classes
        self.temperature = temperature
        self.top_k = min(top_k, num_classes)
        self._rows = self._errors = self._top_k_errors = self._ties = 0
        self._nll = 0.0
        # By bin of confidence: rows, correct rows, sum of the confidences.
        self._calibration = np.zeros((3, bins))

    def update(self, logits: Float[np.ndarray, "rows classes"], labels: Int64[np.ndarray, "rows"]) -> None:
        """Add a batch.

        logits: nats, any additive constant per row. labels: -1 if unknown; those rows are left out.
        Raises BadLogitsError for logits that are not finite or of another number of classes, BadDataError for labels out of
        range.
        """
        _check_logits(logits, self.num_classes)
        wrong = labels[(labels < -1) | (labels >= self.num_classes)]
        if len(wrong):
            raise BadDataError(
                "labels",
                expected=f"classes from 0 to {self.num_classes - 1}, or -1 where unknown",
                found=str(int(wrong[0])),
                remedy="check that labels and logits belong together",
            )
        known = labels >= 0
        logits, labels = logits[known], labels[known]
        rows = np.arange(len(labels))
        log_probabilities = log_softmax(logits, self.temperature)
        ranks = _ranks(logits, labels)
        right = ranks == 0
        confidence = np.exp(log_probabilities.max(axis=1))
        bins = self._calibration.shape[1]
        place = np.minimum((confidence * bins).astype(np.int64), bins - 1)

        self._rows += len(labels)
        self._errors += int((~right).sum())
        self._top_k_errors += int((ranks >= self.top_k).sum())
        self._ties += int(((logits == logits.max(axis=1, keepdims=True)).sum(axis=1) > 1).sum())
        self._nll -= float(log_probabilities[rows, labels].sum())
        for line, weights in enumerate((np.ones(len(labels)), right, confidence)):
            self._calibration[line] += np.bincount(place, weights, minlength=bins)

    def merge(self, other: "Accumulator") -> None:
        """Add the sums of another accumulator of the same arguments. Raises ConfigError."""
        mine = (self.num_classes, self.temperature, self.top_k, self._calibration.shape)
        theirs = (other.num_classes, other.temperature, other.top_k, other._calibration.shape)
        if mine != theirs:
            raise ConfigError(
                "Accumulator.merge",
                expected=f"an accumulator of num_classes, temperature, top_k, calibration shape = {mine}",
                found=f"{theirs}",
                remedy="make both alike",
            )
        self._rows += other._rows
        self._errors += other._errors
        self._top_k_errors += other._top_k_errors
        self._ties += other._ties
        self._nll += other._nll
        self._calibration += other._calibration

    def result(self) -> Metrics:
        """Return the metrics of all batches. Raises BadDataError if no row had a label."""
        if not self._rows:
            raise BadDataError(
                "labels",
                expected="at least one labelled row",
                found="none",
                remedy="evaluate on an evaluation set that has labels",
            )
        _, right, confidence = self._calibration
        return Metrics(
            rows=self._rows,
            errors=self._errors,
            nll=self._nll / self._rows,
            calibration_error=float(np.abs(right - confidence).sum() / self._rows),
            top_k=self.top_k,
            top_k_errors=self._top_k_errors,
            ties=self._ties,
        )


def evaluate_logits(
    logits: Float[np.ndarray, "rows classes"],
    labels: Int64[np.ndarray, "rows"],
    *,
    temperature: float = 1.0,
    bins: int = 15,
    top_k: int = 5,
) -> Metrics:
    """Return the metrics of one batch; arguments and errors as of `Accumulator`."""
    accumulator = Accumulator(logits.shape[1], temperature=temperature, bins=bins, top_k=top_k)
    accumulator.update(logits, labels)
    return accumulator.result()


def log_softmax(
    logits: Float[np.ndarray, "rows classes"], temperature: float = 1.0
) -> Float64[np.ndarray, "rows classes"]:
    """Compute log softmax(logits / temperature) without underflow."""
    scaled = logits.astype(np.float64)
    scaled -= scaled.max(axis=1, keepdims=True)
    scaled /= temperature
    return np.asarray(scaled - np.log(np.exp(scaled).sum(axis=1, keepdims=True)))


def agreement(first: Float[np.ndarray, "rows classes"], second: Float[np.ndarray, "rows classes"]) -> float:
    """Return the share of rows with the same most probable class. first, second: logits of the same rows, at least one."""
    for logits in (first, second):
        _check_logits(logits, first.shape[1])
    if not len(first):
        raise BadDataError("logits", expected="at least one row", found="none", remedy="check what was read")
    return float((first.argmax(axis=1) == second.argmax(axis=1)).mean())


def ensemble_logits(
    logits: Mapping[str, Float[np.ndarray, "rows classes"]],
    weights: Mapping[str, float] | None = None,
    mean: Literal["arithmetic", "geometric"] = "arithmetic",
    temperature: float = 1.0,
) -> Float64[np.ndarray, "rows classes"]:
    """Compute the logits of an ensemble: logarithms of the mean of its members' softmax(logits / temperature).

    logits: of each member, for the same rows. weights: of each member, above 0, any scale; equal by default.
    mean: the arithmetic mean of the probabilities, or their geometric mean, normalised (the softmax of the weighted mean of
    the logits). Source: Hinton et al. 2015, section 1.
    temperature: of the members' softmax; the result is at temperature 1 and each row's exponentials sum to 1.
    Raises ConfigError for weights of other members or not above 0, BadLogitsError for logits of different shapes.
    """
    check_temperature(temperature)
    if not logits:
        raise ConfigError("teachers", expected="at least one", found="none", remedy="name one")
    weights = dict.fromkeys(logits, 1.0) if weights is None else weights
    if set(weights) != set(logits):
        raise ConfigError(
            "weights",
            expected="one for each of " + ", ".join(logits),
            found=", ".join(weights) or "none",
            remedy="name the same teachers in both",
        )
    for name, weight in weights.items():
        if not (math.isfinite(weight) and weight > 0):
            raise ConfigError(
                f"weights.{name}",
                expected="a finite number above 0",
                found=f"{weight:g}",
                remedy="leave out a teacher that is not to count",
            )
    shape = next(iter(logits.values())).shape
    for name, member in logits.items():
        if member.shape != shape:
            raise BadLogitsError(
                name,
                expected=f"logits of shape {shape}, like the others",
                found=f"shape {member.shape}",
                remedy="evaluate teachers of the same rows and classes",
            )
        _check_logits(member, shape[1])
    total = sum(weights.values())
    terms = [(weights[name] / total, log_softmax(member, temperature)) for name, member in logits.items()]
    if mean == "geometric":
        return log_softmax(np.asarray(sum(weight * term for weight, term in terms)))
    stacked = np.stack([term + math.log(weight) for weight, term in terms])
    return np.asarray(np.logaddexp.reduce(stacked, axis=0), np.float64)


def _ranks(
    logits: Float[np.ndarray, "rows classes"], labels: Int64[np.ndarray, "rows"]
) -> Int64[np.ndarray, "rows"]:
    """Count the classes before the label: those with a larger logit, or an equal logit and a smaller number."""
    own = logits[np.arange(len(labels)), labels][:, None]
    earlier = np.arange(logits.shape[1]) < labels[:, None]
    before = (logits > own) | ((logits == own) & earlier)
    return np.asarray(before.sum(axis=1), np.int64)


def _check_logits(logits: Float[np.ndarray, "rows classes"], num_classes: int) -> None:
    if logits.shape[1] != num_classes:
        raise BadLogitsError(
            "logits",
            expected=f"{num_classes} classes",
            found=f"{logits.shape[1]}",
            remedy="check that the model belongs to this data",
        )
    finite = np.isfinite(logits).all(axis=1)
    if not finite.all():
        raise BadLogitsError(
            f"row {int(np.argmin(finite))}",
            expected="finite logits",
            found="NaN or infinity",
            remedy="check the model's weights and precision",
        )
