"""Identities of results, pinned: a later table class or key leaves old stores and models as they are."""

import hashlib
import tomllib
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from logitstore.pipeline.cache.todo import capture_identity, teacher_identity
from logitstore.pipeline.cluster.todo import cluster_identity
from logitstore.pipeline.experiment.document import Experiment, parse_experiment
from logitstore.pipeline.experiment.schema import settled
from logitstore.pipeline.experiment.training import IDLE_KEYS
from logitstore.pipeline.train.todo import student_identity, student_seeds
from logitstore.pipeline.transfer import TransferRows
from logitstore.storage.api import Store
from logitstore.storage.format.documents import canonical_json

SETS = """
[transfer_set]
factory = "m:rows"
"""

TEACHERS = {
    "trained": 'factory = "m:net"\nargs = { hidden = [8, 4] }\nseed = 3\nmembers = 2\n'
    'train = { lr = 1, epochs = 3, optimizer = "sgd", momentum = 0.9, clip_norm = 1.0, '
    'augment = { factory = "m:shift", args = { pixels = 1 } } }',
    "trained plainly": 'factory = "m:net"\ntrain = { lr = 1e-3, epochs = 3 }',
    "weights": 'factory = "m:net"\nweights = "w.pt"\nallow_pickle = true',
    "timm": 'timm = "resnet18"\nargs = { options = { drop_rate = 0.1 } }\nweights = "w.safetensors"',
    "torchvision": 'torchvision = "resnet18"\ntrain = { lr = 1e-3, epochs = 1, label_smoothing = 0.1 }',
    "hugging_face": 'hugging_face = "vit"\nargs = { batch = 2 }',
    "file": 'file = "net.pt2"\ncheck_class_names = false',
}

STUDENTS = {
    "soft": "teachers = { a = 1.0 }\ntrain = { lr = 1, epochs = 3, seeds = [4], checkpoint_every = 2 }",
    "soft, every key": 'teachers = ["a"]\nmean = "geometric"\ntemperature = 4\nhard_weight = 0.5\nviews = "all"\n'
    'loss = { name = "dkd", beta = 2 }\nstandardise = true\n'
    'train = { lr = 1e-2, epochs = 3, optimizer = "adamw", weight_decay = 0.1, ema = 0.9, precision = "bfloat16" }',
    "dist": 'teachers = ["a"]\nloss = "dist"\ntrain = { lr = 1e-2, epochs = 3 }',
    "logit matching": 'teachers = ["a"]\nloss = "logit_matching"\nviews = 0\ntrain = { lr = 1e-2, epochs = 3 }',
    "distillation": 'teachers = ["a"]\nloss = "distillation"\ntrain = { lr = 1e-2, epochs = 3 }',
    "hard": 'targets = "hard"\ntrain = { lr = 1e-2, epochs = 3, label_smoothing = 0.1, warmup_epochs = 1 }',
}

SPECIALISTS = {
    "joint": "train = { lr = 1e-2, epochs = 1 }",
    "dustbin": 'variant = "dustbin"\nhead = "fc"\nsets = [1, 0]\ntrain = { lr = 1e-2, epochs = 1, compile = true }',
    "full": 'variant = "full"\ntemperature = 3\nviews = "all"\ntrain = { lr = 1, epochs = 1, optimizer = "sgd" }',
}

PINNED = {
    "teacher: trained": "6a483983c17ea1a0",
    "teacher: trained plainly": "cd68f7415a3bd80b",
    "teacher: weights": "cc24d9a790e104c8",
    "teacher: timm": "65df8135b34b6715",
    "teacher: torchvision": "805dd4f229744334",
    "teacher: hugging_face": "de969b62ad2f3d6b",
    "teacher: file": "b55fa15a6e051bc3",
    "student: soft": "8f4ef418de5f01b2",
    "student: soft, every key": "2de7d125658f1658",
    "student: dist": "fe549e5d28c5b9d8",
    "student: logit matching": "bda4859568407cec",
    "student: distillation": "a0cd79e539b86879",
    "student: hard": "c41051d5fd9842d0",
    "specialists: joint": "a4913bfa02b1e323",
    "specialists: dustbin": "9ac30debd4533182",
    "specialists: full": "294c267a5870f1e1",
    "cluster": "23c7bd15f596bb15",
}
"""Digest of the identities of each document below.

Those of timm and torchvision changed once, when their loaders got stable names; `tests/pipeline/cache/test_loaders.py`
holds that the old names count as the same.
"""

