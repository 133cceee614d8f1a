"""Stores that are made, opened, expected and grown, and paths that hold none."""

import json
import pickle
import re
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from support import stores
from support.children import apart
from support.stores import Teacher

import logitstore
from logitstore.storage.api import create_store, open_store
from logitstore.storage.digest import digest_rows
from logitstore.storage.errors import (
    ConfigError,
    ManifestInvalid,
    NameTaken,
    NotAStoreError,
    PartNotFound,
    RowMismatch,
    SpecMismatch,
    StorageError,
    UnsupportedFeature,
    WrongStore,
)
from logitstore.storage.format.documents import canonical_json, sha256_hex
from logitstore.storage.format.metadata import RootAttributes
from logitstore.storage.integrity.verify import verify
from logitstore.storage.parts.root import create_root, open_root

INPUTS = stores.some_inputs(20)


def test_the_public_door() -> None:
    assert logitstore.open_store is open_store
    assert logitstore.create_store is create_store


# Making one


CLASS, INTEGERS = "a class from 0 to 2, or -1 for unknown", "one integer a row"
POWER = "a power of two, at most 89478485 for rows of 12 bytes"
DTYPES = "one of the dtypes uint8, int64, float16, float32"
REFUSED: dict[str, tuple[dict[str, Any], str, str, str]] = {
    "too few labels": ({"labels": [0, 1], "num_rows": 20}, "labels", "20 rows", "2"),
    "too many inputs": ({"num_rows": 19}, "inputs", "19 rows", "20"),
    "too few ids": ({"ids": ["a"]}, "ids", "20 rows", "1"),
    "too few digests": ({"digests": np.zeros(3, np.uint64), "num_rows": 20}, "digests", "20 rows", "3"),
    "fractions as digests": (
        {"digests": digest_rows(INPUTS).astype(np.float64)},
        "digests",
        "uint64, one a row",
        "float64 of shape (20,)",
    ),
    "signed digests": (
        {"digests": digest_rows(INPUTS).astype(np.int64), "inputs": None},
        "digests",
        "uint64, one a row",
        "int64 of shape (20,)",
    ),
    "nothing to keep": (
        {"digests": digest_rows(INPUTS), "inputs": None, "store_inputs": True},
        "inputs",
        "the inputs to keep",
        "None",
    ),
    "no inputs": ({"inputs": None, "num_rows": 20}, "digests", "digests or inputs", "neither"),
    "no classes": ({"num_classes": None}, "num_classes", "at least 2", "0"),
    "one class": ({"num_classes": 1}, "num_classes", "at least 2", "1"),
    "too few names": ({"class_names": ["a", "b"]}, "class_names", "3 names", "2"),
    "label 3 of 3": ({"labels": [3] * 20}, "labels[0]", CLASS, "3"),
    "label -2": ({"labels": [0] * 19 + [-2]}, "labels[19]", CLASS, "-2"),
    "fractions as labels": ({"labels": np.full(20, 0.5)}, "labels", INTEGERS, "float64 of shape (20,)"),
    "names as labels": ({"labels": np.array(["cat"] * 20)}, "labels", INTEGERS, "<U3 of shape (20,)"),
    "labels in two axes": (
        {"labels": np.zeros((20, 1), np.int64)},
        "labels",
        INTEGERS,
        "int64 of shape (20, 1)",
    ),
    "12 rows a block": ({"block_rows": 12}, "block_rows", POWER, "12"),
    "2**30 rows a block": ({"block_rows": 1 << 30}, "block_rows", POWER, str(1 << 30)),
    "float64 inputs": (
        {"inputs": INPUTS.astype(np.float64), "store_inputs": True},
        "inputs",
        DTYPES,
        "float64",
    ),
    "no rows": ({"inputs": INPUTS[:0]}, "num_rows", "at least 1", "0"),
}
REMEDIES = {
    "too few labels": "pass arrays of one length",
    "no inputs": "pass digests=logitstore.digest_rows(inputs), or inputs=…",
    "no classes": "check the transfer set",
    "too few names": "pass one a class",
    "label 3 of 3": "correct the labels (they count from 0) or the number of classes",
    "float64 inputs": "convert them before they are digested, or do not store them",
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_refused_store_leaves_nothing(tmp_path: Path, case: str) -> None:
    arguments, *fields = REFUSED[case]
    with pytest.raises(ConfigError) as caught:
        create_store(tmp_path / "store.zarr", **{"num_classes": 3, "inputs": INPUTS, **arguments})
    error = caught.value
    assert [error.where, error.expected, error.found] == fields
    assert error.remedy == REMEDIES.get(case, error.remedy)
    assert list(tmp_path.iterdir()) == []


def test_a_store_from_digests_alone(tmp_path: Path) -> None:
    store = create_store(tmp_path / "s", class_names=["cat", "dog"], digests=digest_rows(INPUTS))
    assert (store.num_rows, store.num_classes, store.class_names) == (20, 2, ["cat", "dog"])
    assert store.samples.labels.tolist() == [-1] * 20
    assert store.samples.inputs is None
    assert np.array_equal(store.samples.digests, digest_rows(INPUTS))


def test_digests_of_other_inputs_than_those_given_are_refused(tmp_path: Path) -> None:
    digests = digest_rows(INPUTS)
    create_store(tmp_path / "good", num_classes=3, digests=digests, inputs=INPUTS)  # control
    with pytest.raises(RowMismatch, match="row 0 "):
        create_store(tmp_path / "bad", num_classes=3, digests=digests[::-1], inputs=INPUTS, store_inputs=True)
    assert not (tmp_path / "bad").exists()


def test_a_path_that_is_taken(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "photo.jpg").write_bytes(b"x")
    stores.make(tmp_path / "store", teachers={})
    (tmp_path / "zarr").mkdir()
    (tmp_path / "zarr" / "zarr.json").write_bytes(b"{}")
    before = stores.tree_digest(tmp_path)
    # None of them says "move it away": another process may be about to write there.
    other = "choose another path"
    for name, found, remedy in (
        ("file", "a file", other),
        ("full", "a folder with other things in it ('photo.jpg')", other),
        ("store", "a store", f"pass exist_ok=True to resume a store of the same rows, or {other}"),
        ("zarr", "another Zarr group, or a store of other sizes that is being made", other),
    ):
        with pytest.raises(NameTaken) as caught:
            create_store(tmp_path / name, num_classes=3, inputs=INPUTS)
        assert str(caught.value) == (
            f"{tmp_path / name}: expected a path that is free, found {found}; {remedy}"
        )
    with pytest.raises(StorageError, match="expected folders at every level of the path, found a file"):
        create_store(tmp_path / "file" / "store", num_classes=3, inputs=INPUTS)
    assert stores.tree_digest(tmp_path) == before


def test_an_interrupted_creation_is_finished(tmp_path: Path) -> None:
    """Whatever of the root is there already, the rest is added and the bytes are the same."""
    attributes = RootAttributes(9, 2, 4)
    whole = create_root(tmp_path / "whole", attributes)
    keys = ["zarr.json", "teachers/zarr.json", "clusters/zarr.json", "__logitstore__/log/0.json"]
    for done in range(len(keys)):
        path = tmp_path / str(done)
        for key in keys[:done]:
            (path / key).parent.mkdir(parents=True, exist_ok=True)
            (path / key).write_bytes(whole.folder.read(key))
        create_root(path, attributes)
        assert stores.tree(path) == stores.tree(whole.path)


# Opening one


def test_what_is_no_store(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    (tmp_path / "folder").mkdir()
    (tmp_path / "group").mkdir()
    remedy = "name the folder of a store, or make one with `logitstore cache`"
    for name, found in (("file", "a file"), ("folder", "a folder without zarr.json"), ("none", "nothing")):
        with pytest.raises(NotAStoreError) as caught:
            open_store(tmp_path / name)
        assert str(caught.value) == f"{tmp_path / name}: expected a store, found {found}; {remedy}"
    for group in (b'{ "node_type": "group", "zarr_format": 3 }', RootAttributes(9, 2, 4).to_bytes()):
        (tmp_path / "group" / "zarr.json").write_bytes(group)
        with pytest.raises(NotAStoreError, match="expected a store, found a Zarr group without a log"):
            open_store(tmp_path / "group")


def test_a_store_of_a_relative_path_stays_the_same_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A program may change its working folder, and a worker may have another one."""
    monkeypatch.chdir(tmp_path)
    made = create_store("s.zarr", num_classes=3, labels=[0, 1, 2], inputs=np.zeros((3, 2), np.uint8))
    opened = open_store("s.zarr")
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    assert opened.samples.labels.tolist() == [0, 1, 2]
    assert str(opened.path) == "s.zarr"
    with made.capture("t", provenance={"model": "m"}) as capture:
        capture.write(range(3), np.zeros((3, 3), np.float32))
    again = pickle.loads(pickle.dumps(opened))
    again.refresh()
    assert list(again.teachers) == ["t"]
    assert not list((tmp_path / "other").iterdir())


def test_expect_shows_the_store_as_it_was(tmp_path: Path) -> None:
    made = stores.make(tmp_path / "store", teachers={})
    digests, store = [made.store.digest], made.store
    logits = stores.some_logits(1, 37, 5)
    for name in ("zebra", "ant"):
        stores.write_capture(store, name, logits, Teacher(), made.inputs)
        digests.append(store.digest)
    assert len(set(digests)) == 3
    assert list(store.teachers) == ["zebra", "ant"]  # in the order in which they were sealed
    for count, digest in enumerate(digests):
        then = open_store(tmp_path / "store", expect=digest)
        assert (list(then.teachers), then.digest) == (["zebra", "ant"][:count], digest)
    with pytest.raises(WrongStore, match="which never was that one; ask where the store came from"):
        open_store(tmp_path / "store", expect="sha256:" + "0" * 64)


def test_nothing_sealed_ever_changes(tmp_path: Path) -> None:
    made = stores.make(tmp_path / "store", teachers={"wide": Teacher()})
    before = stores.tree(made.path)
    stores.write_capture(made.store, "deep", stores.some_logits(1, 37, 5), Teacher(), made.inputs)
    stores.add_clustering(made.store)
    after = stores.tree(made.path)
    assert {key: after[key] for key in before} == before
    assert open_store(made.path).digest == made.store.digest


def test_the_order_of_parts_leaves_no_trace_in_them(tmp_path: Path) -> None:
    made = [stores.make(tmp_path / name, teachers={}) for name in "ab"]
    logits = stores.some_logits(1, 37, 5)
    for m, names in zip(made, (["x", "y"], ["y", "x"]), strict=True):
        for name in names:
            stores.write_capture(m.store, name, logits, Teacher(), m.inputs)
    for part in ("samples", "teachers/x", "teachers/y"):
        assert stores.tree(made[0].path / part) == stores.tree(made[1].path / part)
    assert made[0].store.digest != made[1].store.digest


def test_parts_that_are_not_there(tmp_path: Path) -> None:
    store = stores.make(tmp_path / "store").store
    with pytest.raises(PartNotFound) as caught:
        _ = store.teachers["wdie"]
    assert str(caught.value) == (
        f"{tmp_path / 'store'}: teachers/wdie: expected one of the sealed parts of this store under teachers "
        "(wide, deep), found 'wdie'; choose one of these, or make it first"
    )
    assert isinstance(caught.value, KeyError)
    assert "wdie" not in store.teachers and store.teachers.get("wdie") is None
    with pytest.raises(PartNotFound, match=r"under clusters \(none\), found 'x'"):
        store.clustering("x")
    stores.add_clustering(store)
    with pytest.raises(
        PartNotFound, match=r"clusters/wide-2x2: expected one of its small arrays, found 'colours'"
    ):
        store.clustering("wide-2x2").small("colours")


def test_clusterings_come_back(tmp_path: Path) -> None:
    made = stores.make(tmp_path / "store")
    written = stores.add_clustering(made.store)
    store = open_store(made.path)
    assert store.clusterings == ["wide-2x2"]
    part = store.clustering("wide-2x2")
    assert {name: part.small(name).tobytes() for name in part.layouts} == {
        name: array.tobytes() for name, array in written.items()
    }
    assert part.spec.identity["capture"] == store.teachers["wide"].digest


# Stores of the future, and stores by others


def reseal(path: Path, part: str, key: str, change: dict[str, Any]) -> None:
    """Change `attributes.logitstore` of a part's file, and every digest above it: an honest other store."""
    file = path / part / key
    value = json.loads(file.read_bytes())
    value["attributes"].setdefault("logitstore", {}).update(change)
    resealed(path, part, key, value)


def resealed(path: Path, part: str, key: str, value: dict[str, Any]) -> None:
    (path / part / key).write_bytes(canonical_json(value))
    seal_file = path / part / "__logitstore__/seal.json"
    seal = json.loads(seal_file.read_bytes())
    seal["files"][key] = sha256_hex((path / part / key).read_bytes())
    seal_file.write_bytes(canonical_json(seal))
    log = path / "__logitstore__/log"
    previous = sha256_hex((log / "0.json").read_bytes())
    for number in range(1, len(list(log.iterdir()))):
        record = json.loads((log / f"{number}.json").read_bytes())
        record["previous"] = previous
        if record["part"] == part:
            record["seal"] = sha256_hex(seal_file.read_bytes())
        (log / f"{number}.json").write_bytes(canonical_json(record))
        previous = sha256_hex((log / f"{number}.json").read_bytes())


def test_a_part_with_a_feature_that_is_lacking(tmp_path: Path) -> None:
    """It is listed, it is refused, and everything else can be read."""
    path = stores.make(tmp_path / "store").path
    reseal(path, "teachers/deep", "zarr.json", {"required_features": ["time-travel"]})
    store = open_store(path)
    assert list(store.teachers) == ["wide", "deep"]
    with pytest.raises(
        UnsupportedFeature, match="found time-travel; open this part with a newer logitstore; the other"
    ):
        _ = store.teachers["deep"]
    assert store.teachers["wide"].read([3]).shape == (1, 5)


def test_another_major_of_a_part_and_unknown_keys(tmp_path: Path) -> None:
    path = stores.make(tmp_path / "store").path
    reseal(path, "teachers/deep", "zarr.json", {"format_version": "2.0"})
    reseal(path, "teachers/wide", "zarr.json", {"format_version": "1.9", "colour": "blue"})
    store = open_store(path)
    assert store.teachers["wide"].read([3]).shape == (1, 5)
    with pytest.raises(NotAStoreError, match=r"expected format version 1\.x, found format version '2.0'"):
        _ = store.teachers["deep"]


def test_a_part_of_another_kind(tmp_path: Path) -> None:
    path = stores.make(tmp_path / "store").path
    reseal(path, "teachers/deep", "zarr.json", {"kind": "clustering"})
    with pytest.raises(ManifestInvalid, match="expected a part of kind 'capture', found 'clustering'"):
        _ = open_store(path).teachers["deep"]


def test_a_sealed_array_of_another_form_is_untrusted(tmp_path: Path) -> None:
    """The digests are right and the codec is not one of ours: refused before a byte is decoded."""
    path = stores.make(tmp_path / "store").path
    value = json.loads((path / "teachers/deep/logits/zarr.json").read_bytes())
    value["codecs"] = [{"name": "numcodecs.pickle", "configuration": {}}]
    resealed(path, "teachers/deep", "logits/zarr.json", value)
    (problem,) = verify(path).problems
    assert verify(path).exit_code == 3
    assert re.search(r"expected an array of format 1\.1 \(its dtypes, codecs and chunk grids\)", str(problem))


def test_a_root_reads_the_log_anew(tmp_path: Path) -> None:
    """A part that another process seals appears after a refresh, not before."""
    made = stores.make(tmp_path / "store", teachers={})
    other = open_root(made.path)
    stores.write_capture(made.store, "wide", stores.some_logits(1, 37, 5), Teacher(), made.inputs)
    assert other.names("teachers") == []
    other.refresh()
    assert other.names("teachers") == ["wide"]


# A script that is run again


def again(path: Path, **changes: Any) -> Any:
    """Begin as a script with its own inference loop does."""
    arguments = {"num_classes": 3, "inputs": INPUTS, "labels": np.arange(20) % 3, "block_rows": 8, **changes}
    return logitstore.create_store(path, exist_ok=True, **arguments)


def test_a_script_that_is_run_again_resumes(tmp_path: Path) -> None:
    path = tmp_path / "store.zarr"
    with again(path).capture("wide", provenance={}) as capture:
        capture.write(next(capture.missing_blocks()), np.zeros((8, 3), np.float32))
    store = again(path)
    with store.capture("wide", provenance={}) as capture:
        assert list(capture.missing_blocks()) == [range(8, 16), range(16, 20)]
        for rows in capture.missing_blocks():
            capture.write(rows, np.zeros((len(rows), 3), np.float32))
    assert list(again(path).teachers) == ["wide"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"inputs": INPUTS[::-1]}, r"row 0 .*expected an input with digest"),
        (
            {"inputs": INPUTS[:19], "labels": None},
            "expected a store of 19 rows and 3 classes, in blocks of 8 rows, or a free path",
        ),
        ({"num_classes": 4}, "found a store of 20 rows and 3 classes"),
        ({"store_inputs": True}, "samples: expected"),
    ],
    ids=["other inputs", "fewer rows", "more classes", "inputs stored"],
)
def test_another_transfer_set_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    """Negative controls."""
    path = tmp_path / "store.zarr"
    digest = again(path).digest
    with pytest.raises(logitstore.LogitStoreError, match=message):
        again(path, **changes)
    assert logitstore.open_store(path).digest == digest


