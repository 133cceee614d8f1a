"""The pipeline of stage one: a stall or a failure leaves the right store, and is reported."""

import logging
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from support import experiments, stores
from support import small_experiment as small
from torch import Tensor, nn

from logitstore.cli.main import cli
from logitstore.pipeline.cache import capture as capture_pass
from logitstore.pipeline.cache import monitor as quality
from logitstore.pipeline.cache import stage
from logitstore.pipeline.cache.capture import CapturePass
from logitstore.pipeline.cache.commit_queue import CommitQueue
from logitstore.pipeline.cache.device_logits import centred
from logitstore.pipeline.cache.schedule import BlockTodo, Shown
from logitstore.pipeline.cache.stage import CacheReport, cache
from logitstore.pipeline.experiment.document import load_experiment
from logitstore.pipeline.runtime.inference import Runner, device_of, host_batch, is_placed, place, run_model
from logitstore.pipeline.runtime.ranks import Ranks
from logitstore.pipeline.workspace import Workspace
from logitstore.storage.api import open_store
from logitstore.storage.backends.local import NewObject
from logitstore.storage.checks import warn_of_probabilities
from logitstore.storage.encodings.named import encoding_named
from logitstore.storage.errors import (
    BadDataError,
    BadLogitsError,
    RowMismatch,
    SpecMismatch,
    StorageFull,
    TransientIOError,
)
from logitstore.storage.parts.writer import CaptureWriter

