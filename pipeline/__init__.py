"""How do teachers, classes and students meet in a store? The three stages; torch where a network runs.

    experiment, training_tables, schema        the experiment file, checked
    factories              "package.module:function" strings
    datasets, transfer     transfer sets; their examples in the order of a store
    models, weights        networks; their weights as files
    augment, views         views of a row that anyone can make again; and students get again
    records, agenda        what was made from what, and what is still to do
    provenance             with what else it was made
    fit, optimise, training_log, inference     the training loop and what it says; logits of many rows
    checkpoint, keep       what an interrupted training goes on from
    device, ranks          where a network runs; several processes that train one network
    sources, class_order   of which files a teacher is made; whether its classes are the transfer set's
    hugging_face, exported, named_models       networks of transformers; whole ones in a file; of timm and torchvision
    teachers               teachers from weights, from whole networks, or from labels
    cache                  stage one:   teachers x transfer set -> store
    blocks                 a function over every block of a store, on all cores
    scheduling             tasks on a dask cluster, whose scheduler may be gone
    choose_encoding, fidelity, compress        a capture -> a smaller one, and how far it is from the first
    softened, moments, covariance              stage two:   store -> which classes the predictions move together
    matrix_memory, projection                  where classes x classes do not fit into memory
    kmeans, confusable, confusions             -> confusable sets, and the errors that lie inside them
    cluster, cluster_figure                    -> a sealed part of the store, and its picture
    decode, torch_batch, device_feed, torch_stream    batches of a store, on the device that uses them
    losses, student_loss, train                stage three: store -> students
    specialist_tables, specialist_agenda, specialist_heads, dustbin
    specialists, specialist_captures, specialist_stage    a network for each confusable set, back into the store
    combination, group_masses, combination_reference, combine    generalist + specialists -> one more capture
    same_specialists       whether a combination was made from these
    metrics, results, evaluate, evaluate_combination             how good each of them is
    conditional, coverage, capture_scores      where specialists help, by the captures of a store
    plan, footprint, sampling, trial           what an experiment will cost, before it is run
    run                    all of it, doing only what is not done

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