LABELS = np.arange(20) % 3
FULL: dict[str, Any] = {
    "labels": LABELS,
    "ids": [f"image {row:02d}" for row in range(20)],
    "class_names": ["a", "b", "c"],
    "store_inputs": True,
}
"""A call with everything that can be told of rows."""


def one_other(values: Any, row: int, value: Any) -> Any:
    """Values of which one is another."""
    changed = list(values)
    changed[row] = value
    return np.array(changed) if isinstance(values, np.ndarray) else changed


OTHERS: dict[str, tuple[dict[str, Any], str]] = {
    "a label": (
        {"labels": one_other(LABELS, 3, 1)},
        r"row 3 \(index 3 of the transfer set\): label: expected 0, found 1 \(1 of 8 rows differ\); give the transfer set",
    ),
    "a label that is unknown": ({"labels": one_other(LABELS, 4, -1)}, r"row 4 .*label: expected 1, found -1"),
    "no labels": ({"labels": None}, r"row 0 .*label: expected 0, found -1 \(8 of 8 rows differ\)"),
    "an id": (
        {"ids": one_other(FULL["ids"], 2, "image 99")},
        r"row 2 .*id: expected 'image 02', found 'image 99' \(1 of 8",
    ),
    "a longer id": (
        {"ids": one_other(FULL["ids"], 2, "image 002")},
        "samples: expected the id with which it was",
    ),
    "no ids": ({"ids": None}, "samples: expected id, as it was begun, found no id; pass the arrays"),
    "a class name": (
        {"class_names": ["a", "c", "b"]},
        "samples: expected the class_name with which it was begun",
    ),
    "no class names": (
        {"class_names": None, "num_classes": 3},
        "samples: expected class_name, as it was begun, found no class_name; pass the arrays",
    ),
    "an input": (
        {"inputs": one_other(INPUTS, 5, INPUTS[0])},
        r"row 5 \(index 5 of the transfer set\): expected an input with digest",
    ),
    "inputs that are not stored": (
        {"store_inputs": False},
        "samples: expected input, as it was begun, found no",
    ),
    "inputs of another dtype": (
        {"inputs": INPUTS.astype(np.int64)},
        "samples: expected the input with which it",
    ),
    "other blocks": (
        {"block_rows": 16},
        "found a store of 20 rows and 3 classes, in blocks of 8 rows; choose",
    ),
}


