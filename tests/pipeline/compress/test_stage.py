"""A capture made from another: within its promised error, and the same bytes after any kill."""

import re
import shutil
import signal
import threading
import time
from collections.abc import Callable
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from support import stores
from support.children import apart
from support.stores import Teacher

from logitstore.pipeline.cluster.covariance import covariance
from logitstore.pipeline.cluster.softened import softened_outputs
from logitstore.pipeline.compress import choose as choose_encoding
from logitstore.pipeline.compress import stage
from logitstore.pipeline.compress.choose import STATISTICS, fit_budget, sample_chunks, scan
from logitstore.pipeline.compress.stage import compress, plan_compression
from logitstore.pipeline.runtime.dask_tasks import every_block, over_blocks
from logitstore.storage.api import Store, create_store, open_store
from logitstore.storage.backends.lease import Lease
from logitstore.storage.encodings.divergence import divergence
from logitstore.storage.encodings.error_budget import ErrorBudget
from logitstore.storage.encodings.top_k import TopK
from logitstore.storage.errors import (
    BadLogitsError,
    ConfigError,
    ManifestInvalid,
    NameTaken,
    PartNotFound,
    ShardMissing,
    SpecMismatch,
    StoreIncomplete,
)
from logitstore.storage.format.codec import BLOSC
from logitstore.storage.format.codec import compress as pack
from logitstore.storage.format.constants import TEMPERATURES
from logitstore.storage.integrity.verify import verify
from logitstore.storage.parts.fidelity import fidelity, percentile
from logitstore.storage.parts.part_reader import PartReader
from logitstore.storage.parts.writer import CaptureWriter

pytestmark = pytest.mark.usefixtures("without_fsync")

ROWS, BLOCK_ROWS, CLASSES, VIEWS = 61, 32, 40, 2


def peaked(rows: int, classes: int, seed: int = 0, spread: float = 3.0) -> NDArray[np.float32]:
    """Logits with a constant in each row, some classes far above the others: (rows, classes)."""
    draw = np.random.default_rng(seed)
    logits = draw.normal(0, spread, (rows, classes)) + draw.normal(0, 20, (rows, 1))
    logits[np.arange(rows), draw.integers(0, classes, rows)] += 9
    return logits.astype(np.float32)


def fill(store: Store, name: str, logits: NDArray[np.float32], teacher: Teacher) -> None:
    """Write a capture of (views, rows, classes)."""
    inputs = stores.some_inputs(store.num_rows)
    stores.write_capture(store, name, logits, teacher, inputs)


