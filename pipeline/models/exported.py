"""Teachers from one exported file of `torch.export` or TorchScript.

    .pt2         written by `torch.export.save`
    .pt, .ts     written by `torch.jit.save` (TorchScript, deprecated since torch 2.13)

Such a file holds the network as well as its weights: **loading it runs code of the file**, and the reader of `.pt2` uses
pickle. The key `file` of an experiment therefore means trust, as `factory` does.
"""

import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Shaped
from torch import Tensor, nn

from ...storage.errors import BadDataError, ConfigError, LogitStoreError
from ..factories.call import describe_exception
from .sources import check_file, unchanged

_EXPORTED, _SCRIPTED = "a torch.export file", "a TorchScript file"
_KINDS = {".pt2": _EXPORTED, ".pt": _SCRIPTED, ".ts": _SCRIPTED}
_TRAINING_FLAGS = {
    **dict.fromkeys(("dropout", "dropout_", "feature_dropout", "alpha_dropout", "native_dropout"), 2),
    **dict.fromkeys(("batch_norm", "native_batch_norm", "_native_batch_norm_legit"), 5),
}
"""By operator, the position of the argument that is True in training mode."""


class Exported(nn.Module):
    """A network from a `torch.export` file, always in evaluation mode."""

    def __init__(self, graph: nn.Module, dtype: torch.dtype, where: str) -> None:
        """Keep the graph, which holds for inputs of the dtype of its export alone. where: the file in messages."""
        super().__init__()
        self.graph, self.dtype, self.where = graph, dtype, where
        self.training = False

    def forward(self, inputs: Shaped[Tensor, "batch ..."]) -> Any:
        """Return the output of the network. Raises BadDataError for inputs of another dtype."""
        if inputs.dtype != self.dtype:
            wanted, found = (str(dtype).removeprefix("torch.") for dtype in (self.dtype, inputs.dtype))
            raise BadDataError(
                self.where,
                expected=f"inputs of {wanted}, with which the network was exported",
                found=f"inputs of {found}",
                remedy="export it again from a row of the transfer set; the network may convert it",
            )
        return self.graph(inputs)

    def train(self, mode: bool = True) -> "Exported":
        """Ignore the mode: the graph was exported in evaluation mode."""
        self.training = False
        return self


def exported(path: Path) -> nn.Module:
    """Load a network from a `torch.export` or TorchScript file, onto the CPU, in evaluation mode.

    Raises ConfigError for another kind of file. Raises BadDataError for a file that cannot be loaded, and for a network
    that was exported in training mode or for one batch size only.
    """
    kind = _check_kind(path)
    with unchanged(path):
        try:
            return _read_exported(path) if kind == _EXPORTED else _read_scripted(path)
        except LogitStoreError:
            raise
        except Exception as error:  # readers of torch raise many kinds
            raise BadDataError(
                str(path),
                expected=f"a network that torch {torch.__version__} can load",
                found=describe_exception(error)[:300],
                remedy="export it again with the installed torch",
            ) from error


def _check_kind(path: Path) -> str:
    """Return the kind of a file, from its suffix and table of contents. Raises ConfigError or BadDataError."""
    wanted = _KINDS.get(path.suffix)
    if wanted is None:
        raise ConfigError(
            str(path),
            expected="a file name that ends in .pt2 (torch.export), .pt or .ts (TorchScript)",
            found=path.suffix or "no suffix",
            remedy="set weights and factory for a file of weights alone",
        )
    check_file(path, wanted)
    names: list[str] = []
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    kind, remedy = "a file of another format", "write it with torch.export.save, or set weights and factory"
    if any("/code/" in name for name in names):
        kind, remedy = _SCRIPTED, "rename it to end in .pt"
    elif any(name.endswith("/models/model.json") for name in names):
        kind, remedy = _EXPORTED, "rename it to end in .pt2"
    elif any(name.endswith("data.pkl") for name in names):
        kind = "a pickle, such as a state dict"
    if kind != wanted:
        raise BadDataError(str(path), expected=wanted, found=kind, remedy=remedy)
    return kind


def _read_scripted(path: Path) -> nn.Module:
    with warnings.catch_warnings():
        # The deprecation of TorchScript concerns those who write such files; the manual mentions it.
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        module: Any = torch.jit.load(str(path), map_location="cpu")
        module.eval()
        for node in _nodes(module.inlined_graph):
            flag = _TRAINING_FLAGS.get(node.kind().removeprefix("aten::"))
            values = list(node.inputs())
            # Of a traced network the flag is a constant, which eval() does not reach.
            if flag is not None and len(values) > flag and values[flag].toIValue() is True:
                raise _trained(path, node.kind().replace("::", "."), "torch.jit.trace")
        return module  # type: ignore[no-any-return]


def _nodes(block: Any) -> Iterator[Any]:
    """Yield the nodes of a TorchScript graph, and those of its branches."""
    for node in block.nodes():
        yield node
        for inner in node.blocks():
            yield from _nodes(inner)


def _trained(path: Path, operator: str, by: str) -> BadDataError:
    return BadDataError(
        str(path),
        expected="a network that was exported in evaluation mode",
        found=f"{operator} in training mode",
        remedy=f"call .eval() on it before {by}",
    )


def _read_exported(path: Path) -> nn.Module:
    program: Any = torch.export.load(str(path))
    for node in program.graph.nodes:
        library, _, operator = str(node.target).partition(".")
        flag = _TRAINING_FLAGS.get(operator.partition(".")[0]) if library == "aten" else None
        if flag is not None and len(node.args) > flag and node.args[flag] is True:
            raise _trained(path, str(node.target), "torch.export.export")
    names = list(program.graph_signature.user_inputs)
    if len(names) != 1:
        raise BadDataError(
            str(path),
            expected="a network of 1 argument, the inputs",
            found=f"{len(names)} arguments ({', '.join(map(str, names))})",
            remedy="wrap it before you export it",
        )
    inputs = next(node for node in program.graph.nodes if node.name == names[0])
    example = inputs.meta["val"]
    size = example.shape[0]
    if isinstance(size, int):
        raise BadDataError(
            str(path),
            expected="a network for batches of any size",
            found=f"a network for batches of {size}",
            remedy="export it with dynamic_shapes=({0: torch.export.Dim('batch')},), from an example of two rows",
        )
    return Exported(program.module(), example.dtype, str(path))
