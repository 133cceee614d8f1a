"""Options and arguments that mean the same in every command, as decorators.

A default that an experiment can set is not given here: it comes from the experiment's file.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click

_Command = TypeVar("_Command", bound=Callable[..., Any])


@dataclass
class Settings:
    """Settings of a whole run; the context's `obj`."""

    verbosity: int = 0
    """Number of -v less number of -q, before and after the command's name."""

    @property
    def quiet(self) -> bool:
        """Whether progress is hidden."""
        return self.verbosity < 0


def settings() -> Settings:
    """Return the settings of the running command."""
    return click.get_current_context().find_root().ensure_object(Settings)


def _change_verbosity(context: click.Context, parameter: click.Parameter, count: int) -> None:
    current = context.find_root().ensure_object(Settings)
    current.verbosity += count if parameter.name == "verbose" else -count
    if not context.resilient_parsing:
        from .logs import configure_logging

        configure_logging(current.verbosity)


def verbosity_options(function: _Command) -> _Command:
    """Add `-v` and `-q`, each any number of times. They are eager, so that they hold for a wrong option too."""
    for names, text in (
        (("-q", "--quiet"), "Hide progress; twice: print results and errors alone."),
        (("-v", "--verbose"), "Log more; twice: log everything, with tracebacks."),
    ):
        function = click.option(
            *names, count=True, is_eager=True, expose_value=False, callback=_change_verbosity, help=text
        )(function)
    return function


def _check_folder(context: click.Context, parameter: click.Parameter, path: Path | None) -> Path | None:
    """Refuse a file in the place of a folder, before anything is computed for it."""
    if path is not None and path.exists() and not path.is_dir():
        from ..storage.errors import ConfigError

        raise ConfigError(
            f"{parameter.opts[0]} {path}",
            expected="a folder, or nothing yet",
            found="a file",
            remedy="choose another name, or move the file away",
        )
    return path


def _folder_option(name: str, text: str) -> Callable[[_Command], _Command]:
    kind: Any = click.Path(path_type=Path)
    return click.option(name, type=kind, metavar="DIR", callback=_check_folder, help=text)


experiment_argument = click.argument("experiment", type=click.Path(path_type=Path), metavar="EXPERIMENT")
"""experiment: Path. Its reader checks that the file exists."""
store_argument = click.argument("store", type=str, metavar="STORE")
"""store: str, a path or URL."""
out_option = _folder_option("--out", "Folder to write to.")
"""out: Path | None."""
models_option = _folder_option(
    "--models", "Folder of the trained models; default: 'models' beside the store."
)
"""models: Path | None."""
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables.")
"""as_json: bool."""
dry_run_option = click.option("--dry-run", is_flag=True, help="List what would be done; write nothing.")
"""dry_run: bool."""
expect_option = click.option(
    "--expect", metavar="sha256:…", help="Read the store as it was at this digest; fail if it never had it."
)
"""expect: str | None."""
teacher_option = click.option("--teacher", required=True, metavar="NAME", help="Teacher in the store.")
"""teacher: str."""
device_option = click.option(
    "--device", metavar="NAME", help="cpu, cuda, cuda:1, …; default: the GPU if there is one."
)
"""device: str | None."""


def examples(*lines: str) -> str:
    """Return the epilog of a command: calls of it that run as they stand.

    >>> print(examples("logitstore demo --out demo"))
    \b
    Example:
      logitstore demo --out demo
    """
    return "\n".join(["\b", "Example:", *(f"  {line}" for line in lines)])
