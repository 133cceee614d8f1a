"""How do weights get into a module and onto a disk, without code in the file and without half a file?

1. Weights are safetensors. Torch's own `.pt` and `.pth` are read where the caller allows it, with
   `weights_only=True`, and never written.
2. Every name and shape is compared before the first weight is changed; what differs is named.
3. A file is written beside its place, flushed to the disk, and then renamed: whoever reads it sees the
   old one or the new one. Its sha256 is the teacher's identity in a store.
"""

import hashlib
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn

from ..storage.errors import BadDataError, ConfigError
from .records import replace_file, weights_digest

_TORCH_SUFFIXES = (".pt", ".pth", ".bin")


def load_weights(module: nn.Module, path: Path, *, allow_pickle: bool = False) -> str:
    """Put the weights of a file into a module, all or none.

    path: `.safetensors`, or with `allow_pickle` also `.pt`, `.pth` and `.bin`: a state dict of tensors.
    Returns the file's digest, "sha256:…". Raises BadDataError if the file is missing, does not parse or
    has other tensors than the module, ConfigError if it is a pickle and those are not allowed.
    """
    if not path.is_file():
        raise BadDataError(
            str(path),
            expected="a file of weights",
            found="a folder" if path.is_dir() else "nothing there",
            remedy="correct the file name (relative ones start at the experiment file's folder)",
        )
    if path.suffix == ".safetensors":
        tensors = _read(path, pickled=False)
    elif path.suffix in _TORCH_SUFFIXES and allow_pickle:
        tensors = _read(path, pickled=True)
    elif path.suffix in _TORCH_SUFFIXES:
        raise ConfigError(
            str(path),
            expected="weights in safetensors",
            found=f"a {path.suffix} file, which is a pickle",
            remedy="convert it with safetensors.torch.save_file, or allow pickles if you trust it",
        )
    else:
        raise ConfigError(
            str(path),
            expected="a name that ends in .safetensors",
            found=path.suffix or "no suffix",
            remedy="rename the file, or convert it with safetensors.torch.save_file",
        )
    _check_tensors(module.state_dict(), tensors, path)
    digest = weights_digest(path)
    module.load_state_dict(tensors)
    return digest


def save_weights(module: nn.Module, path: Path) -> str:
    """Write a module's weights and buffers as safetensors, atomically.

    The same weights give the same bytes. Missing parent folders are made.
    Returns the file's digest, "sha256:…". Raises StorageFull or StorageError if it cannot be written;
    what stood at `path` before is then still there.
    """
    # Copies: safetensors refuses tensors that share memory, such as tied weights.
    tensors = {
        name: tensor.detach().cpu().contiguous().clone() for name, tensor in module.state_dict().items()
    }
    content = safetensors.torch.save(tensors)
    replace_file(path, content)
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def _read(path: Path, *, pickled: bool) -> dict[str, Tensor]:
    try:
        if not pickled:
            return dict(safetensors.torch.load_file(path))
        tensors = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(tensors, dict) or not all(isinstance(value, Tensor) for value in tensors.values()):
            raise TypeError("an object that is no mapping of names to tensors")
        return tensors
    except Exception as error:  # both parsers raise many kinds; all of them mean that the file is none
        text = " ".join(str(error).split())
        raise BadDataError(
            str(path),
            expected="a state dict of torch tensors" if pickled else "a safetensors file",
            found=f"{type(error).__name__}: {text if len(text) <= 200 else text[:199] + '…'}",
            remedy="write it again, with the state dict of the module alone",
        ) from error


def _check_tensors(own: dict[str, Tensor], given: dict[str, Tensor], path: Path) -> None:
    def refuse(expected: str, found: str) -> BadDataError:
        return BadDataError(
            str(path),
            expected=expected,
            found=found,
            remedy="name the weights of this very model, or correct the model's args",
        )

    for name, tensor in own.items():
        if name not in given:
            raise refuse(f"a tensor {name!r}", f"none among the {len(given)} of the file")
        if given[name].shape != tensor.shape:
            raise refuse(f"{name!r} of shape {tuple(tensor.shape)}", f"{tuple(given[name].shape)}")
        if given[name].is_floating_point() != tensor.is_floating_point():
            raise refuse(f"{name!r} of {tensor.dtype}", f"{given[name].dtype}")
    for name in given:
        if name not in own:
            raise refuse(f"only the {len(own)} tensors of the model", f"also {name!r}")
