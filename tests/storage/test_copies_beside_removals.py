"""Copies onto a destination from which something is removed meanwhile: a part is named by the log whole, or not at all."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from support import stores
from support.stores import Teacher

from logitstore.storage.api import open_store
from logitstore.storage.errors import StorageError
from logitstore.storage.integrity.repair import repair
from logitstore.storage.integrity.verify import verify
from logitstore.storage.parts.removal import part_keys
from logitstore.storage.sharing import copying
from logitstore.storage.sharing.copying import copy_store
from logitstore.storage.sharing.part_copy import PartCopy
from logitstore.storage.sharing.removing import remove_parts

NAMES = ("wide", "wide-small")


@pytest.fixture
def whole(tmp_path: Path, without_fsync: None) -> Path:
    """A store of two captures of two blocks."""
    path = tmp_path / "whole.zarr"
    stores.make(path, rows=14, teachers={name: Teacher() for name in NAMES})
    return path


@pytest.fixture
def begun(whole: Path, tmp_path: Path) -> Path:
    """A copy that was killed before the first record of its log: all parts are there, and none is named."""
    path = tmp_path / "new.zarr"
    with (
        mock.patch.object(copying, "add_to_log", side_effect=KeyboardInterrupt),
        pytest.raises(KeyboardInterrupt),
    ):
        copy_store(whole, path)
    assert open_store(path).root.records == [] and (path / "teachers/wide/__logitstore__/seal.json").exists()
    return path


def some_shard(path: Path) -> Path:
    return next((path / "teachers" / "wide" / "logits").glob("c.*"))


def _repaired(path: Path) -> None:
    some_shard(path).write_bytes(b"damage")
    assert repair(path).removed


def _half_removed(path: Path) -> None:
    folder = path / "teachers" / "wide"
    keys = part_keys(one.relative_to(folder).as_posix() for one in folder.rglob("*") if one.is_file())
    for key in keys[:-2]:  # a removal that was killed before the seal and the spec
        (folder / key).unlink()
    assert (folder / "__logitstore__" / "seal.json").exists()


def _shard_lost(path: Path) -> None:
    some_shard(path).unlink()


@pytest.mark.parametrize("spoil", [_repaired, _half_removed, _shard_lost], ids=lambda one: one.__name__)
def test_a_copy_that_goes_on_brings_what_was_taken_away(
    whole: Path, begun: Path, spoil: Callable[[Path], None]
) -> None:
    spoil(begun)
    done = copy_store(whole, begun)
    assert done.sent > 0
    assert stores.tree(begun) == stores.tree(whole)
    assert verify(begun, deep=True).exit_code == 0


def test_a_repair_takes_the_seal_of_a_part_whose_block_it_removes(begun: Path) -> None:
    seal = begun / "teachers" / "wide" / "__logitstore__" / "seal.json"
    _repaired(begun)
    assert not seal.exists() and not seal.with_name("seal.bin").exists()


def test_a_part_that_is_removed_before_the_log_names_it_is_not_named(whole: Path, tmp_path: Path) -> None:
    path, bring = tmp_path / "new.zarr", PartCopy.bring

    def then_removed(self: PartCopy, *arguments: Any) -> None:
        bring(self, *arguments)
        if self.name == "teachers/wide-small":
            assert remove_parts(path, teachers=["wide"]).parts[0].state == "unfinished"

    with (
        mock.patch.object(PartCopy, "bring", then_removed),
        pytest.raises(StorageError, match="removed meanwhile"),
    ):
        copy_store(whole, path)
    assert "teachers/wide" not in [record.part for record in open_store(path).root.records]
    assert verify(path, deep=True).exit_code in (0, 5)
    copy_store(whole, path)
    assert stores.tree(path) == stores.tree(whole)


def test_what_is_removed_between_the_comparison_and_the_copy_is_brought(whole: Path, begun: Path) -> None:
    bring = PartCopy.bring

    def removed_first(self: PartCopy, *arguments: Any) -> None:
        if self.name == "teachers/wide":
            _half_removed(begun)
        bring(self, *arguments)

    with mock.patch.object(PartCopy, "bring", removed_first):
        copy_store(whole, begun)
    assert stores.tree(begun) == stores.tree(whole)


def test_damage_of_a_part_is_reported_though_one_of_a_shorter_name_is_removed_meanwhile(whole: Path) -> None:
    shard = next((whole / "teachers" / "wide-small" / "logits").glob("c.*"))
    shard.write_bytes(b"damage")
    gone = shutil.copytree(whole, whole.with_name("gone.zarr"))
    remove_parts(gone, teachers=["wide"])

    def removed_meanwhile(*_: Any) -> None:
        for one in (gone / "__logitstore__" / "log").iterdir():
            shutil.copy(one, whole / "__logitstore__" / "log" / one.name)

    found = verify(whole, deep=True, progress=removed_meanwhile)
    assert found.exit_code == 1 and [problem for problem in found.problems if "wide-small" in problem.where]


def test_a_repair_brings_nothing_back_of_a_part_that_is_removed_meanwhile(whole: Path) -> None:
    (whole / "teachers" / "wide" / "zarr.json").unlink()

    def removed(*_: Any) -> None:
        if (whole / "teachers" / "wide").exists():
            remove_parts(whole, teachers=["wide"])

    with mock.patch("logitstore.storage.integrity.repair._Cures.alone", autospec=True) as alone:
        alone.side_effect = lambda *_: (removed(), __import__("contextlib").nullcontext())[1]
        repair(whole)
    assert not (whole / "teachers" / "wide").exists()
