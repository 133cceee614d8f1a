"""Several processes train one student: as one process would on the same batches, and all of them stop together.

`ranks_child` forks its ranks, once for all comparisons; the command is started by torchrun for the rest.
"""

import json
import socket
import subprocess
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from safetensors.torch import load_file
from support import experiments, ranks_child, trainings
from support.children import apart
from support.ranks_child import INTERRUPTED_AT, SCENARIOS, document, recorded
from support.torchrun import said, torchrun
from support.trainings import as_if_by, curve, interruption, trained

from logitstore.pipeline.runtime.ranks import ALONE, Ranks, joined
from logitstore.pipeline.stream.batch import TorchBatch
from logitstore.pipeline.train.loss import StudentLoss
from logitstore.storage.api import Store, open_store
from logitstore.storage.errors import ConfigError, TransientIOError

pytestmark = pytest.mark.xdist_group("ranks")  # one process of the tests at a time starts others


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with all trainings of two processes, and the stores that they read."""
    folder = tmp_path_factory.mktemp("ranks")
    for name, unlabelled in (("plain", 0), ("unlabelled", 60)):
        trainings.plain_store(folder / "stores" / f"{name}.zarr", unlabelled=unlabelled)
    with told_each_step(), interruption(INTERRUPTED_AT), recorded(folder / "one-two.jsonl"):
        trained(document(), store(folder), folder / "one-two")
    assert apart("support.ranks_child:train_all", folder=str(folder), number=2) == [0, 0]
    return folder


def store(folder: Path, name: str = "plain") -> Store:
    """One of the stores."""
    return open_store(folder / "stores" / f"{name}.zarr")


def told_each_step() -> Any:
    """A line a step."""
    return mock.patch("logitstore.pipeline.trainer.loop.REPORT_EVERY", 1)


@pytest.fixture(autouse=True)
def generator_state() -> Any:
    state = torch.random.get_rng_state()
    yield
    torch.random.set_rng_state(state)


def close(first: Path, second: Path) -> bool:
    """Whether two logs have the same steps, rows and rates, and losses that agree to 1e-5."""
    ours, theirs = curve(first), curve(second)
    assert [line[:4] + line[5:] for line in ours] == [line[:4] + line[5:] for line in theirs]
    return [line[4] for line in ours] == pytest.approx([line[4] for line in theirs], rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("name", SCENARIOS)
def test_two_ranks_have_the_losses_of_one_process_on_the_same_batches(
    folder: Path, tmp_path: Path, name: str
) -> None:
    """Also where the loss is no mean over rows, and where the ranks' batches are uneven."""
    read = store(folder, "unlabelled" if name == "unlabelled" else "plain")
    content = document(**SCENARIOS[name])
    with told_each_step(), as_if_by(2, content, read):
        trained(content, read, tmp_path)
    assert close(folder / "two" / name, tmp_path)
    assert len(curve(tmp_path)) > 4


def test_all_ranks_end_with_the_best_weights(folder: Path) -> None:
    """The first rank validates, the others wait; then all have the weights of the file, and not those of the last epoch."""
    one, other = (json.loads((folder / "validated" / f"weights-{rank}.json").read_text()) for rank in (0, 1))
    assert one == other
    for file, is_kept in (("a-seed0", True), ("a-seed0@last", False)):
        tensors = load_file(folder / "validated" / "students" / f"{file}.safetensors")
        numbers = torch.cat([tensors[name].flatten() for name in sorted(tensors)])
        assert (sorted(numbers.tolist()) == sorted(one)) is is_kept
    told = [line for line in trainings.lines(folder / "validated") if line["event"] == "validation"]
    assert [(line["epoch"], line["rows"], line["best"]) for line in told] == [(1, 30, True), (2, 30, False)]


def test_ranks_that_each_take_their_own_mean_are_found_out(folder: Path, tmp_path: Path) -> None:
    """Negative control: for DIST, the mean of the ranks' own losses is another loss."""
    content = document(**SCENARIOS["dist"])
    genuine = StudentLoss.__call__

    def apart(self: StudentLoss, logits: torch.Tensor, batch: TorchBatch) -> torch.Tensor:
        half = len(batch) // 2
        found = [
            genuine(self, logits[some], part_of(batch, some)) for some in (slice(half), slice(half, None))
        ]
        return (found[0] + found[1]) / 2

    read = store(folder)
    with told_each_step(), as_if_by(2, content, read), mock.patch.object(StudentLoss, "__call__", apart):
        trained(content, read, tmp_path)
    assert not close(folder / "two" / "dist", tmp_path)


