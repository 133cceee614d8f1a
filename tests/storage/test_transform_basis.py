"""The basis of a capture in the transform encoding: begun, killed, resumed, torn, exchanged and lost."""

import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from numpy.typing import NDArray
from support import stores
from support import transformed as known

from logitstore.storage.api import open_store
from logitstore.storage.backends.local import Folder
from logitstore.storage.encodings.basis import Basis
from logitstore.storage.encodings.transform import Transform
from logitstore.storage.errors import (
    BadLogitsError,
    ConfigError,
    LogitStoreError,
    ManifestInvalid,
    ShardCorrupt,
    SpecMismatch,
)
from logitstore.storage.format.layouts import BASIS
from logitstore.storage.integrity.repair import repair
from logitstore.storage.integrity.verify import CLEAN, verify
from logitstore.storage.parts import sealed_part

pytestmark = pytest.mark.usefixtures("without_fsync")

RAW = Transform(1e-2, (1.0, 2.0, 4.0))
"""The encoding without a basis, as users name it."""


# The basis of a part that is begun


class Killed(BaseException):
    """The end of a process, which no handler of errors catches."""


def calibration() -> NDArray[np.float32]:
    """Return logits from which a basis is made."""
    return known.known_logits().reshape(-1, known.CLASSES)


def write_some(path: Path, rows: Any = calibration, stop: int = 100) -> None:
    """Write a capture whose basis is made of calibration rows; killed before the object of that number is put."""
    put, count = Folder.put_new, iter(range(10_000))

    def killed(self: Folder, key: str, data: Any) -> bool:
        if next(count) >= stop:
            raise Killed
        return put(self, key, data)

    store = known.begin(path)
    with mock.patch.object(Folder, "put_new", killed):
        known.write(store, "t", encoding=RAW, calibration=rows)


def files(path: Path) -> dict[str, bytes]:
    return {key: data for key, data in stores.tree(path).items() if "/tmp/" not in key and "lock" not in key}


def begun(path: Path, stop: int = 20) -> Path:
    """Make a store with a capture that was killed behind its first block."""
    known.begin(path)
    with pytest.raises(Killed):
        write_some(path, stop=stop)
    assert (path / "teachers/t/__logitstore__/commits/0-0.json").exists()
    assert not open_store(path).teachers
    return path


def test_a_writer_killed_anywhere_is_resumed_to_the_same_bytes(tmp_path: Path) -> None:
    """Between spec and basis, within the basis, between basis and first block, and behind each block."""
    known.begin(tmp_path / "whole")
    write_some(tmp_path / "whole")
    wanted = files(tmp_path / "whole")
    states = set()
    for stop in range(40):
        path = tmp_path / str(stop)
        known.begin(path)
        try:
            write_some(path, stop=stop)
            break
        except Killed:
            folder = path / "teachers/t"
            there = [
                (folder / name).exists() for name in ("__logitstore__/spec.json", "basis/c.0.0", "weight/c.0")
            ]
            states.add((*there, (folder / "__logitstore__/commits/0-0.json").exists()))
        write_some(path)
        assert files(path) == wanted, stop
        assert verify(path, deep=True).exit_code == CLEAN
    else:
        pytest.fail("no writer came to the end")
    assert {(True, False, False, False), (True, True, False, False), (True, True, True, False)} <= states


def test_a_begun_capture_uses_its_basis_whatever_is_passed(tmp_path: Path) -> None:
    known.begin(tmp_path / "whole")
    write_some(tmp_path / "whole")

    def never() -> NDArray[np.float32]:
        raise AssertionError("the teacher was run for nothing")

    for number, rows in enumerate((None, never, calibration()[:9] * 2)):
        path = begun(tmp_path / str(number))
        write_some(path, rows)
        assert files(path) == files(tmp_path / "whole")
    known.write(open_store(tmp_path / "whole"), "t", encoding=RAW)  # sealed: nothing is left to do
    other = begun(tmp_path / "other")
    known.write(open_store(other), "t", encoding=RAW.with_basis(known.known_basis()))
    assert files(other) == files(tmp_path / "whole")


def test_it_cannot_begin_without_calibration_rows(tmp_path: Path, sentence: Callable[..., None]) -> None:
    store = known.begin(tmp_path / "s")
    before = files(tmp_path / "s")
    with pytest.raises(ConfigError) as caught:
        store.capture("t", provenance={}, encoding=RAW)
    sentence(caught.value)
    for rows in (
        np.zeros((40, known.CLASSES + 1), np.float32),
        np.zeros(9, np.float32),
        np.zeros((40, 8), int),
    ):
        with pytest.raises(BadLogitsError, match="floating logits of shape"):
            store.capture("t", provenance={}, encoding=RAW, calibration=rows)
    with pytest.raises(SpecMismatch, match="expected the columns of its basis, 8, found 3 columns"):
        store.capture("t", provenance={}, encoding=known.encoding(), classes=[0, 1, 2])
    with pytest.raises(ConfigError, match="no key of the writer's own, basis"):
        store.capture("t", provenance={}, encoding=known.encoding(), notes={"basis": "mine"})
    assert files(tmp_path / "s") == before


