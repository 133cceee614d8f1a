"""Imports: logits of plain files in a sealed store, bit for bit; and every file that is none, refused beforehand."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import safetensors.torch
import torch
from numpy.typing import NDArray
from support import stores
from support.stores import Made, Teacher

import logitstore
from logitstore.pipeline.exchange import import_files
from logitstore.pipeline.exchange.export import export_logits
from logitstore.pipeline.exchange.given import GivenLogits
from logitstore.pipeline.exchange.import_files import import_logits
from logitstore.storage.api import Store, open_store
from logitstore.storage.errors import (
    BadDataError,
    BadLogitsError,
    ConfigError,
    LogitStoreError,
    NameTaken,
    RowMismatch,
    SpecMismatch,
    StorageFull,
    StoreIncomplete,
)
from logitstore.storage.integrity.verify import verify

ROWS, CLASSES = 37, 5
EVERY = slice(None)


@pytest.fixture(autouse=True)
def quick(without_fsync: None) -> None:
    """Files are looked at here, not power cuts."""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A store of several encodings; it is not changed."""
    teachers = {
        "wide": Teacher(views=2),
        "deep": Teacher(encoding="float32"),
        "some": Teacher(classes=(3, 1, -1)),
        "small": Teacher(encoding={"transform": {"max_kl": 1e-2}}),
        "budget": Teacher(encoding={"max_kl": 1e-2}),
    }
    return stores.make(tmp_path_factory.mktemp("made") / "store.zarr", rows=ROWS, teachers=teachers)


@pytest.fixture
def logits() -> NDArray[np.float32]:
    """Logits (row, class) that bfloat16 holds."""
    return np.asarray(stores.some_logits(1, ROWS, CLASSES, seed=3)[0].astype("f2").astype("f4").round(1)) * 8


@pytest.fixture
def labels() -> NDArray[np.int64]:
    return np.arange(ROWS, dtype=np.int64) % CLASSES


def centred(logits: NDArray[Any]) -> NDArray[np.float32]:
    return np.asarray((logits - logits.max(axis=1, keepdims=True)).astype(np.float32))


# Round trips


@pytest.mark.parametrize("ending", ["npy", "safetensors"])
@pytest.mark.parametrize("teacher", ["wide", "deep", "some", "small", "budget"])
def test_an_export_comes_back_bit_for_bit(made: Made, tmp_path: Path, teacher: str, ending: str) -> None:
    path = tmp_path / f"out.{ending}"
    export_logits(made.store, teacher, path)
    ours = made.store.teachers[teacher]
    view = 1 if ours.num_views > 1 else None
    done = logitstore.import_logits(path, tmp_path / "new.zarr", teacher, view=view)
    store = open_store(tmp_path / "new.zarr")
    theirs = store.teachers[teacher]
    expected = ours.read(EVERY, view or 0) + np.float32(0)  # codes give the largest logit as -0.0
    assert theirs.read(EVERY).tobytes() == expected.tobytes()
    assert theirs.encoding.kind == ("float16" if ours.encoding.kind == "float16" else "float32")
    if ours.has_peak:
        assert np.array_equal(theirs.peak(EVERY), ours.peak(EVERY, view or 0))
    assert np.array_equal(theirs.classes, ours.classes)
    assert np.array_equal(store.samples.labels, made.labels)
    assert (store.samples.ids, store.class_names) == (made.store.samples.ids, made.store.class_names)
    assert done.digest == store.digest and (done.made, done.new_store) == (True, True)
    assert verify(store.path, deep=True).exit_code == 0
    assert sum(len(batch.rows) for batch in store.stream(16, columns="own")) == ROWS


