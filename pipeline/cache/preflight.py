"""Is a teacher fit to be run for hours? It is run on one batch, before anything is written.

1. Its logits have the classes of the transfer set, and can be stored.
2. A batch that does not fit the device is halved until one does. The batch is part of what a capture is: one that has
   blocks keeps its own, and is not tried out again.
3. Outputs that look like probabilities are stored as they are, with a warning that shows the evidence.
"""

import logging

import numpy as np
from jaxtyping import Float32, Shaped
from torch import OutOfMemoryError

from ...storage.encodings.encoding import Encoding
from ...storage.errors import BadLogitsError
from ..experiment.document import Experiment
from ..runtime.inference import Runner, check_classes

log = logging.getLogger(__name__)


_SUM_ERROR = {"float32": 1e-4, "bfloat16": 2e-2, "float16": 2e-3}
"""How far from 1 the sum of a softmax may be, by the precision in which it was computed."""


def try_out(
    experiment: Experiment,
    first: Shaped[np.ndarray, "rows ..."],
    runner: Runner,
    columns: int,
    encoding: Encoding,
) -> None:
    """Run a teacher of which nothing is there on a batch of the first rows; its batch is one that fits then.

    first: inputs of the first rows, a batch of them or more; fewer where the transfer set has no more. columns: logits
    of a row that it is to have. encoding: how they will be stored.
    Raises BadLogitsError for a teacher that fails, or whose logits cannot be stored.
    """
    while True:
        inputs = first[: runner.batch_size]
        try:
            logits = runner.logits(inputs)
        except BadLogitsError as error:
            if not out_of_memory(error):
                raise
            if len(inputs) == 1:
                raise no_room(runner, error, None) from error
            # Of the rows that there are: a batch that is larger than the transfer set is no larger than that.
            runner.batch_size = len(inputs) // 2
            continue
        break
    check_classes(logits, columns, runner.where)
    encoding.encode(logits, 0, runner.where)
    _warn_of_probabilities(logits, runner.where, _SUM_ERROR[experiment.cache.precision])


def out_of_memory(error: BadLogitsError) -> bool:
    """Whether a teacher failed for want of memory on its device."""
    return isinstance(error.__cause__, OutOfMemoryError)


def no_room(runner: Runner, error: BadLogitsError, begun: str | None) -> BadLogitsError:
    """The error of a batch that does not fit, with what can still be set. begun: where blocks of it are; None for none."""
    remedy = "take a device with more memory"
    if runner.batch_size > 1:
        remedy = f"set [cache] batch_size = {runner.batch_size // 2}"
        if begun is not None:
            remedy = (
                f"free memory on the device and run the same command again, or {remedy} and delete {begun}: the "
                "batch is part of what a capture is"
            )
    return BadLogitsError(
        runner.where,
        expected=f"room on the device for a batch of {runner.batch_size} rows",
        found=error.found,
        remedy=remedy,
    )


def _warn_of_probabilities(logits: Float32[np.ndarray, "rows classes"], where: str, error: float) -> None:
    """Say so where every row is a probability of each class: no softmax gives a teacher's back from them."""
    sums = logits.sum(axis=1)
    if logits.min() < 0 or logits.max() > 1 or abs(sums - 1).max() > error:
        return
    log.warning(
        "%s: all %d rows tried lie in 0…1 (from %.3g to %.3g) and sum to 1 (from %.6f to %.6f): these look like "
        "probabilities; let it return its logits, what goes into the softmax",
        where,
        len(logits),
        logits.min(),
        logits.max(),
        sums.min(),
        sums.max(),
    )
