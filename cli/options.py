"""Options and arguments that mean the same in every command, as decorators.

A default that an experiment can set is not given here: it comes from the experiment's file.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from ..storage.backends.remote import Access

READING = frozenset({"inspect", "list", "verify"})
"""Commands that need no more of the system than to read a store."""
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


def subcommand(name: str, *calls: str) -> Callable[[Callable[..., Any]], click.Command]:
    """Declare a command with `-v` and `-q`. calls: examples of it, which run as they stand."""
    declare = click.command(name, epilog=examples(*calls))
    return lambda function: declare(verbosity_options(function if name in READING else _writing(function)))


def _writing(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a command that is refused on a system that does not write stores."""

    @functools.wraps(function)
    def call(*arguments: Any, **options: Any) -> Any:
        from ..storage.backends.system import check_writes

        check_writes(f"logitstore {click.get_current_context().info_name}")
        return function(*arguments, **options)

    return call


def examples(*lines: str) -> str:
    """Return the epilog of a command: calls of it that run as they stand.

    >>> print(examples("logitstore demo --out demo"))
    \b
    Example:
      logitstore demo --out demo
    """
    return "\n".join(["\b", "Example:", *(f"  {line}" for line in lines)])


def choose_one(
    command: str, kinds: Mapping[str, Sequence[str]], options: Mapping[str, Any], *, required: bool = False
) -> dict[str, Any]:
    """Return the given options: one of `kinds`, or none unless `required`, and those that go with it.

    kinds: names of the alternatives, each with those that go with it. options: values by name, None where not given.
    Raises ConfigError.
    """
    from ..storage.errors import ConfigError

    given = {key: value for key, value in options.items() if value is not None}
    flags = {key: f"--{key.replace('_', '-')}" for key in options}
    chosen = [kind for kind in kinds if kind in given]
    if len(chosen) > 1 or (required and not chosen):
        raise ConfigError(
            command,
            expected=f"one of {', '.join(flags[kind] for kind in kinds)}",
            found=" and ".join(flags[kind] for kind in chosen) or "no such option",
            remedy="give one of them",
        )
    for kind, companions in kinds.items():
        for key in [key for key in companions if key in given and kind not in chosen]:
            other = f"with {flags[chosen[0]]}" if chosen else f"without {flags[kind]}"
            raise ConfigError(
                f"{command} {flags[key]}",
                expected=f"{flags[key]} with {flags[kind]} alone",
                found=f"{flags[key]} {other}",
                remedy=f"remove {flags[key]}",
            )
    return given


TRANSFORM_OPTIONS = ("temperatures", "calibration_rows", "calibration_seed")
"""Options that refine --transform-kl."""


