"""The group of all commands, and its summaries.

A command is the `command` of the module of its name, imported when it is called or its help is printed.
`errors.py` turns each error into an exit code and at most one line on stderr.
"""

import importlib
import os
import sys
from collections.abc import Callable
from typing import Any

import click

from .errors import discard_output, open_closed_streams, report
from .options import Settings, verbosity_options
from .printing.encodings import make_printable

COMMANDS = {
    "demo": "Run the whole pipeline on embedded data, in under a minute.",
    "run": "Run every stage of an experiment; finished work is skipped.",
    "plan": "Estimate the cost of an experiment before anything is spent.",
    "cache": "Stage one: run the teachers once and keep their logits.",
    "cluster": "Stage two: find the sets of classes that a teacher confuses.",
    "train": "Stage three: train the students from the store.",
    "combine": "Combine a generalist and its specialists into one teacher.",
    "evaluate": "Print errors, likelihood and calibration of teachers and students.",
    "inspect": "List the contents of a store without reading a logit.",
    "compress": "Write a smaller copy of a capture, its error bounded or measured.",
    "copy": "Copy a store, or some of its captures, to another place.",
    "merge": "Add to a store the parts of another copy of it.",
    "concat": "Put the rows of several stores into one.",
    "rm": "Remove a capture or a clustering from a store.",
    "export": "Write a capture to a parquet, safetensors or npy file.",
    "import": "Seal logits that lie in plain files as a capture.",
    "list": "List the stores under a folder or a URL.",
    "card": "Write STORE.md, the card of a store for people, again.",
    "verify": "Check every byte of a store without running a teacher.",
    "repair": "Remove damaged parts of a store, so that they are made again.",
    "doctor": "Test whether a disk is safe for several writers.",
}
"""Name and summary of each command, in the order of a user's first steps."""
_MODULES = {"import": "import_files"}
"""Modules of commands whose names no module can have."""
OF_ONE_PROCESS = (
    "demo",
    "run",
    "cluster",
    "combine",
    "evaluate",
    "compress",
    "copy",
    "merge",
    "concat",
    "rm",
    "export",
    "import",
    "card",
    "repair",
)
"""Commands that every process of a `torchrun` would run as a whole."""


class LazyGroup(click.Group):
    """A group that imports a command when it is needed, and reports its errors."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names, in the order of the table."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command; return None for an unknown name."""
        if cmd_name not in COMMANDS:
            return None
        module = _MODULES.get(cmd_name, cmd_name)
        command: object = importlib.import_module(f"{__package__}.commands.{module}").command
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the summaries of the table: those of the commands would take seconds to import."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command; the error for an unknown name suggests the nearest known one."""
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            import difflib

            close = difflib.get_close_matches(args[0], COMMANDS, n=1)
            hint = f"did you mean '{close[0]}'?" if close else "the commands are " + ", ".join(COMMANDS)
            ctx.fail(f"no such command '{args[0]}'; {hint}")
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command. Click would exit with 1 for a closed stdout, which means corruption in `verify`."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError as error:
            ctx.exit(report(error, ctx.ensure_object(Settings)))

    def main(self, *args: Any, standalone_mode: bool = True, **extra: Any) -> Any:
        """Run, and exit with the code of the error, if there is one. Commands return nothing."""
        make_printable()
        settings = extra.setdefault("obj", Settings())
        extra["prog_name"] = extra.get("prog_name") or "logitstore"
        run: Callable[..., Any] = super().main
        try:
            code = run(*args, standalone_mode=False, **extra)
            sys.stdout.flush()
        except (Exception, KeyboardInterrupt) as error:
            if not standalone_mode:
                raise
            code = report(error, settings)
            try:
                sys.stdout.flush()
            except OSError:  # Python would fail at its end, with a code of its own
                discard_output()
        if not standalone_mode:
            return code
        # click returns the code of `ctx.exit(code)`.
        sys.exit(code if isinstance(code, int) else 0)


@click.group(
    "logitstore",
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="\b\nExample:\n  logitstore demo\n  logitstore run experiments/mnist.toml --out mnist\n"
    "  logitstore inspect mnist/store.zarr",
)
@click.version_option(package_name="logitstore", message="%(prog)s %(version)s")
@verbosity_options
@click.pass_context
def cli(context: click.Context) -> None:
    """Distil large networks into small ones through a sealed store of the teachers' logits.

    \b
    stage one    cache     teachers x transfer set -> store of logits
    stage two    cluster   store -> sets of confusable classes
    stage three  train     store -> students

    Results go to stdout, logs and progress to stderr. Exit codes: 0 done, 64 wrong usage, 65 bad data,
    70 bug, 75 try again, 130 interrupted, 143 stopped; `verify` and `doctor` have more.
    """
    if context.invoked_subcommand in OF_ONE_PROCESS and "RANK" in os.environ:
        check_alone(context)


def check_alone(context: click.Context) -> None:
    """Refuse a command of one process under `torchrun`; rank 0 prints the error."""
    from ..pipeline.runtime.ranks import are_several

    if not are_several():
        return
    if os.environ["RANK"] != "0":
        context.exit(64)
    raise click.UsageError(
        f"expected one process for '{context.invoked_subcommand}', found {os.environ['WORLD_SIZE']} of torchrun; "
        "run this stage without it, and 'cache' and 'train' with it",
        context,
    )


def main() -> None:
    """Run the `logitstore` script."""
    open_closed_streams()
    # Threads that spin while they wait take the core that others need: on two cores, one of them busy, small
    # networks train fifty times slower. OpenMP reads this when torch is imported; a user's own value stands.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from ..pipeline.runtime.stopping import handle_signals

    handle_signals()
    try:
        try:
            cli()
        except KeyboardInterrupt as error:  # before click looks for it, or after
            sys.exit(report(error, Settings()))
    except SystemExit as leaving:
        has_threads = "RANK" in os.environ or "obstore" in sys.modules
        if not has_threads or not isinstance(leaving.code, int | None):
            raise
        # Threads of gloo outlive their process group, those of obstore a request that was given up. Python ends a thread
        # that asks for its lock while it finalises, and the process then aborts. So it leaves without finalising: its
        # files are closed by now.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(leaving.code or 0)


if __name__ == "__main__":
    main()
