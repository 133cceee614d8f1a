"""The training of a network in hand, from a store, and its scores.

The stage trains the network itself, as it would one of a factory. Identities hold the weights with which a training began.
A script that is run again makes new ones, which a checkpoint replaces: then those of the checkpoint count, with a warning.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from ...storage.api import Store
from ...storage.errors import BadDataError
from ..evaluate.metrics import Accumulator, Metrics
from ..evaluation_set import EvaluationExamples, warn_if_unlike
from ..experiment.tables import EvaluationSet
from ..experiment.training import of_thing
from ..models.records import Models
from ..models.weights import load_weights
from ..runtime.device import choose_device
from ..runtime.inference import device_of, is_placed, place, run_model
from ..train.stage import train_students
from ..train.todo import missing_students, student_seeds
from ..trainer.checkpoints import Checkpoints
from ..trainer.validation import in_words
from ..transfer import Examples
from ..workspace import Workspace
from .data_sets import data_set_in_hand
from .experiments import INITIAL, student_of
from .networks import copy_of, kept_as_they_are, module_in_hand, weights_of

log = logging.getLogger(__name__)
_FETCHED = 4096
"""Examples that are scored together."""


@dataclass(frozen=True)
class Distillation:
    """A training that is asked for."""

    store: Store
    """The store, whose captures the network learns from."""
    network: nn.Module
    """The network, which is trained in place."""
    name: str
    """Name of its files."""
    teachers: Mapping[str, float] | Sequence[str]
    """Captures, with weights or alike."""
    dataset: Any
    """The data set of a store without inputs."""
    augment: Any
    """The augmentation of the captured views."""
    evaluation: Any
    """Labelled examples to score it on."""
    validation: Any
    """Labelled examples to validate it on, or a share of the rows that it does not learn from; None for neither."""
    folder: Path
    """Folder of its files."""
    is_kept: bool
    """Whether the folder stays, so that checkpoints are of use."""
    student: Mapping[str, Any]
    """Keys of `[[student]]`."""
    train: Mapping[str, Any]
    """Keys of `[[student]] train`."""


@dataclass(frozen=True)
class Trained:
    """A network that is trained."""

    was_there: bool
    """Whether it was trained before, so that its weights were loaded."""
    metrics: Metrics | None
    """Its scores; None without an evaluation set."""
    validated: str
    """The best and the last validation in words; empty without one."""


def train_in_hand(asked: Distillation, **settings: Any) -> Trained:
    """Train a network in place, or resume its training, or load its weights; then score it. All ranks call this.

    settings: `device`, `progress`, `ranks` and `outlet` of the workspace. The network ends in evaluation mode, on the device that it
    came from. Raises as `train_students`, and ConfigError or BadDataError for a thing that cannot be used.
    """
    store, network, ranks = asked.store, asked.network, settings["ranks"]
    described = module_in_hand(network, f"student {asked.name!r}")
    models, ours = Models(asked.folder), described.weights
    initial = ranks.first_says(_initial(asked, models) or ours)
    experiment = student_of(
        store,
        described,
        name=asked.name,
        dataset=asked.dataset,
        evaluation=asked.evaluation,
        validation=asked.validation,
        augment=asked.augment,
        teachers=asked.teachers,
        student=asked.student,
        train=_with_checkpoints(asked),
        initial=initial,
    )
    work = Workspace(experiment, store.path, models, **settings)
    vars(work)["store"] = store  # the caller's, which may be a remote one
    examples = None if asked.evaluation is None else EvaluationExamples(experiment, work.rows)
    (run,) = student_seeds(experiment)
    before = device_of(network)
    try:
        if initial != ours and missing_students(work) and ranks.is_first:
            _warn_of_other_weights(asked)
        was_there = not train_students(work)
        if was_there or ranks.size == 1:  # another process may have trained it meanwhile
            load_weights(network, models.weights_path("students", run.name))
            if was_there and ours != initial and ours != weights_of(network):
                _warn_of_other_weights(asked)
        network.eval()
        metrics = None
        if examples is not None and ranks.is_first:
            warn_if_unlike(examples, work.rows)
            place(network, work.choose_device())
            metrics = _metrics(network, examples, 512, f"student {asked.name!r}")
        ranks.wait()
    finally:
        if not is_placed(network):
            network.to(before)
    return Trained(was_there, metrics, in_words(models.recorded_facts("students", run.name)))


def _with_checkpoints(asked: Distillation) -> dict[str, Any]:
    """Return the keys of the training, with a checkpoint about once an epoch if nothing else is asked for."""
    train, size = dict(asked.train), asked.train["batch_size"]
    if asked.is_kept and train["checkpoint_every"] is None and isinstance(size, int) and size > 0:
        shown = asked.store.num_rows * float(asked.student["rows"])
        if isinstance(asked.validation, float):
            shown *= 1 - asked.validation
        if asked.student["views"] == "all":
            shown *= max(asked.store.teachers[name].num_views for name in asked.teachers)
        train["checkpoint_every"] = max(1, round(shown / size))
    return train


def _initial(asked: Distillation, models: Models) -> str | None:
    """Return the digest of the weights with which the training began in an earlier call; None without one."""
    (seed,) = asked.train["seeds"]
    path = models.weights_path("students", f"{asked.name}-seed{seed}")
    kept = [models.recorded_identity("students", path.stem)]
    kept += Checkpoints(path.with_suffix(".checkpoints")).identities()
    for identity in reversed(kept):
        args = (identity or {}).get("args")
        if isinstance(args, Mapping) and isinstance(theirs := args.get(INITIAL), str):
            return theirs
    return None


def _warn_of_other_weights(asked: Distillation) -> None:
    log.warning(
        "%s: the training of %s began with other weights than those that you passed, which it replaces; for a new "
        "training name another checkpoint",
        asked.folder,
        asked.name,
    )


def metrics_of(network: Any, dataset: Any, *, batch_size: int, device: str | None) -> Metrics:
    """Score a network on labelled examples; a copy of it runs. Raises ConfigError or BadDataError for what cannot be used."""
    module_in_hand(network, "network")
    given = data_set_in_hand(dataset, "dataset")
    examples = Examples(of_thing(EvaluationSet, given, "dataset"), Path.cwd(), "dataset")
    with kept_as_they_are([network]):
        module = place(copy_of(network), choose_device(device)).eval()
        return _metrics(module, examples, batch_size, "network")


def _metrics(module: nn.Module, examples: Examples, batch_size: int, where: str) -> Metrics:
    """Score a module on its device, in evaluation mode. Raises BadDataError for examples without labels."""
    accumulator: Accumulator | None = None
    labelled = False
    for start in range(0, len(examples), _FETCHED):
        inputs, labels = examples.fetch(range(start, min(start + _FETCHED, len(examples))))
        logits = run_model(module, inputs, batch_size, where=where)
        accumulator = accumulator or Accumulator(logits.shape[1])
        labelled = labelled or bool((labels >= 0).any())
        accumulator.update(logits, labels)
    if accumulator is None or not labelled:
        raise BadDataError(
            examples.where,
            expected="labelled examples, (input, label)",
            found="a set without labels",
            remedy="evaluate on a labelled set",
        )
    return accumulator.result()
