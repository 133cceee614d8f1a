"""The three stages, from teachers to students: torch where a network runs.

A folder is a command or what several commands stand on; docs/architecture.md has the whole map. The levels, each of
which imports only those before it (tests/packaging/test_layers.py):

    augment, datasets, losses           factories that users name: views, transfer sets, losses
    factories, experiment               "package.module:function" strings; the experiment file, checked
    models, runtime, transfer           networks and their files; devices, ranks, inference; rows of the transfer set
    workspace, views, stream            an experiment's folder; replayed views; batches as tensors
    trainer                             the training loop of any network
    cache                               stage one:   teachers x transfer set -> store
    cluster                             stage two:   store -> sets of confusable classes
    train, specialists, combine         stage three: store -> students; specialists -> one more capture
    compress, evaluate, plan            a smaller capture; scores; costs beforehand
    exchange                            captures to and from plain files
    run                                 every stage of an experiment, skipping finished work
    in_hand                             stages on networks, data sets and augmentations that a caller passes

For a training loop of your own: `TorchStream`, `losses`, `replay` for its inputs, and `to_device` for a `DataLoader`.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from . import losses
    from .stream.batch import TorchBatch
    from .stream.copier import to_device
    from .stream.torch_stream import TorchStream
    from .views import replay

__all__ = ["TorchBatch", "TorchStream", "losses", "replay", "to_device"]
_HOMES = {
    "TorchBatch": "stream.batch",
    "TorchStream": "stream.torch_stream",
    "replay": "views",
    "to_device": "stream.copier",
}


def __getattr__(name: str) -> object:
    """Import a public name when it is first asked for (PEP 562): most modules here need no torch."""
    from importlib import import_module

    from ..storage.extras import naming_extras

    with naming_extras():
        if name == "losses":
            return import_module(f"{__name__}.losses")
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = globals()[name] = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    return value


def __dir__() -> list[str]:
    return list(__all__)
