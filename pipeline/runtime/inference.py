"""Inference: the logits of many rows, in batches, without gradients, in a chosen precision.

Networks are user code. All calls, those of training included, go through `forward`, which names the model in errors and
checks its output. `check_model` tries a network on a few rows before a long run.
"""

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, Literal

import numpy as np
import torch
from jaxtyping import Float32, Shaped
from numpy.typing import NDArray
from torch import Tensor, nn

from ...storage.encodings.feature_logits import FeatureLogits, LinearHead, Rows
from ...storage.errors import BadLogitsError, LogitStoreError, is_short_of_memory
from ..factories.call import describe_exception

Precision = Literal["float32", "bfloat16", "float16"]

log = logging.getLogger(__name__)


def device_of(module: nn.Module) -> torch.device:
    """Return the device of a module's first parameter; the CPU for a module without parameters.

    Parameters on the device "meta" are skipped: they are offloaded until use.
    """
    places = (parameter.device for parameter in module.parameters())
    return next((place for place in places if place.type != "meta"), torch.device("cpu"))


def is_placed(module: nn.Module) -> bool:
    """Return whether a module is spread over devices or sharded over processes, and must not be moved.

    Examples are models that Hugging Face has dispatched (`device_map`), models of FSDP, and models with layers on several
    devices. Inputs of such a model go to the device of its first parameter.
    """
    for part in module.modules():
        sharded = "fully_sharded" in type(part).__module__ or "fsdp" in type(part).__module__
        if sharded or getattr(part, "hf_device_map", None):
            return True
    return len({parameter.device for parameter in module.parameters()}) > 1


def place(module: nn.Module, device: torch.device) -> nn.Module:
    """Move a module to a device, unless it is on several devices already."""
    return module if is_placed(module) else module.to(device)


_OF_BYTES: Final = ("unsigned char", "Byte")
"""Words of torch in errors of layers that were given uint8 beside float weights."""


@contextlib.contextmanager
def refusing_failures(where: str, batch: Tensor) -> Iterator[None]:
    """Turn an exception of a model into a BadLogitsError. where: the model in messages. batch: its inputs."""
    try:
        yield
    except LogitStoreError:
        raise
    except Exception as error:
        inputs = f"{str(batch.dtype).removeprefix('torch.')} inputs of shape {tuple(batch.shape)}"
        remedy = f"correct the model for {inputs} (-vv shows the traceback)"
        if batch.dtype == torch.uint8 and any(word in str(error) for word in _OF_BYTES):
            remedy = (
                f"let the model scale its {inputs}: logitstore.pipeline.models.libraries has PixelsToInputs(channels, mean, "
                "std), for its register_forward_pre_hook"
            )
        if isinstance(error, torch.OutOfMemoryError) or is_short_of_memory(error):
            remedy = "lower batch_size, or use another device"
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

    Of a model of Hugging Face for images, `logits` of its output are taken.
    where: the model in messages. Raises BadLogitsError if the module fails, or does not return a tensor (batch, classes).
    """
    num_rows = len(batch)  # before the call, as a module may work in place
    with refusing_failures(where, batch):
        logits = module(batch)
    if not isinstance(logits, Tensor):
        logits = _of_pixels(module, logits)
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != num_rows:
        raise BadLogitsError(
            where,
            expected=f"a tensor of logits of shape ({num_rows}, classes)",
            found=_described(logits),
            remedy="return one row of logits for each input from the model"
            if isinstance(logits, Tensor) and logits.ndim == 2
            else "wrap the model so that it returns its logits alone",
        )
    if not logits.is_floating_point():
        raise BadLogitsError(
            where,
            expected="floating logits",
            found=str(logits.dtype).removeprefix("torch."),
            remedy="return the inputs of the softmax from the model",
        )
    return logits


def _of_pixels(module: nn.Module, output: Any) -> Any:
    """Return the logits in the output of a model of pixel values, and any other output as it is.

    A model of token ids would attend to the tokens that pad its rows, and is refused.
    """
    logits = getattr(output, "logits", None)
    inner = getattr(module, "module", module)  # of DistributedDataParallel
    takes_pixels = getattr(inner, "main_input_name", None) == "pixel_values"
    return logits if takes_pixels and isinstance(logits, Tensor) else output


def check_classes(logits: Shaped[Any, "rows classes"], num_classes: int, where: str) -> None:
    """Raise BadLogitsError if logits and transfer set have different numbers of classes."""
    if logits.shape[1] != num_classes:
        raise BadLogitsError(
            where,
            expected=f"logits of {num_classes} classes, as in the transfer set",
            found=f"logits of {logits.shape[1]} classes",
            remedy=f"give the {where.split()[0]} the classes of the transfer set",
        )


_UNSTEADY: Final = {"float32": 1e-3, "float16": 1e-2, "bfloat16": 5e-2}
"""Largest difference of a row's logits in two runs, in deviations of the logits, by the precision of the computation."""


