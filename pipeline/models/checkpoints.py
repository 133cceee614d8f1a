"""The tensors of a network, found in a file of weights as training scripts leave it.

Training scripts save more than a state dict. A checkpoint holds it under a key, a wrapper such as DistributedDataParallel
puts "module." before each name, and torch.compile puts "_orig_mod." there.

    {"epoch": 90, "state_dict": {"module.conv1.weight": …}, "optimizer": …}      read as {"conv1.weight": …}

1. Every mapping of names to tensors in the file is a part, and every prefix of its names is tried.
2. Exactly one part and prefix must hold all tensors of the model, and no others. It is read, and logged.
3. Where several hold them, or others stand beside them, nobody chooses but the user, by `weights_key`.
4. Everything else is refused, with what is in the file.
"""

import argparse
import contextlib
import logging
import re
from collections import deque
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PosixPath
from typing import Any, Final, TypeGuard

import torch
from torch import Tensor

from ...storage.errors import BadDataError, ConfigError
from ..factories.call import describe_exception, suggest

log = logging.getLogger(__name__)
_COMPILED: Final = "_orig_mod."
"""Prefix that torch.compile puts before the names of a module, at any depth."""
_AVERAGED: Final = "n_averaged"
"""Counter that torch.optim.swa_utils.AveragedModel keeps beside the "module." of its network."""
_SHOWN: Final = 5
"""Number of keys, classes or tensors that a message lists."""
_TRIED: Final = 50
"""Names of a model by which prefixes are sought in a file that does not fit."""
_MOST_LEVELS: Final = 4
"""Levels of a checkpoint that are searched for tensors."""
_MOST_SEARCHED: Final = 1000
"""Mappings of a checkpoint that are searched for tensors."""
_EXPECTED: Final = "a state dict of torch tensors"
_OTHER_MODEL: Final = "name the weights of this model, or correct the model's args"


@dataclass(frozen=True)
class _Part:
    """A mapping of names to tensors in a file."""

    key: str
    """Keys that lead to it, joined by dots; empty for the file itself."""
    tensors: Mapping[str, Tensor]
    """Its dense tensors on the CPU, by name."""
    rest: Mapping[str, object] = field(default_factory=dict[str, object])
    """All its other entries."""


@dataclass(frozen=True)
class _Reading:
    """A part, and a prefix of its names under which all tensors of the model are."""

    part: _Part
    prefix: str
    names: Mapping[str, str]
    """Name in the part, by name of the model."""
    beside: tuple[str, ...]
    """Names in the part of tensors that are none of the model's."""

    @property
    def key(self) -> str:
        """The `weights_key` that chooses it; empty for the file itself."""
        return ".".join(filter(None, (self.part.key, self.prefix.rstrip("."))))


def weights_in(
    content: object,
    own: Mapping[str, Any],
    path: Path,
    key: str | None = None,
    *,
    spare: Collection[str] = (),
    headless: str = "",
) -> dict[str, Tensor]:
    """Return the tensors of a model from the content of a file, under the names of the model.

    own: tensors of the model. key: the part of the file to read, and a prefix of its names, joined by dots. spare: names of
    further tensors of the model, which the file may hold and which are not read. headless: remedy for a file that lacks some.
    Raises BadDataError for a file that does not hold exactly these tensors, or several sets of them. Raises ConfigError for a
    key under which there are none.
    """
    parts = _parts(content, path)
    if key is not None:
        parts = _chosen(parts, key, path)
    readings = [reading for part in parts for reading in _readings(part, own, spare)]
    if not readings:
        raise _unfit(content, parts, own, path, headless)
    if len(readings) > 1:
        raise _several(readings, own, path)
    (reading,) = readings
    if reading.beside:
        raise _more(reading, own, path, key)
    if reading.part.rest:
        raise _refused(path, _odd_entry(reading.part), "save the state dict of the module alone")
    _log_reading(reading, path, key)
    return {name: reading.part.tensors[given] for name, given in reading.names.items()}


def _parts(content: object, path: Path) -> list[_Part]:
    """List the mappings in a file that hold tensors. Raises BadDataError for a file without any."""
    if not isinstance(content, Mapping):
        raise _refused(path, f"a {type(content).__name__}", "save the state dict of the module alone")
    parts = list(_found(content))
    if not parts:
        found = f"entries {_listed(content)} without tensors" if content else "an empty mapping"
        raise _refused(path, found, "save the state dict of the module alone")
    return parts


