"""Files of weights: loaded without running code, written whole or not at all.

1. Weights are safetensors. Torch's own `.pt` and `.pth` are read where the caller allows it, with
   `weights_only=True` and a torch whose reader of them has no known hole, and never written. Which reader is used
   follows from the name of the file alone: what one of them refuses is not given to the other.
2. Every name and shape is compared before the first weight is changed; what differs is named.
3. A file is written beside its place, flushed to the disk, and then renamed: whoever reads it sees the
   old one or the new one. Its sha256 is the teacher's identity in a store.
"""

import hashlib
import json
import os
from pathlib import Path
from typing import Any, Final

import safetensors.torch
import torch
from torch import Tensor, nn

from ...storage.backends.posix import replace_file
from ...storage.errors import BadDataError, ConfigError
from .records import weights_digest
from .sources import unchanged

_TORCH_SUFFIXES = (".pt", ".pth", ".bin")
MAX_HEADER_BYTES: Final = 16 << 20
"""Of a safetensors file: 100,000 tensors need about ten."""
SAFE_TORCH: Final = (2, 10)
"""The first torch that checks what a pickle says of its storages (CVE-2026-24747); older ones may run over memory."""


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
            found="a folder" if path.is_dir() else "no plain file" if path.exists() else "nothing there",
            remedy="correct the file name (relative ones start at the experiment file's folder)",
        )
    with unchanged(path):
        if path.suffix == ".safetensors":
            tensors = _read(path, pickled=False)
        elif path.suffix in _TORCH_SUFFIXES and allow_pickle:
            _check_torch(path)
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


def _check_torch(path: Path) -> None:
    """Refuse pickles where the torch that is installed reads them unsafely. Raises ConfigError."""
    version = tuple(int(number) for number in torch.__version__.split("+")[0].split(".")[:2])
    if version < SAFE_TORCH:
        raise ConfigError(
            str(path),
            expected=f"torch {'.'.join(map(str, SAFE_TORCH))} or newer, to read a {path.suffix} file",
            found=f"torch {torch.__version__}",
            remedy="convert the file with safetensors.torch.save_file, or install a newer torch",
        )


def _read(path: Path, *, pickled: bool) -> dict[str, Tensor]:
    try:
        if not pickled:
            _check_header(path)
            return dict(safetensors.torch.load_file(path))
        tensors = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(tensors, dict) or not all(map(_is_plain, tensors.values())):
            raise TypeError("an object that is no mapping of names to tensors")
        if not all(isinstance(name, str) for name in tensors):
            raise TypeError("tensors whose names are no text")
        return tensors
    except Exception as error:  # both parsers raise many kinds; all of them mean that the file is none
        text = " ".join(str(error).split())
        raise BadDataError(
            str(path),
            expected="a state dict of torch tensors" if pickled else "a safetensors file",
            found=f"{type(error).__name__}: {text if len(text) <= 200 else text[:199] + '…'}",
            remedy="write it again, with the state dict of the module alone",
        ) from error


def _is_plain(value: object) -> bool:
    """Return whether a value is a dense tensor of numbers."""
    return isinstance(value, Tensor) and value.device.type == "cpu" and value.layout is torch.strided


def _check_header(path: Path) -> None:
    """Refuse a safetensors header that is too long, or that names a tensor twice. Raises ValueError.

    Everything else of it is checked by the library, which takes the last of two tensors of one name.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise ValueError("a header with a name that occurs twice")
        return found

    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        if size > os.fstat(file.fileno()).st_size - 8:
            return  # the library names what is wrong
        if size > MAX_HEADER_BYTES:
            raise ValueError(f"a header of {size} bytes, where {MAX_HEADER_BYTES} are the most that is read")
        json.loads(file.read(size), object_pairs_hook=unique)


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
        if _number_kind(given[name]) != _number_kind(tensor):
            raise refuse(f"{name!r} of {tensor.dtype}", f"{given[name].dtype}")
    for name in given:
        if name not in own:
            raise refuse(f"only the {len(own)} tensors of the model", f"also {name!r}")


def _number_kind(tensor: Tensor) -> tuple[bool, bool]:
    """Return whether the numbers of a tensor are floating, and whether they are complex."""
    return tensor.is_floating_point(), tensor.is_complex()
