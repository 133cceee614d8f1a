"""Contents of torch's files and names of their tensors, described in a line if they are no state dict of the model.

Training scripts save more than a state dict: a checkpoint holds it under a key, a wrapper such as DistributedDataParallel
puts "module." before each name, and torch.compile puts "_orig_mod." there. Names whose prefix is all that differs are
renamed. Everything else is refused, with the name of what is in the file and how to take the weights out.
"""

import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from ...storage.errors import BadDataError
from ..factories.call import describe_exception

log = logging.getLogger(__name__)
_COMPILED: Final = "_orig_mod."
"""Prefix that torch.compile puts before the names of a module, at any depth."""
_SHOWN: Final = 5
"""Number of keys, classes or tensors that a message lists."""
_EXPECTED: Final = "a state dict of torch tensors"


def check_state_dict(content: object, path: Path) -> dict[str, Tensor]:
    """Return the content of a torch file if it is a mapping of names to dense tensors on the CPU.

    Raises BadDataError that describes another content, such as a checkpoint that holds a state dict under a key.
    """
    if isinstance(content, dict) and content and all(_is_plain(*item) for item in content.items()):
        return content
    if not isinstance(content, Mapping):
        raise _refused(path, f"a {type(content).__name__}", "save the state dict of the module alone")
    inside = [str(key) for key, value in content.items() if _holds_tensors(value)]
    keys = ", ".join(repr(str(key)) for key in list(content)[:_SHOWN]) + (
        ", …" if len(content) > _SHOWN else ""
    )
    if inside:
        found = f"a checkpoint of {keys or 'no keys'}, with tensors under {' and '.join(map(repr, inside))}"
        raise _refused(path, found, _taken_out(path, inside[0]))
    other = next((name for name, value in content.items() if not _is_plain(name, value)), None)
    if other is None:
        found = "an empty mapping"
    elif isinstance(content[other], Tensor):
        found = f"{other!r}, a tensor that is sparse or on no CPU"
    else:
        found = f"{other!r} of type {type(content[other]).__name__} among its entries"
    raise _refused(path, found, "save the state dict of the module alone")


def refused_pickle(error: Exception, path: Path) -> BadDataError:
    """Return the error for a file that torch does not read: it names the classes in it, or the damage."""
    names = _unsafe_classes(path) or re.findall(r"GLOBAL ([\w.]+) was not an allowed global", str(error))
    if not names:
        text = describe_exception(error)[:200]
        return BadDataError(
            str(path),
            expected=_EXPECTED,
            found=text,
            remedy="write it again, with the state dict of the module alone",
        )
    shown = ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
    if any(name.startswith("torch.nn.modules.") for name in names):
        load = f"torch.load({path.name!r}, weights_only=False).state_dict()"
        return _refused(
            path,
            f"a whole module, whose classes are code: {shown}",
            f"if you trust the file, save {load} alone",
        )
    return _refused(
        path,
        f"objects of {shown}, which are code",
        f"if you trust the file, save the state dict in torch.load({path.name!r}, weights_only=False) alone",
    )


def renamed(given: Mapping[str, Tensor], own: Mapping[str, Any], path: Path) -> dict[str, Tensor]:
    """Return the tensors of a file under the names of the model, if a prefix is all that differs.

    given: tensors of the file. own: tensors of the model. Names that differ otherwise are returned as they are.
    Raises BadDataError if the model's names are there behind a prefix, but not alone.
    """
    if given.keys() == own.keys() or not own or not given:
        return dict(given)
    plain = {name.replace(_COMPILED, ""): tensor for name, tensor in given.items()}
    if plain.keys() == own.keys() and len(plain) == len(given):
        return _said(given, plain, path)
    first = next(iter(own))
    ends = [name.removesuffix(first) for name in plain if name.endswith("." + first)]
    prefixes = [prefix for prefix in ends if all(prefix + name in plain for name in own)]
    if len(plain) == len(given) == len(own) and len(prefixes) == 1:
        return _said(given, {name.removeprefix(prefixes[0]): tensor for name, tensor in plain.items()}, path)
    if prefixes:
        others = _beside(given, {prefixes[0] + name for name in own})
        more = f" and {len(others) - 1} more" if len(others) > 1 else ""
        sets = " and again under ".join(map(repr, prefixes))
        raise BadDataError(
            str(path),
            expected=f"the {len(own)} tensors of the model alone",
            found=f"{first!r} under {sets}, beside {others[0]!r}{more}",
            remedy=f"save the tensors under {prefixes[0]!r} alone, without that prefix"
            if len(prefixes) == 1
            else "save the tensors under one of these alone, without that prefix",
        )
    if ends and all(name.startswith(ends[0]) for name in plain):
        missing = next(name for name in own if ends[0] + name not in plain)
        raise BadDataError(
            str(path),
            expected=f"a tensor {missing!r}",
            found=f"{len(given)} tensors whose names begin with {ends[0]!r}, without {ends[0] + missing!r}",
            remedy="name the weights of this model, or correct the model's args",
        )
    return dict(given)


def _beside(given: Mapping[str, Tensor], wanted: set[str]) -> list[str]:
    """Return the names of a file that are none of `wanted`, or one of them once more in compiled form."""
    rest, missing = [], set(wanted)
    for name in given:
        plain = name.replace(_COMPILED, "")
        if plain in missing:
            missing.remove(plain)
        else:
            rest.append(name)
    return rest


def _said(given: Mapping[str, Tensor], plain: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    log.warning("%s: %r is read as %r, and the other names alike", path, next(iter(given)), next(iter(plain)))
    return plain


def _unsafe_classes(path: Path) -> list[str]:
    """List the classes in a pickle that torch does not make; empty for files of another format."""
    try:
        return sorted(map(str, torch.serialization.get_unsafe_globals_in_checkpoint(path)))
    except Exception:  # noqa: BLE001 - an older torch or format, or a damaged file, whose error the caller has
        return []


def _holds_tensors(value: object) -> bool:
    """Return whether an entry of a checkpoint looks like a state dict."""
    if not isinstance(value, Mapping) or not value:
        return False
    return all(isinstance(name, str) for name in value) and any(
        isinstance(one, Tensor) for one in value.values()
    )


def _taken_out(path: Path, key: str) -> str:
    read = f"torch.load({path.name!r}, weights_only=True)[{key!r}]"
    return f'save that alone: safetensors.torch.save_file({read}, "{path.stem}.safetensors")'


def _is_plain(name: object, value: object) -> bool:
    """Return whether an entry of a state dict is a named dense tensor on the CPU."""
    is_dense = isinstance(value, Tensor) and value.device.type == "cpu" and value.layout is torch.strided
    return isinstance(name, str) and is_dense


def _refused(path: Path, found: str, remedy: str) -> BadDataError:
    return BadDataError(str(path), expected=_EXPECTED, found=found, remedy=remedy)