@pytest.fixture(params=["whole", "half-written", "killed in a block"])
def resumable(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Make a store with everything: its samples sealed, or interrupted after a block, or within one."""
    path = tmp_path / "store.zarr"
    again(path, **FULL)
    if request.param != "whole":
        part = path / "samples/__logitstore__"
        for file in ("seal.json", "seal.bin", "../../__logitstore__/log/1.json", "commits/0-2.json"):
            (part / file).unlink()
    if request.param == "killed in a block":
        for key in ("source", "digest"):
            (path / f"samples/{key}/c.2").unlink()
        (path / "samples/id/c.2.0").unlink()
        (path / "samples/label/c.1").unlink()
    return path


@pytest.mark.parametrize("other", OTHERS)
def test_everything_that_is_passed_again_is_compared(resumable: Path, other: str) -> None:
    changes, message = OTHERS[other]
    before = stores.tree(resumable)
    with pytest.raises((RowMismatch, SpecMismatch, NameTaken), match=message):
        again(resumable, **FULL | changes)
    after = stores.tree(resumable)
    assert {key: after[key] for key in before if key in after} == {
        key: data for key, data in before.items() if key in after
    }
    assert again(resumable, **FULL).samples.labels.tolist() == LABELS.tolist()


@pytest.mark.parametrize(
    ("state", "added"),
    # Class names that come later to half-written samples are taken: they are whole, and contradict nothing.
    [("whole", name) for name in FULL] + [("half-written", name) for name in FULL if name != "class_names"],
)
def test_a_store_without_them_is_not_given_more(tmp_path: Path, added: str, state: str) -> None:
    path = tmp_path / "store.zarr"
    least = {"labels": None, "num_classes": 3}
    again(path, **least)
    if state == "half-written":
        for key in (
            "samples/__logitstore__/seal.json",
            "samples/__logitstore__/seal.bin",
            "__logitstore__/log/1.json",
        ):
            (path / key).unlink()
    before = stores.tree(path)
    with pytest.raises((RowMismatch, SpecMismatch)):
        again(path, **least | {added: FULL[added]})
    assert stores.tree(path) == before
    assert again(path, **least).samples.labels.tolist() == [-1] * 20


def test_a_label_that_a_killed_run_left_is_not_mixed_with_others(tmp_path: Path) -> None:
    """The run was killed between two shards of a block: the block has no record, and nothing tells its labels."""
    path = tmp_path / "store.zarr"
    again(path, **FULL)
    whole = stores.tree(path)
    part = path / "samples/__logitstore__"
    for file in ("seal.json", "seal.bin", "../../__logitstore__/log/1.json"):
        (part / file).unlink()
    for block in range(3):
        (part / f"commits/0-{block}.json").unlink()
        (path / f"samples/digest/c.{block}").unlink()
    with pytest.raises(RowMismatch, match=r"row 3 .*label: expected 0, found 1"):
        again(path, **FULL | {"labels": one_other(LABELS, 3, 1)})
    again(path, **FULL)
    assert stores.tree(path) == whole


def test_samples_that_mix_without_the_comparison_are_seen(tmp_path: Path) -> None:
    """Negative control: without it, the labels of two calls are sealed together."""
    path = tmp_path / "store.zarr"
    again(path, **FULL)
    part = path / "samples/__logitstore__"
    for file in ("seal.json", "seal.bin", "../../__logitstore__/log/1.json", "commits/0-2.json"):
        (part / file).unlink()
    for key in ("source/c.2", "digest/c.2", "label/c.2", "id/c.2.0", "input/c.2.0.0"):
        (path / "samples" / key).unlink()
    with mock.patch("logitstore.storage.parts.writer.check_row_labels", lambda *_: None):
        mixed = again(path, **FULL | {"labels": (LABELS + 1) % 3})
    assert mixed.samples.labels[:16].tolist() == LABELS[:16].tolist()
    assert mixed.samples.labels[16:].tolist() == ((LABELS + 1) % 3)[16:].tolist()


# Two starts at once


def test_two_that_begin_one_store_at_once_join(tmp_path: Path) -> None:
    assert apart("support.starts:starts", path=str(tmp_path), count=30, rows=[20, 20, 20]) == [[]] * 30


def test_two_that_begin_different_stores_at_once_are_told_apart(tmp_path: Path) -> None:
    for errors in apart("support.starts:starts", path=str(tmp_path), count=30, rows=[20, 21]):
        (error,) = errors
        assert "; choose another path" in error and "move it away" not in error
