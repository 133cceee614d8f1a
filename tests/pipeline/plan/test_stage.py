"""A plan: it estimates every file, every byte and the KL of `cache`, and lists all unknowns."""

import json
import math
import re
import shutil
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st
from support import experiments, special
from support import small_experiment as small

import logitstore
from logitstore.cli.main import cli
from logitstore.pipeline.cache.stage import cache
from logitstore.pipeline.cache.todo import plan_grid
from logitstore.pipeline.compress.stage import compress
from logitstore.pipeline.experiment.document import Experiment, load_experiment
from logitstore.pipeline.models.records import Models
from logitstore.pipeline.plan.encodings import try_encoding
from logitstore.pipeline.plan.sample import TeacherSample, modelled_logits, spread_rows
from logitstore.pipeline.plan.stage import EncodingPlan, Plan, count_passes, live_passes, plan
from logitstore.pipeline.specialists.stage import make_specialists
from logitstore.pipeline.transfer import TransferRows
from logitstore.pipeline.workspace import Workspace
from logitstore.storage.backends.local import Folder
from logitstore.storage.encodings.divergence import divergence
from logitstore.storage.encodings.error_budget import ErrorBudget
from logitstore.storage.encodings.feature_logits import FeatureLogits, LinearHead
from logitstore.storage.encodings.named import encoding_named
from logitstore.storage.encodings.transform import Transform
from logitstore.storage.errors import BadDataError, BadLogitsError, ConfigError, SpecMismatch
from logitstore.storage.format.constants import TEMPERATURES
from logitstore.storage.format.grid import Grid
from logitstore.storage.parts.footprint import capture_footprint

ENCODINGS: list[Any] = ["float16", "float32", {"max_kl": 1e-3}, {"max_kl": 1e-2, "min_temperature": 2.0}]
ENCODINGS += [{"top_k": 2}]

PACKED = ("logits", "index")
"""Arrays behind a codec, but for float16 and float32."""

MORE_MODULE = """

class Sleepy(Linear):
    def forward(self, inputs):
        import time

        time.sleep(0.02)
        return super().forward(inputs)


def sleepy(num_classes):
    return Sleepy(num_classes, "0")


class Huge(Linear):
    def forward(self, inputs):
        return 1e6 * super().forward(inputs)


def huge(num_classes):
    return Huge(num_classes, "0")


def named(file):
    from pathlib import Path

    examples = Examples(Path(__file__).parent / file, None)
    examples.ids = [f"row {i}" for i in range(len(examples))]
    return examples
"""

SPECIALISTS = """
[cluster]
teacher = "line"
clusters = 2
classes_per_cluster = 2

[specialists]
train = { lr = 1e-2, epochs = 1, batch_size = 64 }

[combine]
"""

TRAINED = (
    'weights = "line.safetensors"',
    "train = { lr = 1e-2, epochs = 1, batch_size = 64 }",
)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to be in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def lay_out(folder: Path, *changes: tuple[str, str], more: str = "") -> Path:
    """The small experiment with some of its text changed; its path."""
    small.lay_out(folder)
    (folder / "faulty.py").write_text(small.MODULE + MORE_MODULE)
    return small.write_experiment(folder, *changes, more=more)


def made(path: Path, out: Path, **settings: Any) -> Plan:
    """The plan of an experiment file that would be run into `out`."""
    return plan(
        load_experiment(path), out / "store.zarr", Models(out / "models"), **{"device": "cpu", **settings}
    )


def with_views(encoding: Any) -> tuple[Experiment, Models]:
    """The experiment of three views and two teachers, which are trained already."""
    content = experiments.document()
    content["cache"]["encoding"] = encoding
    done = experiments.finished()
    return experiments.parsed(content, done), Models(done / "out" / "models")


def array_bytes(store: Path, teacher: str) -> dict[str, int]:
    """Bytes of the shards of each array of a capture."""
    part = store / "teachers" / teacher
    found = {
        array.name: sum(file.stat().st_size for file in array.glob("c.*"))
        for array in part.iterdir()
        if (array / "zarr.json").exists()
    }
    del found["classes"]
    return found


