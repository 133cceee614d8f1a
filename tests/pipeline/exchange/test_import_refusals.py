"""Imports that are refused in one line, before anything is written: values, files and calls that are wrong."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from support import stores
from support.plain_files import EVERY, ROWS

from logitstore.pipeline.exchange.import_files import import_logits
from logitstore.storage.api import open_store
from logitstore.storage.errors import (
    BadDataError,
    BadLogitsError,
    ConfigError,
    LogitStoreError,
    NameTaken,
)


def probabilities(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.asarray(stores.softmax(logits / 8, 1.0).astype(np.float32))


def rounded(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return probabilities whose sums are 1 ± 3e-3, as those of a softmax that was rounded to three digits."""
    sums = np.where(np.arange(ROWS) % 2, 1 + 3e-3, 1 - 3e-3)
    return (probabilities(logits / 16) * sums[:, None]).astype(np.float32)


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
        (lambda z: rounded(z), BadLogitsError, "found probabilities"),
        (lambda z: rounded(z).astype("f8"), BadLogitsError, "found probabilities"),
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
        lambda z: probabilities(z) * 0.95,
        lambda z: probabilities(z) - 0.3,
        lambda z: np.concatenate([probabilities(z), z]),
        lambda z: z - z.max(axis=1, keepdims=True) - 60 * (z < z.max(axis=1, keepdims=True)),
        lambda z: np.log(probabilities(z)) + 1,
    ],
    ids=[
        "twice the sum",
        "a smaller sum",
        "below 0",
        "some rows",
        "centred logits of a certain teacher",
        "shifted",
    ],
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
            "expected an array named logits, or one array alone, of floating rows, found a float32 (3, 4)",
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
        (
            {"labels": "{folder}/far.txt"},
            BadDataError,
            "far.txt, row 0: expected the number of a class, or -1, found '9223372036854775808'",
        ),
        ({"labels": "{folder}/far.json"}, BadDataError, "far.json, row 0: expected the number of a class"),
        (
            {"ids": "{folder}/half.json"},
            BadDataError,
            "half.json, row 0: expected a text of Unicode, found half a surrogate pair in '\\ud800'",
        ),
        ({"class_names": "{folder}/half.json"}, BadDataError, "half.json, row 0: expected a text of Unicode"),
        ({"class_names": ["a"]}, ConfigError, "class_names: expected 5 names, one a class, found 1"),
        ({"inputs": np.zeros((3, 2))}, BadDataError, "inputs: expected 37, one a row of the logits, found 3"),
        ({"digests": np.zeros(ROWS)}, ConfigError, "digests: expected uint64, one a row, found float64"),
        (
            {"labels": "{folder}/a.npy"},
            BadDataError,
            "or one array alone, of whole numbers, one a row, found array float32",
        ),
        ({"ids": "{folder}/a.npy"}, BadDataError, "or one array alone, of texts or whole numbers, one a row"),
        ({"encoding": {"top_k": 6}}, ConfigError, "top"),
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
    (folder / "far.txt").write_text(f"{1 << 63}\n" * ROWS)
    (folder / "far.json").write_text(json.dumps([-(1 << 63) - 1] * ROWS))
    (folder / "half.json").write_text(json.dumps(["\ud800"] * ROWS))
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
