"""Parquet: exports that pyarrow and `datasets` read, and tables of others as captures."""

import json
import re
import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from datasets import Dataset, List, Value, load_dataset
from pyarrow import parquet
from support import stores
from support.stores import Made, Teacher
from support.tree import ROOT

import logitstore
from logitstore.pipeline.exchange import columns, import_files, tables
from logitstore.storage.errors import BadDataError, BadLogitsError, NameTaken

ROWS, CLASSES = 37, 5
EVERY = slice(None)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A store of several encodings; it is not changed."""
    teachers = {
        "wide": Teacher(views=2),
        "deep": Teacher(encoding="float32"),
        "some": Teacher(classes=(3, 1, -1)),
    }
    return stores.make(tmp_path_factory.mktemp("made") / "store.zarr", rows=ROWS, teachers=teachers)


@pytest.mark.parametrize("teacher", ["wide", "deep", "some"])
def test_an_export_comes_back_bit_for_bit(
    made: Made, tmp_path: Path, teacher: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(columns, "PIECE_BYTES", 4 * 5 * 8)  # a row group of eight rows
    monkeypatch.setattr(tables, "_BATCH_BYTES", 8 * 5 * 3)  # batches of three
    monkeypatch.setattr(import_files, "_PIECE_BYTES", 4 * 5 * 7)
    path = tmp_path / "out.parquet"
    assert logitstore.export_logits(made.path, teacher, path).made
    ours = made.store.teachers[teacher]
    assert parquet.ParquetFile(path).metadata.num_row_groups == ours.num_views * 5
    assert not logitstore.export_logits(made.path, teacher, path).made
    with pytest.raises(NameTaken, match="an export of other dtype"):
        logitstore.export_logits(made.path, teacher, path, dtype="float16")
    for view in range(ours.num_views):
        new = tmp_path / f"new-{view}.zarr"
        chosen = view if ours.num_views > 1 else None
        logitstore.import_logits(path, new, teacher, view=chosen)
        store = logitstore.open_store(new)
        theirs = store.teachers[teacher]
        assert theirs.read(EVERY).tobytes() == ours.read(EVERY, view).tobytes()
        assert np.array_equal(theirs.peak(EVERY), ours.peak(EVERY, view))
        assert np.array_equal(store.samples.labels, made.labels)
        assert (store.samples.ids, store.class_names) == (made.store.samples.ids, made.store.class_names)
        assert np.array_equal(theirs.classes, ours.classes)
    if ours.num_views > 1:
        with pytest.raises(BadDataError, match="expected logits of one view, found 2 views"):
            logitstore.import_logits(path, tmp_path / "none.zarr", teacher)


def test_an_augmented_view_is_not_taken_for_the_rows(tmp_path: Path) -> None:
    teachers = {"wide": Teacher(views=3, augmented=True)}
    made = stores.make(tmp_path / "store.zarr", rows=ROWS, teachers=teachers)
    logitstore.export_logits(made.store, "wide", tmp_path / "all.parquet")
    logitstore.export_logits(made.store, "wide", tmp_path / "one.parquet", view=2)
    for name, view in (("all", 1), ("all", 2), ("one", None)):
        with pytest.raises(BadDataError, match="found a view of which the teacher saw augmented inputs"):
            logitstore.import_logits(tmp_path / f"{name}.parquet", tmp_path / "new.zarr", "wide", view=view)
    assert logitstore.import_logits(tmp_path / "all.parquet", tmp_path / "new.zarr", "wide", view=0).made


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_datasets_read_lists_of_one_length(made: Made, tmp_path: Path, dtype: str) -> None:
    path = tmp_path / "deep.parquet"
    logitstore.export_logits(made.store, "deep", path, dtype=dtype, rows=slice(3, 20))
    rows = load_dataset("parquet", data_files=str(path), split="train", cache_dir=str(tmp_path / "cache"))
    assert isinstance(rows, Dataset)
    assert rows.features["logits"] == List(Value(dtype), length=CLASSES)
    assert rows.column_names == ["view", "row", "source", "id", "label", "peak", "logits"]
    expected = made.centred("deep", dtype)[0, 3:20]
    assert np.array_equal(np.array(rows["logits"], dtype=np.float32), expected)
    assert rows["id"] == made.store.samples.ids[3:20]  # type: ignore[index]
    assert rows["row"] == list(range(3, 20)) and rows["view"] == [0] * 17


def test_the_lines_of_the_guide_run(made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    logitstore.export_logits(made.store, "deep", "wide.parquet")
    page = (ROOT / "docs/guides/plain-files.md").read_text(encoding="utf-8")
    (lines,) = [
        block
        for block in re.findall(r"^```python\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
        if "datasets" in block
    ]
    (tmp_path / "example.py").write_text(lines, encoding="utf-8")
    assert len(runpy.run_path("example.py")["rows"]) == ROWS


def save(path: Path, **given: Any) -> Path:
    parquet.write_table(pa.table(given), path, row_group_size=9)
    return path


@pytest.mark.parametrize(
    "kind",
    [
        pa.list_(pa.float64()),
        pa.large_list(pa.float32()),
        pa.list_(pa.float32(), CLASSES),
        pa.list_(pa.float16()),
    ],
    ids=str,
)
def test_tables_of_others_in_several_files(tmp_path: Path, kind: Any) -> None:
    logits = stores.some_logits(1, ROWS, CLASSES)[0].round(1).astype("f2").astype("f4")
    names = [f"image {row}" for row in range(ROWS)]
    for number, part in enumerate((slice(0, 20), slice(20, ROWS))):
        rows = pa.array(
            [list(row) for row in logits[part].astype("f2" if "half" in str(kind) else "f8")], kind
        )
        labels = pa.array(np.arange(ROWS)[part] % CLASSES, pa.int32())
        save(tmp_path / f"{number}.parquet", key=names[part], target=labels, output=rows)
    files = [tmp_path / "0.parquet", tmp_path / "1.parquet"]
    done = logitstore.import_logits(files, tmp_path / "new.zarr", "wide", ids=files, column="output")
    store = logitstore.open_store(tmp_path / "new.zarr")
    assert np.array_equal(store.teachers["wide"].read(EVERY), logits - logits.max(axis=1, keepdims=True))
    assert np.array_equal(store.samples.labels, np.arange(ROWS) % CLASSES)
    assert store.samples.ids == names and done.labelled == ROWS


def test_ids_are_taken_from_the_column_of_that_name(tmp_path: Path) -> None:
    given = {"logits": [[1.0, 2.0], [3.0, 9.0]], "id": [7, 8], "label": [0, 1], "caption": ["x", "y"]}
    path = save(tmp_path / "a.parquet", **given)
    logitstore.import_logits(path, tmp_path / "new.zarr", "wide", ids=path)
    assert logitstore.open_store(tmp_path / "new.zarr").samples.ids == ["7", "8"]
    del given["id"]
    logitstore.import_logits(save(path, **given), tmp_path / "texts.zarr", "wide", ids=path)
    assert logitstore.open_store(tmp_path / "texts.zarr").samples.ids == ["x", "y"]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"logits": [[1.0, 2.0], [3.0]]}, "row 1: logits: expected 2 numbers, as in the first row, found 1"),
        ({"logits": [[1.0, 2.0], None]}, "found none in row 1"),
        ({"logits": [[1.0, 2.0], [3.0, None]]}, "found an empty one in row 1"),
        ({"logits": [[1.0, 2.0], [3.0, float("nan")]]}, "row 1, class 1: expected finite logits, found nan"),
        ({"logits": [[0.25, 0.75], [0.5, 0.5]]}, "found probabilities"),
        ({"logits": [[1.0], [2.0]]}, "expected an array (row, class) of at least 2 classes"),
        ({"a": [[1.0, 2.0]], "b": [[1.0, 2.0]]}, "expected an array named logits"),
        ({"a": [1.0, 2.0], "b": ["x", "y"]}, "expected an array named logits"),
        ({"logits": [[1.0, 2.0], [3.0, 4.0]], "label": [0, None]}, "expected a value in each row of label"),
        ({"logits": [[1.0, 2.0], [3.0, 4.0]], "id": ["a", None]}, "expected a text in each row of id"),
        ({"logits": [[1.0, 2.0]] * 3, "view": [0, 1, 0]}, "expected logits of one view, found 2 views"),
    ],
    ids=lambda value: json.dumps(value)[:60] if isinstance(value, dict) else None,
)
def test_a_table_that_does_not_fit_is_one_line(tmp_path: Path, given: dict[str, Any], said: str) -> None:
    path = save(tmp_path / "a.parquet", **given)
    with pytest.raises((BadDataError, BadLogitsError)) as caught:
        logitstore.import_logits(path, tmp_path / "new.zarr", "wide")
    assert said in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "new.zarr").exists()


@pytest.mark.parametrize("name", ["logits", "id", "label"])
def test_a_damaged_page_is_one_line(tmp_path: Path, name: str) -> None:
    rows = 400
    given = {
        "logits": stores.some_logits(1, rows, CLASSES)[0].tolist(),
        "id": [f"row {row}" for row in range(rows)],
        "label": [row % CLASSES for row in range(rows)],
    }
    path = tmp_path / "a.parquet"
    parquet.write_table(pa.table(given), path, use_dictionary=False)
    chunks = parquet.ParquetFile(path).metadata.row_group(0)
    chunk = next(
        chunks.column(place)
        for place in range(chunks.num_columns)
        if chunks.column(place).path_in_schema.startswith(name)
    )
    data = bytearray(path.read_bytes())
    start = chunk.data_page_offset
    data[start : start + chunk.total_compressed_size] = b"\xff" * chunk.total_compressed_size
    path.write_bytes(data)
    with pytest.raises(BadDataError, match=r"expected a (whole column .* of a )?parquet file") as caught:
        logitstore.import_logits(path, tmp_path / "new.zarr", "wide")
    assert "\n" not in str(caught.value) and not (tmp_path / "new.zarr").exists()


def test_a_file_that_is_no_table_is_one_line(tmp_path: Path) -> None:
    whole = save(tmp_path / "a.parquet", logits=[[1.0, 2.0]] * 30).read_bytes()
    for data in (b"", b"PAR1", whole[:-1], whole[20:]):
        (tmp_path / "a.parquet").write_bytes(data)
        with pytest.raises(BadDataError, match="expected a parquet file"):
            logitstore.import_logits(tmp_path / "a.parquet", tmp_path / "new.zarr", "wide")
        with pytest.raises(NameTaken, match="found a file"):
            store = stores.make(
                tmp_path / "s.zarr", rows=8, teachers={"wide": Teacher()}, exist_ok=True
            ).store
            logitstore.export_logits(store, "wide", tmp_path / "a.parquet")
