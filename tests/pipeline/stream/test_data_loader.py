"""Workers of a DataLoader: they give the batches of one process, each once, in their order."""

import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import stores
from support.torch_batches import ROWS, begun, contents, context, tensor_stream
from torch.utils.data import DataLoader

from logitstore.pipeline.augment import shift
from logitstore.pipeline.stream.torch_stream import MAX_WORKERS, TorchStream
from logitstore.pipeline.views import replay
from logitstore.storage.api import Store, create_store, open_store
from logitstore.storage.errors import ConfigError


@pytest.fixture(autouse=True)
def in_time() -> Iterator[None]:
    """A worker that hangs is no slow worker."""
    began = time.monotonic()
    yield
    assert time.monotonic() - began < 120


def loader_of(stream: TorchStream, workers: int, method: str = "forkserver", **settings: Any) -> Any:
    """A DataLoader of whole batches."""
    return DataLoader(
        stream, batch_size=None, num_workers=workers, multiprocessing_context=context(method), **settings
    )


def epoch_of(loader: Any) -> Counter[tuple[int, int]]:
    """How often each (view, row) comes."""
    counter: Counter[tuple[int, int]] = Counter()
    for batch in loader:
        counter.update(zip(batch.views.tolist(), batch.rows.tolist(), strict=True))
    return counter


ONCE = Counter((view, row) for view in range(2) for row in range(ROWS))


def test_a_loader_without_processes_is_the_stream(store: Store) -> None:
    loader = DataLoader(tensor_stream(store), batch_size=None)
    assert contents(loader) == contents(tensor_stream(store))
    assert len(loader) == len(tensor_stream(store))


@pytest.mark.parametrize("rank", [None, 1])
def test_a_loader_with_processes_gives_every_row_once(store: Store, rank: int | None) -> None:
    """And as one rank of two, every row of that rank."""
    changes = {} if rank is None else {"rank": rank, "world_size": 2}
    loader = loader_of(tensor_stream(store, **changes), 2)
    assert epoch_of(loader) == (ONCE if rank is None else epoch_of(tensor_stream(store, **changes)))


def test_workers_that_all_read_everything_would_be_caught(store: Store) -> None:
    """Negative control: without shares each row comes as often as there are workers."""
    twice = epoch_of(tensor_stream(store)) + epoch_of(tensor_stream(store))
    assert twice != ONCE
    assert set(twice.values()) == {2}


def epochs_of(loader: Any, stream: TorchStream, epochs: list[int | None]) -> list[Any]:
    """The batches of several epochs, the ones with a number set first."""
    seen = []
    for epoch in epochs:
        if epoch is not None:
            stream.set_epoch(epoch)
        seen.append(contents(loader))
    return seen


CASES: list[tuple[str, bool, int, list[int | None]]] = [
    ("forkserver", False, 2, [None, None, None]),
    ("forkserver", False, 2, [0, 1, 2]),
    ("forkserver", False, 2, [2, 2]),
    ("forkserver", True, 2, [None, None, None]),
    ("forkserver", True, 2, [0, 1, 2]),
    ("forkserver", True, 2, [2, 2]),
    ("spawn", False, 1, [None, None]),  # each takes seconds to start
    ("spawn", True, 2, [None, 2, None]),
]


@pytest.mark.parametrize(("method", "persistent", "workers", "epochs"), CASES, ids=str)
def test_batches_come_as_they_would_without_processes(
    store: Store, method: str, persistent: bool, workers: int, epochs: list[int | None]
) -> None:
    """The same batches in the same order, epoch after epoch, set or not."""
    stream, here = tensor_stream(store, views="cycle"), tensor_stream(store, views="cycle")
    loader = loader_of(stream, workers, method, persistent_workers=persistent)
    seen = epochs_of(loader, stream, epochs)
    del loader
    assert seen == epochs_of(here, here, epochs)


@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")  # on fewer cores than workers
def test_any_number_of_workers_gives_the_same_batches(store: Store) -> None:
    assert contents(loader_of(tensor_stream(store), 3)) == contents(tensor_stream(store))


@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")
def test_more_workers_than_batches(store: Store) -> None:
    few = {"batch_size": 100, "views": 0}
    assert contents(loader_of(tensor_stream(store, **few), 3)) == contents(tensor_stream(store, **few))


def test_more_workers_than_are_known_are_refused(store: Store) -> None:
    with pytest.raises(ConfigError, match=f"num_workers: expected at most {MAX_WORKERS}, found 1025"):
        next(tensor_stream(store)._in_worker(0, MAX_WORKERS + 1))


def test_workers_do_not_copy_to_a_device(store: Store) -> None:
    with pytest.raises(
        ConfigError,
        match=r"expected device=None in a worker .*, found device='meta'; .* iterate to_device\(loader",
    ):
        next(tensor_stream(store, "meta")._in_worker(0, 1))


# States


def test_a_state_that_workers_have_left_behind_is_refused(store: Store) -> None:
    stream = tensor_stream(store)
    assert stream.state_dict()["epoch"] == 0
    list(loader_of(stream, 1))
    with pytest.raises(ConfigError, match="state_dict: expected a stream that is iterated in this process"):
        stream.state_dict()


