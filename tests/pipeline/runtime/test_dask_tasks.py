"""Tasks in dask: a scheduler that dies is one line, and a task's error stays that task's own."""

import subprocess
import sys
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any

import pytest

from logitstore.pipeline.runtime.dask_tasks import cancel, result_of
from logitstore.storage.errors import StorageFull, TransientIOError


class Future:
    """Of a task that ended so."""

    def __init__(self, status: str, error: Exception | None = None) -> None:
        self.status, self._error = status, error

    def result(self) -> str:
        if self._error is not None:
            raise self._error
        return "done"


def lost() -> CancelledError:
    from distributed.client import FutureCancelledError

    return FutureCancelledError(
        "key", "scheduler-connection-lost", "Client lost the connection.\nRun it again."
    )


def test_what_is_done_is_its_result() -> None:
    assert result_of(Future("finished"), "training") == "done"


@pytest.mark.parametrize(
    ("error", "found"),
    [
        (lost(), "scheduler-connection-lost"),
        (CancelledError(), "CancelledError"),
        (OSError("in <TCP>:\nStream is closed"), "in <TCP>: Stream is closed"),
    ],
)
def test_a_scheduler_that_is_gone_is_one_line(error: Exception, found: str) -> None:
    with pytest.raises(TransientIOError) as caught:
        result_of(Future("cancelled", error), "training 8 specialists")
    assert str(caught.value) == (
        "training 8 specialists: expected a dask scheduler that answers until the work is done, "
        f"found {found}; start the scheduler again and run the same command; finished work is kept"
    )


def test_what_a_task_raised_stays_what_it_is() -> None:
    own = StorageFull("disk", expected="space", found="none", remedy="make room")
    for error in (own, FileNotFoundError("store"), ValueError("no")):
        with pytest.raises(type(error)) as caught:
            result_of(Future("error", error), "training")
        assert caught.value is error


def test_only_a_client_that_runs_is_told_to_cancel() -> None:
    class Client:
        def __init__(self, status: str) -> None:
            self.status, self.told = status, list[Any]()

        def cancel(self, futures: list[Any]) -> None:
            self.told += futures

    alive, gone = Client("running"), Client("closed")
    for client in (alive, gone):
        cancel(client, [1, 2])
    assert (alive.told, gone.told) == ([1, 2], [])


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_scheduler_that_is_killed_is_said_so(tmp_path: Path) -> None:
    from distributed import Client

    file = tmp_path / "scheduler.json"
    command = [sys.executable, "-m", "distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", "0"]
    scheduler = subprocess.Popen(
        [*command, "--no-dashboard", "--scheduler-file", str(file)], stderr=subprocess.DEVNULL
    )
    try:
        with Client(scheduler_file=str(file), timeout=60, set_as_default=False) as client:
            future = client.submit(max, 1, 2)  # for which there is no worker
            scheduler.kill()
            with pytest.raises(
                TransientIOError, match="found scheduler-connection-lost; start the scheduler again"
            ):
                result_of(future, "training")
            cancel(client, [future])
    finally:
        scheduler.kill()
        scheduler.wait()
