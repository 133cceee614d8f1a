"""Which options and arguments mean the same in every command?

Each is a decorator. Defaults that an experiment can set are not given here: they come from its file.

    verbosity_options     -v/-q, counted                      (every command; not passed on)
    experiment_argument   EXPERIMENT      experiment: Path
    store_argument        STORE           store: str, a path or URL
    out_option            --out DIR       out: Path | None
    json_option           --json          as_json: bool
    dry_run_option        --dry-run       dry_run: bool
    expect_option         --expect        expect: str | None
    teacher_option        --teacher NAME  teacher: str
    models_option         --models DIR    models: Path | None
    device_option         --device NAME   device: str | None
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click

_Command = TypeVar("_Command", bound=Callable[..., Any])


@dataclass
class Settings:
    """What holds for the whole run; the context's `obj`."""

    verbosity: int = 0
    """Number of -v less number of -q, wherever they stand."""

    @property
    def quiet(self) -> bool:
        """Whether progress is not shown."""
        return self.verbosity < 0


def settings() -> Settings:
    """The settings of the command that runs."""
    return click.get_current_context().find_root().ensure_object(Settings)


def _change_verbosity(sign: int) -> Callable[[click.Context, click.Parameter, int], None]:
    def callback(context: click.Context, parameter: click.Parameter, count: int) -> None:
        found = context.find_root().ensure_object(Settings)
        found.verbosity += sign * count
        if not context.resilient_parsing:
            from .logs import configure_logging

            configure_logging(found.verbosity)

    return callback


def verbosity_options(function: _Command) -> _Command:
    """`-v` and `-q`, any number of times; eager, so that a wrong option beside them knows of them."""
    function = click.option(
        "-q",
        "--quiet",
        count=True,
        is_eager=True,
        expose_value=False,
        callback=_change_verbosity(-1),
        help="Say less: no progress bars; twice: nothing but results and errors.",
    )(function)
    return click.option(
        "-v",
        "--verbose",
        count=True,
        is_eager=True,
        expose_value=False,
        callback=_change_verbosity(1),
        help="Say more; twice: everything, and tracebacks.",
    )(function)


def experiment_argument(function: _Command) -> _Command:
    """The experiment file. That it exists is checked where it is read."""
    return click.argument("experiment", type=click.Path(path_type=Path), metavar="EXPERIMENT")(function)


def store_argument(function: _Command) -> _Command:
    """The store, a path or a URL."""
    return click.argument("store", type=str, metavar="STORE")(function)


def _check_folder(context: click.Context, parameter: click.Parameter, path: Path | None) -> Path | None:
    """Refuse a file where a folder is to be, before anything is computed for it."""
    if path is not None and path.exists() and not path.is_dir():
        from ..storage.errors import ConfigError

        raise ConfigError(
            f"{parameter.opts[0]} {path}",
            expected="a folder, or nothing yet",
            found="a file",
            remedy="choose another name, or move the file away",
        )
    return path


def out_option(function: _Command) -> _Command:
    """The folder that everything is written to."""
    return click.option(
        "--out",
        type=click.Path(path_type=Path),
        metavar="DIR",
        callback=_check_folder,
        help="Folder to write to.",
    )(function)


def json_option(function: _Command) -> _Command:
    """JSON instead of a table."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")(function)


def dry_run_option(function: _Command) -> _Command:
    """Nothing is written."""
    return click.option("--dry-run", is_flag=True, help="Say what would be done, and write nothing.")(
        function
    )


def expect_option(function: _Command) -> _Command:
    """The content that the store must have."""
    return click.option(
        "--expect",
        metavar="sha256:…",
        help="Take the store as it was at this digest; refuse one that never had it.",
    )(function)


def teacher_option(function: _Command) -> _Command:
    """One teacher of the store."""
    return click.option("--teacher", required=True, metavar="NAME", help="Teacher in the store.")(function)


def models_option(function: _Command) -> _Command:
    """Where trained models are kept."""
    return click.option(
        "--models",
        type=click.Path(path_type=Path),
        metavar="DIR",
        callback=_check_folder,
        help="Folder of the trained models; 'models' beside the store by default.",
    )(function)


def device_option(function: _Command) -> _Command:
    """Where networks are computed."""
    return click.option(
        "--device", metavar="NAME", help="cpu, cuda, cuda:1 …; the GPU by default, where there is one."
    )(function)


def examples(*lines: str) -> str:
    """The epilog of a command: calls of it that work as they stand.

    >>> print(examples("logitstore demo --out demo"))
    \b
    Example:
      logitstore demo --out demo
    """
    return "\n".join(["\b", "Example:", *(f"  {line}" for line in lines)])
