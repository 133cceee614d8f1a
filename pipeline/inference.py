"""How does a network give logits for many rows, and nothing else?

Batch by batch, without gradients, in the precision that is asked for; what is not a tensor of logits is
refused by name. Stage one and the evaluation both run networks through here.
"""

import contextlib
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float32, Shaped
from torch import Tensor, nn

from ..storage.errors import BadLogitsError


def device_of(module: nn.Module) -> torch.device:
    """The device of a module's parameters; the CPU for a module without any."""
    return next((parameter.device for parameter in module.parameters()), torch.device("cpu"))


def run_model(
    module: nn.Module,
    inputs: Shaped[np.ndarray, "rows ..."],
    batch_size: int,
    *,
    where: str,
    precision: Literal["float32", "bfloat16", "float16"] = "float32",
) -> Float32[np.ndarray, "rows classes"]:
    """Logits of `inputs`, which stay as they are.

    precision: that the module computes in; the lower ones are autocast. where: who is run, for messages.
    Raises BadLogitsError where the module does not return a tensor (batch, classes).
    """
    device = device_of(module)
    autocast: Any = contextlib.nullcontext()
    if precision != "float32":
        autocast = torch.autocast(device.type, dtype=getattr(torch, precision))
    parts = []
    with torch.inference_mode(), autocast:
        for start in range(0, len(inputs), batch_size):
            # A copy: a model that works in place spoils neither another view nor another model's input.
            batch = torch.from_numpy(inputs[start : start + batch_size].copy()).to(device)
            logits = module(batch)
            if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(batch):
                shape = f"a tensor of shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else ""
                raise BadLogitsError(
                    where,
                    expected=f"a tensor of logits of shape ({len(batch)}, classes)",
                    found=shape or f"a {type(logits).__name__}",
                    remedy="wrap the model so that it returns its logits alone",
                )
            parts.append(logits.float().cpu())
    return torch.cat(parts).numpy()
