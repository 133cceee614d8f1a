"""Validation of a training after its epochs, on examples that it does not learn from; the weights of the best epoch.

1. `measure` runs a network in evaluation mode, in float32, and counts accuracy, NLL and KL (`Figures`).
2. `Validation` holds the figures of the last validation, and figures and weights of the best one on the host.
3. A checkpoint holds the best weights, so that a training that is stopped and resumed ends with the same ones.

Several ranks wait for the first, whose weights and statistics of batch normalisation are those that are kept.
"""

import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor, nn
from torch.nn import functional as F

from ...storage.errors import BadDataError
from ..experiment.training import ValidatedTrain
from ..runtime.inference import check_classes, device_of, forward, kept_modes
from ..runtime.ranks import Ranks

BEST = "best"
"""Prefix of the best weights among the tensors of a checkpoint."""


@runtime_checkable
class Labelled(Protocol):
    """A batch of examples on a device."""

    @property
    def inputs(self) -> Tensor | None:
        """(batch, …)."""

    @property
    def labels(self) -> Tensor:
        """(batch,) int64, -1 where unknown."""


Divergences = Callable[[Tensor, Any], Tensor | None]
"""(logits, batch) -> KL from the network to its soft targets of each row, or None without any."""


@dataclass(frozen=True)
class Figures:
    """Figures of a network on some examples; None where they have no labels, or no teachers' logits."""

    rows: int
    """Examples."""
    accuracy: float | None = None
    """Share of the labelled examples that are right."""
    nll: float | None = None
    """Mean negative log-likelihood of the labels, nats."""
    kl: float | None = None
    """Mean KL from the network to its soft targets, nats."""

    def text(self) -> str:
        """Put the figures in words, as in `94.20 % right, NLL 0.1812, KL 0.03112`."""
        parts = [] if self.accuracy is None else [f"{self.accuracy:.2%} right", f"NLL {self.nll:.4g}"]
        return ", ".join(parts + ([] if self.kl is None else [f"KL {self.kl:.4g}"]))


@dataclass(frozen=True)
class Best:
    """The best validated epoch so far."""

    epoch: int
    """Epoch, from 0."""
    figures: Figures
    """Its figures."""
    tensors: Mapping[str, Tensor]
    """Weights and buffers at its end, on the host."""


@torch.no_grad()  # not inference_mode: a module may cache tensors that its training uses later
def measure(
    batches: Iterable[Labelled],
    divergences: Divergences,
    num_classes: int,
    where: str,
    module: nn.Module,
) -> Figures:
    """Return the figures of a network on all batches; its modes and torch's random numbers stay as they are.

    batches: iterated once a call. divergences: (logits, batch) -> KL of each row, or None. where: the network in messages.
    Raises BadLogitsError as `forward`.
    """
    device = device_of(module)
    wide = torch.float32 if device.type == "mps" else torch.float64
    right, nll, kl = (torch.zeros((), dtype=wide, device=device) for _ in range(3))
    rows, labelled, has_kl = 0, torch.zeros((), dtype=torch.int64, device=device), False
    with kept_modes(module), torch.random.fork_rng([device] if device.type == "cuda" else []):
        module.eval()
        for batch in batches:
            assert batch.inputs is not None  # every validation requests batches with inputs
            logits = forward(module, batch.inputs, where).float()
            check_classes(logits, num_classes, where)
            known = batch.labels >= 0
            labels = batch.labels.clamp(min=0)
            own = logits.gather(1, labels[:, None])
            # Of equal logits the first class counts, as in the table of scores; a row with NaN is wrong.
            ties = (logits == own) & (torch.arange(num_classes, device=device) < labels[:, None])
            is_first = ~((logits > own) | ties | logits.isnan()).any(dim=1)
            right += (is_first & known).sum()
            nll += F.cross_entropy(logits, batch.labels, ignore_index=-1, reduction="sum")
            labelled += known.sum()
            rows += len(labels)
            if (each := divergences(logits, batch)) is not None:
                has_kl, kl = True, kl + each.sum()
    count = int(labelled)
    return Figures(
        rows,
        float(right) / count if count else None,
        float(nll) / count if count else None,
        float(kl) / rows if has_kl and rows else None,
    )


def check_labelled(labels: Int64[np.ndarray, " rows"], settings: ValidatedTrain, where: str) -> None:
    """Refuse examples without labels where labels choose the weights. where: the network. Raises BadDataError."""
    if not (labels >= 0).any():
        raise BadDataError(
            f"{where}: train.best_by = {settings.best_by!r}",
            expected="labels on the rows that are held out",
            found=f"none in {len(labels):,} rows",
            remedy="set best_by = 'kl', or add [validation_set]",
        )


