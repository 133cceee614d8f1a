"""Stage one in the transform encoding: the calibration, its failures, kills and ranks."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from faults.tally import Tally
from numpy.typing import NDArray
from support import experiments, stores
from support.children import apart
from support.experiments import ROWS, VIEWS, contents, document, parsed

from logitstore.pipeline.cache import calibrate, stage
from logitstore.pipeline.cache.stage import cache
from logitstore.pipeline.calibration_rows import drawn, drawn_of_views
from logitstore.pipeline.models.records import Models
from logitstore.pipeline.workspace import Workspace
from logitstore.storage.api import Store, open_store
from logitstore.storage.encodings.transform import Transform
from logitstore.storage.encodings.widths import row_widths
from logitstore.storage.errors import BadLogitsError, SpecMismatch
from logitstore.storage.format.constants import SPEC
from logitstore.storage.integrity.verify import verify
from logitstore.storage.random import philox_permutation

Content = dict[str, Any]
CALIBRATION_ROWS = 100
ENCODING = {"transform": {"max_kl": 1e-2, "rows": CALIBRATION_ROWS, "seed": 3}}
DRAWN = drawn(ROWS, Transform(1e-2, rows=CALIBRATION_ROWS, seed=3))

DRAWN_BY_DEFAULT = drawn(ROWS, Transform(1e-2, rows=CALIBRATION_ROWS))


def with_encoding(encoding: Any, *teachers: Content) -> Content:
    """Return a document of stage one; the teacher "wide" unless others are given."""
    whole = document()
    whole["cache"]["encoding"] = encoding
    chosen = list(teachers) or whole["teacher"][:1]
    return {"transfer_set": whole["transfer_set"], "teacher": chosen, "cache": whole["cache"]}


def captured(content: Content, folder: Path, out: str = "store.zarr") -> Store:
    """Run stage one of a document in a copy of the finished experiment, whose teachers are trained."""
    with mock.patch("os.fsync"):
        cache(
            Workspace(parsed(content, folder), folder / out, Models(folder / "out" / "models"), device="cpu")
        )
    return open_store(folder / out)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the data and trained teachers."""
    return experiments.copy_finished(tmp_path)


@pytest.fixture
def calibrations(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[NDArray[np.float32]]]:
    """The logits that teachers were calibrated with."""
    noted: list[NDArray[np.float32]] = []
    genuine = calibrate.calibration_logits

    def noting(*arguments: Any) -> NDArray[np.float32]:
        noted.append(genuine(*arguments))
        return noted[-1]

    for module in (calibrate, stage):
        monkeypatch.setattr(module, "calibration_logits", noting)
    yield noted


# The draw


def test_the_draw_follows_from_seed_and_size_alone() -> None:
    encoding = Transform(1e-2, rows=20)
    rows = drawn(1000, encoding)
    assert np.array_equal(rows, drawn(1000, encoding))
    assert len(rows) == 20 and (np.diff(rows) > 0).all() and rows[0] >= 0 and rows[-1] < 1000
    assert not np.array_equal(rows, drawn(1000, Transform(1e-2, rows=20, seed=1)))
    assert np.array_equal(drawn(7, encoding), np.arange(7))


def test_all_views_of_a_capture_take_part_in_its_draw() -> None:
    views = drawn_of_views(3, 100, Transform(1e-2, rows=60))
    assert [view for view, _ in views] == [0, 1, 2]
    assert sum(len(rows) for _, rows in views) == 60
    assert all((np.diff(rows) > 0).all() and rows[-1] < 100 for _, rows in views)


# The capture


def test_every_row_is_within_its_budget_and_the_basis_is_of_view_zero(
    folder: Path, calibrations: list[NDArray[np.float32]]
) -> None:
    plain = captured(with_encoding("float32"), folder, "plain.zarr").teachers["wide"]
    store = captured(with_encoding(ENCODING), folder)
    small = store.teachers["wide"]
    for view in range(VIEWS):
        exact, decoded = plain.read(slice(None), view), small.read(slice(None), view)
        for t in (1.0, 2.0, 4.0, 8.0):
            p, q = stores.softmax(exact, t), stores.softmax(decoded, t)
            assert (p * np.log(p / q)).sum(axis=1).max() <= 1e-2
    (logits,) = calibrations
    centred = logits - logits.max(axis=1, keepdims=True)
    assert len(centred) == CALIBRATION_ROWS
    assert np.abs(centred - plain.read(DRAWN, 0)).max() < 1e-4
    # Control: the rows of another view, and other rows, are not these.
    assert np.abs(centred - plain.read(DRAWN, 1)).max() > 1e-2
    assert np.abs(centred - plain.read(slice(CALIBRATION_ROWS), 0)).max() > 1e-2
    assert verify(store.path, deep=True).exit_code == 0


