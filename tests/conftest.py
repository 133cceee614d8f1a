"""Fixtures of all tests: the real data, hypothesis' settings, one thread, and one import name.

`pytest` may be called on its own as well as by `make test`; so the settings that the laws rest on stand here, before the
imports that read them.
"""

import logging
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from faults.tally import Tally, entries, table
from hypothesis import HealthCheck, settings
from support import messages
from support.messages import (  # noqa: F401 - hooks and fixtures
    pytest_addoption,
    pytest_collection_modifyitems,
    pytest_configure,
    pytest_runtest_makereport,
    sentence,
    stale_messages,
)

os.environ["LOGITSTORE_CACHE"] = "off"  # requests are counted, and the user's cache is the user's
os.environ.setdefault("OMP_NUM_THREADS", "1")  # read by torch when it is imported
# Modules of a user's folder are written again within a second, and their cache would then seem to be their own.
sys.dont_write_bytecode = True

pytest_plugins = ("support.skips",)

ROOT = Path(__file__).resolve().parent.parent

settings.register_profile(
    "fast",
    max_examples=50,
    deadline=None,  # two busy cores make any deadline a coin toss
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
# The gate says the same twice about the same commit; whoever works on it draws new examples every time.
settings.register_profile("gate", settings.get_profile("fast"), derandomize=True)
settings.register_profile("deep", settings.get_profile("fast"), max_examples=1000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "gate" if os.environ.get("CI") else "fast"))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data sets (MNIST and others); skips the test where there is none."""
    folder = Path(os.environ.get("LOGITSTORE_DATA") or ROOT.parent / "shared" / "data")
    if not folder.is_dir():
        pytest.skip(f"needs real data: {folder} is no folder; put it there, or set LOGITSTORE_DATA")
    return folder


@pytest.fixture
def memory_path() -> Iterator[Path]:
    """A folder in memory where there is one: for many small files, of which no durability is asked."""
    memory = Path("/dev/shm")
    usable = memory.is_dir() and os.access(memory, os.W_OK)
    with tempfile.TemporaryDirectory(dir=memory if usable else None, prefix="logitstore-") as folder:
        yield Path(folder)


@pytest.fixture
def without_fsync() -> Iterator[None]:
    """Skip fsync: a killed process loses nothing that it has written, only a killed machine does."""
    with mock.patch("os.fsync", lambda handle: None):
        yield


@pytest.fixture
def tally(request: pytest.FixtureRequest) -> Tally:
    """Where a test of a fault says what it tried; printed as a table at the end."""
    return Tally(request.node.user_properties)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print the table of faults that all tests, in all processes, tried and saw; rewrite the messages if asked to."""
    reports = [report for kind in ("passed", "failed") for report in terminalreporter.stats.get(kind, [])]
    lines = table(entry for report in reports for entry in entries(report.user_properties))
    if lines:
        terminalreporter.section("faults")
        for line in lines:
            terminalreporter.write_line(line)
    messages.rewrite(terminalreporter)


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Torch draws the same numbers in a test whatever ran before it, where the test uses torch at all."""
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.manual_seed(0)


@pytest.fixture(autouse=True)
def no_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    """Show no progress: on a busy machine any task lasts long enough for a line on stderr."""
    monkeypatch.setattr("logitstore.cli.printing.progress.SHOW_AFTER", float("inf"))


@pytest.fixture(autouse=True)
def no_traces(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A test finds nothing of another, nor of what its fixtures ran, in its process: no modules, no level of the log."""
    temporary = (str(tmp_path_factory.getbasetemp()), "/dev/shm/")

    def forget() -> None:
        sys.path[:] = [entry for entry in sys.path if not entry.startswith(temporary)]
        for name, module in list(sys.modules.items()):
            if (getattr(module, "__dict__", {}).get("__file__") or "").startswith(temporary):
                del sys.modules[name]
        logging.getLogger("logitstore").setLevel(logging.NOTSET)

    forget()
    yield
    forget()


@pytest.fixture(scope="session", autouse=True)
def one_import_name() -> Iterator[None]:
    """After the last test: was everything imported as `logitstore.…`, whatever the tests did?"""
    yield
    strays = sorted({name.partition(".")[0] for name in sys.modules} & {"storage", "pipeline", "cli"})
    assert not strays, f"imported beside logitstore, as top-level modules: {strays}"