@pytest.mark.parametrize("ending", ["npy", "safetensors"])
def test_an_augmented_view_is_not_taken_for_the_rows(tmp_path: Path, ending: str) -> None:
    teachers = {"wide": Teacher(views=3, augmented=True)}
    made = stores.make(tmp_path / "store.zarr", rows=ROWS, teachers=teachers)
    export_logits(made.store, "wide", tmp_path / f"all.{ending}")
    export_logits(made.store, "wide", tmp_path / f"one.{ending}", view=2)
    for name, view in (("all", 1), ("all", 2), ("one", None)):
        with pytest.raises(BadDataError, match="found a view of which the teacher saw augmented inputs"):
            import_logits(tmp_path / f"{name}.{ending}", tmp_path / "new.zarr", "wide", view=view)
    assert import_logits(tmp_path / f"all.{ending}", tmp_path / "new.zarr", "wide", view=0).made


# Formats


def saved(folder: Path, logits: NDArray[np.float32], form: str) -> list[Path]:
    """Save logits as somebody else would; return the files in order."""
    tensor = torch.from_numpy(logits)
    half = len(logits) // 2
    if form == "npy":
        np.save(folder / "a.npy", logits)
    elif form == "npy in Fortran order":
        np.save(folder / "a.npy", np.asfortranarray(logits))
    elif form == "big-endian npy":
        np.save(folder / "a.npy", logits.astype(">f4"))
    elif form == "two npy":
        np.save(folder / "a.npy", logits[:half])
        np.save(folder / "b.npy", logits[half:].astype(np.float64))
    elif form == "pt":
        torch.save(tensor, folder / "a.pt")
    elif form == "bfloat16 pt":
        torch.save(tensor.bfloat16(), folder / "a.pt")
    elif form == "old pt":
        torch.save(tensor, folder / "a.pth", _use_new_zipfile_serialization=False)
    elif form == "dict pt":
        torch.save({"epoch": 3, "logits": tensor, "features": torch.zeros(3, 7)}, folder / "a.pt")
    elif form == "parameter pt":
        torch.save(torch.nn.Parameter(tensor), folder / "a.pt")
    elif form == "safetensors":
        safetensors.torch.save_file({"anything": tensor}, folder / "a.safetensors")
    elif form == "bfloat16 safetensors":
        safetensors.torch.save_file({"logits": tensor.bfloat16(), "x": tensor}, folder / "a.safetensors")
    return sorted(folder.glob("[ab].*"))


@pytest.mark.parametrize(
    "form",
    [
        "npy",
        "npy in Fortran order",
        "big-endian npy",
        "two npy",
        "pt",
        "bfloat16 pt",
        "old pt",
        "dict pt",
        "parameter pt",
        "safetensors",
        "bfloat16 safetensors",
    ],
)
def test_files_of_others_are_read_exactly(tmp_path: Path, logits: NDArray[np.float32], form: str) -> None:
    logits = np.asarray(torch.from_numpy(logits).bfloat16().float().numpy())  # all of these forms hold it
    done = import_logits(saved(tmp_path, logits, form), tmp_path / "new.zarr", "wide")
    capture = open_store(tmp_path / "new.zarr").teachers["wide"]
    assert np.array_equal(capture.read(EVERY), centred(logits))
    assert np.array_equal(capture.peak(EVERY), logits.max(axis=1))
    assert capture.encoding.kind == "float32" and done.rows == ROWS
    assert (done.labelled, done.has_ids) == (0, False)
    found = capture.provenance["imported_from"]
    assert [one["file"] for one in found] == [one.name for one in sorted(tmp_path.glob("[ab].*"))]
    assert [one["sha256"] for one in found] == [one.sha256 for one in done.files]


def test_float64_is_centred_before_it_is_rounded(tmp_path: Path, logits: NDArray[np.float32]) -> None:
    wide = logits.astype(np.float64) / 3 + 1e7
    np.save(tmp_path / "a.npy", wide)
    assert import_logits(tmp_path / "a.npy", tmp_path / "new.zarr", "wide").dtype == "float64"
    assert np.array_equal(open_store(tmp_path / "new.zarr").teachers["wide"].read(EVERY), centred(wide))


