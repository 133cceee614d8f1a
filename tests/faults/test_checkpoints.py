"""Hostile files of weights and factory strings are refused in one line, and none of their code runs."""

import hashlib
import json
import os
import pickle
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from support import stores

from faults.checkpoints import (
    GADGET_RAN,
    MALFORMED,
    PICKLES,
    SAFETENSORS,
    Build,
    good_state,
    header_and_data,
    model,
    write,
)
from faults.json_faults import resident_bytes
from faults.tally import Tally
from logitstore.pipeline.factories.call import build, resolve
from logitstore.pipeline.models import sources, weights
from logitstore.pipeline.models.weights import load_weights, save_weights
from logitstore.storage.errors import BadDataError, ConfigError, FactoryError

MOST_SECONDS = 2.0
MOST_GROWTH = 256 << 20


def harm(name: str, make: Build, folder: Path, suffix: str) -> list[str]:
    """Make a checkpoint, load it, and say what harm it did."""
    folder.mkdir()
    path = folder / f"weights{suffix}"
    make(path)
    target, untouched = model(), model()
    memory, start = resident_bytes(), time.process_time()
    wrong = []
    try:
        load_weights(target, path, allow_pickle=True)
        wrong.append("it was loaded")
    except (BadDataError, ConfigError) as error:
        if "\n" in str(error) or len(str(error)) > 1000:
            wrong.append(f"more than a line: {str(error)[:200]!r}")
    except Exception as error:  # noqa: BLE001 - whatever else it is, it is wrong
        wrong.append(f"{type(error).__name__}: {str(error)[:200]}")
    seconds, growth = time.process_time() - start, resident_bytes() - memory
    if seconds > MOST_SECONDS:
        wrong.append(f"{seconds:.1f} s")
    if growth > MOST_GROWTH:
        wrong.append(f"{growth >> 20} MiB of memory")
    if (folder / GADGET_RAN).exists():
        wrong.append("the gadget ran")
    same = zip(target.state_dict().values(), untouched.state_dict().values(), strict=True)
    if not all(torch.equal(one, other) for one, other in same):
        wrong.append("weights were changed")
    return [f"{name}: {line}" for line in wrong]


def test_the_good_ones_are_loaded(tmp_path: Path) -> None:
    """Negative control: what is refused below is refused for what was changed."""
    write(tmp_path / "weights.safetensors", *header_and_data())
    torch.save(good_state(), tmp_path / "weights.pt")
    for name in ("weights.safetensors", "weights.pt"):
        target = model()
        digest = load_weights(target, tmp_path / name, allow_pickle=True)
        assert digest == f"sha256:{hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()}"
        pairs = zip(target.state_dict().values(), model(seed=1).state_dict().values(), strict=True)
        assert all(torch.equal(one, other) for one, other in pairs)


@pytest.mark.parametrize(
    ("made", "suffix"), [(SAFETENSORS, ".safetensors"), (PICKLES, ".pt")], ids=["safetensors", "pickles"]
)
def test_a_hostile_checkpoint_is_refused(
    tmp_path: Path, tally: Tally, made: dict[str, Build], suffix: str
) -> None:
    wrong = []
    for number, (name, make) in enumerate(made.items()):
        wrong += harm(name, make, tmp_path / str(number), suffix)
    tally.reached("checkpoint", len(made), "cases", wrong, checkpoints=len(made))


def test_pickles_are_not_opened_at_all_where_nobody_allowed_it(tmp_path: Path, tally: Tally) -> None:
    wrong = []
    for number, (name, make) in enumerate(PICKLES.items()):
        (tmp_path / str(number)).mkdir()
        path = tmp_path / str(number) / "weights.pt"
        make(path)
        with mock.patch.object(torch, "load", side_effect=AssertionError("it was opened")):
            try:
                load_weights(model(), path)
                wrong.append(name)
            except ConfigError:
                pass
    tally.reached("checkpoint", len(PICKLES), "cases", wrong)


@pytest.mark.parametrize("version", ["1.13.1", "2.5.1", "2.9.1+cu128"])
def test_pickles_are_not_read_by_a_torch_with_a_known_hole(
    tmp_path: Path, tally: Tally, version: str
) -> None:
    path = tmp_path / "weights.pt"
    torch.save(good_state(), path)
    with mock.patch.object(torch, "__version__", version), pytest.raises(ConfigError) as caught:
        load_weights(model(), path, allow_pickle=True)
    assert str(caught.value) == (
        f"{path}: expected torch 2.10 or newer, to read a .pt file, found torch {version}; "
        "convert the file with safetensors.torch.save_file, or install a newer torch"
    )
    tally.reached("checkpoint", 1, "cases")


