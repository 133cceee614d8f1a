"""A whole experiment that runs in a second, and of which a test can change anything.

`write_data` makes the data sets, `document` the TOML tables over them, `parsed` the experiment. `finished` runs it once a
process; `copy_finished` gives a test a copy of its own. Tests name the factories at the end in documents: `experiments:…`.
"""

import atexit
import functools
import hashlib
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import numpy as np
from numpy.typing import NDArray

from logitstore.pipeline.experiment.document import Experiment, parse_experiment
from logitstore.pipeline.run import RunReport, run
from logitstore.storage.format.constants import CARD_FILE

if TYPE_CHECKING:
    from logitstore.pipeline.models.networks import MLP

ROWS, BLOCK_ROWS, CLASSES, VIEWS = 150, 64, 4, 3
"""Of the transfer set: two whole blocks and a bit."""
BATCH_SIZE = 24
"""Of the teachers: does not divide a block."""
SHAPE = (4, 4)
MLP_FACTORY = "logitstore.pipeline.models:mlp"


def some_digits(rows: int, seed: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Return images of four blurred strokes, and which stroke: (rows, 4, 4), (rows,)."""
    draw = np.random.default_rng(seed)
    labels = draw.integers(CLASSES, size=rows)
    images = draw.integers(0, 150, size=(rows, *SHAPE))
    images[np.arange(rows), labels] += 100
    return images.astype(np.uint8), labels.astype(np.int64)


def write_data(folder: Path) -> None:
    """Write `train.npz` and `test.npz`."""
    folder.mkdir(parents=True, exist_ok=True)
    names = np.array([f"stroke {c}" for c in range(CLASSES)])
    for name, rows, seed in (("train", ROWS, 1), ("test", 70, 2)):
        inputs, labels = some_digits(rows, seed)
        np.savez(folder / f"{name}.npz", inputs=inputs, labels=labels, class_names=names)


def train(**changes: Any) -> dict[str, Any]:
    """Return a `train` table."""
    return {"optimizer": "adam", "lr": 2e-2, "epochs": 3, "batch_size": 32} | changes


def teacher(name: str, **changes: Any) -> dict[str, Any]:
    """Return a `[[teacher]]` that is trained here."""
    table = {"name": name, "factory": MLP_FACTORY, "args": {"hidden": [12], "dropout": 0.1}, "train": train()}
    return table | changes


def student(name: str, **changes: Any) -> dict[str, Any]:
    """Return a `[[student]]` of the teacher "wide"; with `targets = "hard"` of the labels."""
    table: dict[str, Any] = {
        "name": name,
        "factory": MLP_FACTORY,
        "args": {"hidden": [6]},
        "train": train(seeds=[0, 1]),
    }
    soft = {"teachers": {"wide": 1.0}, "temperature": 3.0}
    return table | (soft if changes.get("targets") != "hard" else {}) | changes


def document() -> dict[str, Any]:
    """Return a whole experiment: two teachers, three views, a clustering, three students."""
    return {
        "transfer_set": {"factory": "logitstore.pipeline.datasets:arrays", "args": {"file": "train.npz"}},
        "evaluation_set": {"factory": "logitstore.pipeline.datasets:arrays", "args": {"file": "test.npz"}},
        "teacher": [teacher("wide"), teacher("deep", args={"hidden": [8, 8]}, seed=5)],
        "cache": {
            "views": VIEWS,
            "augment": {"factory": "logitstore.pipeline.augment:shift", "args": {"pixels": 1}},
            "batch_size": BATCH_SIZE,
            "block_rows": BLOCK_ROWS,
        },
        "cluster": {"teacher": "wide", "clusters": 2, "classes_per_cluster": 2},
        "student": [
            student("soft"),
            student("both", teachers={"wide": 3.0, "deep": 1.0}, hard_weight=0.2, train=train(seeds=[0])),
            student("hard", targets="hard"),
        ],
    }


def whole_document() -> dict[str, Any]:
    """A document with specialists and their combination; captures within an error budget."""
    content = document()
    content["cache"]["encoding"] = {"max_kl": 1e-2}
    content["teacher"], content["student"] = content["teacher"][:1], content["student"][:1]
    specialists = {"train": train(epochs=1, batch_size=16), "name": "spec"}
    return content | {"specialists": specialists, "combine": {"name": "all"}}


def parsed(content: dict[str, Any], base: Path) -> Experiment:
    """Return the experiment of a document."""
    return parse_experiment(content, where="tiny.toml", base=base)


def run_document(content: dict[str, Any], base: Path, out: Path) -> RunReport:
    """Run a document on the CPU; without fsync, which takes much of the time and changes no byte."""
    with mock.patch("os.fsync"):
        return run(parsed(content, base), out, device="cpu")


def kept_run(content: dict[str, Any]) -> Path:
    """Return a folder with the data and a finished run of a document in `out`; it lasts as long as this process."""
    folder = Path(tempfile.mkdtemp(prefix="logitstore-finished-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    write_data(folder)
    run_document(content, folder, folder / "out")
    return folder


@functools.cache
def finished() -> Path:
    """Return a folder with the data and a finished run of `document()` in `out`; never to be changed."""
    return kept_run(document())


def copy_finished(folder: Path) -> Path:
    """Copy `finished()`: `folder` then holds the data and `out`."""
    shutil.copytree(finished(), folder, dirs_exist_ok=True)
    return folder


@dataclass(frozen=True)
class FileState:
    """Bytes and times of a file, which show whether it was touched."""

    digest: str
    """sha256 of its bytes."""
    mtime_ns: int = field(compare=True)
    """When it was last written."""


def contents(folder: Path) -> dict[str, str]:
    """Return the sha256 of every file under `folder`, by relative path, but of cards, which are not sealed."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != CARD_FILE
    }


