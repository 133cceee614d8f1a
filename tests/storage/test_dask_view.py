"""The dask view of a capture: the same values, in one layer, and as suspicious as the reader."""

import pickle
import shutil
from pathlib import Path

import dask
import dask.array as da
import numpy as np
import pytest
from support import stores
from support.stores import Teacher

from logitstore.storage import dask_view
from logitstore.storage.api import open_store
from logitstore.storage.errors import ConfigError, ShardMissing


def test_dask_is_read(tmp_path: Path) -> None:
    made = stores.make(tmp_path / "store.zarr")
    for name, dtype in (("wide", "float16"), ("deep", "float32")):
        array = made.store.teachers[name].dask(rows_per_chunk=8)
        assert (array.dtype, array.shape) == (np.float32, (2, 37, 5))
        assert array.chunks == ((1, 1), (8, 8, 8, 8, 5), (5,))
        for scheduler in ("synchronous", "threads"):
            assert array.compute(scheduler=scheduler).tobytes() == made.centred(name, dtype).tobytes()


@pytest.mark.parametrize(("rows", "chunks"), [(None, (37,)), (3, (3,) * 12 + (1,)), (37, (37,)), (99, (37,))])
def test_chunks_have_the_rows_that_are_asked_for(
    tmp_path: Path, rows: int | None, chunks: tuple[int, ...]
) -> None:
    made = stores.make(tmp_path / "store.zarr")
    array = made.store.teachers["wide"].dask(rows_per_chunk=rows)
    assert array.chunks == ((1, 1), chunks, (5,))
    assert array.compute(scheduler="synchronous").tobytes() == made.centred("wide").tobytes()


def test_a_chunk_holds_whole_blocks_up_to_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = stores.make(tmp_path / "store.zarr")
    for limit, chunks in ((1, (8, 8, 8, 8, 5)), (16 * 5 * 4, (16, 16, 5)), (24 * 5 * 4 - 1, (16, 16, 5))):
        monkeypatch.setattr(dask_view, "CHUNK_BYTES", limit)
        assert made.store.teachers["wide"].dask().chunks[1] == chunks


@pytest.mark.parametrize("rows", [0, -1, True])
def test_a_number_of_rows_that_is_none_is_refused(tmp_path: Path, rows: int) -> None:
    made = stores.make(tmp_path / "store.zarr")
    with pytest.raises(ConfigError, match="rows_per_chunk: expected an integer of at least 1"):
        made.store.teachers["wide"].dask(rows_per_chunk=rows)


def test_one_computation_has_one_name_and_one_layer(tmp_path: Path) -> None:
    made = stores.make(tmp_path / "store.zarr")
    capture, again = (open_store(made.path).teachers["wide"] for _ in range(2))
    assert capture.dask().name == again.dask().name
    assert len(capture.dask().dask.layers) == 1
    # Negative controls: other values, or other chunks, under one name would be mixed up.
    others = [capture.dask(2.0), capture.dask(rows_per_chunk=3), made.store.teachers["deep"].dask()]
    assert len({array.name for array in (capture.dask(), *others)}) == 4


def test_it_travels_to_other_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = stores.make(tmp_path / "store.zarr")
    monkeypatch.chdir(tmp_path)
    packed = pickle.dumps(open_store("store.zarr").teachers["wide"].dask())
    monkeypatch.chdir("/")  # a relative path would lead elsewhere
    found = pickle.loads(packed).compute(scheduler="synchronous")
    assert found.tobytes() == made.centred("wide").tobytes()


def test_a_part_of_it_reads_the_blocks_that_hold_the_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from logitstore.storage.parts.reader import CaptureReader

    made = stores.make(tmp_path / "store.zarr")
    asked = []
    read = CaptureReader.read

    def counted(self: CaptureReader, rows: range, view: int, temperature: None) -> np.ndarray:  # type: ignore[type-arg]
        asked.append((view, rows))
        return np.asarray(read(self, rows, view, temperature))

    monkeypatch.setattr(CaptureReader, "read", counted)
    found = made.store.teachers["wide"].dask(rows_per_chunk=8)[1, 7:9, 2].compute(scheduler="synchronous")
    assert found.tolist() == made.centred("wide")[1, 7:9, 2].tolist()
    assert sorted(asked, key=str) == [(1, range(8)), (1, range(8, 16))]


def test_two_stores_do_not_mix_in_one_graph(tmp_path: Path) -> None:
    """Captures of one name, in one computation: their tasks must not share names."""
    made = [stores.make(tmp_path / str(seed), teachers={"wide": Teacher()}, seed=seed) for seed in (1, 2)]
    both = da.stack([m.store.teachers["wide"].dask() for m in made]).compute(scheduler="synchronous")
    assert not np.array_equal(both[0], both[1])
    for found, m in zip(both, made, strict=True):
        assert found.tobytes() == m.centred("wide").tobytes()


def test_a_store_that_is_made_anew_has_other_names(tmp_path: Path) -> None:
    """A scheduler may still hold chunks of the one that was there."""
    names = []
    for seed in (1, 2, 1):
        shutil.rmtree(tmp_path / "s", ignore_errors=True)
        made = stores.make(tmp_path / "s", teachers={"wide": Teacher()}, seed=seed)
        names.append(made.store.teachers["wide"].dask().name)
    assert names[0] != names[1]
    assert names[0] == names[2]  # control: the same bytes


def test_a_shard_that_is_gone_is_an_error_and_no_fill_value(tmp_path: Path) -> None:
    made = stores.make(tmp_path / "store.zarr")
    (made.path / "teachers/wide/logits/c.1.2.0").unlink()
    array = made.store.teachers["wide"].dask()
    assert np.isfinite(array[0].compute(scheduler="synchronous")).all()
    with pytest.raises(ShardMissing, match=r"c\.1\.2\.0 \(rows 16 to 23\): expected a shard of"):
        array.compute(scheduler="synchronous")
    # Negative control: what Zarr itself makes of it.
    theirs = da.from_zarr(str(made.path), component="teachers/wide/logits").compute(scheduler="synchronous")
    assert np.isnan(theirs[1, 16:24]).all()


def test_nothing_is_read_before_it_is_computed(tmp_path: Path) -> None:
    made = stores.make(tmp_path / "store.zarr")
    capture = made.store.teachers["wide"]
    for file in (made.path / "teachers/wide/logits").glob("c.*"):
        file.unlink()
    assert dask.is_dask_collection(capture.dask().sum())