def write_labels(path: Path, labels: NDArray[np.int64]) -> Path:
    """Save labels in the form of a file's ending."""
    if path.suffix == ".txt":
        path.write_text("\n".join(map(str, labels)) + "\n")
    elif path.suffix == ".json":
        path.write_text(json.dumps(labels.tolist()))
    elif path.suffix == ".npy":
        np.save(path, labels.astype(np.uint8))
    elif path.suffix == ".pt":
        torch.save({"label": torch.from_numpy(labels), "x": torch.zeros(2)}, path)
    else:
        safetensors.torch.save_file({"targets": torch.from_numpy(labels)}, path)
    return path


@pytest.mark.parametrize("ending", ["txt", "json", "npy", "pt", "safetensors"])
def test_labels_ids_and_names_come_from_files(
    tmp_path: Path, logits: NDArray[np.float32], labels: NDArray[np.int64], ending: str
) -> None:
    np.save(tmp_path / "a.npy", logits)
    given = write_labels(tmp_path / f"l.{ending}", labels)
    ids = [f"bild-{row}.ü" for row in range(ROWS)]
    if ending == "json":
        (tmp_path / "ids.json").write_text(json.dumps(ids))
    elif ending == "npy":
        np.save(tmp_path / "ids.npy", np.array(ids))
    else:
        (tmp_path / "ids.txt").write_text("\r\n".join(ids) + "\r\n", encoding="utf-8-sig")
    (tmp_path / "c.txt").write_text("one\ntwo\nthree\nfour\nfive\n")
    import_logits(
        tmp_path / "a.npy",
        tmp_path / "new.zarr",
        "wide",
        labels=given,
        ids=next(tmp_path.glob("ids.*")),
        class_names=tmp_path / "c.txt",
        card={"licence": "CC0-1.0"},
    )
    store = open_store(tmp_path / "new.zarr")
    assert np.array_equal(store.samples.labels, labels)
    assert store.samples.ids == ids
    assert store.class_names == ["one", "two", "three", "four", "five"]
    assert store.card == {"licence": "CC0-1.0"}


def test_values_in_hand_and_labels_of_several_files(
    tmp_path: Path, logits: NDArray[np.float32], labels: NDArray[np.int64]
) -> None:
    paths = saved(tmp_path, logits, "two npy")
    np.save(tmp_path / "l0.npy", labels[:20])
    np.save(tmp_path / "l1.npy", labels[20:])
    parts = [tmp_path / "l0.npy", tmp_path / "l1.npy"]
    import_logits(
        paths, tmp_path / "new.zarr", "wide", labels=parts, ids=range(ROWS), class_names=list("abcde")
    )
    store = open_store(tmp_path / "new.zarr")
    assert np.array_equal(store.samples.labels, labels)
    assert store.samples.ids == list(map(str, range(ROWS))) and store.class_names == list("abcde")


@pytest.mark.parametrize(
    ("encoding", "kind"),
    [
        ("float16", "float16"),
        ({"max_kl": 1e-2}, "error-budget"),
        ({"top_k": 2}, "top-k"),
        ({"transform": {"max_kl": 1e-2, "rows": 8}}, "transform"),
    ],
)
def test_an_encoding_may_be_chosen(
    tmp_path: Path, logits: NDArray[np.float32], encoding: Any, kind: str
) -> None:
    np.save(tmp_path / "a.npy", logits)
    import_logits(tmp_path / "a.npy", tmp_path / "new.zarr", "wide", encoding=encoding)
    capture = open_store(tmp_path / "new.zarr").teachers["wide"]
    assert capture.encoding.kind == kind
    if kind in ("float16", "error-budget"):
        assert abs(capture.read(EVERY) - centred(logits)).max() < 2
    assert not import_logits(tmp_path / "a.npy", tmp_path / "new.zarr", "wide", encoding=encoding).made


# Values


