"""The commands as the reference shows them: mkdocs-click leaves out examples, and reflows drawn paragraphs."""

import inspect
import re

import click

from logitstore.cli.main import cli as group


def _drawn(text: str) -> str:
    r"""Return a help text in which each paragraph below a `\b` is fenced: click prints it as it stands."""
    return re.sub(r"(?m)^\x08\n((?:.+\n?)+)", lambda found: f"```text\n{found[1].rstrip()}\n```\n", text)


def _example(epilog: str) -> str:
    """Return the commands of an epilog as a block of a shell."""
    lines = [line.strip() for line in epilog.replace("\b", "").splitlines()]
    return "\n".join(["", "```sh", *(line for line in lines if line and line != "Example:"), "```"])


def _shown(command: click.Command) -> click.Command:
    """Give a command a help text in Markdown, with its example."""
    text = _drawn(inspect.cleandoc(command.help or ""))
    command.help = text + ("\n" + _example(command.epilog) if command.epilog else "")
    return command


def documented() -> click.Group:
    """Return the group of all commands, each with its example in its help."""
    context = click.Context(group)
    commands = [group.get_command(context, name) for name in group.list_commands(context)]
    shown = click.Group("logitstore", params=group.params, help=group.help, epilog=group.epilog)
    for command in commands:
        assert command is not None
        shown.add_command(_shown(command))
    _shown(shown)
    return shown


cli = documented()