def _found(content: Mapping[Any, object]) -> Iterator[_Part]:
    """Yield the mappings that hold tensors, the outer ones first. One may hold itself: their number is bounded."""
    waiting, searched = deque([("", content, _MOST_LEVELS)]), 0
    while waiting and searched < _MOST_SEARCHED:
        key, mapping, levels = waiting.popleft()
        searched += 1
        if any(isinstance(value, Tensor) for value in mapping.values()) and all(
            isinstance(name, str) for name in mapping
        ):
            tensors = {name: value for name, value in mapping.items() if _is_dense(value)}
            yield _Part(key, tensors, {name: value for name, value in mapping.items() if name not in tensors})
        if levels and len(waiting) < _MOST_SEARCHED:
            waiting += [
                (f"{key}.{name}" if key else name, value, levels - 1)
                for name, value in mapping.items()
                if isinstance(name, str) and isinstance(value, Mapping)
            ]


def _is_dense(value: object) -> TypeGuard[Tensor]:
    """Return whether an entry is a dense tensor on the CPU, which weights are."""
    return isinstance(value, Tensor) and value.device.type == "cpu" and value.layout is torch.strided


def _chosen(parts: list[_Part], key: str, path: Path) -> list[_Part]:
    """Return the tensors under a key, which names a part, or a part and a prefix of its names: more than one such set if dots
    in names make the key ambiguous. Raises ConfigError.
    """
    exact, begin = [part for part in parts if part.key == key], key + "."
    chosen = list(exact)
    for part in parts:
        if exact and (part.key + ".").startswith(begin):
            continue  # the one of that key, or inside it
        whole = {f"{part.key}.{name}" if part.key else name: tensor for name, tensor in part.tensors.items()}
        found = {name.removeprefix(begin): one for name, one in whole.items() if name.startswith(begin)}
        if found:
            chosen.append(_Part(key, found))
    if not chosen:
        known = {part.key for part in parts if part.key} | {
            ".".join(filter(None, (part.key, name.partition(".")[0])))
            for part in parts
            for name in part.tensors
        }
        raise ConfigError(
            str(path),
            expected="a weights_key under which there are tensors",
            found=f"weights_key = {key!r}",
            remedy=suggest(key, known, f"use a key such as {min(known, key=len)!r}"),
        )
    return chosen


def _readings(part: _Part, own: Mapping[str, Any], spare: Collection[str] = ()) -> Iterator[_Reading]:
    """Yield each way in which a part holds all tensors of the model. spare: names of tensors that may stand beside them."""
    if part.tensors.keys() == own.keys():
        yield _Reading(part, "", {name: name for name in own}, ())
        return
    given: dict[str, str] = {}  # the name in the part, by the same without torch.compile's prefix
    for name in sorted(part.tensors, key=lambda name: name.count(_COMPILED), reverse=True):
        given[name.replace(_COMPILED, "")] = name
    ours = {name.replace(_COMPILED, ""): name for name in own}
    first = next(iter(ours), "")
    prefixes = [""] if first in given or not ours else []
    prefixes += [name.removesuffix(first) for name in given if ours and name.endswith("." + first)]
    for prefix in prefixes:
        if all(prefix + name in given for name in ours):
            names = {mine: given[prefix + name] for name, mine in ours.items()}
            unread = (given.get(prefix + name.replace(_COMPILED, "")) for name in spare)
            taken = {*names.values(), *filter(None, unread)}
            beside = tuple(name for name in part.tensors if name not in taken)
            if prefix.endswith("module.") and beside == (prefix.removesuffix("module.") + _AVERAGED,):
                beside = ()
            yield _Reading(part, prefix, names, beside)


def _unfit(
    content: object, parts: list[_Part], own: Mapping[str, Any], path: Path, headless: str
) -> BadDataError:
    """Return the error for a file without all tensors of the model, by its part that has most of them.

    headless: remedy if the file has no others.
    """
    ours = {name.replace(_COMPILED, ""): name for name in own}
    tried = list(ours)[:_TRIED]
    best: tuple[int, _Part, str] = (-1, parts[0], "")
    for part in parts:
        given = {name.replace(_COMPILED, "") for name in part.tensors}
        prefixes = {
            name.removesuffix(mine) for name in given for mine in tried if name.endswith("." + mine)
        } | {""}
        for prefix in sorted(prefixes):
            matching = sum(prefix + name in given for name in ours)
            best = max(best, (matching, part, prefix), key=lambda one: (one[0], len(one[1].tensors)))
    matching, part, prefix = best
    if any(isinstance(value, Tensor) for value in part.rest.values()):
        return _refused(path, _odd_entry(part), "save the state dict of the module alone")
    given = {name.replace(_COMPILED, "") for name in part.tensors}
    missing = [name for plain, name in ours.items() if prefix + plain not in given]
    wanted = {prefix + plain for plain in ours}
    unexpected = [name for name in part.tensors if name.replace(_COMPILED, "") not in wanted]
    found = f"{matching} of them{f' behind {prefix!r}' if prefix else ''} among {_counted(len(part.tensors))}"
    if part.key:
        found += f" under {part.key!r}"
        if isinstance(content, Mapping) and part.key in content:
            found += f" of the keys {_listed(content)}"
    return BadDataError(
        str(path),
        expected=f"the {_counted(len(own))} of the model",
        found=found + _first(", without", missing) + _first(", with", unexpected),
        remedy=headless if headless and matching and not unexpected else _OTHER_MODEL,
    )


