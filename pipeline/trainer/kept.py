"""Files that a training leaves beside its weights: the log, TensorBoard's files, and the other of best and last weights.

    small-seed0.safetensors         the result: `keep = "last"` or `"best"`
    small-seed0@best.safetensors    the best validated epoch, where the last is the result
    small-seed0@last.safetensors    the last epoch, where the best is the result
    small-seed0.metrics.jsonl       a line every few steps, every epoch and every validation
    small-seed0.tensorboard/        with `log = "tensorboard"`

No name of a network holds an @, so no network has the name of such a file.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import nn

from ..experiment.training import Train
from ..models.weights import save_tensors, save_weights
from ..runtime.ranks import Ranks
from .log import Outlet, TrainingLog
from .tensorboard import tensorboard
from .validation import Validation


@contextlib.contextmanager
def training_log(
    weights: Path, settings: Train, ranks: Ranks, outlet: Outlet | None = None
) -> Iterator[TrainingLog]:
    """Open the log of a training, on the first rank alone. outlet: a function of the caller that gets the values as well.

    Raises MissingPackage for `log = "tensorboard"` without the package.
    """
    if not ranks.is_first:
        yield TrainingLog(None)
        return
    with contextlib.ExitStack() as stack:
        outlets = [] if outlet is None else [outlet]
        if settings.log == "tensorboard":
            outlets.append(stack.enter_context(tensorboard(weights.with_suffix(".tensorboard"))))
        yield stack.enter_context(TrainingLog(weights.with_suffix(".metrics.jsonl"), outlets))


def keep_both(
    module: nn.Module, weights: Path, validation: Validation | None, ranks: Ranks
) -> dict[str, Any]:
    """Write the weights that are not the result beside it, and leave the result in the module; return facts for the record.

    Without a validation that selects, files of an earlier training are removed. Raises StorageError.
    """
    best = None if validation is None else validation.best
    beside = {name: weights.with_stem(f"{weights.stem}@{name}") for name in ("best", "last")}
    chosen = validation is not None and validation.keeps_best
    if ranks.is_first:
        if best is not None and chosen:
            save_weights(module, beside["last"])
        elif best is not None:
            save_tensors(best.tensors, beside["best"])
        written = None if best is None else "last" if chosen else "best"
        for name, path in beside.items():
            if name != written:
                path.unlink(missing_ok=True)
        if best is not None and chosen:
            module.load_state_dict(dict(best.tensors))
    if chosen:
        ranks.copy_first(module.state_dict().values())
    return {} if validation is None else {"validation": validation.facts()}
