"""Laws of evaluating the captures of a store: blocks, views and the order of reading change nothing."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from numpy.typing import NDArray

from logitstore.cli.main import cli
from logitstore.pipeline.evaluate.captures import Comparison, comparisons, evaluate_captures, scored_captures
from logitstore.pipeline.evaluate.coverage import conditional, coverage, covers_of
from logitstore.pipeline.evaluate.metrics import evaluate_logits
from logitstore.storage.api import Store, create_store
from logitstore.storage.errors import BadDataError, ConfigError, PartNotFound, SpecMismatch
from logitstore.storage.sharing.removing import remove_parts

ROWS, CLASSES = 150, 8
SETS = [[0, 1, 2, -1], [2, 3, 4, -1]]


def written(store: Store, name: str, logits: NDArray[Any], **more: Any) -> NDArray[np.float32]:
    """Write a capture (view, row, class) in float32; as it comes back."""
    provenance = {"teacher": name, **more.pop("provenance", {})}
    views = len(logits)
    with store.capture(name, provenance=provenance, views=views, encoding="float32", **more) as capture:
        for view in range(views):
            for rows in capture.missing_blocks(view):
                capture.write(rows, logits[view, rows], view=view)
    return np.stack([store.teachers[name].read(slice(None), view) for view in range(views)])


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, dict[str, NDArray[np.float32]]]:
    """A store with a generalist, two specialists, a combination that names them, and a second teacher."""
    random = np.random.default_rng(0)
    labels = random.integers(-1, CLASSES, ROWS)
    store = create_store(
        tmp_path_factory.mktemp("scores") / "store.zarr",
        num_classes=CLASSES,
        labels=labels,
        digests=np.arange(ROWS, dtype=np.uint64),
        block_rows=32,
    )

    def logits(columns: int) -> NDArray[np.float32]:
        made: NDArray[np.float32] = random.normal(size=(2, ROWS, columns)).astype(np.float32)
        return made

    found = {"generalist": written(store, "generalist", logits(CLASSES))}
    for number, classes in enumerate(SETS):
        name = f"expert-{number}"
        found[name] = written(store, name, logits(len(classes)), classes=classes)
    origin = {
        "generalist": {"capture": "generalist", "seal": store.teachers["generalist"].digest},
        "specialists": [
            {"capture": f"expert-{number}", "seal": store.teachers[f"expert-{number}"].digest}
            for number in range(2)
        ],
        "top": 1,
    }
    found["combined"] = written(store, "combined", logits(CLASSES), provenance={"combination": origin})
    found["student"] = written(store, "student", logits(CLASSES))
    arrays = {
        "covariance": np.zeros((CLASSES, CLASSES), np.float32),
        "assignment": np.zeros(CLASSES, np.int64),
        "centres": np.zeros((1, CLASSES), np.float32),
        "sets": np.array([[5, 6, 7]], np.int64),
    }
    store.write_clustering(
        "other", arrays, identity={"capture": {"name": "generalist", "seal": origin["generalist"]["seal"]}}
    )
    return store, found


@pytest.mark.parametrize("view", [0, 1])
def test_every_figure_is_that_of_the_whole_arrays(
    made: tuple[Store, dict[str, NDArray[np.float32]]], view: int
) -> None:
    """Five blocks, the last not full, against the same functions on everything at once."""
    store, logits = made
    labels = store.samples.labels
    found = evaluate_captures(store, comparisons(store), view=view, top_k=3)
    assert list(found.metrics) == ["generalist", "combined", "student"]
    for name, metrics in found.metrics.items():
        whole = evaluate_logits(logits[name][view], labels, top_k=3)
        assert (metrics.rows, metrics.errors, metrics.top_k_errors) == (
            whole.rows,
            whole.errors,
            whole.top_k_errors,
        )
        assert metrics.nll == pytest.approx(whole.nll, rel=1e-12)
    (compared,) = found.compared
    assert (compared.comparison.generalist, compared.comparison.combined) == ("generalist", "combined")
    before, after = logits["generalist"][view], logits["combined"][view]
    special = np.arange(5)
    assert compared.special == 5
    assert compared.before == conditional(before, labels, special)
    assert compared.after == conditional(after, labels, special)
    table = coverage(
        before.argmax(1) == labels, after.argmax(1) == labels, labels, covers_of(SETS, CLASSES), num_sets=2
    )
    assert np.array_equal(compared.coverage.counts, table.counts)
    assert table.counts[0].min() > 0, "every cover must be met: else the table tests nothing"
    for number, one in enumerate(compared.specialists):
        classes = np.array(SETS[number])
        own = classes[:-1]
        assert (one.name, one.classes) == (f"expert-{number}", 3)
        assert one.generalist == conditional(before, labels, own)
        assert one.specialist == conditional(logits[one.name][view], labels, own, columns=classes)


def test_only_the_rows_that_are_asked_for_count(
    made: tuple[Store, dict[str, NDArray[np.float32]]],
) -> None:
    store, logits = made
    rows = np.arange(3, ROWS, 4)
    found = evaluate_captures(store, comparisons(store), rows=rows)
    labels = store.samples.labels[rows]
    assert found.metrics["student"].errors == evaluate_logits(logits["student"][0, rows], labels).errors
    assert found.compared[0].coverage.total.examples == (labels >= 0).sum()


def test_any_capture_is_compared_by_the_sets_of_a_clustering(
    made: tuple[Store, dict[str, NDArray[np.float32]]],
) -> None:
    store, logits = made
    asked = comparisons(store, generalist="generalist", clustering="other")
    assert [one.combined for one in asked] == ["combined", "student"]
    found = evaluate_captures(store, asked)
    assert found.compared[1].after == conditional(
        logits["student"][0], store.samples.labels, np.array([5, 6, 7])
    )
    assert found.compared[1].specialists == []


def test_specialists_have_no_metrics_of_their_own(
    made: tuple[Store, dict[str, NDArray[np.float32]]],
) -> None:
    store, _ = made
    assert scored_captures(store) == ["generalist", "combined", "student"]
    with pytest.raises(ConfigError, match="teachers/expert-0: expected all 8 classes, found 4 col"):
        evaluate_captures(store, captures=["expert-0"])


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"generalist": "generalist"}, ConfigError, "expected a generalist and a clustering, or neither"),
        ({"clustering": "other"}, ConfigError, "expected a generalist and a clustering, or neither"),
        ({"generalist": "nobody", "clustering": "other"}, PartNotFound, "teachers/nobody"),
        ({"generalist": "generalist", "clustering": "none"}, PartNotFound, "clusters/none"),
        (
            {"generalist": "expert-0", "clustering": "other"},
            ConfigError,
            "expected a generalist, which has all classes, found a capture of 4 columns",
        ),
    ],
)
def test_a_comparison_that_cannot_be_is_refused(
    made: tuple[Store, dict[str, NDArray[np.float32]]],
    arguments: dict[str, str],
    error: type[Exception],
    message: str,
) -> None:
    with pytest.raises(error, match=message):
        comparisons(made[0], **arguments)


def test_a_view_that_a_capture_lacks_is_refused(
    made: tuple[Store, dict[str, NDArray[np.float32]]],
) -> None:
    with pytest.raises(ConfigError, match="teachers/generalist: expected a view below 2, found 2; "):
        evaluate_captures(made[0], view=2)


def test_a_combination_of_another_capture_of_that_name_is_refused(tmp_path: Path) -> None:
    store = create_store(
        tmp_path / "store.zarr", num_classes=3, labels=[0, 1, 2], digests=np.arange(3, dtype=np.uint64)
    )
    logits = np.zeros((1, 3, 3), np.float32)
    written(store, "generalist", logits)
    origin = {"generalist": {"capture": "generalist", "seal": "sha256:" + "0" * 64}, "specialists": []}
    written(store, "combined", logits, provenance={"combination": origin})
    with pytest.raises(SpecMismatch, match="teachers/combined: expected the capture generalist that it was"):
        comparisons(store)
    written(store, "odd", logits, provenance={"combination": {"of": "others"}})
    store.teachers["combined"].part.spec.identity["combination"]["generalist"]["seal"] = store.teachers[
        "generalist"
    ].digest
    with pytest.raises(ConfigError, match="teachers/odd: expected a combination that says which generalist"):
        comparisons(store)


def test_a_combination_whose_generalist_was_removed_is_scored_and_not_compared(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "store.zarr"
    store = create_store(path, num_classes=3, labels=[0, 1, 2], digests=np.arange(3, dtype=np.uint64))
    written(store, "generalist", np.zeros((1, 3, 3), np.float32))
    origin = {
        "generalist": {"capture": "generalist", "seal": store.teachers["generalist"].digest},
        "specialists": [],
    }
    written(store, "combined", np.zeros((1, 3, 3), np.float32), provenance={"combination": origin})
    assert [one.generalist for one in comparisons(store)] == ["generalist"]  # negative control
    remove_parts(path, teachers=["generalist"])
    store.refresh()
    assert comparisons(store) == []
    (line,) = (entry.getMessage() for entry in caplog.records)
    assert line.endswith(
        "is not compared with its generalist: `logitstore rm` has removed teachers/generalist"
    )
    assert list(evaluate_captures(store).metrics) == ["combined"]


def test_without_labels_there_is_nothing_to_evaluate(tmp_path: Path) -> None:
    store = create_store(tmp_path / "store.zarr", num_classes=3, digests=np.arange(4, dtype=np.uint64))
    written(store, "wide", np.zeros((1, 4, 3), np.float32))
    with pytest.raises(BadDataError, match="expected labelled rows to evaluate on, found none; "):
        evaluate_captures(store)


def test_sets_of_another_store_are_refused(made: tuple[Store, dict[str, NDArray[np.float32]]]) -> None:
    wrong = Comparison("generalist", "student", [np.array([0, 99])])
    with pytest.raises(BadDataError, match="sets: expected classes from 0 to 7, found 99; "):
        evaluate_captures(made[0], [wrong])


# The command


def printed(*arguments: object) -> str:
    result = CliRunner().invoke(cli, ["evaluate", *map(str, arguments)])
    assert result.exit_code == 0, (result.stderr, result.stdout)
    return result.stdout


def test_the_command_evaluates_a_store_without_an_experiment(
    made: tuple[Store, dict[str, NDArray[np.float32]]],
) -> None:
    store, _ = made
    found = evaluate_captures(store, comparisons(store))
    answer = json.loads(printed(store.path, "--json"))
    assert [(one["name"], one["errors"]) for one in answer["captures"]] == [
        (name, metrics.errors) for name, metrics in found.metrics.items()
    ]
    (compared,) = answer["comparisons"]
    theirs = found.compared[0]
    assert (compared["generalist"], compared["combined"]) == ("generalist", "combined")
    assert compared["conditional"]["after"]["correct"] == theirs.after.correct
    assert [(row["covering"], row["examples"], row["change"]) for row in compared["coverage"]] == [
        (row.label, row.examples, row.change) for row in theirs.coverage.rows()
    ]
    assert [one["name"] for one in compared["specialists"]] == ["expert-0", "expert-1"]
    text = printed(store.path)
    for words in ("top-5", "combined against generalist", "5 special classes", "expert-1"):
        assert words in text, text


def test_the_command_compares_with_a_clustering(
    made: tuple[Store, dict[str, NDArray[np.float32]]],
) -> None:
    answer = json.loads(
        printed(made[0].path, "--generalist", "generalist", "--clustering", "other", "--view", 1, "--json")
    )
    assert [one["combined"] for one in answer["comparisons"]] == ["combined", "student"]


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["a", "b", "c"], "expected [EXPERIMENT] STORE, found 3 arguments"),
        (["a.toml", "b", "--view", "1"], "--view is for a store without an experiment"),
        (["b", "--device", "cpu"], "--device is for an experiment"),
    ],
)
def test_options_of_the_other_form_are_refused(arguments: list[str], line: str) -> None:
    result = CliRunner().invoke(cli, ["evaluate", *arguments])
    assert (result.exit_code, result.stdout) == (64, "")
    assert line in result.stderr


# Equal logits


NEAR = np.array([-5.0015, -5.0010, 0.0, -9.0], np.float32)
"""The first two are one number in float16; class 1 is the likelier."""


def near_ties(path: Path) -> Store:
    """A store of rows with the logits `NEAR` and the label 1, as a top-k capture and in codes so coarse that all tie."""
    store = create_store(
        path,
        num_classes=4,
        labels=np.ones(20, np.int64),
        digests=np.arange(20, dtype=np.uint64),
        block_rows=8,
    )
    rows = np.tile(NEAR, (20, 1))
    for name, encoding in (("largest", {"top_k": 3}), ("codes", {"max_kl": 1e-2}), ("half", "float16")):
        with store.capture(name, provenance={}, encoding=encoding) as capture:
            for block in capture.missing_blocks():
                capture.write(block, rows[block.start : block.stop])
    return store


def test_the_order_of_the_given_logits_counts_where_it_is_stored(tmp_path: Path) -> None:
    """A top-k capture stores it. Other encodings do not, and of equal logits the lower class counts."""
    found = evaluate_captures(near_ties(tmp_path / "s.zarr"), top_k=2).metrics
    assert {name: metrics.top_k_errors for name, metrics in found.items()} == {
        "largest": 0,
        "codes": 20,
        "half": 20,
    }
    assert {metrics.ties for metrics in found.values()} == {0}


def test_without_the_stored_order_the_lower_class_would_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The negative control."""
    monkeypatch.setattr("logitstore.storage.parts.reader.tell_apart", lambda dense, _: dense)
    assert evaluate_captures(near_ties(tmp_path / "s.zarr"), top_k=2).metrics["largest"].top_k_errors == 20


