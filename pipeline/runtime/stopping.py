"""Signals that end a command: SIGTERM of a scheduler that preempts, SIGHUP of a terminal that closes.

A signal raises `Stopped` in the main thread. A training holds the first one back until its step is done, and writes a
checkpoint before it stops. A second signal is never held back.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Final

SIGNALS: Final = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))
"""The signals that are handled, besides Python's own handling of SIGINT."""
_asked = 0
"""The signal that came, 0 before the first."""
_held = 0
"""Number of blocks of `held` that are open."""


class Stopped(KeyboardInterrupt):
    """The end of the work by a signal: no error, and like Ctrl-C to all code that looks for it."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number
        """The signal."""

    @property
    def exit_code(self) -> int:
        """128 plus the signal, as shells report it."""
        return 128 + self.number

    @property
    def name(self) -> str:
        """Name of the signal, such as SIGTERM."""
        return signal.Signals(self.number).name


def handle_signals() -> None:
    """Handle `SIGNALS` from now on by `Stopped`; one that is ignored, as by nohup, stays ignored."""
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _stop)


def _stop(number: int, frame: FrameType | None) -> None:
    global _asked
    is_first, _asked = not _asked, number
    if not (_held and is_first):
        raise Stopped(number)


def asked() -> int:
    """Return the signal that came, 0 if none did."""
    return _asked


@contextmanager
def held() -> Iterator[None]:
    """Hold the first signal back: the block looks for it (`asked`) where it can stop, and raises `Stopped`."""
    global _held
    if threading.current_thread() is not threading.main_thread():
        yield  # signals are handled in the main thread alone
        return
    _held += 1
    try:
        yield
    finally:
        _held -= 1
    if _asked and not _held:
        raise Stopped(_asked)