def check_foretold(planned: Plan, store: Path) -> None:
    """Compare a plan whose sample was whole with the store that came of it."""
    there = [file for file in store.rglob("*") if file.is_file()]
    assert planned.own.files == len(there)
    assert planned.own.bytes == pytest.approx(sum(file.stat().st_size for file in there), rel=0.01, abs=1024)
    opened = logitstore.open_store(store)
    assert planned.own.block_rows == opened.block_rows
    for capture in planned.own.captures:
        there = array_bytes(store, capture.teacher)
        assert capture.arrays.keys() == there.keys()
        for name, size in there.items():  # what a codec makes of so few rows follows from where they are cut
            packed = name in PACKED and "float" not in planned.own.name
            assert capture.arrays[name] == (pytest.approx(size, rel=0.01, abs=256) if packed else size), name
        theirs = opened.teachers[capture.teacher]
        if "error" not in capture.arrays:
            continue
        kl = np.concatenate([theirs.divergence(view=view) for view in range(theirs.num_views)])
        assert capture.kl_max == tuple(kl.max(axis=0))
        assert capture.kl_mean == pytest.approx(kl.mean(axis=0), rel=1e-12)


# Against what is then written


@pytest.mark.parametrize("encoding", ENCODINGS, ids=str)
def test_files_bytes_and_divergence_are_those_of_the_store_that_is_then_made(
    encoding: Any, here: Path
) -> None:
    experiment, models = with_views(encoding)
    planned = plan(experiment, here / "store.zarr", models, device="cpu")
    assert planned.sample_rows == experiments.VIEWS * experiments.ROWS  # all there are
    with mock.patch("os.fsync"):
        cache(Workspace(experiment, here / "store.zarr", models, device="cpu"))
    check_foretold(planned, here / "store.zarr")


@pytest.mark.parametrize("inputs", ["store_inputs = true", "store_inputs = false"])
def test_it_is_so_without_inputs_and_with_ids_too(inputs: str, here: Path) -> None:
    changes = [
        ("logitstore.pipeline.datasets:arrays", "faulty:named"),
        ('order = "as_is"', inputs),
        ("block_rows = 64", "encoding = { max_kl = 1e-2 }"),
    ]
    path = lay_out(here / "files", *changes)
    planned = made(path, here)
    with mock.patch("os.fsync"):
        cache(Workspace.of_store(load_experiment(path), here / "store.zarr", here / "models", device="cpu"))
    check_foretold(planned, here / "store.zarr")
    assert planned.input_bytes == (16 if "true" in inputs else 0)


def test_float16_is_as_far_from_the_teacher_as_its_plan_says(here: Path) -> None:
    experiment, models = with_views("float16")
    planned = plan(experiment, here / "a", models, device="cpu")
    exact, _ = with_views("float32")
    with mock.patch("os.fsync"):
        cache(Workspace(experiment, here / "a", models, device="cpu"))
        cache(Workspace(exact, here / "b", models, device="cpu"))
    rounded, whole = (logitstore.open_store(here / name).teachers["deep"] for name in "ab")
    views = range(experiments.VIEWS)
    given, kept = (np.concatenate([c.read(slice(None), view) for view in views]) for c in (whole, rounded))
    deep = planned.own.captures[1]
    assert deep.teacher == "deep"
    assert deep.kl_max is not None and deep.kl_mean is not None
    for number, temperature in enumerate(TEMPERATURES):
        kl = divergence(given, kept, temperature)
        assert deep.kl_max[number] == pytest.approx(kl.max(), rel=1e-6)
        assert deep.kl_mean[number] == pytest.approx(kl.mean(), rel=1e-6)
    assert named(planned, "float32").kl_max == (0.0,) * 5


@pytest.mark.parametrize("encoding", ["float16", "float32"])
def test_specialists_and_their_combination_take_the_bytes_that_are_foretold(
    here: Path, encoding: str
) -> None:
    field = special.Field(special.grounds(here), special.content() | {"combine": {"encoding": encoding}})
    before = plan(field.experiment, field.store.path, field.models, device="cpu")
    with mock.patch("os.fsync"):
        make_specialists(field.work)
    found = [
        sum(array_bytes(here / "out" / "store.zarr", name).values())
        for name in ("pairs-0", "pairs-1", "combined")
    ]
    assert (before.specialists, before.specialist_bytes) == (3, sum(found))
    assert len(set(found)) == 2  # two of three columns, one of four