def test_ties_are_shown(tmp_path: Path) -> None:
    store = near_ties(tmp_path / "s.zarr")
    shown = CliRunner().invoke(cli, ["evaluate", str(store.path)])
    assert "ties" not in shown.output
    with store.capture("tied", provenance={}, encoding={"max_kl": 1e-2}) as capture:
        for block in capture.missing_blocks():
            capture.write(block, np.tile(np.float32([-0.1, 0.0, -3.0, -9.0]), (len(block), 1)))
    shown = CliRunner().invoke(cli, ["evaluate", str(store.path), "--json"])
    tied = json.loads(shown.output)["captures"][-1]
    assert (tied["name"], tied["ties"], tied["errors"]) == ("tied", 20, 20)
    assert "ties" in CliRunner().invoke(cli, ["evaluate", str(store.path)]).output


def test_a_capture_that_lacks_classes_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = near_ties(tmp_path / "s.zarr")
    for name, provenance in (("few", {}), ("special", {"head": {"kind": "specialist"}})):
        with store.capture(name, provenance=provenance, classes=[2, 0]) as capture:
            for block in capture.missing_blocks():
                capture.write(block, np.zeros((len(block), 2), np.float32))
    assert list(evaluate_captures(store).metrics) == ["largest", "codes", "half"]
    said = [record.getMessage() for record in caplog.records]
    assert said == [f"{store.path}: teachers/few is not scored: of the store it has 2 classes alone"]
