"""Files of weights: read without running code, written whole or not at all.

1. Weights are safetensors. Torch's `.pt`, `.pth`, `.bin`, `.tar` and Lightning's `.ckpt` are read on request alone, with
   `weights_only=True` and a torch without known holes in its reader; they are never written. The suffix alone selects the
   reader, and there is no fallback.
2. A state dict inside a checkpoint, or behind a prefix, is found by the names of the model (`checkpoints`). Every name and shape is compared before the first weight is changed. The first difference is named.
3. A file is written beside its place, flushed to the disk, and renamed: readers see the old file or the new one. Its sha256 is
   the teacher's identity in a store.
"""

import hashlib
import json
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from ...storage.backends.posix import open_plain, replace_file
from ...storage.errors import BadDataError, ConfigError
from ..factories.call import describe_exception
from .checkpoints import harmless_classes, refused_pickle, weights_in
from .records import weights_digest
from .sources import check_file, unchanged

_TORCH_SUFFIXES = (".pt", ".pth", ".bin", ".tar", ".ckpt")
"""Of pickles: `.pth.tar` is torch's older habit, `.ckpt` is Lightning's."""
_HEADLESS = "name whole weights of this model, or set reset_classifier = true if they lack the head alone"
_MAX_HEADER_BYTES = 16 << 20
"""Of a safetensors file; 100,000 tensors need about 10 MiB."""
_SAFE_TORCH = (2, 10)
"""The first torch that checks the sizes of a pickle's storages; older ones may read past memory (CVE-2026-24747)."""


def load_weights(
    module: nn.Module,
    path: Path,
    *,
    allow_pickle: bool = False,
    key: str | None = None,
    new: Collection[str] = (),
    classes: int | None = None,
) -> str:
    """Put the weights of a file into a module, all or none, and return the file's digest, "sha256:…".

    path: tensors in `.safetensors`; with `allow_pickle` also in `.pt`, `.pth`, `.pth.tar`, `.bin` and `.ckpt`. They may stand
        under a key, such as "state_dict", and behind a prefix, such as "module.", if there is one such set alone.
    key: the part of the file that is read: a key, a prefix, or both joined by a dot.
    new: names of tensors that the module keeps, whatever the file has under them: those of a new head.
    classes: of a module whose head may be made new; an error then tells how.
    Raises BadDataError if the file is missing, damaged, or has other tensors than the module. Raises ConfigError for another
    suffix, and for a key that the file does not have.
    """
    check_file(path, "a file of weights")
    pickled = path.suffix in _TORCH_SUFFIXES
    if path.suffix != ".safetensors" and not (pickled and allow_pickle):
        remedy = "convert it with safetensors.torch.save_file"
        raise ConfigError(
            str(path),
            expected="a file name that ends in .safetensors",
            found=f"{path.suffix}, a pickle" if pickled else path.suffix or "no suffix",
            remedy=f"{remedy}, or set allow_pickle = true if you trust it" if pickled else remedy,
        )
    with unchanged(path):
        own = module.state_dict()
        read = {name: tensor for name, tensor in own.items() if name not in new}
        headless = "" if classes is None or new else _HEADLESS
        content = _read(path, pickled=pickled)
        tensors = weights_in(content, read, path, key, spare=new, headless=headless)
        if classes is not None:
            _check_head(read, tensors, classes, path)
        _check_tensors(read, tensors, path)
        digest = weights_digest(path)
    module.load_state_dict({**own, **tensors})
    return digest


def save_weights(module: nn.Module, path: Path) -> str:
    """Write a module's weights and buffers as safetensors, atomically, and return the file's digest, "sha256:…".

    Equal weights give equal bytes. Missing parent folders are made. Raises StorageFull or StorageError if the file cannot be
    written; a file that was at `path` before is then kept.
    """
    return save_tensors(module.state_dict(), path)