class Validation:
    """The validations of one training."""

    def __init__(
        self, settings: ValidatedTrain, source: str, measured: Callable[[nn.Module], Figures]
    ) -> None:
        """Set how a network is measured. source: "held_out", "validation_set" or "evaluation_set", which selects nothing."""
        self._settings, self.source, self._measured = settings, source, measured
        self.selects = source != "evaluation_set"
        """Whether the best epoch is sought."""
        self.keeps_best = settings.keep == "best"
        """Whether its weights are the result."""
        self.last: Figures | None = None
        """Figures of the last validation."""
        self.best: Best | None = None
        """The best epoch so far, on the first rank."""

    def is_due(self, epoch: int, epochs: int) -> bool:
        """Return whether to validate after an epoch."""
        return (epoch + 1) % self._settings.validate_every == 0 or epoch + 1 == epochs

    def validate(self, module: nn.Module, epoch: int, ranks: Ranks) -> tuple[Figures, bool]:
        """Measure a network after an epoch; return its figures, and whether it is the best so far. All ranks call this."""
        if ranks.is_first:
            figures = self._measured(module)
            self.last = figures
            if self.selects and self._is_better(figures):
                tensors = {
                    name: tensor.detach().cpu().clone() for name, tensor in module.state_dict().items()
                }
                self.best = Best(epoch, figures, tensors)
        ranks.wait()  # an evaluation may take longer than a collective
        is_best = self.best is not None and self.best.epoch == epoch
        said = json.dumps([asdict(self.last), is_best]) if self.last is not None else ""
        found, is_best = json.loads(ranks.first_says(said))
        self.last = Figures(**found)
        return self.last, is_best

    def _is_better(self, figures: Figures) -> bool:
        """Return whether figures are better than the best so far; of equal ones the first counts."""
        if getattr(figures, self._settings.best_by) is None:
            return False  # nothing to choose by: `check_labelled` refuses it where the best is to be kept
        return self.best is None or self._rank(figures) > self._rank(self.best.figures)

    def _rank(self, figures: Figures) -> tuple[float, float]:
        """Return numbers that are higher for better figures. Equal accuracies are told apart by the NLL."""

        def lower(value: float | None) -> float:
            return -value if value is not None and math.isfinite(value) else -math.inf

        if self._settings.best_by == "accuracy":
            return figures.accuracy or 0.0, lower(figures.nll)
        return lower(getattr(figures, self._settings.best_by)), 0.0

    # Checkpoints

    @property
    def _of(self) -> list[Any]:
        return [self.source, self._settings.validation, self._settings.best_by]

    def state(self) -> dict[str, Any] | None:
        """Return the state besides tensors, as JSON."""
        best = self.best
        return {"of": self._of, "best": None if best is None else [best.epoch, _as_json(best.figures)]}

    def tensors(self) -> dict[str, Tensor]:
        """Return the best weights, by name."""
        best = {} if self.best is None else self.best.tensors
        return {f"{BEST}/{name}": tensor for name, tensor in best.items()}

    def restore(
        self, state: Mapping[str, Any] | None, tensors: Mapping[str, Tensor], own: Mapping[str, Tensor]
    ) -> None:
        """Restore the best epoch, unless it was chosen on other examples or by another figure.

        own: tensors of the network. Raises ValueError for weights of another one, LookupError or TypeError for another state.
        """
        if state is None or state["of"] != self._of or state["best"] is None:
            return
        epoch, figures = state["best"]
        weights = {
            name.removeprefix(f"{BEST}/"): tensor
            for name, tensor in tensors.items()
            if name.startswith(f"{BEST}/")
        }
        if {name: t.shape for name, t in weights.items()} != {name: t.shape for name, t in own.items()}:
            raise ValueError("best weights of other names or shapes")
        self.best = Best(int(epoch), _of_json(figures), weights)

    def facts(self) -> dict[str, Any]:
        """Return the figures for the record of the network, whose epochs count from 1 as those of the log."""
        best, last = self.best, self.last
        return {
            "on": self.source,
            **({} if best is None else {"best": {"epoch": best.epoch + 1, **_as_json(best.figures)}}),
            **({} if last is None else {"last": _as_json(last)}),
        }


def in_words(facts: Mapping[str, Any]) -> str:
    """Put the validation of a training in words; empty without one. facts: of the record of its network.

    >>> in_words({"validation": {"on": "held_out", "best": {"epoch": 3, "rows": 9, "kl": 0.5}, "last": {"rows": 9, "kl": 1}}})
    'best epoch 3: KL 0.5; last epoch: KL 1'
    """
    validation = facts.get("validation")
    if not isinstance(validation, Mapping):
        return ""
    parts = []
    if isinstance(best := validation.get("best"), Mapping):
        parts.append(f"best epoch {best['epoch']}: {_of_json(best).text()}")
    if isinstance(last := validation.get("last"), Mapping):
        parts.append(f"last epoch: {_of_json(last).text()}")
    return "; ".join(parts)


def _as_json(figures: Figures) -> dict[str, Any]:
    """Return figures as JSON, which has no NaN or infinity."""
    return {
        name: value if math.isfinite(value) else str(value)
        for name, value in asdict(figures).items()
        if value is not None
    }


def _of_json(values: Mapping[str, Any]) -> Figures:
    """Return the figures that `_as_json` returned, with or without an epoch beside them."""
    numbers = {name: float(values[name]) for name in ("accuracy", "nll", "kl") if name in values}
    return Figures(int(values["rows"]), **numbers)