def test_other_rows_do_not_replace_a_basis_that_is_lost(
    tmp_path: Path, sentence: Callable[..., None]
) -> None:
    path = begun(tmp_path / "s")
    shutil.rmtree(path / "teachers/t/step")
    with pytest.raises(SpecMismatch) as caught:
        write_some(path, calibration()[:30])
    sentence(caught.value)
    with pytest.raises(ConfigError, match="None, and no basis in the store"):
        write_some(path, None)
    write_some(path)  # the same rows bring it back
    assert verify(path, deep=True).exit_code == CLEAN


def test_another_identity_is_named_before_the_basis_is_looked_at(tmp_path: Path) -> None:
    path = begun(tmp_path / "s")
    store = open_store(path)
    for changed in ({"encoding": Transform(1e-3, (1.0, 2.0, 4.0))}, {"provenance": {"teacher": "another"}}):
        with pytest.raises(SpecMismatch, match="with which it was begun"):
            known.write(store, "t", **({"encoding": RAW} | changed))
    with pytest.raises(SpecMismatch, match=r"expected encoding\.kind = 'transform'|expected encoding\."):
        known.write(store, "t", encoding="float16")


@pytest.mark.parametrize("array", BASIS)
def test_a_torn_basis_is_refused_and_made_again(tmp_path: Path, array: str) -> None:
    path = begun(tmp_path / "s")
    (chunk,) = (path / "teachers/t" / array).glob("c.*")
    data = chunk.read_bytes()
    for torn in (data[:-3], bytes([data[0] ^ 1]) + data[1:]):
        chunk.write_bytes(torn)
        with pytest.raises(ShardCorrupt, match="run `logitstore repair`") as caught:
            write_some(path)
        assert f"teachers/t/{array}" in str(caught.value)
    assert [problem.where for problem in verify(path).problems] == [str(chunk)]
    assert repair(path).removed == [f"teachers/t/{array}/{chunk.name}"]
    write_some(path)
    known.begin(tmp_path / "whole")
    write_some(tmp_path / "whole")
    assert files(path) == files(tmp_path / "whole")


@pytest.mark.parametrize("array", BASIS)
def test_a_basis_of_another_capture_is_refused(
    tmp_path: Path, array: str, sentence: Callable[..., None]
) -> None:
    """Every checksum of it is right, and its sizes are: the digest in the notes is another."""
    path = begun(tmp_path / "s")
    (chunk,) = (path / "teachers/t" / array).glob("c.*")
    values = np.frombuffer(chunk.read_bytes()[:-4], "<f4") * 2
    exchanged = sealed_part.decode_small  # negative control: it passes its own checksum
    from logitstore.storage.format.metadata import ArrayLayout
    from logitstore.storage.format.shard import encode_small

    layout = ArrayLayout.from_bytes(array, (chunk.parent / "zarr.json").read_bytes(), array)
    (data,) = encode_small(layout, values.reshape(layout.shape))
    assert exchanged(layout, [data]).shape == layout.shape
    chunk.write_bytes(data)
    with pytest.raises(ManifestInvalid, match="was exchanged") as caught:
        write_some(path)
    if array == "basis":
        sentence(caught.value)
    (problem,) = verify(path).problems
    assert "was exchanged" in str(problem)
    done = repair(path)
    assert (done.removed, len(done.beyond)) == ([], 1)


def test_a_writer_that_another_overtook_does_not_mix_two_bases(tmp_path: Path) -> None:
    """Both begin at once, with other rows: the first block of the second is not written."""
    store = known.begin(tmp_path / "s")
    options: dict[str, Any] = {"provenance": known.PROVENANCE, "views": known.VIEWS, "encoding": RAW}
    late = store.capture("t", **options, calibration=calibration()[:30])
    write_some(tmp_path / "s", stop=10_000)
    early = files(tmp_path / "s")
    with pytest.raises(
        LogitStoreError, match=r"basis with which another writer has begun it|sealed meanwhile"
    ):
        late.write(range(8), known.known_logits()[0, :8])
    late.close()
    assert files(tmp_path / "s") == early
    again = known.begin(tmp_path / "t")
    late = again.capture("t", **options, calibration=calibration()[:30])
    with pytest.raises(Killed):
        write_some(tmp_path / "t", stop=20)
    with pytest.raises(SpecMismatch, match="run the same command again: it uses the basis that is there"):
        late.write(range(8), known.known_logits()[0, :8])


# The basis of a sealed part


@pytest.mark.parametrize("array", BASIS)
@pytest.mark.parametrize("key", ["c", "zarr.json"])
def test_a_sealed_basis_that_is_lost_is_refused_and_put_back(tmp_path: Path, array: str, key: str) -> None:
    path = tmp_path / "s"
    known.begin(path)
    write_some(path)
    before = files(path)
    (lost,) = (path / "teachers/t" / array).glob(f"{key}*")
    lost.unlink()
    with pytest.raises(ManifestInvalid, match="found no file"):
        open_store(path).teachers["t"].read([0])
    assert [problem.where for problem in verify(path).problems] == [str(lost)]
    with pytest.raises(ConfigError, match="no basis in the store"):
        known.write(open_store(path), "t", encoding=RAW)
    with pytest.raises(SpecMismatch, match="of these calibration rows"):
        known.write(open_store(path), "t", encoding=RAW, calibration=calibration()[:30])
    assert repair(path).missing == [f"teachers/t/{array}/{lost.name}"]
    write_some(path)
    assert files(path) == before