def probabilities(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.asarray(stores.softmax(logits / 8, 1.0).astype(np.float32))


@pytest.mark.parametrize(
    ("change", "kind", "said"),
    [
        (
            lambda z: _set(z, np.nan),
            BadLogitsError,
            "a.npy, row 30, class 2: expected finite logits, found nan",
        ),
        (lambda z: _set(z, np.inf), BadLogitsError, "found inf"),
        (lambda z: _set(z, -np.inf), BadLogitsError, "or mask a class by a finite logit such as -1e3"),
        (lambda z: z[0], BadDataError, "expected an array (row, class) of at least 2 classes"),
        (lambda z: z[:, :1], BadDataError, "expected an array (row, class) of at least 2 classes"),
        (lambda z: np.stack([z, z]), BadDataError, "expected logits of one view, found 2 views"),
        (lambda z: z.argmax(1), BadDataError, "found int64; name an array of logits"),
        (lambda z: z.astype(np.complex64), BadDataError, "found complex64; save them as float32"),
        (lambda z: z[:0], BadDataError, "expected rows, found none"),
        (lambda z: z.astype(np.float64) * 1e300, BadLogitsError, "expected logits within float32's range"),
        (
            lambda z: probabilities(z),
            BadLogitsError,
            "found probabilities: every row lies in 0…1 and sums to 1",
        ),
        (lambda z: probabilities(z).astype("f2"), BadLogitsError, "found probabilities"),
        (lambda z: np.log(probabilities(z)), BadLogitsError, "found log-probabilities"),
        (lambda z: np.log(probabilities(z)).astype("f2"), BadLogitsError, "found log-probabilities"),
    ],
)
def test_values_that_are_no_logits_are_refused_and_nothing_is_left(
    tmp_path: Path,
    logits: NDArray[np.float32],
    change: Callable[[Any], Any],
    kind: type[LogitStoreError],
    said: str,
) -> None:
    np.save(tmp_path / "a.npy", change(logits.copy()))
    for dry_run in (True, False):
        with pytest.raises(kind) as caught:
            import_logits(tmp_path / "a.npy", tmp_path / "new.zarr", "wide", dry_run=dry_run)
        assert said in str(caught.value) and "\n" not in str(caught.value)
    assert [one.name for one in tmp_path.iterdir()] == ["a.npy"]


def _set(logits: NDArray[np.float32], value: float) -> NDArray[np.float32]:
    logits[30, 2] = value
    return logits


@pytest.mark.parametrize(
    "change",
    [
        lambda z: probabilities(z) * 2,
        lambda z: probabilities(z) - 0.3,
        lambda z: np.concatenate([probabilities(z), z]),
        lambda z: z - z.max(axis=1, keepdims=True) - 60 * (z < z.max(axis=1, keepdims=True)),
        lambda z: np.log(probabilities(z)) + 1,
    ],
    ids=["twice the sum", "below 0", "some rows", "centred logits of a certain teacher", "shifted"],
)
def test_logits_that_are_nearly_probabilities_are_taken(
    tmp_path: Path, logits: NDArray[np.float32], change: Callable[[Any], Any]
) -> None:
    """Negative controls."""
    np.save(tmp_path / "a.npy", np.asarray(change(logits), dtype=np.float32))
    assert import_logits(tmp_path / "a.npy", tmp_path / "new.zarr", "wide", dry_run=True).made


def test_log_probabilities_are_logits_but_for_a_constant(tmp_path: Path, logits: NDArray[np.float32]) -> None:
    np.save(tmp_path / "a.npy", np.log(stores.softmax(logits, 1.0)))
    import_logits(tmp_path / "a.npy", tmp_path / "new.zarr", "wide", log_probabilities=True)
    capture = open_store(tmp_path / "new.zarr").teachers["wide"]
    assert capture.provenance["values"] == "log-probabilities"
    for temperature in (1.0, 4.0, 20.0):
        found = stores.softmax(capture.read(EVERY), temperature)
        assert np.allclose(found, stores.softmax(logits, temperature), atol=1e-6)
    np.save(tmp_path / "b.npy", logits)
    with pytest.raises(BadLogitsError, match="expected log-probabilities, whose exponentials sum to 1"):
        import_logits(tmp_path / "b.npy", tmp_path / "other.zarr", "wide", log_probabilities=True)


# Files


def _objects(folder: Path) -> Path:
    np.save(folder / "a.npy", np.array([{}, 1], dtype=object), allow_pickle=True)
    return folder / "a.npy"


def _archive(folder: Path) -> Path:
    with io.BytesIO() as file:
        np.savez(file, a=np.zeros((3, 3)))
        (folder / "a.npy").write_bytes(file.getvalue())
    return folder / "a.npy"


def _module(folder: Path) -> Path:
    torch.save(torch.nn.Linear(2, 2), folder / "a.pt")
    return folder / "a.pt"


def _two_tensors(folder: Path) -> Path:
    torch.save({"a": torch.zeros(3, 4), "b": torch.zeros(3, 4)}, folder / "a.pt")
    return folder / "a.pt"


def _bfloat16(folder: Path) -> Path:
    np.save(folder / "a.npy", np.zeros((3, 4), "V2"))
    return folder / "a.npy"


def _bytes(name: str, data: bytes) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        (folder / name).write_bytes(data)
        return folder / name

    return write


def _header(**tensor: Any) -> bytes:
    entry = {"dtype": "F32", "shape": [2, 4], "data_offsets": [0, 32]} | tensor
    text = json.dumps({"logits": entry}).encode()
    return len(text).to_bytes(8, "little") + text + bytes(32)


@pytest.mark.parametrize(
    ("write", "said"),
    [
        (_objects, "found an array of objects, which are code"),
        (_archive, "found an archive of arrays"),
        (_module, "found a whole module, whose classes are code"),
        (
            _two_tensors,
            "expected an array named logits, or one array of floating rows alone, found a float32 (3, 4)",
        ),
        (_bfloat16, "found bfloat16, which NumPy does not have"),
        (_bytes("a.npy", b"no array"), "expected an array of numbers, as numpy.save writes it"),
        (_bytes("a.pt", b"no tensor"), "expected a tensor, or a dict of tensors"),
        (_bytes("a.safetensors", b"no"), "expected a whole safetensors file"),
        (_bytes("a.safetensors", _header()[:-1]), "expected a whole safetensors file"),
        (_bytes("a.safetensors", _header(shape=[2, 1 << 60])), "expected a whole safetensors file"),
        (_bytes("a.safetensors", _header(data_offsets=[8, 40])), "expected a whole safetensors file"),
        (_bytes("a.safetensors", _header(shape=[2.0, 4])), "expected a whole safetensors file"),
        (_bytes("a.safetensors", b"\xff" * 40), "expected a whole safetensors file"),
        (_bytes("a.csv", b"1,2"), "expected a name that ends in .npy, .pt, .pth, .safetensors, .parquet"),
        (lambda folder: folder / "none.npy", "found no such file or directory"),
        (lambda folder: folder, "found is a directory"),
    ],
)
def test_a_file_that_cannot_be_read_is_one_line(
    tmp_path: Path, write: Callable[[Path], Path], said: str
) -> None:
    (tmp_path / "files").mkdir()
    with pytest.raises((BadDataError, ConfigError)) as caught:
        import_logits(write(tmp_path / "files"), tmp_path / "new.zarr", "wide")
    assert said in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "new.zarr").exists()


