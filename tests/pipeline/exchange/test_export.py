"""Exports: the numbers of a capture and of its rows, in files that appear whole, in memory that does not grow."""

import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file
from support import stores
from support.stores import Made, Teacher
from support.web import serving

import logitstore
from logitstore.pipeline.exchange import columns as columns_module
from logitstore.pipeline.exchange import writers
from logitstore.pipeline.exchange.export import export_logits
from logitstore.storage.backends import whole_file
from logitstore.storage.errors import (
    BadLogitsError,
    ConfigError,
    LogitStoreError,
    NameTaken,
    PartNotFound,
    ShardCorrupt,
    StorageFull,
)

ROWS = 37
TEACHERS = {
    "wide": Teacher(views=2),
    "deep": Teacher(encoding="float32"),
    "some": Teacher(classes=(3, 1, -1)),
    "top": Teacher(encoding={"top_k": 2}),
    "small": Teacher(encoding={"transform": {"max_kl": 1e-2}}),
}


@pytest.fixture(autouse=True)
def quick(without_fsync: None) -> None:
    """Files are looked at here, not power cuts."""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A store of several encodings; it is not changed."""
    return stores.make(tmp_path_factory.mktemp("made") / "store.zarr", rows=ROWS, teachers=TEACHERS)


def read_back(path: Path) -> dict[str, Any]:
    """Return the arrays of an export by the names of the tensors, read by other libraries."""
    if path.suffix == ".safetensors":
        return dict(load_file(path))
    names = {"row": "rows", "source": "source", "label": "labels", "peak": "peak"}
    files = {name: path.with_suffix(f".{ending}.npy") for name, ending in names.items()}
    return {"logits": np.load(path), **{name: np.load(file) for name, file in files.items() if file.exists()}}


@pytest.mark.parametrize("ending", ["npy", "safetensors"])
@pytest.mark.parametrize("teacher", ["wide", "deep", "some", "small"])
def test_an_export_is_what_a_reader_reads(made: Made, tmp_path: Path, teacher: str, ending: str) -> None:
    path = tmp_path / f"new/folder/out.{ending}"
    done = logitstore.export_logits(made.path, teacher, path)
    capture = made.store.teachers[teacher]
    views = range(capture.num_views)
    arrays, every = read_back(path), slice(None)
    expected = np.stack([capture.read(every, view) for view in views])
    assert arrays["logits"].dtype == np.float32
    assert np.array_equal(arrays["logits"], expected if len(views) > 1 else expected[0])
    assert arrays["row"].tolist() == list(range(ROWS))
    assert np.array_equal(arrays["label"], made.labels)
    assert np.array_equal(arrays["source"], made.store.samples.source)
    if capture.has_peak:
        peak = np.stack([capture.peak(every, view) for view in views])
        assert np.array_equal(arrays["peak"].reshape(peak.shape), peak)
    assert ("peak" in arrays) == capture.has_peak
    assert (done.rows, done.views, done.columns) == (ROWS, len(views), capture.shape[2])
    assert done.digest == made.store.digest and done.made
    assert sum(one.stat().st_size for one in path.parent.iterdir()) <= done.bytes + 1024


def test_ids_and_the_note_go_along(made: Made, tmp_path: Path) -> None:
    export_logits(made.store, "some", tmp_path / "out.npy")
    note = json.loads((tmp_path / "out.json").read_text("utf-8"))
    assert json.loads((tmp_path / "out.ids.json").read_text("utf-8")) == made.store.samples.ids
    assert note["class_names"] == made.store.class_names and note["classes"] == [3, 1, -1]
    assert note["capture"] == made.store.teachers["some"].digest
    export_logits(made.store, "some", tmp_path / "out.safetensors")
    ids = load_file(tmp_path / "out.safetensors")["id"]
    texts = [bytes(row).rstrip(b"\0").decode() for row in ids]
    assert texts == made.store.samples.ids


@pytest.mark.parametrize("rows", [slice(5, 20), slice(-3, None), [0, 1, 7, 7, 36], np.arange(3, 30, 4)])
def test_some_rows_of_one_view(
    made: Made, tmp_path: Path, rows: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(columns_module, "PIECE_BYTES", 4 * 5 * 4)  # pieces of four rows
    export_logits(made.store, "wide", tmp_path / "out.npy", rows=rows, view=1)
    arrays = read_back(tmp_path / "out.npy")
    assert np.array_equal(arrays["logits"], made.store.teachers["wide"].read(rows, 1))
    assert np.array_equal(arrays["row"], np.arange(ROWS)[rows])
    assert np.array_equal(arrays["label"], made.labels[rows])


def test_float16_and_a_top_k_at_a_temperature(made: Made, tmp_path: Path) -> None:
    export_logits(made.store, "deep", tmp_path / "half.npy", dtype="float16")
    assert np.array_equal(np.load(tmp_path / "half.npy"), made.centred("deep", "float16")[0].astype("f2"))
    export_logits(made.store, "top", tmp_path / "top.npy", temperature=2.0)
    expected = made.store.teachers["top"].read(slice(None), temperature=2.0)
    assert np.array_equal(np.load(tmp_path / "top.npy"), expected)


def test_a_logit_beyond_float16_is_refused(tmp_path: Path, sentence: Callable[[object], None]) -> None:
    logits = np.zeros((1, 8, 5), np.float32)
    logits[0, 6, 2] = -1e5
    store = stores.make(tmp_path / "far.zarr", rows=8, teachers={}).store
    with store.capture("far", provenance={}, encoding="float32") as capture:
        for rows in capture.missing_blocks():
            capture.write(rows, logits[0, rows.start : rows.stop])
    before = stores.tree(tmp_path)
    with pytest.raises(BadLogitsError) as caught:
        export_logits(store, "far", tmp_path / "out.safetensors", dtype="float16")
    sentence(caught.value)
    assert caught.value.found == "-100000.0"
    assert stores.tree(tmp_path) == before
    export_logits(store, "far", tmp_path / "out.safetensors")


@pytest.mark.parametrize("ending", ["npy", "safetensors"])
def test_the_same_export_is_recognised_and_another_file_is_kept(
    made: Made, tmp_path: Path, ending: str
) -> None:
    path = tmp_path / f"out.{ending}"
    assert export_logits(made.store, "wide", path).made
    before = stores.tree(tmp_path)
    assert not export_logits(made.store, "wide", path).made
    for other in ({"dtype": "float16"}, {"view": 0}, {"rows": slice(3)}):
        with pytest.raises(NameTaken, match=r"found an export of other (dtype|rows|views)"):
            export_logits(made.store, "wide", path, **other)
    with pytest.raises(NameTaken, match="an export of teacher wide, and not deep"):
        export_logits(made.store, "deep", path)
    assert stores.tree(tmp_path) == before
    assert export_logits(made.store, "deep", path, force=True).made
    assert np.array_equal(read_back(path)["logits"], made.centred("deep", "float32")[0])
    assert not export_logits(made.store, "deep", path, force=True).made


@pytest.mark.parametrize("ending", ["npy", "safetensors"])
def test_a_file_that_was_cut_is_no_export(made: Made, tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"out.{ending}"
    export_logits(made.store, "wide", path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    with pytest.raises(NameTaken, match="found a file"):
        export_logits(made.store, "wide", path)
    export_logits(made.store, "wide", path, force=True)
    assert path.read_bytes() == whole


def test_a_replacement_that_was_killed_is_not_taken_for_done(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "out.npy"
    export_logits(made.store, "deep", path)
    assert export_logits(made.store, "wide", path, view=0, dry_run=True, force=True).made
    genuine = writers._put

    def killed(file: Any, columns: Any, name: str, report: Any) -> None:
        if name == "logits":
            raise KeyboardInterrupt
        genuine(file, columns, name, report)

    with monkeypatch.context() as patch:
        patch.setattr(writers, "_put", killed)
        with pytest.raises(KeyboardInterrupt):
            export_logits(made.store, "wide", path, view=0, force=True)
    assert export_logits(made.store, "wide", path, view=0).made
    assert np.array_equal(np.load(path), made.store.teachers["wide"].read(slice(None), 0))


def test_columns_of_a_former_export_do_not_stay_beside_another(made: Made, tmp_path: Path) -> None:
    path, lone = tmp_path / "out.npy", tmp_path / "out.peak.npy"
    export_logits(made.store, "wide", path)
    assert lone.exists() and not made.store.teachers["small"].has_peak
    export_logits(made.store, "small", path, force=True)
    assert not lone.exists() and (tmp_path / "out.ids.json").exists()
    path.unlink()
    lone.write_bytes(b"mine")
    for name in ("out.npy", "out.json"):  # after a kill, and of no export
        (tmp_path / name).unlink(missing_ok=True)
        with pytest.raises(NameTaken):
            export_logits(made.store, "small", path)
    assert lone.read_bytes() == b"mine"


@pytest.mark.parametrize("name", ["out.json", "out.labels.npy", "out.ids.json"])
def test_a_file_of_the_user_beside_an_array_is_kept(made: Made, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("mine")
    with pytest.raises(NameTaken, match=name):
        export_logits(made.store, "wide", tmp_path / "out.npy")
    assert stores.tree(tmp_path) == {name: b"mine"}


def test_a_remote_store_gives_the_same_bytes(made: Made, tmp_path: Path) -> None:
    export_logits(made.store, "wide", tmp_path / "local.safetensors")
    with serving(made.path.parent) as web:
        export_logits(f"{web.url}/store.zarr", "wide", tmp_path / "remote.safetensors")
    assert (tmp_path / "local.safetensors").read_bytes() == (tmp_path / "remote.safetensors").read_bytes()


def test_a_damaged_store_leaves_nothing(made: Made, tmp_path: Path) -> None:
    store = stores.make(tmp_path / "bad.zarr", rows=ROWS, teachers={"wide": Teacher()})
    shard = max((store.path / "teachers/wide/logits").glob("c.*"))
    data = bytearray(shard.read_bytes())
    data[0] ^= 1
    shard.write_bytes(data)
    with pytest.raises(ShardCorrupt):
        export_logits(store.path, "wide", tmp_path / "out.safetensors")
    assert sorted(one.name for one in tmp_path.iterdir()) == ["bad.zarr"]


@pytest.mark.parametrize(
    ("name", "keywords", "kind", "said"),
    [
        (
            "out.csv",
            {},
            ConfigError,
            "expected a name that ends in .parquet, .safetensors or .npy, found .csv",
        ),
        (
            "s3://bucket/out.npy",
            {},
            ConfigError,
            "found a s3:// URL; export to a local file, and upload that",
        ),
        ("out.npy", {"teacher": "nobody"}, PartNotFound, "choose one of these, or make it first"),
        ("out.npy", {"dtype": "float64"}, ConfigError, "expected float32 or float16, found 'float64'"),
        ("out.npy", {"view": 2}, ConfigError, "expected 0 to 1, found 2"),
        ("out.npy", {"rows": [9, 3]}, ConfigError, "found rows that go down"),
        ("out.npy", {"rows": slice(0, 0)}, ConfigError, "expected at least one row, found none"),
        ("out.npy", {"temperature": 2.0}, ConfigError, "wide keeps every logit"),
        ("out.npy", {"teacher": "top"}, ConfigError, "expected the temperature of the softmax"),
    ],
)
def test_a_wrong_call_is_one_line_and_leaves_nothing(
    made: Made, tmp_path: Path, name: str, keywords: dict[str, Any], kind: type[LogitStoreError], said: str
) -> None:
    path = name if "://" in name else tmp_path / name
    with pytest.raises(kind) as caught:
        export_logits(made.store, **{"teacher": "wide", "path": path} | keywords)
    assert said in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_disk_without_room_is_refused_beforehand(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = whole_file.shutil.disk_usage(tmp_path)._replace(free=100)
    monkeypatch.setattr(whole_file.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(StorageFull, match=r"expected room for [\d,]+ bytes, found 100 free bytes"):
        export_logits(made.store, "wide", tmp_path / "out.npy")
    assert list(tmp_path.iterdir()) == []
    assert export_logits(made.store, "wide", tmp_path / "out.npy", dry_run=True).made


def test_memory_does_not_grow_with_the_store(tmp_path: Path) -> None:
    """A capture of 64 MiB as float32 is exported in less than 40."""
    logits = stores.some_logits(1, 1 << 12, 1000)[0]
    path, blocks = tmp_path / "large.zarr", 4
    store = logitstore.create_store(
        path, num_classes=1000, digests=np.arange(blocks << 12, dtype=np.uint64), block_rows=4096
    )
    with store.capture("wide", provenance={}) as capture:
        for rows in capture.missing_blocks():
            capture.write(rows, logits)
    del logits
    tracemalloc.start()
    try:
        export_logits(path, "wide", tmp_path / "out.safetensors")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (tmp_path / "out.safetensors").stat().st_size > 60 << 20
    assert peak < 40 << 20, f"{peak >> 20} MiB"
