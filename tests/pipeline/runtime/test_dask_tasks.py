"""Tasks in dask: a scheduler that dies is one line, and a task's error stays that task's own."""

import subprocess
import sys
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any

import pytest

from logitstore.pipeline.runtime import dask_tasks
from logitstore.pipeline.runtime.dask_tasks import cancel, completed, result_of
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


class Cluster:
    """A client whose scheduler has some workers, or does not answer."""

    status = "running"
    address = "tcp://127.0.0.1:8786"

    def __init__(self, *answers: dict[str, Any] | None) -> None:
        """Answer so, one look after the other; the last again and again."""
        self._answers, self.looks = list(answers), 0
        self.scheduler = self

    def identity(self) -> None: ...

    def sync(self, call: object, *, callback_timeout: float) -> Any:
        self.looks += 1
        answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        if answer is None:
            raise TimeoutError
        return answer


class Pending:
    """A future that is done at the n-th look."""

    def __init__(self, at: float) -> None:
        self._left = at

    def done(self) -> bool:
        self._left -= 1
        return self._left <= 0


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait a fraction of a second where it is a minute."""
    for name, seconds in (("WORKERS_WITHIN", 0.2), ("_POLL_SECONDS", 0.01), ("_LOOK_SECONDS", 0.02)):
        monkeypatch.setattr(dask_tasks, name, seconds)


@pytest.mark.parametrize(
    ("answer", "found"),
    [({"workers": {}}, "a scheduler without workers"), (None, "a scheduler that does not answer")],
)
def test_a_cluster_without_workers_is_waited_for_a_minute_with_a_line(
    answer: Any, found: str, hurried: None, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(TransientIOError) as caught:
        list(completed(Cluster(answer), [Pending(float("inf"))], "training 8 specialists"))
    assert str(caught.value) == (
        "training 8 specialists: expected a dask scheduler with workers within 0 s, "
        f"found {found}; start workers with `dask worker tcp://127.0.0.1:8786` and run the same command again; "
        "finished work is kept"
    )
    assert caplog.messages == [f"training 8 specialists: {found}; waiting 0 s for workers"]


def test_workers_that_come_or_come_back_are_enough(hurried: None) -> None:
    """Controls: a cluster at work is waited for as long as it takes, also after a while without workers."""
    works, lacks = {"workers": {"a": 1}}, {"workers": {}}
    short, long = Pending(5), Pending(60)
    cluster = Cluster(lacks, works, lacks, works)
    assert list(completed(cluster, [long, short], "training")) == [short, long]
    assert cluster.looks > 4


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