def check_steady(
    logits: Shaped[Any, "rows classes"],
    again: Shaped[Any, "rows classes"],
    where: str,
    precision: Precision = "float32",
) -> None:
    """Refuse a network that gives other logits when it is run on the same rows again. Raises BadLogitsError."""
    difference, scale = _difference(logits, again)
    if difference > _UNSTEADY[precision] * scale:  # NaN is refused elsewhere
        raise BadLogitsError(
            where,
            expected="the same logits for the same rows in evaluation mode",
            found=f"logits that differ by {difference:.3g} in a second run, where their deviation is {scale:.3g}",
            remedy="switch off dropout and other random layers where module.training is False",
        )


def check_rows(
    run: Callable[[Shaped[np.ndarray, "rows ..."]], Shaped[Any, "rows classes"]],
    inputs: Shaped[np.ndarray, "rows ..."],
    logits: Shaped[Any, "rows classes"],
    where: str,
    precision: Precision = "float32",
) -> None:
    """Refuse a network that is random, and warn of one whose logits of a row depend on the rows beside it.

    run: function from inputs to logits. logits: those of `inputs`. The first half is run again, twice in one batch, which
    thus keeps its shape. Raises BadLogitsError.
    """
    half = max(len(inputs) // 2, 1)
    beside_itself = run(inputs[np.arange(len(inputs)) % half])
    difference, scale = _difference(logits[:half], beside_itself[:half])
    if difference > _UNSTEADY[precision] * scale:  # NaN is refused elsewhere
        check_steady(logits, run(inputs), where, precision)
        log.warning(
            "%s: the logits of a row depend on the other rows of its batch: beside others they differ by %.3g, where their "
            "deviation is %.3g; let batch normalisation use running statistics in evaluation mode (track_running_stats)",
            where,
            difference,
            scale,
        )


def _difference(one: Shaped[Any, "rows classes"], other: Shaped[Any, "rows classes"]) -> tuple[float, float]:
    """Return the largest difference of two runs, and the deviation of the logits of the first."""
    first, second = (np.asarray(each, dtype=np.float64) for each in (one, other))
    return float(np.abs(first - second).max()), max(float(first.std()), 1e-6)


@contextlib.contextmanager
def kept_modes(*modules: nn.Module) -> Iterator[None]:
    """Restore after the block whether each part of some modules is in training mode."""
    modes = [(part, part.training) for module in modules for part in module.modules()]
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


def check_model(
    module: nn.Module, inputs: Shaped[np.ndarray, "rows ..."], num_classes: int, where: str
) -> None:
    """Try a model on a few examples, in evaluation mode, without a change to it or to the random numbers.

    inputs: one or two are enough. where: the model in messages, such as "teacher 'wide'".
    Raises BadLogitsError if it fails, or does not return logits of `num_classes` classes.
    """
    device = device_of(module)
    places = [device] if device.type == "cuda" else []
    # no_grad, not inference_mode: a lazy module makes parameters in its first call, which are trained later
    with kept_modes(module), torch.random.fork_rng(places), torch.no_grad():
        batch = torch.from_numpy(inputs.copy()).to(device)
        logits = forward(module.eval(), batch.clone(), where)
        again = forward(module, batch, where)
    check_classes(logits, num_classes, where)
    check_steady(logits.float().cpu(), again.float().cpu(), where)


def run_model(
    module: nn.Module,
    inputs: Shaped[np.ndarray, "rows ..."],
    batch_size: int,
    *,
    where: str,
    precision: Precision = "float32",
) -> Float32[np.ndarray, "rows classes"]:
    """Return the logits of `inputs`, which are not changed.

    precision: of the computation, by autocast. where: the model in messages. Raises BadLogitsError as `forward` does.
    """
    return Runner(module, where=where, batch_size=batch_size, precision=precision).logits(inputs)


class Runner:
    """A network that is run over many rows."""

    def __init__(
        self,
        module: nn.Module,
        *,
        where: str,
        batch_size: int,
        precision: Precision = "float32",
        compiled: bool = False,
        channels_last: bool = False,
        threads: int | None = None,
        head: LinearHead | None = None,
    ) -> None:
        """Prepare the module.

        where: the model in messages. batch_size: rows per call. compiled: whether the module goes through `torch.compile`.
        channels_last: whether weights and images (batches of four dimensions) have this memory layout. threads: of the CPU,
        on which the last bit of a sum may depend; those of the process by default. head: of a module that gives its inputs,
        features, in the place of logits.
        """
        self.head = head
        """The head that was taken off the module; None for a module that gives logits."""
        self.module, self.where, self.batch_size = module, where, batch_size
        self.device = device_of(module)
        """The device of its inputs."""
        self.threads = threads
        """Threads of the CPU that compute; None for those of the process."""
        self._precision = precision
        self._channels_last = channels_last
        self._run: Any = module
        self.is_compiled = compiled
        """Whether the module goes through `torch.compile`."""
        if channels_last and not is_placed(module):
            module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing in torch's stubs
        if compiled:
            # Code for each shape: the logits of a batch must not depend on the shapes of earlier batches.
            self._run = torch.compile(module, dynamic=False)

    @contextlib.contextmanager
    def mode(self) -> Iterator[None]:
        """Enter inference mode, autocast to the precision of the settings, and the threads."""
        autocast: Any = contextlib.nullcontext()
        if self._precision != "float32":
            autocast = torch.autocast(self.device.type, dtype=getattr(torch, self._precision))
        with torch.inference_mode(), autocast, computing_threads(self.threads):
            yield

    def batches(self, rows: int) -> Iterator[slice]:
        """Yield the slice of rows of each batch."""
        return (slice(start, min(start + self.batch_size, rows)) for start in range(0, rows, self.batch_size))

    def forward(self, batch: Shaped[Tensor, "batch ..."]) -> Shaped[Tensor, "batch classes"]:
        """Return the logits of one batch on the device of the inputs, inside `mode`. Raises BadLogitsError.

        Those of float64 are centred: the largest of a row is 0. Of a module without its head, the features.
        """
        if self._channels_last and batch.ndim == 4:
            batch = batch.contiguous(memory_format=torch.channels_last)
        logits = forward(self._run, batch, self.where)
        if logits.dtype == torch.float64 and self.head is None:
            # float32, in which they leave, has no room for their digits beside a large constant.
            logits = logits - logits.amax(dim=1, keepdim=True)
        return logits

    def logits(
        self,
        inputs: Shaped[np.ndarray, "rows ..."],
        into: Float32[np.ndarray, "rows classes"] | None = None,
    ) -> Float32[np.ndarray, "rows classes"]:
        """Return the logits of `inputs`, or their features, in host memory. into: the array that receives them.

        Raises BadLogitsError as `forward` does, and if `into` has another number of classes.
        """
        result = None if into is None else torch.from_numpy(into)
        with self.mode():
            for rows in self.batches(len(inputs)):
                batch = host_batch(inputs[rows])
                with refusing_failures(self.where, batch):
                    batch = batch.to(self.device)
                logits = self.forward(batch)
                if result is None:
                    with torch.inference_mode(False):
                        result = torch.empty((len(inputs), logits.shape[1]), dtype=torch.float32)
                check_classes(logits, result.shape[1], self.where)
                result[rows] = logits  # cast and copied at once
                del batch, logits  # free their memory before the next batch
        assert result is not None  # there is a row
        return result.numpy()

    def width(self, columns: int) -> int:
        """Return the numbers of a row that the module gives: `columns` logits, or the features of its head."""
        return columns if self.head is None else self.head.num_features

    def rows(self, values: NDArray[Any]) -> NDArray[Any] | Rows:
        """Return what the module gave as rows of logits: the same array, or features and their head."""
        return values if self.head is None else FeatureLogits(values, self.head)


@contextlib.contextmanager
def computing_threads(number: int | None) -> Iterator[None]:
    """Compute in a number of threads, on the CPU; None for those of the process."""
    before = torch.get_num_threads()
    if number in (None, before):
        yield
        return
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def host_batch(
    inputs: Shaped[np.ndarray, "batch ..."], *, pinned: bool = False
) -> Shaped[Tensor, "batch ..."]:
    """Copy inputs to aligned memory of torch: the kernels then do not depend on the start of the batch.

    This is the only copy. It protects other views and models from a model that works in place. pinned: in page-locked memory,
    for asynchronous transfers to a GPU.
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
