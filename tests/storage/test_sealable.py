"""A part that no seal could hold is refused before anything is written; readers would refuse it afterwards."""

from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest

from logitstore.storage.api import Store, create_store, open_store
from logitstore.storage.errors import ConfigError, LogitStoreError
from logitstore.storage.format import layouts
from logitstore.storage.format.grid import Grid
from logitstore.storage.parts import journal, log, part_writer, sealable
from logitstore.storage.parts.journal import SealTable
from logitstore.storage.parts.sealable import check_log, check_samples_sealable, table_bytes

pytestmark = pytest.mark.usefixtures("without_fsync")
ROWS, CLASSES = 64, 3
INPUTS = np.random.default_rng(0).integers(0, 256, (ROWS, 4), dtype=np.uint8)


def made(place: Path, **changes: Any) -> Store:
    settings: dict[str, Any] = {"num_classes": CLASSES, "inputs": INPUTS, "block_rows": 8}
    return create_store(place, **settings | changes)


def capture(store: Store, views: int = 2) -> None:
    """Write and seal a capture."""
    with store.capture("net", provenance={}, views=views) as writer:
        for view in range(views):
            for rows in writer.missing_blocks(view):
                writer.write(rows, np.zeros((len(rows), CLASSES), np.float32), view)


def test_the_bytes_of_a_seal_are_known_beforehand(tmp_path: Path) -> None:
    store = made(tmp_path / "store.zarr")
    capture(store)
    for name, views in (("samples", 1), ("teachers/net", 2)):
        part = store.root.part(name)
        blocks = [layout for layout in part.layouts.values() if layout.is_block_array]
        assert table_bytes(blocks, store.grid, views) == part.seal.table_size
        table = SealTable(part.seal.arrays, views, store.grid.num_blocks)
        assert len(table.to_bytes()) == part.seal.table_size


def limited(most: int) -> Any:
    """Patches under which writer and readers allow `most` bytes of a seal.bin."""
    return (
        mock.patch.object(sealable, "MAX_SEAL_TABLE_BYTES", most),
        mock.patch.object(journal, "MAX_SEAL_TABLE_BYTES", most),
        mock.patch.object(layouts, "MAX_SEAL_TABLE_BYTES", most),
    )


def test_a_capture_of_too_many_blocks(tmp_path: Path, sentence: Any) -> None:
    """A record of its three arrays takes 132 bytes; two views have 16 blocks."""
    writer, journals, readers = limited(2000)
    with writer, journals, readers:
        store = made(tmp_path / "store.zarr")
        before = sorted(store.path.glob("teachers/*"))  # type: ignore[attr-defined]
        with pytest.raises(ConfigError) as error:
            store.capture("net", provenance={}, views=2)
        sentence(error.value)
        assert sorted(store.path.glob("teachers/*")) == before  # type: ignore[attr-defined]
        capture(store, views=1)
        wider = made(tmp_path / "wider.zarr", block_rows=16)
        capture(wider)
        assert open_store(wider.path).teachers["net"].read(slice(2)).shape == (2, CLASSES)


def test_without_the_check_such_a_capture_is_sealed_and_unreadable(tmp_path: Path) -> None:
    """Negative control: the limit is one of readers, and no other check of the writer holds it."""
    writer, journals, readers = limited(2000)
    with (
        journals,
        readers,
        mock.patch.object(part_writer, "check_sealable"),
        pytest.raises(LogitStoreError, match=r"bytes of seal\.bin"),
    ):
        capture(made(tmp_path / "store.zarr"))
        open_store(tmp_path / "store.zarr").teachers["net"].read(slice(2))
    with writer, pytest.raises(ConfigError):
        capture(made(tmp_path / "refused.zarr"))


@pytest.mark.parametrize(
    "changes",
    [
        {"inputs": None, "digests": np.zeros(1 << 20, np.uint64), "block_rows": 1},
        {"inputs": np.zeros((8, *(1,) * 8), np.uint8), "store_inputs": True},
        {"inputs": np.zeros((8, 0), np.uint8), "store_inputs": True},
        {"class_names": ["a" * (1 << 20), *map(str, range(69))], "num_classes": 70},
    ],
    ids=["blocks", "dimensions", "empty", "names"],
)
def test_a_store_that_could_not_be_sealed_is_not_begun(
    tmp_path: Path, changes: dict[str, Any], sentence: Any
) -> None:
    with pytest.raises(ConfigError) as error:
        made(tmp_path / "store.zarr", **changes)
    sentence(error.value)
    assert not (tmp_path / "store.zarr").exists()


def test_more_views_than_a_reader_takes(tmp_path: Path, sentence: Any) -> None:
    with pytest.raises(ConfigError) as error:
        made(tmp_path / "store.zarr").capture("net", provenance={}, views=(1 << 16) + 1)
    sentence(error.value)


def test_one_part_more_than_the_log_holds(tmp_path: Path, sentence: Any) -> None:
    store = made(tmp_path / "store.zarr")
    capture(store)
    with mock.patch.object(sealable, "MAX_PARTS", 3), mock.patch.object(log, "MAX_PARTS", 3):
        with pytest.raises(ConfigError) as error:
            store.capture("more", provenance={})
        sentence(error.value)
        store.capture("net", provenance={}, views=2).close()  # what is there is no part more
        assert list(open_store(store.path).teachers) == ["net"]
    check_log(4094, "teachers/net", "store.zarr")


def test_the_remedy_is_one() -> None:
    """The rows a block and the views that a message names do fit; one step less does not."""
    grid = Grid(1 << 24, 16)
    with pytest.raises(ConfigError, match=r"block_rows = 64 or more$"):
        check_samples_sealable(grid, {}, "store.zarr")
    check_samples_sealable(Grid(1 << 24, 64), {}, "store.zarr")
    with pytest.raises(ConfigError):
        check_samples_sealable(Grid(1 << 24, 32), {}, "store.zarr")
