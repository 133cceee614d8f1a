"""Readers of a remote store: errors of the server, forked processes and missing libraries."""

import os
import pickle
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from support import stores
from support.stores import Teacher
from support.web import Web, serving
from zarr.storage import LocalStore, MemoryStore, ObjectStore

from logitstore.cli.main import cli
from logitstore.storage.api import begin_store, open_store
from logitstore.storage.backends import remote
from logitstore.storage.backends.remote import folder_at
from logitstore.storage.errors import (
    EX_DATAERR,
    EX_TEMPFAIL,
    ConfigError,
    LogitStoreError,
    NotAStoreError,
    StorageError,
    StorageRefused,
    TransientIOError,
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store; it is not changed."""
    path = tmp_path_factory.mktemp("whole") / "store.zarr"
    stores.make(path, rows=150, classes=7, block_rows=64, teachers={"wide": Teacher(views=2)})
    return path


@pytest.fixture
def web(whole: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Web]:
    """A web server of the store, at <url>/store.zarr; who asks it is patient for a moment alone."""
    monkeypatch.setattr(remote, "_RETRY", {"max_retries": 1})
    with serving(whole.parent) as found:
        yield found


def url_of(web: Web) -> str:
    return f"{web.url}/store.zarr"


def in_one_line(error: BaseException) -> str:
    """What the user sees of it: one line, and no dump of a library's structures."""
    assert isinstance(error, LogitStoreError)
    assert "\n" not in str(error) and len(str(error)) < 600
    return str(error)


# Servers


def test_a_server_without_ranges_is_named_as_one(web: Web) -> None:
    web.ranges = False
    with pytest.raises(StorageRefused, match="HTTP range requests") as caught:
        open_store(url_of(web))
    in_one_line(caught.value)


def test_a_store_that_ignores_ranges_never_gives_wrong_bytes(whole: Path) -> None:
    class Deaf(LocalStore):
        """Sends the whole, whatever it is asked for, as fsspec does where the web server does."""

        async def get(self, key: str, prototype: Any = None, byte_range: Any = None) -> Any:
            return await super().get(key, prototype)

    folder = folder_at(Deaf(whole, read_only=True))
    data = (whole / "zarr.json").read_bytes()
    assert folder.read("zarr.json") == data
    for offset, length in ((0, 4), (1, 4), (1, len(data))):
        with pytest.raises(StorageError, match="HTTP range requests"):
            folder.read_range("zarr.json", offset, length)
    with pytest.raises(StorageError, match="HTTP range requests"):
        open_store(Deaf(whole, read_only=True)).teachers["wide"].read(slice(70, 71))


@pytest.mark.parametrize("status", [401, 403])
def test_no_leave_to_read_is_told_from_not_there(web: Web, status: int) -> None:
    web.answers["/zarr.json"] = status
    with pytest.raises(StorageRefused, match="expected permission to read the object") as caught:
        open_store(url_of(web))
    assert caught.value.exit_code == EX_DATAERR
    assert f"status code: {status}" in in_one_line(caught.value)


@pytest.mark.parametrize("status", [500, 503])
def test_a_server_that_fails_may_be_asked_again(web: Web, status: int) -> None:
    store = open_store(url_of(web))
    web.answers["/c.0.1.0"] = status
    with pytest.raises(TransientIOError, match=rf"c\.0\.1\.0.*{status}") as caught:
        store.teachers["wide"].read(slice(None))
    in_one_line(caught.value)
    web.answers.clear()
    assert len(store.teachers["wide"].read(slice(None))) == 150


def test_other_answers_are_not_taken_for_a_missing_file(web: Web) -> None:
    web.answers["/c.0.1.0"] = 400
    with pytest.raises(StorageError, match="HTTP status 200, or 404 for a missing object") as caught:
        open_store(url_of(web)).teachers["wide"].read(slice(None))
    assert isinstance(caught.value, StorageRefused)


@pytest.mark.parametrize("status", [400, 401, 403, 429, 500, 503])
def test_a_record_of_the_log_that_a_server_refuses_is_not_taken_for_the_end(web: Web, status: int) -> None:
    """Otherwise the store would open without the parts that were sealed last, as an earlier one."""
    web.answers["/log/2.json"] = status
    with pytest.raises(StorageError) as caught:
        open_store(url_of(web))
    in_one_line(caught.value)
    later = isinstance(caught.value, TransientIOError)
    assert (later, caught.value.exit_code) == ((True, EX_TEMPFAIL) if status >= 429 else (False, EX_DATAERR))
    web.answers["/log/2.json"] = 404
    assert list(open_store(url_of(web)).teachers) == []
    web.answers.clear()
    assert list(open_store(url_of(web)).teachers) == ["wide"]


def test_an_answer_that_is_cut_off_is_asked_for_again(web: Web, whole: Path) -> None:
    capture = open_store(url_of(web)).teachers["wide"]
    capture.read(slice(0, 1))
    web.cut = 200
    wanted = open_store(whole).teachers["wide"].read(slice(None), 1)
    assert capture.read(slice(None), 1).tobytes() == wanted.tobytes()


def test_nobody_at_the_address(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "_RETRY", {"max_retries": 0})
    with serving(whole.parent) as web:
        url = url_of(web)
    with pytest.raises(TransientIOError, match="check the network") as caught:
        open_store(url)
    in_one_line(caught.value)


def test_no_store_at_the_address(web: Web) -> None:
    with pytest.raises(NotAStoreError, match=f"{web.url}/nothing: expected a store"):
        open_store(f"{web.url}/nothing")


def test_shards_are_read_by_the_chunk_and_no_size_is_asked_for(web: Web) -> None:
    capture = open_store(url_of(web)).teachers["wide"]
    for _ in range(3):
        capture.read(slice(64, 66), 1)
    asked = [line for line in web.requests if line.endswith("c.1.1.0") or "c.1.1.0 " in line]
    assert sorted(line.split()[0] for line in asked) == ["GET", "GET", "GET"]
    assert all("bytes=" in line for line in asked if line.startswith("GET"))


def test_a_log_longer_than_one_question_is_read_to_its_end(tmp_path: Path) -> None:
    path = tmp_path / "store.zarr"
    teachers = {f"t{number}": Teacher() for number in range(18)}
    made = stores.make(path, rows=8, teachers=teachers, store_inputs=False)
    with serving(tmp_path) as web:
        assert open_store(f"{web.url}/store.zarr").digest == made.store.digest


# Processes


def _script(text: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(text), *arguments],
        check=False,
        capture_output=True,
        text=True,
        timeout=100,
        env={**os.environ, "PYTHONWARNINGS": "ignore"},
    )


