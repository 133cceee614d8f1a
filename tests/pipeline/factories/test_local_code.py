"""Local code: every file that makes a network is digested, as it was when it was imported."""

import importlib
import logging
import py_compile
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest
from support.messages import Sentences

from logitstore.pipeline.factories import local_code
from logitstore.pipeline.factories.call import build, resolve
from logitstore.pipeline.factories.local_code import local_source
from logitstore.storage.errors import FactoryError

FILES = {
    "ls_nets.py": """
import numpy
import torch.nn
from ls_parts import head
from ls_pack.inner import Base

def net():
    from ls_late import later
    return later
""",
    "ls_parts.py": "import ls_deep\n\ndef head():\n    return 1\n",
    "ls_deep.py": "x = 1\n",
    "ls_late.py": "import importlib\nother = importlib.import_module('ls_named')\n",
    "ls_named.py": "y = 2\n",
    "ls_unused.py": "z = 3\n",
    "ls_pack/__init__.py": "from . import sibling\n",
    "ls_pack/inner.py": "from .sibling import thing\n\nclass Base:\n    def f(self):\n        from ..ls_outside import x\n",
    "ls_pack/sibling.py": "thing = 4\n",
    "ls_pack/unused.py": "thing = 5\n",
    "ls_space/member.py": "space = 6\n",
    "ls_space/deep/nets.py": "import ls_space.member as member\nfrom .near import x\n\ndef net():\n    return member.space\n",
    "ls_space/deep/near.py": "x = 7\n",
}
SPACE = {"ls_space/member.py", "ls_space/deep/nets.py", "ls_space/deep/near.py"}
"""Of packages without `__init__.py`."""
REACHED = set(FILES) - {"ls_unused.py", "ls_pack/unused.py"} - SPACE


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with the modules, of which none is imported."""
    for name, text in FILES.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(local_code, "_imported", {})
    monkeypatch.setattr(local_code, "_added", set())
    monkeypatch.setattr(local_code, "_unread", set())
    yield tmp_path
    forget_modules()


def forget_modules() -> None:
    """What is imported next is imported anew, as in another process."""
    for name in [name for name in sys.modules if name.startswith("ls_")]:
        del sys.modules[name]


def changed(base: Path, file: str, factory: str = "ls_nets:net") -> bool:
    """Is a change of a file seen, before anything is imported?"""
    before = local_source([factory], base=base)
    (base / file).write_text(FILES[file] + "# more\n")
    after = local_source([factory], base=base)
    assert {name for name in before if before[name] != after[name]} <= {file}
    return before != after


def test_the_files_are_those_that_the_factory_reaches(base: Path) -> None:
    assert set(local_source(["ls_nets:net"], base=base)) == REACHED
    assert not {name for name in sys.modules if name.startswith("ls_")}, "nothing is imported"


@pytest.mark.parametrize("file", FILES)
def test_a_change_of_a_file_is_seen_if_it_is_reached(base: Path, file: str) -> None:
    assert changed(base, file) == (file in REACHED)


@pytest.mark.parametrize("file", FILES)
def test_packages_without_a_file_of_their_own_are_followed(base: Path, file: str) -> None:
    """Before the import, after it, and with a change in between."""
    factory = "ls_space.deep.nets:net"
    assert changed(base, file, factory) == (file in SPACE)
    before = local_source([factory], base=base)
    resolve(factory, base=base)
    assert local_source([factory], base=base) == before
    assert set(before) == SPACE


def test_a_package_in_several_folders_is_that_of_its_import(base: Path) -> None:
    """A folder with `__init__.py` hides those without one, also where it comes later."""
    for name, text in {"more/ls_space/other.py": "x = 1\n", "whole/ls_space/__init__.py": ""}.items():
        (base / name).parent.mkdir(parents=True)
        (base / name).write_text(text)
    with mock.patch.object(sys, "path", [*sys.path, str(base / "more")]):
        assert set(local_source(["ls_space.other:x"], base=base)) == {"ls_space/other.py"}
        assert set(local_source(["ls_space.deep.nets:net"], base=base)) == SPACE
    with mock.patch.object(sys, "path", [*sys.path, str(base / "more"), str(base / "whole")]):
        assert set(local_source(["ls_space.other:x"], base=base)) == {"ls_space/__init__.py"}


LIB = "import sys, os, site\nfrom pathlib import Path\n{line}\nfrom ls_acts import act\n\ndef net():\n    return act\n"
"""A module that finds another one in a folder that it adds itself."""


def with_lib(base: Path, line: str, folder: Path | None = None) -> str:
    """Write a module with such a line, and the folder; its factory."""
    folder = folder or base / "ls_lib"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "ls_acts.py").write_text("act = 1\n")
    (base / "ls_hub.py").write_text(LIB.format(line=line))
    return "ls_hub:net"


@pytest.mark.parametrize(
    "line",
    [
        "sys.path.insert(0, str(Path(__file__).parent / 'ls_lib'))",
        "sys.path.append(os.path.join(os.path.dirname(os.path.abspath(__file__)), 'ls_lib'))",
        "HERE = Path(__file__).resolve().parents[0]\nsys.path += [f'{HERE}/ls_lib']",
        "from sys import path as p\np.extend([os.path.dirname(__file__) + '/ls_lib'])",
        "sys.path[:0] = [str(Path(__file__).with_name('ls_lib'))]",
        "sys.path = [*sys.path, str(Path(__file__).parent.joinpath('ls_lib'))]",
        "site.addsitedir(Path(__file__).parent / 'ls_lib')",
    ],
)
def test_a_folder_that_a_module_adds_is_searched(base: Path, line: str) -> None:
    """Before its import as after it."""
    factory = with_lib(base, line)
    before = local_source([factory], base=base)
    assert set(before) == {"ls_hub.py", "ls_acts.py"}
    assert resolve(factory, base=base)() == 1
    assert local_source([factory], base=base) == before
    forget_modules()
    (base / "ls_lib" / "ls_acts.py").write_text("act = 2\n")
    after = local_source([factory], base=base)
    assert {file for file in before if before[file] != after[file]} == {"ls_acts.py"}


def test_a_folder_that_another_module_adds_is_searched(base: Path) -> None:
    """Whatever the order in which the modules are read."""
    with_lib(base, "import ls_where")
    (base / "ls_where.py").write_text(
        "import os, sys\nsys.path.insert(0, os.path.join(os.path.dirname(__file__), 'ls_lib'))\n"
    )
    files = {"ls_hub.py", "ls_where.py", "ls_acts.py"}
    assert set(local_source(["ls_hub:net"], base=base)) == files
    assert set(local_source(["ls_where:x", "ls_acts:x"], base=base)) == files - {"ls_hub.py"}


def test_a_folder_in_front_hides_a_module_beside_the_experiment(base: Path) -> None:
    factory = with_lib(base, "sys.path.insert(0, str(Path(__file__).parent / 'ls_lib'))")
    (base / "ls_acts.py").write_text("act = 'hidden'\n")
    before = local_source([factory], base=base)
    assert resolve(factory, base=base)() == 1
    (base / "ls_acts.py").write_text("act = 'hidden still'\n")
    forget_modules()
    assert local_source([factory], base=base) == before


@pytest.mark.parametrize("current", [False, True])
def test_a_folder_elsewhere_is_like_that_of_an_installed_package(
    base: Path, current: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It lies neither in the folder of the experiment nor, as the negative control has it, in the current one."""
    outside, inside = base / "ls_outside_of_it", base / "inside"
    inside.mkdir()
    factory = with_lib(inside, f"sys.path.insert(0, {str(outside)!r})", outside)
    monkeypatch.chdir(base if current else inside)
    before = local_source([factory], base=inside)
    assert ("ls_acts.py" in before) == current
    assert resolve(factory, base=inside)() == 1
    assert local_source([factory], base=inside) == before


