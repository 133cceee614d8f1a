"""Digests of the tensors of a module in memory: the identity of a network that no file of weights states.

    the state dict            parameters, buffers, and plain values that some layers keep there
    other buffers             those that are not persistent
    attributes of modules     tensors and NumPy arrays, modules that are not registered, also in lists, tuples and dicts

Tensors of the last two change logits as well, and a state dict does not hold them. Device and memory layout do not count.
Numbers that code sets, such as `eps`, are not read: they follow from the code of the factory.
"""

import hashlib
import io
from collections.abc import Iterator, Mapping
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn

from ...storage.errors import BadDataError, FactoryError
from ...storage.format.documents import canonical_json, json_digest, sha256_hex
from ..factories.in_hand import bytes_of_tensor

_MOST_LEVELS: Final = 4
"""Levels of lists, tuples and dicts that are searched."""
_OWN_ATTRIBUTES: Final = frozenset(vars(nn.Module()))
"""Attributes by which every module keeps its parameters, buffers, parts and hooks."""
_PLAIN: Final = (type(None), bool, int, float, str, torch.dtype, torch.Size)


def tensor_digests(module: nn.Module, where: str) -> dict[str, str]:
    """Return "dtype shape sha256" of each tensor that a module computes with, by name, sorted.

    where: the network in messages. Raises BadDataError for a tensor without data, and for a state dict with objects in it.
    """
    found: dict[str, str] = {}
    for name, value in _values(module, "", set()):
        try:
            found[name] = _digest(value)
        except (TypeError, NotImplementedError, RuntimeError) as error:
            kind = (
                f"{name!r} on the device 'meta'"
                if _is_meta(value)
                else f"{name!r} of type {type(value).__name__}"
            )
            raise BadDataError(
                where,
                expected="tensors whose bytes can be read, as they identify the network",
                found=kind,
                remedy="load the whole network into memory, in layers of plain tensors; or export it, and name that in file",
            ) from error
    return dict(sorted(found.items()))


def state_digest(digests: Mapping[str, str]) -> str:
    """Return "sha256:…" of a module by the digests of its tensors.

    >>> state_digest({"weight": "float32 (2,) 00"})[:7]
    'sha256:'
    """
    return json_digest(dict(digests))


def check_same_tensors(first: Mapping[str, str], again: Mapping[str, str], factory: str) -> None:
    """Compare the networks of two calls of a factory, with other random numbers. Raises FactoryError."""
    names = sorted(name for name in first.keys() | again.keys() if first.get(name) != again.get(name))
    if names:
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        raise FactoryError(
            f"factory {factory!r}",
            expected="the same trained network at each call (weights = 'factory')",
            found=f"{names[0]!r}{more} of {len(again)} tensors drawn at random, or changed since the first call",
            remedy="load all weights in the factory, the head too; if a tensor is random on purpose, call "
            "torch.manual_seed there",
        )


def _values(module: nn.Module, prefix: str, seen: set[int]) -> Iterator[tuple[str, object]]:
    """Yield every tensor of a module, and every other value of its state dict, by name."""
    parts = list(module.named_modules())
    seen |= {id(part) for _, part in parts}
    named: dict[str, object] = dict(module.state_dict())
    named |= {name: value for name, value in module.named_parameters() if name not in named}
    named |= {name: value for name, value in module.named_buffers() if name not in named}
    for name, value in named.items():
        yield prefix + name, value
    for place, part in parts:
        for attribute, value in vars(part).items():
            if attribute not in _OWN_ATTRIBUTES:
                name = f"{place}.{attribute}" if place else attribute
                yield from _outside(value, prefix + name, seen, _MOST_LEVELS)


def _outside(value: object, name: str, seen: set[int], levels: int) -> Iterator[tuple[str, object]]:
    """Yield the tensors and arrays in an attribute of a module."""
    if isinstance(value, Tensor) or (isinstance(value, np.ndarray) and not value.dtype.hasobject):
        yield name, value
    elif isinstance(value, nn.Module):
        if id(value) not in seen:
            yield from _values(value, f"{name}.", seen)
    elif levels and isinstance(value, (list, tuple, dict)):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, item in items:
            yield from _outside(item, f"{name}[{key}]", seen, levels - 1)


def _digest(value: object) -> str:
    """Return "dtype shape sha256" of a tensor, and a digest of a plain value. Raises TypeError for another one."""
    if isinstance(value, np.ndarray):
        value = (
            torch.from_numpy(np.ascontiguousarray(value)) if value.dtype.kind in "biufc" else value.tolist()
        )
    if isinstance(value, Tensor):
        return _of_tensor(value.detach())
    return f"value {sha256_hex(_content(value))}"


def _of_tensor(tensor: Tensor) -> str:
    if _is_meta(tensor):
        raise TypeError("no data")
    content = b""
    if tensor.is_quantized:
        per_channel = tensor.qscheme() in (torch.per_channel_affine, torch.per_channel_symmetric)
        scales: tuple[Any, ...] = (
            (tensor.q_per_channel_scales(), tensor.q_per_channel_zero_points(), tensor.q_per_channel_axis())
            if per_channel
            else (tensor.q_scale(), tensor.q_zero_point())
        )
        content, tensor = _content(scales), tensor.int_repr()
    if tensor.layout is not torch.strided:
        tensor = tensor.to_dense()
    digest = hashlib.sha256(content)
    digest.update(bytes_of_tensor(tensor).data)
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)} {digest.hexdigest()}"


def _content(value: object) -> bytes:
    """Return bytes of a value of a state dict that is no tensor. Raises TypeError for an object."""
    if isinstance(value, _PLAIN):
        return repr(value).encode()
    if isinstance(value, (bytes, bytearray)):
        return bytes(value)
    if isinstance(value, io.BytesIO):
        return value.getvalue()
    if isinstance(value, Tensor):
        return _of_tensor(value.detach()).encode()
    if isinstance(value, Mapping):
        return canonical_json({str(key): sha256_hex(_content(item)) for key, item in value.items()})
    if isinstance(value, (list, tuple)):
        return canonical_json([sha256_hex(_content(item)) for item in value])
    raise TypeError(type(value).__name__)


def _is_meta(value: object) -> bool:
    return isinstance(value, Tensor) and value.device.type == "meta"