def part_of(batch: TorchBatch, rows: slice) -> TorchBatch:
    """Some rows of a batch."""
    assert batch.inputs is not None
    logits = {name: z[rows] for name, z in batch.teacher_logits().items()}
    return TorchBatch(batch.rows[rows], batch.views[rows], batch.inputs[rows], batch.labels[rows], logits)


def rows_of(*files: Path) -> list[int]:
    """All rows that were written down."""
    return [row for file in files for line in file.read_text().splitlines() for row in json.loads(line)]


def test_one_process_goes_on_where_two_were_interrupted(folder: Path, tmp_path: Path) -> None:
    """Every row of the epoch once, and the losses of a training that changed from two to one at this step."""
    read = store(folder)
    with told_each_step(), as_if_by(2, document(), read), interruption(INTERRUPTED_AT):
        trained(document(), read, tmp_path)
    with told_each_step():
        trained(document(), read, tmp_path)
        with recorded(folder / "two-one-rest.jsonl"):
            trained(document(), read, folder / "two-one")
    assert close(folder / "two-one", tmp_path)
    files = [folder / f"two-one-{part}.jsonl" for part in ("0", "1", "rest")]
    assert sorted(rows_of(*files)) == sorted(2 * list(range(experiments.ROWS)))


def test_two_ranks_go_on_where_one_process_was_interrupted(folder: Path, tmp_path: Path) -> None:
    read = store(folder)
    with told_each_step():
        with interruption(INTERRUPTED_AT):
            trained(document(), read, tmp_path)
        with as_if_by(2, document(), read):
            trained(document(), read, tmp_path)
    assert close(folder / "one-two", tmp_path)
    files = [folder / f"one-two{part}.jsonl" for part in ("", "-0", "-1")]
    assert sorted(rows_of(*files)) == sorted(2 * list(range(experiments.ROWS)))


def test_two_ranks_go_on_to_the_same_bytes_with_random_numbers_of_their_own(folder: Path) -> None:
    assert trainings.weights(folder / "again") == trainings.weights(folder / "whole")
    assert not trainings.checkpoints(folder / "again").exists()
    first, second = (json.loads((folder / f"random-{rank}.json").read_text()) for rank in (0, 1))
    assert first[0] != second[0]
    assert first[1] != second[1]


@pytest.mark.parametrize(
    ("rank", "size"),
    [("2", "2"), ("-1", "2"), ("one", "2"), ("0", "many")],
    ids=["above", "negative", "no number", "no size"],
)
def test_a_rank_outside_its_world_is_refused_at_once(
    monkeypatch: pytest.MonkeyPatch, rank: str, size: str
) -> None:
    for name, value in {"RANK": rank, "WORLD_SIZE": size, "MASTER_ADDR": "x", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    with (
        pytest.raises(ConfigError, match="RANK: expected an integer from 0 to WORLD_SIZE - 1, found RANK="),
        joined(),
    ):
        raise AssertionError("joined")


@pytest.mark.parametrize("port", ["0", "65536", "-1", "many", ""])
def test_a_port_that_is_none_is_refused_at_once(monkeypatch: pytest.MonkeyPatch, port: str) -> None:
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "x", "MASTER_PORT": port}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match="MASTER_PORT: expected a port from 1 to 65535, found '"), joined():
        raise AssertionError("joined")


def test_a_port_that_is_taken_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        world = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        for name, value in world.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(ConfigError) as caught, joined():
            raise AssertionError("joined")
    assert str(caught.value) == (
        f"MASTER_PORT: expected a free port, at which the ranks meet, found 127.0.0.1:{port}, which another process uses; "
        "set another MASTER_PORT, or start the processes with `torchrun --standalone`"
    )


