"""Captures in the transform encoding whose maker lies are refused: another rank, steps of nothing, refinements of nobody.

Every digest of these stores fits, that of the basis included: only what a reader knows of the format stands in the way.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from faults.forge import Forge
from faults.hostile_transform import PART, digest_of, lay, note
from support import transformed as known

from logitstore.storage.api import open_store
from logitstore.storage.encodings.basis import Basis
from logitstore.storage.encodings.transform import Transform
from logitstore.storage.errors import (
    LimitExceeded,
    LogitStoreError,
    ManifestInvalid,
    UnsupportedFeature,
    UntrustedStoreError,
)
from logitstore.storage.format.constants import TRANSFORM
from logitstore.storage.format.layouts import small_array
from logitstore.storage.integrity.verify import CLEAN, verify

pytestmark = pytest.mark.usefixtures("without_fsync")


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a store of two such captures."""
    with mock.patch("os.fsync"):
        path = tmp_path_factory.mktemp("honest") / "store"
        store = known.begin(path)
        known.write(store, "plain")
        known.write(store, "turned", columns=known.ORDER, encoding=known.turned())
        return path


@pytest.fixture
def forge(honest: Path, tmp_path: Path) -> Forge:
    """Make a copy whose digests can all be recomputed, as its maker could."""
    shutil.copytree(honest, tmp_path / "store")
    return Forge(tmp_path / "store")


def lay_small(forge: Forge, name: str, *shape: int) -> None:
    forge.put(f"{PART}/{name}/zarr.json", small_array(TRANSFORM, name, shape).to_bytes())


def refused(forge: Forge, kind: type[LogitStoreError] = ManifestInvalid) -> str:
    """Sign the store, and return the error of the first row that is read; the other capture is read as ever."""
    forge.sign()
    store = open_store(forge.path)
    with pytest.raises(kind) as caught:
        store.teachers["plain"].read([0])
    assert store.teachers["turned"].read([0]).shape == (1, known.CLASSES)
    assert verify(forge.path).exit_code != CLEAN
    assert str(caught.value).count("\n") == 0
    return str(caught.value)


def test_the_honest_store_is_read_and_its_digest_is_that_of_the_page(forge: Forge) -> None:
    """Negative control: signing changes nothing of a store that nobody has changed."""
    assert digest_of(forge) == known.known_basis().digest
    before = forge.file("__logitstore__/log/3.json").read_bytes()
    note(forge, digest_of(forge))
    forge.sign()
    assert forge.file("__logitstore__/log/3.json").read_bytes() == before
    assert open_store(forge.path).teachers["plain"].read([0]).shape == (1, known.CLASSES)
    assert verify(forge.path, deep=True).exit_code == CLEAN


# Shapes


def test_more_components_than_classes_are_refused(forge: Forge) -> None:
    lay(forge, "codes", 9)
    lay_small(forge, "basis", 9, known.CLASSES)
    lay_small(forge, "step", 9)
    assert "teachers/plain/basis: expected at most 8 components, one a class, found 9" in refused(forge)


@pytest.mark.parametrize("components", [1, 2, 4, 8])
def test_codes_of_other_components_than_the_basis_are_refused(forge: Forge, components: int) -> None:
    lay(forge, "codes", components)
    assert f"expected codes of 3 components, as the basis has, found {components} a row" in refused(forge)


@pytest.mark.parametrize(
    ("array", "shape"),
    [
        ("basis", (3, 7)),
        ("basis", (2, 8)),
        ("centre", (7,)),
        ("centre", (9,)),
        ("step", (4,)),
        ("weight", (1,)),
    ],
)
def test_a_basis_whose_arrays_differ_in_length_is_refused(
    forge: Forge, array: str, shape: tuple[int, ...]
) -> None:
    lay_small(forge, array, *shape)
    assert "expected a basis of 8 classes, one length of components, found basis (" in refused(forge)


def test_escaped_rows_of_other_classes_are_refused(forge: Forge) -> None:
    lay(forge, "escape", 7, scale_factor=-0.125, _FillValue=65535)
    assert "expected 7 classes, one a column of logits, found 8 classes" in refused(forge)


def test_a_basis_beyond_the_limit_is_refused_before_it_is_read(forge: Forge) -> None:
    components, classes = 1 << 14, 1 << 15
    lay_small(forge, "basis", components, classes)

    def listed(seal: dict[str, Any]) -> None:
        seal["files"] |= {f"basis/c.{chunk}.0": "0" * 64 for chunk in range(64)}

    forge.seal(PART, listed)
    message = refused(forge, LimitExceeded)
    assert (
        "teachers/plain/basis: expected at most 1073741824 bytes, found 16384 components of 32768" in message
    )


