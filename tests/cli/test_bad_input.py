"""Wrong input: one line with its four parts, a stable exit code, and nothing left behind or changed.

The whole line of a message is compared as far as it does not depend on the machine.
"""

import errno
import gzip
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import zarr
from click.testing import CliRunner, Result
from PIL import Image
from support import small_experiment as small

import logitstore
from logitstore.cli.main import cli
from logitstore.storage.backends import local as storage_files
from logitstore.storage.backends.posix import typed_errors
from logitstore.storage.errors import StoreIncomplete

USAGE, DATA, AGAIN = 64, 65, 75
TRAINED = (
    'factory = "faulty:linear"\nweights = "line.safetensors"',
    'factory = "logitstore.pipeline.models:mlp"\nargs = { hidden = [] }\ntrain = { lr = 0.1, epochs = 1 }',
)
"""Makes the teacher one that is trained here, from labels."""


@pytest.fixture(autouse=True)
def no_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stderr holds the error alone: on a busy machine a task that lasts would have a line too."""
    monkeypatch.setattr("logitstore.cli.printing.progress.SHOW_AFTER", float("inf"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the small experiment."""
    small.lay_out(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small experiment, run without a disturbance. Not to be changed."""
    folder = tmp_path_factory.mktemp("whole")
    small.lay_out(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", sys.path.copy())
        result = call("run", folder / "small.toml", "--out", folder / "out")
        sys.modules.pop("faulty", None)
    assert result.exit_code == 0, result.stderr
    return folder


def call(*arguments: object) -> Result:
    """Run a command in this process."""
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


def line_of(result: Result, code: int) -> str:
    """The one line on stderr, without its first word."""
    assert result.exit_code == code, (result.exit_code, result.stderr, result.stdout)
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("logitstore: ")
    return line.removeprefix("logitstore: ")


def refused(folder: Path, code: int, *arguments: object) -> str:
    """Run a command that must fail and change nothing; its line."""
    before = small.snapshot(folder)
    line = line_of(call(*arguments), code)
    after = small.snapshot(folder)
    assert sorted(after) == sorted(before), "something was left behind"
    assert after == before, "something was changed"
    assert ": expected " in line, line
    assert ", found " in line, line
    assert "; " in line, line
    return line


def refused_run(folder: Path, code: int, *changes: tuple[str, str], more: str = "") -> str:
    """Run the experiment with some of its text changed."""
    experiment = small.write_experiment(folder, *changes, more=more)
    return refused(folder, code, "run", experiment, "--out", folder / "out")


def test_the_experiment_of_these_tests_is_good(whole: Path) -> None:
    """Negative control: what is refused below is refused for what was changed."""
    assert (whole / "out" / "evaluation.json").is_file()
    assert list(logitstore.open_store(whole / "out" / "store.zarr").teachers) == ["line"]


def test_what_is_left_behind_is_noticed(folder: Path) -> None:
    """Negative control of `refused`: a bad label in the fourth block comes after three good ones."""
    with pytest.raises(AssertionError, match="something was left behind"):
        refused_run(folder, DATA, WRONG_LABEL)


# The experiment file


def test_a_misspelt_key(folder: Path) -> None:
    line = refused_run(folder, USAGE, ("temperature", "temprature"))
    assert line == (
        f"{folder / 'small.toml'}: student[0].temprature: expected a known key, found 'temprature'; "
        "did you mean 'temperature'?"
    )


@pytest.mark.parametrize("command", ["run", "cache", "train", "evaluate"])
def test_no_experiment_file(folder: Path, command: str) -> None:
    store = [] if command == "run" else [folder / "store.zarr"]
    line = refused(folder, USAGE, command, folder / "none.toml", *store)
    assert (
        line
        == f"{folder / 'none.toml'}: expected an experiment file, found no such file or directory; check the path"
    )


def test_no_data_file(folder: Path) -> None:
    line = refused_run(folder, DATA, ("data.npz", "date.npz"))
    assert line == (
        f"{folder / 'date.npz'}: expected an .npz file, found nothing there; "
        "correct the file name (relative ones start at the experiment file's folder)"
    )


def test_no_weights_file(folder: Path) -> None:
    line = refused_run(folder, DATA, ("line.safetensors", "lime.safetensors"))
    assert line == (
        f"{folder / 'lime.safetensors'}: expected a file of weights, found No such file or directory; "
        "correct the file name (relative ones start at the experiment file's folder)"
    )


def test_no_evaluation_file(folder: Path) -> None:
    """Found before the first teacher is run, though it is needed last."""
    evaluation = small.EXPERIMENT.index("[evaluation_set]")
    old = small.EXPERIMENT[evaluation : small.EXPERIMENT.index("[[teacher]]")]
    line = refused_run(folder, DATA, (old, old.replace("data.npz", "test.npz")))
    assert line.startswith(f"{folder / 'test.npz'}: expected an .npz file, found nothing there; ")


def test_sets_that_cannot_be(folder: Path) -> None:
    """Found before the first teacher is run as well."""
    more = '[cluster]\nteacher = "line"\nclusters = 2\nclasses_per_cluster = 3\n'
    line = refused_run(folder, USAGE, more=more)
    assert line.startswith("classes_per_cluster: expected at least 2 and fewer than all 3 classes, found 3; ")


@pytest.mark.parametrize("command", ["train", "evaluate", "cluster", "inspect", "verify"])
def test_no_store(folder: Path, command: str) -> None:
    path = folder / "nothing.zarr"
    line = refused(folder, DATA, *_command(command, folder, path))
    assert line == (
        f"{path}: expected a store, found nothing; "
        "name the folder of a store, or make one with `logitstore cache`"
    )


def _command(command: str, folder: Path, store: Path) -> list[object]:
    """A call of a command on a store."""
    if command == "cluster":
        return ["cluster", store, "--teacher", "line", "--clusters", "1", "--classes-per-cluster", "2"]
    return [command, *([] if command in ("inspect", "verify") else [folder / "small.toml"]), store]


# Factories


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "faulty:linear",
            "fualty:linear",
            (
                "factory 'fualty:linear': expected a module fualty, found no module of that name; "
                "did you mean 'faulty'?"
            ),
        ),
        (
            "faulty:linear",
            "faulty:liner",
            (
                "factory 'faulty:liner': expected a function 'liner' in module faulty, found no 'liner'; "
                "did you mean 'linear'?"
            ),
        ),
        (
            "faulty:linear",
            "faulty:five",
            (
                "factory 'faulty:five': expected a torch.nn.Module, found an int; "
                "return the module itself from the factory"
            ),
        ),
        (
            "faulty:linear",
            "faulty:fails",
            (
                "factory 'faulty:fails': expected a result when called with (), found RuntimeError: two lines; "
                "correct the factory or its args"
            ),
        ),
        (
            'logitstore.pipeline.datasets:arrays"\nargs = { file = "data.npz" }',
            'faulty:five"',
            (
                "factory 'faulty:five': expected a map-style data set: len, and [i] -> (input, label) or input, "
                "an array or a tensor, found an int; return such a data set from the factory"
            ),
        ),
        (
            "[cache]",
            '[cache]\nviews = 2\naugment = { factory = "faulty:five" }',
            (
                "factory 'faulty:five': expected an augmentation: a callable (input, generator) -> input, "
                "found an int; return such a callable from the factory"
            ),
        ),
        (
            "logitstore.pipeline.models:mlp",
            "logitstore.pipeline.models:mpl",
            (
                "factory 'logitstore.pipeline.models:mpl': expected a function 'mpl' in module "
                "logitstore.pipeline.models, found no 'mpl'; did you mean 'mlp'?"
            ),
        ),
    ],
)
def test_a_factory_that_is_not_there_or_makes_something_else(
    folder: Path, old: str, new: str, message: str
) -> None:
    assert refused_run(folder, USAGE, (old, new)) == message


def test_a_teacher_that_returns_no_logits(folder: Path) -> None:
    line = refused_run(folder, DATA, ("faulty:linear", "faulty:pair"))
    assert line == (
        "teacher 'line': expected a tensor of logits of shape (32, classes), found a tuple; "
        "wrap the model so that it returns its logits alone"
    )


def test_a_teacher_of_another_number_of_classes(folder: Path) -> None:
    line = refused_run(
        folder,
        DATA,
        ('weights = "line.safetensors"', 'args = { more_classes = 1 }\nweights = "four.safetensors"'),
    )
    assert line == (
        "teacher 'line': expected logits of 3 classes, as in the transfer set, found logits of 4 classes; "
        "give the teacher the classes of the transfer set"
    )


def test_weights_of_another_number_of_classes(folder: Path) -> None:
    line = refused_run(folder, DATA, ('"line.safetensors"', '"four.safetensors"'))
    assert "layer." in line


# Data


def _idx(folder: Path, cut: int, compressed: bool) -> tuple[str, str]:
    """The change that takes an IDX file that lacks `cut` bytes at its end."""
    images = struct.pack(">IIII", 0x803, 40, 2, 2) + bytes(40 * 4)
    labels = struct.pack(">II", 0x801, 40) + bytes(i % 3 for i in range(40))
    images = images[: len(images) - cut]
    suffix = ".gz" if compressed else ""
    (folder / f"images{suffix}").write_bytes(gzip.compress(images) if compressed else images)
    (folder / "labels").write_bytes(labels)
    return (
        'arrays"\nargs = { file = "data.npz" }',
        f'idx"\nargs = {{ images = "images{suffix}", labels = "labels" }}',
    )


@pytest.mark.parametrize("compressed", [False, True])
def test_an_idx_file_that_is_cut_short(folder: Path, compressed: bool) -> None:
    line = refused_run(folder, DATA, _idx(folder, 3, compressed))
    name = "images.gz" if compressed else "images"
    assert line.startswith(f"{folder / name}: expected ")
    assert "176 bytes" in line
    assert line.endswith(
        "(header and 40 x 2 x 2), found 173; the file is cut short or damaged: fetch it again"
    )


def test_a_compressed_file_that_is_cut_short(folder: Path) -> None:
    change = _idx(folder, 0, True)
    file = folder / "images.gz"
    file.write_bytes(file.read_bytes()[:-6])
    line = refused_run(folder, DATA, change)
    assert line.startswith(f"{file}: expected ")


def test_an_image_that_does_not_decode(folder: Path) -> None:
    for number in range(3):
        for name in "abc":
            (folder / "images" / name).mkdir(parents=True, exist_ok=True)
            Image.new("L", (4, 4), 20 * number).save(folder / "images" / name / f"{number}.png")
    torn = folder / "images" / "b" / "1.png"
    torn.write_bytes(torn.read_bytes()[:45])
    change = ('arrays"\nargs = { file = "data.npz" }', 'image_folder"\nargs = { root = "images" }')
    line = refused_run(folder, DATA, change, TRAINED)
    assert line.startswith(
        f"{folder / 'images'}: b/1.png: expected an image that decodes, found 45 bytes that do not ("
    )
    assert line.endswith("; replace or remove the file")


def test_a_label_out_of_range(folder: Path) -> None:
    small.write_data(folder / "data.npz", wrong_label=7)
    line = refused_run(folder, DATA)
    assert line == (
        f"{folder / 'data.npz'}, example 250: expected a label from -1 to 2 (3 classes), found 7; "
        "correct the labels, or name all classes"
    )


UNCHECKED = (
    'logitstore.pipeline.datasets:arrays"\nargs = { file = "data.npz" }',
    'faulty:no_fingerprint"\nargs = { file = "data.npz" }',
)
"""Makes the transfer set one that nobody has checked, and that has no fingerprint."""
WRONG_LABEL = (UNCHECKED[0], UNCHECKED[1].replace(" }", ", wrong_label = 7 }"))


def test_a_label_out_of_range_that_is_found_late(folder: Path) -> None:
    """A set of the user's own is checked block by block: what was committed before stays, nothing is added."""
    experiment = small.write_experiment(folder, WRONG_LABEL)
    store = folder / "out" / "store.zarr"
    line = line_of(call("run", experiment, "--out", folder / "out"), DATA)
    assert line == (
        "transfer_set, example 250: expected a label from -1 to 2 (3 classes), found 7; "
        "correct the labels, or name all classes"
    )
    assert not (store / "samples" / "digest" / "c.3").exists()
    again = refused(folder, DATA, "run", experiment, "--out", folder / "out")
    assert again == line


def test_a_label_out_of_range_that_a_teacher_is_trained_on(folder: Path) -> None:
    line = refused_run(folder, DATA, WRONG_LABEL, TRAINED)
    assert line == (
        "transfer_set, example 250: expected a label from -1 to 2 (3 classes), found 7; "
        "correct the labels, or name all classes"
    )


# Logits


@pytest.mark.parametrize("spoilt", ["nan", "inf", "-inf"])
def test_logits_that_are_not_finite(folder: Path, whole: Path, spoilt: str) -> None:
    """In the fourth of five blocks: the first three are kept, and are those of a good run."""
    experiment = small.write_experiment(
        folder, ('weights = "line', f'args = {{ spoilt = "{spoilt}" }}\nweights = "line')
    )
    line = line_of(call("run", experiment, "--out", folder / "out"), DATA)
    assert line == (
        f"teacher 'line', view 0, row 250 (index 250 of the transfer set), class 0: expected finite logits, found {spoilt} "
        "(1 of 64 rows); "
        "correct the teacher (or its precision) and run it again; nothing of this block was kept"
    )
    kept = {
        name
        for name in small.files(folder / "out" / "store.zarr")
        if name.startswith("teachers/line/logits/c.")
    }
    assert kept == {f"teachers/line/logits/c.0.{block}.0" for block in range(3)}
    for name in kept:
        there = whole / "out" / "store.zarr" / name
        assert (folder / "out" / "store.zarr" / name).read_bytes() == there.read_bytes()
    assert refused(folder, DATA, "run", experiment, "--out", folder / "out") == line


def test_logits_that_are_not_finite_from_the_start(folder: Path) -> None:
    small.write_experiment(folder)
    held = dict(np.load(folder / "data.npz"))
    held["inputs"][0, 0] = 99
    np.savez(folder / "data.npz", **held)
    line = refused_run(folder, DATA, ('weights = "line', 'args = { spoilt = "nan" }\nweights = "line'))
    assert line.startswith(
        "teacher 'line', row 0 (index 0 of the transfer set), class 0: expected finite logits, found nan (1 of 32 rows)"
    )


# The store's place


def _occupy(path: Path, kind: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind == "a file":
        path.write_text("mine")
    elif kind == "a folder":
        path.mkdir()
        (path / "letter.txt").write_text("mine")
    else:
        zarr.open_group(path, mode="w").create_array("mine", shape=(3,), dtype="f4")


@pytest.mark.parametrize("kind", ["a file", "a folder", "another zarr group"])
@pytest.mark.parametrize("command", ["run", "cache", "train", "evaluate", "cluster", "inspect", "verify"])
def test_something_else_has_the_place(folder: Path, kind: str, command: str) -> None:
    path = folder / "out" / "store.zarr"
    _occupy(path, kind)
    arguments = _command(command, folder, path)
    if command == "run":
        arguments = ["run", folder / "small.toml", "--out", folder / "out"]
    line = refused(folder, DATA, *arguments)
    where, _, rest = line.partition(": expected ")
    assert where in (str(path), str(path / "zarr.json"))
    expected, _, found = rest.partition(", found ")
    assert expected in ("a store", "a path that is free", "a Zarr v3 group with logitstore's attributes")
    words = {
        "a file": ("a file",),
        "a folder": ("a folder",),
        "another zarr group": ("a Zarr group", "other metadata"),
    }
    assert found.startswith(words[kind])


@pytest.mark.parametrize("kind", ["a file", "a folder", "another zarr group"])
def test_no_teacher_is_trained_for_a_place_that_is_taken(folder: Path, kind: str) -> None:
    _occupy(folder / "out" / "store.zarr", kind)
    refused_run(folder, DATA, TRAINED)


@pytest.mark.parametrize("command", ["run", "demo"])
def test_a_file_is_no_folder(folder: Path, command: str) -> None:
    """Found before a teacher is trained for it."""
    (folder / "out").write_text("mine")
    experiment = [small.write_experiment(folder, TRAINED)] if command == "run" else []
    assert refused(folder, USAGE, command, *experiment, "--out", folder / "out") == (
        f"--out {folder / 'out'}: expected a folder, or nothing yet, found a file; "
        "choose another name, or move the file away"
    )


def test_a_device_that_is_not_there(folder: Path) -> None:
    line = refused(folder, USAGE, "run", folder / "small.toml", "--out", folder / "out", "--device", "gpu")
    assert line.startswith("device: expected a device that PyTorch can use here, such as cpu, found 'gpu' (")
    assert line.endswith("); name another device, or leave it out")


def test_the_demo_does_not_write_beside_something_else(tmp_path: Path) -> None:
    _occupy(tmp_path / "out" / "store.zarr", "a folder")
    line = refused(tmp_path, DATA, "demo", "--out", tmp_path / "out")
    assert line.startswith(
        f"{tmp_path / 'out' / 'store.zarr'}: expected a store, found a folder without zarr.json; "
    )


# A transfer set that has changed


@pytest.fixture
def forbid_teachers(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Makes it an error to run a teacher."""

    def forbid() -> None:
        def no_teacher(*_: object, **__: object) -> None:
            raise AssertionError("a teacher was run")

        monkeypatch.setattr("logitstore.pipeline.cache.capture.teacher_logits", no_teacher)

    return forbid


def test_a_changed_transfer_set_is_refused_before_the_teacher(
    whole: Path, tmp_path: Path, forbid_teachers: Callable[[], None]
) -> None:
    folder = small.copy_of(whole, tmp_path / "copy")
    small.write_data(folder / "data.npz", change=17)
    experiment = small.write_experiment(folder, more=small.SECOND_TEACHER)
    forbid_teachers()
    store = folder / "out" / "store.zarr"
    for arguments in (["run", experiment, "--out", folder / "out"], ["cache", experiment, store]):
        line = refused(folder, DATA, *arguments)
        assert line.startswith(f"{store}: samples: expected transfer_set = 'sha256:")
        assert line.endswith("; change the transfer set back, or make a new store (another --out)")


def test_a_changed_row_of_a_set_without_fingerprint_is_named(folder: Path) -> None:
    experiment = small.write_experiment(folder, UNCHECKED)
    assert call("run", experiment, "--out", folder / "out").exit_code == 0
    small.write_data(folder / "data.npz", change=77)
    experiment = small.write_experiment(folder, UNCHECKED, more=small.SECOND_TEACHER)
    line = line_of(call("cache", experiment, folder / "out" / "store.zarr"), DATA)
    assert line.startswith("row 77 (index 77 of the transfer set): expected an input with digest ")
    assert "(1 of 64 rows of this block differ)" in line
    assert line.endswith("; use the transfer set that the store was made from, or make a new store")
    # The good block before it was captured and is kept; nothing is sealed, and nothing more comes.
    assert list(logitstore.open_store(folder / "out" / "store.zarr").teachers) == ["line"]
    assert refused(folder, DATA, "cache", experiment, folder / "out" / "store.zarr") == line


def test_a_changed_row_stops_the_training(folder: Path) -> None:
    """Where the store keeps no inputs, those of the transfer set are compared while a student learns."""
    changes = (UNCHECKED, ('order = "as_is"', 'order = "as_is"\nstore_inputs = false'))
    experiment = small.write_experiment(folder, *changes)
    assert call("cache", experiment, folder / "out" / "store.zarr").exit_code == 0
    small.write_data(folder / "data.npz", change=77)
    line = refused(folder, DATA, "train", experiment, folder / "out" / "store.zarr")
    assert line.startswith("row 77 (index 77 of the transfer set): expected ")
    assert line.endswith("; use the transfer set and the augmentation that the store was made from")


# A capture that was interrupted


def test_an_interrupted_store_is_no_training_set(folder: Path) -> None:
    experiment = small.write_experiment(
        folder, ('weights = "line', 'args = { spoilt = "nan" }\nweights = "line')
    )
    store = folder / "out" / "store.zarr"
    assert call("cache", experiment, store).exit_code == DATA
    line = refused(folder, DATA, "train", experiment, store)
    assert line.startswith(f"{store}: ")
    assert line.endswith(" again to resume it")
    assert "found an unfinished part" in line


def test_an_interrupted_capture_is_no_training_set(whole: Path, tmp_path: Path) -> None:
    folder = small.copy_of(whole, tmp_path / "copy")
    second = small.SECOND_TEACHER.replace('"1"', '"nan"')
    experiment = small.write_experiment(
        folder, ("{ line = 1.0 }", "{ line = 1.0, second = 1.0 }"), more=second
    )
    store = folder / "out" / "store.zarr"
    assert call("cache", experiment, store).exit_code == DATA
    message = (
        f"{store}: teachers/second: expected a sealed part, found an unfinished part (3 of 5 blocks); "
        "run the command that writes it (`logitstore cache`, `run` or `compress`) again to resume it"
    )
    assert refused(folder, DATA, "train", experiment, store) == message
    opened = logitstore.open_store(store)
    with pytest.raises(StoreIncomplete) as caught:
        opened.teachers["second"]
    assert str(caught.value) == message
    assert "second" not in opened.teachers
    # What is sealed can be read all the same.
    assert opened.teachers["line"].read(slice(0, 2)).shape == (2, 3)
    # And `verify` calls it incomplete, which is not corrupt.
    result = call("verify", store, "--deep")
    assert result.exit_code == 5
    assert f"{store}: teachers/second: begun and not sealed" in result.stdout


# A full disk


def _fill_disk_at(write: int, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Make the disk full at a write (counted from 0) and at all after it; returns what makes room again."""
    really = storage_files.NewObject.write
    count = 0

    def full(self: storage_files.NewObject, data: bytes) -> None:
        nonlocal count
        count += 1
        if count > write:
            really(self, data[: len(data) // 2])
            with typed_errors(self._path):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        really(self, data)

    monkeypatch.setattr(storage_files.NewObject, "write", full)
    return lambda: monkeypatch.setattr(storage_files.NewObject, "write", really)


@pytest.mark.parametrize("write", [0, 4, 13, 20, 33, 47, 58, 66])
def test_a_full_disk_loses_nothing(
    folder: Path, whole: Path, write: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, good = folder / "out" / "store.zarr", whole / "out" / "store.zarr"
    make_room = _fill_disk_at(write, monkeypatch)
    line = line_of(call("cache", folder / "small.toml", store), AGAIN)
    _is_full(line, store)
    kept = small.files(store) if store.exists() else {}
    assert len(kept) <= write  # those of the block that did not fit were staged and are gone
    complete = small.files(good)
    assert all(complete[name] == data for name, data in kept.items())
    make_room()
    assert call("cache", folder / "small.toml", store).exit_code == 0
    assert small.files(store) == complete


def _is_full(line: str, store: Path) -> None:
    where, _, rest = line.partition(": ")
    assert where.startswith(str(store))
    assert rest == (
        "expected room to write, found No space left on device (errno 28); "
        "free space and run the same command again; what was committed is intact"
    )


def test_the_writes_of_the_full_disk_are_all_of_a_store(whole: Path) -> None:
    """So that the numbers above mean what they say."""
    assert 66 < len(small.files(whole / "out" / "store.zarr")) < 80


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 160 KiB, which `mount -o remount,size=` makes larger."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=160k", "tmpfs", str(disk)]
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("needs root to mount a small disk")
    made = subprocess.run(command, capture_output=True, text=True, check=False)
    if made.returncode:
        pytest.skip(f"cannot mount a small disk here: {made.stderr.strip()}")
    try:
        yield disk
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_disk_that_is_really_full(folder: Path, whole: Path, small_disk: Path) -> None:
    store, good = small_disk / "store.zarr", whole / "out" / "store.zarr"
    command = [sys.executable, "-m", "logitstore.cli.main", "cache", str(folder / "small.toml"), str(store)]
    first = subprocess.run(command, capture_output=True, text=True, check=False)
    assert first.returncode == AGAIN, first.stderr
    assert first.stdout == ""
    (line,) = first.stderr.splitlines()
    _is_full(line.removeprefix("logitstore: "), store)
    kept, complete = small.files(store), small.files(good)
    assert 0 < len(kept) < len(complete)
    assert all(complete[name] == data for name, data in kept.items())
    subprocess.run(["mount", "-o", "remount,size=16m", str(small_disk)], check=True)
    second = subprocess.run(command, capture_output=True, text=True, check=False)
    assert second.returncode == 0, second.stderr
    assert small.files(store) == complete
