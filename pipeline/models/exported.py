"""Teachers from one exported file: `torch.export` or TorchScript.

    .pt2         written by `torch.export.save`
    .pt, .ts     written by `torch.jit.save` (TorchScript, which torch 2.13 calls deprecated)

Such a file holds the network as well as its numbers: **loading it runs what it holds**, and the reader of `.pt2` uses
pickle. Naming one under `file` in an experiment is the decision to trust it, as naming a factory is.
"""

import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Shaped
from torch import Tensor, nn

from ...storage.errors import BadDataError, ConfigError
from ..factories import describe_exception
from .sources import unchanged

_EXPORTED, _SCRIPTED = (".pt2",), (".pt", ".ts")


class Exported(nn.Module):
    """A network from a `torch.export` file: always as it was exported, in evaluation mode."""

    def __init__(self, graph: nn.Module) -> None:
        """Keep the graph; its parameters are those of this module."""
        super().__init__()
        self.graph = graph
        self.training = False

    def forward(self, inputs: Shaped[Tensor, "batch ..."]) -> Any:
        """Return what the network returns."""
        return self.graph(inputs)

    def train(self, mode: bool = True) -> "Exported":
        """Ignore the mode: an exported graph is always in evaluation mode."""
        self.training = False
        return self


def exported(path: Path) -> nn.Module:
    """Load a network from a `torch.export` or TorchScript file, onto the CPU, in evaluation mode.

    Raises ConfigError for another kind of file, BadDataError where it cannot be loaded, was exported in training
    mode or for one size of batches alone.
    """
    _check_kind(path)
    with unchanged(path):
        try:
            module = _read_exported(path) if path.suffix in _EXPORTED else _read_scripted(path)
        except (BadDataError, ConfigError):
            raise
        except Exception as error:  # readers of torch raise many kinds
            raise BadDataError(
                str(path),
                expected=f"a network that torch {torch.__version__} can load",
                found=describe_exception(error)[:300],
                remedy="export it again with the torch that is installed here",
            ) from error
    return module


def _check_kind(path: Path) -> None:
    """Tell what the file is from its name and its table of contents. Raises ConfigError or BadDataError."""
    if path.suffix not in (*_EXPORTED, *_SCRIPTED):
        raise ConfigError(
            str(path),
            expected="a name that ends in .pt2 (torch.export), .pt or .ts (TorchScript)",
            found=path.suffix or "no suffix",
            remedy="name weights alone in weights, with the factory of their network",
        )
    if not path.is_file():
        raise BadDataError(
            str(path),
            expected="a file of an exported network",
            found="a folder" if path.is_dir() else "nothing there",
            remedy="correct the file name (relative ones start at the experiment file's folder)",
        )
    names: list[str] = []
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    is_script = any("/code/" in name for name in names)
    is_export = any(name.endswith("/models/model.json") for name in names)
    if (is_export if path.suffix in _EXPORTED else is_script) and is_script != is_export:
        return
    found = "neither of them"
    if is_script or is_export:
        found = "a TorchScript file" if is_script else "a torch.export file"
    elif any(name.endswith("data.pkl") for name in names):
        found = "a pickle, such as a state dict"
    raise BadDataError(
        str(path),
        expected="a torch.export file" if path.suffix in _EXPORTED else "a TorchScript file",
        found=found,
        remedy="name it by what it is"
        if is_script or is_export
        else "write it with torch.export.save, or name weights and the factory of their network",
    )


def _read_scripted(path: Path) -> nn.Module:
    with warnings.catch_warnings():
        # That TorchScript is deprecated is for whoever writes such files; the manual says it.
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        module: nn.Module = torch.jit.load(str(path), map_location="cpu")
        return module.eval()


def _read_exported(path: Path) -> nn.Module:
    program: Any = torch.export.load(str(path))
    aten = torch.ops.aten
    placeholders = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    for node in program.graph.nodes:
        if node.op == "call_function" and _is_training(node, aten):
            raise BadDataError(
                str(path),
                expected="a network that was exported in evaluation mode",
                found=f"{node.target} in training mode",
                remedy="call .eval() on it before torch.export.export",
            )
    names = list(program.graph_signature.user_inputs)
    if len(names) != 1:
        raise BadDataError(
            str(path),
            expected="a network of one argument, the inputs",
            found=f"{len(names)}: {', '.join(map(str, names))}",
            remedy="wrap it before it is exported",
        )
    size = placeholders[names[0]].meta["val"].shape[0]
    if isinstance(size, int):
        raise BadDataError(
            str(path),
            expected="a network for batches of any size",
            found=f"a network for batches of {size}",
            remedy="export it with dynamic_shapes=({0: torch.export.Dim('batch')},), from an example of two rows",
        )
    return Exported(program.module())


def _is_training(node: Any, aten: Any) -> bool:
    """Return whether a call of a graph belongs to training: it draws random numbers or uses batch statistics."""
    arguments = list(node.args)
    if node.target in (aten.dropout.default, aten.dropout_.default):
        return len(arguments) > 2 and arguments[2] is True
    if node.target is aten.batch_norm.default:
        return len(arguments) > 5 and arguments[5] is True
    return False
