"""Networks and their files: our own networks, networks of other libraries, weights, and records of trained models.

Experiment files name the factories `logitstore.pipeline.models:mlp` and `…:convnet`. These names are imported on first use,
as most callers need no torch.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .networks import MLP, ConvNet, convnet, mlp

__all__ = ["MLP", "ConvNet", "convnet", "mlp"]


def __getattr__(name: str) -> object:
    """Import a public name on first use (PEP 562)."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from . import networks

    return getattr(networks, name)


def __dir__() -> list[str]:
    return list(__all__)