def logits_of(name: str) -> NDArray[np.float32]:
    """What the teacher of `half` or `full` gave: (views, rows, classes)."""
    return np.stack([peaked(ROWS, CLASSES, seed=10 * (name == "full") + view) for view in range(VIEWS)])


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with `half` (float16) and `full` (float32, other logits), two augmented views each; not to be changed."""
    path = tmp_path_factory.mktemp("template") / "store.zarr"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.fsync", lambda handle: None)
        made = stores.make(path, rows=ROWS, classes=CLASSES, block_rows=BLOCK_ROWS, teachers={})
        for name, encoding in (("half", "float16"), ("full", "float32")):
            fill(made.store, name, logits_of(name), Teacher(VIEWS, encoding, augmented=True))
    return path


@pytest.fixture
def store(template: Path, tmp_path: Path) -> Store:
    """A copy of it."""
    return open_store(shutil.copytree(template, tmp_path / "store.zarr"))


def kl(exact: NDArray[Any], decoded: NDArray[Any], temperature: float) -> NDArray[np.float64]:
    """KL(exact ‖ decoded) of each row as it is defined, in float64."""
    p, q = stores.softmax(exact, temperature), stores.softmax(decoded, temperature)
    return np.asarray((p * np.log(p / q)).sum(axis=-1))


# The promise


@pytest.mark.parametrize("source", ["half", "full"])
@pytest.mark.parametrize(("max_kl", "min_temperature"), [(1e-2, 1.0), (1e-3, 1.0), (1e-4, 2.0), (0.5, 4.0)])
def test_no_row_exceeds_the_budget_to_its_teacher_nor_the_rest_of_it_to_its_source(
    store: Store, source: str, max_kl: float, min_temperature: float
) -> None:
    report = compress(store, source, "small", {"max_kl": max_kl, "min_temperature": min_temperature})
    small, large = store.teachers["small"], store.teachers[source]
    for view in range(VIEWS):
        decoded = small.read(slice(None), view)
        for one in report.fidelity:
            t = one.temperature
            assert one.bound is not None and one.bound_to_source is not None
            assert one.bound == pytest.approx(max_kl * (min_temperature / t) ** 2)
            to_teacher = kl(logits_of(source)[view], decoded, t)
            to_source = kl(large.read(slice(None), view), decoded, t)
            assert to_teacher.max() <= one.bound
            assert to_source.max() <= one.bound_to_source
            assert to_source.max() <= one.max * (1 + 1e-4) + 1e-9
    assert (source == "half") == (report.fidelity[0].bound != report.fidelity[0].bound_to_source)
    assert verify(store.path, deep=True).exit_code == 0


def test_the_budget_leaves_out_what_float16_has_rounded_already(store: Store) -> None:
    """Negative control: with u = 0 the step would be larger, and the bound to the teacher a lie."""
    compress(store, "half", "small", {"max_kl": 1e-3})
    encoding = store.teachers["small"].encoding
    assert isinstance(encoding, ErrorBudget)
    largest = max(-store.teachers["half"].read(slice(None), view).min() for view in range(VIEWS))
    assert encoding.source_error == float(np.spacing(np.float16(largest))) / 2 > 0
    assert encoding.step < ErrorBudget(1e-3).step
    assert compress(store, "full", "other", {"max_kl": 1e-3}).encoding.describe()["source_error"] == 0.0


def test_everything_but_the_logits_is_the_sources_own(store: Store) -> None:
    report = compress(store, "half", "small", {"max_kl": 1e-2})
    small, large = store.teachers["small"], open_store(store.path).teachers["half"]
    assert small.shape == large.shape
    for view in range(VIEWS):
        np.testing.assert_array_equal(small.peak(slice(None), view), large.peak(slice(None), view))
        np.testing.assert_array_equal(small.seen(slice(None), view), large.seen(slice(None), view))
    np.testing.assert_array_equal(small.classes, large.classes)
    theirs, ours = dict(large.part.spec.identity), dict(small.part.spec.identity)
    assert ours.pop("derived_from") == {"capture": "half", "seal": large.digest}
    assert ours.pop("encoding") == report.encoding.describe()
    del theirs["encoding"]
    assert ours == theirs
    assert set(small.part.spec.notes) == {"python", "numpy", "numcodecs"}
    assert report.digest == open_store(store.path).digest


def test_a_source_of_some_classes_keeps_its_columns(tmp_path: Path) -> None:
    made = stores.make(tmp_path / "store.zarr", teachers={})
    teacher = Teacher(classes=(4, 0, -1))
    fill(made.store, "special", peaked(37, 3)[None], teacher)
    compress(made.store, "special", "small", {"top_k": 2})
    small = made.store.teachers["small"]
    assert small.classes.tolist() == [0, 4, -1]  # top-k rows have the lower class first
    assert small.shape == (1, 37, 3)
    with pytest.raises(ConfigError, match="at most 3, the classes of this capture"):
        compress(made.store, "special", "other", {"top_k": 4})


def test_the_report_is_what_the_files_and_the_records_say(store: Store) -> None:
    report = compress(store, "full", "small", {"max_kl": 1e-3})
    for name, row_bytes in (("full", report.source_row_bytes), ("small", report.row_bytes)):
        files = (store.path / "teachers" / name).glob("*/c.*")
        shards = sum(file.stat().st_size for file in files if file.parent.name != "classes")
        assert row_bytes == shards / (VIEWS * ROWS)
    small = store.teachers["small"]
    recorded = np.concatenate([small.divergence(view=view) for view in range(VIEWS)])
    for number, one in enumerate(report.fidelity):
        assert one.temperature == TEMPERATURES[number]
        assert one.max == recorded[:, number].max()
        assert one.mean == pytest.approx(recorded[:, number].mean(), rel=1e-12)
        assert one.p999 == np.quantile(recorded[:, number], 0.999, method="higher")


@pytest.mark.parametrize("rows", [1, 2, 999, 1000, 1001, 1002, 2001, 5000])
def test_the_percentile_is_that_of_numpy(rows: int) -> None:
    values = np.random.default_rng(rows).gamma(1.0, 1.0, rows)
    assert percentile(values) == np.quantile(values, 0.999, method="higher")


@pytest.mark.parametrize("number", [-1.0, np.nan])
def test_records_that_are_no_error_are_refused(
    store: Store, number: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    compress(store, "full", "small", {"max_kl": 1e-3})
    assert fidelity(store.teachers["full"]) == ()
    read = PartReader.read

    def forged(reader: PartReader, array: str, rows: Any, view: int = 0) -> NDArray[Any]:
        values = read(reader, array, rows, view)
        if array == "error" and view == 1:
            values[3, 2] = number
        return values

    monkeypatch.setattr(PartReader, "read", forged)
    with pytest.raises(ManifestInvalid, match="expected errors of rows"):
        fidelity(store.teachers["small"])


# The choice of the codes


def test_one_byte_where_every_code_fits_and_two_where_one_does_not() -> None:
    step = ErrorBudget(1e-2).step
    for reach, dtype in ((254.4, "uint8"), (254.6, "uint16")):
        assert fit_budget(1e-2, spread=reach * step).dtype == dtype


@pytest.mark.parametrize("max_kl", [1e-2, 1e-3, 1e-5, 1e-7])
def test_the_multiple_is_the_one_that_packs_best(tmp_path: Path, max_kl: float) -> None:
    rows = 4 * 256
    made = create_store(
        tmp_path / "s",
        num_rows=rows,
        num_classes=300,
        digests=np.arange(rows, dtype=np.uint64),
        block_rows=256,
    )
    fill(made, "full", peaked(rows, 300)[None], Teacher(encoding="float32"))
    report = compress(made, "full", "small", {"max_kl": max_kl})
    encoding = report.encoding
    assert isinstance(encoding, ErrorBudget)
    assert (encoding.dtype == "uint8") == (max_kl == 1e-2)
    if encoding.dtype == "uint8":
        assert encoding.shift == 0
        return
    capture = made.teachers["full"]
    samples = [capture.read(rows, view) for view, rows in sample_chunks(capture)]
    assert sum(map(len, samples)) == rows  # here the sample is everything
    codes = [ErrorBudget(max_kl).encode(z, 0, "")["logits"] for z in samples]
    most = max(int(c.max()) for c in codes)
    sizes = [sum(len(pack(BLOSC, c << s)) for c in codes) for s in range(max(1, 16 - most.bit_length()))]
    assert encoding.shift == int(np.argmin(sizes))
    stored = (made.path / "teachers/small/logits").glob("c.*")
    overhead = 4 * (4 + 16 + 4)
    assert sum(file.stat().st_size for file in stored) == min(sizes) + overhead


@pytest.mark.parametrize(
    ("source", "found"), [("wide", 1e-7), ("wide", 1e-12), ("half", 1e-6), ("half", 1e-9)]
)
@pytest.mark.parametrize("min_temperature", [1.0, 3.0])
def test_a_budget_that_cannot_be_kept_is_refused_with_the_smallest_that_can(
    store: Store, source: str, found: float, min_temperature: float
) -> None:
    logits = np.stack([peaked(ROWS, CLASSES)] * 2) * np.float32(500)
    fill(store, "wide", logits, Teacher(2, "float32", augmented=True))
    before = stores.tree(store.path)
    wish = {"max_kl": found, "min_temperature": min_temperature}
    with pytest.raises(ConfigError, match=r"max_kl: expected at least \S+ at min_temperature") as caught:
        compress(store, source, "small", wish)
    assert "\n" not in str(caught.value)
    assert stores.tree(store.path) == before
    smallest = float(caught.value.expected.split()[2])
    assert smallest > found
    with pytest.raises(ConfigError, match="expected at least"):
        compress(store, source, "small", {**wish, "max_kl": 0.9 * smallest})
    report = compress(store, source, "small", {**wish, "max_kl": smallest})
    assert report.encoding.describe()["dtype"] == "uint16"


# Top k


def reference_kl(source: Any, k: int, temperature: float) -> NDArray[np.float64]:
    """KL of all rows of a capture of which k classes are kept, through the encoding itself."""
    columns = []
    for view in range(source.num_views):
        z = source.read(slice(None), view)
        decoded = TopK(k).decode(TopK(k).encode(z, 0, ""), z.shape[1], temperature)
        columns.append(divergence(z, decoded, temperature))
    return np.concatenate(columns)


@pytest.mark.parametrize("statistic", STATISTICS)
@pytest.mark.parametrize(("source", "limit", "temperature"), [("half", 0.05, 2.0), ("full", 1e-3, 3.3)])
def test_the_smallest_k_holds_over_all_rows_and_the_one_below_does_not(
    store: Store, source: str, statistic: str, limit: float, temperature: float
) -> None:
    wish = {"top_k_kl": limit, "temperature": temperature, "statistic": statistic}
    report = compress(store, source, "small", wish)
    k = report.encoding.describe()["k"]
    assert isinstance(k, int)
    measure: Callable[[Any], Any] = {
        "mean": np.mean,
        "max": np.max,
        "p99.9": lambda values: np.quantile(values, 0.999, method="higher"),
    }[statistic]
    assert measure(reference_kl(store.teachers[source], k, temperature)) <= limit
    if k > 1:
        # As the records round it: up, by a thousandth of T·√(2·KL).
        assert measure(reference_kl(store.teachers[source], k - 1, temperature)) * 1.003 > limit
    for one in report.fidelity:
        if one.temperature == temperature:
            assert {"mean": one.mean, "max": one.max, "p99.9": one.p999}[statistic] <= limit
    assert store.teachers["small"].part.spec.identity["derived_from"]["smallest_for"] == {
        "max_kl": limit, "temperature": temperature, "statistic": statistic,
    }  # fmt: skip


@pytest.mark.parametrize("lie", [0.01, 0.5, 1.0, 2.0, 100.0])
@pytest.mark.parametrize("true", [1, 2, 37, 500, 999, 1000])
def test_a_sample_that_misleads_costs_passes_and_nothing_else(lie: float, true: int) -> None:
    calls = []

    def value(k: int) -> float:
        return float(true) / k

    def on_all(ks: list[int]) -> list[float]:
        calls.append(ks)
        return [value(k) for k in ks]

    found = choose_encoding._smallest(1000, 1.0, lambda k: lie * value(k), on_all)
    assert found == true
    assert len(calls) <= 12
    measured = {k for ks in calls for k in ks}
    assert found in measured and (found == 1 or found - 1 in measured)


def test_not_even_all_classes_may_keep_it(store: Store) -> None:
    before = stores.tree(store.path)
    wish = {"top_k_kl": 1e-12, "temperature": 1.0}
    with pytest.raises(
        ConfigError, match=r"the smallest k: expected a KL of at least .*all 40 classes have"
    ) as caught:
        compress(store, "full", "small", wish)
    assert stores.tree(store.path) == before
    smallest = float(caught.value.expected.split()[5].rstrip(","))
    # A single class that is left out is kept in float32, which is even better than all of them.
    for source, limit in (("full", smallest), ("half", 1e-12)):  # what is float16 already loses nothing
        report = compress(store, source, f"small-{source}", {**wish, "top_k_kl": limit})
        assert report.encoding in (TopK(CLASSES - 1), TopK(CLASSES))
        assert report.fidelity[0].max <= limit


def test_a_row_out_of_the_range_of_float16_is_refused_before_anything_is_written(store: Store) -> None:
    logits = np.stack([peaked(ROWS, CLASSES)] * 2)
    logits[1, 40, 7] = -1e6
    fill(store, "far", logits, Teacher(2, "float32", augmented=True))
    before = stores.tree(store.path)
    with pytest.raises(
        BadLogitsError, match="teacher 'far', view 1, row 40, class 7: expected the k largest"
    ):
        compress(store, "far", "small", {"top_k": CLASSES})
    assert stores.tree(store.path) == before
    # Where that class is not among the k, nothing is lost of it.
    compress(store, "far", "small", {"top_k": CLASSES - 1})
    assert (
        compress(store, "far", "other", {"top_k_kl": 1e-3, "temperature": 1.0}).encoding.describe()["k"]
        != CLASSES
    )


# Dead teachers


def dead(path: Path, rows: tuple[int, ...]) -> Store:
    """A store whose teacher has given the same logit for every class in some rows of view 1."""
    made = stores.make(path, rows=ROWS, classes=CLASSES, block_rows=BLOCK_ROWS, teachers={})
    logits = np.stack([peaked(ROWS, CLASSES)] * 2)
    logits[1, list(rows)] = 3.7
    fill(made.store, "wide", logits, Teacher(2, "float32", augmented=True))
    return made.store


@pytest.mark.parametrize("wish", [{"max_kl": 1e-2}, {"max_kl": 1e-4}, {"top_k": 3}])
def test_a_constant_row_is_exact_and_warned_about_once(
    tmp_path: Path, wish: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    store = dead(tmp_path / "store.zarr", (20, 5, 50))
    compress(store, "wide", "small", wish)
    (record,) = caplog.records
    assert (record.levelname, record.getMessage()) == (
        "WARNING",
        f"{store.path}: teachers/wide: 3 of 122 rows have the same logit for all classes, as a dead teacher gives "
        + "(first: view 1, row 5); they are kept",
    )
    small = store.teachers["small"]
    assert (small.divergence([5, 20, 50], view=1) == 0).all()
    read = small.read([5, 20, 50], 1, temperature=1.0)
    assert (read == read[:, :1]).all()
    assert (small.peak([5], 1) == np.float32(3.7)).all()
    # Negative control: no other row is, and no other store says so.
    assert (small.divergence([4, 6], view=1)[:, 0] > 0).all()
    caplog.clear()
    compress(dead(tmp_path / "alive.zarr", ()), "wide", "small", wish)
    assert caplog.records == []


def test_a_teacher_that_is_dead_altogether_can_be_compressed(tmp_path: Path) -> None:
    store = dead(tmp_path / "store.zarr", tuple(range(ROWS)))
    fill(store, "flat", np.full((1, ROWS, CLASSES), 2.5, np.float32), Teacher())
    for number, wish in enumerate(({"max_kl": 1e-9}, {"top_k": 1}, {"top_k_kl": 1e-9, "temperature": 1.0})):
        report = compress(store, "flat", f"small-{number}", wish)
        assert {one.max for one in report.fidelity} == {0.0}


# What is refused


WRONG: list[tuple[Any, str]] = [
    ({"max_kl": 0.0}, "encoding: max_kl: expected a positive number of nats, found 0.0"),
    ({"max_kl": -1e-3}, "encoding: max_kl: expected a positive number of nats, found -0.001"),
    ({"max_kl": float("nan")}, "encoding: max_kl: expected a positive number of nats, found nan"),
    ({"max_kl": float("inf")}, "encoding: max_kl: expected a positive number of nats, found inf"),
    ({"max_kl": "much"}, "encoding: max_kl: expected a positive number, found 'much'"),
    ({"max_kl": 1e-3, "min_temperature": 0}, "encoding: min_temperature: expected a positive number"),
    ({"top_k": 0}, "encoding: top_k: expected an integer of at least 1, found 0"),
    ({"top_k": -3}, "encoding: top_k: expected an integer of at least 1, found -3"),
    (
        {"top_k": CLASSES + 1},
        "encoding: top_k: expected at most 40, the classes of this capture, found 41",
    ),
    (
        {"top_k_kl": 0.1},
        "encoding: temperature: expected a positive number, found no such key; set temperature",
    ),
    (
        {"top_k_kl": 0.0, "temperature": 1.0},
        "encoding: top_k_kl: expected a positive number of nats, found 0.0",
    ),
    (
        {"top_k_kl": "x", "temperature": 1.0},
        "encoding: top_k_kl: expected a positive number of nats, found 'x'",
    ),
    ({"top_k_kl": 0.1, "temperature": float("nan")}, "encoding: temperature: expected"),
    (
        {"top_k_kl": 0.1, "temperature": 1.0, "statistic": "median"},
        "encoding: statistic: expected one of mean, max, p99.9, found 'median'",
    ),
    ({"max_kl": 1e-3, "top_k": 4}, "encoding: expected 'float16', 'float32', { transform"),
    ({}, "encoding: expected 'float16', 'float32', { transform"),
    ("float16", r"encoding: expected { transform = .* found float16"),
    ({"transform": {"max_kl": 0.0}}, "encoding: max_kl: expected a positive number"),
    ({"transform": {"max_kl": 1e-2, "temperatures": [0.5, 1]}}, "temperatures from 1 to 1000, found"),
    ({"transform": {"max_kl": 1e-2, "temperatures": []}}, "temperatures from 1 to 1000, found"),
    ({"transform": {"max_kl": 1e-2, "rank": 3}}, "encoding: transform: expected a table of max_kl and"),
]


def test_a_wish_that_is_none_is_one_line_and_leaves_nothing(store: Store) -> None:
    before = stores.tree(store.path)
    for source in ("half", "full"):
        for wish, message in WRONG:
            with pytest.raises(ConfigError, match=message) as caught:
                compress(store, source, "small", wish)
            assert "\n" not in str(caught.value)
    assert stores.tree(store.path) == before


def test_what_cannot_be_compressed_is_refused(store: Store) -> None:
    compress(store, "half", "small", {"max_kl": 1e-2})
    with store.capture("own", provenance={}, encoding={"top_k": 2}) as capture:
        for rows in capture.missing_blocks():
            capture.write(rows, peaked(len(rows), CLASSES))
    begun = store.capture("begun", provenance={})
    begun.write(range(BLOCK_ROWS), peaked(BLOCK_ROWS, CLASSES))
    begun.close()
    before = stores.tree(store.path)
    wish = {"top_k": 3}
    with pytest.raises(PartNotFound, match="teachers/nobody: expected one of the sealed parts"):
        compress(store, "nobody", "new", wish)
    with pytest.raises(StoreIncomplete, match="teachers/begun: expected a sealed part"):
        compress(store, "begun", "new", wish)
    with pytest.raises(
        ConfigError, match=r"encoded already \(error-budget\); compress half, which it was made from"
    ):
        compress(store, "small", "new", wish)
    with pytest.raises(ConfigError, match=r"encoded already \(top-k\); compress a capture that is not"):
        compress(store, "own", "new", wish)
    with pytest.raises(ConfigError, match="expected a name of 1 to 64"):
        compress(store, "half", "../new", wish)
    assert stores.tree(store.path) == before


def test_a_name_that_is_taken_is_refused(store: Store) -> None:
    compress(store, "half", "small", {"max_kl": 1e-2})
    begun = store.capture("begun", provenance={})
    begun.write(range(BLOCK_ROWS), peaked(BLOCK_ROWS, CLASSES))
    begun.close()
    before = stores.tree(store.path)
    for taken in ("half", "full", "begun"):
        with pytest.raises(NameTaken, match=f"teachers/{taken}: expected a name that is free"):
            compress(store, "half", taken, {"max_kl": 1e-2})
    for source, wish, difference in (
        ("half", {"max_kl": 2e-2}, "encoding.max_kl = 0.01, with which it was made, found 0.02"),
        ("half", {"max_kl": 1e-2, "min_temperature": 2.0}, "encoding.min_temperature = 1.0"),
        ("half", {"top_k": 3}, "encoding.kind = 'error-budget'"),
        ("full", {"max_kl": 1e-2}, "derived_from.capture = 'half'"),
    ):
        with pytest.raises(SpecMismatch, match=difference):
            compress(store, source, "small", wish)
    assert stores.tree(store.path) == before


@pytest.mark.parametrize(
    "wish", [{"max_kl": 1e-2}, {"max_kl": 1e-3}, {"top_k": 3}, {"top_k_kl": 0.1, "temperature": 2.0}]
)
def test_the_second_time_there_is_nothing_to_do(
    store: Store, wish: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert plan_compression(store, "full", "small", wish).lines != []
    first = compress(store, "full", "small", wish)
    before = stores.tree(store.path)

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("it was made again")

    monkeypatch.setattr(stage, "scan", never)
    monkeypatch.setattr(stage, "_write", never)
    again = compress(open_store(store.path), "full", "small", wish)
    assert (first.made, again.made) == (True, False)
    assert again.fidelity == first.fidelity
    assert plan_compression(store, "full", "small", wish).lines == []
    assert stores.tree(store.path) == before


@pytest.mark.parametrize("encoding", [{"max_kl": 1e-3}, {"top_k": 3}])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_teacher_with_a_row_that_is_not_finite_leaves_nothing(
    store: Store, encoding: dict[str, Any], bad: float
) -> None:
    before = stores.tree(store.path)
    logits = peaked(BLOCK_ROWS, CLASSES)
    logits[9, 4] = bad
    with (
        pytest.raises(BadLogitsError, match="view 0, row 9, class 4: expected finite logits") as caught,
        store.capture("new", provenance={}, encoding=encoding) as capture,
    ):
        capture.write(range(BLOCK_ROWS), logits)
    assert "\n" not in str(caught.value)
    assert stores.tree(store.path) == before


def test_a_teacher_with_a_row_beyond_the_codes_is_told_the_smallest_budget(store: Store) -> None:
    before = stores.tree(store.path)
    logits = peaked(BLOCK_ROWS, CLASSES)
    logits[9, 4] = -3e4
    with (
        pytest.raises(BadLogitsError, match="row 9, class 4: expected logits within") as caught,
        store.capture("new", provenance={}, encoding={"max_kl": 1e-3}) as capture,
    ):
        capture.write(range(BLOCK_ROWS), logits)
    assert stores.tree(store.path) == before
    smallest = float(re.findall(r"\d[\d.e-]*\d", caught.value.remedy)[0])
    with store.capture("new", provenance={}, encoding={"max_kl": smallest}) as capture:
        capture.write(range(BLOCK_ROWS), logits)


# Again and again


WISHES: dict[str, dict[str, Any]] = {
    "budget": {"max_kl": 1e-3},
    "top": {"top_k_kl": 0.05, "temperature": 2.0},
    "transform": {"transform": {"max_kl": 1e-2, "rows": 50}},
}


@pytest.fixture(scope="module", params=WISHES.values(), ids=WISHES)
def whole(
    request: pytest.FixtureRequest, template: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, Any], dict[str, bytes]]:
    """A wish, and the tree that one run leaves."""
    store = open_store(shutil.copytree(template, tmp_path_factory.mktemp("whole") / "store.zarr"))
    compress(store, "half", "small", request.param)
    return request.param, stores.tree(store.path)


class Interrupted(Exception):
    """Somebody pressed Ctrl-C."""


@pytest.mark.parametrize("after", (0, 1, 3))
def test_interrupted_after_any_block_it_goes_on_to_the_same_bytes(
    whole: tuple[dict[str, Any], dict[str, bytes]],
    store: Store,
    after: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wish, expected = whole
    heard = []

    def stop(task: str, done: int, total: int, unit: str = "rows", detail: str = "") -> None:
        if task.startswith("compress"):
            heard.append(done)
            if len(heard) > after:
                raise Interrupted

    with pytest.raises(Interrupted):
        compress(store, "half", "small", wish, progress=stop)
    again = open_store(store.path)
    begun = again.begun("teachers/small")
    if after:
        assert begun is not None and begun.blocks_done >= after

        def never(*_: Any, **__: Any) -> None:
            raise AssertionError("what was begun says how")

        monkeypatch.setattr(stage, "scan", never)
        with pytest.raises(StoreIncomplete):
            _ = again.teachers["small"]
        (line,) = plan_compression(again, "half", "small", wish).lines
        assert line.startswith("finish capture small from half: ")
        with pytest.raises(SpecMismatch, match="with which it was begun, found"):
            compress(again, "half", "small", {"max_kl": 0.7})
    first: list[tuple[str, int, int]] = []
    compress(
        again, "half", "small", wish, progress=lambda task, done, total, *_: first.append((task, done, total))
    )
    assert stores.tree(store.path) == expected
    if begun is not None:
        assert first[0][1] > 0 and first[0][2] == VIEWS * ROWS


def test_killed_anywhere_it_goes_on_to_the_same_bytes(store: Store, template: Path, tmp_path: Path) -> None:
    compress(store, "half", "small", {"max_kl": 1e-3})
    expected = stores.tree(store.path)
    path = shutil.copytree(template, tmp_path / "killed.zarr")
    statuses = apart("support.killed_writers:compressions", path=str(path), puts=[8, 8, 12])
    assert statuses == [-signal.SIGKILL] * 3
    assert "small" not in open_store(path).teachers
    compress(open_store(path), "half", "small", {"max_kl": 1e-3})
    assert stores.tree(path) == expected


def test_what_a_sealed_one_has_lost_is_made_again(store: Store) -> None:
    wish = {"max_kl": 1e-3}
    compress(store, "half", "small", wish)
    whole = stores.tree(store.path)
    (store.path / "teachers/small/logits/c.1.1.0").unlink()
    opened = open_store(store.path)
    assert plan_compression(opened, "half", "small", wish).lines == [
        "finish capture small from half: KL at most 0.001 at T >= 1"
    ]
    assert compress(opened, "half", "small", wish).made
    assert stores.tree(store.path) == whole


def test_a_source_that_has_lost_a_block_is_an_error_and_no_capture(store: Store) -> None:
    (store.path / "teachers/half/logits/c.1.1.0").unlink()
    before = stores.tree(store.path)
    with pytest.raises(ShardMissing):
        compress(store, "half", "small", {"max_kl": 1e-3})
    assert stores.tree(store.path) == before


# Beside its source


@pytest.mark.parametrize("wish", [{"max_kl": 1e-3}, {"top_k": 5}])
def test_a_derived_capture_is_streamed_beside_its_source(store: Store, wish: dict[str, Any]) -> None:
    compress(store, "half", "small", wish)
    opened = open_store(store.path)
    rows = 0
    for batch in opened.stream(10, teachers=["half", "small"], views="all", temperature=2.0, inputs=False):
        rows += len(batch.rows)
        for name, logits in batch.logits.items():
            for number, (row, view) in enumerate(zip(batch.rows, batch.views, strict=True)):
                expected = opened.teachers[name].read([int(row)], int(view), temperature=2.0)[0]
                np.testing.assert_array_equal(np.asarray(logits)[number], expected)
    assert rows == VIEWS * ROWS


def test_stage_two_reads_a_derived_capture(store: Store) -> None:
    compress(store, "full", "small", {"max_kl": 1e-4})
    matrices = [covariance(softened_outputs(store, {name: 1.0}, 2.0)) for name in ("full", "small")]
    assert 0 < np.abs(matrices[0] - matrices[1]).max() < 1e-2 * np.abs(matrices[0]).max()


# Writing what was centred before


def test_a_peak_is_stored_as_it_is_given(store: Store) -> None:
    logits = peaked(BLOCK_ROWS, CLASSES)
    peak = logits.max(axis=1)
    centred = logits - peak[:, None]
    writer = store.capture("new", provenance={})
    for bad, wrong, said in (
        (logits, peak, "row 0: peak: expected a finite peak, and logits whose largest is 0"),
        (centred, np.where(np.arange(BLOCK_ROWS) == 5, np.nan, peak).astype(np.float32), "row 5: peak"),
    ):
        with pytest.raises(BadLogitsError, match=said):
            writer.write(range(BLOCK_ROWS), bad, peak=wrong)
    writer.write(range(BLOCK_ROWS), centred, peak=peak)
    stored = (store.path / "teachers/new/peak/c.0.0").read_bytes()[: 4 * BLOCK_ROWS]
    np.testing.assert_array_equal(np.frombuffer(stored, np.float32), peak)
    writer.close()


class Several(Exception):
    """A second thread takes the lock of the part."""


def begun_by_threads(writer: CaptureWriter, monkeypatch: pytest.MonkeyPatch) -> int:
    """How many of several threads that write their first blocks at once go on to take the lock of the part."""
    blocks = list(writer.missing_blocks())
    taken, start, second = [], threading.Barrier(len(blocks)), threading.Event()
    take = Lease.take

    def waiting(lease: Lease) -> bool:
        taken.append(threading.get_ident())
        if len(taken) > 1:
            second.set()
        if second.wait(1.0):
            raise Several
        return take(lease)

    def write(rows: range) -> None:
        start.wait()
        with suppress(Several):
            writer.write(rows, peaked(len(rows), CLASSES))

    monkeypatch.setattr(Lease, "take", waiting)
    threads = [threading.Thread(target=write, args=(rows,)) for rows in blocks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return len(taken)


def test_one_of_several_threads_begins_a_part(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = store.capture("new", provenance={})
    assert begun_by_threads(writer, monkeypatch) == 1
    monkeypatch.undo()
    assert writer.seal()
    assert verify(store.path, deep=True).exit_code == 0


def test_without_the_lock_several_would(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control."""
    writer = store.capture("new", provenance={})
    writer._beginning = nullcontext()  # type: ignore[assignment]
    assert begun_by_threads(writer, monkeypatch) > 1
    monkeypatch.undo()
    writer.close()


