"""What does the user see of an error, and what does the shell?

| what ended the command | stderr | exit code |
| --- | --- | --- |
| an error of the library | its one line | its `exit_code`: 64, 65, 70 or 75 |
| a wrong command line | one line that names the command's help | 64 |
| a full disk | one line | 75 |
| Ctrl-C | one line | 130 |
| stdout closed by its reader | nothing | 141, as if SIGPIPE had ended it |
| anything else | one line that asks to report it | 70 |

With `-vv` the traceback comes before the line. What an error quotes of a store cannot steer the terminal.
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
    """Say on stderr what `error` means to a user, and return the exit code."""
    # Not before something went wrong: the help of the group needs no library.
    from ..storage.errors import EX_SOFTWARE, EX_TEMPFAIL, EX_USAGE, LogitStoreError

    if isinstance(error, BrokenPipeError):
        # What is still buffered would fail again when Python closes stdout.
        _discard_stdout()
        return EX_PIPE
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        error.show()
        return EX_USAGE
    if settings.verbosity >= 2 and not isinstance(error, click.ClickException | click.Abort):
        import traceback

        click.echo(printable("".join(traceback.format_exception(error)).rstrip(), keep="\n"), err=True)

    if isinstance(error, LogitStoreError):
        line, code = str(error), error.exit_code
    elif isinstance(error, click.ClickException):
        line, code = _usage(error), EX_USAGE
    elif isinstance(error, KeyboardInterrupt | click.Abort):
        line, code = (
            "interrupted; what was finished is kept, run the same command again to go on",
            EX_INTERRUPTED,
        )
    elif isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        where = error.filename or "the disk"
        line, code = (
            f"{where}: expected free space, found none; make room and run the same again",
            EX_TEMPFAIL,
        )
    else:
        what = f"{type(error).__name__}: {error}".rstrip(": ")
        hint = "" if settings.verbosity >= 2 else " of the same command with -vv"
        line = f"expected no error here, found {what}; this is a bug, please report it with the output{hint}"
        code = EX_SOFTWARE
    click.echo(f"logitstore: {printable(' '.join(line.split()))}", err=True)
    return code


def _usage(error: click.ClickException) -> str:
    """A wrong command line, with the help to look into."""
    message = error.format_message().rstrip(".")
    message = message[:1].lower() + message[1:]
    context = error.ctx if isinstance(error, click.UsageError) else None
    return message if context is None else f"{message}; see '{context.command_path} --help'"


def _discard_stdout() -> None:
    try:
        devnull = os.open(os.devnull, os.O_WRONLY)
        os.dup2(devnull, sys.stdout.fileno())
        os.close(devnull)
    except (OSError, ValueError):
        # stdout is no file, as in tests: nothing is flushed at exit either.
        pass
