"""Which commands are there, and how does one of them run?

1. `COMMANDS` lists them with their one-line summaries: the help of the group needs nothing else.
2. A command is the `command` of the module of its name, imported when it is called or its help is asked for.
3. Whatever a command ends with becomes an exit code and at most one line on stderr: see `errors.py`.
"""

import importlib
import os
import sys
from collections.abc import Sequence
from typing import Any

import click

from .errors import report
from .options import Settings, verbosity_options

COMMANDS = {
    "demo": "The whole pipeline on embedded data, in under a minute.",
    "run": "Every stage of an experiment; what is done is not done again.",
    "plan": "What an experiment will cost, before anything is spent.",
    "cache": "Stage one: run the teachers once, keep their logits.",
    "cluster": "Stage two: find the sets of classes that a teacher confuses.",
    "train": "Stage three: train the students from the store.",
    "combine": "A generalist and its specialists as one teacher in the store.",
    "evaluate": "Errors, likelihood and calibration of teachers and students.",
    "inspect": "What is in a store, without reading a logit.",
    "compress": "A smaller copy of a capture, its error bounded or measured.",
    "verify": "Check every byte of a store, without running a teacher.",
    "repair": "Throw away what is torn, so that it is made again.",
    "doctor": "Is a disk safe for several writers?",
}
"""Name and summary of each command, in the order in which a user meets them."""


OF_ONE_PROCESS = ("demo", "run", "cluster", "combine", "evaluate", "compress", "repair")
"""What every process of a `torchrun` would do all of."""


class LazyGroup(click.Group):
    """A group whose commands are imported one at a time, and which translates what they raise."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names, in the order of the table."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the command's module, or return None where there is no such command."""
        if cmd_name not in COMMANDS:
            return None
        command: object = importlib.import_module(f"{__package__}.commands.{cmd_name}").command
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the listing from the table: importing their modules for their summaries takes seconds."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command; an unknown one names the nearest known one."""
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            import difflib

            close = difflib.get_close_matches(args[0], COMMANDS, n=1)
            hint = f"did you mean '{close[0]}'?" if close else "the commands are " + ", ".join(COMMANDS)
            ctx.fail(f"no such command '{args[0]}'; {hint}")
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; click itself would make 1 of a closed stdout, which `verify` has for corruption."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError as error:
            ctx.exit(report(error, ctx.ensure_object(Settings)))

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        """Run, and leave with the exit code of the error, if there is one. Commands return nothing."""
        settings = extra.setdefault("obj", Settings())
        try:
            code = super().main(
                args,
                prog_name or "logitstore",
                complete_var,
                standalone_mode=False,
                windows_expand_args=windows_expand_args,
                **extra,
            )
            sys.stdout.flush()
        except (Exception, KeyboardInterrupt) as error:
            if not standalone_mode:
                raise
            code = report(error, settings)
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
    stage one    cache     teachers x transfer set -> a store of logits
    stage two    cluster   store -> sets of classes that are confused
    stage three  train     store -> students

    Results go to stdout, logs and progress to stderr. Exit codes: 0 done, 64 wrong usage, 65 bad data,
    70 a bug, 75 try again, 130 interrupted; `verify` has some of its own.
    """
    if context.invoked_subcommand in OF_ONE_PROCESS and "RANK" in os.environ:
        check_alone(context)


def check_alone(context: click.Context) -> None:
    """Refuse a command of one process that `torchrun` has started several of; the first of them says so."""
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
    """Entry of the `logitstore` script."""
    # Threads that spin while they wait take the core that the others need: on two cores of which one is busy,
    # small networks train fifty times slower. Read by OpenMP when torch is imported; a user's own value stands.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    cli()


if __name__ == "__main__":
    main()
