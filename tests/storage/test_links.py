"""Stores whose files are links, as other tools lay them: read where asked for, checked as ever, never written to."""

import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from support import stores
from support.stores import Teacher

from logitstore.cli.main import cli
from logitstore.storage.api import create_store, open_store
from logitstore.storage.backends import links
from logitstore.storage.backends.links import LinkedFolder
from logitstore.storage.backends.remote import Access, folder_at, folder_to_write
from logitstore.storage.errors import (
    ConfigError,
    LimitExceeded,
    ShardCorrupt,
    StorageRefused,
    UntrustedStoreError,
)
from logitstore.storage.integrity.verify import verify
from logitstore.storage.sharing.catalog import find_stores
from logitstore.storage.sharing.copying import copy_store


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a store; it is not changed."""
    path = tmp_path_factory.mktemp("whole") / "store.zarr"
    stores.make(path, rows=50, classes=5, block_rows=16, teachers={"wide": Teacher(views=2)})
    return path


def _laid(whole: Path, tree: Path, place: Callable[[Path], Path], relative: bool) -> Path:
    """Lay every file of a store into the place that a tool keeps it in, and a link to it into `tree`."""
    for file in sorted(path for path in whole.rglob("*") if path.is_file()):
        kept, link = place(file), tree / file.relative_to(whole)
        kept.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, kept)
        kept.chmod(0o444)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(kept, link.parent) if relative else kept.absolute())
    return tree


def hugging_face(whole: Path, base: Path) -> Path:
    """Lay the cache of Hugging Face: snapshots of relative links into blobs, which are named by their digest."""
    repo = base / "hub" / "datasets--owner--name"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text("0123abcd")
    blobs = repo / "blobs"
    tree = repo / "snapshots" / "0123abcd" / "store.zarr"
    return _laid(whole, tree, lambda file: blobs / hashlib.sha256(file.read_bytes()).hexdigest(), True)


def dvc(whole: Path, base: Path) -> Path:
    """Lay a tree of DVC with `cache.type = symlink`: absolute links into its cache, by md5."""

    def place(file: Path) -> Path:
        digest = hashlib.md5(file.read_bytes()).hexdigest()
        return base / ".dvc" / "cache" / "files" / "md5" / digest[:2] / digest[2:]

    (base / "data").mkdir()
    (base / "data" / "store.zarr.dvc").write_text("outs:\n- path: store.zarr\n")
    return _laid(whole, base / "data" / "store.zarr", place, False)


def git_annex(whole: Path, base: Path) -> Path:
    """Lay a tree of git-annex: relative links to `.git/annex/objects/…/KEY/KEY`."""

    def place(file: Path) -> Path:
        data = file.read_bytes()
        key = f"SHA256E-s{len(data)}--{hashlib.sha256(data).hexdigest()}{file.suffix}"
        return base / ".git" / "annex" / "objects" / key[-9:-7] / key[-7:-5] / key / key

    return _laid(whole, base / "store.zarr", place, True)


LAYOUTS = {"Hugging Face": hugging_face, "DVC": dvc, "git-annex": git_annex}


@pytest.fixture(params=LAYOUTS)
def linked(request: pytest.FixtureRequest, whole: Path, tmp_path: Path) -> Path:
    """Lay the store as one of the tools does."""
    return LAYOUTS[request.param](whole, tmp_path)


def call(*words: object) -> Result:
    return CliRunner().invoke(cli, [str(word) for word in words])


def test_a_store_of_links_is_read_where_asked_for(linked: Path, whole: Path, tmp_path: Path) -> None:
    store, plain = open_store(linked, follow_links=True), open_store(whole)
    assert store.digest == plain.digest
    wanted = plain.teachers["wide"].read(slice(None), 1)
    assert store.teachers["wide"].read(slice(None), 1).tobytes() == wanted.tobytes()
    for ours, theirs in zip(store.stream(8, seed=3), plain.stream(8, seed=3), strict=True):
        assert np.array_equal(ours.logits["wide"], theirs.logits["wide"])
    report = verify(folder_at(linked, Access(follow_links=True)), deep=True)
    assert (report.exit_code, report.digest, report.strays) == (0, plain.digest, [])
    done = copy_store(linked, tmp_path / "copy.zarr", follow_links=True)
    assert done.digest == plain.digest
    assert stores.files_of(tmp_path / "copy.zarr") == stores.files_of(whole)
    assert not any(path.is_symlink() for path in (tmp_path / "copy.zarr").rglob("*"))
    stores_there = find_stores(linked.parent, follow_links=True)
    (found,) = [one for one in stores_there if one.name == "store.zarr"]
    assert (found.digest, found.sealed) == (plain.digest, True)


def test_rows_of_links_are_concatenated_where_asked_for(whole: Path, tmp_path: Path) -> None:
    linked, both = hugging_face(whole, tmp_path), tmp_path / "both.zarr"
    words = "concat", linked, whole, both, "--teacher", "wide", "--allow-duplicates"
    plain = call(*words)
    assert plain.exit_code != 0 and "--follow-links" in plain.output + plain.stderr and not both.exists()
    done = call(*words, "--follow-links")
    assert done.exit_code == 0, done.output + done.stderr
    once, twice = (open_store(path).teachers["wide"].read(slice(None), 1) for path in (whole, both))
    assert np.array_equal(twice, np.concatenate([once, once]))
    assert not any(path.is_symlink() for path in both.rglob("*"))


@pytest.mark.parametrize("command", ["inspect", "verify", "list", "evaluate"])
def test_commands_read_it_with_the_option_and_name_it_without(
    whole: Path, tmp_path: Path, command: str
) -> None:
    linked = hugging_face(whole, tmp_path)
    done = call(command, linked, "--follow-links")
    assert done.exit_code == 0, done.output
    plain = call(command, linked)
    assert plain.exit_code != 0 and "--follow-links" in plain.output + plain.stderr


def test_without_the_option_the_error_names_it(linked: Path) -> None:
    with pytest.raises(
        UntrustedStoreError, match=r"found a symbolic link; do not use.*pass follow_links=True"
    ):
        open_store(linked)


def test_it_is_never_written_to(whole: Path, tmp_path: Path) -> None:
    linked = dvc(whole, tmp_path)
    before = stores.files_of(linked)
    store = open_store(linked, follow_links=True)
    with pytest.raises(
        ConfigError, match=r"which is read alone; run `logitstore copy .* NEW --follow-links`"
    ):
        store.capture("new", provenance={})
    with pytest.raises(ConfigError, match="which is read alone"):
        folder_to_write(linked, Access(follow_links=True))
    with pytest.raises(UntrustedStoreError):
        create_store(
            linked, num_rows=50, num_classes=5, exist_ok=True, digests=np.arange(50, dtype=np.uint64)
        )
    assert stores.files_of(linked) == before


def test_bytes_behind_a_link_are_checked(linked: Path) -> None:
    shard = (linked / "teachers/wide/logits/c.0.1.0").resolve()
    shard.chmod(0o644)
    data = bytearray(shard.read_bytes())
    data[5] ^= 1
    shard.write_bytes(data)
    store = open_store(linked, follow_links=True)
    with pytest.raises(ShardCorrupt):
        store.teachers["wide"].read(slice(16, 32))
    assert verify(folder_at(linked, Access(follow_links=True)), deep=True).exit_code == 1


def test_a_link_to_nothing_is_named_with_the_way_to_fetch_it(whole: Path, tmp_path: Path) -> None:
    linked = git_annex(whole, tmp_path)
    (linked / "teachers/wide/logits/c.0.1.0").resolve().unlink()
    store = open_store(linked, follow_links=True)
    with pytest.raises(
        StorageRefused, match=r"found a link to .*annex.*, which is not there; .*git annex get"
    ):
        store.teachers["wide"].read(slice(16, 32))
    assert verify(folder_at(linked, Access(follow_links=True))).exit_code == 4
    (linked / "zarr.json").resolve().unlink()
    with pytest.raises(StorageRefused, match="git annex get"):
        open_store(linked, follow_links=True)


def test_links_to_pipes_and_in_circles_end(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    linked = hugging_face(whole, tmp_path)
    os.mkfifo(tmp_path / "pipe")
    shard = linked / "teachers/wide/logits/c.0.0.0"
    shard.unlink()
    shard.symlink_to(tmp_path / "pipe")
    store = open_store(linked, follow_links=True)
    with pytest.raises(UntrustedStoreError, match="found a pipe"):
        store.teachers["wide"].read(slice(0, 4))
    shard.unlink()
    shard.symlink_to(shard)
    with pytest.raises(StorageRefused, match="symbolic links"):
        store.teachers["wide"].read(slice(0, 4))
    (linked / "above").symlink_to("..")
    (linked / "self").symlink_to(".")
    folder = LinkedFolder(linked)
    keys = folder.files()
    assert "self" in keys and all(key.count("/") < 40 for key in keys)
    monkeypatch.setattr(links, "MOST_FILES", 100)
    for name in "abcdefgh":
        (linked / name).symlink_to("samples")
    with pytest.raises(LimitExceeded, match="do not follow the links"):
        folder.files()


def test_a_folder_without_links_reads_the_same(whole: Path) -> None:
    folder = LinkedFolder(whole)
    assert folder.files() == sorted(stores.files_of(whole))
    assert open_store(whole, follow_links=True).digest == open_store(whole).digest
