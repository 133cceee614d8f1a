"""Imports: logits of plain files in a sealed store, bit for bit; and a store whose inputs are known, or not."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from numpy.typing import NDArray
from support import stores
from support.plain_files import CLASSES, EVERY, ROWS, centred, saved
from support.stores import Made, Teacher

import logitstore
from logitstore.pipeline.exchange.export import export_logits
from logitstore.pipeline.exchange.import_files import import_logits
from logitstore.storage.api import open_store
from logitstore.storage.errors import (
    BadDataError,
    ConfigError,
)
from logitstore.storage.integrity.verify import verify


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


def test_other_logits_under_the_name_of_an_export_keep_their_own_constants(
    made: Made, tmp_path: Path, logits: NDArray[np.float32]
) -> None:
    export_logits(made.store, "deep", tmp_path / "out.npy")
    np.save(tmp_path / "out.npy", logits)
    import_logits(tmp_path / "out.npy", tmp_path / "new.zarr", "deep")
    assert np.array_equal(open_store(tmp_path / "new.zarr").teachers["deep"].peak(EVERY), logits.max(axis=1))
    np.save(tmp_path / "out.npy", logits[:, :3])
    done = import_logits(
        tmp_path / "out.npy", tmp_path / "fewer.zarr", "deep", labels=np.zeros(ROWS, np.int64)
    )
    assert done.classes == 3 and open_store(tmp_path / "fewer.zarr").class_names == ["0", "1", "2"]


def test_other_logits_under_the_name_of_a_float16_export_keep_every_digit(
    made: Made, tmp_path: Path, logits: NDArray[np.float32]
) -> None:
    export_logits(made.store, "wide", tmp_path / "out.npy", view=0)
    logits = logits + np.float32(1e-4) * np.arange(CLASSES, dtype=np.float32)
    assert not np.array_equal(centred(logits).astype(np.float16), centred(logits))
    np.save(tmp_path / "out.npy", logits)
    import_logits(tmp_path / "out.npy", tmp_path / "new.zarr", "wide")
    assert np.array_equal(open_store(tmp_path / "new.zarr").teachers["wide"].read(EVERY), centred(logits))


@pytest.mark.parametrize(
    "change",
    [
        {"num_classes": "5"},
        {"num_classes": 1},
        {"classes": [0, 1, 2]},
        {"classes": [0, 1, 2, 3, 3]},
        {"classes": [0, 1, 2, 3, 5]},
        {"class_names": [1, 2, 3, 4, 5]},
        {"class_names": "abcde"},
        {"views": None},
        {"augmented": 3},
        {"shape": []},
        {"logitstore_export": 2},
    ],
    ids=json.dumps,
)
def test_a_note_that_means_nothing_is_ignored(made: Made, tmp_path: Path, change: dict[str, Any]) -> None:
    export_logits(made.store, "deep", tmp_path / "out.npy")
    note = json.loads((tmp_path / "out.json").read_text("utf-8"))
    (tmp_path / "out.json").write_text(json.dumps(note | change))
    done = import_logits(tmp_path / "out.npy", tmp_path / "new.zarr", "deep")
    assert (done.labelled, done.has_ids) == (0, False)
    assert np.array_equal(
        open_store(done.path).teachers["deep"].read(EVERY), made.centred("deep", "float32")[0]
    )


@pytest.mark.parametrize("ending", ["npy", "safetensors"])
def test_logits_of_one_temperature_are_not_taken_for_all(tmp_path: Path, ending: str) -> None:
    made = stores.make(tmp_path / "store.zarr", rows=ROWS, teachers={"top": Teacher(encoding={"top_k": 2})})
    export_logits(made.store, "top", tmp_path / f"out.{ending}", temperature=2.0)
    with pytest.raises(
        BadDataError, match=r"decoded at temperature 2\.0; `logitstore copy` carries"
    ) as caught:
        import_logits(tmp_path / f"out.{ending}", tmp_path / "new.zarr", "top")
    assert "\n" not in str(caught.value) and not (tmp_path / "new.zarr").exists()


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
