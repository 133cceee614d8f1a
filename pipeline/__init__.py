"""The three stages from teachers to students, around one store; torch is imported when a network runs.

    run                              every stage, doing only what is missing
    workspace                        an experiment with its store, models and device, as a stage is handed it
    plan, evaluate, compress         what it costs; how good it is; a smaller capture
    cache                            stage one: teachers x transfer set -> logits in the store
    cluster                          stage two: logits -> sets of classes that are confused
    train                            stage three: store -> students
    specialists, combine             a network for each set, back into the store; one more capture
    trainer                          the training loop, its checkpoints and its log
    stream                           batches of a store on the device that uses them
    models, runtime                  networks and their files; devices, ranks, inference
    experiment, factories            the experiment file, and the functions that it names
    datasets, transfer               data sets, and their examples in the order of a store
    augment, views                   views of a row, and their replay for students
    losses                           what a student makes of its teachers' logits

Each stage has two files: `todo` finds what is missing and imports no torch, `stage` does it.

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

    if name == "losses":
        return import_module(f"{__name__}.losses")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    return value
