"""Clients of a dask scheduler at an address that the user gives."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

ANSWER_WITHIN = 10.0
"""Seconds that a scheduler has to answer."""


@contextmanager
def scheduler_at(address: str | None, *, otherwise: str = "") -> Iterator[Any]:
    """Yield a client of the scheduler at an address; None without an address.

    otherwise: end of the remedy: the purpose of leaving the option out. Raises ConfigError for a malformed
    address, TransientIOError where no scheduler answers.
    """
    if address is None:
        yield None
        return
    from distributed import Client

    from ..storage.errors import TransientIOError

    _check_address(address)
    try:
        client = Client(address, timeout=ANSWER_WITHIN, set_as_default=False)
    except (OSError, ValueError) as error:
        raise TransientIOError(
            f"--scheduler {address}",
            expected=f"a dask scheduler that answers within {ANSWER_WITHIN:.0f} s",
            found=str(error) or type(error).__name__,
            remedy=f"start a scheduler with `dask scheduler`, or remove --scheduler{otherwise and f' {otherwise}'}",
        ) from error
    with _without_its_log(), client:
        yield client


@contextmanager
def _without_its_log() -> Iterator[None]:
    """Hide a client's log of a lost connection, a traceback beside our line; -vv shows it."""
    logger = logging.getLogger("distributed.client")
    before = logger.level
    if not logging.getLogger("logitstore").isEnabledFor(logging.DEBUG):
        logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        logger.setLevel(before)


def _check_address(address: str) -> None:
    """Refuse anything but `scheme://host:port` and `host:port`. Raises ConfigError.

    The check comes before the client, because one with a malformed address cannot be closed.
    """
    from distributed.comm.addressing import get_address_host_port

    from ..storage.errors import ConfigError

    try:
        host, port = get_address_host_port(address if "://" in address else f"tcp://{address}", strict=True)
        is_address = bool(host) and 0 < port < 1 << 16
    except ValueError:
        is_address = False
    if not is_address:
        raise ConfigError(
            "--scheduler",
            expected="an address: host:port, or with tcp://, tls:// or ws:// before it",
            found=repr(address),
            remedy="copy the address that `dask scheduler` prints, such as tcp://127.0.0.1:8786",
        )
