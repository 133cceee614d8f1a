"""The correction of a specialist's dustbin for the share of special rows in its batches. Imports no torch.

A share s of a specialist's batches is special, but only a share π of the transfer set. Trained to convergence, its posteriors
hold for the prior s: the odds of special against the rest are too high by s(1 - π) / ((1 - s)π). The prior is a factor in
Bayes' rule, so that this is a constant whatever the classes look like: its logarithm, added to the dustbin's logit, restores
the natural prior exactly. For s = 1/2 it is log((1 - π) / π).

Source: Hinton et al. 2015, section 5.2 ("we increment the logit of the dustbin class by the log of the proportion by
which the specialist class is oversampled").
"""

import math
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from jaxtyping import Float, Int64

from ...storage.errors import ConfigError

DUSTBIN: Final = -1
"""The dustbin class in a capture's `classes`."""
CORRECTED: Final = "dustbin_corrected"
"""Key of a specialist's `head`: whether the correction is in its logits."""


def dustbin_shift(prior: float, share: float) -> float:
    """Return the number to add to the dustbin's logit, nats: log(s(1 - π) / ((1 - s)π)).

    prior: π, the share of special rows in the transfer set. share: s, the same in a batch. Both between 0 and 1.
    Raises ConfigError.

    >>> round(dustbin_shift(prior=0.02, share=0.5), 2)
    3.89
    >>> dustbin_shift(prior=0.25, share=0.25)
    0.0
    """
    for name, value in (("prior", prior), ("share", share)):
        if not 0 < value < 1:
            raise ConfigError(
                f"dustbin: {name}",
                expected="a number between 0 and 1",
                found=str(value),
                remedy="train a specialist on rows of its own classes and on others",
            )
    return (math.log(share) - math.log1p(-share)) - (math.log(prior) - math.log1p(-prior))


def shifts(
    classes: Int64[np.ndarray, " columns"], special: Int64[np.ndarray, " special"], prior: float, share: float
) -> Float[np.ndarray, " columns"]:
    """Return the numbers to add to each column, float32 nats: the shift for all but special classes, which get 0.

    classes: the class of each column, -1 the dustbin. special: the special classes. In a softmax over all classes this
    raises every other column alike. It is exact if the targets of other rows have no mass on special classes.
    """
    others = ~np.isin(classes, special)
    return np.where(others, dustbin_shift(prior, share), 0.0).astype(np.float32)


def correct_dustbin(
    logits: Float[np.ndarray, "rows columns"],
    classes: Int64[np.ndarray, " columns"],
    head: Mapping[str, Any],
) -> tuple[Float[np.ndarray, "rows columns"], dict[str, Any]]:
    """Correct a specialist's logits for the share of special rows in the transfer set.

    logits: of its set and the dustbin, nats, as it was trained, any additive constant a row.
    classes: the class of each column, of which one is -1.
    head: `prior`, `share`, and whether the correction is in already (`dustbin_corrected`).
    Returns the corrected logits and the head that states it. Raises ConfigError for logits that are corrected already, or
    have no dustbin.

    >>> z, head = correct_dustbin(np.zeros((1, 2)), np.array([7, -1]), {"prior": 0.1, "share": 0.5})
    >>> (np.exp(z) / np.exp(z).sum()).round(3).tolist(), head["dustbin_corrected"]
    ([[0.1, 0.9]], True)
    """
    if head.get(CORRECTED):
        raise ConfigError(
            "dustbin",
            expected="logits as the specialist was trained",
            found="logits that are corrected already",
            remedy="take them as they are",
        )
    columns = np.flatnonzero(classes == DUSTBIN)
    if len(columns) != 1:
        raise ConfigError(
            "dustbin: classes",
            expected="one column of class -1",
            found=f"{len(columns)}",
            remedy="give the logits of a specialist with a dustbin class",
        )
    corrected = logits.copy()
    corrected[:, columns[0]] += dustbin_shift(head["prior"], head["share"])
    return corrected, {**head, CORRECTED: True}
