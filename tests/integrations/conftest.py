"""Tests of other libraries: collected where all of them are installed, as in the environment of `make test-integrations`.

They fail there, and are never skipped, if a library is missing. No test opens a connection.
"""

import importlib.util

import pytest

LIBRARIES = ("transformers", "accelerate", "datasets", "lightning", "torchvision", "timm")
MISSING = [name for name in LIBRARIES if importlib.util.find_spec(name) is None]
collect_ignore_glob = ["test_*.py"] if MISSING else []


def pytest_report_header() -> list[str]:
    """Say why the tests are left out."""
    missing = ", ".join(MISSING)
    return [f"tests/integrations: left to `make test-integrations`, without {missing}"] if MISSING else []


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail a test that opens a connection."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a connection was opened")

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("socket.socket.connect", refuse)
    monkeypatch.setattr("socket.create_connection", refuse)