@pytest.mark.parametrize(
    ("array", "row_shape", "attributes"),
    [
        ("error", (3,), {"temperature": [4.0, 2.0, 1.0]}),
        ("error", (3,), {"temperature": [1.0, 2.0, 2.0]}),
        ("error", (3,), {"temperature": [0.0, 2.0, 4.0]}),
        ("error", (3,), {"temperature": [-1.0, 2.0, 4.0]}),
        ("error", (3,), {"temperature": [1, 2, 4]}),
        ("error", (3,), {"temperature": ["1", "2", "4"]}),
        ("error", (3,), {"temperature": [1.0, 2.0]}),
        ("error", (3,), {"temperature": []}),
        ("error", (3,), {"temperature": 1.0}),
        ("error", (3,), {"temperature": [1.0, 2.0, 8.0]}),
        ("error", (3,), {}),
        ("error", (3,), {"temperature": [1.0, 2.0, 4.0], "scale_factor": -1.0}),
        ("error", (17,), {"temperature": [float(t) for t in range(1, 18)]}),
        ("error", (5,), {"temperature": [1.0, 2.0, 4.0, 8.0, 20.0]}),
        ("codes", (3,), {"scale_factor": -0.5}),
        ("escape", (8,), {"scale_factor": -0.5, "_FillValue": 65535}),
        ("escape", (8,), {"scale_factor": 0.5, "_FillValue": 65535}),
        ("escape", (8,), {"scale_factor": -1e308, "_FillValue": 65535}),
        ("escape", (8,), {"_FillValue": 65535}),
        ("escape", (8,), {}),
    ],
    ids=str,
)
def test_attributes_that_are_not_of_the_spec_are_refused(
    forge: Forge, array: str, row_shape: tuple[int, ...], attributes: dict[str, Any]
) -> None:
    lay(forge, array, *row_shape, **attributes)
    refused(forge)


@pytest.mark.parametrize(
    "change",
    [
        lambda codecs: codecs[0]["configuration"].update(order=[0, 1, 2]),
        lambda codecs: codecs[0]["configuration"].update(order=[2, 0, 1]),
        lambda codecs: codecs[0]["configuration"].update(order=[0, 2, 1, 3]),
        lambda codecs: codecs[0]["configuration"].update(order="F"),
        lambda codecs: codecs.pop(0),
        lambda codecs: codecs.insert(0, codecs[0]),
        lambda codecs: codecs.pop(2),
        lambda codecs: codecs[2]["configuration"].update(shuffle="shuffle"),
        lambda codecs: codecs[2]["configuration"].update(clevel=9),
        lambda codecs: codecs[2]["configuration"].update(cname="lz4"),
        lambda codecs: codecs[2]["configuration"].update(blocksize=0),
        lambda codecs: codecs[2]["configuration"].update(typesize=4),
    ],
)
def test_codecs_that_are_not_of_the_page_are_refused(forge: Forge, change: Callable[[Any], Any]) -> None:
    value = json.loads(forge.file(f"{PART}/codes/zarr.json").read_bytes())
    change(value["codecs"][0]["configuration"]["codecs"])
    forge.put(f"{PART}/codes/zarr.json", value)
    refused(forge, LogitStoreError)
    with pytest.raises((UntrustedStoreError, ManifestInvalid)):
        _ = open_store(forge.path).teachers["plain"]


# Specs


@pytest.mark.parametrize(
    "change",
    [
        {"max_kl": 0}, {"max_kl": "1e-2"}, {"max_kl": True}, {"max_kl": None}, {"max_kl": 1e400},
        {"temperatures": []}, {"temperatures": [0.5, 1.0]}, {"temperatures": [2.0, 1.0]}, {"temperatures": "1"},
        {"temperatures": [float(t) for t in range(1, 18)]}, {"temperatures": {"1": 1}},
        {"calibration": None}, {"calibration": {"rows": 1, "seed": 0}}, {"calibration": {"rows": 2.5, "seed": 0}},
        {"calibration": {"rows": 2048, "seed": -1}}, {"calibration": {"rows": 2048}},
        {"peak": "no"}, {"peak": 1}, {"peak": None},
    ],
    ids=str,
)  # fmt: skip
def test_an_encoding_that_this_version_does_not_have_is_unsupported(
    forge: Forge, change: dict[str, Any]
) -> None:
    encoding = {**known.encoding().describe(), **change}
    with_value = {key: value for key, value in encoding.items() if value is not None}
    forge.spec(PART, encoding=json.loads(json.dumps(with_value).replace("Infinity", "1e308")))
    assert "expected one of the encodings of this version" in refused(forge, UnsupportedFeature)


@pytest.mark.parametrize(
    ("encoding", "found"),
    [
        ({"peak": True}, "expected peak in float32"),
        ({"temperatures": [1.0, 2.0]}, "expected error in float16"),
        ({"temperatures": [1.0, 2.0, 8.0]}, "expected error in float16"),
        ({"max_kl": 1e-3}, "expected escape in uint16"),
    ],
    ids=str,
)
def test_arrays_that_are_not_those_of_the_encoding_are_refused(
    forge: Forge, encoding: dict[str, Any], found: str
) -> None:
    forge.spec(PART, encoding={**known.encoding().describe(), **encoding})
    assert found in refused(forge)


