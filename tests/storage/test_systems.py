"""Other operating systems: Windows reads stores and refuses to write them, macOS does both.

A Python of its own loses what they lack (`support.other_systems`). The real ones run in continuous integration.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support import stores
from support.children import environment
from support.make_golden import DATA
from support.messages import Sentences
from support.other_systems import MACOS_LACKS, WINDOWS_LACKS, WRITTEN, content, write
from support.stores import Teacher
from support.tree import ROOT, python_files
from support.web import serving

GOLDEN = DATA / "store-v1.0"


def started(system: str, action: str, *arguments: object, **changes: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "support.other_systems", system, action, *map(str, arguments)]
    return subprocess.run(
        command, check=False, capture_output=True, text=True, env=environment(**changes), timeout=120
    )


def on(system: str, action: str, *arguments: object, **changes: str) -> Any:
    done = started(system, action, *arguments, **changes)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture
def golden(tmp_path: Path) -> Path:
    return Path(shutil.copytree(GOLDEN, tmp_path / "store.zarr"))


def test_every_system_reads_the_same() -> None:
    places = [str(DATA / name) for name in ("store-v1.0", "transform-v1.1")]
    here, on_windows, on_macos = (on(system, "read", *places) for system in ("native", "windows", "macos"))
    # Negative control: what they lack was there, and is gone.
    assert here.pop("lacks") == []
    gone, kept = set(on_windows.pop("lacks")), set(on_macos.pop("lacks"))
    assert {f"os.{name}" for name in WINDOWS_LACKS} | {"fcntl", "resource", "dir_fd", "signal.SIGHUP"} <= gone
    assert {f"os.{name}" for name in MACOS_LACKS} | {"renameat2", "/proc"} <= kept
    for place in places:
        kinds = [one[place].pop("folder") for one in (here, on_windows, on_macos)]
        assert kinds == ["Folder", "PathFolder", "Folder"]
        assert (here[place]["verified"][0], here[place]["errors"]) == (0, [])
        assert [code for code, _ in here[place]["printed"]] == [0, 0, 0]
    assert on_windows == here
    assert on_macos == here


def test_windows_refuses_in_one_line_what_it_cannot_write(golden: Path, sentence: Sentences) -> None:
    before = stores.tree(golden)
    found = on("windows", "refuse", golden)
    for name, kind, text in found:
        assert kind in ("UnsupportedSystem", "64"), (name, kind, text)
        assert "expected Linux or macOS, which writing needs, found Windows; write there" in text
        assert text.count("\n") <= 1
    sentence(found[0][2])
    sentence(found[-1][2])
    assert len(found) == 37
    assert stores.tree(golden) == before
    assert [one.name for one in golden.parent.iterdir()] == [golden.name]


def test_torch_streams_on_windows_and_the_stages_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "store.zarr"
    stores.make(path, rows=30, classes=3, block_rows=8, teachers={"wide": Teacher(views=2)})
    found = on("windows", "torch_batches", path)
    assert [[name, kind] for name, kind, _ in found["errors"]] == [
        [name, "UnsupportedSystem"] for name in ("cache", "cluster", "distill")
    ]
    assert [one.name for one in tmp_path.iterdir()] == ["store.zarr"]
    here = on("native", "torch_batches", path)
    assert here["loss"] == found["loss"]
    assert here["errors"][0][1] == "no error"  # negative control


@pytest.mark.parametrize("place", ["http", "s3"])
def test_windows_reads_a_remote_store(golden: Path, tmp_path: Path, place: str) -> None:
    """The objects of a bucket are listed by a child process, which is on Windows, too."""
    began, site = tmp_path / "began", tmp_path / "site"
    site.mkdir()
    start = f"""
import os
from support.other_systems import windows
windows()
with open({str(began)!r}, "a") as file:
    file.write(str(hasattr(os, "pread")) + ",")
"""
    (site / "sitecustomize.py").write_text(start, encoding="utf-8")
    with serving(tmp_path) as web:
        bucket = {"AWS_ENDPOINT_URL": web.url, "AWS_ALLOW_HTTP": "true", "AWS_SKIP_SIGNATURE": "true"}
        url = f"{web.url}/store.zarr" if place == "http" else "s3://bucket/store.zarr"
        paths = os.pathsep.join([str(site), environment()["PYTHONPATH"]])
        found = on("windows", "content", url, PYTHONPATH=paths, AWS_REGION="nowhere-1", **bucket)
    here = content(str(golden))
    kind = "RemoteFolder" if place == "http" else "ObjectFolder"
    assert (found.pop("folder"), here.pop("folder")) == (kind, "Folder")
    if place == "http":
        here["verified"] = None  # a web server lists nothing
    assert found == here
    assert began.read_text(encoding="utf-8") == "False," * (1 if place == "http" else 2)


def test_macos_writes_is_killed_and_resumes_to_the_same_bytes(tmp_path: Path) -> None:
    path = tmp_path / "store.zarr"
    for after in (11, 60):
        assert started("macos", "write", path, after).returncode == -signal.SIGKILL
    found = on("macos", "write", path)
    # Negative control: macOS' own fsync leaves data in the cache of the disk. None of ours calls it.
    assert found["synced"].keys() == {"F_FULLFSYNC"}
    assert write(str(tmp_path / "native.zarr")) == {"digest": found["digest"], "synced": {}}
    assert stores.tree(path) == stores.tree(tmp_path / "native.zarr")


def test_macos_without_hard_links_renames(tmp_path: Path) -> None:
    """Of a disk such as exFAT: the rename is that of macOS."""
    found = on("macos", "write", tmp_path / "store.zarr", -1, "no links")
    assert found["synced"]["renameatx_np"] > 10
    assert found["digest"] == write(str(tmp_path / "native.zarr"))["digest"]


@pytest.mark.parametrize("system", ["native", "windows"])
def test_the_check_of_continuous_integration_passes(system: str) -> None:
    found = on(system, "check")
    assert found == {"system": "Linux", "written": WRITTEN} or found == {"system": "Windows", "refused": 37}


ASKING = re.compile(
    r"sys\.platform|os\.name\b|platform\.system|^\s*import (fcntl|resource|pwd|grp|termios)\b", re.MULTILINE
)


def test_one_module_asks_on_which_system_it_runs() -> None:
    asking = {
        str(file) for file in python_files(ROOT) if ASKING.search((ROOT / file).read_text(encoding="utf-8"))
    }
    assert asking == {"storage/backends/system.py"}  # negative control: this one is found
