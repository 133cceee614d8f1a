"""Signals end a command by one line and the shell's exit code: a training writes a checkpoint, and all ranks stop together."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import pytest
from support import experiments, trainings
from support.children import environment

pytestmark = pytest.mark.xdist_group("ranks")  # one process of the tests at a time starts others
LINE = "logitstore: stopped by {}; finished work is kept, run the same command again to resume"
INTERRUPTED = "logitstore: interrupted; finished work is kept, run the same command again to resume"

COMMAND = """
import sys, time
import click
from logitstore.cli import main as m
@click.command()
def command():
    print("begun", flush=True)
    while True: time.sleep(0.01)
m.LazyGroup.get_command = lambda *a: command
{extra}
sys.argv = ["logitstore", "run"]
m.main()
"""


def started(*command: str, cwd: Path | None = None, **variables: str) -> "subprocess.Popen[str]":
    """Start a process."""
    return subprocess.Popen(
        [sys.executable, *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=cwd,
        env=environment(**variables),
    )


def ended(process: "subprocess.Popen[str]", seconds: float = 60) -> tuple[int, list[str]]:
    """Wait for a process; return its exit code and its lines on stderr."""
    try:
        _, errors = process.communicate(timeout=seconds)
    finally:
        process.kill()
    return process.returncode, [line for line in errors.splitlines() if line]


@pytest.mark.parametrize(
    ("number", "extra", "code", "line"),
    [
        (signal.SIGTERM, "", 143, LINE.format("SIGTERM")),
        (signal.SIGHUP, "", 129, LINE.format("SIGHUP")),
        (signal.SIGINT, "", 130, INTERRUPTED),
        # Negative control: without our handler the system ends the process, without a line.
        (
            signal.SIGTERM,
            "import logitstore.pipeline.runtime.stopping as s; s.handle_signals = lambda: 0",
            -15,
            None,
        ),
    ],
    ids=["TERM", "HUP", "INT", "control"],
)
def test_a_signal_is_a_line_and_a_code(number: int, extra: str, code: int, line: str | None) -> None:
    process = started("-c", COMMAND.format(extra=extra))
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    process.send_signal(number)
    assert ended(process) == (code, [] if line is None else [line])


def test_a_signal_that_nohup_ignores_stays_ignored() -> None:
    process = started(
        "-c", COMMAND.format(extra="import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)")
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    process.send_signal(signal.SIGHUP)
    time.sleep(0.3)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    assert ended(process)[0] == 143


# Trainings

MODULE = """
import time
from logitstore.pipeline.models.networks import mlp

def net(*, input_shape, num_classes):
    module = mlp([6], input_shape=list(input_shape), num_classes=num_classes)
    module.register_forward_pre_hook(lambda *_: time.sleep(0.02))
    return module
"""
EXPERIMENT = """
[transfer_set]
factory = "logitstore.pipeline.datasets:arrays"
args = { file = "train.npz" }

[[teacher]]
name = "wide"
factory = "logitstore.pipeline.models:mlp"
weights = "wide.safetensors"

[[student]]
name = "a"
factory = "slow:net"
teachers = ["wide"]
temperature = 2.0
views = 0
train = { lr = 1e-2, epochs = 1000, batch_size = 32, checkpoint_every = 10 }
"""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Return a folder with a store and a training of minutes."""
    trainings.plain_store(tmp_path / "store.zarr")
    (tmp_path / "slow.py").write_text(MODULE)
    experiments.write_data(tmp_path)
    (tmp_path / "e.toml").write_text(EXPERIMENT)
    return tmp_path


def training(place: Path, **variables: str) -> "subprocess.Popen[str]":
    """Start `train` in a folder."""
    return started("-m", "logitstore", "-q", "train", "e.toml", "store.zarr", cwd=place, **variables)


def steps(place: Path) -> list[int]:
    """Return the steps that have a checkpoint."""
    folder = place / "models" / "students" / "a-seed0.checkpoints"
    return sorted(int(file.stem) for file in folder.glob("*.json"))


def wait_for_checkpoint(place: Path, after: int = 0) -> None:
    """Wait until the training has come to a step that has a checkpoint."""
    deadline = time.monotonic() + 60
    while not any(step > after for step in steps(place)):
        assert time.monotonic() < deadline, "no checkpoint"
        time.sleep(0.05)


def test_a_training_that_is_preempted_writes_a_checkpoint(place: Path) -> None:
    process = training(place)
    wait_for_checkpoint(place)
    time.sleep(0.1)
    before = steps(place)[-1]
    process.send_signal(signal.SIGTERM)
    assert ended(process) == (143, [LINE.format("SIGTERM")])
    last = steps(place)[-1]
    assert last > before
    again = training(place)
    wait_for_checkpoint(place, last)
    again.send_signal(signal.SIGTERM)
    assert ended(again)[0] == 143


def ranks_of(place: Path) -> "list[subprocess.Popen[str]]":
    """Start two ranks."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    world: Mapping[str, str] = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return [training(place, **world, RANK=str(rank), LOCAL_RANK=str(rank)) for rank in range(2)]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_to_one_rank_ends_all_with_its_code_and_one_line(
    place: Path, number: int, code: int
) -> None:
    """Also without an abort of torch, whose threads outlive the group."""
    ranks = ranks_of(place)
    wait_for_checkpoint(place)
    before = steps(place)[-1]
    ranks[1].send_signal(number)
    results = [ended(rank) for rank in ranks]
    assert [result[0] for result in results] == [code, code]
    lines = [line for result in results for line in result[1]]
    assert [line for line in lines if line.startswith("logitstore: ")] == [
        INTERRUPTED if number == signal.SIGINT else LINE.format("SIGTERM")
    ]
    assert not [line for line in lines if re.search("terminate called|Aborted|Traceback", line)]
    if number == signal.SIGTERM:  # they agree on the step, and the first writes its checkpoint
        assert steps(place)[-1] > before


def test_a_closed_stdout_or_stderr_changes_no_exit_code(place: Path) -> None:
    for closed in (">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-"):
        done = subprocess.run(
            ["bash", "-c", f'"$0" -m logitstore verify store.zarr {closed}', sys.executable],
            cwd=place,
            env=environment(),
            check=False,
        )
        assert done.returncode == 0, closed


def test_output_that_cannot_be_written_is_a_code_of_ours(place: Path) -> None:
    """Python would fail once more when it closes stdout, and end with a code of its own."""
    if not os.path.exists("/dev/full"):
        return
    done = subprocess.run(
        ["bash", "-c", '"$0" -m logitstore inspect store.zarr > /dev/full', sys.executable],
        cwd=place,
        env=environment(),
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 75
    assert done.stderr == (
        "logitstore: disk: expected free space, found 0 bytes; free some space and run the same command again\n"
    )