_FORK = """
    import os, sys
    from logitstore import open_store

    store = open_store(sys.argv[1])
    child = os.fork()
    if not child:
        try:
            (store if sys.argv[2] == "inherited" else open_store(sys.argv[1])).samples.labels
        except ValueError as error:
            print(type(error).__name__, error)
        finally:
            sys.stdout.flush()
            os._exit(0)
    os.waitpid(child, 0)
    print(len(store.samples.labels), "in the parent")
"""


@pytest.mark.parametrize("handle", ["inherited", "opened again"])
def test_a_forked_process_is_refused_instead_of_waiting_for_ever(web: Web, handle: str) -> None:
    done = _script(_FORK, url_of(web), handle)
    refusal, parent = done.stdout.splitlines()
    assert refusal.startswith(f"ConfigError {url_of(web)}: expected a process started by spawn or forkserver")
    assert parent == "150 in the parent"


@pytest.mark.deep
def test_control_without_that_refusal_a_forked_process_waits_for_ever(web: Web) -> None:
    unguarded = """
    import signal
    from logitstore.storage.backends.zarr_bytes import ZarrBytes

    ZarrBytes._check_process = lambda self: None
    """
    fork = _FORK.replace("if not child:", "if not child:\n        signal.alarm(20)")
    done = _script(textwrap.dedent(unguarded) + textwrap.dedent(fork), url_of(web), "inherited")
    assert done.stdout == "150 in the parent\n"


_UNPICKLE = """
    import pickle, sys

    store = pickle.load(open(sys.argv[1], "rb"))
    print(store.digest, store.teachers["wide"].read(slice(64, 70), 1).sum())
"""


