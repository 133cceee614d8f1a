"""The queue of blocks to commit: in order, bounded in bytes, and with the first error alone."""

import threading
import time
from collections.abc import Callable

import pytest

from logitstore.pipeline.cache.commit_queue import CommitQueue


def noting(done: list[int], number: int, gate: threading.Event | None = None) -> Callable[[], None]:
    """A job that notes its number, when the gate is open."""

    def job() -> None:
        if gate is not None:
            assert gate.wait(30)
        done.append(number)

    return job


def failing(text: str) -> Callable[[], None]:
    """A job that fails."""

    def job() -> None:
        raise ValueError(text)

    return job


def test_jobs_are_done_in_order_by_one_thread() -> None:
    done: list[int] = []
    with CommitQueue(10) as queue:
        for number in range(200):
            queue.put(noting(done, number), number % 7)
    assert done == list(range(200))


def test_who_puts_waits_for_room() -> None:
    done: list[int] = []
    gate, through = threading.Event(), threading.Event()
    with CommitQueue(100) as queue:
        queue.put(noting(done, 0, gate), 60)
        queue.put(noting(done, 1), 40)

        def third() -> None:
            queue.put(noting(done, 2), 1)
            through.set()

        thread = threading.Thread(target=third)
        thread.start()
        assert not through.wait(0.2)
        assert queue.high_water == 100
        gate.set()
        assert through.wait(30)
        thread.join()
    assert done == [0, 1, 2]
    assert queue.high_water <= 100


def test_a_job_larger_than_the_queue_waits_alone() -> None:
    done: list[int] = []
    with CommitQueue(10) as queue:
        for number in range(5):
            queue.put(noting(done, number), 25)
    assert (done, queue.high_water) == (list(range(5)), 25)


def test_the_first_error_stops_what_comes_after_it() -> None:
    done: list[int] = []
    with pytest.raises(ValueError, match="first"), CommitQueue(1) as queue:
        queue.put(noting(done, 0), 1)
        queue.put(failing("first"), 1)
        for number in range(1, 100):
            queue.put(noting(done, number), 1)
            time.sleep(0.001)
    assert done == [0]


def test_an_error_of_the_last_job_is_raised_on_leaving() -> None:
    with pytest.raises(ValueError, match="last"), CommitQueue() as queue:
        queue.put(failing("last"), 1)


def test_what_was_finished_before_the_block_failed_is_committed() -> None:
    done: list[int] = []
    gate = threading.Event()
    with pytest.raises(KeyError, match="loader"), CommitQueue() as queue:
        queue.put(noting(done, 0, gate), 1)
        queue.put(noting(done, 1), 1)
        threading.Timer(0.05, gate.set).start()
        raise KeyError("loader")
    assert done == [0, 1]


def test_an_error_of_an_earlier_block_comes_before_that_of_a_later_one() -> None:
    gate = threading.Event()

    def late() -> None:
        assert gate.wait(30)
        raise ValueError("earlier")

    with pytest.raises(ValueError, match="earlier"), CommitQueue() as queue:
        queue.put(late, 1)
        threading.Timer(0.05, gate.set).start()
        raise KeyError("later")


def test_ctrl_c_stays_ctrl_c() -> None:
    done: list[int] = []
    with pytest.raises(KeyboardInterrupt), CommitQueue() as queue:
        queue.put(noting(done, 0), 1)
        queue.put(failing("disk"), 1)
        raise KeyboardInterrupt
    assert done == [0]


def test_no_thread_is_left() -> None:
    assert not [thread for thread in threading.enumerate() if thread.name == "logitstore-commit"]
