"""Encoded captures whose maker lies are refused: another encoding, another scale, columns that do not exist.

Every digest of these stores fits: only what a reader knows of the format stands in the way.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from faults.forge import Forge
from support.encoded import CLASSES, make

from logitstore.storage.api import open_store
from logitstore.storage.encodings.error_budget import ErrorBudget
from logitstore.storage.encodings.top_k import TopK
from logitstore.storage.errors import ManifestInvalid, UnsupportedFeature
from logitstore.storage.integrity.verify import CLEAN, verify

pytestmark = pytest.mark.usefixtures("without_fsync")


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a store of codes and of top-k rows."""
    with mock.patch("os.fsync"):
        return make(tmp_path_factory.mktemp("honest") / "store.zarr", ("codes", "largest"), rows=11).path


@pytest.fixture
def forge(honest: Path, tmp_path: Path) -> Forge:
    """Make a copy whose digests can all be recomputed, as its maker could."""
    shutil.copytree(honest, tmp_path / "store.zarr")
    return Forge(tmp_path / "store.zarr")


BUDGET = ErrorBudget(1e-3, 1.5).describe()
SPECS: list[tuple[str, Any]] = [
    ("codes", {**BUDGET, "kind": "codes"}),
    ("codes", {**BUDGET, "kind": "top-k"}),
    ("codes", {**BUDGET, "step": 2 * ErrorBudget(1e-3, 1.5).step}),
    ("codes", {**BUDGET, "step": 0.05}),
    ("codes", {**BUDGET, "max_kl": 1e-6}),
    ("codes", {**BUDGET, "max_kl": 0}),
    ("codes", {**BUDGET, "max_kl": True}),
    ("codes", {**BUDGET, "max_kl": "1e-3"}),
    ("codes", {**BUDGET, "min_temperature": -1.5}),
    ("codes", {**BUDGET, "source_error": 1.0}),
    ("codes", {**BUDGET, "source_error": -0.01}),
    ("codes", {**BUDGET, "shift": 99}),
    ("codes", {**BUDGET, "shift": -1}),
    ("codes", {**BUDGET, "shift": 1.0}),
    ("codes", {**BUDGET, "dtype": "int8"}),
    ("codes", {**BUDGET, "dtype": "uint64"}),
    ("codes", {**BUDGET, "dtype": ["uint16"]}),
    ("codes", {**BUDGET, "dtype": "uint8", "shift": 8}),
    ("codes", {key: value for key, value in BUDGET.items() if key != "step"}),
    ("largest", {"kind": "top-k"}),
    ("largest", {"kind": "top-k", "k": 0}),
    ("largest", {"kind": "top-k", "k": 4.0}),
    ("largest", {"kind": "top-k", "k": True}),
    ("largest", {"kind": "top-k", "k": "4"}),
]


@pytest.mark.parametrize(("name", "encoding"), SPECS, ids=[str(number) for number in range(len(SPECS))])
def test_an_encoding_that_this_version_does_not_have_is_unsupported(
    forge: Forge, name: str, encoding: Any
) -> None:
    forge.spec(f"teachers/{name}", encoding=encoding)
    forge.sign()
    store = open_store(forge.path)
    with pytest.raises(UnsupportedFeature) as caught:
        _ = store.teachers[name]
    message = f"teachers/{name}: expected one of the encodings of this version, found the encoding {{"
    assert str(caught.value).startswith(message)
    assert str(caught.value).endswith("open this capture with a newer logitstore")
    other = {"codes": "largest", "largest": "codes"}[name]
    assert store.teachers[other].read([0], temperature=1.0).shape == (1, CLASSES)
    assert verify(forge.path).exit_code != CLEAN


def test_a_key_that_is_not_known_is_ignored(forge: Forge) -> None:
    """Keys that a later minor version may add."""
    forge.spec("teachers/codes", encoding={**BUDGET, "measured": [1, 2]})
    forge.sign()
    assert open_store(forge.path).teachers["codes"].read([0]).shape == (1, CLASSES)