def transform_named(command: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return an encoding of given options, with `transform_kl` and those of `TRANSFORM_OPTIONS` as an experiment's table.

    >>> transform_named("compress", {"transform_kl": 1e-2, "temperatures": "1,4"})
    {'transform': {'max_kl': 0.01, 'temperatures': [1.0, 4.0]}}
    >>> transform_named("compress", {"transform_kl": 1e-2, "calibration_rows": 500, "calibration_seed": 1})
    {'transform': {'max_kl': 0.01, 'rows': 500, 'seed': 1}}
    >>> transform_named("compress", {"max_kl": 1e-2})
    {'max_kl': 0.01}

    Raises ConfigError for temperatures that are no numbers.
    """
    from ..storage.errors import ConfigError

    if "transform_kl" not in given:
        return dict(given)
    table: dict[str, Any] = {"max_kl": given["transform_kl"]}
    if (temperatures := given.get("temperatures")) is not None:
        try:
            table["temperatures"] = [float(t) for t in temperatures.split(",")]
        except ValueError:
            raise ConfigError(
                f"{command} --temperatures",
                expected="numbers with commas between them",
                found=repr(temperatures)[:80],
                remedy="write --temperatures 1,2,4,8",
            ) from None
    for key in ("rows", "seed"):
        if (number := given.get(f"calibration_{key}")) is not None:
            table[key] = number
    return {"transform": table}


def _check_folder(context: click.Context, parameter: click.Parameter, text: str | None) -> Path | None:
    """Return a local folder. Refuses a file in its place, and a URL, before anything is computed for it."""
    if text is None:
        return None
    from ..storage.backends.local import local_path
    from ..storage.errors import ConfigError

    try:
        path = local_path(text)
    except ConfigError as error:
        raise ConfigError(
            f"{parameter.opts[0]} {error.where}",
            expected="a local folder",
            found="a URL",
            remedy="name a folder of this machine; stores alone lie in buckets",
        ) from None
    try:
        found = "a file" if path.exists() and not path.is_dir() else ""
    except OSError as error:  # a name that is too long
        found = (error.strerror or type(error).__name__).lower()
    if found:
        from ..storage.errors import ConfigError

        raise ConfigError(
            f"{parameter.opts[0]} {str(path)[:200]}",
            expected="a folder, or nothing yet",
            found=found,
            remedy="choose another name, or move the file away",
        )
    return path


def _folder_option(name: str, text: str) -> Callable[[_Command], _Command]:
    # No `click.Path`: of s3://bucket it leaves one slash.
    return click.option(name, metavar="DIR", callback=_check_folder, help=text)


experiment_argument = click.argument("experiment", type=click.Path(path_type=Path), metavar="EXPERIMENT")
"""experiment: Path. Its reader checks that the file exists."""
store_argument = click.argument("store", type=str, metavar="STORE")
"""store: str, a path or URL."""
out_option = _folder_option("--out", "Folder to write to.")
"""out: Path | None."""


def _check_out(context: click.Context, parameter: click.Parameter, out: str | None) -> PurePath | None:
    """Return a folder, or the `Address` of a URL."""
    from ..storage.backends.remote import path_of

    if out is None:
        return None
    place = path_of(out)
    return _check_folder(context, parameter, out) if isinstance(place, Path) else place


out_or_url_option = click.option(
    "--out",
    metavar="DIR",
    callback=_check_out,
    help="Folder to write to; or a URL, for the store alone: networks and scores then go to --models.",
)
"""out: PurePath | None, a Path or an `Address`."""
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
follow_links_option = click.option(
    "--follow-links",
    is_flag=True,
    help="Read files that are links, as Hugging Face's cache, DVC and git-annex lay them; all bytes are checked.",
)
"""follow_links: bool."""


def cache_options(function: _Command) -> _Command:
    """Add `--cache`, `--cache-size` and `--no-cache`, for `access_of_options`."""
    for option in (
        click.option("--no-cache", is_flag=True, help="Keep no shards of a remote store on this disk."),
        click.option(
            "--cache-size",
            metavar="BYTES",
            help="Most bytes of those shards, such as 200GB; default: that of LOGITSTORE_CACHE_SIZE, else 32GiB.",
        ),
        click.option(
            "--cache",
            metavar="DIR",
            callback=_check_folder,
            help="Folder for shards of a remote store; default: that of LOGITSTORE_CACHE, else the user's cache.",
        ),
    ):
        function = option(function)
    return function


def access_of_options(
    cache: Path | None, cache_size: str | None, no_cache: bool, follow_links: bool = False
) -> "Access":
    """Return the way to a store that the options of `cache_options` and `follow_links_option` give. Raises ConfigError."""
    from ..storage.backends.remote import access_of
    from ..storage.errors import ConfigError

    if no_cache and (cache is not None or cache_size is not None):
        raise ConfigError(
            "--no-cache",
            expected="--no-cache alone, or a cache",
            found=f"--no-cache with {'--cache' if cache is not None else '--cache-size'}",
            remedy="remove one of them",
        )
    return access_of(None, False if no_cache else cache, cache_size, follow_links)


teacher_option = click.option("--teacher", required=True, metavar="NAME", help="Teacher in the store.")
"""teacher: str."""
captures_option = click.option(
    "--teacher",
    "teachers",
    multiple=True,
    metavar="NAME",
    help="Copy this capture and the samples alone. May be repeated; default: every part.",
)
"""teachers: tuple[str, ...]."""
device_option = click.option(
    "--device", metavar="NAME", help="cpu, cuda, cuda:1, …; default: the GPU if there is one."
)
"""device: str | None."""
min_temperature_option = click.option(
    "--min-temperature",
    type=float,
    metavar="T",
    help="Lowest temperature at which --max-kl holds; 1 by default.",
)
"""min_temperature: float | None."""
transform_kl_option = click.option(
    "--transform-kl",
    type=float,
    metavar="NATS",
    help="Maximum KL of every row at --temperatures, by a transform: the fewest bytes for 100 classes or more.",
)
"""transform_kl: float | None."""
temperatures_option = click.option(
    "--temperatures",
    metavar="T,T,…",
    help="Temperatures at which --transform-kl holds; 1,2,4,8 by default.",
)
"""temperatures: str | None, for `transform_named`."""
calibration_rows_option = click.option(
    "--calibration-rows",
    type=int,
    metavar="N",
    help="Rows that are drawn for the basis of --transform-kl; 2048 by default. They decide about bytes alone.",
)
"""calibration_rows: int | None, for `transform_named`."""
calibration_seed_option = click.option(
    "--calibration-seed", type=int, metavar="N", help="Seed of that draw; 0 by default."
)
"""calibration_seed: int | None, for `transform_named`."""
reuse_option = click.option(
    "--reuse",
    multiple=True,
    metavar="OLD_STORE",
    help="Take rows of an earlier store, path or URL, where the same teacher saw the same input. May be repeated.",
)
"""reuse: tuple[str, ...]."""
new_name_option = click.option(
    "--name", required=True, metavar="NEW", help="Name of the new capture in the store."
)
"""name: str."""


def scheduler_option(text: str) -> Callable[[_Command], _Command]:
    """Add `--scheduler`, scheduler: str | None. text: the help, the work that its workers do."""
    return click.option("--scheduler", metavar="tcp://…", help=text)