@pytest.mark.parametrize(
    ("keywords", "kind", "said"),
    [
        ({"labels": [1, 2]}, BadDataError, "labels: expected 37, one a row of the logits, found 2"),
        ({"ids": ["a"]}, BadDataError, "ids: expected 37, one a row of the logits, found 1"),
        ({"ids": [None] * ROWS}, BadDataError, "ids, row 0: expected a text, found None"),
        (
            {"labels": [5] * ROWS},
            ConfigError,
            "labels[0]: expected a class from 0 to 4, or -1 for unknown, found 5",
        ),
        ({"labels": np.full(ROWS, 0.5)}, ConfigError, "labels: expected one integer a row"),
        (
            {"labels": "{folder}/ids.txt"},
            BadDataError,
            "ids.txt, row 0: expected the number of a class, or -1",
        ),
        ({"class_names": ["a"]}, ConfigError, "class_names: expected 5 names, one a class, found 1"),
        ({"inputs": np.zeros((3, 2))}, BadDataError, "inputs: expected 37, one a row of the logits, found 3"),
        ({"digests": np.zeros(ROWS)}, ConfigError, "digests: expected uint64, one a row, found float64"),
        ({"encoding": "float8"}, ConfigError, "encoding: expected"),
        ({"column": "logits"}, ConfigError, "expected an array of the file, found an array without a name"),
        ({"view": 1}, ConfigError, "expected 0 to 0, found 1"),
        ({"teacher": "../up"}, ConfigError, "teacher: expected a name of 1 to 64"),
        ({"card": {"owner": "me"}}, ConfigError, "card: expected keys among"),
        (
            {"store": "{folder}"},
            NameTaken,
            "expected a path that is free, found a folder with other things in it",
        ),
        ({"store": "https://host/new.zarr"}, ConfigError, "expected a store that can be written to"),
        (
            {"files": ["{folder}/a.npy", "{folder}/narrow.npy"]},
            BadDataError,
            "expected rows of 5 logits, as in",
        ),
        ({"files": "s3://bucket/a.npy"}, ConfigError, "expected a file on a local disk, found a s3:// URL"),
        ({"files": []}, ConfigError, "files: expected a file of logits, found none"),
    ],
)
def test_a_wrong_call_is_one_line_and_leaves_nothing(
    tmp_path: Path,
    logits: NDArray[np.float32],
    keywords: dict[str, Any],
    kind: type[LogitStoreError],
    said: str,
) -> None:
    folder = tmp_path / "files"
    folder.mkdir()
    np.save(folder / "a.npy", logits)
    np.save(folder / "narrow.npy", logits[:, :4])
    (folder / "ids.txt").write_text("x\n" * ROWS)
    before = stores.tree(tmp_path)

    def filled(value: Any) -> Any:
        if isinstance(value, list):
            return [filled(one) for one in value]
        return value.format(folder=folder) if isinstance(value, str) else value

    call = {"files": folder / "a.npy", "store": tmp_path / "new.zarr", "teacher": "wide"}
    with pytest.raises(kind) as caught:
        import_logits(**call | {key: filled(value) for key, value in keywords.items()})
    assert said in str(caught.value) and "\n" not in str(caught.value)
    assert stores.tree(tmp_path) == before


