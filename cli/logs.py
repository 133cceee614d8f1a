"""The log on stderr, as `level: message`.

Warnings by default, information with -v, everything with -vv, errors alone with -q, nothing with -qq.
"""

import logging
import sys
from typing import TextIO

_LEVELS = {-1: logging.ERROR, 0: logging.WARNING, 1: logging.INFO}


class _Stderr(logging.StreamHandler[TextIO]):
    """A handler of the current `sys.stderr`, which a progress bar replaces while it is shown."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)
        self.setFormatter(logging.Formatter("%(levelname)s: %(message)s"))

    @property
    def stream(self) -> TextIO:  # type: ignore[override]
        return sys.stderr


_handler = _Stderr()


def configure_logging(verbosity: int) -> None:
    """Send the library's log to stderr; a second call changes the level."""
    logger, warnings = logging.getLogger("logitstore"), logging.getLogger("py.warnings")
    off = logging.CRITICAL + 1
    logger.setLevel(off if verbosity <= -2 else _LEVELS.get(verbosity, logging.DEBUG))
    logger.addHandler(_handler)  # a handler that is there is not added again
    logging.captureWarnings(verbosity >= 1)
    if verbosity >= 1:
        warnings.addHandler(_handler)