@pytest.mark.parametrize(
    ("name", "encoding"),
    [
        ("codes", ErrorBudget(2e-3, 1.5).describe()),
        ("codes", ErrorBudget(1e-3, 1.5, shift=1).describe()),
        ("codes", ErrorBudget(1e-3, 1.5, dtype="uint8").describe()),
        ("codes", {**BUDGET, "kind": 3}),
        ("codes", {"kind": "float16"}),
        ("codes", {"kind": "top-k", "k": 4}),
        ("largest", {"kind": "top-k", "k": 5}),
        ("largest", {"kind": "top-k", "k": CLASSES + 1}),
        ("largest", {"kind": "top-k", "k": 10**30}),
        ("largest", {"kind": "float16"}),
        ("largest", BUDGET),
    ],
)
def test_arrays_that_are_not_those_of_the_encoding_are_refused(
    forge: Forge, name: str, encoding: Any
) -> None:
    forge.spec(f"teachers/{name}", encoding=encoding)
    forge.sign()
    with pytest.raises(ManifestInvalid, match=r"spec\.json: .*expected"):
        _ = open_store(forge.path).teachers[name]


STEP = ErrorBudget(1e-3, 1.5).step


@pytest.mark.parametrize(
    ("name", "features"),
    [
        ("codes", []),
        ("codes", ["top-k"]),
        ("codes", ["error-budget", "top-k"]),
        ("codes", ["error-budget", "error-budget"]),
        ("largest", []),
        ("largest", ["error-budget"]),
    ],
)
def test_features_other_than_those_of_the_arrays_are_refused(
    forge: Forge, name: str, features: list[str]
) -> None:
    """A reader without the feature would take such a part for one that it can read."""
    key = f"teachers/{name}/zarr.json"
    ours = json.loads(forge.file(key).read_bytes())["attributes"]["logitstore"]
    forge.edit(key, attributes={"logitstore": ours | {"required_features": features}})
    forge.sign()
    with pytest.raises(ManifestInvalid, match=r"zarr\.json: expected the features of its arrays"):
        _ = open_store(forge.path).teachers[name]
    assert verify(forge.path).exit_code != CLEAN


@pytest.mark.parametrize(
    "attributes",
    [
        {"scale_factor": -2 * STEP, "_FillValue": 65535},
        {"scale_factor": STEP, "_FillValue": 65535},
        {"scale_factor": -0.1, "_FillValue": 65535},
        {"scale_factor": -1, "_FillValue": 65535},
        {"scale_factor": -1e308, "_FillValue": 65535},
        {"scale_factor": "-1", "_FillValue": 65535},
        {"scale_factor": -STEP, "_FillValue": 0},
        {"scale_factor": -STEP},
        {"_FillValue": 65535},
        {"scale_factor": -STEP, "_FillValue": 65535, "add_offset": 1.0},
        {},
    ],
    ids=str,
)
def test_a_scale_that_is_not_of_the_spec_is_refused(forge: Forge, attributes: dict[str, Any]) -> None:
    """xarray would decode by it."""
    forge.array("teachers/codes/logits", attributes=attributes)
    forge.sign()
    with pytest.raises(ManifestInvalid):
        _ = open_store(forge.path).teachers["codes"]


@pytest.mark.parametrize("array", ["teachers/largest/index", "teachers/codes/error", "teachers/codes/peak"])
def test_attributes_that_the_format_does_not_give_are_refused(forge: Forge, array: str) -> None:
    forge.array(array, attributes={"scale_factor": -0.5})
    forge.sign()
    with pytest.raises(ManifestInvalid):
        _ = open_store(forge.path).teachers[array.split("/")[1]]


def test_an_index_that_is_no_column_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Decoding would write outside its arrays, here and on a device."""
    encode = TopK.encode

    def lying(self: TopK, logits: Any, first_row: int, where: str) -> Any:
        stored = encode(self, logits, first_row, where)
        stored["index"][-1, -1] = CLASSES
        return stored

    monkeypatch.setattr(TopK, "encode", lying)
    made = make(tmp_path / "s", ("largest",))
    capture = made.store.teachers["largest"]
    calls: list[Callable[[], Any]] = [
        lambda: capture.read(slice(None), temperature=1.0),
        lambda: capture.read_stored(slice(None)),
        lambda: list(made.store.stream(decode=False)),
        lambda: list(made.store.stream(temperature=1.0)),
    ]
    for refused in calls:
        with pytest.raises(ManifestInvalid, match="expected classes from 0 to 29, found"):
            refused()