def test_a_sample_of_some_rows_has_their_divergence(here: Path) -> None:
    experiment, models = with_views({"max_kl": 1e-3})
    planned = plan(experiment, here / "store.zarr", models, device="cpu", sample_rows=60)
    with mock.patch("os.fsync"):
        cache(Workspace(experiment, here / "store.zarr", models, device="cpu"))
    sample = spread_rows(experiments.ROWS, experiments.VIEWS, 60)
    assert planned.sample_rows == len(sample) == 60
    capture = logitstore.open_store(here / "store.zarr").teachers["wide"]
    kl = np.concatenate(
        [capture.divergence(sample.rows[sample.views == view], view) for view in range(experiments.VIEWS)]
    )
    wide = planned.own.captures[0]
    # Other batches: the last digits of a logit may be others.
    assert wide.kl_max == pytest.approx(kl.max(axis=0), rel=0.01)
    assert wide.kl_mean == pytest.approx(kl.mean(axis=0), rel=0.01)


@pytest.mark.parametrize(
    ("rows", "classes", "block_rows", "encoding"),
    [
        (12_000, 100, 2048, ErrorBudget(1e-3)),
        (12_000, 100, 2048, ErrorBudget(1e-2, dtype="uint8")),
        (12_000, 100, 1024, encoding_named({"top_k": 16})),
        (9_000, 10, 65_536, ErrorBudget(1e-3)),  # a chunk is longer than the sample
    ],
    ids=str,
)
def test_2048_rows_tell_the_bytes_of_all_within_one_per_cent(
    rows: int, classes: int, block_rows: int, encoding: Any, here: Path
) -> None:
    logits = modelled_logits(rows, classes)
    with mock.patch("os.fsync"):
        store = logitstore.create_store(
            here / "store.zarr",
            num_rows=rows,
            num_classes=classes,
            digests=np.arange(rows, dtype=np.uint64),
            block_rows=block_rows,
        )
        with store.capture("wide", provenance={}, encoding=encoding) as capture:
            for block in capture.missing_blocks():
                capture.write(block, logits[block.start : block.stop])
    grid, sample = Grid(rows, block_rows), spread_rows(rows, 1, 2048)
    stored = encoding.encode(logits[sample.rows], 0, "")
    found = capture_footprint(encoding, classes, grid, 1, stored, {})
    there = array_bytes(here / "store.zarr", "wide")
    assert found.arrays.keys() == there.keys()
    for name, size in there.items():
        assert found.arrays[name] == (pytest.approx(size, rel=0.01) if name in PACKED else size), name
    files = [file for file in (here / "store.zarr" / "teachers" / "wide").rglob("*") if file.is_file()]
    assert found.files == len(files)
    assert found.bytes == pytest.approx(sum(file.stat().st_size for file in files), rel=0.01)
    # The control: rows that a codec packs better.
    flat = encoding.encode(np.repeat(logits[:1], 2048, axis=0), 0, "")
    other = capture_footprint(encoding, classes, grid, 1, flat, {})
    packed = [name for name in PACKED if name in there]
    assert any(other.arrays[name] != pytest.approx(there[name], rel=0.01) for name in packed)


