"""Pointers of Git LFS in the place of files: named, wherever one is read."""

import hashlib
import shutil
from pathlib import Path

import pytest
from support import stores
from support.messages import Sentences
from support.stores import Teacher

from logitstore.storage.api import open_store
from logitstore.storage.errors import LogitStoreError, ShardCorrupt
from logitstore.storage.integrity.verify import verify
from logitstore.storage.sharing.copying import copy_store


def point(file: Path) -> None:
    """Replace a file by the pointer that a clone without LFS has in its place."""
    data = file.read_bytes()
    oid = hashlib.sha256(data).hexdigest()
    file.write_text(f"version https://git-lfs.github.com/spec/v1\noid sha256:{oid}\nsize {len(data)}\n")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of two captures, one in an encoding with an index; it is not changed."""
    path = tmp_path_factory.mktemp("whole") / "store.zarr"
    stores.make(path, rows=37, teachers={"wide": Teacher(), "exact": Teacher(encoding={"max_kl": 1e-2})})
    return path


def said(error: BaseException) -> bool:
    return isinstance(error, LogitStoreError) and "git lfs pull" in error.remedy and "Git LFS" in error.found


@pytest.mark.parametrize(
    "key", ["teachers/wide/__logitstore__/seal.bin", "samples/label/zarr.json", "teachers/wide/classes/c.0"]
)
def test_a_pointer_to_metadata_is_named(whole: Path, tmp_path: Path, key: str, sentence: Sentences) -> None:
    path = tmp_path / "store.zarr"
    shutil.copytree(whole, path)
    point(path / key)
    with pytest.raises(LogitStoreError) as caught:
        store = open_store(path)
        store.samples.labels, store.teachers["wide"].read([0])
    assert said(caught.value)
    sentence(caught.value)
    assert any(map(said, verify(path, deep=True).problems))
    with pytest.raises(LogitStoreError) as copying:
        copy_store(path, tmp_path / "copy")
    assert said(copying.value)


@pytest.mark.parametrize(("teacher", "array"), [("wide", "logits"), ("exact", "logits")])
def test_a_pointer_to_a_shard_is_named(whole: Path, tmp_path: Path, teacher: str, array: str) -> None:
    path = tmp_path / "store.zarr"
    shutil.copytree(whole, path)
    (shard, *_) = sorted((path / "teachers" / teacher / array).glob("c.0.0*"))
    point(shard)
    with pytest.raises(ShardCorrupt) as caught:
        open_store(path).teachers[teacher].read([0])
    assert said(caught.value)
    for deep in (False, True):
        assert any(map(said, verify(path, deep=deep).problems))
    with pytest.raises(ShardCorrupt) as copying:
        copy_store(path, tmp_path / "copy")
    assert said(copying.value)


def test_another_wrong_file_is_no_pointer(whole: Path, tmp_path: Path) -> None:
    path = tmp_path / "store.zarr"
    shutil.copytree(whole, path)
    (shard, *_) = sorted((path / "teachers" / "wide" / "logits").glob("c.0.0*"))
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(ShardCorrupt) as caught:
        open_store(path).teachers["wide"].read([0])
    assert not said(caught.value)
    assert not any(map(said, verify(path, deep=True).problems))
