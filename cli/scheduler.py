"""Where is a dask scheduler that the user names, and does it answer?"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

ANSWER_WITHIN = 10.0
"""Seconds that a scheduler has to answer."""


@contextmanager
def scheduler_at(address: str | None, *, otherwise: str = "") -> Iterator[Any]:
    """A client of the scheduler at an address; None without one. Raises TransientIOError where none answers.

    otherwise: what the command does without the option, for the message.
    """
    if address is None:
        yield None
        return
    from distributed import Client

    from ..storage.errors import TransientIOError

    try:
        client = Client(address, timeout=ANSWER_WITHIN, set_as_default=False)
    except (OSError, ValueError) as error:
        raise TransientIOError(
            f"--scheduler {address}",
            expected=f"a dask scheduler that answers within {ANSWER_WITHIN:.0f} s",
            found=str(error) or type(error).__name__,
            remedy=f"start one with `dask scheduler`, or leave the option out{otherwise and f' {otherwise}'}",
        ) from error
    with client:
        yield client