def _several(readings: list[_Reading], own: Mapping[str, Any], path: Path) -> BadDataError:
    """Return the error for a file with more than one set of the model's tensors."""
    keys = [reading.key for reading in readings]
    shown = " and ".join(repr(key) if key else "the file itself" for key in keys[:_SHOWN])
    shown += f" and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else ""
    named = [f"weights_key = {key!r}" for key in keys if key][:2]
    return BadDataError(
        str(path),
        expected=f"the {_counted(len(own))} of the model once",
        found=f"{len(keys)} sets of them, under {shown}",
        remedy=f"choose one: set {' or '.join(named)}"
        if len(set(keys)) == len(keys)
        else "save one of these sets alone",
    )


def _more(reading: _Reading, own: Mapping[str, Any], path: Path, key: str | None) -> BadDataError:
    """Return the error for a file with further tensors beside those of the model."""
    twice = {name.replace(_COMPILED, "") for name in reading.beside} & {
        name.replace(_COMPILED, "") for name in reading.names.values()
    }
    under = f"{reading.key}." if reading.key else ""
    inside = [name for name in reading.beside if name.startswith(reading.prefix)]
    remedy = _OTHER_MODEL
    if twice:
        remedy = "save one of the two sets alone"
    elif not inside and reading.key != (key or ""):
        remedy = f"set weights_key = {reading.key!r} to read these alone"
    return BadDataError(
        str(path),
        expected=f"the {_counted(len(own))} of the model alone",
        found=f"all of them{f' under {under!r}' if under else ''}{_first(', beside', reading.beside)}",
        remedy=remedy,
    )


def _log_reading(reading: _Reading, path: Path, key: str | None) -> None:
    """Log how a file is read that is no plain state dict of the model."""
    lines = [] if reading.part.key in ("", key) else [f"the weights are those under {reading.part.key!r}"]
    mine, given = next(((m, g) for m, g in reading.names.items() if m != g), ("", ""))
    if mine:
        lines.append(f"{given!r} is read as {mine!r}, and the other names alike")
    if lines:
        log.warning("%s: %s", path, "; ".join(lines))


def harmless_classes() -> "contextlib.AbstractContextManager[None]":
    """Allow torch's reader the settings and file names that scripts keep beside weights: two classes without code."""
    return torch.serialization.safe_globals([argparse.Namespace, PosixPath])


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
    whole = any(name.startswith("torch.nn.modules.") for name in names)
    return _refused(
        path,
        f"a whole module, whose classes are code: {shown}"
        if whole
        else f"objects of {shown}, which are code",
        "allow_pickle runs no code of a file; if you trust it, call torch.load(…, weights_only=False) in a factory and set "
        "weights = 'factory', or save the state dict alone",
    )


def _unsafe_classes(path: Path) -> list[str]:
    """List the classes in a pickle that torch does not make; empty for files of another format."""
    try:
        with harmless_classes():
            return sorted(map(str, torch.serialization.get_unsafe_globals_in_checkpoint(path)))
    except Exception:  # noqa: BLE001 - an older torch or format, or a damaged file, whose error the caller has
        return []


def _odd_entry(part: _Part) -> str:
    """Describe an entry of a part that no state dict has."""
    tensors = (item for item in part.rest.items() if isinstance(item[1], Tensor))
    name, value = next(tensors, next(iter(part.rest.items())))
    if isinstance(value, Tensor):
        return f"{name!r}, a tensor that is sparse or on no CPU"
    return f"{name!r} of type {type(value).__name__} among its entries"


def _first(word: str, names: "list[str] | tuple[str, ...]") -> str:
    """Return the first of some names after a word, and the number of the others; nothing without names."""
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return f"{word} {names[0]!r}{more}" if names else ""


def _counted(tensors: int) -> str:
    return f"{tensors} tensor{'' if tensors == 1 else 's'}"


def _listed(content: Mapping[Any, object]) -> str:
    keys = [repr(str(key)) for key in list(content)[:_SHOWN]]
    return ", ".join([*keys, "…"] if len(content) > _SHOWN else keys)


def _refused(path: Path, found: str, remedy: str) -> BadDataError:
    return BadDataError(str(path), expected=_EXPECTED, found=found, remedy=remedy)