def test_a_file_that_is_exchanged_meanwhile_is_refused(tmp_path: Path, tally: Tally) -> None:
    """The digest must be that of the weights that were loaded."""
    path = tmp_path / "weights.safetensors"
    save_weights(model(seed=1), path)
    digest = weights.weights_digest

    def exchanged(place: Path) -> str:
        save_weights(model(seed=2), place)
        return digest(place)

    with mock.patch.object(weights, "weights_digest", exchanged), pytest.raises(BadDataError) as caught:
        load_weights(model(), path)
    assert "expected a file that does not change while it is read" in str(caught.value)
    tally.reached("checkpoint", 1, "cases")
    with (
        mock.patch.object(weights, "weights_digest", exchanged),
        mock.patch.object(sources, "_state", lambda _: ()),
    ):
        tally.control("checkpoint", "exchanged file", load_weights(model(), path) == digest(path))


# Negative controls: a guard is taken out, and the same judge sees harm.


def test_a_loader_that_trusts_pickles_is_seen(tmp_path: Path, tally: Tally) -> None:
    load = torch.load

    def trusting(path: Any, **options: Any) -> Any:
        return load(path, **{**options, "weights_only": False})

    for number, name in enumerate(("a gadget that calls system", "a gadget in torch's older format")):
        with mock.patch.object(torch, "load", trusting):
            seen = harm(name, PICKLES[name], tmp_path / str(number), ".pt")
        tally.control("checkpoint", f"weights_only: {name}", f"{name}: the gadget ran" in seen)


def test_a_loader_that_falls_back_is_seen(tmp_path: Path, tally: Tally) -> None:
    read = weights._read

    def falling_back(path: Path, *, pickled: bool) -> Any:
        try:
            return read(path, pickled=pickled)
        except BadDataError:
            return pickle.loads(path.read_bytes())

    name = "a pickle of another name"
    with mock.patch.object(weights, "_read", falling_back):
        seen = harm(name, SAFETENSORS[name], tmp_path / "0", ".safetensors")
    tally.control("checkpoint", "no fall-back", f"{name}: the gadget ran" in seen)


def test_a_header_that_is_not_looked_at_is_seen(tmp_path: Path, tally: Tally) -> None:
    name = "a header of 32 MB"
    with mock.patch.object(weights, "_check_header", lambda _: None):
        seen = harm(name, SAFETENSORS[name], tmp_path / "0", ".safetensors")
    tally.control("checkpoint", "size of the header", f"{name}: it was loaded" in seen)


