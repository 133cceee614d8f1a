"""docs/guides/trust.md: its recipe with ssh-keygen, run as it stands, and what it must refuse."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support import stores
from support.tree import ROOT

from logitstore.storage.api import open_store

PAGE = (ROOT / "docs" / "guides" / "trust.md").read_text(encoding="utf-8")
pytestmark = pytest.mark.skipif(
    shutil.which("ssh-keygen") is None, reason="needs ssh-keygen: apt-get install openssh-client"
)


def block(beginning: str) -> str:
    """Return the block of the page whose first line begins so."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
    (found,) = [text for _, text in blocks if text.startswith(beginning)]
    return str(found)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a store, a key under the names of the page, and a command logitstore."""
    stores.make(tmp_path / "mnist.zarr", rows=14, teachers={"wide": stores.Teacher()})
    (tmp_path / "bin").mkdir()
    command = tmp_path / "bin" / "logitstore"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m logitstore "$@"\n')
    command.chmod(0o755)
    (tmp_path / ".ssh").mkdir(mode=0o700)
    new_key(tmp_path / ".ssh" / "id_ed25519")
    shutil.copy(tmp_path / ".ssh" / "id_ed25519.pub", tmp_path / "ada.pub")
    for beginning in ("echo", "logitstore inspect mnist.zarr --digest >"):
        assert run(tmp_path, block(beginning)) == 0
    return tmp_path


def new_key(path: Path) -> None:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", path], check=True)


def run(folder: Path, script: str) -> int:
    """Run lines in a shell until one fails, at home in the folder; return the exit code."""
    env = {**os.environ, "HOME": str(folder), "PATH": f"{folder / 'bin'}:{os.environ['PATH']}"}
    script = script.replace("~", str(folder))  # ssh-keygen and the shell may know another home
    return subprocess.run(["sh", "-e"], input=script, text=True, cwd=folder, env=env, check=False).returncode


CHECK = "ssh-keygen -Y verify"


def test_the_recipe_signs_and_checks(folder: Path) -> None:
    assert (folder / "mnist.digest").read_text() == f"{open_store(folder / 'mnist.zarr').digest}\n"
    assert run(folder, block(CHECK)) == 0


def test_another_digest_is_refused(folder: Path) -> None:
    digest = folder / "mnist.digest"
    digest.write_text(digest.read_text().translate(str.maketrans("0123456789", "1234567890")))
    assert run(folder, block(CHECK).splitlines()[0]) != 0


def test_another_key_is_refused(folder: Path) -> None:
    for name in ("id_ed25519", "id_ed25519.pub"):
        (folder / ".ssh" / name).unlink()
    (folder / "mnist.digest.sig").unlink()
    new_key(folder / ".ssh" / "id_ed25519")
    assert run(folder, block("logitstore inspect mnist.zarr --digest >")) == 0
    assert run(folder, block(CHECK).splitlines()[0]) != 0


def test_a_signature_for_another_purpose_is_refused(folder: Path) -> None:
    (folder / "mnist.digest.sig").unlink()
    sign = block("logitstore inspect mnist.zarr --digest >").replace("-n logitstore", "-n file")
    assert run(folder, sign) == 0
    check = block(CHECK).splitlines()[0]
    assert run(folder, check) != 0
    assert run(folder, check.replace("-n logitstore", "-n file")) != 0  # the key is accepted for stores alone


def test_another_store_and_a_changed_bit_are_refused(folder: Path) -> None:
    signed, store = block(CHECK), folder / "mnist.zarr"
    shard = next((store / "teachers" / "wide" / "logits").glob("c.*"))
    stores.flip(shard, 3)
    assert run(folder, signed) == 1
    shutil.rmtree(store)
    stores.make(store, rows=15, teachers={"wide": stores.Teacher()})
    assert run(folder, signed.splitlines()[0]) == 0  # the signature alone says nothing of the store
    assert run(folder, signed) != 0
