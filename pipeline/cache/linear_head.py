"""The last layer of a teacher, taken off, so that only its inputs are computed, copied and queued.

1. The layer is named (`head = "fc"`), or it is the last `Linear` with as many outputs as there are classes (`head = "auto"`).
2. The network is run on 32 rows with the layer, and again with an `Identity` in its place.
3. Both must give the same logits: `weight · output + bias` of the second. So a softcap or a softmax behind the layer, a second
   use of it, or an output that is no row of features for each input is refused, whatever the network does inside.
"""

import logging
from typing import Final

import numpy as np
from jaxtyping import Float32, Shaped
from torch import nn

from ...storage.encodings.feature_logits import FeatureLogits, LinearHead
from ...storage.errors import BadLogitsError, ConfigError, LogitStoreError
from ...storage.format.constants import MAX_BASIS_BYTES
from ..experiment.tables import AUTO
from ..runtime.inference import Runner, check_steady

log = logging.getLogger(__name__)
_DIFFERENCE: Final = {"float16": 1e-2, "bfloat16": 5e-2}
"""Largest difference of logits with and without the layer, in deviations of the logits, by the dtype of its weight."""
_DIFFERENCE_OF_WIDER: Final = 1e-3
_BATCH: Final = 2
"""Rows that are run together: no more than any capture needs memory for."""


def take_head(
    module: nn.Module,
    asked: str,
    inputs: Shaped[np.ndarray, "rows ..."],
    num_classes: int,
    *,
    where: str,
) -> tuple[str, LinearHead]:
    """Replace the head of a network by `Identity`, in place; its name, and its weight and bias.

    asked: the name of the layer, or `AUTO`. inputs: some rows, all over the set: a cap that none of them reaches is not seen. where: the network in messages.
    Raises ConfigError for a name that is no such layer, BadLogitsError for a network whose logits are no linear map of the
    inputs of that layer; the network is then of no use.
    """
    name, layer = _find(module, asked, num_classes, where)
    named = f"{where}: head = {name!r}"
    if layer.weight.is_meta:
        raise ConfigError(
            named,
            expected="a layer whose weight is in memory",
            found="one that is offloaded until use",
            remedy="load the network on one device, or remove head",
        )
    size = 4 * num_classes * min(layer.in_features + 1, num_classes)
    if size > MAX_BASIS_BYTES:
        raise ConfigError(
            named,
            expected=f"a basis of at most {MAX_BASIS_BYTES:,} bytes, the limit of readers",
            found=f"{size:,} bytes, of {layer.in_features} features and {num_classes} classes",
            remedy="remove head, and keep the largest logits: encoding = { top_k = 64 }",
        )
    runner = Runner(module, where=where, batch_size=_BATCH)
    logits = runner.logits(inputs)
    head = LinearHead(layer.weight, layer.bias)
    again = _without(module, name, layer, inputs, head, named)
    tolerance = _DIFFERENCE.get(str(layer.weight.dtype).removeprefix("torch."), _DIFFERENCE_OF_WIDER)
    scale = max(float(logits.std()), 1e-6)
    difference = float(np.abs(_centred(logits) - _centred(again)).max())
    if not difference <= tolerance * scale:
        check_steady(logits, runner.logits(inputs), where)  # a random layer makes them differ as well
        raise _refused(
            named,
            f"its outputs to be the logits, to {tolerance:g} of their deviation {scale:.3g}",
            f"logits that differ by {difference:.3g}",
        )
    _replace(module, name, nn.Identity())
    if head.num_features >= num_classes:
        log.warning(
            "%s: %d features stand for %d logits: nothing is gained; remove head",
            named,
            head.num_features,
            num_classes,
        )
    return name, head


def _without(
    module: nn.Module,
    name: str,
    layer: nn.Linear,
    inputs: Shaped[np.ndarray, "rows ..."],
    head: LinearHead,
    where: str,
) -> Float32[np.ndarray, "rows classes"]:
    """Return the logits of the features that a network gives without its head, which it has again afterwards."""
    _replace(module, name, nn.Identity())
    try:
        features = Runner(module, where=where, batch_size=_BATCH, head=head).logits(inputs)
        return FeatureLogits(features, head).dense()
    except LogitStoreError as error:
        expected = f"{head.num_features} features a row from the network without that layer"
        raise _refused(where, expected, error.found) from error
    finally:
        _replace(module, name, layer)


def _centred(logits: Float32[np.ndarray, "rows classes"]) -> Float32[np.ndarray, "rows classes"]:
    """Subtract the largest of each row: a network of float64 gives logits that are centred, and a softmax sees no constant."""
    centred: Float32[np.ndarray, "rows classes"] = logits - logits.max(axis=1, keepdims=True)
    return centred


def _refused(where: str, expected: str, found: str) -> BadLogitsError:
    return BadLogitsError(
        where,
        expected=expected,
        found=found,
        remedy="name the layer whose outputs are the logits as they are, or remove head",
    )


def _find(module: nn.Module, asked: str, num_classes: int, where: str) -> tuple[str, nn.Linear]:
    """Return the layer and its name. Raises ConfigError."""
    layers = {name: layer for name, layer in module.named_modules(remove_duplicate=False) if name}
    # Exactly `Linear`: a subclass may compute anything.
    fitting = {
        name: layer
        for name, layer in layers.items()
        if type(layer) is nn.Linear and layer.out_features == num_classes
    }
    chosen = next(reversed(fitting), "") if asked == AUTO else asked
    if chosen in fitting:
        return chosen, fitting[chosen]
    found = "none" if asked == AUTO else "no such module"
    if chosen in layers:
        layer = layers[chosen]
        found = f"a {type(layer).__name__}"
        found += f" with {layer.out_features} outputs" if isinstance(layer, nn.Linear) else ""
    named = " or ".join(repr(name) for name in list(fitting)[-3:])
    raise ConfigError(
        f"{where}: head = {asked!r}",
        expected=f"a torch.nn.Linear of {num_classes} outputs",
        found=found,
        remedy=f"write head = {named}, or remove head" if named else "remove head",
    )


def _replace(module: nn.Module, name: str, layer: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(module.get_submodule(parent), child, layer)
