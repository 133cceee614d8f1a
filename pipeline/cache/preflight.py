"""Trial of a teacher on one batch, before anything is written and hours are spent.

1. Its logits must have the classes of the transfer set, in a form that can be stored.
2. A batch that does not fit the device is halved until it does. The batch is part of a capture's identity: a capture that
   has blocks keeps its own, and is not tried again.
3. A second run of the same rows must give the same logits: a random layer that is active makes no capture.
4. Logits that depend on the other rows of a batch, outputs that look like probabilities, and logits of pixels that nothing
   scales are stored as they are, with a warning that shows the evidence.
"""

import contextlib
import logging
from collections.abc import Iterator
from typing import Any, Final

import numpy as np
from jaxtyping import Shaped
from torch import OutOfMemoryError, Tensor, nn

from ...storage.checks import warn_of_probabilities
from ...storage.encodings.encoding import Encoding
from ...storage.encodings.feature_logits import check_finite_rows, dense
from ...storage.encodings.products import TILE
from ...storage.encodings.transform import Transform
from ...storage.errors import BadLogitsError, is_short_of_memory
from ..experiment.document import Experiment
from ..runtime.inference import Runner, check_classes, check_rows

log = logging.getLogger(__name__)
_WEIGHTED: Final = (nn.Linear, nn.modules.conv._ConvNd)
"""Layers that multiply their inputs by weights."""
_LAYERS: Final = (
    *_WEIGHTED,
    nn.modules.batchnorm._NormBase,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.RMSNorm,
)
_SUM_ERROR = {"float32": 1e-4, "bfloat16": 2e-2, "float16": 2e-3}
"""Largest distance of the sum of a softmax from 1, by the precision of its computation."""


def try_out(
    experiment: Experiment,
    first: Shaped[np.ndarray, "rows ..."],
    runner: Runner,
    columns: int,
    encoding: Encoding,
) -> None:
    """Run a new teacher on a batch of the first rows, and halve its batch until it fits.

    first: inputs of the first rows, a batch of them or more, or all that there are. columns: number of logits expected in a
    row. encoding: how they will be stored.
    Raises BadLogitsError for a teacher that fails, or whose logits cannot be stored.
    """
    while True:
        inputs = first[: runner.batch_size]
        try:
            with _seeing_pixels(runner) as seen:
                logits = runner.logits(inputs)
        except BadLogitsError as error:
            if not out_of_memory(error):
                raise
            if len(inputs) == 1:
                raise no_room(runner, error, None) from error
            # A batch is never larger than the transfer set.
            runner.batch_size = len(inputs) // 2
            continue
        break
    check_classes(logits, runner.width(columns), runner.where)
    rows = runner.rows(logits)
    if isinstance(encoding, Transform) and encoding.basis is None:
        check_finite_rows(rows, 0, runner.where)  # its calibration finds the rest
    else:
        encoding.encode(dense(rows), 0, runner.where)
    precision = experiment.cache.precision
    check_rows(runner.logits, inputs, logits, runner.where, precision)
    warn_of_probabilities(dense(rows[:TILE] if runner.head else rows), runner.where, _SUM_ERROR[precision])
    if inputs.dtype == np.uint8 and seen == [True]:
        log.warning(
            "%s: its first layer gets uint8 pixels as numbers up to 255: nothing scales or normalises them; "
            "logitstore.pipeline.models.libraries has PixelsToInputs(channels, mean, std), for its register_forward_pre_hook, "
            "unless it was trained on such numbers",
            runner.where,
        )


@contextlib.contextmanager
def _seeing_pixels(runner: Runner) -> Iterator[list[bool]]:
    """Yield a list, whose first item says of a run in the block whether the first layer took whole numbers above 1.

    Layers are linear ones, convolutions and normalisations, which may come first on purpose. A compiled network is not
    looked into.
    """
    seen: list[bool] = []

    def look(layer: nn.Module, args: tuple[Any, ...]) -> None:
        given = next((arg for arg in args if isinstance(arg, Tensor)), None)
        if seen or given is None or not given.is_floating_point():
            return
        values = given.float()
        seen.append(
            isinstance(layer, _WEIGHTED) and bool((values.max() > 1) & (values == values.round()).all())
        )

    layers = [] if runner.is_compiled else [m for m in runner.module.modules() if isinstance(m, _LAYERS)]
    hooks = [layer.register_forward_pre_hook(look) for layer in layers]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def out_of_memory(error: BadLogitsError) -> bool:
    """Return whether a teacher failed for lack of memory on its device."""
    cause = error.__cause__
    return isinstance(cause, OutOfMemoryError) or (cause is not None and is_short_of_memory(cause))


def no_room(runner: Runner, error: BadLogitsError, begun: str | None) -> BadLogitsError:
    """Return the error of a batch that does not fit, with the settings that are left. begun: folder of its blocks, if any."""
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