def test_a_capture_that_is_begun_keeps_its_basis(
    folder: Path, calibrations: list[NDArray[np.float32]]
) -> None:
    whole = contents(captured(with_encoding(ENCODING), folder, "whole.zarr").root.path)
    with experiments.interrupted_capture(5):
        captured(with_encoding(ENCODING), folder)
    assert (folder / "store.zarr" / "teachers" / "wide" / SPEC).exists()
    before = len(calibrations)
    assert contents(captured(with_encoding(ENCODING), folder).root.path) == whole
    assert len(calibrations) == before  # not run again


def test_a_basis_whose_files_are_lost_is_made_again(
    folder: Path, calibrations: list[NDArray[np.float32]]
) -> None:
    store = captured(with_encoding(ENCODING), folder)
    whole = contents(store.root.path)
    shutil.rmtree(folder / "store.zarr" / "teachers" / "wide" / "basis")
    assert contents(captured(with_encoding(ENCODING), folder).root.path) == whole
    assert len(calibrations) == 2


def test_another_draw_is_another_capture(folder: Path) -> None:
    captured(with_encoding(ENCODING), folder)
    other = {"transform": {**ENCODING["transform"], "seed": 4}}
    with pytest.raises(SpecMismatch, match=r"encoding\.calibration\.seed"):
        captured(with_encoding(other), folder)


def test_blocks_are_planned_without_a_basis() -> None:
    widths = row_widths(Transform(1e-2, rows=50), 1000)
    assert widths == {"codes": 100, "refine": 1, "error": 8, "escape": 2000}
    assert row_widths(Transform(1e-2, rows=5000), 1000)["codes"] == 2000


