"""Child processes of tests: started, killed at a chosen call, waited for, and always ended.

`apart` runs a function in an interpreter of its own: no pytest, no threads, no checks of types, so that it may fork.
`Child` is such a fork; it dies with its parent, even while it is stopped. An interpreter with torch takes seconds to
start, a fork of it milliseconds; so a harness starts one interpreter and forks each case.

`Countdown` counts calls and ends its process at the n-th. `faults.points` aims at named points instead.
"""

import ctypes
import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

TESTS: Final = Path(__file__).resolve().parent.parent
PARENT_DEATH_SIGNAL: Final = 1
"""PR_SET_PDEATHSIG of Linux' prctl."""


def environment(**changes: str) -> dict[str, str]:
    """Return the environment of an interpreter that finds the tests' modules."""
    paths = [str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1", **changes}


def memory_folder(otherwise: Path) -> str:
    """Return a folder in memory if there is one: a killed process takes nothing of the page cache with it."""
    memory = Path("/dev/shm")
    return str(memory if memory.is_dir() and os.access(memory, os.W_OK) else otherwise)


def apart(target: str, *, seconds: float = 3000, **arguments: Any) -> Any:
    """Call "module:function" in an interpreter of its own; arguments and result travel as JSON.

    The limit of a test (pytest's `timeout`) ends it too.

    Raises:
        AssertionError: it failed or took longer. Its stderr is shown, and its forks are killed with it.
    """
    command = [sys.executable, "-m", "support.children", target]
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
        start_new_session=True,
    ) as process:
        try:
            out, errors = process.communicate(json.dumps(arguments), timeout=seconds)
            late = False
        except subprocess.TimeoutExpired:
            late = True
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
        if late:
            errors = process.communicate()[1]
            raise AssertionError(f"{target}: longer than {seconds} s\n{errors}")
    assert process.returncode == 0, f"{target}: left with {process.returncode}\n{errors[-3000:]}"
    return json.loads(out)


def die() -> None:
    """End this process as a power cut does: without a last word."""
    os.kill(os.getpid(), signal.SIGKILL)


class Countdown:
    """A count of calls that ends this process at one of them."""

    def __init__(self, at: int | None) -> None:
        """Begin at no call; `at` is the number of the last one, from 1, and None counts only."""
        self.at = at
        self.count = 0

    def step(self) -> None:
        """Count a call, and die if it is the one."""
        self.count += 1
        if self.count == self.at:
            die()

    def counted(
        self,
        function: Callable[..., Any],
        *,
        after: bool = False,
        counts: Callable[[], bool] = lambda: True,
        skip: bool = False,
    ) -> Callable[..., Any]:
        """Return a function whose calls are counted.

        Args:
            function: the genuine one.
            after: count when the call has returned, not before it.
            counts: whether a call is to be counted.
            skip: leave the genuine call out, such as a flush that takes time and that no survivor notices.
        """

        def call(*args: Any, **kwargs: Any) -> Any:
            if not after and counts():
                self.step()
            result = None if skip else function(*args, **kwargs)
            if after and counts():
                self.step()
            return result

        return call


class Child:
    """A fork that runs a function and leaves with its result as exit status (0 for None)."""

    def __init__(
        self,
        function: Callable[..., int | None],
        *arguments: Any,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """Fork, and set the variables of `environment` in the fork."""
        self.status: int | None = None
        """The exit status once it was waited for; negative for the signal that ended it."""
        self.pid = os.fork()
        if self.pid == 0:
            status = 70
            try:
                ctypes.CDLL(None).prctl(PARENT_DEATH_SIGNAL, signal.SIGKILL)
                os.environ |= environment or {}
                status = function(*arguments) or 0
            except BaseException:  # noqa: BLE001 - whatever it is, it ends here and not in the parent's code
                traceback.print_exc()
            finally:
                os._exit(status)

    def has_ended(self) -> bool:
        """Return whether it is over, without waiting."""
        if self.status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.status = os.waitstatus_to_exitcode(status)
        return self.status is not None

    def kill(self) -> int:
        """End it with SIGKILL unless it has ended by itself; return its status."""
        if self.status is None:
            os.kill(self.pid, signal.SIGKILL)
            self.status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self.status

    def wait(self, seconds: float = 60) -> int:
        """Return its exit status; after that time, kill it."""
        deadline, pause = time.monotonic() + seconds, 0.0002
        while not self.has_ended():
            if time.monotonic() > deadline:
                return self.kill()
            time.sleep(pause)
            pause = min(0.005, 2 * pause)
        assert self.status is not None
        return self.status

    def wait_until_stopped(self, seconds: float = 60) -> bool:
        """Wait until it stopped itself (SIGSTOP); return False if it ended, or still runs after that time."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            pid, status = os.waitpid(self.pid, os.WNOHANG | os.WUNTRACED)
            if pid and os.WIFSTOPPED(status):
                return True
            if pid:
                self.status = os.waitstatus_to_exitcode(status)
                return False
            time.sleep(0.001)
        return False

    def go_on(self) -> None:
        """Resume it after it stopped itself."""
        os.kill(self.pid, signal.SIGCONT)


def ranks(
    number: int, function: Callable[..., int | None], *arguments: Any, seconds: float = 120
) -> list[int]:
    """Run `function(rank, *arguments)` in forks with the environment that torchrun gives; return their exit statuses."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    world = {"WORLD_SIZE": str(number), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    children = [
        Child(function, rank, *arguments, environment={**world, "RANK": str(rank), "LOCAL_RANK": str(rank)})
        for rank in range(number)
    ]
    return [child.wait(seconds) for child in children]


def _main() -> None:
    """Call the function that the command line names; its result alone goes to stdout, all other output to stderr."""
    results = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    module, _, function = sys.argv[1].partition(":")
    result = getattr(importlib.import_module(module), function)(**json.load(sys.stdin))
    with results:
        json.dump(result, results)
    if "obstore" in sys.modules:
        # As the command leaves: a thread of obstore may still ask for the lock of a Python that finalises.
        sys.stderr.flush()
        os._exit(0)


if __name__ == "__main__":
    _main()