# Blocks


def test_results_come_in_the_order_of_the_blocks_and_progress_in_that_of_their_ends(store: Store) -> None:
    blocks = every_block(store.grid, VIEWS)
    heard: list[tuple[str, int, int]] = []

    def slow(view: int, rows: range) -> tuple[int, int]:
        time.sleep(0.02 if rows.start == 0 else 0.0)
        return view, rows.start

    found = over_blocks(
        "look",
        blocks,
        slow,
        progress=lambda task, done, total, *_: heard.append((task, done, total)),
        done=100,
    )
    assert found == [(view, rows.start) for view, rows in blocks]
    assert heard[0] == ("look", 100, 100 + VIEWS * ROWS)
    assert heard[-1] == ("look", 100 + VIEWS * ROWS, 100 + VIEWS * ROWS)
    assert [done for _, done, _ in heard] == sorted({done for _, done, _ in heard})
    assert over_blocks("look", [], slow) == []


def test_no_call_is_under_way_when_an_error_is_raised(store: Store) -> None:
    blocks = every_block(store.grid, VIEWS)
    running, lock = [0], threading.Lock()

    def fails(view: int, rows: range) -> None:
        with lock:
            running[0] += 1
        try:
            if rows.start == 0:
                raise RuntimeError("the first")
            time.sleep(0.1)
        finally:
            with lock:
                running[0] -= 1

    with pytest.raises(RuntimeError, match="the first"):
        over_blocks("look", blocks, fails)
    assert running == [0]