def test_a_basis_that_is_large_beside_its_rows_is_warned_of(
    folder: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    captured(with_encoding(ENCODING), folder, "one.zarr")
    assert "its basis takes" not in caplog.text  # control
    monkeypatch.setattr(calibrate, "_LARGE", 0.01)
    captured(with_encoding(ENCODING), folder)
    rows = f"{VIEWS * ROWS} rows and views"
    assert re.search(
        rf"teacher 'wide': its basis takes \d+ bytes, \d+ for each of {rows}, and float16 \d+: with so few rows",
        caplog.text,
    )


# Teachers that cannot be calibrated


def constant(hidden: list[int], *, input_shape: list[int], num_classes: int) -> Any:
    """Return an mlp that gives the same logits for every input."""
    return experiments.after_logits(
        lambda logits, _: logits * 0 + torch.arange(num_classes), hidden, input_shape, num_classes
    )


def masked(hidden: list[int], *, input_shape: list[int], num_classes: int) -> Any:
    """Return an mlp one of whose classes is masked."""

    def change(logits: Any, _: int) -> Any:
        logits[:, 2] = -torch.inf
        return logits

    return experiments.after_logits(change, hidden, input_shape, num_classes)


def nan_for(total: int, hidden: list[int], *, input_shape: list[int], num_classes: int) -> Any:
    """Return an mlp that gives a NaN for the inputs whose numbers add up to `total`."""

    def spoil(_: Any, inputs: Any, logits: Any) -> Any:
        marked = inputs[0].reshape(len(logits), -1).sum(dim=1) == total
        return torch.where(marked[:, None], torch.nan, logits)

    module = experiments.after_logits(
        lambda logits, _: logits, hidden, input_shape=input_shape, num_classes=num_classes
    )
    module.register_forward_hook(spoil)
    return module


MARKED = int(DRAWN[DRAWN >= experiments.BATCH_SIZE][0])
"""A calibration row that is not in the batch of the trial."""


def marked_total(folder: Path) -> int:
    """The numbers of the input of `MARKED`, added up: no row before it has the same."""
    inputs = np.load(folder / "train.npz")["inputs"].reshape(ROWS, -1).sum(axis=1)
    totals = inputs[philox_permutation(ROWS, seed=0, stream=0, counter=0)]
    assert totals[MARKED] not in totals[:MARKED]
    return int(totals[MARKED])


def steep(hidden: list[int], *, input_shape: list[int], num_classes: int) -> Any:
    """Return an mlp of large logits."""
    return experiments.after_logits(lambda logits, _: logits * 1e4, hidden, input_shape, num_classes)


def faulty(folder: Path, factory: str, **arguments: Any) -> Content:
    """Return a teacher of a factory, with weights of a file."""
    from logitstore.pipeline.models.weights import save_weights

    torch.manual_seed(0)
    module = experiments.nan_at_call(0, [5], input_shape=list(experiments.SHAPE), num_classes=4)
    save_weights(module, folder / "faulty.safetensors")
    return {
        "name": "bad",
        "factory": factory,
        "args": {"hidden": [5], **arguments},
        "weights": "faulty.safetensors",
    }


@pytest.mark.parametrize(
    ("factory", "arguments", "where"),
    [
        (f"{__name__}:constant", {}, "teacher 'bad', its calibration rows"),
        (f"{__name__}:masked", {}, "teacher 'bad', row 0 (index"),
        (f"{__name__}:nan_for", {"total": 0}, f"teacher 'bad', view 0, row {MARKED} (index"),
    ],
    ids=["constant", "masked", "nan"],
)
def test_a_teacher_that_cannot_be_calibrated_leaves_nothing_behind(
    folder: Path, factory: str, arguments: Content, where: str, sentence: Any
) -> None:
    before = contents(folder)
    if arguments:
        arguments = {"total": marked_total(folder)}
    bad = faulty(folder, factory, **arguments)
    with pytest.raises(BadLogitsError) as caught:
        captured(with_encoding(ENCODING, bad), folder)
    assert caught.value.where.startswith(where)
    sentence(caught.value)
    assert contents(folder).keys() - before.keys() == {"faulty.safetensors"}


def test_a_budget_beyond_the_reach_of_codes_leaves_nothing_behind(folder: Path, sentence: Any) -> None:
    bad = faulty(folder, f"{__name__}:steep")
    with pytest.raises(BadLogitsError) as caught:
        captured(with_encoding({"transform": {"max_kl": 1e-12, "rows": CALIBRATION_ROWS}}, bad), folder)
    assert caught.value.where.startswith(f"teacher 'bad', view 0, row {DRAWN_BY_DEFAULT[0]} (index")
    sentence(caught.value)
    assert not (folder / "store.zarr").exists()


# The same bytes


def test_killed_between_basis_and_first_block_the_bytes_are_the_same(tmp_path: Path) -> None:
    base = str(experiments.finished())
    report = apart(
        "support.killed_captures:killed",
        base=base,
        folder=str(tmp_path),
        encoding=ENCODING,
        puts=list(range(30, 62)),
    )
    assert (report["statuses"], report["same_twice"]) == ([0, 0], True)
    for point, status, _, resumed, differing in report["results"]:
        assert status == -9, point
        assert (resumed, differing) == (0, []), point
    # Control: they were killed at many moments.
    assert len({left for _, _, left, _, _ in report["results"]}) > 8


@pytest.mark.xdist_group("ranks")
def test_a_rank_that_dies_while_the_basis_is_made_leaves_no_capture(tmp_path: Path, tally: Tally) -> None:
    found = apart(
        "support.capturing_ranks:killed_while_calibrating",
        seconds=300,
        base=str(experiments.finished()),
        work=str(tmp_path),
        encoding=ENCODING,
    )
    harm = []
    for victim, (statuses, left, lines, ended, differing) in enumerate(found):
        assert statuses[victim] == -9
        other = statuses[1 - victim]
        if other not in (70, 75) or [line for line in lines if line and "answers from all ranks" not in line]:
            harm.append(f"rank {1 - victim} ended with {other}: {lines}")
        if left or set(ended) != {0} or differing:
            harm.append(
                f"rank {victim} left {left}; the next run ended with {ended}, other bytes: {differing}"
            )
    tally.reached("kill", len(found), "runs", harm, kills=len(found))


@pytest.mark.xdist_group("ranks")
def test_any_number_of_ranks_makes_the_same_bytes(tmp_path: Path) -> None:
    plan = [[2, victim, share, 3 - victim] for victim in (0, 1) for share in (0.1, 0.5)]
    report = apart(
        "support.capturing_ranks:killed",
        seconds=600,
        base=str(experiments.finished()),
        work=str(tmp_path),
        plan=[*plan, [1, 0, 0.5, 2]],
        encoding=ENCODING,
    )
    for statuses, found in report["whole"].values():
        assert set(statuses) == {0}
        assert found == report["whole"]["1"][1]
    for statuses, _, _, ended, differing in report["killed"]:
        assert -9 in statuses
        assert (set(ended), differing) == ({0}, [])