@contextmanager
def interrupted_capture(blocks: int) -> Iterator[None]:
    """Expect that stage one, called inside, is interrupted when it has run some blocks."""
    from logitstore.pipeline.cache.capture import CapturePass

    genuine, calls = CapturePass._run, count(1)

    def failing(self: Any, *block: Any) -> None:
        if next(calls) > blocks:
            raise KeyboardInterrupt
        genuine(self, *block)

    with mock.patch.object(CapturePass, "_run", failing):
        try:
            yield
        except KeyboardInterrupt:
            return
    raise AssertionError(f"stage one ended within {blocks} blocks")


def states(folder: Path) -> dict[str, FileState]:
    """Return bytes and times of every file under `folder`."""
    return {
        name: FileState(sha, (folder / name).stat().st_mtime_ns) for name, sha in contents(folder).items()
    }


def changed(before: dict[str, Any], after: dict[str, Any]) -> set[str]:
    """Return the names that are gone or whose content changed."""
    return {name for name, value in before.items() if after.get(name) != value}


class Recorder:
    """A progress callback that keeps what it is told."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, int, int, str, str]] = []
        """(task, done, total, unit, detail)"""

    def __call__(self, task: str, done: int, total: int, unit: str = "rows", detail: str = "") -> None:
        self.calls.append((task, done, total, unit, detail))

    def of(self, task: str) -> list[tuple[int, int]]:
        """Return (done, total) of a task."""
        return [(done, total) for name, done, total, *_ in self.calls if name == task]


# Factories for documents


class NoFingerprint:
    """The examples of an `.npz` file as a user's own data set would give them: nothing but items."""

    def __init__(self, file: Path) -> None:
        with np.load(file) as archive:
            self.inputs, self.labels = archive["inputs"], archive["labels"]
            self.class_names = archive["class_names"].tolist()

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: int) -> tuple[NDArray[Any], int]:
        return self.inputs[index], int(self.labels[index])


def no_fingerprint(file: Path) -> NoFingerprint:
    """Return a transfer set without a fingerprint."""
    return NoFingerprint(file)


def after_logits(
    change: Callable[[Any, int], Any], hidden: list[int], input_shape: list[int], num_classes: int
) -> "MLP":
    """Return an mlp whose logits go through `change(logits, number of the call)`."""
    from logitstore.pipeline.models.networks import MLP

    class Changed(MLP):
        calls = 0

        def forward(self, inputs: Any) -> Any:
            self.calls += not self.training
            return change(super().forward(inputs), self.calls)

    return Changed(input_shape, hidden, num_classes, dropout=0.0, input_dropout=0.0, max_norm=None)


def nan_at_call(call: int, hidden: list[int], *, input_shape: list[int], num_classes: int) -> "MLP":
    """Return an mlp that gives a NaN at its `call`-th call (from 1; 0 for never)."""

    def change(logits: Any, number: int) -> Any:
        if number == call:
            logits[0, 1] = float("nan")
        return logits

    return after_logits(change, hidden, input_shape, num_classes)


def spoils_its_input(hidden: list[int], *, input_shape: list[int], num_classes: int) -> "MLP":
    """Return an mlp that, in evaluation, changes its inputs in place, as many a normalising one does."""
    from logitstore.pipeline.models.networks import MLP

    class Spoiling(MLP):
        def forward(self, inputs: Any) -> Any:
            logits = super().forward(inputs)
            if not self.training:
                inputs.fill_(0)
            return logits

    return Spoiling(input_shape, hidden, num_classes, dropout=0.0, input_dropout=0.0, max_norm=None)
