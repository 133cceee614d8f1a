"""Signals: the first is held back until a step has ended, the second never is."""

import signal
from collections.abc import Iterator

import pytest

from logitstore.pipeline.runtime import stopping
from logitstore.pipeline.runtime.stopping import SIGNALS, Stopped, asked, handle_signals, held


@pytest.fixture(autouse=True)
def handled(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Handle the signals for the time of a test."""
    monkeypatch.setattr(stopping, "_asked", 0)
    # The tests themselves may run under nohup, where SIGHUP stays ignored.
    before = {number: signal.signal(number, signal.SIG_DFL) for number in SIGNALS}
    handle_signals()
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_a_second_signal_ends_a_step_that_hangs() -> None:
    """A step that never ends would otherwise make the process deaf to all but SIGKILL."""
    with pytest.raises(Stopped) as caught, held():
        signal.raise_signal(signal.SIGTERM)
        assert asked() == signal.SIGTERM  # the first is held back
        signal.raise_signal(signal.SIGHUP)
        pytest.fail("the second signal was held back")
    assert caught.value.exit_code == 128 + signal.SIGHUP


def test_a_signal_that_is_held_back_stops_where_the_outermost_block_ends() -> None:
    """Inside, the checkpoint of the step is still to be written."""
    with held():
        pass  # control: without a signal nothing is raised
    reached = []
    with pytest.raises(Stopped), held():
        with held():
            signal.raise_signal(signal.SIGTERM)
        reached.append("the rest of the step")
    assert reached