def save_tensors(tensors: Mapping[str, Tensor], path: Path) -> str:
    """Write the tensors of a state dict as `save_weights` does."""
    # Copies: safetensors refuses tensors that share memory, such as tied weights.
    copies = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    content = safetensors.torch.save(copies)
    replace_file(path, content)
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def check_torch(path: Path) -> None:
    """Refuse pickles if the installed torch reads them unsafely. Raises ConfigError."""
    version = tuple(int(number) for number in torch.__version__.split("+")[0].split(".")[:2])
    if version < _SAFE_TORCH:
        raise ConfigError(
            str(path),
            expected=f"torch {'.'.join(map(str, _SAFE_TORCH))} or newer, to read a {path.suffix} file",
            found=f"torch {torch.__version__}",
            remedy="convert the file with safetensors.torch.save_file, or install a newer torch",
        )


def _read(path: Path, *, pickled: bool) -> object:
    """Return the content of a file: tensors by name, or anything else that a pickle holds. Raises BadDataError."""
    if pickled:
        check_torch(path)
        try:
            with harmless_classes():
                return torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # of many kinds, for damaged files and for objects that are code
            raise refused_pickle(error, path) from error
    try:
        _check_header(path)
        return dict(safetensors.torch.load_file(path))
    except Exception as error:  # the parser raises many kinds; all of them mean a damaged file
        raise BadDataError(
            str(path),
            expected="a safetensors file",
            found=describe_exception(error)[:200],
            remedy="write it again, with the state dict of the module alone",
        ) from error


def _check_header(path: Path) -> None:
    """Refuse a safetensors header that is too long, or that names a tensor twice. Raises ValueError.

    The library checks everything else, but takes the last of two tensors of one name.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        entries = dict(pairs)
        if len(entries) != len(pairs):
            raise ValueError("a header that names a tensor twice")
        return entries

    with open_plain(path) as file:
        size = int.from_bytes(file.read(8), "little")
        if size > os.fstat(file.fileno()).st_size - 8:
            return  # the library reports it
        if size > _MAX_HEADER_BYTES:
            raise ValueError(f"a header of {size} bytes, above the limit of {_MAX_HEADER_BYTES}")
        json.loads(file.read(size), object_pairs_hook=unique)


def _check_head(own: dict[str, Tensor], given: dict[str, Tensor], classes: int, path: Path) -> None:
    """Refuse a head of another number of classes. Raises BadDataError."""
    other = [name for name, tensor in own.items() if given[name].shape != tensor.shape]
    sizes = {tuple(given[name].shape[:1]) for name in other}
    if len(sizes) == 1 and all(
        own[name].shape[:1] == (classes,) and own[name].shape[1:] == given[name].shape[1:] for name in other
    ):
        raise BadDataError(
            str(path),
            expected=f"a head of {classes} classes",
            found=f"a head of {sizes.pop()[0]} classes ({other[0]!r} of shape {tuple(given[other[0]].shape)})",
            remedy="name weights of as many classes, or set reset_classifier = true to begin with a new head",
        )


def _check_tensors(own: dict[str, Tensor], given: dict[str, Tensor], path: Path) -> None:
    """Compare the tensors of a model and of a file by shape and kind of number. Raises BadDataError."""

    def refused(expected: str, found: str) -> BadDataError:
        remedy = "name the weights of this model, or correct the model's args"
        return BadDataError(str(path), expected=expected, found=found, remedy=remedy)

    for name, tensor in own.items():
        if given[name].shape != tensor.shape:
            raise refused(f"{name!r} of shape {tuple(tensor.shape)}", f"shape {tuple(given[name].shape)}")
        if _number_kind(given[name]) != _number_kind(tensor):
            raise refused(f"{name!r} of {tensor.dtype}", f"{given[name].dtype}")
    # Tied weights are one tensor of two names. The last of them would win.
    first: dict[tuple[object, ...], str] = {}
    for name, tensor in own.items():
        if tensor.data_ptr():  # it has memory
            other = first.setdefault((tensor.data_ptr(), tensor.shape, tensor.stride()), name)
            if other != name and not torch.equal(given[other], given[name]):
                raise refused(f"{name!r} equal to {other!r}, which the model ties to it", "other numbers")


def _number_kind(tensor: Tensor) -> tuple[bool, bool]:
    """Return whether the numbers of a tensor are floating, and whether they are complex."""
    return tensor.is_floating_point(), tensor.is_complex()