@pytest.mark.parametrize("late", [False, True])
def test_a_folder_that_must_be_computed_is_warned_of(
    base: Path, late: bool, caplog: pytest.LogCaptureFixture, sentence: Sentences
) -> None:
    """Its modules are not seen, before the import as after it, and also where the factory adds it when it is called."""
    line = "sys.path.insert(0, sorted(str(p) for p in Path(__file__).parent.glob('ls_li*'))[0])"
    factory = with_lib(base, line)
    if late:
        (base / "ls_hub.py").write_text(
            "import sys\nfrom pathlib import Path\n\ndef net():\n    "
            f"{line}\n    from ls_acts import act\n    return act\n"
        )
    with caplog.at_level(logging.WARNING):
        before = local_source([factory], base=base)
        assert build(factory, {}, base=base) == 1
        assert local_source([factory], base=base) == before
    assert set(before) == {"ls_hub.py"}
    (record,) = caplog.records
    sentence(record.getMessage())
    assert record.getMessage().startswith(f"ls_hub.py, line {5 if late else 3}: adds a folder to sys.path")


def test_what_arguments_name_is_reached_too(base: Path) -> None:
    def files(args: object) -> set[str]:
        return set(local_source(["ls_parts:head"], [{"args": args}], base=base))

    plain = {"ls_parts.py", "ls_deep.py"}
    assert files(["relu", 3, "data.npz", "not a name: at all"]) == plain
    assert files([{"body": "ls_named:y"}]) == plain | {"ls_named.py"}
    assert files("ls_pack.sibling.thing") == plain | {"ls_pack/__init__.py", "ls_pack/sibling.py"}
    assert files("ls_space.member:space") == plain | {"ls_space/member.py"}


