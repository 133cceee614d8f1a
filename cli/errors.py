"""Errors of a command, as a line on stderr and an exit code.

| the command ended with | stderr | exit code |
| --- | --- | --- |
| an error of the library | its one line | its `exit_code`: 64, 65, 70 or 75 |
| a wrong command line | one line that names the command's help | 64 |
| a full disk | one line | 75 |
| Ctrl-C | one line | 130 |
| a stdout that its reader closed | nothing | 141, as after SIGPIPE |
| the error of another rank of `torchrun` | nothing: that rank prints it | as of that rank |
| a path that was removed meanwhile | one line | 75 |
| a path that is too long, or not permitted | one line | 65 |
| anything else | one line that asks for a report | 70 |

With `-vv` the traceback comes before the line. Text that an error quotes from a store cannot steer the terminal.
"""

import errno
import os
import sys

import click

from .options import Settings
from .printing.text import printable

EX_INTERRUPTED = 130
"""128 + SIGINT, as shells report it."""
EX_PIPE = 141
"""128 + SIGPIPE."""


def report(error: BaseException, settings: Settings) -> int:
    """Print the line of `error` to stderr, and return the exit code."""
    # Imported late: the help of the group needs no library.
    from ..pipeline.runtime.ranks import OtherRankFailed
    from ..storage.backends.posix import REFUSALS
    from ..storage.errors import EX_DATAERR, EX_SOFTWARE, EX_TEMPFAIL, EX_USAGE, LogitStoreError

    if isinstance(error, BrokenPipeError):
        # Buffered text would fail again when Python closes stdout.
        _discard_stdout()
        return EX_PIPE
    if isinstance(error, OtherRankFailed):
        return error.exit_code
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        error.show()
        return EX_USAGE
    verbose = settings.verbosity >= 2
    if verbose and not isinstance(error, click.ClickException | click.Abort):
        import traceback

        click.echo(printable("".join(traceback.format_exception(error)).rstrip(), keep="\n"), err=True)

    if isinstance(error, LogitStoreError):
        line, code = str(error), error.exit_code
    elif isinstance(error, click.ClickException):
        line, code = _usage(error), EX_USAGE
    elif isinstance(error, KeyboardInterrupt | click.Abort):
        line, code = (
            "interrupted; finished work is kept, run the same command again to resume",
            EX_INTERRUPTED,
        )
    elif isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        remedy = "free some space and run the same command again"
        line, code = f"{error.filename or 'disk'}: expected free space, found 0 bytes; {remedy}", EX_TEMPFAIL
    elif isinstance(error, FileNotFoundError) and error.filename is not None:
        line = (
            f"{error.filename}: expected a path that stays, found none any more; run the same command again"
        )
        code = EX_TEMPFAIL
    elif isinstance(error, OSError) and error.filename is not None and error.errno in REFUSALS:
        found = (error.strerror or type(error).__name__).lower()
        line = f"{error.filename}: expected a path that can be used, found {found}; check the path"
        code = EX_DATAERR
    else:
        found = f"{type(error).__name__}: {error}".rstrip(": ")
        hint = "" if verbose else " of the same command with -vv"
        line, code = f"expected no error, found {found}; report this bug with the output{hint}", EX_SOFTWARE
    click.echo(f"logitstore: {printable(' '.join(line.split()))}", err=True)
    return code


def _usage(error: click.ClickException) -> str:
    """Return the line of a wrong command line, which names the help to read."""
    message = error.format_message().rstrip(".")
    message = message[:1].lower() + message[1:]
    context = error.ctx if isinstance(error, click.UsageError) else None
    return message if context is None else f"{message}; see '{context.command_path} --help'"


def _discard_stdout() -> None:
    """Discard buffered and further output."""
    try:
        devnull = os.open(os.devnull, os.O_WRONLY)
        os.dup2(devnull, sys.stdout.fileno())
        os.close(devnull)
    except (OSError, ValueError):
        pass  # stdout is no file, as in tests, and is not flushed at exit
