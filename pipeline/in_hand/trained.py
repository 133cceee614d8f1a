"""A trained student of an experiment, loaded: its network by the experiment file, its weights by their record.

The record names no code to run: a folder of models that came from elsewhere is data. The factory comes from the experiment
file, and the record is compared with it.
"""

import logging
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Shaped
from torch import nn

from ...storage.errors import BadDataError, ConfigError
from ...storage.identity import as_json, check_same
from ..experiment.document import Experiment, load_experiment
from ..factories.call import suggest
from ..factories.local_code import SOURCE
from ..factories.products import local_code_of
from ..factories.read_files import READ, files_read
from ..models.initial import configuration_digests
from ..models.loaders import stable_name
from ..models.records import Models, Record
from ..models.weights import load_weights
from ..train.network import new_network
from ..train.stage import open_stream
from ..train.todo import StudentSeed, student_seeds
from ..workspace import STORE, Workspace
from .networks import kept_random_state

log = logging.getLogger(__name__)


def trained_student(
    file: Path, name: str, *, seed: int | None = None, out: Path | None = None, models: Path | None = None
) -> nn.Module:
    """Build the network of a trained student, and load its weights; on the CPU, in evaluation mode.

    file: of the experiment. name: of the student. seed: one of its seeds, by default the first. out: folder of the run,
    `runs/<name of the file>` by default. models: folder of the models, by default that in `out`.
    Raises ConfigError for a name or a seed that the experiment does not have, BadDataError for a student that is not trained
    or whose file is damaged, SpecMismatch for one that was trained as another network.
    """
    experiment = load_experiment(file)
    run = _run_of(experiment, str(file), name, seed)
    folder = Path("runs") / file.stem if out is None else out
    kept = Models(models or folder / "models")
    path = kept.weights_path("students", run.name)
    record = kept.record("students", run.name)
    if record is None:
        raise BadDataError(
            str(path.with_suffix(".json")),
            expected="the record of a trained student",
            found=_state_of(path.with_suffix(".json")),
            remedy=f"train it with `logitstore run {file}`, or name the folder of its run in out",
        )
    _check_network(experiment, run, record, str(path))
    with kept_random_state():
        few, classes, names = _inputs_of(experiment, run, record, folder, kept)
        module = new_network(experiment, run, few, classes, names)
    _warn_of_code(experiment, run, record, str(path))
    loaded = load_weights(module, path)
    if loaded != record.weights:
        raise BadDataError(
            str(path),
            expected=f"the weights {record.weights} of its record",
            found=loaded,
            remedy="copy the file and its .json together, or train the student again",
        )
    return module.eval()


def _state_of(record: Path) -> str:
    if record.exists():
        return "a damaged file"
    return "none" if record.parent.is_dir() else f"no folder {record.parent}"


def _run_of(experiment: Experiment, where: str, name: str, seed: int | None) -> StudentSeed:
    """Find one training of a student. Raises ConfigError."""
    runs = [run for run in student_seeds(experiment) if run.student.name == name]
    if not runs:
        known = [student.name for student in experiment.students]
        raise ConfigError(
            where, expected="the name of a student", found=repr(name), remedy=suggest(name, known)
        )
    found = [run for run in runs if seed in (None, run.seed)]
    if not found:
        seeds = ", ".join(str(run.seed) for run in runs)
        raise ConfigError(
            f"{where}: student {name!r}",
            expected=f"a seed of {seeds}",
            found=str(seed),
            remedy="pass one of them",
        )
    return found[0]


def _check_network(experiment: Experiment, run: StudentSeed, record: Record, where: str) -> None:
    """Compare the network of the file with that of the record. Raises SpecMismatch."""
    student, base = run.student, experiment.base
    ours: dict[str, Any] = {"factory": stable_name(student.factory), "args": student.args}
    ours |= {"files": configuration_digests(student, base), READ: files_read([student], base=base)}
    theirs = {key: record.identity.get(key) for key in ours if key in record.identity}
    check_same(
        where,
        as_json({key: value for key, value in ours.items() if value or key in theirs}),
        theirs,
        made="with which it was trained",
        remedy="change the experiment back, or train the student again",
    )


def _warn_of_code(experiment: Experiment, run: StudentSeed, record: Record, where: str) -> None:
    """Warn of local code that has changed since the training; called when the build has imported it."""
    ours, theirs = local_code_of([run.student], base=experiment.base), record.identity.get(SOURCE)
    if isinstance(theirs, dict):
        changed = sorted(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name))
        if changed:
            log.warning(
                "%s: %s changed since the training; its weights may mean another network",
                where,
                ", ".join(changed),
            )


def _inputs_of(
    experiment: Experiment, run: StudentSeed, record: Record, folder: Path, models: Models
) -> tuple[Shaped[np.ndarray, "few ..."], int, list[str] | None]:
    """Return two inputs of zeros, the number of classes and their names, by the record; of an older one, by the store."""
    facts = record.facts
    try:
        shape, dtype = tuple(map(int, facts["input_shape"])), np.dtype(str(facts["input_dtype"]))
        return np.zeros((2, *shape), dtype), int(facts["num_classes"]), facts.get("class_names")
    except (KeyError, TypeError, ValueError):
        work = Workspace(experiment, folder / STORE, models)
        return open_stream(work, run)[1], work.store.num_classes, work.store.class_names
