"""Where is a dask scheduler that the user names, and does it answer?"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

ANSWER_WITHIN = 10.0
"""Seconds that a scheduler has to answer."""


@contextmanager
def scheduler_at(address: str | None, *, otherwise: str = "") -> Iterator[Any]:
    """A client of the scheduler at an address; None without one.

    otherwise: what the command does without the option, for the message. Raises ConfigError for what is no address,
    TransientIOError where none answers.
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
            remedy=f"start one with `dask scheduler`, or leave the option out{otherwise and f' {otherwise}'}",
        ) from error
    with _without_its_log(), client:
        yield client


@contextmanager
def _without_its_log() -> Iterator[None]:
    """Leave out what a client logs of a connection that it lost, a traceback beside our line; -vv has it."""
    logger = logging.getLogger("distributed.client")
    before = logger.level
    if not logging.getLogger("logitstore").isEnabledFor(logging.DEBUG):
        logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        logger.setLevel(before)


def _check_address(address: str) -> None:
    """Refuse what is no `scheme://host:port` or `host:port`. Raises ConfigError.

    A client that cannot read its address is one that cannot be closed either.
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
            remedy="take the one that `dask scheduler` prints, such as tcp://127.0.0.1:8786",
        )