FACTORY = 'factory = "faulty:linear"'


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the small experiment."""
    small.lay_out(tmp_path)
    return tmp_path


def captured(
    folder: Path, *changes: tuple[str, str], out: str = "store.zarr", **settings: Any
) -> CacheReport:
    """Stage one of the small experiment, some of its text changed."""
    experiment = load_experiment(small.write_experiment(folder, *changes))
    with mock.patch("os.fsync"):
        how = {"stop_below": settings.pop("stop_below")} if "stop_below" in settings else {}
        settings = {"given_rows" if key == "rows" else key: value for key, value in settings.items()}
        work = Workspace.of_store(experiment, folder / out, folder / "models", device="cpu", **settings)
        return cache(work, **how)


def commits(folder: Path, out: str = "store.zarr", part: str = "teachers/line") -> list[str]:
    """The blocks of a part that are there."""
    return sorted(p.stem for p in (folder / out / part / "__logitstore__" / "commits").glob("*.json"))


def counted() -> tuple[Any, list[tuple[int, int]]]:
    """A patch under which teachers run, and a list of what they were shown: (block, rows)."""
    genuine, shown_blocks = capture_pass.teacher_logits, []

    def teacher_logits(runner: Runner, shown: Shown, logits: Any) -> Any:
        shown_blocks.append((shown.todo.block, len(shown.inputs)))
        return genuine(runner, shown, logits)

    return mock.patch.object(capture_pass, "teacher_logits", teacher_logits), shown_blocks


# What waits


def test_memory_is_what_was_said_however_slow_the_disk_is(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    most = 1 << 10
    monkeypatch.setattr("logitstore.pipeline.cache.capture.QUEUE_BYTES", most)
    genuine_write, genuine_init = CaptureWriter.write, CommitQueue.__init__
    queues: list[CommitQueue] = []

    def slow(self: CaptureWriter, *args: Any, **kwargs: Any) -> None:
        time.sleep(0.05)
        genuine_write(self, *args, **kwargs)

    def kept(self: CommitQueue, *args: Any) -> None:
        genuine_init(self, *args)
        queues.append(self)

    monkeypatch.setattr(CaptureWriter, "write", slow)
    monkeypatch.setattr(CommitQueue, "__init__", kept)
    with caplog.at_level(logging.INFO):
        captured(folder)
    (queue,) = queues
    assert 64 * 3 * 4 < queue.high_water <= max(most, 64 * 4 * 4)
    # two blocks of inputs, one that waits, the logits in work, the queue, and a block as float16, peaks and digests
    said = 3 * 64 * 16 + 64 * 3 * 4 + max(most, 64 * 16) + 64 * (3 * 2 + 4 + 8)
    assert f"inputs and logits of at most {said:,} bytes are held at once" in caplog.text


def test_inputs_are_fetched_while_the_teacher_runs(folder: Path) -> None:
    """And not more than one block of them."""
    fetched: list[int] = []
    genuine_rows, genuine = stage.TransferRows.rows, capture_pass.teacher_logits
    ahead = []

    def rows(self: Any, which: range) -> Any:
        fetched.append(which.start // 64)
        return genuine_rows(self, which)

    def teacher_logits(runner: Runner, shown: Shown, logits: Any) -> Any:
        deadline = time.monotonic() + 5
        while max(fetched) == shown.todo.block and shown.todo.block < 4 and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(0.02)  # for a second one to come, if it did
        ahead.append(max(fetched) - shown.todo.block)
        return genuine(runner, shown, logits)

    with (
        mock.patch.object(stage.TransferRows, "rows", rows),
        mock.patch.object(capture_pass, "teacher_logits", teacher_logits),
    ):
        captured(folder)
    assert ahead == [1, 1, 1, 1, 0]


def test_the_workers_of_a_loader_make_the_same_bytes(folder: Path) -> None:
    augment = 'views = 2\naugment = { factory = "logitstore.pipeline.augment:shift", args = { pixels = 1 } }'
    factory = (
        'factory = "logitstore.pipeline.datasets:arrays"',
        'factory = "support.experiments:no_fingerprint"',
    )
    with np.load(folder / "data.npz") as held:
        inputs = held["inputs"].reshape(-1, 2, 2)
        np.savez(folder / "data.npz", inputs=inputs, labels=held["labels"], class_names=held["class_names"])
    model = 'factory = "logitstore.pipeline.models:mlp"\nargs = { hidden = [4] }\ntrain = { epochs = 1, lr = 0.1 }'
    weights = ('factory = "faulty:linear"\nweights = "line.safetensors"', model)
    captured(folder, factory, weights, ("[cache]", f"[cache]\n{augment}"))
    with mock.patch("logitstore.pipeline.cache.rows.CHUNK_BYTES", 16 * 25):  # a block is three pieces
        captured(
            folder, factory, weights, ("[cache]", f"[cache]\nworkers = 2\n{augment}"), out="workers.zarr"
        )
    assert stores.tree(folder / "workers.zarr") == stores.tree(folder / "store.zarr")


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(("gathered", "sweeps"), [(1, 3), (2 * 2 * 64 * 3 * 4, 2)])
def test_blocks_whose_inputs_take_too_much_come_in_pieces_with_the_same_bytes(
    folder: Path, workers: int, gathered: int, sweeps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whole batches of each teacher, fetched once a sweep: logits are gathered of one view, or of two."""
    line = '[[teacher]]\nname = "line"'
    second = '[[teacher]]\nname = "other"\nfactory = "faulty:linear"\nweights = "line.safetensors"\n'
    changes = [
        ("[transfer_set]", "[transfer_set]\nstore_inputs = false"),
        (line, f"{second}\n{line}"),
        ("[cache]", "[cache]\nviews = 3\n" + 'augment = { factory = "faulty:noisy" }'),
    ]
    with (folder / "faulty.py").open("a") as file:
        file.write(
            "\ndef noisy():\n    return lambda x, random: x + random.standard_normal(4, dtype='float32')\n"
        )
    captured(folder, *changes)
    monkeypatch.setattr(
        "logitstore.pipeline.cache.capture.PIECE_BYTES", 16 * 25
    )  # 25 rows: batches of 8 or so
    monkeypatch.setattr("logitstore.pipeline.cache.capture.GATHERED_BYTES", gathered)
    fetched: list[range] = []
    genuine = stage.TransferRows.rows

    def rows(self: Any, which: range) -> Any:
        fetched.append(which)
        return genuine(self, which)

    monkeypatch.setattr(stage.TransferRows, "rows", rows)
    patch, shown = counted()
    with patch:
        captured(
            folder, *changes[:2], (changes[2][0], f"{changes[2][1]}\nworkers = {workers}"), out="pieces.zarr"
        )
    assert stores.tree(folder / "pieces.zarr") == stores.tree(folder / "store.zarr")
    assert {rows for _, rows in shown} == {32, 44 - 32}
    assert len(shown) == 2 * 3 * 10  # teachers, views, pieces
    if not workers:
        tried_out = 1  # the first rows, for both teachers and the views
        assert len(fetched) == tried_out + sweeps * 10


REFETCHED = {
    "inputs": (0, r"row 0 \(index 0 of the transfer set\): expected an input with digest"),
    "labels": (1, r"row 0 \(index 0 of the transfer set\): label: expected \d, as in the store, found \d"),
}


