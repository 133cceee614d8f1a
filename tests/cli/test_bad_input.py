"""Wrong input: one line with its four parts, a stable exit code, and nothing left behind or changed.

Whole lines stand in tests/messages.txt (`make messages` rewrites them); a test asserts the parts that its case is about.
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
from support.messages import Line, Sentences

import logitstore
from logitstore.cli.main import cli
from logitstore.storage.backends import local as storage_files
from logitstore.storage.backends.posix import typed_errors
from logitstore.storage.errors import StoreIncomplete
from logitstore.storage.format.constants import CARD_FILE

USAGE, DATA, AGAIN = 64, 65, 75
TRAINED = (
    'factory = "faulty:linear"\nweights = "line.safetensors"',
    'factory = "logitstore.pipeline.models:mlp"\nargs = { hidden = [] }\ntrain = { lr = 0.1, epochs = 1 }',
)
"""Makes the teacher one that is trained here, from labels."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Lay out a folder with the small experiment."""
    small.lay_out(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder where the small experiment was run without a disturbance. Not to be changed."""
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


def line_of(result: Result, code: int) -> Line:
    """Return the one line on stderr, without its first word."""
    assert result.exit_code == code, (result.exit_code, result.stderr, result.stdout)
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("logitstore: ")
    return Line(line.removeprefix("logitstore: "))


def refused(folder: Path, code: int, *arguments: object) -> Line:
    """Run a command that must fail and change nothing; return its line."""
    before = small.snapshot(folder)
    line = line_of(call(*arguments), code)
    after = small.snapshot(folder)
    assert sorted(after) == sorted(before), "something was left behind"
    assert after == before, "something was changed"
    assert line.parts is not None, line
    return line


def refused_run(folder: Path, code: int, *changes: tuple[str, str], more: str = "") -> Line:
    """Run the experiment with some of its text changed; return the line of its error."""
    experiment = small.write_experiment(folder, *changes, more=more)
    return refused(folder, code, "run", experiment, "--out", folder / "out")


def test_the_experiment_of_these_tests_is_good(whole: Path) -> None:
    """Negative control: what is refused below is refused for what was changed."""
    assert (whole / "out" / "evaluation.json").is_file()
    assert list(logitstore.open_store(whole / "out" / "store.zarr").teachers) == ["line"]


def test_what_is_left_behind_is_noticed(folder: Path) -> None:
    """Negative control of `refused`: a bad logit in the fourth block comes after three good ones."""
    with pytest.raises(AssertionError, match="something was left behind"):
        refused_run(folder, DATA, ('weights = "line', 'args = { spoilt = "nan" }\nweights = "line'))


# The experiment file


def test_a_misspelt_key(folder: Path, sentence: Sentences) -> None:
    line = refused_run(folder, USAGE, ("temperature", "temprature"))
    assert line.found == "'temprature'"
    assert "'temperature'" in line.remedy
    sentence(line)


def test_five_problems_of_a_file_are_five_lines(folder: Path, sentence: Sentences) -> None:
    changes = [
        ("temperature = 2.0", 'temprature = "2"'),
        ("batch_size = 32", "batch_size = 0"),
        ("[cache]", "[cash]\n[cache]"),
        ("lr = 1e-2", "lr = -1"),
        ('order = "as_is"', 'order = "random"'),
    ]
    file = small.write_experiment(folder, *changes)
    result = call("run", file, "--out", folder / "out")
    lines = result.stderr.splitlines()
    assert result.exit_code == USAGE and len(lines) == 5 and not (folder / "out").exists()
    for line in lines:
        assert line.startswith(f"logitstore: {file}: ")
        sentence(line)


@pytest.mark.parametrize("command", ["run", "cache", "train", "evaluate"])
def test_no_experiment_file(folder: Path, command: str, sentence: Sentences) -> None:
    store = [] if command == "run" else [folder / "store.zarr"]
    line = refused(folder, USAGE, command, folder / "none.toml", *store)
    assert line.where == f"{folder / 'none.toml'}"
    sentence(line)


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        pytest.param("data.npz", "date.npz", id="data"),
        pytest.param("line.safetensors", "lime.safetensors", id="weights"),
    ],
)
def test_no_file_of_that_name(folder: Path, name: str, wrong: str, sentence: Sentences) -> None:
    line = refused_run(folder, DATA, (name, wrong))
    assert line.where == f"{folder / wrong}"
    sentence(line)


def test_no_evaluation_file(folder: Path, sentence: Sentences) -> None:
    """Found before the first teacher is run, though it is needed last."""
    evaluation = small.EXPERIMENT.index("[evaluation_set]")
    old = small.EXPERIMENT[evaluation : small.EXPERIMENT.index("[[teacher]]")]
    line = refused_run(folder, DATA, (old, old.replace("data.npz", "test.npz")))
    assert line.where == f"{folder / 'test.npz'}"
    sentence(line)


def test_sets_that_cannot_be(folder: Path, sentence: Sentences) -> None:
    """Found before the first teacher is run as well."""
    more = '[cluster]\nteacher = "line"\nclusters = 2\nclasses_per_cluster = 3\n'
    line = refused_run(folder, USAGE, more=more)
    assert (line.where, line.found) == ("classes_per_cluster", "3")
    sentence(line)


@pytest.mark.parametrize("command", ["train", "evaluate", "cluster", "inspect", "verify"])
def test_no_store(folder: Path, command: str, sentence: Sentences) -> None:
    path = folder / "nothing.zarr"
    line = refused(folder, DATA, *_command(command, folder, path))
    assert line.where == str(path)
    sentence(line)


def _command(command: str, folder: Path, store: Path) -> list[object]:
    """Return a call of a command on a store."""
    if command == "cluster":
        return ["cluster", store, "--teacher", "line", "--clusters", "1", "--classes-per-cluster", "2"]
    return [command, *([] if command in ("inspect", "verify") else [folder / "small.toml"]), store]


# Factories


FACTORIES = {
    "no module": (("faulty:linear", "fualty:linear"), "'faulty'"),
    "no function": (("faulty:linear", "faulty:liner"), "'linear'"),
    "no module of torch": (("faulty:linear", "faulty:five"), "int"),
    "fails": (("faulty:linear", "faulty:fails"), "RuntimeError: two lines"),
    "no data set": (
        ('logitstore.pipeline.datasets:arrays"\nargs = { file = "data.npz" }', 'faulty:five"'),
        "int",
    ),
    "no augmentation": (
        ("[cache]", '[cache]\nviews = 2\naugment = { factory = "faulty:five" }'),
        "int",
    ),
    "none of logitstore's": (("logitstore.pipeline.models:mlp", "logitstore.pipeline.models:mpl"), "'mlp'"),
}
"""The change of the experiment, and what its message must name."""


@pytest.mark.parametrize("case", FACTORIES)
def test_a_factory_that_is_missing_or_makes_something_else(
    folder: Path, case: str, sentence: Sentences
) -> None:
    change, named = FACTORIES[case]
    line = refused_run(folder, USAGE, change)
    assert named in line.found + line.remedy
    sentence(line)


def test_a_teacher_that_returns_no_logits(folder: Path, sentence: Sentences) -> None:
    line = refused_run(folder, DATA, ("faulty:linear", "faulty:pair"))
    assert line.where == "teacher 'line'"
    assert "tuple" in line.found
    sentence(line)


def test_a_teacher_of_another_number_of_classes(folder: Path, sentence: Sentences) -> None:
    line = refused_run(
        folder,
        DATA,
        ('weights = "line.safetensors"', 'args = { more_classes = 1 }\nweights = "four.safetensors"'),
    )
    assert line.where == "teacher 'line'"
    assert "3 classes" in line.expected
    assert "4 classes" in line.found
    sentence(line)


def test_weights_of_another_number_of_classes(folder: Path) -> None:
    line = refused_run(folder, DATA, ('"line.safetensors"', '"four.safetensors"'))
    assert "layer." in line


# Data


def _idx(folder: Path, cut: int, compressed: bool) -> tuple[str, str]:
    """Return the change that takes an IDX file that lacks `cut` bytes at its end."""
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


@pytest.mark.parametrize("compressed", [False, True], ids=["plain", "compressed"])
def test_an_idx_file_that_is_cut_short(folder: Path, compressed: bool, sentence: Sentences) -> None:
    line = refused_run(folder, DATA, _idx(folder, 3, compressed))
    name = "images.gz" if compressed else "images"
    assert line.where == f"{folder / name}"
    assert "176 bytes" in line.expected
    assert line.found.startswith("173")
    sentence(line)


def test_a_compressed_file_that_is_cut_short(folder: Path) -> None:
    change = _idx(folder, 0, True)
    file = folder / "images.gz"
    file.write_bytes(file.read_bytes()[:-6])
    line = refused_run(folder, DATA, change)
    assert line.where == str(file)


def test_an_image_that_does_not_decode(folder: Path) -> None:
    for number in range(3):
        for name in "abc":
            (folder / "images" / name).mkdir(parents=True, exist_ok=True)
            Image.new("L", (4, 4), 20 * number).save(folder / "images" / name / f"{number}.png")
    torn = folder / "images" / "b" / "1.png"
    torn.write_bytes(torn.read_bytes()[:45])
    change = ('arrays"\nargs = { file = "data.npz" }', 'image_folder"\nargs = { root = "images" }')
    # The evaluation set would be refused first: its inputs are fractions.
    alone = (
        '[evaluation_set]\nfactory = "logitstore.pipeline.datasets:arrays"\nargs = { file = "data.npz" }\n',
        "",
    )
    line = refused_run(folder, DATA, alone, change, TRAINED)
    assert line.where == f"{folder / 'images'}: b/1.png"
    assert line.found.startswith("45 bytes")
    assert line.remedy.startswith("replace or remove")


def is_the_wrong_label(line: Line, place: object) -> None:
    """Assert that a line names the label 7 of example 250."""
    assert (line.where, line.found) == (f"{place}, example 250", "7")
    assert "-1 to 2" in line.expected


def test_a_label_out_of_range(folder: Path, sentence: Sentences) -> None:
    small.write_data(folder / "data.npz", wrong_label=7)
    line = refused_run(folder, DATA)
    is_the_wrong_label(line, folder / "data.npz")
    sentence(line)


UNCHECKED = (
    'logitstore.pipeline.datasets:arrays"\nargs = { file = "data.npz" }',
    'faulty:no_fingerprint"\nargs = { file = "data.npz" }',
)
"""Makes the transfer set one that nobody has checked, and that has no fingerprint."""
WRONG_LABEL = (UNCHECKED[0], UNCHECKED[1].replace(" }", ", wrong_label = 7 }"))


def test_a_label_out_of_range_that_is_found_late(folder: Path, sentence: Sentences) -> None:
    """A set of the user's own is checked block by block: what was committed before stays, nothing is added."""
    experiment = small.write_experiment(folder, WRONG_LABEL)
    store = folder / "out" / "store.zarr"
    line = line_of(call("run", experiment, "--out", folder / "out"), DATA)
    is_the_wrong_label(line, "transfer_set")
    sentence(line)
    assert not (store / "samples" / "digest" / "c.3").exists()
    again = refused(folder, DATA, "run", experiment, "--out", folder / "out")
    assert again == line


def test_a_label_out_of_range_that_a_teacher_is_trained_on(folder: Path, sentence: Sentences) -> None:
    line = refused_run(folder, DATA, WRONG_LABEL, TRAINED)
    is_the_wrong_label(line, "transfer_set")
    sentence(line)


# Logits


@pytest.mark.parametrize("spoilt", ["nan", "inf", "-inf"])
def test_logits_that_are_not_finite(folder: Path, whole: Path, spoilt: str, sentence: Sentences) -> None:
    """They are in the fourth of five blocks: the first three are kept, and are those of a good run."""
    experiment = small.write_experiment(
        folder, ('weights = "line', f'args = {{ spoilt = "{spoilt}" }}\nweights = "line')
    )
    line = line_of(call("run", experiment, "--out", folder / "out"), DATA)
    assert line.where == "teacher 'line', view 0, row 250 (index 250 of the transfer set), class 0"
    assert line.found.startswith(f"{spoilt} (1 of 64 rows")
    sentence(line)
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


def test_logits_that_are_not_finite_from_the_start(folder: Path, sentence: Sentences) -> None:
    small.write_experiment(folder)
    held = dict(np.load(folder / "data.npz"))
    held["inputs"][0, 0] = 99
    np.savez(folder / "data.npz", **held)
    line = refused_run(folder, DATA, ('weights = "line', 'args = { spoilt = "nan" }\nweights = "line'))
    assert line.where == "teacher 'line', row 0 (index 0 of the transfer set), class 0"
    assert line.found.startswith("nan (1 of 32 rows")
    sentence(line)


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
def test_something_else_has_the_place(folder: Path, kind: str, command: str, sentence: Sentences) -> None:
    path = folder / "out" / "store.zarr"
    _occupy(path, kind)
    arguments = _command(command, folder, path)
    if command == "run":
        arguments = ["run", folder / "small.toml", "--out", folder / "out"]
    line = refused(folder, DATA, *arguments)
    assert line.where in (str(path), str(path / "zarr.json"))
    sentence(line)


@pytest.mark.parametrize("kind", ["a file", "a folder", "another zarr group"])
def test_no_teacher_is_trained_for_a_place_that_is_taken(
    folder: Path, kind: str, sentence: Sentences
) -> None:
    _occupy(folder / "out" / "store.zarr", kind)
    sentence(refused_run(folder, DATA, TRAINED))


@pytest.mark.parametrize("command", ["run", "demo"])
def test_a_file_is_no_folder(folder: Path, command: str, sentence: Sentences) -> None:
    """Found before a teacher is trained for it."""
    (folder / "out").write_text("mine")
    experiment = [small.write_experiment(folder, TRAINED)] if command == "run" else []
    line = refused(folder, USAGE, command, *experiment, "--out", folder / "out")
    assert line.where == f"--out {folder / 'out'}"
    sentence(line)


def test_a_device_that_is_not_there(folder: Path) -> None:
    line = refused(folder, USAGE, "run", folder / "small.toml", "--out", folder / "out", "--device", "gpu")
    assert line.where == "device"
    assert "such as cpu" in line.expected
    assert line.found.startswith("'gpu'")


def test_the_demo_does_not_write_beside_something_else(tmp_path: Path, sentence: Sentences) -> None:
    _occupy(tmp_path / "out" / "store.zarr", "a folder")
    line = refused(tmp_path, DATA, "demo", "--out", tmp_path / "out")
    assert line.where == f"{tmp_path / 'out' / 'store.zarr'}"
    sentence(line)


# A transfer set that has changed


@pytest.fixture
def forbid_teachers(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Make it an error to run a teacher."""

    def forbid() -> None:
        def no_teacher(*_: object, **__: object) -> None:
            raise AssertionError("a teacher was run")

        monkeypatch.setattr("logitstore.pipeline.cache.capture.teacher_logits", no_teacher)

    return forbid


def test_a_changed_transfer_set_is_refused_before_the_teacher(
    whole: Path, tmp_path: Path, forbid_teachers: Callable[[], None], sentence: Sentences
) -> None:
    folder = small.copy_of(whole, tmp_path / "copy")
    small.write_data(folder / "data.npz", change=17)
    experiment = small.write_experiment(folder, more=small.SECOND_TEACHER)
    forbid_teachers()
    store = folder / "out" / "store.zarr"
    for arguments in (["run", experiment, "--out", folder / "out"], ["cache", experiment, store]):
        line = refused(folder, DATA, *arguments)
        assert line.where == f"{store}: samples"
        assert line.expected.startswith("transfer_set = 'sha256:")
        sentence(line)


def test_a_changed_row_of_a_set_without_fingerprint_is_named(folder: Path, sentence: Sentences) -> None:
    experiment = small.write_experiment(folder, UNCHECKED)
    assert call("run", experiment, "--out", folder / "out").exit_code == 0
    small.write_data(folder / "data.npz", change=77)
    experiment = small.write_experiment(folder, UNCHECKED, more=small.SECOND_TEACHER)
    line = line_of(call("cache", experiment, folder / "out" / "store.zarr"), DATA)
    assert line.where == "row 77 (index 77 of the transfer set)"
    assert "1 of 300 rows" in line.found
    sentence(line)
    # It is found before the second teacher is run.
    assert list(logitstore.open_store(folder / "out" / "store.zarr").teachers) == ["line"]
    assert refused(folder, DATA, "cache", experiment, folder / "out" / "store.zarr") == line


def test_a_changed_row_stops_the_training(folder: Path, sentence: Sentences) -> None:
    """If the store keeps no inputs, those of the transfer set are compared before a student learns from them."""
    changes = (UNCHECKED, ('order = "as_is"', 'order = "as_is"\nstore_inputs = false'))
    experiment = small.write_experiment(folder, *changes)
    assert call("cache", experiment, folder / "out" / "store.zarr").exit_code == 0
    small.write_data(folder / "data.npz", change=77)
    line = refused(folder, DATA, "train", experiment, folder / "out" / "store.zarr")
    assert line.where == "row 77 (index 77 of the transfer set)"
    sentence(line)


# A capture that was interrupted


def test_an_interrupted_store_is_no_training_set(folder: Path, sentence: Sentences) -> None:
    experiment = small.write_experiment(
        folder, ('weights = "line', 'args = { spoilt = "nan" }\nweights = "line')
    )
    store = folder / "out" / "store.zarr"
    assert call("cache", experiment, store).exit_code == DATA
    line = refused(folder, DATA, "train", experiment, store)
    assert line.where.startswith(f"{store}: ")
    sentence(line)


def test_an_interrupted_capture_is_no_training_set(whole: Path, tmp_path: Path, sentence: Sentences) -> None:
    folder = small.copy_of(whole, tmp_path / "copy")
    second = small.SECOND_TEACHER.replace('"1"', '"nan"')
    experiment = small.write_experiment(
        folder, ("{ line = 1.0 }", "{ line = 1.0, second = 1.0 }"), more=second
    )
    store = folder / "out" / "store.zarr"
    assert call("cache", experiment, store).exit_code == DATA
    line = refused(folder, DATA, "train", experiment, store)
    assert line.where == f"{store}: teachers/second"
    assert "3 of 5 blocks" in line.found
    assert "`logitstore cache`" in line.remedy
    sentence(line)
    opened = logitstore.open_store(store)
    with pytest.raises(StoreIncomplete) as caught:
        opened.teachers["second"]
    assert str(caught.value) == line
    assert "second" not in opened.teachers
    # What is sealed can be read all the same.
    assert opened.teachers["line"].read(slice(0, 2)).shape == (2, 3)
    # And `verify` calls it incomplete, which is not corrupt.
    result = call("verify", store, "--deep")
    assert result.exit_code == 5
    assert f"{store}: teachers/second: begun and not sealed" in result.stdout


# A full disk


def _of_store(folder: Path) -> dict[str, bytes]:
    """Return the files of a store, without its card, which has scores after an evaluation."""
    return {name: data for name, data in small.files(folder).items() if name != CARD_FILE}


def _fill_disk_at(write: int, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Make the disk full from a write (counted from 0) on; return a function that makes room again."""
    really = storage_files.NewObject.write
    count = 0

    def full(self: storage_files.NewObject, data: bytes) -> None:
        nonlocal count
        count += 1
        if count > write:
            really(self, data[: len(data) // 2])
            with typed_errors(self._folder.path, self._key):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        really(self, data)

    monkeypatch.setattr(storage_files.NewObject, "write", full)
    return lambda: monkeypatch.setattr(storage_files.NewObject, "write", really)


@pytest.mark.parametrize("write", [0, 4, 13, 20, 33, 47, 58, 66], ids="write-{}".format)
def test_a_full_disk_loses_nothing(
    folder: Path, whole: Path, write: int, monkeypatch: pytest.MonkeyPatch, sentence: Sentences
) -> None:
    store, good = folder / "out" / "store.zarr", whole / "out" / "store.zarr"
    make_room = _fill_disk_at(write, monkeypatch)
    line = line_of(call("cache", folder / "small.toml", store), AGAIN)
    _is_full(line, store)
    sentence(line)
    kept = _of_store(store) if store.exists() else {}
    assert len(kept) <= write  # those of the block that did not fit were staged and are gone
    complete = _of_store(good)
    assert all(complete[name] == data for name, data in kept.items())
    make_room()
    assert call("cache", folder / "small.toml", store).exit_code == 0
    assert _of_store(store) == complete


def _is_full(line: Line, store: Path) -> None:
    """Assert that a line names a full disk and the way on."""
    assert line.where.startswith(str(store))
    assert line.found == "No space left on device (errno 28)"
    assert line.remedy.startswith("free space and run the same command again")


def test_the_writes_of_the_full_disk_are_all_of_a_store(whole: Path) -> None:
    """Control: the numbers above lie within the writes of a store."""
    assert 66 < len(small.files(whole / "out" / "store.zarr")) < 80


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a disk of 160 KiB, which `mount -o remount,size=` makes larger."""
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
    _is_full(Line(line.removeprefix("logitstore: ")), store)
    kept, complete = _of_store(store), _of_store(good)
    assert 0 < len(kept) < len(complete)
    assert all(complete[name] == data for name, data in kept.items())
    subprocess.run(["mount", "-o", "remount,size=16m", str(small_disk)], check=True)
    second = subprocess.run(command, capture_output=True, text=True, check=False)
    assert second.returncode == 0, second.stderr
    assert _of_store(store) == complete
