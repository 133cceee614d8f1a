"""Workers: what they send arrives, their death and their silence are one line, and they end with their parent."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from support import idle_workers
from support.children import apart, environment
from support.idle_workers import EXPECTED, WHERE

from logitstore.pipeline.runtime.workers import Worker, end_all
from logitstore.storage.errors import TransientIOError


def is_alive(pid: int, seconds: float) -> bool:
    """Return whether a process is still there after some seconds, or as soon as it is not."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            with open(f"/proc/{pid}/stat") as file:
                if file.read().rpartition(")")[2].split()[0] == "Z":
                    return False
        except FileNotFoundError:
            return False
        time.sleep(0.05)
    return True


def test_objects_and_arrays_arrive_and_the_end_is_one_line() -> None:
    rows = 100_000  # more than a pipe holds
    worker = Worker(WHERE, EXPECTED, idle_workers.answers, rows)
    try:
        assert worker.receive() == ("rows", rows)
        array = np.empty(rows, np.int64)
        worker.receive_into(array)
        assert (array == np.arange(rows)).all()
        with pytest.raises(TransientIOError) as caught:
            worker.receive()
    finally:
        end_all([worker])
    assert (caught.value.where, caught.value.expected) == (WHERE, EXPECTED)
    assert caught.value.found == "a worker that was ended with exit code 0"


def test_a_worker_that_is_killed_or_stopped_is_not_waited_for() -> None:
    worker = Worker(WHERE, EXPECTED, idle_workers.begins)
    try:
        array = np.empty(5, np.int64)
        worker.receive_into(array)
        assert worker.process.pid is not None
        os.kill(worker.process.pid, signal.SIGSTOP)
        with pytest.raises(TransientIOError) as silent:
            worker.receive(seconds=1.0)
        os.kill(worker.process.pid, signal.SIGKILL)
        with pytest.raises(TransientIOError) as killed:
            worker.receive_into(array)
    finally:
        end_all([worker])
    assert silent.value.found == "a worker that is silent for 1 s"
    assert killed.value.found == "a worker that was ended by SIGKILL"


def test_ctrl_c_is_for_the_parent_alone_which_ends_its_workers_in_order() -> None:
    """A terminal sends it to all: a worker that died of it would print its own traceback, and be reported as lost.

    The first worker of a process is started after Python's tracker of resources, which unblocks signals.
    """
    assert apart("support.idle_workers:after_signal", number=signal.SIGINT) == ["still there"] * 2
    ends = apart("support.idle_workers:after_signal", number=signal.SIGTERM)  # control
    assert [end.endswith("exit code -15") for end in ends] == [True, True]


@pytest.mark.parametrize(
    ("whose", "number"),
    [
        ("ours", signal.SIGKILL),
        ("ours", signal.SIGTERM),
        ("ours", signal.SIGINT),
        ("loader", signal.SIGKILL),
        ("loader", signal.SIGTERM),
        # Negative controls: a process of the standard library, and a worker of torch's fork server, outlive their parents.
        ("control", signal.SIGKILL),
        ("unwatched loader", signal.SIGKILL),
    ],
)
def test_a_worker_ends_with_its_parent(whose: str, number: int, tmp_path: Path) -> None:
    """Also a worker of the DataLoader that the guide shows."""
    is_control = whose not in ("ours", "loader")
    parent = subprocess.Popen(
        [sys.executable, "-m", "support.idle_workers", whose, str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=environment(),
    )
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    try:
        time.sleep(3)  # it may still be importing: the lines above are all that it does
        parent.send_signal(number)
        parent.wait(60)
        stays = is_alive(pid, 3 if is_control else 15)
    finally:
        parent.kill()
        parent.stdout.close()
        if is_control:
            os.kill(pid, signal.SIGKILL)
    assert stays == is_control