@pytest.mark.parametrize("kind", REFETCHED)
def test_rows_that_are_fetched_again_for_another_view_are_compared(
    folder: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A block in pieces is fetched once for each sweep: its views must be of the same rows."""
    monkeypatch.setattr("logitstore.pipeline.cache.capture.PIECE_BYTES", 16 * 25)
    monkeypatch.setattr("logitstore.pipeline.cache.capture.GATHERED_BYTES", 1)
    changes = [
        ("[transfer_set]", "[transfer_set]\nstore_inputs = false"),
        ("[cache]", '[cache]\nviews = 2\naugment = { factory = "support.own_sets:jitter" }'),
    ]
    genuine, column = stage.TransferRows.rows, REFETCHED[kind][0]
    times = 0

    def rows(self: Any, which: range) -> Any:
        nonlocal times
        found = genuine(self, which)
        times += which == range(32)
        if which == range(32) and times == 3:  # after the trial and the first sweep
            found[column][0] = found[column][0] + 1 if column == 0 else (found[column][0] + 1) % 3
        return found

    with (
        mock.patch.object(stage.TransferRows, "rows", rows),
        pytest.raises(RowMismatch, match=REFETCHED[kind][1]),
    ):
        captured(folder, *changes)
    assert times == 3
    assert commits(folder) == ["0-0"], "the second view of the block is of other rows"
    captured(folder, *changes)  # control: without the change it goes through


def test_labels_of_sealed_samples_are_compared_before_a_teacher_is_shown_the_rows(folder: Path) -> None:
    """Of every row, also where the comparison at the beginning reads a part of them alone."""
    captured(folder)
    line = '[[teacher]]\nname = "line"'
    second = (
        (
            line,
            f'[[teacher]]\nname = "other"\nfactory = "faulty:linear"\nweights = "line.safetensors"\n\n{line}',
        ),
    )
    genuine = stage.TransferRows.rows

    def rows(self: Any, which: range) -> Any:
        inputs, labels = genuine(self, which)
        if 200 in which:
            labels[200 - which.start] = (labels[200 - which.start] + 1) % 3
        return inputs, labels

    patch, shown = counted()
    message = r"^row 200 \(index 200 of the transfer set\): label: expected \d, as in the store, found \d \(1 of 64 rows"
    with (
        patch,
        mock.patch.object(stage.TransferRows, "rows", rows),
        pytest.raises(RowMismatch, match=message),
    ):
        captured(folder, *second)
    assert {block for block, _ in shown} == {0, 1, 2}
    assert commits(folder, part="teachers/other") == ["0-0", "0-1", "0-2"]
    assert captured(folder, *second).captured == ("other",)


def test_mixtures_are_not_judged_by_a_label(folder: Path) -> None:
    """A row of a mixture belongs to two classes: only the rows as they are count in "% right"."""
    with np.load(folder / "data.npz") as held:
        labelled = int((held["labels"] >= 0).sum())
    mixed = '[cache]\nviews = 3\naugment = { factory = "logitstore.pipeline.augment:mixup" }'
    assert captured(folder, ("[cache]", mixed)).quality["line"].rows == labelled
    moved = '[cache]\nviews = 3\naugment = { factory = "support.own_sets:jitter" }'  # control: these keep their labels
    report = captured(folder, ("[cache]", moved), out="moved.zarr")
    assert report.quality["line"].rows == 3 * labelled


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_each_block_is_dealt_to_one_rank(size: int) -> None:
    todo = [BlockTodo(block, {0: ("a",), 2: ("a", "b")}) for block in (0, 1, 4, 5, 9)]
    said: list[str] = []

    class Told(Ranks):
        def first_says(self, text: str) -> str:
            if self.is_first:
                said.append(text)
            return said[0]

    dealt = [stage._dealt(Told(rank, size), todo if rank == 0 else []) for rank in range(size)]
    assert sorted((one for mine in dealt for one in mine), key=lambda one: one.block) == todo
    assert max(map(len, dealt)) - min(map(len, dealt)) <= 1


def test_what_a_worker_raises_is_one_line_and_so_is_its_death(folder: Path) -> None:
    module = small.MODULE.replace(
        "        return self.inputs[index], int(self.labels[index])",
        "        import multiprocessing, os\n"
        "        if index == 150 and multiprocessing.parent_process() is not None:\n"
        "            if os.path.exists(os.path.join(os.path.dirname(__file__), 'dies')):\n"
        "                os.kill(os.getpid(), 9)\n"
        "            raise KeyError('torn file')\n"
        "        return self.inputs[index], int(self.labels[index])",
    )
    (folder / "faulty.py").write_text(module)
    changes = [
        ("logitstore.pipeline.datasets:arrays", "faulty:no_fingerprint"),
        ("[cache]", "[cache]\nworkers = 1"),
    ]
    with pytest.raises(BadDataError) as caught:
        captured(folder, *changes)
    assert str(caught.value).startswith(
        "transfer set, example 150: expected an example, found KeyError: 'torn file'; "
    )
    assert commits(folder) == ["0-0", "0-1"]
    (folder / "dies").touch()
    with pytest.raises(TransientIOError) as died:
        captured(folder, *changes, out="dies.zarr")
    assert str(died.value).startswith(
        "transfer_set: expected 1 workers that prepare its inputs ([cache] workers), found a worker that was ended by "
    )
    assert "\n" not in str(died.value)


# What fails


def test_a_failing_data_set_keeps_what_came_before_and_names_its_rows(folder: Path) -> None:
    genuine = stage.TransferRows.rows

    def rows(self: Any, which: range) -> Any:
        if 200 in which:
            raise KeyError("torn file")
        return genuine(self, which)

    with mock.patch.object(stage.TransferRows, "rows", rows), pytest.raises(BadDataError) as caught:
        captured(folder)
    assert str(caught.value).startswith(
        "transfer_set, rows 192 to 255 of the store: expected their inputs and labels, found KeyError: 'torn file'; "
    )
    assert commits(folder) == ["0-0", "0-1", "0-2"]


def test_a_full_disk_stops_the_teachers(folder: Path) -> None:
    """Its error is that of the first block that did not fit, and the teachers do not run on to the end."""
    genuine = NewObject.publish
    puts = 0

    def publish(self: NewObject) -> bool:
        nonlocal puts
        puts += 1
        if puts >= 30:
            raise StorageFull("store.zarr", expected="room", found="none", remedy="make some")
        return genuine(self)

    patch, shown = counted()
    small_queue = mock.patch("logitstore.pipeline.cache.capture.QUEUE_BYTES", 1)
    with patch, small_queue, mock.patch.object(NewObject, "publish", publish), pytest.raises(StorageFull):
        captured(folder)
    there = commits(folder)
    assert 0 < len(there) < 5
    assert len(shown) <= len(there) + 3
    captured(folder)
    captured(folder, out="whole.zarr")
    assert stores.tree(folder / "store.zarr") == stores.tree(folder / "whole.zarr")


def test_ctrl_c_keeps_what_was_finished_and_leaves_no_thread(folder: Path) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # who is run in the background ignores it
    genuine = capture_pass.teacher_logits

    def interrupted(runner: Runner, shown: Shown, logits: Any) -> Any:
        if shown.todo.block == 3:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(5)
        return genuine(runner, shown, logits)

    with mock.patch.object(capture_pass, "teacher_logits", interrupted), pytest.raises(KeyboardInterrupt):
        captured(folder)
    assert commits(folder) == ["0-0", "0-1", "0-2"]
    assert not [t for t in threading.enumerate() if t.name.startswith("logitstore")]
    captured(folder)
    captured(folder, out="whole.zarr")
    assert stores.tree(folder / "store.zarr") == stores.tree(folder / "whole.zarr")


def test_a_nan_in_row_12345_names_row_and_teacher_and_nothing_of_its_block_is_kept(folder: Path) -> None:
    inputs = np.zeros((13_000, 4), np.float32)
    inputs[12_345, 0] = 99
    labels = np.zeros(13_000, np.int64)
    np.savez(folder / "data.npz", inputs=inputs, labels=labels, class_names=np.array(list("abc")))
    with pytest.raises(BadLogitsError) as caught:
        captured(
            folder,
            ("block_rows = 64", "block_rows = 1024"),
            (FACTORY, f'{FACTORY}\nargs = {{ spoilt = "nan" }}'),
        )
    assert str(caught.value).startswith(
        "teacher 'line', view 0, row 12345 (index 12345 of the transfer set), class 0: expected finite logits, found nan"
    )
    assert len(commits(folder)) == 12
    store = folder / "store.zarr" / "teachers" / "line" / "logits"
    assert len([path for path in store.rglob("*") if path.is_file() and path.name != "zarr.json"]) == 12


# What is there


def test_an_error_of_a_row_says_which_example_that_is(folder: Path) -> None:
    spoilt = (FACTORY, f'{FACTORY}\nargs = {{ spoilt = "nan" }}')
    with pytest.raises(BadLogitsError) as caught:
        captured(folder, ('order = "as_is"', 'order = "shuffled"'), spoilt)
    row, index = map(
        int, re.findall(r"row (\d+) \(index (\d+) of the transfer set\), class", caught.value.where)[0]
    )
    source = stage.TransferRows(load_experiment(folder / "small.toml")).source
    assert source[row] == index == small.MARKED != row


def test_what_fails_in_the_middle_says_of_which_rows(folder: Path) -> None:
    module = small.MODULE.replace(
        "        logits = self.layer(inputs)",
        "        logits = self.layer(inputs)[: 31 if (inputs[:, 0] > 90).any() else None]",
    ).replace("expand_as(logits)", "expand(-1, 3)[: len(logits)]")
    (folder / "faulty.py").write_text(module)
    with pytest.raises(BadLogitsError) as caught:
        captured(folder)
    assert str(caught.value) == (
        "teacher 'line', view 0, rows 192 to 255: expected a tensor of logits of shape (32, classes), found a tensor of "
        "shape (31, 3); return one row of logits for each input from the model; nothing of this block was kept"
    )
    assert commits(folder) == ["0-0", "0-1", "0-2"]


def test_a_store_that_was_begun_from_another_set_says_what_helps(folder: Path) -> None:
    with (
        mock.patch.object(CapturePass, "_report", side_effect=KeyboardInterrupt),
        pytest.raises(KeyboardInterrupt),
    ):
        captured(folder)
    before = stores.tree(folder / "store.zarr")
    small.write_data(folder / "data.npz", change=7)
    with pytest.raises(
        SpecMismatch, match=r"samples: expected transfer_set = .*make a new store \(another --out\)$"
    ):
        captured(folder)
    assert stores.tree(folder / "store.zarr") == before


def test_resuming_reads_no_logits_of_what_is_there_and_runs_no_teacher_on_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But for the columns with which the rows of the last block are compared, and `seen`, which the seal compares."""
    genuine = capture_pass.teacher_logits
    last = 300 // 64

    def stopping(runner: Runner, shown: Shown, logits: Any) -> Any:
        if shown.todo.block == last:
            raise KeyboardInterrupt
        return genuine(runner, shown, logits)

    with mock.patch.object(capture_pass, "teacher_logits", stopping), pytest.raises(KeyboardInterrupt):
        captured(folder)
    assert len(commits(folder)) == last
    read: list[tuple[str, int]] = []
    genuine_pread = os.pread

    def pread(descriptor: int, size: int, offset: int) -> bytes:
        data = genuine_pread(descriptor, size, offset)
        read.append((os.readlink(f"/proc/self/fd/{descriptor}"), len(data)))
        return data

    runs: list[int] = []
    genuine_forward = Runner.forward

    def forward(self: Runner, batch: Tensor) -> Tensor:
        runs.append(len(batch))
        return genuine_forward(self, batch)

    monkeypatch.setattr(os, "pread", pread)
    monkeypatch.setattr(Runner, "forward", forward)
    captured(folder)
    assert read, "reads go by another call"
    shards = [(Path(name).parent.name, Path(name).name, size) for name, size in read if "/c." in name]
    of_blocks = {(array, name) for array, name, _ in shards if array not in ("classes", "class_name")}
    # Columns of eight bytes a row tell that each block is of these rows.
    compared = {("seen", f"c.0.{block}") for block in range(last + 1)} | {
        (array, f"c.{block}") for array in ("digest", "label", "source") for block in range(last + 1)
    }
    assert of_blocks <= compared
    assert runs == [32, 12]


def test_a_capture_of_yesterday_is_nothing_to_do(folder: Path) -> None:
    """New keys at their defaults, and workers at any value, are no part of what a capture is."""
    captured(folder)
    keys = "workers = 3\ncompile = false\nchannels_last = false"
    report = captured(folder, ("[cache]", f"[cache]\n{keys}"))
    assert (report.captured, report.kept) == ((), ("line",))
    for key in ("compile", "channels_last"):
        with pytest.raises(SpecMismatch, match=key):
            captured(folder, ("[cache]", f"[cache]\n{key} = true"))


# The device


class Short(nn.Module):
    """A linear network on a device that has room for so many rows."""

    most = 1 << 30

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        if len(inputs) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        logits: Tensor = self.layer(inputs)
        return logits


def short() -> Short:
    """A factory."""
    return Short()


SHORT = (FACTORY, 'factory = "test_cache_pass:short"')


@pytest.fixture
def room(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Sets how many rows fit."""
    monkeypatch.setitem(sys.modules, "test_cache_pass", sys.modules[__name__])
    return lambda rows: monkeypatch.setattr(Short, "most", rows)


def test_a_batch_that_does_not_fit_is_halved_before_anything_is_written(
    folder: Path, room: Callable[[int], None], caplog: pytest.LogCaptureFixture
) -> None:
    room(9)
    captured(folder, SHORT)
    said = "teacher 'line': batches of 32 rows do not fit the device; it is run in batches of 8, which the capture"
    assert said in caplog.text
    identity = open_store(folder / "store.zarr").teachers["line"].part.spec.identity
    assert (identity["batch_size"], identity["batch_size_asked"]) == (8, 32)
    # The same command finds it done, also where there is more room now, and so does who sets what was said.
    room(100)
    assert captured(folder, SHORT).captured == ()
    assert captured(folder, SHORT, ("batch_size = 32", "batch_size = 8")).captured == ()
    with pytest.raises(SpecMismatch, match="batch_size"):
        captured(folder, SHORT, ("batch_size = 32", "batch_size = 64"))


def test_a_capture_goes_on_with_the_batch_to_which_it_was_halved(
    folder: Path, room: Callable[[int], None]
) -> None:
    room(9)
    captured(folder, SHORT, out="whole.zarr")
    interrupted = mock.patch.object(CapturePass, "_report", side_effect=KeyboardInterrupt)
    with interrupted, pytest.raises(KeyboardInterrupt):
        captured(folder, SHORT)
    assert commits(folder) == ["0-0"]
    room(100)
    captured(folder, SHORT)
    assert stores.tree(folder / "store.zarr") == stores.tree(folder / "whole.zarr")


def test_memory_that_runs_short_after_the_first_commit_stops_and_says_what_to_set(
    folder: Path, room: Callable[[int], None]
) -> None:
    genuine = capture_pass.teacher_logits

    def shrinking(runner: Runner, shown: Shown, logits: Any) -> Any:
        if shown.todo.block == 2:
            deadline = time.monotonic() + 5
            while commits(folder) != ["0-0", "0-1"] and time.monotonic() < deadline:
                time.sleep(0.01)
            room(20)
        return genuine(runner, shown, logits)

    with (
        mock.patch.object(capture_pass, "teacher_logits", shrinking),
        pytest.raises(BadLogitsError) as caught,
    ):
        captured(folder, SHORT)
    assert str(caught.value) == (
        "teacher 'line': expected room on the device for a batch of 32 rows, found OutOfMemoryError: CUDA out of memory. "
        "Tried to allocate 2.00 GiB; free memory on the device and run the same command again, or set [cache] "
        f"batch_size = 16 and delete {folder / 'store.zarr' / 'teachers' / 'line'}: the batch is part of what a capture is"
    )
    room(100)
    captured(folder, SHORT)
    captured(folder, SHORT, out="whole.zarr")
    assert stores.tree(folder / "store.zarr") == stores.tree(folder / "whole.zarr")


def test_a_device_without_room_for_one_row_is_refused(folder: Path, room: Callable[[int], None]) -> None:
    room(0)
    with pytest.raises(
        BadLogitsError, match=r"room on the device for a batch of 1 rows.*; take a device with more"
    ):
        captured(folder, SHORT)
    assert not (folder / "store.zarr").exists()


class Spread(nn.Module):
    """A network that somebody else has put where it is."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 3)
        self.elsewhere = nn.Parameter(torch.empty(2, device="meta"))

    def to(self, *args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("You can't move a model that has some modules offloaded")

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.first(inputs)
        return logits


def test_a_model_on_several_devices_stays_where_it_is() -> None:
    module = Spread().eval()
    assert is_placed(module)
    assert place(module, torch.device("cpu")) is module
    assert device_of(module) == torch.device("cpu")
    # Parameters that wait elsewhere come first in a model that is offloaded.
    assert device_of(nn.Sequential(nn.Linear(2, 2, device="meta"), nn.Linear(2, 2))).type == "cpu"
    logits = run_model(module, np.ones((5, 4), np.float32), 2, where="teacher 't'")
    assert logits.shape == (5, 3)
    whole = nn.Linear(4, 3)
    assert not is_placed(whole)
    assert place(whole, torch.device("meta")).weight.device.type == "meta"
    whole.hf_device_map = {"": 0}  # type: ignore[assignment]
    assert is_placed(whole)


@pytest.mark.parametrize("classes", [1, 7, 1000])
def test_logits_centred_on_a_device_are_the_bytes_of_the_host(classes: int) -> None:
    random = np.random.default_rng(classes)
    z = random.normal(size=(200, classes)).astype(np.float32) * 10 ** random.uniform(-7, 3, size=(200, 1))
    z = z.astype(np.float32)
    stored, peak, exact = centred(torch.from_numpy(z))
    assert bool(exact)
    host = encoding_named("float16").encode(z, 0, "teacher 't'")
    assert stored.numpy().tobytes() == host["logits"].tobytes()
    assert peak.numpy().tobytes() == host["peak"].tobytes()
    # And what the writer makes of them, which are encoded once more, are the same again.
    again = encoding_named("float16").encode(stored.numpy().astype(np.float32), 0, "teacher 't'")
    assert again["logits"].tobytes() == host["logits"].tobytes()


@pytest.mark.parametrize("spoilt", [np.nan, np.inf, -np.inf, -70_000.0, 0.0, -0.0])
def test_logits_of_which_a_device_is_not_sure_are_left_to_the_host(spoilt: float) -> None:
    z = np.full((4, 3), -1.0, np.float32)
    z[2, 1] = spoilt
    assert not bool(centred(torch.from_numpy(z))[2])


def test_an_input_batch_is_a_copy_in_memory_that_is_aligned() -> None:
    inputs = np.arange(60, dtype=np.uint8).reshape(20, 3)
    inputs.setflags(write=False)
    for start in range(5):
        batch = host_batch(inputs[start : start + 7])
        assert batch.data_ptr() % 64 == 0
        assert batch.dtype == torch.uint8
        np.testing.assert_array_equal(batch.numpy(), inputs[start : start + 7])
        batch.fill_(0)
    assert inputs[1, 0] == 3


def test_compile_and_channels_last_are_what_the_network_gets() -> None:
    seen: list[bool] = []

    class Convolution(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Conv2d(3, 2, 1)

        def forward(self, inputs: Tensor) -> Tensor:
            seen.append(inputs.is_contiguous(memory_format=torch.channels_last))
            logits: Tensor = self.layer(inputs).mean(dim=(2, 3))
            return logits

    module, inputs = Convolution(), np.random.default_rng(0).normal(size=(5, 3, 4, 4)).astype(np.float32)
    plain = run_model(module, inputs, 2, where="teacher 't'")
    assert seen == [False] * 3
    with mock.patch("torch.compile", side_effect=lambda module, **settings: module) as compiled:
        runner = Runner(module, where="teacher 't'", batch_size=2, compiled=True, channels_last=True)
    compiled.assert_called_once_with(module, dynamic=False)
    np.testing.assert_allclose(runner.logits(inputs), plain, atol=1e-6)
    assert seen[3:] == [True] * 3
    assert module.layer.weight.is_contiguous(memory_format=torch.channels_last)


# What teachers give


def test_probabilities_are_warned_of_with_the_evidence(caplog: pytest.LogCaptureFixture) -> None:
    z = torch.randn(50, 10, generator=torch.Generator().manual_seed(0))
    for outputs in (z, z.log_softmax(dim=1), torch.sigmoid(z)):
        warn_of_probabilities(outputs.numpy(), "teacher 't'", 1e-4)
    assert not caplog.records
    warn_of_probabilities(z.softmax(dim=1).numpy(), "teacher 't'", 1e-4)
    (record,) = caplog.records
    assert record.getMessage().startswith("teacher 't': all 50 rows tried lie in 0…1 (from ")
    assert "and sum to 1 (from 1.0" in record.getMessage() or "sum to 1 (from 0.9999" in record.getMessage()


def test_a_teacher_of_probabilities_is_warned_of_once(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    module = small.MODULE.replace(
        "return torch.where(marked, torch.tensor(float(self.spoilt)), logits)", "return logits.softmax(dim=1)"
    )
    (folder / "faulty.py").write_text(module)
    captured(folder)
    assert caplog.text.count("these look like probabilities") == 1


def test_probabilities_are_recognised_by_the_precision_that_they_were_computed_in(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """In bfloat16 they sum to 1 within 2 %: a bound of float32 would let them pass as logits."""
    module = small.MODULE.replace(
        "return torch.where(marked, torch.tensor(float(self.spoilt)), logits)",
        "return logits.softmax(dim=1).to(torch.bfloat16)",
    )
    (folder / "faulty.py").write_text(module)
    captured(folder, ("[cache]", '[cache]\nprecision = "bfloat16"'))
    assert caplog.text.count("these look like probabilities") == 1


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64])
def test_outputs_that_are_no_floats_are_refused(dtype: torch.dtype) -> None:
    class Typed(nn.Module):
        def forward(self, inputs: Tensor) -> Tensor:
            return inputs.to(dtype)

    with pytest.raises(
        BadLogitsError, match=r"teacher 't': expected floating logits, found (int64|bool|complex64); "
    ):
        run_model(Typed(), np.ones((2, 3), np.float32), 2, where="teacher 't'")


def test_a_network_that_changes_its_classes_between_batches_is_refused() -> None:
    class Changing(nn.Module):
        def forward(self, inputs: Tensor) -> Tensor:
            return inputs if len(inputs) == 2 else inputs[:, :1]

    with pytest.raises(BadLogitsError, match="expected logits of 3 classes"):
        run_model(Changing(), np.ones((3, 3), np.float32), 2, where="teacher 't'")


def test_how_good_the_teachers_are_is_said_as_it_goes(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    recorder = experiments.Recorder()
    experiment = load_experiment(small.write_experiment(folder, more=small.SECOND_TEACHER))
    with mock.patch("os.fsync"), caplog.at_level(logging.INFO):
        report = cache(
            Workspace.of_store(experiment, folder / "store.zarr", folder, device="cpu", progress=recorder)
        )
    tally = report.quality["line"]
    store = open_store(folder / "store.zarr")
    right = store.teachers["line"].read(slice(None)).argmax(axis=1) == store.samples.labels
    assert (tally.rows, tally.right) == (small.ROWS, right.sum())
    details = [detail for *_, detail in recorder.calls if detail]
    assert len(details) == 5
    assert details[-1].startswith(f"line {right.mean():.2%} right, ")
    assert re.search(r", they disagree on 0\.00%, waiting \d+ %$", details[-1])
    assert re.search(
        r"caching .*: \d+\.\d s, of which the teachers waited for inputs and the disk \d+ %", caplog.text
    )
    assert f"teacher line: accuracy {right.mean():.4f}, " in caplog.text


def test_a_teacher_that_is_too_bad_stops_the_capture_before_the_night_is_spent(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quality, "STOP_ROWS", 100)
    with pytest.raises(BadLogitsError) as caught:
        captured(folder, stop_below=0.99)
    assert str(caught.value).startswith(
        "teacher 'line': accuracy on the first 128 labelled rows: expected at least 0.99"
    )
    assert commits(folder) == ["0-0"]
    # Nothing is lost: with another bar it goes on, and with none.
    assert captured(folder, stop_below=0.2).captured == ("line",)
    captured(folder, out="whole.zarr")
    assert stores.tree(folder / "store.zarr") == stores.tree(folder / "whole.zarr")


def test_a_bar_that_cannot_be_judged_is_said(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    inputs = np.load(folder / "data.npz")["inputs"]
    np.savez(folder / "data.npz", inputs=inputs, class_names=np.array(list("abc")))
    captured(folder, ('"data.npz" }', '"data.npz", labels = "" }'), stop_below=0.9)
    assert "none of the first 256 rows has a label: --stop-below stops nothing" in caplog.text


def test_the_command_takes_the_bar(folder: Path) -> None:
    from click.testing import CliRunner

    path = small.write_experiment(folder)
    arguments = ["cache", str(path), str(folder / "store.zarr"), "--device", "cpu", "--stop-below"]
    with mock.patch("os.fsync"):
        result = CliRunner().invoke(cli, [*arguments, "0.999"])
        assert result.exit_code == 65
        assert "(--stop-below)" in result.stderr
        assert len(result.stderr.splitlines()) == 1
        assert CliRunner().invoke(cli, [*arguments, "0.1"]).exit_code == 0
        assert CliRunner().invoke(cli, [*arguments, "1.5"]).exit_code == 64
