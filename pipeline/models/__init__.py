"""Networks and their files: our own small ones, other libraries', weights, and records of what was trained.

The factories that an experiment file names stand here: `logitstore.pipeline.models:mlp`, `…:convnet`. They are looked
up when they are first used, because most of what surrounds them needs no torch.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .networks import MLP, ConvNet, convnet, mlp

__all__ = ["MLP", "ConvNet", "convnet", "mlp"]


def __getattr__(name: str) -> object:
    """Import a public name when it is first asked for (PEP 562)."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from . import networks

    value = globals()[name] = getattr(networks, name)
    return value


def __dir__() -> list[str]:
    return sorted(globals().keys() | set(__all__))
