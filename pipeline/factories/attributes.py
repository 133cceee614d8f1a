"""Attributes of an object from which its behaviour follows.

A description leaves these out:

    where from      the folder or address of a model of transformers or timm, and the version that wrote it
    for training    the settings that transformers changes while a model runs or learns
    bookkeeping     every attribute that torch sets in an empty `torch.nn.Module`, except for what the module holds

The first two are known by the library whose class sets them: your own attribute of such a name counts.
"""

import functools
import inspect
import logging
import sys
import types
from collections.abc import Iterator, Mapping
from typing import Any, Final

_OURS: Final = __name__.partition(".")[0]
_WHERE_FROM: Final = {"name_or_path", "_name_or_path", "_commit_hash", "transformers_version"}
_LEFT_OUT: Final[Mapping[str, frozenset[str]]] = {
    "transformers": frozenset(
        {
            *_WHERE_FROM,
            "generation_config",  # of `generate` alone
            "gradient_checkpointing",
            "hf_device_map",
            "model_tags",
            "warnings_issued",
        }
    ),
    "timm": frozenset({"pretrained_cfg", "default_cfg"}),  # its address, licence and published mean
    _OURS: frozenset({"where"}),  # a path, for messages
}
"""Attributes by the package of a class that sets them."""
_NO_SETTINGS: Final = frozenset(
    {
        *_WHERE_FROM,
        "architectures",  # set by `save_pretrained`
        "dtype",  # that of the weights
        "torch_dtype",
        "id2label",
        "label2id",
        "problem_type",  # set by a call with labels
        "output_attentions",
        "output_hidden_states",
        "return_dict",
    }
)
"""Attributes of a configuration of transformers from which no logit follows."""
_HELD: Final = ("_parameters", "_buffers", "_modules")
"""Attributes of a module that hold its tensors and parts."""
_HOOKS: Final = ("_forward_pre_hooks", "_forward_hooks")
"""Attributes of a module that hold functions that a call of it runs; their keys count the hooks of the process."""
_WITHOUT_EFFECT: Final = frozenset({"torch", "transformers", "accelerate"})
"""Packages whose hooks move and record tensors, or follow from tensors that are part of an identity."""
_SHOWS: Final = frozenset({"extra_repr", "__repr__", "train", "eval"})
"""Methods that use `training` without a change of the result."""


def own_attributes(thing: Any) -> dict[str, Any]:
    """Return the attributes of an object from which its behaviour follows, by name."""
    own = without_origin(thing, getattr(thing, "__dict__", {}))
    if not is_module(thing):
        return own
    held = {name: own[name] for name in _HELD if own.get(name)} | hooks_of(thing)
    bare = vars(sys.modules["torch"].nn.Module())
    kind: Any = type(thing)  # mypy takes no class for a Hashable
    if "training" in own and _uses_training(kind):
        held["training"] = own["training"]
    return {name: value for name, value in own.items() if name not in bare} | held


def hooks_of(module: Any) -> dict[str, list[Any]]:
    """Return the functions that a call of a module runs before and after its own code, in their order, if there are any."""
    found = {name: list((vars(module).get(name) or {}).values()) for name in _HOOKS}
    own = {
        name: [one for one in hooks if _package(one) not in _WITHOUT_EFFECT] for name, hooks in found.items()
    }
    return {name: hooks for name, hooks in own.items() if hooks}


def _package(function: Any) -> str:
    module = getattr(function, "__module__", None) or type(function).__module__
    return str(module).partition(".")[0]


def without_origin(thing: Any, attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Return attributes of an object without those that only state where it is from."""
    packages = {base.__module__.partition(".")[0] for base in type(thing).__mro__}
    hidden = frozenset[str]().union(*(_LEFT_OUT[one] for one in packages & _LEFT_OUT.keys()))
    return {name: value for name, value in attributes.items() if name not in hidden}


def is_module(thing: Any) -> bool:
    """Return whether an object is a torch.nn.Module. Torch is not imported for it."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(thing, torch.nn.Module)


def is_configuration(thing: Any) -> bool:
    """Return whether an object is a configuration of a model of transformers."""
    return any(
        base.__name__.lower() == "pretrainedconfig" and base.__module__.partition(".")[0] == "transformers"
        for base in type(thing).__mro__
    )


def settings_of(configuration: Any) -> dict[str, Any]:
    """Return the settings of a configuration that are not the default of its class.

    So a setting that a later version of transformers adds, with its default, does not count.
    """
    log = logging.getLogger("transformers")
    level = log.level
    log.setLevel(logging.ERROR)  # parts without settings of their own are named in lines
    try:
        usual = vars(type(configuration)())
    except Exception:  # noqa: BLE001 - a class whose configuration needs arguments
        usual = {}
    finally:
        log.setLevel(level)
    return {
        name: value
        for name, value in sorted(vars(configuration).items())
        if not name.startswith("_")
        and name not in _NO_SETTINGS
        and (name not in usual or _differs(value, usual[name]))
    }


def _differs(value: Any, usual: Any) -> bool:
    if is_configuration(value) and type(value) is type(usual):
        return bool(settings_of(value))
    try:
        return bool(value != usual)
    except (TypeError, ValueError):  # arrays
        return True


@functools.cache  # a network has many modules of few classes
def _uses_training(kind: type) -> bool:
    """Return whether the code of a class of modules reads its mode."""
    module = sys.modules["torch"].nn.Module
    return any(
        "training" in _names(function.__code__)
        for base in kind.__mro__
        if base not in (module, object)
        for name, member in vars(base).items()
        if name not in _SHOWS
        for function in _functions(member)
    )


def _functions(member: Any) -> Iterator[types.FunctionType]:
    parts = [member.fget] if isinstance(member, property) else [getattr(member, "__func__", member)]
    for part in parts:
        function = inspect.unwrap(part) if callable(part) else None
        if isinstance(function, types.FunctionType):
            yield function


def _names(code: types.CodeType) -> set[Any]:
    """Return names and texts in the code of a function, with those of the functions in it."""
    found: set[Any] = {*code.co_names, *(one for one in code.co_consts if isinstance(one, str))}
    return found.union(*(_names(one) for one in code.co_consts if isinstance(one, types.CodeType)))
