"""How does a test run real processes that are killed, stopped and waited for, and that always end?

`apart` runs a function in an interpreter of its own: no pytest, no threads, no checks of types, so that it may
fork. `Child` is such a fork; it dies with its parent, also when it was stopped. Starting an interpreter takes 0.3 s,
forking one that has logitstore loaded takes milliseconds.
"""

import ctypes
import importlib
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

TESTS: Final = Path(__file__).resolve().parent.parent
PARENT_DEATH_SIGNAL: Final = 1
"""PR_SET_PDEATHSIG of Linux' prctl."""


def environment(**changes: str) -> dict[str, str]:
    """The environment of an interpreter that finds the tests' modules."""
    paths = [str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1", **changes}


def memory_folder(otherwise: Path) -> str:
    """A folder in memory, where there is one: a process that is killed takes nothing of the page cache with it."""
    memory = Path("/dev/shm")
    return str(memory if memory.is_dir() and os.access(memory, os.W_OK) else otherwise)


def apart(target: str, *, seconds: float = 200, **arguments: Any) -> Any:
    """What "module:function" returns in an interpreter of its own; arguments and result go as JSON.

    Raises AssertionError with its stderr where it fails or takes longer; what it forked is then killed, too.
    """
    command = [sys.executable, "-m", "faults.processes", target]
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
    assert process.returncode == 0, f"{target}: left with {process.returncode}\n{errors}"
    return json.loads(out)


class Child:
    """A fork that runs a function and leaves with what that returns (0 for None)."""

    def __init__(self, function: Callable[..., int | None], *arguments: Any) -> None:
        self.status: int | None = None
        """The exit status once it was waited for; negative for the signal that ended it."""
        self.pid = os.fork()
        if self.pid == 0:
            status = 70
            try:
                ctypes.CDLL(None).prctl(PARENT_DEATH_SIGNAL, signal.SIGKILL)
                status = function(*arguments) or 0
            except BaseException:  # noqa: BLE001 - whatever it is, it ends here and not in the parent's code
                traceback.print_exc()
            finally:
                os._exit(status)

    def has_ended(self) -> bool:
        """Whether it is over; does not wait."""
        if self.status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.status = os.waitstatus_to_exitcode(status)
        return self.status is not None

    def kill(self) -> int:
        """End it with SIGKILL, where it has not ended by itself; its status."""
        if self.status is None:
            os.kill(self.pid, signal.SIGKILL)
            self.status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self.status

    def wait(self, seconds: float = 60) -> int:
        """Its exit status. It is killed where it takes longer."""
        deadline, pause = time.monotonic() + seconds, 0.0002
        while not self.has_ended():
            if time.monotonic() > deadline:
                return self.kill()
            time.sleep(pause)
            pause = min(0.005, 2 * pause)
        assert self.status is not None
        return self.status

    def wait_until_stopped(self, seconds: float = 60) -> bool:
        """Whether it stopped itself (SIGSTOP); False where it ended, or is still running after that time."""
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
        """Let it run again after it stopped itself."""
        os.kill(self.pid, signal.SIGCONT)


def _main() -> None:
    module, _, function = sys.argv[1].partition(":")
    result = getattr(importlib.import_module(module), function)(**json.load(sys.stdin))
    json.dump(result, sys.stdout)


if __name__ == "__main__":
    _main()