def test_an_open_store_travels_to_another_process_by_its_url(web: Web, whole: Path, tmp_path: Path) -> None:
    store = open_store(url_of(web))
    values = store.teachers["wide"].read(slice(64, 70), 1)
    (tmp_path / "pickled").write_bytes(pickle.dumps(store))
    done = _script(_UNPICKLE, str(tmp_path / "pickled"))
    assert done.stdout.split() == [store.digest, str(values.sum())], done.stderr
    again = pickle.loads(pickle.dumps(open_store(LocalStore(whole, read_only=True))))
    assert again.teachers["wide"].read(slice(64, 70), 1).tobytes() == values.tobytes()


def test_what_lies_in_this_process_does_not_travel(whole: Path) -> None:
    import fsspec
    import obstore
    from obstore.store import MemoryStore as ObstoreMemory
    from zarr.core.buffer import cpu

    contents = {key: (whole / key).read_bytes() for key in stores.files_of(whole)}
    memory, memory_files = ObstoreMemory(), fsspec.filesystem("memory")
    for key, data in contents.items():
        obstore.put(memory, key, data)
        memory_files.pipe_file(f"/travels/{key}", data)
    zarrs = MemoryStore({key: cpu.Buffer.from_bytes(data) for key, data in contents.items()})
    try:
        for place in (zarrs, ObjectStore(memory, read_only=True), "memory://travels"):
            store = open_store(place)
            with pytest.raises(ConfigError, match="expected a place that another process can open") as caught:
                pickle.dumps(store)
            in_one_line(caught.value)
    finally:
        memory_files.rm("/travels", recursive=True)


# The command line


def call(*arguments: object) -> Result:
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


def test_inspect_says_the_same_of_a_url(web: Web, whole: Path) -> None:
    there, here = call("inspect", url_of(web)), call("inspect", whole)
    assert there.exit_code == here.exit_code == 0, there.output
    assert there.output == here.output.replace(str(whole), url_of(web))
    assert call("inspect", url_of(web), "--json").exit_code == 0


def test_verify_needs_a_place_that_lists_its_files(web: Web) -> None:
    done = call("verify", url_of(web))
    assert done.exit_code == 64
    assert isinstance(done.exception, SystemExit)
    assert "expected a place that lists its files" in done.output


@pytest.mark.parametrize(
    "arguments",
    [
        ("compress", "{}", "--teacher", "wide", "--name", "new", "--max-kl", "1e-2"),
        ("cluster", "{}", "--teacher", "wide", "--clusters", "2", "--classes-per-cluster", "2"),
        ("combine", "{}", "--generalist", "wide", "--specialist", "small", "--name", "new"),
        ("doctor", "{}"),
    ],
)
def test_commands_that_write_refuse_a_web_server_before_they_ask_anything(
    web: Web, arguments: tuple[str, ...]
) -> None:
    done = call(*(argument.format(url_of(web)) for argument in arguments))
    assert done.exit_code == 64
    assert "expected a store that can be written to: on a local disk, or s3://, gs:// or az://" in done.output
    assert web.requests == []


def test_a_repair_refuses_a_url_before_it_asks_anything(web: Web) -> None:
    done = call("repair", url_of(web))
    assert done.exit_code == 64
    assert "expected a local path, found a http:// URL; copy the store to a local disk first" in done.output
    assert web.requests == []


def test_a_store_is_not_made_at_a_url_of_a_web_server(web: Web) -> None:
    with pytest.raises(ConfigError, match="expected a store that can be written to"):
        begin_store(url_of(web), num_rows=3, num_classes=2)
    assert web.requests == []


# Libraries


def test_without_a_library_for_it_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("obstore", "obstore.store", "aiohttp", "s3fs"):
        monkeypatch.setitem(sys.modules, name, None)
    for url in ("https://host/store.zarr", "s3://bucket/store.zarr"):
        with pytest.raises(ConfigError, match=r"pip install 'logitstore\[remote\]'") as caught:
            folder_at(url)
        in_one_line(caught.value)


def test_a_local_store_needs_neither_zarr_nor_obstore() -> None:
    done = _script("""
        import sys, tempfile
        from logitstore.storage.api import open_store
        try:
            open_store(tempfile.mkdtemp())
        except ValueError:
            print([name for name in ("zarr", "obstore", "fsspec") if name in sys.modules])
    """)
    assert done.stdout == "[]\n", done.stderr