def test_a_sealed_basis_that_was_changed_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "s"
    known.begin(path)
    write_some(path)
    for array in BASIS:
        (chunk,) = (path / "teachers/t" / array).glob("c.*")
        stores.flip(chunk, 77)
        with pytest.raises(ManifestInvalid, match="expected sha256"):
            open_store(path).teachers["t"].read([0])
        with pytest.raises(ManifestInvalid, match="expected sha256"):
            known.write(open_store(path), "t", encoding=RAW, calibration=calibration)
        assert verify(path).exit_code != CLEAN
        stores.flip(chunk, 77)


def everything(path: Path) -> list[bytes]:
    """Every number of the store, as a user reads it."""
    store, found = open_store(path), []
    for name, capture in store.teachers.items():
        found += [repr(sorted(capture.provenance)).encode(), name.encode(), capture.classes.tobytes()]
        for view in range(known.VIEWS):
            arrays = (
                capture.read(slice(None), view),
                capture.divergence(slice(None), view),
                capture.seen([3], view),
            )
            found += [array.tobytes() for array in arrays]
    return found


def test_every_file_whose_bit_flips_is_found_and_read_by_nobody(tmp_path: Path) -> None:
    path = tmp_path / "s"
    store = known.begin(path)
    known.write(store, "turned", columns=known.ORDER, encoding=known.turned())
    whole_bytes = everything(path)
    for number, key in enumerate(stores.files_of(path)):
        bit = number * 7919 % (8 * (path / key).stat().st_size)
        stores.flip(path / key, bit)
        assert verify(path, deep=True).problems, key
        try:
            assert everything(path) == whole_bytes, key
        except LogitStoreError as error:
            assert str(error).count("\n") == 0
        stores.flip(path / key, bit)
    assert verify(path, deep=True).exit_code == CLEAN


def test_the_table_of_a_seal_is_rebuilt_from_the_shards(tmp_path: Path) -> None:
    """Also where the commit records are lost with it: encoding the decoded rows gives the same bytes."""
    path = tmp_path / "s"
    store = known.begin(path)
    known.write(store, "t")
    before = files(path)
    private = path / "teachers/t/__logitstore__"
    (private / "seal.bin").unlink()
    shutil.rmtree(private / "commits")
    assert repair(path).beyond == []
    assert files(path) == before


def test_a_lost_shard_is_written_again(tmp_path: Path) -> None:
    path = tmp_path / "s"
    known.begin(path)
    write_some(path)
    before = files(path)
    for array in ("codes", "refine", "error", "escape", "seen"):
        next((path / "teachers/t" / array).glob("c.1.2*")).unlink()
    with pytest.raises(LogitStoreError, match="found no file"):
        open_store(path).teachers["t"].read(slice(None), 1)
    known.write(open_store(path), "t", encoding=RAW)  # its basis is there: no calibration is needed
    assert files(path) == before


def test_a_disk_is_not_said_to_be_full_for_rows_that_are_hardly_ever_written(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A row of `escape` is as wide as the classes, and takes no bytes where it is fill alone."""
    store = known.begin(tmp_path / "s")
    blocks = known.VIEWS * 3
    room = blocks * 4096 + known.VIEWS * known.ROWS * (2 * known.COMPONENTS + 1 + 6 + 8) + blocks * 20_000
    monkeypatch.setattr(Folder, "free_bytes", lambda self: room)
    with caplog.at_level(logging.WARNING):
        store.capture("t", provenance={}, views=known.VIEWS, encoding=known.encoding()).close()
    assert "are free" not in caplog.text


def test_a_basis_beyond_the_limit_of_readers_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from logitstore.storage.parts import chosen_basis

    monkeypatch.setattr(chosen_basis, "MAX_BASIS_BYTES", 95)
    store = known.begin(tmp_path / "s")
    with pytest.raises(
        ConfigError, match="expected at most 95 bytes, the limit of readers, found 3 components"
    ):
        store.capture("t", provenance={}, encoding=known.encoding())


def test_a_basis_of_another_capture_may_be_used(tmp_path: Path) -> None:
    """Members of an ensemble may share one."""
    store = known.make(tmp_path / "s")
    shared = store.teachers["plain"].encoding
    known.write(store, "shared", encoding=shared)
    found = store.teachers["shared"].encoding
    assert isinstance(found, Transform) and isinstance(shared, Transform)
    assert isinstance(found.basis, Basis) and isinstance(shared.basis, Basis)
    assert found.basis.digest == shared.basis.digest == known.known_basis().digest
    turned = store.teachers["turned"].encoding
    assert isinstance(turned, Transform) and turned.basis is not None
    assert turned.basis.digest == store.teachers["turned"].provenance["basis"] != shared.basis.digest