def test_a_peak_that_the_encoding_does_not_have_is_refused(tmp_path: Path) -> None:
    store = known.begin(tmp_path / "store")
    known.write(store, "plain", encoding=known.encoding(keeps_peak=True))
    known.write(store, "turned", columns=known.ORDER, encoding=known.turned())
    forge = Forge(tmp_path / "store")
    forge.spec(PART, encoding=known.encoding().describe())
    assert "expected no peak, as the encoding has it, found an array peak" in refused(forge)


@pytest.mark.parametrize(
    "digest", [None, 7, "sha256:" + "0" * 64, "x" * 10_000], ids=["none", "7", "other", "long"]
)
def test_a_basis_that_the_notes_do_not_name_is_refused(forge: Forge, digest: Any) -> None:
    note(forge, digest)
    message = refused(forge)
    assert len(message) < 600 + len(str(forge.path))
    assert (
        "expected the basis of this capture" in message
        if isinstance(digest, str)
        else "notes: basis" in message
    )


# Numbers


def basis_with(**changes: tuple[Any, float]) -> dict[str, Any]:
    arrays = {name: values.copy() for name, values in known.known_basis().arrays().items()}
    for name, (place, value) in changes.items():
        arrays[name][place] = value
    return arrays


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"basis": ((1, 2), np.nan)}, "basis: expected finite numbers"),
        ({"basis": ((2, 7), np.inf)}, "basis: expected finite numbers"),
        ({"centre": (3, -np.inf)}, "centre: expected finite numbers"),
        ({"step": (0, np.nan)}, "step: expected finite numbers"),
        ({"weight": (0, np.nan)}, "weight: expected finite numbers"),
        ({"step": (1, 0.0)}, "step: expected numbers above 0, found 0.0"),
        ({"step": (1, -0.25)}, "step: expected numbers above 0, found -0.25"),
        ({"weight": (7, 0.0)}, "weight: expected numbers above 0"),
        ({"basis": ((0, 0), 3e38)}, "basis: expected logits of magnitudes up to 1e+30"),
        ({"centre": (0, 3e38)}, "basis: expected logits of magnitudes up to 1e+30"),
        ({"step": (0, 3e38), "basis": (0, 1e-38)}, "basis: expected logits of magnitudes up to 1e+30"),
    ],
    ids=str,
)
def test_numbers_that_no_writer_stores_are_refused(forge: Forge, changes: dict[str, Any], found: str) -> None:
    """They would give NaN, or logits that are all alike, without a word."""
    for name, values in basis_with(**changes).items():
        forge.small(PART, name, values.tobytes())
    note(forge, digest_of(forge))
    assert found in refused(forge)


def test_the_check_of_numbers_is_what_refuses_them(forge: Forge) -> None:
    """Negative control: a basis of other numbers, all of them possible, is read as it then is."""
    arrays = basis_with(centre=(0, 5.0))
    for name, values in arrays.items():
        forge.small(PART, name, values.tobytes())
    note(forge, digest_of(forge))
    assert digest_of(forge) == Basis(**arrays).digest
    forge.sign()
    assert open_store(forge.path).teachers["plain"].read([0]).shape == (1, known.CLASSES)


def lying(change: Callable[[dict[str, Any]], Any]) -> Any:
    encode = Transform.encode

    def changed(self: Transform, logits: Any, first_row: int, where: str) -> Any:
        stored = encode(self, logits, first_row, where)
        change(stored)
        return stored

    return mock.patch.object(Transform, "encode", changed)


def set_refine(value: int) -> Callable[[dict[str, Any]], None]:
    return lambda stored: stored["refine"].__setitem__(-1, value)


def escape_without_zero(stored: dict[str, Any]) -> None:
    stored["escape"] = stored["escape"].copy()  # one number in memory, where no row is escaped
    stored["escape"][stored["refine"] == 255] += 1


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (set_refine(121), "expected refinements, or 255, from 0 to 120"),
        (set_refine(254), "expected refinements, or 255, from 0 to 120"),
        (set_refine(255), "expected codes of escaped rows from 0 to 65534"),
        (escape_without_zero, "expected a code of 0 in each escaped row"),
    ],
    ids=["121", "254", "a row that is not there", "no largest"],
)
def test_rows_that_no_writer_stores_are_refused(tmp_path: Path, change: Any, found: str) -> None:
    with lying(change):
        store = known.begin(tmp_path / "s")
        known.write(store, "t")
    capture = store.teachers["t"]
    for read in (capture.read, capture.read_stored):
        with pytest.raises(ManifestInvalid, match=found):
            read(slice(None))


def test_the_largest_refinement_is_read(tmp_path: Path) -> None:
    """Negative control of the limit."""
    with lying(set_refine(120)):
        store = known.begin(tmp_path / "s")
        known.write(store, "t")
    assert np.isfinite(store.teachers["t"].read(slice(None))).all()