@pytest.mark.parametrize("pinned", [False, True])
def test_workers_go_on_from_a_state_that_was_taken_here(store: Store, pinned: bool) -> None:
    """The rest of the epoch, and then the next ones, or the one that was set again."""
    before, iterator = begun(lambda: tensor_stream(store), 5)
    state = before.state_dict()
    rest, after = contents(iterator), [contents(before)]
    stream = tensor_stream(store)
    if pinned:
        stream.set_epoch(3)
        after = [contents(tensor_stream(store))]
    stream.load_state_dict(state)
    loader = loader_of(stream, 2)
    assert contents(loader) == rest
    assert [contents(loader)] == after


def test_persistent_workers_that_never_heard_of_a_state_refuse(store: Store) -> None:
    stream = tensor_stream(store)
    state = stream.state_dict()
    loader = loader_of(stream, 1, persistent_workers=True)
    list(loader)
    stream.load_state_dict(state)
    with pytest.raises(RuntimeError, match=r"ConfigError: .*persistent workers.*; make a new DataLoader"):
        list(loader)
    del loader
    assert contents(loader_of(stream, 1)) == contents(tensor_stream(store))


# What is sent


def test_a_large_array_in_a_transfer_set_is_sent(tmp_path: Path) -> None:
    """More than 64 KiB come as a buffer when they are pickled."""
    inputs = np.arange(600 * 256).astype(np.uint8).reshape(600, 16, 16)
    store = create_store(tmp_path / "large", num_classes=2, inputs=inputs)

    def stream() -> TorchStream:
        return TorchStream(store.stream(batch_size=64, transfer_set=inputs))

    assert contents(loader_of(stream(), 1)) == contents(stream())


class OpenFile:
    """A transfer set that holds an open handle."""

    def __init__(self, inputs: Any, path: Path) -> None:
        np.save(path, inputs)
        self.inputs, self.file = inputs, path.open("rb")

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: int) -> Any:
        return self.inputs[index]


@pytest.mark.parametrize("method", ["forkserver", "spawn"])
def test_a_transfer_set_that_cannot_be_sent_gives_one_clear_line(
    store: Store, made: stores.Made, tmp_path: Path, method: str
) -> None:
    transfer_set = OpenFile(made.inputs, tmp_path / "inputs.npy")
    stream = tensor_stream(store, transfer_set=transfer_set)
    with pytest.raises(ConfigError) as raised:
        list(loader_of(stream, 1, method))
    # Python's own words differ from version to version.
    said = str(raised.value).replace("'_io.BufferedReader' object", "'BufferedReader' instances")
    assert said == (
        "a stream for the workers of a DataLoader: expected a transfer set and an augmentation that can be pickled, "
        "found TypeError: cannot pickle 'BufferedReader' instances; open files in `__getitem__`, define "
        "functions at the top of a module, or use num_workers=0"
    )
    assert epoch_of(DataLoader(stream, batch_size=None)) == ONCE  # here it can be used
    transfer_set.file.close()


def test_a_transfer_set_and_views_that_are_made_again_reach_the_workers(tmp_path: Path) -> None:
    """`replay` gives what can be sent; each input is still compared with what the teacher saw."""
    inputs = stores.some_inputs(40, shape=(5, 5))
    again = replay(shift(pixels=1), seed=4)
    store = views_of(tmp_path / "views.zarr", inputs, again)
    settings: dict[str, Any] = {"batch_size": 16, "views": "all", "augment": again, "transfer_set": inputs}
    here = list(TorchStream(store.stream(**settings)))
    there = list(loader_of(TorchStream(store.stream(**settings)), 2))
    assert [b.inputs.tolist() for b in there] == [b.inputs.tolist() for b in here]


def views_of(path: Path, inputs: Any, again: Any) -> Store:
    """A store of two views of some inputs, which are not stored."""
    from logitstore import create_store, digest_rows

    store = create_store(path, num_classes=3, num_rows=len(inputs), inputs=inputs)
    with store.capture("wide", provenance={"augmentation": {"seed": 4, "first_view": 1}}, views=2) as capture:
        for view in range(2):
            for rows in capture.missing_blocks(view):
                seen = digest_rows(again(inputs[rows], view, np.arange(len(inputs))[rows]))
                capture.write(rows, stores.some_logits(1, len(seen), 3)[0], view, seen)
    return open_store(path)


# fork

FORKED = """
import os, sys
from logitstore.pipeline.stream.torch_stream import TorchStream
from logitstore.storage.api import open_store
from logitstore.storage.errors import LogitStoreError

def arrays():
    return open_store(sys.argv[1]).stream(8, window=8, views="all")

for make in arrays, lambda: TorchStream(arrays()):
    mine = make()
    iterator = iter(mine)
    first = next(iterator).rows.tolist()
    child = os.fork()
    if child == 0:
        try:
            whole = [batch.rows.tolist() for batch in make()]
            assert whole[0] == first and len(whole) == len(mine), "an iteration of its own"
            try:
                for batch in iterator:
                    pass
                print("it went on", flush=True)
            except LogitStoreError as error:
                print(error, flush=True)
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    assert 1 + sum(1 for _ in iterator) == len(mine), "the parent goes on"
"""


def test_an_iteration_that_goes_on_in_a_forked_child_says_so_and_does_not_hang(made: stores.Made) -> None:
    """Its threads are in the parent. An iteration that the child begins itself is as good as any."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORKED, str(made.path)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 2, done.stdout + done.stderr
    assert all("fork" in line for line in lines), lines
