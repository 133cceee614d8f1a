"""Small stores of known numbers.

`make` writes one through the public names and returns it with its inputs, labels and logits. The numbers depend on the
arguments alone, so two calls make the same bytes.
"""

import contextlib
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from numpy.typing import NDArray

from logitstore.storage.api import Store, create_store, open_store
from logitstore.storage.digest import digest_rows
from logitstore.storage.errors import LogitStoreError
from logitstore.storage.format.constants import CARD_FILE
from logitstore.storage.integrity.verify import verify


@dataclass(frozen=True)
class Teacher:
    """A capture for `make` to write."""

    views: int = 1
    """Views of the capture."""
    encoding: "str | Mapping[str, Any]" = "float16"
    """Encoding of its logits."""
    augmented: bool = False
    """Whether views from 1 on show `augment` of the rows."""
    classes: tuple[int, ...] | None = None
    """The store's class of each column; None for all in order."""


@dataclass(frozen=True)
class Made:
    """A store, and the arrays that were put into it."""

    path: Path
    store: Store
    inputs: NDArray[Any]
    """(rows, …) of the transfer set."""
    labels: NDArray[np.int64]
    """(row,)"""
    logits: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    """By teacher: (view, row, class), raw."""

    def centred(self, teacher: str, dtype: str = "float16") -> NDArray[np.float32]:
        """Return the logits of a teacher as they should come back: float32 (view, row, class)."""
        raw = self.logits[teacher]
        return (raw - raw.max(axis=2, keepdims=True)).astype(dtype).astype(np.float32)


