"""Inference: the logits of many rows, in batches of one size.

Batch by batch, without gradients, in the precision that is asked for. `forward` is the one place where a
network is called, in training as well: what fails in it, or is not a tensor of logits, is refused by name, as
networks are a user's own code. `check_model` tries a network before time is spent on it.
"""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float32, Shaped
from torch import Tensor, nn

from ...storage.errors import BadLogitsError, LogitStoreError
from ..factories import describe_exception

Precision = Literal["float32", "bfloat16", "float16"]


def device_of(module: nn.Module) -> torch.device:
    """Return the device of a module's first parameter; the CPU for a module without parameters.

    Parameters that wait elsewhere until they are needed (the device "meta") say nothing of it.
    """
    places = (parameter.device for parameter in module.parameters())
    return next((place for place in places if place.type != "meta"), torch.device("cpu"))


def is_placed(module: nn.Module) -> bool:
    """Return whether a module is spread over devices or sharded over processes, and must not be moved.

    So are models that Hugging Face has dispatched (`device_map`), those of FSDP, and whoever has put the layers of a
    model on devices of his own choice. Such a model is given inputs on the device of its first parameter.
    """
    for part in module.modules():
        sharded = "fully_sharded" in type(part).__module__ or "fsdp" in type(part).__module__
        if sharded or getattr(part, "hf_device_map", None):
            return True
    return len({parameter.device for parameter in module.parameters()}) > 1


def place(module: nn.Module, device: torch.device) -> nn.Module:
    """Move a module to a device, unless it is on several devices already."""
    return module if is_placed(module) else module.to(device)


@contextlib.contextmanager
def refusing_failures(where: str, batch: Tensor) -> Iterator[None]:
    """Turn what a model raises into a BadLogitsError. where: who is run. batch: what it was given."""
    try:
        yield
    except LogitStoreError:
        raise
    except Exception as error:
        dtype = str(batch.dtype).removeprefix("torch.")
        remedy = (
            f"mend the model (-vv shows where), which was given {dtype} inputs of shape {tuple(batch.shape)}"
        )
        if isinstance(error, torch.OutOfMemoryError):
            remedy = "lower batch_size, or take another device"
        raise BadLogitsError(
            where,
            expected="logits of shape (batch, classes)",
            found=describe_exception(error),
            remedy=remedy,
        ) from error


def forward(
    module: nn.Module, batch: Shaped[Tensor, "batch ..."], where: str
) -> Shaped[Tensor, "batch classes"]:
    """Return the logits of one batch, without changing the mode of the module or of PyTorch.

    where: who is run, for messages. Raises BadLogitsError where the module fails, or does not return a tensor
    (batch, classes).
    """
    shape = tuple(batch.shape)
    with refusing_failures(where, batch):
        logits = module(batch)
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != shape[0]:
        raise BadLogitsError(
            where,
            expected=f"a tensor of logits of shape ({shape[0]}, classes)",
            found=_described(logits),
            remedy="let the model give one row of logits for each input"
            if isinstance(logits, Tensor) and logits.ndim == 2
            else "wrap the model so that it returns its logits alone",
        )
    if not logits.is_floating_point():
        raise BadLogitsError(
            where,
            expected="floating logits",
            found=str(logits.dtype).removeprefix("torch."),
            remedy="let the model return what goes into its softmax",
        )
    return logits


def check_classes(logits: Shaped[Any, "rows classes"], num_classes: int, where: str) -> None:
    """Raise BadLogitsError where logits are of another number of classes than the transfer set."""
    if logits.shape[1] != num_classes:
        raise BadLogitsError(
            where,
            expected=f"logits of {num_classes} classes, as the transfer set has them",
            found=f"{logits.shape[1]}",
            remedy=f"give the {where.split()[0]} the classes of the transfer set",
        )


def check_model(
    module: nn.Module, inputs: Shaped[np.ndarray, "rows ..."], num_classes: int, where: str
) -> None:
    """Try a model on a few examples, in evaluation mode, and leave no trace in it or in the random numbers.

    inputs: one or two are enough. where: who is tried, such as "teacher 'wide'".
    Raises BadLogitsError where it fails, or gives something else than logits of `num_classes` classes.
    """
    device = device_of(module)
    modes = [(part, part.training) for part in module.modules()]
    try:
        # no_grad, not inference_mode: what a lazy module makes at its first call is trained later
        with torch.random.fork_rng([device] if device.type == "cuda" else []), torch.no_grad():
            logits = forward(module.eval(), torch.from_numpy(inputs.copy()).to(device), where)
    finally:
        for part, training in modes:
            part.training = training
    check_classes(logits, num_classes, where)


