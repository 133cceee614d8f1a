"""Errors of the calls from Python: they name arguments, and no key of an experiment file."""

import inspect
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from support.hands import Net, Pictures

import logitstore
from logitstore.cli.argument_names import KEYS, in_python, naming_arguments
from logitstore.pipeline.experiment.tables import Cache, Cluster, Student, TransferSet, ViewAugmentation
from logitstore.pipeline.experiment.training import StudentTrain
from logitstore.storage.api import Store
from logitstore.storage.errors import ConfigError, LogitStoreError

pytestmark = pytest.mark.usefixtures("without_fsync")

CALLS: Mapping[str, Callable[..., Any]] = {name: getattr(logitstore, name) for name in KEYS}
NO_KEYS = {
    "cache": {"store", "storage_options", "class_names", "stop_below", "reuse", "device", "progress"},
    "cluster": {"store", "storage_options", "scheduler", "progress"},
    "distill": {"store", "storage_options", "checkpoint", "device", "progress"},
    "evaluate": {"network", "batch_size", "device"},
}
"""Arguments that no key of an experiment file stands for."""
TABLES = {
    "cache": {"transfer_set": TransferSet, "cache": Cache, "cache.augment": ViewAugmentation},
    "cluster": {"cluster": Cluster},
    "distill": {"student": Student, "student.train": StudentTrain},
    "evaluate": {},
}
"""Tables that a call fills."""
NOT_PASSED = {
    *("transfer_set.factory", "transfer_set.args", "transfer_set.digest_of"),
    *("cache.augment.factory", "cache.augment.args"),
    *("student.factory", "student.args", "student.train", "student.train.log"),
}
"""Keys of them that say what a thing in hand is, and tables within."""


@pytest.mark.parametrize("call", KEYS)
def test_the_table_has_every_argument(call: str) -> None:
    arguments = set(inspect.signature(CALLS[call]).parameters)
    assert set(KEYS[call].values()) == arguments - NO_KEYS[call]
    assert arguments > NO_KEYS[call]


@pytest.mark.parametrize("call", KEYS)
def test_the_table_has_every_key_that_a_call_fills(call: str) -> None:
    for table, kind in TABLES[call].items():
        known = set(kind.model_fields) - {"timm", "torchvision", "hugging_face", "file", "weights_key"}
        missing = {f"{table}.{key}" for key in known} - set(KEYS[call]) - NOT_PASSED
        # A student in hand is a network: the keys that build one are not filled.
        assert {key for key in missing if key.partition(".")[2] not in _of_networks()} == set()


def _of_networks() -> set[str]:
    from logitstore.pipeline.experiment.networks import NewNetwork

    return set(NewNetwork.model_fields)


def in_toml(text: str) -> list[str]:
    """Return the words of a text that are of an experiment file."""
    return re.findall(
        r"\[\[?[a-z_]{2,}\]\]?(?!\()|student\[\d|experiment:|\btrain\.\w+|\b(?:transfer|evaluation|validation)_set\b"
        r"|\b\w+ = \S|\btrue\b|\bfalse\b|--[a-z]+",
        text,
    )


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    path = tmp_path_factory.mktemp("arguments") / "store.zarr"
    made = logitstore.cache(path, {"wide": Net()}, Pictures(), progress=False)
    torch.set_num_threads(threads)
    return made


def called(call: str, store: Store, tmp_path: Path, **arguments: Any) -> LogitStoreError:
    """Make a call that is refused, without the checks of annotations; return its error."""
    usual: dict[str, Any] = {
        "cache": {"store": tmp_path / "new.zarr", "teachers": {"deep": Net(4)}, "dataset": Pictures()},
        "cluster": {"store": store, "clusters": 2, "classes_per_cluster": 2},
        "distill": {"store": store, "student": Net(4), "lr": 1e-3, "epochs": 1},
        "evaluate": {"network": Net(), "dataset": Pictures()},
    }
    progress = {} if call == "evaluate" else {"progress": False}
    function = inspect.unwrap(CALLS[call])
    with pytest.raises(LogitStoreError) as refused, naming_arguments(call):
        function(**{**usual[call], **progress, **arguments})
    return refused.value