def test_ranks_that_do_not_come_are_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody listens at the port: the first rank was never started."""
    monkeypatch.setattr("logitstore.pipeline.runtime.ranks.JOIN_SECONDS", 2.0)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    world = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    for name, value in world.items():
        monkeypatch.setenv(name, value)
    match = rf"expected all ranks at 127\.0\.0\.1:{port} within 2 s, found "
    with pytest.raises(TransientIOError, match=match), joined():
        raise AssertionError("joined")


def test_a_signal_ends_the_wait_for_the_others(tmp_path: Path) -> None:
    """A collective of gloo would be left at its end alone: Python handles no signal in it."""
    statuses = apart("support.ranks_child:signalled", folder=str(tmp_path))
    assert statuses[0] == 143
    assert float((tmp_path / "seconds").read_text()) < 5


def test_a_batch_that_ranks_cannot_share_is_refused() -> None:
    assert [Ranks(1, 4).rows_each(32), ALONE.rows_each(7)] == [8, 7]
    message = (
        r"train\.batch_size: expected a multiple of 3, the number of ranks, found 32; change batch_size, or"
    )
    with pytest.raises(ConfigError, match=message):
        Ranks(0, 3).rows_each(32)


# The command


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an experiment, its module and its store."""
    place = tmp_path_factory.mktemp("command")
    trainings.plain_store(place / "store.zarr")
    (place / "mine.py").write_text(MODULE)
    experiments.write_data(place)
    return place


MODULE = """
import os
import torch
from logitstore.pipeline.models.networks import mlp

def net(fault="", *, input_shape, num_classes):
    module = mlp([6], input_shape=list(input_shape), num_classes=num_classes)
    module.calls = 0

    def hook(*_):
        module.calls += 1
        if fault == "fails on rank 1" and os.environ["RANK"] == "1" and module.calls == 5:  # trials take three
            raise KeyError("my own bug")
        if fault == "is killed on rank 1" and os.environ["RANK"] == "1" and module.calls == 5:  # trials take three
            os.kill(os.getpid(), 9)

    module.register_forward_pre_hook(hook)
    return module
"""

EXPERIMENT = """
[transfer_set]
factory = "logitstore.pipeline.datasets:arrays"
args = {{ file = "train.npz" }}

[[teacher]]
name = "wide"
factory = "logitstore.pipeline.models:mlp"
weights = "wide.safetensors"

[[student]]
name = "a"
factory = "mine:net"
args = {{ fault = "{fault}" }}
teachers = ["wide"]
temperature = 2.0
views = 0
train = {{ lr = 1e-2, epochs = 2, batch_size = {batch_size}, checkpoint_every = 2 }}
"""


def command(
    place: Path, name: str, fault: str = "", batch_size: int = 32
) -> subprocess.CompletedProcess[str]:
    """`logitstore train` on two ranks."""
    file = place / f"{name}.toml"
    file.write_text(EXPERIMENT.format(fault=fault, batch_size=batch_size))
    return torchrun(2, "-m", "logitstore", "train", file, place / "store.zarr", "--models", place / name)


def test_the_command_trains_once_and_says_so_once(place: Path) -> None:
    done = command(place, "fine")
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout == f"trained  {place}/fine/students/a-seed0.safetensors\n"
    assert said(done) == []
    names = sorted(path.name for path in (place / "fine" / "students").iterdir())
    assert names == ["a-seed0.json", "a-seed0.metrics.jsonl", "a-seed0.safetensors"]


@pytest.mark.parametrize(
    ("fault", "batch_size", "line"),
    [
        pytest.param(
            "",
            31,
            "train.batch_size: expected a multiple of 2, the number of ranks, found 31",
            marks=pytest.mark.deep,
            id="on both",
        ),
        pytest.param(
            "fails on rank 1",
            32,
            "training student a-seed0: expected logits of shape (batch, classes), found KeyError: 'my own bug'",
            id="on one",
        ),
    ],
)
def test_all_ranks_stop_together_with_one_line(place: Path, fault: str, batch_size: int, line: str) -> None:
    done = command(place, f"faulty-{batch_size}", fault, batch_size)
    assert done.returncode != 0
    assert done.stdout == ""
    (only,) = said(done)
    assert only.startswith(f"logitstore: {line}")


@pytest.mark.deep
def test_a_rank_that_is_killed_ends_the_others_and_the_next_start_goes_on(place: Path) -> None:
    done = command(place, "killed", "is killed on rank 1")
    assert done.returncode != 0
    # torchrun may end the survivor before it has noticed.
    assert len(said(done)) <= 1
    assert all("expected answers from all ranks" in line for line in said(done))
    assert any((place / "killed" / "students" / "a-seed0.checkpoints").glob("*.json"))


@pytest.mark.deep
def test_a_rank_that_hangs_is_not_waited_for_longer_than_was_said(tmp_path: Path) -> None:
    done = torchrun(2, ranks_child.__file__, tmp_path, timeout=100)
    assert done.returncode != 0
    assert (
        (tmp_path / "said")
        .read_text()
        .startswith("rank 0 of 2: expected answers from all ranks, found no answer")
    )
