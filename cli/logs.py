"""Where does the log go, and how much of it?

To stderr, as `level: message`: warnings normally, information with -v, everything with -vv, errors alone with
-q, nothing with -qq.
"""

import logging
import sys
from typing import TextIO

_LEVELS = {-1: logging.ERROR, 0: logging.WARNING, 1: logging.INFO}


class _Stderr(logging.StreamHandler[TextIO]):
    """Writes to what is stderr at that moment: a progress bar puts itself in its place while it is shown."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)
        self.setFormatter(logging.Formatter("%(levelname)s: %(message)s"))

    @property
    def stream(self) -> TextIO:  # type: ignore[override]
        return sys.stderr


_handler = _Stderr()


def configure_logging(verbosity: int) -> None:
    """Send the library's log to stderr; called again, it changes how much."""
    logger = logging.getLogger("logitstore")
    if verbosity <= -2:
        logger.setLevel(logging.CRITICAL + 1)
    else:
        logger.setLevel(_LEVELS.get(verbosity, logging.DEBUG))
    if _handler not in logger.handlers:
        logger.addHandler(_handler)
    logging.captureWarnings(verbosity >= 1)
    if verbosity >= 1:
        warnings = logging.getLogger("py.warnings")
        if _handler not in warnings.handlers:
            warnings.addHandler(_handler)
