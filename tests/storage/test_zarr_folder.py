"""Stores read through Zarr's stores: the same bits as from the disk, and the same refusals.

Every law here is tried at every kind of place: Zarr's own stores, obstore's, fsspec's, a web server and a bucket. The
negative controls at the end read the same damage through Zarr's arrays, which do not notice it.
"""

import contextlib
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from support import stores
from support.stores import Teacher
from support.web import serving
from zarr.core.buffer import cpu
from zarr.storage import LocalStore, MemoryStore, ObjectStore

from logitstore.storage.api import open_store
from logitstore.storage.backends.local import Folder, writable
from logitstore.storage.backends.object_folder import ObjectFolder
from logitstore.storage.backends.place import Place
from logitstore.storage.backends.remote import folder_at
from logitstore.storage.backends.remote_folder import RemoteFolder
from logitstore.storage.errors import (
    ConfigError,
    LimitExceeded,
    LogitStoreError,
    ManifestInvalid,
    NotAStoreError,
    ShardCorrupt,
    ShardMissing,
    UntrustedStoreError,
    WrongStore,
)
from logitstore.storage.integrity.verify import verify

PLACES = ["zarr-local", "zarr-memory", "obstore-local", "obstore-memory", "fsspec-memory", "http", "s3"]
LISTED = [place for place in PLACES if place != "http"]
TEACHERS = {
    "wide": Teacher(views=2),
    "budget": Teacher(encoding={"max_kl": 1e-2, "min_temperature": 1.0}),
    "largest": Teacher(encoding={"top_k": 3}),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of every encoding; to be copied, not changed."""
    path = tmp_path_factory.mktemp("whole") / "store.zarr"
    stores.make(path, rows=150, classes=7, block_rows=64, teachers=TEACHERS)
    return path


Locate = Callable[[Path], Any]


@contextlib.contextmanager
def locating(place: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Locate]:
    """What gives the location, at a kind of place, of the store in a local folder, as the folder is then."""
    with contextlib.ExitStack() as stack:
        if place in ("http", "s3"):
            yield lambda path: _served(place, path, stack, monkeypatch)
        elif place == "fsspec-memory":
            import fsspec

            memory = fsspec.filesystem("memory")
            yield lambda path: _in_fsspec(memory, path)
            _empty(memory)
        else:
            yield lambda path: _in_zarr(place, path)


def _served(place: str, path: Path, stack: contextlib.ExitStack, monkeypatch: pytest.MonkeyPatch) -> str:
    web = stack.enter_context(serving(path.parent))
    if place == "http":
        return f"{web.url}/{path.name}"
    for name, value in {
        "AWS_ENDPOINT_URL": web.url,
        "AWS_ALLOW_HTTP": "true",
        "AWS_SKIP_SIGNATURE": "true",
        "AWS_REGION": "nowhere-1",
    }.items():
        monkeypatch.setenv(name, value)
    return f"s3://bucket/{path.name}"


def _empty(memory: Any) -> None:
    """There is one memory for the whole process."""
    memory.store.clear()
    memory.pseudo_dirs[:] = [""]


def _in_fsspec(memory: Any, path: Path) -> str:
    _empty(memory)
    for key in stores.files_of(path):
        memory.pipe_file(f"/{path.parent.name}/{path.name}/{key}", (path / key).read_bytes())
    return f"memory://{path.parent.name}/{path.name}"


def _in_zarr(place: str, path: Path) -> Any:
    import obstore
    from obstore.store import LocalStore as ObstoreLocal
    from obstore.store import MemoryStore as ObstoreMemory

    if place == "zarr-local":
        return LocalStore(path, read_only=True)
    if place == "obstore-local":
        return ObjectStore(ObstoreLocal(prefix=str(path)), read_only=True)
    contents = {key: (path / key).read_bytes() for key in stores.files_of(path)}
    if place == "zarr-memory":
        return MemoryStore({key: cpu.Buffer.from_bytes(data) for key, data in contents.items()})
    memory = ObstoreMemory()
    for key, data in contents.items():
        obstore.put(memory, key, data)
    return ObjectStore(memory, read_only=True)


@pytest.fixture(params=PLACES)
def locate(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Locate]:
    with locating(request.param, monkeypatch) as found:
        yield found


def epochs(location: Any, **settings: Any) -> list[bytes]:
    """Every bit of two epochs of a stream, and of the rest of one that is gone on with."""
    stream = open_store(location).stream(
        32, teachers=list(TEACHERS)[:2], views="all", seed=3, window=128, decode=True, **settings
    )
    found, states = [], []
    for _ in range(2):
        for batch in stream:
            states.append(stream.state_dict())
            logits = [batch.logits] if isinstance(batch.logits, np.ndarray) else list(batch.logits.values())
            arrays = [batch.inputs, batch.labels, batch.rows, batch.views, *logits]
            found += [np.asarray(array).tobytes() for array in arrays]
    stream.load_state_dict(states[3])
    found += [np.asarray(batch.rows).tobytes() for batch in stream]
    return found


# The same bits


def test_every_number_is_the_same_bits_as_from_the_disk(whole: Path, locate: Locate) -> None:
    location = locate(whole)
    assert stores.read_everything(location) == stores.read_everything(whole)
    there, here = open_store(location), open_store(whole)
    scattered = np.asarray([0, 3, 63, 64, 64, 130, 149])
    for name in TEACHERS:
        mine, other = here.teachers[name], there.teachers[name]
        assert mine.read(scattered, 0, 4.0).tobytes() == other.read(scattered, 0, 4.0).tobytes()
    assert there.samples.inputs is not None
    assert there.samples.inputs[17].tobytes() == here.samples.inputs[17].tobytes()


def test_epochs_of_a_stream_are_the_same_bits_as_from_the_disk(whole: Path, locate: Locate) -> None:
    assert epochs(locate(whole)) == epochs(whole)


def test_a_dask_array_is_the_same_bits(whole: Path, locate: Locate) -> None:
    there = open_store(locate(whole)).teachers["wide"].dask().compute(scheduler="threads")
    assert there.tobytes() == open_store(whole).teachers["wide"].dask().compute().tobytes()


def test_a_store_is_opened_as_of_a_digest(whole: Path, locate: Locate) -> None:
    location, records = locate(whole), open_store(whole).root.records
    assert list(open_store(location, expect=records[1].digest).teachers) == ["wide"]
    with pytest.raises(WrongStore, match="never was that one"):
        open_store(location, expect=f"sha256:{'0' * 64}")


def test_where_there_is_no_store_it_says_so(tmp_path: Path, locate: Locate) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "x").write_bytes(b"x")
    with pytest.raises(NotAStoreError, match="expected a store"):
        open_store(locate(tmp_path / "other"))


def test_a_part_of_another_name_is_not_there(whole: Path, locate: Locate) -> None:
    with pytest.raises(KeyError, match="wide, budget, largest"):
        open_store(locate(whole)).teachers["absent"].read(slice(0, 1))


def test_many_threads_read_one_store(whole: Path, locate: Locate) -> None:
    store, wanted = open_store(locate(whole)), open_store(whole).teachers["wide"].read(slice(None), 1)
    failed: list[object] = []
    done: list[int] = []

    def read(number: int) -> None:
        try:
            for start in range(0, 150, 50):
                rows = slice((start + number * 37) % 100, (start + number * 37) % 100 + 50)
                if not np.array_equal(store.teachers["wide"].read(rows, 1), wanted[rows]):
                    failed.append(rows)
        except LogitStoreError as error:
            failed.append(error)
        done.append(number)

    threads = [threading.Thread(target=read, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (failed, len(done)) == ([], 6)


# The same interface, key by key


def test_a_folder_answers_as_one_on_the_disk_does(tmp_path: Path, locate: Locate) -> None:
    path = tmp_path / "x"
    contents = {"a/b/c.0": b"0123456789", "zarr.json": b"{}", "a/empty": b"", "ab/c": b"1"}
    for key, data in contents.items():
        (path / key).parent.mkdir(parents=True, exist_ok=True)
        (path / key).write_bytes(data)
    here, there = Folder(path), folder_at(locate(path))
    assert isinstance(there, RemoteFolder)
    for mine, other in ((here, there), (here.sub("a"), there.sub("a"))):
        for key in ("a/b/c.0", "b/c.0", "zarr.json", "empty", "a/empty", "c", "zarr.json/c"):
            assert mine.exists(key) == other.exists(key), key
            for call in (
                lambda folder, key=key: folder.read(key),
                lambda folder, key=key: folder.read(key, 4),
                lambda folder, key=key: folder.size(key),
                *(lambda folder, key=key, s=s: folder.read_range(key, *s) for s in SPANS),
                *(lambda folder, key=key, s=s: _into(folder, key, *s) for s in SPANS),
            ):
                assert _outcome(call, mine) == _outcome(call, other), key
        if other.can_list:
            assert (mine.names(), mine.files()) == (other.names(), other.files())
            for key in ("a", "b", "a/b", "nothing"):
                assert mine.names(key) == other.names(key), key
    for key in ("../x", "a//b", "", "/zarr.json", "a/./b"):
        with pytest.raises(UntrustedStoreError):
            there.read(key) if key else there.sub("..")


SPANS = [(0, 4), (3, 4), (8, 9), (20, 1), (0, 0), (0, 10), (10, 1)]


def _into(folder: Place, key: str, offset: int, length: int) -> tuple[int, bytes]:
    data = bytearray()
    return folder.read_through(key, offset, length, lambda piece: data.extend(piece.tobytes())), bytes(data)


def _outcome(call: Callable[[Any], Any], folder: Place) -> object:
    try:
        return call(folder)
    except (LimitExceeded, FileNotFoundError) as error:
        return type(error)


# The same damage


def _last(path: Path, pattern: str) -> Path:
    return max(path.glob(pattern))


def _flip(path: Path, pattern: str) -> None:
    stores.flip(_last(path, pattern), 77)


def _cut(path: Path, pattern: str, keep: int) -> None:
    file = _last(path, pattern)
    file.write_bytes(file.read_bytes()[:keep])


def _swap(path: Path, first: str, second: str) -> None:
    one, other = (path / first).read_bytes(), (path / second).read_bytes()
    assert one != other and len(one) == len(other)
    (path / first).write_bytes(other)
    (path / second).write_bytes(one)


_WIDE = "teachers/wide/logits"
DAMAGE: dict[str, tuple[Callable[[Path], object], type[LogitStoreError]]] = {
    "a bit of raw logits": (lambda p: _flip(p, f"{_WIDE}/c.1.*"), ShardCorrupt),
    "a bit of codes": (lambda p: _flip(p, "teachers/budget/logits/c.*"), ShardCorrupt),
    "a bit of labels": (lambda p: _flip(p, "samples/label/c.*"), ShardCorrupt),
    "a shard cut short": (lambda p: _cut(p, f"{_WIDE}/c.1.*", 40), ShardCorrupt),
    "an index cut short": (lambda p: _cut(p, "teachers/largest/index/c.*", -8), ShardCorrupt),
    "an empty shard": (lambda p: _cut(p, "teachers/largest/logits/c.*", 0), ShardCorrupt),
    "a missing shard": (lambda p: _last(p, f"{_WIDE}/c.1.*").unlink(), ShardMissing),
    "a missing shard of codes": (lambda p: _last(p, "teachers/budget/logits/c.*").unlink(), ShardMissing),
    "exchanged shards": (lambda p: _swap(p, f"{_WIDE}/c.0.1.0", f"{_WIDE}/c.0.2.0"), ShardCorrupt),
    "views exchanged": (lambda p: _swap(p, f"{_WIDE}/c.0.1.0", f"{_WIDE}/c.1.1.0"), ShardCorrupt),
    "metadata of the root": (lambda p: _flip(p, "zarr.json"), ManifestInvalid),
    "metadata of an array": (lambda p: _flip(p, f"{_WIDE}/zarr.json"), ManifestInvalid),
    "no metadata of an array": (lambda p: _last(p, f"{_WIDE}/zarr.json").unlink(), ManifestInvalid),
    "a log record": (lambda p: _flip(p, "__logitstore__/log/2.json"), ManifestInvalid),
    "a missing log record": (lambda p: _last(p, "__logitstore__/log/2.json").unlink(), ManifestInvalid),
    "a seal": (lambda p: _flip(p, "teachers/wide/__logitstore__/seal.json"), ManifestInvalid),
    "a seal's table": (lambda p: _cut(p, "samples/__logitstore__/seal.bin", -1), ManifestInvalid),
}


def _refused(location: Any, name: str) -> tuple[object, ...]:
    """How a reader of everything is refused: type, what was expected and found, and which object it is about."""
    try:
        stores.read_everything(location)
    except LogitStoreError as error:
        return type(error), error.expected, error.found, error.remedy, error.where.partition(name)[2]
    return ()


_HERE: dict[str, tuple[object, ...]] = {}
"""How damage is refused on the disk, by its name: the same for every place."""


@pytest.mark.parametrize("damage", DAMAGE)
def test_the_same_damage_is_refused_in_the_same_words(
    whole: Path, tmp_path: Path, locate: Locate, damage: str
) -> None:
    path = tmp_path / whole.name
    shutil.copytree(whole, path)
    change, expected = DAMAGE[damage]
    change(path)
    if damage not in _HERE:
        _HERE[damage] = _refused(path, path.name)
    here, there = _HERE[damage], _refused(locate(path), path.name)
    assert here[:1] == (expected,)
    assert here[:4] == there[:4]
    # A store of Zarr's has a name of its own, in which that of the folder need not be, or need not be the end.
    assert str(here[4]).endswith(str(there[4]).removeprefix('")'))


@pytest.mark.parametrize("place", ["zarr-local", "obstore-local", "http", "s3"])
def test_damage_after_the_store_was_opened_is_refused(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    """Sizes are remembered, and not trusted."""
    path = tmp_path / whole.name
    shutil.copytree(whole, path)
    with locating(place, monkeypatch) as locate:
        capture = open_store(locate(path)).teachers["wide"]
        assert len(capture.read(slice(None), 1)) == 150
        _cut(path, f"{_WIDE}/c.1.*", 40)
        with pytest.raises(ShardCorrupt, match="found 40"):
            capture.read(slice(None), 1)
        _last(path, f"{_WIDE}/c.1.*").unlink()
        with pytest.raises(ShardMissing):
            capture.read(slice(None), 1)


@pytest.mark.parametrize("place", LISTED)
def test_verify_tells_the_same_of_a_store_that_is_elsewhere(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    path = tmp_path / whole.name
    shutil.copytree(whole, path)
    with locating(place, monkeypatch) as locate:
        assert verify(folder_at(locate(path))).exit_code == 0
        _flip(path, f"{_WIDE}/c.1.*")
        (path / "samples" / "stray").write_bytes(b"")
        _last(path, "teachers/wide/__logitstore__/commits/*").unlink()
        report, mine = verify(folder_at(locate(path)), deep=True), verify(path, deep=True)
    assert report.strays == mine.strays == ["samples/stray"]
    assert [type(p) for p in report.problems] == [type(p) for p in mine.problems]
    assert (report.exit_code, len(report.problems)) == (1, 2)
    assert (report.objects, report.bytes) == (mine.objects, mine.bytes)


# Negative controls: what reading through Zarr's arrays does not see


def test_zarrs_own_arrays_read_exchanged_shards_without_a_word(whole: Path, tmp_path: Path) -> None:
    path = tmp_path / whole.name
    shutil.copytree(whole, path)
    before = np.asarray(zarr.open_array(LocalStore(path / _WIDE), mode="r")[:])
    _swap(path, f"{_WIDE}/c.0.1.0", f"{_WIDE}/c.0.2.0")
    after = np.asarray(zarr.open_array(LocalStore(path / _WIDE), mode="r")[:])
    assert not np.array_equal(before, after)
    with pytest.raises(ShardCorrupt):
        open_store(LocalStore(path)).teachers["wide"].read(slice(None))


def test_zarrs_own_arrays_fill_a_missing_shard(whole: Path, tmp_path: Path) -> None:
    path = tmp_path / whole.name
    shutil.copytree(whole, path)
    (path / _WIDE / "c.0.1.0").unlink()
    assert np.isnan(np.asarray(zarr.open_array(LocalStore(path / _WIDE), mode="r")[:])).any()
    with pytest.raises(ShardMissing):
        open_store(LocalStore(path)).teachers["wide"].read(slice(None))


def test_a_reader_that_asks_for_no_sizes_would_not_see_a_longer_shard(whole: Path, tmp_path: Path) -> None:
    path = tmp_path / whole.name
    shutil.copytree(whole, path)
    shard = _last(path, "samples/label/c.*")
    shard.write_bytes(shard.read_bytes() + b"more")
    with pytest.raises(ShardCorrupt):
        open_store(LocalStore(path)).samples.labels_of(slice(None))


# Nothing is written


def test_writing_is_refused_before_anything_else(whole: Path, locate: Locate) -> None:
    store = open_store(locate(whole))
    if isinstance(store.root.folder, ObjectFolder):  # a bucket can be written to: `test_buckets`
        return
    for write in (
        lambda: store.capture("new", provenance={}),
        lambda: store.write_clustering("new", {}, identity={}),
        lambda: store.root.tidy_up(),
        lambda: writable(store.root.folder),
        lambda: writable(store.root.folder.sub("samples")),
    ):
        with pytest.raises(ConfigError, match="copy it to a local disk, write there"):
            write()
    for name in ("put_new", "stage", "remove", "sweep", "tidy", "sync", "directory", "free_bytes"):
        assert hasattr(Folder, name) and not hasattr(RemoteFolder, name), name
    assert stores.read_everything(whole)


def test_what_is_no_place_is_refused_in_one_line(tmp_path: Path) -> None:
    for location, found in (
        (3, "found a int"),
        ("ftp://host/store.zarr", "ftp:// URL"),
        ("https://user:secret@host/s", "expected a URL of scheme, host and path"),
        ("https://host/s?signature=secret", "expected a URL of scheme, host and path"),
        ("s3://", "found no name after s3:"),
    ):
        with pytest.raises(ConfigError, match=found) as caught:
            folder_at(location)
        assert "secret" not in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_path_of_the_disk_stays_one(whole: Path) -> None:
    for location in (whole, str(whole), f"file://{whole}"):
        assert type(folder_at(location)) is Folder
        assert isinstance(open_store(location).path, Path)
    assert os.fspath(open_store(whole).path) == os.fspath(whole)
