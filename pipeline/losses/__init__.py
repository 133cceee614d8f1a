"""Losses of distillation: from soft targets, from logits, from labels.

With logits z of the student and v of a teacher, temperature T and C classes:

    targets          soft targets: `soften`, `soft_targets` and `ensemble_logits`, for any temperature, weights and mean
    hard             `hard_cross_entropy`, with label smoothing for a baseline
    distillation     `Distillation`: T² · soft cross-entropy + w · hard cross-entropy (Hinton et al. 2015)
    matching         `logit_matching`, `LogitMatching`: the limit of distillation for T → ∞, times C
    decoupled        `DecoupledDistillation`: the target class apart from the others (DKD, Zhao et al. 2022)
    correlation      `Dist`: rows and columns need only correlate (DIST, Huang et al. 2022)
    divergence       `kl_divergence`, `entropy`: figures to watch beside a loss
    standardisation  `standardise`: rows of mean 0 and deviation 1 before any of them (Sun et al. 2024)

`Distillation` takes the targets as probabilities, `soft_targets(batch.logits, T)`; the others take logits,
`ensemble_logits(batch.logits, T)`. docs/losses.md compares them.

Every loss is computed in float32, under autocast too, or in float64 if the logits are float64. None of them waits
for an accelerator.
"""

from ...storage.checks import check_temperature
from .correlation import Dist
from .decoupled import DecoupledDistillation
from .distillation import Distillation
from .divergence import entropy, kl_divergence
from .hard import hard_cross_entropy
from .matching import LogitMatching, logit_matching
from .standardisation import standardise
from .targets import ensemble_logits, ensemble_shares, soft_targets, soften

__all__ = [
    "DecoupledDistillation",
    "Dist",
    "Distillation",
    "LogitMatching",
    "check_temperature",
    "ensemble_logits",
    "ensemble_shares",
    "entropy",
    "hard_cross_entropy",
    "kl_divergence",
    "logit_matching",
    "soft_targets",
    "soften",
    "standardise",
]