STORE = mock.Mock(spec=Store)
STORE.digest_of = {
    "samples": "sha256:samples",
    "teachers/a": "sha256:seal",
    "teachers/a-1": "sha256:seal",
}.__getitem__
STORE.num_classes = 10
ROWS = mock.MagicMock(spec=TransferRows)
ROWS.fingerprint = "sha256:rows"
ROWS.__len__.return_value = 100


def documents() -> dict[str, str]:
    """A document for every source of a teacher, every kind of student, every variant."""
    given = SETS + '[[teacher]]\nname = "a"\nfactory = "m:net"\nweights = "a.safetensors"\n'
    cluster = '[cluster]\nteacher = "a"\nclusters = 4\nclasses_per_cluster = 2\n'
    return {
        **{f"teacher: {name}": f'{SETS}[[teacher]]\nname = "a"\n{table}' for name, table in TEACHERS.items()},
        **{
            f"student: {name}": f'{given}[[student]]\nname = "s"\nfactory = "m:net"\n{table}'
            for name, table in STUDENTS.items()
        },
        **{f"specialists: {name}": f"{given}{cluster}[specialists]\n{t}" for name, t in SPECIALISTS.items()},
        "cluster": given + cluster.replace('teacher = "a"', 'teachers = ["a"]\ndisjoint = true\nseed = 1'),
    }


def identities(experiment: Experiment) -> dict[str, Any]:
    """Every identity that follows from a document, with stand-ins for the store and the transfer set."""
    made: dict[str, Any] = {}
    for member in experiment.teacher_members():
        made[f"weights {member.name}"] = str(member.weights)
        if member.teacher.train is not None:
            made[f"teacher {member.name}"] = teacher_identity(member, ROWS)
        if not member.teacher.is_whole:  # of a whole model, the files are read
            made[f"capture {member.name}"] = capture_identity(experiment, member, ROWS, "sha256:w")
        made[f"factory {member.name}"] = [member.teacher.factory, member.teacher.args]
    for run in student_seeds(experiment):
        made[f"student {run.name}"] = student_identity(experiment, run, STORE)
    if experiment.cluster is not None:
        made["cluster"] = cluster_identity(STORE, experiment.cluster)
    if (table := experiment.specialists) is not None:
        later, idle = (
            {"clip_norm", "ema", "label_smoothing", "precision"},
            {"compile", *IDLE_KEYS},
        )
        made["specialists"] = {
            key: getattr(table, key) for key in ("variant", "views", "head", "temperature", "seed", "sets")
        }
        made["specialists"]["train"] = settled(table.train, later=later, idle=idle)
    return made


def digest(text: str) -> str:
    experiment = parse_experiment(tomllib.loads(text), where="a.toml", base=Path("base"))
    return hashlib.sha256(canonical_json(identities(experiment))).hexdigest()[:16]


@pytest.mark.parametrize("name", documents())
def test_the_identities_of_a_document_stay_what_they_were(name: str) -> None:
    assert digest(documents()[name]) == PINNED[name]


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("student: soft", "lr = 1,", "lr = 2,"),
        ("student: hard", "label_smoothing = 0.1", "label_smoothing = 0.2"),
        ("teacher: timm", "resnet18", "resnet19"),
        ("specialists: full", "temperature = 3", "temperature = 4"),
    ],
)
def test_another_setting_is_another_identity(name: str, old: str, new: str) -> None:
    """Negative control."""
    text = documents()[name]
    assert old in text
    assert digest(text.replace(old, new)) != PINNED[name]