@pytest.mark.parametrize("head", [None, "head"])
def test_a_transform_is_measured_on_rows_that_did_not_make_its_basis(here: Path, head: str | None) -> None:
    content = experiments.document()
    for teacher in content["teacher"]:
        teacher |= {} if head is None else {"head": head}
    content["cache"] |= {"encoding": {"transform": {"max_kl": 1e-2, "temperatures": [1, 4]}}}
    done = experiments.finished()
    experiment, models = experiments.parsed(content, done), Models(done / "out" / "models")
    with mock.patch.object(Transform, "encode", autospec=True, side_effect=Transform.encode) as encode:
        planned = plan(experiment, here / "store.zarr", models, device="cpu")
    own = planned.own
    assert own.name == "transform = 0.01, temperatures = [1, 4]"
    assert own.bound == (1e-2, None, 1e-2, None, None)
    assert own.kl_max is not None and own.bytes is not None
    assert own.kl_max[0] <= 1e-2 and own.kl_max[2] <= 1e-2
    assert all(len(call.args[1]) == planned.sample_rows // 2 for call in encode.call_args_list)
    with mock.patch("os.fsync"):
        cache(Workspace(experiment, here / "store.zarr", models, device="cpu"))
    files = [file for file in (here / "store.zarr").rglob("*") if file.is_file()]
    assert own.files == len(files)
    assert own.bytes == pytest.approx(sum(file.stat().st_size for file in files), rel=0.02, abs=1024)
    capture = logitstore.open_store(here / "store.zarr").teachers["wide"]
    kl = np.concatenate([capture.divergence(view=view) for view in range(experiments.VIEWS)])
    wide = own.captures[0]
    assert wide.kl_mean is not None
    assert wide.kl_mean[0] == pytest.approx(kl[:, 0].mean(), rel=0.2)


def test_a_transform_of_the_plan_costs_what_the_capture_costs(here: Path) -> None:
    """On logits of few features, calibrated with half of the sample."""
    draw = np.random.default_rng(1)
    rows, classes, block_rows = 12_000, 200, 2048
    logits = (draw.normal(0, 2, (rows, 20)) @ draw.normal(0, 1, (20, classes))).astype(np.float32)
    encoding = encoding_named({"transform": {"max_kl": 1e-2}})
    assert isinstance(encoding, Transform)
    sample = TeacherSample("teacher", logits[spread_rows(rows, 1, 2048).rows], False, 1.0)
    grid = Grid(rows, block_rows)
    found = try_encoding(encoding, encoding, "wide", sample, grid, grid, 1, {})
    with mock.patch("os.fsync"):
        store = logitstore.create_store(
            here / "store.zarr",
            num_rows=rows,
            num_classes=classes,
            digests=np.arange(rows, dtype=np.uint64),
            block_rows=block_rows,
        )
        with store.capture("wide", provenance={}, encoding=encoding, calibration=logits[:2048]) as capture:
            for block in capture.missing_blocks():
                capture.write(block, logits[block.start : block.stop])
    there = store.teachers["wide"].part.table.total_bytes()
    assert sum(found.arrays.values()) == pytest.approx(there, rel=0.05)
    # The control: logits without structure take several times as much.
    noise = TeacherSample("model", modelled_logits(2048, classes), False, 1.0)
    other = try_encoding(encoding, encoding, "wide", noise, grid, grid, 1, {})
    assert sum(other.arrays.values()) > 2 * there


def test_a_sample_of_fewer_rows_than_features_is_measured_in_the_span_of_the_head() -> None:
    draw = np.random.default_rng(1)
    features = FeatureLogits(draw.normal(0, 1, (60, 40)), LinearHead(draw.normal(0, 1, (200, 40))))
    encoding, grid = encoding_named({"transform": {"max_kl": 1e-2}}), Grid(60, 64)
    found = [
        sum(try_encoding(encoding, encoding, "wide", sample, grid, grid, 1, {}).arrays.values())
        for sample in (
            TeacherSample("teacher", features.dense(), False, 1.0, features),
            TeacherSample("teacher", features.dense(), False, 1.0),  # control: every other row is escaped
        )
    ]
    assert 0 < found[0] < found[1] / 2


@pytest.mark.parametrize("own", ["float16", "float32"])
def test_what_compress_makes_of_it_is_what_compress_then_makes(own: str, here: Path) -> None:
    experiment, models = with_views(own)
    planned = plan(experiment, here / "store.zarr", models, device="cpu")
    with mock.patch("os.fsync"):
        cache(Workspace(experiment, here / "store.zarr", models, device="cpu"))
        store = logitstore.open_store(here / "store.zarr")
        for number, budget in enumerate((1e-2, 1e-4)):
            name = f"small-{number}"
            compress(store, "wide", name, {"max_kl": budget})
            smaller = named(planned, f"max_kl = {budget}").captures[0].compressed
            assert smaller is not None
            about = store.teachers[name].encoding.describe()
            assert (smaller.source, smaller.dtype) == (own, about["dtype"])
            for array, size in array_bytes(here / "store.zarr", name).items():
                assert smaller.arrays[array] == pytest.approx(size, rel=0.01, abs=256), array


def test_the_blocks_are_those_that_the_encoding_asks_for(here: Path) -> None:
    """An input of 16 bytes is wider than a row of float16 logits, and 3 float32 logits are narrower."""
    path = lay_out(here / "files", ("block_rows = 64", ""))
    experiment = load_experiment(path)
    rows = TransferRows(experiment)
    for name in ("float16", "float32"):
        assert plan_grid(experiment, rows, encoding_named(name)).block_rows == 1024
    fixed = load_experiment(small.write_experiment(here / "files"))
    assert plan_grid(fixed, rows, encoding_named("float16")).block_rows == 64


def test_a_store_that_is_there_keeps_its_blocks(here: Path) -> None:
    path = lay_out(here / "files")
    with mock.patch("os.fsync"):
        cache(Workspace.of_store(load_experiment(path), here / "store.zarr", here / "models", device="cpu"))
    other = small.write_experiment(here / "files", ("block_rows = 64", "block_rows = 128"))
    assert {encoding.block_rows for encoding in made(other, here).encodings} == {64}
    assert {encoding.block_rows for encoding in made(other, here / "elsewhere").encodings} == {128}


# Where the logits are from


def named(planned: Plan, name: str) -> EncodingPlan:
    """The encoding of that name."""
    (found,) = [encoding for encoding in planned.encodings if encoding.name == name]
    return found


def test_without_weights_the_figures_are_a_models_and_the_network_is_timed(here: Path) -> None:
    planned = made(lay_out(here / "files", TRAINED), here, sample_rows=200)
    (teacher,) = planned.teachers
    assert teacher.source == "model"
    assert teacher.rows_per_second > 0
    budget = named(planned, "max_kl = 0.01")
    kl = encoding_named({"max_kl": 1e-2}).encode(modelled_logits(200, 3), 0, "")["error"].astype(float)
    assert budget.kl_max is not None
    assert budget.kl_max[0] == kl[:, 0].max() ** 2 / 2


def test_the_model_is_what_it_is_said_to_be() -> None:
    logits = modelled_logits(2000, 1000)
    # Five times 8 a row come on top of numbers whose mean is 0.
    assert abs(logits.sum(axis=1).mean() - 40) < 5
    low, middle, high = np.quantile(logits, [0.159, 0.5, 0.841])
    assert abs(middle) < 0.05
    assert abs(high - low - 2 * 2.5) < 0.1
    assert 2.5 < (logits > 8).sum(axis=1).mean() < 4  # half of the peaks
    assert np.array_equal(logits, modelled_logits(2000, 1000))


def test_a_sealed_capture_serves_where_the_weights_are_gone(here: Path) -> None:
    path = lay_out(here / "files", TRAINED)
    experiment, models = load_experiment(path), Models(here / "models")
    with mock.patch("os.fsync"):
        cache(Workspace(experiment, here / "store.zarr", models, device="cpu"))
    assert made(path, here).teachers[0].source == "teacher"
    before = named(made(path, here), "max_kl = 0.01")
    shutil.rmtree(here / "models")
    planned = made(path, here)
    assert planned.teachers[0].source == "capture"
    assert planned.teachers[0].is_rounded
    # What float16 has lost cannot be seen in it, so it is not said to be nothing.
    assert planned.own.name == "float16"
    assert planned.own.kl_max is None
    after = named(planned, "max_kl = 0.01")
    assert after.kl_max is not None and before.kl_max is not None
    assert after.kl_max[0] == pytest.approx(before.kl_max[0], rel=0.2)
    text = call("plan", path, "--store", "store.zarr", "--device", "cpu").stdout
    assert "from sealed captures, 300 of 300 rows: line (KL is to the float16 capture" in text

    # Not one that was made otherwise.
    other = small.write_experiment(here / "files", TRAINED, ("batch_size = 32", "batch_size = 16"))
    assert made(other, here).teachers[0].source == "model"


def test_an_encoded_capture_is_no_sample(here: Path) -> None:
    path = lay_out(here / "files", TRAINED, ("[cache]", "[cache]\nencoding = { max_kl = 1e-1 }"))
    with mock.patch("os.fsync"):
        cache(Workspace.of_store(load_experiment(path), here / "store.zarr", here / "models", device="cpu"))
    shutil.rmtree(here / "models")
    assert made(path, here).teachers[0].source == "model"


def test_figures_of_teachers_and_of_a_model_are_not_mixed(here: Path) -> None:
    second = small.SECOND_TEACHER.replace(*TRAINED)
    path = lay_out(here / "files", more=second)
    planned = made(path, here)
    assert [teacher.source for teacher in planned.teachers] == ["teacher", "model"]
    for encoding in planned.encodings:
        assert encoding.kl_max == encoding.captures[0].kl_max
        assert encoding.kl_mean == encoding.captures[0].kl_mean
        assert encoding.row_bytes == pytest.approx(
            sum(sum(capture.arrays.values()) for capture in encoding.captures) / 600
        )
    sizes, worst, mean = tables(call("plan", path, "--device", "cpu").stdout)
    assert sizes[-2].startswith("from the teachers themselves, run on 300 of 300 rows: line")
    assert sizes[-1].startswith("from a model, not from your teachers: second (Gaussian logits ")
    assert worst[-1] == mean[-1] == "from the teachers themselves, run on 300 of 300 rows: line"


# Passes and hours


def test_passes_are_counted_by_hand() -> None:
    experiment, _ = with_views("float16")
    # soft: 2 seeds x 3 epochs of one teacher; both: 3 epochs of two; hard: none. Cached: 3 views x 2 teachers.
    assert live_passes(experiment) == {"wide": 9, "deep": 3}
    passes = count_passes(experiment)
    assert (passes.cached, passes.live, passes.epochs) == (6, 12, 9)
    # Six epochs of soft are six passes; the seventh epoch is the first of both.
    assert passes.pays_from == 7


def test_a_student_of_a_tenth_of_the_rows_costs_a_tenth_of_a_pass_an_epoch() -> None:
    content = experiments.document()
    content["student"] = [
        experiments.student("s", rows=0.1, train=experiments.train(epochs=200, seeds=[0, 1]))
    ]
    experiment = experiments.parsed(content, Path())
    assert live_passes(experiment) == {"wide": 40, "deep": 0}
    passes = count_passes(experiment)
    # Six passes are cached: the live ones exceed them in the epoch after the 60th.
    assert (passes.live, passes.epochs, passes.pays_from) == (40, 400, 61)


@given(
    views=st.integers(1, 5),
    students=st.lists(
        st.tuples(st.integers(1, 6), st.integers(1, 3), st.sampled_from(["all", "cycle", 0]), st.booleans()),
        max_size=3,
    ),
)
def test_the_cache_pays_from_the_first_epoch_that_would_have_cost_more(
    views: int, students: list[tuple[int, int, Any, bool]]
) -> None:
    content = experiments.document()
    del content["cluster"]
    content["cache"] = {"views": views}
    if views > 1:
        content["cache"]["augment"] = experiments.document()["cache"]["augment"]
    content["student"] = [
        experiments.student(
            f"s{number}",
            views=seen,
            teachers={"wide": 1.0, "deep": 1.0} if two else {"deep": 1.0},
            train=experiments.train(epochs=epochs, seeds=list(range(seeds))),
        )
        for number, (epochs, seeds, seen, two) in enumerate(students)
    ]
    passes = count_passes(experiments.parsed(content, Path()))
    costs = [
        (2 if two else 1) * (views if seen == "all" else 1)
        for epochs, seeds, seen, two in students
        for _ in range(epochs * seeds)
    ]
    assert (passes.cached, passes.live, passes.epochs) == (2 * views, sum(costs), len(costs))
    more = [epoch for epoch in range(1, len(costs) + 1) if sum(costs[:epoch]) > 2 * views]
    assert passes.pays_from == (more[0] if more else None)


@pytest.mark.parametrize("sample_rows", [1, 300])
def test_hours_are_those_of_the_network_in_whole_batches(sample_rows: int, here: Path) -> None:
    path = lay_out(
        here / "files",
        ('factory = "faulty:linear"', 'factory = "faulty:sleepy"'),
        ("epochs = 1", "epochs = 5"),
    )
    (teacher,) = made(path, here, sample_rows=sample_rows).teachers
    # 32 rows in 20 ms and a little.
    assert 32 / 0.5 < teacher.rows_per_second <= 32 / 0.02
    assert teacher.cached_hours == pytest.approx(300 / teacher.rows_per_second / 3600)
    assert teacher.live_passes == 5
    assert teacher.live_hours == pytest.approx(5 * teacher.cached_hours)


@given(rows=st.integers(1, 50), views=st.integers(1, 4), most=st.integers(1, 250))
def test_a_sample_is_spread_over_all_views(rows: int, views: int, most: int) -> None:
    sample = spread_rows(rows, views, most)
    places = sample.views * rows + sample.rows
    assert len(sample) == min(most, rows * views)
    gaps = np.diff([-1, *places.tolist(), rows * views])
    assert (gaps > 0).all()
    step = rows * views / len(sample)
    assert gaps.max() <= step + 1


# The command


def call(*arguments: object) -> Result:
    """Run a command in this process; it must be done without a word on stderr."""
    result = CliRunner().invoke(cli, [str(argument) for argument in arguments])
    assert (result.exit_code, result.stderr) == (0, ""), result.stdout
    return result


def tables(text: str) -> list[list[str]]:
    """The lines above the heading of each table."""
    blocks = [block.splitlines() for block in text.split("\n\n")]
    found = [(block, n) for block in blocks for n, line in enumerate(block) if line.startswith("encoding  ")]
    return [block[:n] for block, n in found]


def test_the_model_is_named_on_the_line_above_every_table(here: Path) -> None:
    path = lay_out(here / "files", TRAINED)
    above = tables(call("plan", path, "--device", "cpu").stdout)
    assert len(above) == 3
    for lines in above:
        assert lines[-1].startswith("from a model, not from your teachers: line")
    assert above[0][-1].endswith(
        "(Gaussian logits of standard deviation 2.5 with 5 peaks of +8 a row, seed 0)"
    )


def test_what_was_measured_is_not_called_a_model(here: Path) -> None:
    """Negative control."""
    result = call("plan", lay_out(here / "files"), "--device", "cpu", "--rows", 50)
    assert "model" not in result.stdout
    assert result.stdout.count("from the teachers themselves, run on 50 of 300 rows: line\n") == 3


def test_the_text_and_the_json_say_the_same(here: Path) -> None:
    path = lay_out(here / "files", ("[cache]", "[cache]\nencoding = { top_k = 2 }"))
    found = json.loads(call("plan", path, "--device", "cpu", "--json").stdout)
    text = call("plan", path, "--device", "cpu").stdout
    names = [encoding["name"] for encoding in found["encodings"]]
    assert names == [
        *("float32", "float16"),
        *("transform = 0.01", "transform = 0.001", "transform = 0.0001"),
        *("max_kl = 0.01", "max_kl = 0.001", "max_kl = 0.0001", "top_k = 2"),
    ]
    assert [encoding["name"] for encoding in found["encodings"] if encoding["is_own"]] == ["top_k = 2"]
    assert text.count("top_k = 2  (the experiment's)") == 3
    assert found["temperatures"] == [1, 2, 4, 8, 20]
    assert re.search(r"rows a block  encode rows/s  decode rows/s  compress makes", text)
    for encoding in found["encodings"]:
        (line,) = [
            row for row in text.splitlines() if row.startswith(encoding["name"]) and row.count("iB") == 1
        ]
        assert f" {encoding['files']:,} " in line
        assert len(encoding["kl_max"]) == len(encoding["kl_mean"]) == 5
        assert f"  {encoding['kl_max'][1]:.1e}" in text or encoding["kl_max"][1] == 0
        if encoding["bound"] is not None:
            bounds = [math.inf if bound is None else bound for bound in encoding["bound"]]
            assert all(kl <= most for kl, most in zip(encoding["kl_max"], bounds, strict=True))
        for speed in (encoding["encode_rows_per_second"], encoding["decode_rows_per_second"]):
            assert speed > 0
    assert {capture["teacher"] for encoding in found["encodings"] for capture in encoding["captures"]} == {
        "line"
    }
    assert found["passes"] == {"cached": 1, "live": 1, "epochs": 1, "pays_from": None}
    assert "the cache never pays within this experiment" in text
    assert found["store"] == "runs/small/store.zarr"
    assert re.search(r"disk +\S+ \wiB free for runs/small/store.zarr; top_k = 2 needs \S+ KiB: fits", text)


def test_it_says_from_which_epoch_the_cache_pays(here: Path) -> None:
    path = lay_out(here / "files", ("epochs = 1", "epochs = 30"))
    text = call("plan", path, "--device", "cpu").stdout
    assert (
        "teacher passes  cached 1, live 30 (30 epochs of students), 30 times fewer; pays from epoch 2 on"
        in text
    )


def test_top_k_is_shown_where_there_are_that_many_classes(here: Path) -> None:
    content = experiments.document()
    content["cache"]["encoding"] = {"top_k": 4}
    experiment = experiments.parsed(content, experiments.finished())
    planned = plan(experiment, here / "s", Models(here / "m"), device="cpu", sample_rows=20)
    assert [encoding.name for encoding in planned.encodings][8:] == ["top_k = 4"]
    content["cache"]["encoding"] = {"top_k": 5}
    experiment = experiments.parsed(content, experiments.finished())
    with pytest.raises(ConfigError, match="top_k: expected at most 4, the classes"):
        plan(experiment, here / "s", Models(here / "m"), device="cpu")


def test_too_small_a_disk_is_said(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Folder, "free_bytes", lambda self: 1000)
    text = call("plan", lay_out(here / "files"), "--device", "cpu").stdout
    assert re.search(r"disk +1,000 bytes free for .*; float16 needs \S+ KiB: does not fit", text)


def test_the_disk_has_to_hold_the_specialists_too(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = lay_out(here / "files", more=SPECIALISTS)
    alone = made(lay_out(here / "alone"), here / "out").own.bytes
    assert alone is not None
    monkeypatch.setattr(Folder, "free_bytes", lambda self: alone + 500)
    text = call("plan", path, "--device", "cpu").stdout
    assert re.search(r"needs \S+ KiB, and 3 captures of specialists at most \S+ KiB: does not fit", text)
    text = call("plan", here / "alone" / "small.toml", "--device", "cpu").stdout
    assert re.search(r"needs \S+ KiB: fits", text)


def test_an_encoding_that_cannot_hold_the_logits_is_said_and_the_others_are_shown(here: Path) -> None:
    path = lay_out(here / "files", ('factory = "faulty:linear"', 'factory = "faulty:huge"'))
    planned = made(path, here)
    assert planned.own.refused is not None
    assert (planned.own.bytes, planned.own.kl_max) == (None, None)
    assert named(planned, "float32").refused is None
    text = call("plan", path, "--device", "cpu").stdout
    assert "float16 is not possible: teacher 'line', the sample, row " in text
    assert "float16's range" in text
    assert "max_kl = 0.01 is not possible: " in text
    assert "compress cannot make max_kl = 0.01: " in text


@pytest.mark.parametrize("done", [False, True], ids=["before", "after a run"])
def test_nothing_is_written(done: bool, here: Path) -> None:
    path = lay_out(here / "files", TRAINED)
    out = here / "runs" / "small"
    if done:
        with mock.patch("os.fsync"):
            cache(Workspace.of_store(load_experiment(path), out / "store.zarr", out / "models", device="cpu"))
    before = small.snapshot(here)
    assert ("runs" in before) == done
    call("plan", path, "--device", "cpu", "--json")
    call("plan", path, "--device", "cpu", "--store", here / "new" / "store.zarr", "--rows", 10)
    assert small.snapshot(here) == before


# What is wrong


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        (("data.npz", "no.npz"), BadDataError, "no.npz"),
        (("line.safetensors", "no.safetensors"), BadDataError, "no.safetensors: expected a file of weights"),
        (("line.safetensors", "four.safetensors"), BadDataError, "four.safetensors"),
        (("block_rows = 64", "block_rows = 48"), ConfigError, "block_rows: expected a power of two"),
        (('factory = "faulty:linear"', 'factory = "faulty:pair"'), BadLogitsError, "teacher 'line'"),
        (
            ('"faulty:linear"', '"faulty:linear"\nargs = { more_classes = 1 }\n#'),
            BadDataError,
            "line.safetensors",
        ),
        (
            ('"faulty:linear"', '"faulty:linear"\nargs = { spoilt = "nan" }\n#'),
            BadLogitsError,
            "teacher 'line', view 0, row 250, class 0: expected finite logits",
        ),
    ],
    ids=lambda value: str(value[1]) if isinstance(value, tuple) else "",
)
def test_what_cache_would_refuse_is_one_line(
    change: tuple[str, str], error: type[Exception], said: str, here: Path
) -> None:
    path = lay_out(here / "files", change)
    with pytest.raises(error, match=re.escape(said)):
        made(path, here)
    result = CliRunner().invoke(cli, ["plan", str(path), "--device", "cpu"])
    assert result.exit_code in (64, 65)
    assert result.stdout == ""
    assert result.stderr.startswith("logitstore: ")
    assert result.stderr.count("\n") == 1


def test_a_file_that_is_no_experiment_and_rows_that_are_none(here: Path) -> None:
    (here / "bad.toml").write_text("[transfer_set\n")
    for arguments, said in (
        (["plan", "bad.toml"], "expected TOML, found a syntax error"),
        (["plan", "none.toml"], "expected an experiment file, found no such file"),
        (["plan", "none.toml", "--rows", "0"], "0 is not in the range x>=1"),
    ):
        result = CliRunner().invoke(cli, arguments)
        assert result.exit_code == 64
        assert said in result.stderr
        assert result.stderr.count("\n") == 1


def test_a_store_of_another_transfer_set_is_refused(here: Path) -> None:
    path = lay_out(here / "files")
    with mock.patch("os.fsync"):
        cache(Workspace.of_store(load_experiment(path), here / "store.zarr", here / "models", device="cpu"))
    small.write_data(here / "files" / "data.npz", change=3)
    with pytest.raises(SpecMismatch, match="samples"):
        made(path, here)
