"""Laws of the command line that hold for every command."""

import errno
import json
import logging
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
import pytest
from click.testing import CliRunner, Result

from logitstore.cli import main as module
from logitstore.cli import options
from logitstore.cli.main import COMMANDS, cli
from logitstore.cli.printing.progress import LINE_EVERY, Bars, Lines, show_progress
from logitstore.cli.printing.text import print_json, print_records, print_table, print_text
from logitstore.pipeline.runtime.ranks import OtherRankFailed
from logitstore.storage.errors import ConfigError, StorageFull

SHARED = ("cache", "train", "plan", "inspect", "list", "verify", "doctor")
"""Commands that ranks share, or that only read: these need no refusal."""
HEAVY = ("torch", "numpy", "zarr", "dask", "pydantic", "rich", "sklearn")


@pytest.fixture(autouse=True)
def no_progress() -> None:
    """Leave progress as it is, which is shown here."""


def in_python(code: str, *, pipe_to: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run a program text in a fresh interpreter."""
    command = [sys.executable, "-W", "error", "-c", code]
    if pipe_to is None:
        return subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    script = f'"$0" "$@" | {pipe_to}; exit ${{PIPESTATUS[0]}}'
    return subprocess.run(
        ["bash", "-c", script, *command], check=False, capture_output=True, text=True, timeout=60
    )


@pytest.fixture
def invoke(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Result]]:
    """Run the group with a command `run` that does what the test says."""

    def go(body: Callable[[], object], *arguments: str) -> Result:
        @click.command("run", epilog=options.examples("logitstore run a.toml"))
        @options.verbosity_options
        @options.experiment_argument
        @options.json_option
        @options.dry_run_option
        def command(experiment: Path, as_json: bool, dry_run: bool) -> None:
            body()

        monkeypatch.setattr(module.LazyGroup, "get_command", lambda group, context, name: command)
        return CliRunner().invoke(cli, arguments or ("run", "a.toml"))

    yield go
    logging.getLogger("logitstore").setLevel(logging.NOTSET)
    logging.captureWarnings(False)


def raiser(error: BaseException) -> Callable[[], None]:
    def body() -> None:
        raise error

    return body


# Errors


def test_done_is_zero_and_says_nothing(invoke: Callable[..., Result]) -> None:
    result = invoke(lambda: 7)
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "")


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigError("a.toml: lr", expected="a number", found="'x'", remedy="write one"), 64),
        (StorageFull("store.zarr", expected="space", found="none", remedy="make room"), 75),
    ],
)
def test_an_error_of_the_library_is_its_line_and_code(
    invoke: Callable[..., Result], error: Exception, code: int
) -> None:
    result = invoke(raiser(error))
    assert result.exit_code == code
    assert result.stdout == ""
    assert result.stderr == f"logitstore: {error}\n"


def test_a_bug_is_one_line_that_asks_to_report_it(invoke: Callable[..., Result]) -> None:
    result = invoke(raiser(RuntimeError("two\nlines")))
    assert result.exit_code == 70
    assert result.stderr == (
        "logitstore: expected no error, found RuntimeError: two lines; report this bug with the "
        "output of the same command with -vv\n"
    )


@pytest.mark.parametrize(
    "arguments", [("run", "a.toml", "-vv"), ("-v", "run", "-v", "a.toml"), ("-vv", "run", "x")]
)
def test_the_traceback_comes_with_vv_alone(invoke: Callable[..., Result], arguments: tuple[str, ...]) -> None:
    for error in (RuntimeError("oops"), ConfigError("a", expected="b", found="c", remedy="d")):
        loud = invoke(raiser(error), *arguments)
        assert loud.stderr.startswith("Traceback (most recent call last):\n")
        assert loud.stderr.splitlines()[-1].startswith("logitstore: ")
        assert "Traceback" not in invoke(raiser(error), "run", "a.toml", "-v").stderr


def test_a_full_disk_may_be_tried_again(invoke: Callable[..., Result]) -> None:
    result = invoke(raiser(OSError(errno.ENOSPC, "No space left on device", "student.safetensors")))
    assert result.exit_code == 75
    assert result.stderr == (
        "logitstore: student.safetensors: expected free space, found 0 bytes; free some space and "
        "run the same command again\n"
    )


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (
            OSError(errno.EIO, "Input/output error", "a.npz"),
            75,
            "a.npz: expected a working disk, found input/output error; run the same command again",
        ),
        *(
            (
                OSError(number, os.strerror(number), "a.npz"),
                65,
                (
                    f"a.npz: expected a path that can be used, found {os.strerror(number).lower()}; "
                    "correct the path or its permissions"
                ),
            )
            for number in (errno.EACCES, errno.EROFS, errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG)
        ),
        *(
            (
                error,
                75,
                f"memory: expected enough for this command, found {type(error).__name__}: {error}".rstrip(
                    ": "
                )
                + "; free memory, or lower batch_size and workers, and run the same command again",
            )
            for error in (
                MemoryError(),
                MemoryError("Unable to allocate 3 GiB"),
                RuntimeError("DefaultCPUAllocator: can't allocate memory"),
                RuntimeError("can't start new thread"),
                ImportError("failed to map segment: Cannot allocate memory"),
            )
        ),
        # Controls: errors of the program are reported as such.
        (OSError(errno.EBADF, "Bad file descriptor"), 70, None),
        (FileNotFoundError(errno.ENOENT, "No such file or directory"), 70, None),
        (ValueError("can't allocate memory"), 70, None),
    ],
    ids=lambda value: None if isinstance(value, int) else str(value)[:40],
)
def test_a_failure_of_the_system_is_one_line(
    invoke: Callable[..., Result], error: Exception, code: int, line: str | None
) -> None:
    result = invoke(raiser(error))
    assert result.exit_code == code
    assert (result.stderr == f"logitstore: {line}\n") == (line is not None)
    assert ("report this bug" in result.stderr) == (code == 70)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), click.Abort()])
def test_an_interruption(invoke: Callable[..., Result], error: BaseException) -> None:
    result = invoke(raiser(error))
    assert result.exit_code == 130
    assert result.stderr.strip() == (
        "logitstore: interrupted; finished work is kept, run the same command again to resume"
    )


def test_the_error_of_another_rank_is_left_to_it(invoke: Callable[..., Result]) -> None:
    result = invoke(raiser(OtherRankFailed(1, 65)))
    assert (result.exit_code, result.stdout, result.stderr) == (65, "", "")
    # Negative control: an error of this rank is printed.
    assert invoke(raiser(StorageFull("x", expected="a", found="b", remedy="c"))).stderr


def test_a_line_cannot_become_two(capsys: pytest.CaptureFixture[str]) -> None:
    print_text()
    print_text("", "name\nof a store", "\x1b[31mred")
    print_table(["heading\nof a store"], [["a\nb"]], title="title\nof a store")
    lines = capsys.readouterr().out.splitlines()
    assert lines[:3] == ["", "name\\nof a store", "\\x1b[31mred"]
    assert lines[3:] == ["title\\nof a store", "heading\\nof a store", "a\\nb"]


def test_a_table_is_printed_from_its_records(capsys: pytest.CaptureFixture[str]) -> None:
    records = [
        {"name": "wide", "share": 0.5, "rows": 1200},
        {"name": "deep", "share": float("nan"), "rows": None},
    ]
    print_records({"model": "name", "share of rows": "share:.1%", "rows": "rows"}, records)
    assert capsys.readouterr().out.splitlines() == [
        "model  share of rows   rows",
        "wide   50.0%          1,200",
        "deep   —                  —",
    ]


@pytest.mark.parametrize(
    ("given", "expected", "found"),
    [
        ({}, "one of --few, --all-of-them", "no such option"),
        ({"few": 1, "all_of_them": 2}, "one of --few, --all-of-them", "--few and --all-of-them"),
        ({"at": 1}, "one of --few, --all-of-them", "no such option"),
        ({"all_of_them": 2, "at": 1}, "--at with --few alone", "--at with --all-of-them"),
    ],
    ids=["none", "both", "a companion alone", "a companion of the other"],
)
def test_one_of_several_options(given: dict[str, int], expected: str, found: str) -> None:
    kinds, nothing = {"few": ("at",), "all_of_them": ()}, dict.fromkeys(("few", "at", "all_of_them"))
    with pytest.raises(ConfigError) as caught:
        options.choose_one("x", kinds, {**nothing, **given}, required=True)
    assert (caught.value.expected, caught.value.found) == (expected, found)
    assert options.choose_one("x", kinds, {**nothing, "few": 1, "at": 2}) == {"few": 1, "at": 2}
    assert options.choose_one("x", kinds, nothing) == {}


def test_a_command_may_choose_its_code(invoke: Callable[..., Result]) -> None:
    result = invoke(lambda: click.get_current_context().exit(3))
    assert (result.exit_code, result.stderr) == (3, "")


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("run",), "missing argument 'EXPERIMENT'; see 'logitstore run --help'"),
        (("run", "a", "b"), "got unexpected extra argument (b); see 'logitstore run --help'"),
        (
            ("run", "a", "--jsn"),
            "no such option '--jsn'. Did you mean '--json'?; see 'logitstore run --help'",
        ),
        (("runn", "a"), "no such command 'runn'; did you mean 'run'?; see 'logitstore --help'"),
    ],
)
def test_a_wrong_command_line(invoke: Callable[..., Result], arguments: tuple[str, ...], line: str) -> None:
    result = invoke(raiser(AssertionError("not reached")), *arguments)
    assert result.exit_code == 64
    assert result.stdout == ""
    assert result.stderr == f"logitstore: {line}\n"


def test_without_a_command_the_help_goes_to_stderr() -> None:
    result = CliRunner().invoke(cli, [])
    assert result.exit_code == 64
    assert result.stdout == ""
    assert result.stderr.startswith("Usage: logitstore [OPTIONS] COMMAND")


def test_a_reader_that_goes_away_is_no_error() -> None:
    code = (
        "import click; from logitstore.cli import main as m\n"
        "@click.command()\n"
        "def command():\n"
        "    for i in range(100000): click.echo(f'line {i}')\n"
        "m.LazyGroup.get_command = lambda *a: command\n"
        "import sys; sys.argv = ['logitstore', 'run']; m.main()"
    )
    result = in_python(code, pipe_to="head -n 1")
    assert result.stdout == "line 0\n"
    assert result.stderr == ""
    assert result.returncode == 141
    assert in_python(code).returncode == 0


# Help


def test_the_group_lists_every_command_without_importing_any() -> None:
    result = CliRunner().invoke(cli, ["--help"])
    assert result.exit_code == 0
    assert result.stderr == ""
    lines = [line.strip() for line in result.stdout.splitlines()]
    places = [lines.index(f"{name:<{max(map(len, COMMANDS))}}  {text}") for name, text in COMMANDS.items()]
    assert places == sorted(places)


def imported_by(code: str) -> set[str]:
    """Which heavy libraries a program imports."""
    result = in_python(f"{code}\nimport sys\nprint('\\n' + ' '.join(set(sys.modules) & {set(HEAVY)!r}))")
    assert result.returncode == 0, result.stderr
    return set(result.stdout.splitlines()[-1].split())


HELP = """
from logitstore.cli.main import cli
cli(["--help"], standalone_mode=False)
"""


def test_help_is_light() -> None:
    assert imported_by(HELP) == set()


def test_the_guard_of_lightness_can_fail() -> None:
    assert imported_by("import numpy" + HELP) == {"numpy"}


def test_version() -> None:
    result = CliRunner().invoke(cli, ["--version"])
    assert result.exit_code == 0
    assert result.stdout.startswith("logitstore ")


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_with_an_example(name: str) -> None:
    result = CliRunner().invoke(cli, [name, "--help"])
    assert result.exit_code == 0, result.stderr
    assert result.stderr == ""
    assert result.stdout.startswith(f"Usage: logitstore {name} ")
    assert f"Example:\n    logitstore {name}" in result.stdout
    assert "-v, --verbose" in result.stdout
    command = cli.get_command(click.Context(cli), name)
    assert command is not None
    assert command.name == name


# Logs


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ([], ["WARNING", "ERROR"]),
        (["-v"], ["INFO", "WARNING", "ERROR"]),
        (["-vv"], ["DEBUG", "INFO", "WARNING", "ERROR"]),
        (["-q"], ["ERROR"]),
        (["-qq"], []),
        (["-v", "-q"], ["WARNING", "ERROR"]),
    ],
)
def test_how_much_of_the_log(invoke: Callable[..., Result], flags: list[str], expected: list[str]) -> None:
    def body() -> None:
        for level in ("debug", "info", "warning", "error"):
            getattr(logging.getLogger("logitstore.storage"), level)("so it is")

    result = invoke(body, "run", "a.toml", *flags)
    assert result.exit_code == 0
    assert result.stdout == ""
    assert result.stderr == "".join(f"{level}: so it is\n" for level in expected)


# Results


def test_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(
        ["model", "errors", "nll", "seeds"],
        [["wide", 67, 0.03512345, None], ["a-longer-name", 1146, float("nan"), "0 1"]],
        title="MNIST",
    )
    out, err = capsys.readouterr()
    assert err == ""
    assert out.splitlines() == [
        "MNIST",
        "model          errors      nll  seeds",
        "wide               67  0.03512  —",
        "a-longer-name   1,146        —  0 1",
    ]


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    @dataclass
    class Row:
        name: str
        path: Path

    value = {
        "row": Row("é", Path("a/b")),
        "nan": float("nan"),
        "array": np.array([1.5, np.inf]),
        "count": np.int64(3),
        1: (True, None),
    }
    print_json(value)
    out, err = capsys.readouterr()
    assert err == ""
    assert "é" in out
    assert json.loads(out) == {
        "row": {"name": "é", "path": "a/b"},
        "nan": None,
        "array": [1.5, None],
        "count": 3,
        "1": [True, None],
    }


# Progress


class Clock:
    """A clock that the test sets."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def watch_lines(steps: list[tuple[float, str, int, int]], capsys: pytest.CaptureFixture[str]) -> list[str]:
    clock = Clock()
    watch = Lines(clock)
    for time, task, done, total in steps:
        clock.now = float(time)
        watch(task, done, total)
    watch.close()
    out, err = capsys.readouterr()
    assert out == ""
    return err.splitlines()


def test_a_short_task_is_not_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert watch_lines([(0, "wide", 10, 100), (0.9, "wide", 90, 100), (0.99, "wide", 100, 100)], capsys) == []
    assert watch_lines([(50, "wide", 100, 100)], capsys) == []


def test_a_long_task_gets_a_line_now_and_then_and_one_at_its_end(capsys: pytest.CaptureFixture[str]) -> None:
    steps = [(second / 10, "wide", 100 * second, 12_000) for second in range(121)]
    lines = watch_lines(steps, capsys)
    assert lines[0] == "wide: 1,000/12,000 rows, 1,000 rows/s, 11 s left"
    assert lines[-1] == "wide: 12,000/12,000 rows, 1,000 rows/s, took 12 s"
    assert len(lines) == 2 + int(11 / LINE_EVERY)


def test_what_an_earlier_run_did_does_not_count_as_speed(capsys: pytest.CaptureFixture[str]) -> None:
    lines = watch_lines([(0, "wide", 9000, 10_000), (2, "wide", 9020, 10_000)], capsys)
    assert lines == ["wide: 9,020/10,000 rows, 10 rows/s, 1 min 38 s left"]


def test_tasks_do_not_mix(capsys: pytest.CaptureFixture[str]) -> None:
    steps = [(0, "a", 0, 4), (1, "b", 0, 4), (2, "a", 4, 4), (3, "b", 4, 4), (4, "a", 0, 4), (4.5, "a", 4, 4)]
    assert watch_lines(steps, capsys) == [
        "a: 4/4 rows, 2 rows/s, took 2 s",
        "b: 4/4 rows, 2 rows/s, took 2 s",
    ]


def test_bars_are_drawn_on_stderr_and_vanish(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    clock = Clock()
    watch = Bars(clock)
    for run in range(2):
        watch(f"wide-{run}", 0, 100)
        clock.now += 2
        watch(f"wide-{run}", 50, 100, detail="loss 0.5")
        clock.now += 1
        watch(f"wide-{run}", 100, 100)
    watch.close()
    out, err = capsys.readouterr()
    assert out == ""
    assert "wide-0" in err
    assert "wide-1" in err
    assert "50/100 rows, 25 rows/s, 2 s left, loss 0.5" in err
    assert err.endswith("\x1b[2K") or "\x1b[2K" in err.split("wide-1")[-1]


@pytest.mark.parametrize("columns", [60, 80, 120])
def test_a_narrow_terminal_keeps_the_names_of_tasks(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, columns: int
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", str(columns))
    clock, names = Clock(), ["caching conv + plain + wide", "training student small"]
    watch = Bars(clock)
    for name in names:
        watch(name, 0, 1201)
    clock.now += 2
    for name in names:
        watch(name, 1024, 1201, detail="waiting 12 %, loss 0.31, and figures without an end")
    watch._bars.refresh()
    watch.close()
    err = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", capsys.readouterr().err)
    lines = [line for line in re.split("[\r\n]", err) if "1,024" in line]
    assert {name for name in names if any(line.startswith(f"{name} ") for line in lines)} == set(names)
    assert max(map(len, lines)) <= columns and all("1,024/1,201" in line and "…" in line for line in lines)


def test_quiet_shows_nothing(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("logitstore.cli.printing.progress.SHOW_AFTER", 0.0)
    for quiet in (True, False):
        with show_progress(quiet=quiet) as progress:
            progress("wide", 1, 2)
            progress("wide", 2, 2)
        out, err = capsys.readouterr()
        assert out == ""
        assert (err == "") is quiet


def test_settings_reach_a_command(invoke: Callable[..., Result]) -> None:
    seen: list[bool] = []
    invoke(lambda: seen.append(options.settings().quiet), "-q", "run", "a.toml")
    invoke(lambda: seen.append(options.settings().quiet), "run", "a.toml")
    assert seen == [True, False]


def test_the_environment_of_these_tests_is_no_terminal() -> None:
    """Else the lines above would be bars."""
    assert not os.isatty(2) or not sys.stderr.isatty()


@pytest.mark.parametrize("name", [name for name in COMMANDS if name not in SHARED])
def test_every_command_but_these_is_refused_under_torchrun(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Each process would do the whole of it: write the same store, or print everything once a rank."""
    for variable, value in {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "x", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(variable, value)
    result = CliRunner().invoke(cli, [name])
    assert result.exit_code == 64
    assert result.stderr.startswith(f"logitstore: expected one process for '{name}', found 2 of torchrun")


@pytest.mark.parametrize("name", SHARED)
def test_these_commands_may_run_under_torchrun(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Control: their own arguments are looked at."""
    for variable, value in {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "x", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(variable, value)
    result = CliRunner().invoke(cli, [name])
    assert result.exit_code == 64
    assert "missing argument" in result.stderr


@pytest.mark.parametrize(("rank", "said"), [("0", True), ("1", False)])
def test_a_stage_of_one_process_is_refused_under_torchrun(
    monkeypatch: pytest.MonkeyPatch, rank: str, said: bool
) -> None:
    for name, value in {"RANK": rank, "WORLD_SIZE": "2", "MASTER_ADDR": "x", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    result = CliRunner().invoke(cli, ["run", "nowhere.toml"])
    assert result.exit_code == 64
    line = (
        "logitstore: expected one process for 'run', found 2 of torchrun; run this stage without it, and 'cache' "
        "and 'train' with it; see 'logitstore --help'\n"
    )
    assert result.stderr == (line if said else "")
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert "nowhere.toml" in CliRunner().invoke(cli, ["run", "nowhere.toml"]).stderr


@pytest.mark.parametrize(("ranks", "finalised"), [({"RANK": "0"}, False), ({}, True)], ids=["rank", "alone"])
def test_a_rank_leaves_without_finalising_python(ranks: dict[str, str], finalised: bool) -> None:
    """The threads of gloo outlive their group. A process of its own, the control, ends as Python does."""
    code = (
        "import atexit, sys\natexit.register(print, 'finalised')\n"
        "from logitstore.cli.main import main\nsys.argv = ['logitstore', '--version']\nmain()"
    )
    environment = {key: value for key, value in os.environ.items() if key != "RANK"} | ranks
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("logitstore ")
    assert ("finalised" in done.stdout) == finalised
