"""The network of a student: built anew, and the weights with which its training begins put into it.

A new head (`reset_classifier`) is the tensors whose shapes follow from the number of classes. The network is built twice to
find them, once with one class more. Of a model of Hugging Face it is all tensors above the base model.
"""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Shaped
from torch import nn

from ...storage.errors import BadDataError, ConfigError
from ..experiment.document import Experiment
from ..models.build import build_model
from ..models.hugging_face import ImageClassifier, SequenceClassifier
from ..models.initial import initial_weights
from ..models.untrained import head_of, load_folder
from ..models.weights import load_weights
from ..trainer.trial import make_lazy_layers
from .todo import StudentSeed

log = logging.getLogger(__name__)
_logged: set[str] = set()
"""Lines that were logged: a network is built for a trial, and again for each seed."""
_SHOWN = 4
"""Tensors of a new head that are logged."""


def new_network(
    experiment: Experiment,
    run: StudentSeed,
    few: Shaped[np.ndarray, "few ..."],
    num_classes: int,
    class_names: Sequence[str] | None = None,
) -> nn.Module:
    """Build the network of a student of one seed with new weights, on the CPU.

    few: one or two inputs. class_names: of the store, if it has any. Raises FactoryError, ConfigError or BadDataError for a
    network that cannot be made.
    """
    student = run.student
    path = student.path_of(experiment.base)
    module = build_model(
        student,
        experiment,
        input_shape=few.shape[1:],
        num_classes=num_classes,
        seed=run.seed,
        more={} if path is None else {"path": path, "class_names": class_names},
    )
    return make_lazy_layers(module, few, num_classes, f"student {student.name!r}")


def begun_network(
    experiment: Experiment,
    run: StudentSeed,
    few: Shaped[np.ndarray, "few ..."],
    num_classes: int,
    class_names: Sequence[str] | None = None,
) -> tuple[nn.Module, str | None]:
    """Build the network of a student as its training begins; with it "sha256:…" of the weights that it begins with, if any.

    Raises as `new_network`, and BadDataError for weights that do not fit.
    """
    student, path = run.student, initial_weights(run.student, experiment.base)
    if path is None:
        _check_new(run, experiment.base)
        return new_network(experiment, run, few, num_classes, class_names), None
    other: Mapping[str, torch.Size] | None = None
    if student.reset_classifier and student.hugging_face is None:
        # Before the network itself, whose random numbers it thus does not change.
        built = new_network(experiment, run, few, num_classes + 1)
        other = {name: tensor.shape for name, tensor in built.state_dict().items()}
        del built
    module = new_network(experiment, run, few, num_classes, class_names)
    with torch.random.fork_rng([]):  # a reader of weights may draw random numbers
        digest, head = _load(run, module, path, num_classes, other)
    if student.reset_classifier:
        shown = ", ".join(head[:_SHOWN]) + (f" and {len(head) - _SHOWN} more" if len(head) > _SHOWN else "")
        _log_once(
            f"student {student.name!r}: begins with {path}, but for a new head of {num_classes} classes: {shown}"
        )
    return module, digest


def _load(
    run: StudentSeed, module: nn.Module, path: Path, num_classes: int, other: Mapping[str, torch.Size] | None
) -> tuple[str, list[str]]:
    """Put weights into a network; return their digest, and the tensors that stay new.

    other: shapes of the tensors of the same network with one class more, if its head is to be new.
    """
    student = run.student
    inner, head = module, list[str]()
    if isinstance(module, (ImageClassifier, SequenceClassifier)):
        if path.is_dir():
            return load_folder(module, path, reset=student.reset_classifier, classes=num_classes)
        inner = module.model
        head = head_of(module) if student.reset_classifier else []
    elif other is not None:
        head = [name for name, tensor in module.state_dict().items() if other.get(name) != tensor.shape]
        if not head:
            raise ConfigError(
                f"student {student.name!r}: reset_classifier",
                expected="a network whose last layer follows from num_classes",
                found=f"the same tensors for {num_classes} and {num_classes + 1} classes",
                remedy="give the factory a parameter num_classes, or remove reset_classifier",
            )
    digest = load_weights(
        inner,
        path,
        allow_pickle=student.allow_pickle,
        key=student.weights_key,
        new=head,
        classes=num_classes,
    )
    return digest, head


def _check_new(run: StudentSeed, base: Path) -> None:
    """Warn of a folder of Hugging Face without weights, which may have been forgotten. Raises BadDataError."""
    student, path = run.student, run.student.path_of(base)
    if path is None or not path.is_dir():
        return
    where = f"student {student.name!r}"
    if student.reset_classifier:
        raise BadDataError(
            where,
            expected="weights beside reset_classifier",
            found=f"no model.safetensors in {path}",
            remedy="copy it there, or remove reset_classifier",
        )
    _log_once(
        f"{where}: no model.safetensors in {path}: begins with new weights (name config.json for these)"
    )


def _log_once(line: str) -> None:
    if line not in _logged:
        _logged.add(line)
        log.warning("%s", line)