def test_a_scan_sees_every_row(store: Store) -> None:
    for name in ("half", "full"):
        capture = store.teachers[name]
        least = min(float(capture.read(slice(None), view).min()) for view in range(VIEWS))
        assert scan(capture).spread == -least


def test_a_stream_of_all_teachers_does_not_count_one_twice(store: Store) -> None:
    teachers = list(store.teachers)
    compress(store, teachers[0], "smaller", {"max_kl": 1e-2})
    batch = next(iter(store.stream(4, inputs=False)))
    assert list(batch.logits) == teachers
    alone = next(iter(store.stream(4, teachers=["smaller"], inputs=False)))
    assert list(alone.logits) == ["smaller"]


def test_codes_are_shifted_no_further_than_they_always_were() -> None:
    """The shift is part of what a compressed capture is. Another range of shifts would give other bytes on a resumption."""
    logits = np.linspace(0, -20, 64, dtype=np.float32).reshape(1, -1)
    with pytest.MonkeyPatch.context() as patched:
        # A codec that packs the better, the further the codes are shifted.
        patched.setattr(choose_encoding, "compress", lambda _, codes: b" " * int(2**17 - int(codes.max())))
        chosen = fit_budget(1e-6, spread=20.0, samples=[logits])
    assert chosen.dtype == "uint16"
    code = int(ErrorBudget(1e-6, 1.0, 0.0, "uint16").encode(logits, 0, "")["logits"].max())
    assert 0 < chosen.shift == 15 - code.bit_length()


def test_a_k_whose_logits_float16_does_not_hold_is_no_good() -> None:
    """Stored as -inf they would be decoded as such, whatever is measured of the few that are left."""
    row = np.array([[0.0, -1e5, -1e5, -1e5]], np.float32)
    order = np.argsort(-row, axis=1, kind="stable")
    assert choose_encoding._top_k_kl(row, order, 1, 1.0).tolist() == [0.0]
    assert choose_encoding._top_k_kl(row, order, 2, 1.0).tolist() == [np.inf]
