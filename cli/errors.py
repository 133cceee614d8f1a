"""Errors of a command, as a line on stderr and an exit code.

| the command ended with | stderr | exit code |
| --- | --- | --- |
| an error of the library | its one line, and one for each of its notes | its `exit_code`: 64, 65, 70 or 75 |
| a wrong command line | one line that names the command's help | 64 |
| a full disk, a failing one, or too little memory | one line | 75 |
| a path without permission, on a read-only disk, too long, or gone | one line | 65 |
| Ctrl-C | one line | 130 |
| SIGTERM or SIGHUP | one line | 143 or 129 |
| a stdout or stderr that its reader closed | nothing | 141, as after SIGPIPE |
| the error of another rank of `torchrun` | nothing: that rank prints it | as of that rank |
| anything else | one line that asks for a report | 70 |

With `-vv` the traceback comes before the line. Text that an error quotes from a store cannot steer the terminal.
"""

import errno
import os
import sys

import click

from .options import Settings
from .printing.encodings import echo
from .printing.text import printable

EX_INTERRUPTED = 130
"""128 + SIGINT, as shells report it."""
EX_PIPE = 141
"""128 + SIGPIPE."""
_RESUME = "finished work is kept, run the same command again to resume"


def report(error: BaseException, settings: Settings) -> int:
    """Print the line of `error` to stderr, and those of its notes, and return the exit code."""
    # Imported late: the help of the group needs no library.
    from ..pipeline.runtime.ranks import OtherRankFailed
    from ..pipeline.runtime.stopping import Stopped, asked
    from ..storage.errors import EX_USAGE, LogitStoreError, TransientIOError

    if isinstance(error, BrokenPipeError):
        # Buffered text would fail again when Python closes the two.
        discard_output()
        return EX_PIPE
    if isinstance(error, OtherRankFailed):
        return error.exit_code
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        error.show()
        return EX_USAGE
    verbose = settings.verbosity >= 2
    if verbose and not isinstance(error, click.ClickException | click.Abort):
        import traceback

        echo(printable("".join(traceback.format_exception(error)).rstrip(), keep="\n"), err=True)

    # click raises Abort from the interrupt. A worker or rank that the same signal ended may be noticed first.
    notes: list[str] = []
    stopped = next((one for one in (error, error.__cause__) if isinstance(one, Stopped)), None)
    if stopped is None and asked() and isinstance(error, TransientIOError):
        stopped = Stopped(asked())
    if stopped is not None:
        line, code = f"stopped by {stopped.name}; {_RESUME}", stopped.exit_code
    elif isinstance(error, LogitStoreError):
        line, code = str(error), error.exit_code
        notes = getattr(error, "__notes__", notes)
    elif isinstance(error, click.ClickException):
        line, code = _usage(error), EX_USAGE
    elif isinstance(error, KeyboardInterrupt | click.Abort):
        line, code = f"interrupted; {_RESUME}", EX_INTERRUPTED
    else:
        line, code = _of_system(error, verbose)
    try:
        for one in (line, *notes):
            echo(f"logitstore: {printable(' '.join(one.split()))}", err=True)
    except OSError:  # nobody reads it
        discard_output()
    return code


def _of_system(error: BaseException, verbose: bool) -> tuple[str, int]:
    """Return line and exit code of an error that is none of the library's: of the system, of memory, or a bug."""
    from ..storage.errors import (
        EX_DATAERR,
        EX_SOFTWARE,
        EX_TEMPFAIL,
        REFUSED,
        TRANSIENT,
        is_short_of_memory,
    )
    from ..storage.extras import missing_package

    if (missing := missing_package(error)) is not None:
        return str(missing), missing.exit_code
    found = f"{type(error).__name__}: {error}".rstrip(": ")
    if is_short_of_memory(error):
        remedy = "free memory, or lower batch_size and workers, and run the same command again"
        return f"memory: expected enough for this command, found {found}; {remedy}", EX_TEMPFAIL
    if isinstance(error, OSError):
        where, reason = error.filename or "disk", (error.strerror or found).lower()
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            remedy = "free some space and run the same command again"
            return f"{where}: expected free space, found 0 bytes; {remedy}", EX_TEMPFAIL
        if error.errno in TRANSIENT:
            return (
                f"{where}: expected a working disk, found {reason}; run the same command again",
                EX_TEMPFAIL,
            )
        if error.errno in REFUSED and error.filename is not None:
            remedy = "correct the path or its permissions"
            return f"{where}: expected a path that can be used, found {reason}; {remedy}", EX_DATAERR
    hint = "" if verbose else " of the same command with -vv"
    return f"expected no error, found {found}; report this bug with the output{hint}", EX_SOFTWARE


def _usage(error: click.ClickException) -> str:
    """Return the line of a wrong command line, which names the help to read."""
    message = error.format_message().rstrip(".")
    message = message[:1].lower() + message[1:]
    context = error.ctx if isinstance(error, click.UsageError) else None
    return message if context is None else f"{message}; see '{context.command_path} --help'"


def discard_output() -> None:
    """Discard buffered and further output to stdout and stderr."""
    for stream in (sys.stdout, sys.stderr):
        try:
            devnull = os.open(os.devnull, os.O_WRONLY)
            os.dup2(devnull, stream.fileno())
            os.close(devnull)
        except (AttributeError, OSError, ValueError):
            pass  # no file, as in tests, and not flushed at exit


def open_closed_streams() -> None:
    """Open the null device as stdin, stdout or stderr if one is closed, so that no file of ours takes its number."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number
    # Open as long as the process is, like the ones that they stand for.
    sys.stdout = sys.stdout or open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = sys.stderr or open(2, "w", closefd=False)  # noqa: SIM115