# Stores that are there


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A store of other logits of the same rows, with ids, labels and inputs."""
    return stores.make(tmp_path / "store.zarr", rows=ROWS, teachers={"deep": Teacher()}).store


def known(store: Store) -> dict[str, Any]:
    """Return what identifies the rows of a store."""
    samples = store.samples
    assert samples.inputs is not None
    return {"labels": samples.labels, "ids": samples.ids, "inputs": samples.inputs[:]}


@pytest.mark.parametrize("key", ["labels", "ids", "inputs"])
def test_a_capture_is_added_where_rows_agree(
    tmp_path: Path, store: Store, logits: NDArray[np.float32], key: str
) -> None:
    np.save(tmp_path / "a.npy", logits)
    before = stores.tree(store.path)
    given = {key: known(store)[key]}
    done = import_logits(tmp_path / "a.npy", store.path, "new", **given)
    now = open_store(store.path)
    assert list(now.teachers) == ["deep", "new"] and not done.new_store
    assert np.array_equal(now.teachers["new"].read(EVERY), centred(logits))
    assert done.digest == now.digest
    assert {name: data for name, data in stores.tree(store.path).items() if name in before} == before
    assert not import_logits(tmp_path / "a.npy", store.path, "new", **given).made


@pytest.mark.parametrize("key", ["labels", "ids", "inputs"])
def test_rows_of_another_set_are_refused(
    tmp_path: Path, store: Store, logits: NDArray[np.float32], key: str
) -> None:
    """Negative control of each comparison; what stands beside the other rows agrees."""
    np.save(tmp_path / "a.npy", logits)
    given = known(store)
    other = list(given[key])
    other[17], other[18] = other[18], other[17]
    before = stores.tree(store.path)
    with pytest.raises(RowMismatch) as caught:
        import_logits(tmp_path / "a.npy", store.path, "new", **given | {key: np.array(other)})
    assert "row 17" in str(caught.value)
    if key != "inputs":
        assert "row r is example store.samples.source[r] of its transfer set" in caught.value.remedy
    assert stores.tree(store.path) == before


def test_rows_that_cannot_be_compared_are_refused(
    tmp_path: Path, store: Store, logits: NDArray[np.float32], sentence: Callable[[object], None]
) -> None:
    np.save(tmp_path / "a.npy", logits)
    np.save(tmp_path / "few.npy", logits[:9])
    same = np.zeros(ROWS, np.int64)
    nameless = stores.make(tmp_path / "n.zarr", rows=ROWS, teachers={}, names=False).store
    import_logits(tmp_path / "few.npy", tmp_path / "few.zarr", "few")
    for place, keywords, kind in (
        (store.path, {}, ConfigError),
        (nameless.path, {"ids": range(ROWS)}, ConfigError),
        (tmp_path / "few.zarr", {"ids": range(ROWS)}, SpecMismatch),
        (store.path, {"labels": same}, RowMismatch),
        (store.path, {"ids": store.samples.ids, "class_names": list("abcde")}, SpecMismatch),
    ):
        before = stores.tree(place)
        with pytest.raises(kind) as caught:
            import_logits(tmp_path / "a.npy", place, "new", **keywords)
        sentence(caught.value)
        assert stores.tree(place) == before


def test_labels_of_one_class_do_not_identify_rows(tmp_path: Path, logits: NDArray[np.float32]) -> None:
    for name in "ab":
        np.save(tmp_path / f"{name}.npy", logits + ord(name))
    same = np.full(ROWS, 3)
    import_logits(tmp_path / "a.npy", tmp_path / "s.zarr", "a", labels=same)
    with pytest.raises(ConfigError, match="expected labels of the rows"):
        import_logits(tmp_path / "b.npy", tmp_path / "s.zarr", "b", labels=same)
    # The file that the store was made of says which rows they are.
    assert import_logits(tmp_path / "a.npy", tmp_path / "s.zarr", "again", labels=same).made


def test_the_name_of_another_capture_is_refused(
    tmp_path: Path, store: Store, logits: NDArray[np.float32]
) -> None:
    np.save(tmp_path / "a.npy", logits)
    np.save(tmp_path / "b.npy", logits + 1)
    given = {"ids": store.samples.ids}
    with pytest.raises(NameTaken, match="expected a name that is free, or a capture with imported_from"):
        import_logits(tmp_path / "a.npy", store.path, "deep", **given)
    import_logits(tmp_path / "a.npy", store.path, "new", **given)
    with pytest.raises(SpecMismatch, match=r"expected imported_from = .*, with which it was made"):
        import_logits(tmp_path / "b.npy", store.path, "new", **given)
    with pytest.raises(SpecMismatch, match=r"expected encoding.kind = 'float32'"):
        import_logits(tmp_path / "a.npy", store.path, "new", encoding="float16", **given)


def test_a_store_whose_samples_are_not_sealed_is_refused(tmp_path: Path, logits: NDArray[np.float32]) -> None:
    np.save(tmp_path / "a.npy", logits)
    from logitstore.storage.api import begin_store

    other = begin_store(tmp_path / "s.zarr", num_rows=ROWS, num_classes=CLASSES, block_rows=8)
    writer = other.samples_writer(identity={"digest_of": "array", "order": {"kind": "as_is"}})
    writer.write(
        range(8),
        source=np.arange(8),
        digest=np.arange(8, dtype=np.uint64),
        label=np.zeros(8, np.int64),
    )
    writer.close()
    with pytest.raises(StoreIncomplete):
        import_logits(tmp_path / "a.npy", tmp_path / "s.zarr", "new", ids=range(ROWS))


# Inputs


def test_inputs_serve_a_training_and_rows_without_them_are_not_taken_for_known(
    tmp_path: Path, logits: NDArray[np.float32], labels: NDArray[np.int64], sentence: Callable[[object], None]
) -> None:
    inputs = stores.some_inputs(ROWS, "float32", (3,))
    np.save(tmp_path / "a.npy", logits)
    np.save(tmp_path / "x.npy", inputs)
    for name, given in (
        ("kept", {"inputs": tmp_path / "x.npy"}),
        ("checked", {"inputs": inputs, "store_inputs": False}),
        ("digests", {"digests": logitstore.digest_rows(inputs)}),
        ("ids", {"ids": range(ROWS)}),
        ("none", {}),
    ):
        import_logits(tmp_path / "a.npy", tmp_path / f"{name}.zarr", "wide", labels=labels, **given)
    kept = open_store(tmp_path / "kept.zarr")
    assert np.array_equal(np.concatenate([b.inputs for b in kept.stream(8, shuffle=False)]), inputs)
    examples = [(inputs[row], int(labels[row])) for row in range(ROWS)]
    for name in ("checked", "digests"):
        batches = open_store(tmp_path / f"{name}.zarr").stream(8, shuffle=False, transfer_set=examples)
        assert np.array_equal(np.concatenate([batch.inputs for batch in batches]), inputs)
    student = torch.nn.Linear(3, CLASSES)
    logitstore.distill(
        tmp_path / "checked.zarr", student, lr=0.01, epochs=1, dataset=examples, progress=False
    )
    for name in ("ids", "none"):
        store = open_store(tmp_path / f"{name}.zarr")
        assert store.samples.inputs is None
        with pytest.raises(ConfigError) as caught:
            store.stream(8, transfer_set=examples)
        sentence(caught.value)
    with pytest.raises(ConfigError, match="as of an import without inputs"):
        logitstore.distill(store, student, lr=0.01, epochs=1, dataset=examples, progress=False)


# Faults


def test_a_file_that_changes_meanwhile_is_not_sealed(
    tmp_path: Path, logits: NDArray[np.float32], monkeypatch: pytest.MonkeyPatch
) -> None:
    np.save(tmp_path / "a.npy", logits)
    read = GivenLogits.read_peak

    def changing(self: GivenLogits, start: int, stop: int) -> Any:
        np.save(tmp_path / "b.npy", logits + 1)
        (tmp_path / "b.npy").replace(tmp_path / "a.npy")
        return read(self, start, stop)

    monkeypatch.setattr(GivenLogits, "read_peak", changing)
    with pytest.raises(BadDataError, match="found a file that was replaced or written to"):
        import_logits(tmp_path / "a.npy", tmp_path / "new.zarr", "wide")
    assert list(open_store(tmp_path / "new.zarr").teachers) == []


def test_a_disk_without_room_is_refused_beforehand(
    tmp_path: Path, logits: NDArray[np.float32], monkeypatch: pytest.MonkeyPatch
) -> None:
    np.save(tmp_path / "a.npy", logits)
    usage = mock.Mock(free=10)
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    with pytest.raises(StorageFull, match="expected room for 740 bytes, found 10 free bytes"):
        import_logits(tmp_path / "a.npy", tmp_path / "new.zarr", "wide")
    assert [one.name for one in tmp_path.iterdir()] == ["a.npy"]


def test_rows_in_pieces_are_those_of_one_piece(
    tmp_path: Path, logits: NDArray[np.float32], monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = saved(tmp_path, logits, "two npy")
    import_logits(paths, tmp_path / "whole.zarr", "wide")
    monkeypatch.setattr(import_files, "_PIECE_BYTES", 3 * 4 * CLASSES)
    import_logits(paths, tmp_path / "pieces.zarr", "wide")
    assert stores.tree(tmp_path / "whole.zarr") == stores.tree(tmp_path / "pieces.zarr")
    logits[20, 0] = np.nan
    np.save(tmp_path / "b.npy", logits[18:])
    with pytest.raises(BadLogitsError, match=r"b.npy, row 2, class 0"):
        import_logits(paths, tmp_path / "bad.zarr", "wide")
