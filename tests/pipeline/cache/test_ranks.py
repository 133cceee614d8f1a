"""Several ranks capture one store: the same bytes by any number of them, killed anywhere, gone on with by any other.

`support.capturing_ranks` forks them, so that a start takes no seconds; one test starts the command by torchrun.
"""

import itertools
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from support import experiments, stores
from support import small_experiment as small
from support.children import apart
from support.torchrun import said, torchrun

from logitstore.pipeline.cache.stage import cache
from logitstore.pipeline.experiment.document import load_experiment
from logitstore.pipeline.workspace import Workspace

pytestmark = pytest.mark.xdist_group("ranks")  # one process of the tests at a time starts others

SHARES = (0.1, 0.5, 0.95)
"""Of the puts of a rank, after which it is killed."""
PLAN = [
    # The last rank, or the first, which keeps what the ranks agree by.
    [ranks, 0 if number % 3 == 2 else ranks - 1, share, ranks % 3 + 1]
    for ranks in (1, 2, 3)
    for number, share in enumerate(SHARES)
]
WHOLE_PLAN = [
    [ranks, (number + going_on) % ranks, share, going_on]
    for ranks, (number, share), going_on in itertools.product((1, 2, 3, 4), enumerate(SHARES), (1, 2, 3, 4))
]


def carried_out(plan: list[Any], work: Path) -> dict[str, Any]:
    """Return the report of captures that were killed as planned."""
    base = str(experiments.finished())
    report: dict[str, Any] = apart(
        "support.capturing_ranks:killed", seconds=850, base=base, work=str(work), plan=plan
    )
    return report


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What became of the plan that is short enough for every run of the tests."""
    return carried_out(PLAN, tmp_path_factory.mktemp("killed"))


def check_killed(report: dict[str, Any], plan: list[Any]) -> None:
    """Whether each was killed, its fellows said one line, and the store became what one rank makes."""
    assert len(report["killed"]) == len(plan)
    for (ranks, victim, *_, going_on), (statuses, lines, _, ended, differing) in zip(
        plan, report["killed"], strict=True
    ):
        assert statuses[victim] == -9
        for rank in set(range(ranks)) - {victim}:
            assert statuses[rank] in (70, 75), statuses
            line = lines[f"said-{rank}"]
            assert not line or "expected answers from all ranks" in line
        assert (ended, differing) == ([0] * going_on, [])


def test_the_bytes_do_not_depend_on_the_number_of_ranks(report: dict[str, Any]) -> None:
    whole = report["whole"]
    assert list(whole) == ["1", "2", "3"]
    for ranks, (statuses, contents) in whole.items():
        assert statuses == [0] * int(ranks)
        assert contents == whole["1"][1]
    assert len(whole["1"][1]) > 200


def test_a_rank_that_is_killed_is_replaced_by_any_other_number(report: dict[str, Any]) -> None:
    check_killed(report, PLAN)


def test_the_kills_hit_the_work_at_its_beginning_middle_and_end(report: dict[str, Any]) -> None:
    """Control: something was left, and not everything."""
    left = [found for *_, found, _, _ in report["killed"]]
    assert min(left) < max(left) / 2
    assert max(left) < len(report["whole"]["1"][1])


@pytest.mark.deep
@pytest.mark.timeout(900)
def test_twelve_kills_gone_on_with_by_four_numbers_of_ranks_each(tmp_path: Path) -> None:
    assert len(WHOLE_PLAN) == 12 * 4
    check_killed(carried_out(WHOLE_PLAN, tmp_path), WHOLE_PLAN)


def test_torchrun_captures_once_and_says_so_once(tmp_path: Path) -> None:
    experiment = small.lay_out(tmp_path)
    place = tmp_path / "store.zarr"
    done = torchrun(2, "-m", "logitstore", "cache", experiment, place, "--device", "cpu")
    assert done.returncode == 0, done.stderr[-3000:]
    assert re.match(r"captured  line  \(\d+\.\d\d% right, \S+ nats a row\)\n\nstore ", done.stdout)
    assert done.stdout.count("captured") == 1
    assert said(done) == []
    alone = tmp_path / "alone.zarr"
    cache(Workspace.of_store(load_experiment(experiment), alone, tmp_path / "models", device="cpu"))
    assert stores.tree(place) == stores.tree(alone)
    shutil.rmtree(alone)


@pytest.mark.deep
def test_a_teacher_that_fails_on_one_rank_stops_all_with_one_line(tmp_path: Path) -> None:
    experiment = small.lay_out(tmp_path)
    nan = 'factory = "faulty:linear"\nargs = { spoilt = "nan" }'
    small.write_experiment(tmp_path, ('factory = "faulty:linear"', nan))
    done = torchrun(2, "-m", "logitstore", "cache", experiment, tmp_path / "store.zarr", "--device", "cpu")
    assert done.returncode != 0
    assert done.stdout == ""
    (line,) = said(done)
    assert line.startswith(
        "logitstore: teacher 'line', view 0, row 250 (index 250 of the transfer set), class 0: expected finite logits"
    )
