"""torchdata's StatefulDataLoader: it resumes with exactly the rest, for any number of workers."""

from typing import Any

import pytest
from support.torch_batches import begun, contents, context, tensor_stream
from torchdata.stateful_dataloader import StatefulDataLoader

from logitstore.pipeline.stream.torch_stream import TorchStream, _checked
from logitstore.storage.api import Store

pytestmark = pytest.mark.filterwarnings(
    "ignore:.set_vital. is deprecated:UserWarning"
)  # torchdata 0.11 calls it

SETTINGS = {"batch_size": 50, "views": "cycle"}
BATCHES = 3


def loader_of(stream: TorchStream, workers: int, **settings: Any) -> Any:
    """A StatefulDataLoader of whole batches."""
    method = context("forkserver") if workers else None
    return StatefulDataLoader(
        stream, batch_size=None, num_workers=workers, multiprocessing_context=method, **settings
    )


def run(store: Store, workers: int, epochs: int, **settings: Any) -> tuple[list[Any], list[Any]]:
    """All batches of some epochs, and the state before each of them and after the last."""
    loader = loader_of(tensor_stream(store, **SETTINGS), workers, **settings)
    states, seen = [loader.state_dict()], []
    for _ in range(epochs):
        for batch in loader:
            seen += contents([batch])
            states.append(loader.state_dict())
    return seen, states


def rest(store: Store, workers: int, state: Any, number: int, **settings: Any) -> list[Any]:
    """That many batches after a state, in a loader of its own, over as many epochs as it takes."""
    loader = loader_of(tensor_stream(store, **SETTINGS), workers, **settings)
    loader.load_state_dict(state)
    seen: list[Any] = []
    for _ in range(4):
        seen += contents(loader)
    return seen[:number]


@pytest.mark.parametrize(("workers", "persistent"), [(0, False), (1, False), (2, False), (2, True)], ids=str)
def test_a_state_between_any_two_batches_gives_exactly_the_rest(
    store: Store, workers: int, persistent: bool
) -> None:
    """Through the end of the epoch, and on into the next ones."""
    settings = {"persistent_workers": True} if persistent else {}
    stream = tensor_stream(store, **SETTINGS)
    expected = [batch for _ in range(4) for batch in contents(stream)]
    seen, states = run(store, workers, 2, **settings)
    assert seen == expected[: 2 * BATCHES]
    for stop in range(2 * BATCHES) if workers == 0 else (0, 1, 2, 3, 5):
        found = rest(store, workers, states[stop], 2 * BATCHES, **settings)
        assert found == expected[stop : stop + 2 * BATCHES], f"after {stop} batches"


def test_the_rest_of_an_epoch_ends_where_the_epoch_ends(store: Store) -> None:
    """And a state is taken between two batches of it, too, in the rest of a rest."""
    stream = tensor_stream(store, **SETTINGS)
    expected = contents(stream)
    _, states = run(store, 2, 1)
    loader = loader_of(tensor_stream(store, **SETTINGS), 2)
    loader.load_state_dict(states[1])
    iterator = iter(loader)
    assert contents([next(iterator)]) == expected[1:2]
    again = loader.state_dict()
    assert contents(iterator) == expected[2:]
    assert rest(store, 2, again, 1) == expected[2:]


def test_a_state_that_is_ignored_would_be_noticed(store: Store) -> None:
    """Negative control: the rest after one batch is not the rest after none."""
    _, states = run(store, 0, 1)
    assert rest(store, 0, states[0], 3) != rest(store, 0, states[1], 3)


def test_a_state_of_another_number_of_workers_is_refused(store: Store) -> None:
    state, _ = begun(lambda: tensor_stream(store), 1)
    cut = state.stream.cut
    worker_state = {
        "stream": state.state_dict(),
        "first": 0,
        "workers": 2,
        "cut": cut,
        "next": 1,
        "over": False,
    }
    assert _checked(worker_state, 2, cut) == worker_state
    for wrong, workers in ((worker_state, 3), (state.state_dict(), 2)):
        with pytest.raises(
            ValueError, match=r"found a state with num_workers=[20]; resume with the num_workers"
        ):
            _checked(wrong, workers, cut)


@pytest.mark.parametrize(
    "changed",
    [{"batch_size": 5}, {"rank": 0, "world_size": 2}, {"drop_last": True}],
    ids=lambda changed: next(iter(changed)),
)
def test_a_state_of_workers_is_of_batches_that_are_cut_alike(store: Store, changed: dict[str, Any]) -> None:
    """A worker's share is every n-th batch: of other batches, rows would be lost and others come twice."""
    _, states = run(store, 2, 1)
    loader = loader_of(tensor_stream(store, **SETTINGS | changed), 2)
    loader.load_state_dict(states[1])
    with pytest.raises(
        Exception, match=r"in a worker of a DataLoader: (batch_size|world_size|drop_last): expected"
    ):
        list(loader)
    # Control: without workers any cut resumes.
    _, states = run(store, 0, 1)
    assert rest(store, 0, states[1], 1) is not None