def some_inputs(rows: int, dtype: str = "uint8", shape: tuple[int, ...] = (3, 2)) -> NDArray[Any]:
    """Return inputs (rows, *shape), no two rows alike."""
    size = int(np.prod(shape))
    numbers = (np.arange(rows * size) * 7 + np.arange(rows).repeat(size) // 5) % 251
    numbers[::size] = np.arange(rows) % 251
    return numbers.reshape(rows, *shape).astype(dtype)


def some_logits(views: int, rows: int, classes: int, seed: int = 0) -> NDArray[np.float32]:
    """Return logits (views, rows, classes) float32 in eighths, which float16 and every platform hold exactly."""
    raw = np.random.Philox(key=seed).random_raw(views * rows * classes)
    return (((raw >> 50).astype(np.int64) - 8192).astype(np.float32) / 8).reshape(views, rows, classes) / 64


def augment(inputs: NDArray[Any], view: int, rows: NDArray[np.int64]) -> NDArray[Any]:
    """Add a number that depends on view and row: the augmentation of these tests."""
    added = (view * 10 + rows % 3).astype(inputs.dtype)
    return (inputs + added.reshape(-1, *([1] * (inputs.ndim - 1)))).astype(inputs.dtype)


AUGMENTATION: Mapping[str, Any] = {"factory": "tests:augment", "args": {}, "seed": 0, "first_view": 1}


def provenance(name: str, teacher: Teacher) -> dict[str, Any]:
    """Return the provenance of a capture of `make`."""
    return {"teacher": {"name": name}, "augmentation": dict(AUGMENTATION) if teacher.augmented else None}


def calibration(encoding: Any, logits: NDArray[np.float32], rows: int = 4) -> NDArray[np.float32] | None:
    """Return the first rows of view 0 if an encoding needs calibration rows; so few that other rows are escaped."""
    is_transform = isinstance(encoding, Mapping) and "transform" in encoding
    return logits[0, :rows] if is_transform else None


def write_capture(
    store: Store,
    name: str,
    logits: NDArray[np.float32],
    teacher: Teacher,
    inputs: NDArray[Any],
    origin: Mapping[str, Any] | None = None,
) -> None:
    """Write the missing blocks of a capture, and seal it; `origin` replaces its provenance."""
    with store.capture(
        name,
        provenance=provenance(name, teacher) if origin is None else origin,
        views=teacher.views,
        encoding=teacher.encoding,
        classes=teacher.classes,
        calibration=calibration(teacher.encoding, logits),
    ) as capture:
        for view in range(teacher.views):
            for rows in capture.missing_blocks(view):
                part = slice(rows.start, rows.stop)
                seen = None
                if teacher.augmented:
                    shown = inputs[part] if view == 0 else augment(inputs[part], view, np.array(rows))
                    seen = digest_rows(shown)
                capture.write(rows, logits[view, part], view=view, seen=seen)


def make(
    path: Path,
    *,
    rows: int = 37,
    classes: int = 5,
    block_rows: int = 8,
    teachers: Mapping[str, Teacher] | None = None,
    input_dtype: str = "uint8",
    store_inputs: bool = True,
    names: bool = True,
    seed: int = 0,
    exist_ok: bool = False,
) -> Made:
    """Make a sealed store at `path`; by default of `wide` (float16) and `deep` (float32) with two views each.

    With `exist_ok`, complete the one that is there. It runs without fsync, which takes most of the time and which no
    reader notices.
    """
    if teachers is None:
        teachers = {"wide": Teacher(views=2), "deep": Teacher(views=2, encoding="float32")}
    inputs = some_inputs(rows, input_dtype)
    labels = (np.arange(rows, dtype=np.int64) * 3 + 1) % (classes + 1) - 1
    logits = {}
    with mock.patch("os.fsync"):
        store = create_store(
            path,
            num_classes=classes,
            labels=labels,
            inputs=inputs,
            store_inputs=store_inputs,
            class_names=[f"clàss {c}" for c in range(classes)] if names else None,
            ids=[f"row-{row}" for row in range(rows)] if names else None,
            block_rows=block_rows,
            exist_ok=exist_ok,
        )
        for number, (name, teacher) in enumerate(teachers.items()):
            columns = classes if teacher.classes is None else len(teacher.classes)
            logits[name] = some_logits(teacher.views, rows, columns, seed=1000 * seed + number)
            write_capture(store, name, logits[name], teacher, inputs)
    return Made(path, store, inputs, labels, logits)


def add_clustering(store: Store, name: str = "wide-2x2", classes: int = 5) -> dict[str, NDArray[Any]]:
    """Write a clustering with every possible array; return the arrays."""
    arrays: dict[str, NDArray[Any]] = {
        "covariance": some_logits(1, classes, classes, seed=7)[0],
        "assignment": np.arange(classes, dtype=np.int64) % 2,
        "centres": some_logits(1, 2, classes, seed=8)[0],
        "sets": np.array([[0, 2], [1, 3]], dtype=np.int64),
    }
    store.write_clustering(name, arrays, identity={"capture": store.teachers["wide"].digest, "clusters": 2})
    return arrays


def tree(path: Path) -> dict[str, bytes]:
    """Return every file under `path` by its key, and "<folder>/" for each empty folder.

    Without the card of a store, which commands write and writers do not.
    """
    found: dict[str, bytes] = {}
    for item in sorted(path.rglob("*")):
        key = item.relative_to(path).as_posix()
        if item.is_file():
            found[key] = item.read_bytes()
        elif not any(item.iterdir()):
            found[f"{key}/"] = b""
    found.pop(CARD_FILE, None)
    return found


def tree_digest(path: Path) -> str:
    """Return one digest of every name and every byte under `path`."""
    total = hashlib.sha256()
    for key, data in tree(path).items():
        total.update(f"{key}\0{len(data)}\0".encode() + data)
    return total.hexdigest()


def flip(path: Path, bit: int) -> None:
    """Change one bit of a file."""
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


def softmax(logits: NDArray[Any], temperature: float) -> NDArray[np.float64]:
    """Return softmax(z / T) over the last axis, in float64."""
    scaled = logits.astype(np.float64) / temperature
    powers = np.exp(scaled - scaled.max(axis=-1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=-1, keepdims=True))


def files_of(path: Path, parts: Sequence[str] = ()) -> list[str]:
    """Return the keys of all files, or of those under some parts."""
    return [
        key for key in tree(path) if not key.endswith("/") and (not parts or key.startswith(tuple(parts)))
    ]


def read_everything(path: Path) -> list[bytes]:
    """Read every number of a store, as a user would."""
    store = open_store(path)
    assert store.samples.inputs is not None
    samples = [store.samples.labels, store.samples.source, store.samples.digests, store.samples.inputs[:]]
    found = [array.tobytes() for array in samples]
    found += ["\n".join([*store.class_names, *(store.samples.ids or [])]).encode()]
    for name in sorted(store.teachers):
        capture = store.teachers[name]
        found += [capture.classes.tobytes(), repr(sorted(capture.provenance)).encode()]
        for view in range(capture.num_views):
            rows = slice(None)
            constants = (capture.peak,) if capture.has_peak else ()
            found += [a(rows, view).tobytes() for a in (*constants, capture.seen)]
            found.append(capture.read(rows, view, temperature=2.0).tobytes())
            if capture.encoding.form != "capture":
                found.append(capture.divergence(rows, view).tobytes())
    for name in store.clusterings:
        part = store.clustering(name)
        found += [part.small(array).tobytes() for array in sorted(part.layouts)]
    return [*found, store.digest.encode()]


def flip_everywhere(location: str) -> tuple[int, list[tuple[str, int]]]:
    """Flip bits of every file of a store, one at a time, and put each back.

    Returns the number of flips, and those that `verify(deep=True)` missed or for which a read returned other
    numbers. Only errors of logitstore are caught.
    """
    path = Path(location)
    whole = read_everything(path)
    flips, silent = 0, []
    for number, key in enumerate(files_of(path)):
        size = (path / key).stat().st_size * 8
        for bit in sorted({size - 1, number * 7919 % size, number * 104729 % size}):
            flip(path / key, bit)
            flips += 1
            if not verify(path, deep=True).problems:
                silent.append((key, bit))
            with contextlib.suppress(LogitStoreError):
                if read_everything(path) != whole:
                    silent.append((f"read {key}", bit))
            flip(path / key, bit)
    return flips, silent