def run_model(
    module: nn.Module,
    inputs: Shaped[np.ndarray, "rows ..."],
    batch_size: int,
    *,
    where: str,
    precision: Precision = "float32",
) -> Float32[np.ndarray, "rows classes"]:
    """Return the logits of `inputs`, which are not changed.

    precision: that the module computes in; the lower ones are autocast. where: who is run, for messages.
    Raises BadLogitsError where the module fails, or does not return a tensor (batch, classes).
    """
    return Runner(module, where=where, batch_size=batch_size, precision=precision).logits(inputs)


class Runner:
    """A network as it is run over many rows."""

    def __init__(
        self,
        module: nn.Module,
        *,
        where: str,
        batch_size: int,
        precision: Precision = "float32",
        compiled: bool = False,
        channels_last: bool = False,
    ) -> None:
        """Set the name for messages (`where`) and whether the module goes through `torch.compile`.

        channels_last: whether images (batches of four dimensions) and the weights are laid out so.
        """
        self.module = module
        self.where = where
        self.batch_size = batch_size
        """Rows that it is given at a time."""
        self.device = device_of(module)
        """Where its inputs go."""
        self._precision = precision
        self._channels_last = channels_last
        self._run: Any = module
        if channels_last and not is_placed(module):
            module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing in torch's stubs
        if compiled:
            # Each shape its own code: what a batch gives must not depend on which shapes came before it.
            self._run = torch.compile(module, dynamic=False)

    @contextlib.contextmanager
    def mode(self) -> Iterator[None]:
        """Enter inference mode and autocast to the precision of the settings."""
        autocast: Any = contextlib.nullcontext()
        if self._precision != "float32":
            autocast = torch.autocast(self.device.type, dtype=getattr(torch, self._precision))
        with torch.inference_mode(), autocast:
            yield

    def batches(self, rows: int) -> Iterator[slice]:
        """Yield the slice of rows of each batch."""
        return (slice(start, min(start + self.batch_size, rows)) for start in range(0, rows, self.batch_size))

    def forward(self, batch: Shaped[Tensor, "batch ..."]) -> Shaped[Tensor, "batch classes"]:
        """Return the logits of one batch on the device of the inputs, inside `mode`. Raises BadLogitsError."""
        if self._channels_last and batch.ndim == 4:
            batch = batch.contiguous(memory_format=torch.channels_last)
        return forward(self._run, batch, self.where)

    def logits(
        self,
        inputs: Shaped[np.ndarray, "rows ..."],
        into: Float32[np.ndarray, "rows classes"] | None = None,
    ) -> Float32[np.ndarray, "rows classes"]:
        """Return the logits of `inputs` in host memory. into: the array that receives them.

        Raises BadLogitsError, also for another number of classes than `into` has.
        """
        found = None if into is None else torch.from_numpy(into)
        with self.mode():
            for rows in self.batches(len(inputs)):
                batch = host_batch(inputs[rows])
                with refusing_failures(self.where, batch):
                    batch = batch.to(self.device)
                logits = self.forward(batch)
                if found is None:
                    with torch.inference_mode(False):
                        found = torch.empty((len(inputs), logits.shape[1]), dtype=torch.float32)
                check_classes(logits, found.shape[1], self.where)
                found[rows] = logits  # cast and copied at once
                del batch, logits  # not held while the next ones are made
        assert found is not None  # there is a row
        return found.numpy()


def host_batch(
    inputs: Shaped[np.ndarray, "batch ..."], *, pinned: bool = False
) -> Shaped[Tensor, "batch ..."]:
    """Copy inputs to aligned memory of torch: kernels then take the same path wherever the batch starts.

    A copy, since a model that works in place must spoil neither another view nor another model's input; it is the
    only one. pinned: in page-locked memory, from which a GPU takes it by itself.
    """
    sample = torch.from_numpy(np.empty(0, inputs.dtype))
    batch = torch.empty(inputs.shape, dtype=sample.dtype, pin_memory=pinned)
    batch.numpy()[...] = inputs
    return batch


def _described(output: object) -> str:
    if isinstance(output, Tensor):
        return f"a tensor of shape {tuple(output.shape)}"
    if isinstance(output, Mapping):
        return f"a {type(output).__name__} of {', '.join(repr(key) for key in output) or 'nothing'}"
    return f"a {type(output).__name__}"