ODD = object()
# A function of its own refuses these before the tables do; its annotations are checked in tests.
OF_ITS_TYPE: Mapping[str, Any] = {
    **dict.fromkeys(("augment_seed", "first_view", "num_classes", "workers"), -1),
    "teachers": [],
    "keep": "first",
    "name": "A B",
    "card": {"a": "b"},
}
WRONG = [(call, name) for call in KEYS for name in sorted(set(KEYS[call].values()) - {"student", "log"})]
# A store with inputs of one view needs neither.
WRONG = [each for each in WRONG if each not in (("distill", "dataset"), ("distill", "augment"))]


@pytest.mark.parametrize(("call", "argument"), WRONG, ids=lambda value: value)
def test_a_wrong_value_is_refused_under_the_name_of_its_argument(
    call: str, argument: str, store: Store, tmp_path: Path
) -> None:
    value = OF_ITS_TYPE.get(argument, ODD)
    if (call, argument) == ("cache", "teachers"):
        value = {"deep": ODD}
    extra = {"augment": lambda image, generator: image} if argument in ("augment_seed", "first_view") else {}
    if extra:
        extra["views"] = 2
    error = called(call, store, tmp_path, **{**extra, argument: value})
    assert argument in re.findall(r"\w+", error.where), str(error)
    assert in_toml(str(error)) == [], str(error)


CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "without validation": ("distill", {"keep": "best"}),
    "validation": ("distill", {"validation": 1.5}),
    "view": ("distill", {"views": 3}),
    "smoothing": ("distill", {"label_smoothing": 0.1}),
    "figure": ("distill", {"targets": "hard", "validation": 0.2, "keep": "best", "best_by": "kl"}),
    "momentum": ("distill", {"momentum": 0.5}),
    "seed": ("distill", {"seed": -1}),
    "no teachers": ("distill", {"teachers": []}),
    "diverges": ("distill", {"lr": 1e30, "epochs": 3}),
    "flag": ("cluster", {"normalise": "yes"}),
    "classes": ("cache", {"num_classes": 2}),
    "encoding": ("cache", {"encoding": "float8"}),
    "first view": ("cache", {"views": 2, "augment": lambda image, generator: image, "first_view": 3}),
    "inputs": ("cache", {"store_inputs": "files"}),
    "labels": ("cache", {"class_names": ["a", "b"]}),
    "share": ("cache", {"stop_below": 1.5}),
    "batch": ("evaluate", {"batch_size": 0}),
}


@pytest.mark.parametrize("case", CASES)
def test_an_error_of_a_call_is_in_python(
    case: str, store: Store, tmp_path: Path, sentence: Callable[[Any], None]
) -> None:
    call, arguments = CASES[case]
    error = called(call, store, tmp_path, **arguments)
    sentence(error)
    assert in_toml(str(error)) == []


def test_keys_of_a_file_are_noticed(store: Store) -> None:
    """Negative control: the same errors without the translation."""
    with pytest.raises(ConfigError) as refused:
        inspect.unwrap(CALLS["distill"])(store, Net(4), lr=1e-3, epochs=1, keep="best", progress=False)
    assert set(in_toml(str(refused.value))) >= {"experiment:", "student[0", "[validation_set]"}


def test_calls_translate_their_errors(store: Store) -> None:
    with pytest.raises(ConfigError) as refused:
        logitstore.distill(store, Net(4), lr=1e-3, epochs=1, keep="best", progress=False)
    assert refused.value.where == "distill: keep"
    assert refused.value.args[0] == "distill: keep"


def test_a_path_is_no_key() -> None:
    """Negative control."""
    assert in_python("/data/transfer_set/train.lr.npy, and 'evaluation_set'", "distill") == (
        "/data/transfer_set/train.lr.npy, and 'evaluation_set'"
    )