# Factory strings


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A folder with modules that say that they were imported."""
    before, path = set(sys.modules), list(sys.path)
    marks = {
        "evil": "def make():\n    return 1\n",
        "exits": "raise SystemExit(3)\n",
        "loops": "import loops.inner\n",
        "json": "def make():\n    return 'not the one of Python'\n",
        "sitecustomize": "",
        "interrupts": "raise BaseExceptionGroup('x', [SystemExit(1)])\n",
        "number": "make = 3\n",
    }
    for name, text in marks.items():
        mark = f"import pathlib\npathlib.Path({str(tmp_path)!r}, 'imported-{name}').touch()\n"
        (tmp_path / f"{name}.py").write_text(mark + text)
    yield tmp_path
    sys.path[:] = path
    for name in set(sys.modules) - before:
        if name in marks:
            del sys.modules[name]


def imported(folder: Path) -> list[str]:
    return sorted(path.name.removeprefix("imported-") for path in folder.glob("imported-*"))


def refusal(factory: str, folder: Path) -> str | None:
    """What is wrong with how a factory string is refused."""
    try:
        found = resolve(factory, base=folder)
    except FactoryError as error:
        return (
            f"more than a line: {str(error)[:100]!r}"
            if "\n" in str(error) or len(str(error)) > 1000
            else None
        )
    except BaseException as error:  # noqa: BLE001 - whatever else it is, it is wrong
        return f"{type(error).__name__}: {error}"
    return f"it is {found!r}"


def test_a_string_of_another_form_is_refused_and_nothing_imported(folder: Path, tally: Tally) -> None:
    with mock.patch("importlib.import_module", side_effect=AssertionError("something was imported")):
        found = {factory: refusal(factory, folder) for factory in MALFORMED}
    wrong = [f"{factory[:60]!r}: {line}" for factory, line in found.items() if line]
    assert imported(folder) == []
    tally.reached("checkpoint", len(MALFORMED), "cases", wrong, factory_strings=len(MALFORMED))
    form = mock.Mock()
    form.fullmatch = lambda text: {
        "module": text.strip(" .").partition(":")[0],
        "function": text.partition(":")[2],
    }
    with mock.patch("logitstore.pipeline.factories.call._FACTORY", form):
        tally.control("checkpoint", "form of factory strings", refusal(" os:system", folder) is not None)


@pytest.mark.parametrize(
    ("factory", "marks"),
    [
        pytest.param("exits:make", ["exits"], id="exits"),
        pytest.param("number:make", ["number"], id="number for a module"),
        pytest.param("evil:other", ["evil"], id="no function"),
        pytest.param("nowhere:make", [], id="no module"),
        pytest.param("evil.inner:make", ["evil"], id="no package"),
        pytest.param("loops:make", ["loops"], id="imports itself"),
    ],
)
def test_a_module_that_misbehaves_is_refused(
    folder: Path, tally: Tally, factory: str, marks: list[str]
) -> None:
    assert refusal(factory, folder) is None
    assert imported(folder) == marks
    tally.reached("checkpoint", 1, "cases", factory_strings=1)


def test_a_name_of_the_user_is_imported_and_not_called(folder: Path, tally: Tally) -> None:
    """What the user's own file names is the user's code; finding it does not run it."""
    assert resolve("os:system") is os.system
    assert resolve("builtins:eval") is eval
    assert resolve("evil:make", base=folder)() == 1
    assert build("evil:make", {}, base=folder) == 1
    tally.reached("checkpoint", 3, "cases", factory_strings=3)


def test_a_file_beside_the_experiment_hides_no_module(folder: Path, tally: Tally) -> None:
    assert refusal("json:make", folder) is None
    assert resolve("json:dumps", base=folder) is json.dumps
    assert imported(folder) == []
    tally.reached("checkpoint", 2, "cases", factory_strings=2)


def run(code: str, folder: Path) -> "subprocess.CompletedProcess[str]":
    """Run Python in a folder."""
    command = [sys.executable, "-c", code]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False)


def test_a_factory_that_a_store_names_is_never_imported(folder: Path, tally: Tally) -> None:
    """A store whose provenance names a module that is there; every reader in a process of its own."""
    own = folder / "own"
    own.mkdir()
    (folder / "evil.py").rename(own / "evil.py")
    made = stores.make(folder / "store.zarr", teachers={})
    named = {"factory": "evil:make", "args": {}, "weights": "evil.safetensors"}
    provenance = {"teacher": named, "augmentation": {**named, "first_view": 1}}
    with made.store.capture("wide", provenance=provenance) as capture:
        for rows in capture.missing_blocks():
            logits = stores.some_logits(1, len(rows), 5)[0]
            capture.write(rows, logits, seen=made.store.samples.digests[rows.start : rows.stop])
    stores.add_clustering(made.store)
    code = (
        "import sys\n"
        f"sys.path.insert(0, {str(own)!r})\n"
        "from click.testing import CliRunner\n"
        "from logitstore.cli.main import cli\n"
        "from logitstore import open_store\n"
        f"path = {str(made.path)!r}\n"
        "for command in (['inspect', path], ['verify', path, '--deep']):\n"
        "    assert CliRunner().invoke(cli, command).exit_code == 0, command\n"
        "store = open_store(path)\n"
        "next(iter(store.stream(4, augment=lambda inputs, view, rows: inputs)))\n"
        "store.teachers['wide'].dask()[0, :4].compute(scheduler='synchronous')\n"
        "assert 'evil' not in sys.modules and 'torch' not in sys.modules, 'something was imported'\n"
    )
    done = run(code, own)
    assert done.returncode == 0, done.stderr
    wrong = imported(folder)
    tally.reached("checkpoint", 1, "cases", wrong, factory_strings=1)
    control = code.replace("store = open_store(path)\n", "store = open_store(path)\nimport evil\n")
    done = run(control, own)
    tally.control(
        "checkpoint", "no import of what a store names", done.returncode != 0 and imported(folder) == ["evil"]
    )