def test_installed_modules_are_known_by_name(base: Path, tmp_path: Path) -> None:
    """So are ours, and those of an environment that lies beside the experiment."""
    factories = ["logitstore.pipeline.models:mlp", "torch.nn:Linear", "json:loads", "ls_absent:net"]
    assert local_source(factories, base=base) == {}
    installed = tmp_path / ".venv" / "site-packages"
    installed.mkdir(parents=True)
    (installed / "ls_installed.py").write_text("x = 1\n")
    with mock.patch.object(sys, "path", [*sys.path, str(installed)]):
        assert local_source(["ls_installed:x"], base=base) == {}


def test_a_module_elsewhere_that_is_not_installed_is_local(base: Path, tmp_path: Path) -> None:
    """As one of PYTHONPATH, or of the folder where the command was started. It comes before one beside the experiment."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "ls_deep.py").write_text("x = 'another'\n")
    before = local_source(["ls_deep:x"], base=base)
    with mock.patch.object(sys, "path", [str(elsewhere), *sys.path]):
        after = local_source(["ls_deep:x"], base=base)
    assert after.keys() == before.keys() == {"ls_deep.py"} and after != before


def test_what_is_no_text_is_digested_and_said(base: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A compiled module, and one in a zip file."""
    py_compile.compile(str(base / "ls_deep.py"), cfile=str(base / "ls_compiled.pyc"))
    with caplog.at_level(logging.WARNING):
        assert set(local_source(["ls_compiled:x"], base=base)) == {"ls_compiled.pyc"}
    assert "ls_compiled.pyc: a compiled module; its file is digested, what it imports is not" in caplog.text
    archive = base / "more.zip"
    digests = []
    for text in ("a = 1\n", "a = 2\n"):
        with zipfile.ZipFile(archive, "w") as file:
            file.writestr("ls_zipped.py", "import ls_named\n" + text)
        sys.path_importer_cache.clear()
        with mock.patch.object(sys, "path", [*sys.path, str(archive)]):
            digests.append(local_source(["ls_zipped:a"], base=base))
    assert digests[0].keys() == {"ls_zipped.py", "ls_named.py"} and digests[0] != digests[1]


def test_a_file_that_is_edited_after_its_import_counts_as_it_was(base: Path) -> None:
    """It is the code that runs. In another process, the edited file runs."""
    before = local_source(["ls_nets:net"], base=base)
    resolve("ls_nets:net", base=base)
    for file in ("ls_nets.py", "ls_parts.py", "ls_pack/sibling.py"):
        (base / file).write_text(FILES[file] + "# later\n")
    assert local_source(["ls_nets:net"], base=base) == before
    sys.modules.pop("ls_parts")
    seen = local_source(["ls_nets:net"], base=base)
    assert {file for file in seen if seen[file] != before[file]} == {"ls_parts.py"}


def test_a_module_that_was_reloaded_counts_as_it_is_now(base: Path) -> None:
    resolve("ls_parts:head", base=base)
    before = local_source(["ls_parts:head"], base=base)
    (base / "ls_parts.py").write_text(FILES["ls_parts.py"] + "# later, and longer\n")
    importlib.reload(sys.modules["ls_parts"])
    assert local_source(["ls_parts:head"], base=base)["ls_parts.py"] != before["ls_parts.py"]


def test_a_file_that_changes_while_it_is_imported_is_refused(base: Path) -> None:
    (base / "ls_parts.py").write_text(
        "from pathlib import Path\nPath(__file__).write_text('x = 1')\n\ndef head():\n    return 1\n"
    )
    with pytest.raises(FactoryError) as caught:
        resolve("ls_parts:head", base=base)
    assert caught.value.expected == "a file ls_parts.py that does not change while it is imported"


def test_a_broken_module_is_digested_all_the_same(base: Path) -> None:
    (base / "ls_deep.py").write_text("import ls_named\nthis is no Python\n")
    assert set(local_source(["ls_parts:head"], base=base)) == {"ls_parts.py", "ls_deep.py"}


@pytest.mark.parametrize("hidden", ["ls_nets", "ls_deep"])
def test_a_module_that_hides_the_one_beside_the_experiment_is_refused(
    base: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch, hidden: str
) -> None:
    """`python -m logitstore` in another folder searches that folder first."""
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "ls_own.py").write_text("x = 0\n")
    monkeypatch.syspath_prepend(str(elsewhere))
    assert set(local_source(["ls_nets:net"], base=base)) == REACHED  # control: nothing of that name is there
    (elsewhere / f"{hidden}.py").write_bytes((base / f"{hidden}.py").read_bytes())
    assert set(local_source(["ls_nets:net"], base=base)) == REACHED  # control: a copy
    (elsewhere / f"{hidden}.py").write_text("x = 0\n")
    with pytest.raises(FactoryError) as caught:
        local_source(["ls_nets:net"], base=base)
    error = caught.value
    assert error.where == f"module '{hidden}'"
    assert error.expected == f"the one beside the experiment file, {base / hidden}.py"
    assert error.found == f"{elsewhere / hidden}.py, which Python searches first"
