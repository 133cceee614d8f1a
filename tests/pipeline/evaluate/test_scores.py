"""The table: figures over seeds, scores that are kept and read back, and what a verdict may compare."""

import json
import math
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import experiments
from support.experiments import MLP_FACTORY, document, parsed, student

from logitstore.pipeline.cluster.errors_inside import ErrorsInside
from logitstore.pipeline.evaluate.examples import EvaluationExamples
from logitstore.pipeline.evaluate.scores import (
    Score,
    Scores,
    Subject,
    TableRow,
    ensemble_name,
    ensembles,
    errors_in_sets,
    subjects,
    table,
    verdicts,
)
from logitstore.pipeline.experiment.document import Experiment
from logitstore.pipeline.workspace import Workspace

SCORES = st.builds(
    Score,
    examples=st.just(100),
    errors=st.integers(0, 100),
    nll=st.floats(0, 20),
    calibration_error=st.floats(0, 1),
    parameters=st.just(146),
)


def score(errors: int) -> Score:
    """A score of a hundred examples."""
    return Score(100, errors, errors / 10, 0.25, 146)


def subject(name: str, key: str, kind: str = "student") -> Subject:
    """Something to be scored."""
    return Subject(kind, name, key, {}, "", f"sha256:{key}", name if kind == "student" else "")


# Figures


@given(st.lists(SCORES, min_size=1, max_size=6))
def test_figures_are_mean_and_spread_over_seeds(scores: list[Score]) -> None:
    row = TableRow("student", "small", tuple(scores))
    for field in ("errors", "nll", "calibration_error", "parameters"):
        values = [float(getattr(s, field)) for s in scores]
        assert row.average(field) == pytest.approx(mean(values))
        if len(values) == 1:
            assert math.isnan(row.spread(field))
        else:
            assert row.spread(field) == pytest.approx(stdev(values))
    assert row.average("accuracy") == pytest.approx(1 - row.average("errors") / 100)
    if len(scores) > 1:
        assert row.spread("accuracy") == pytest.approx(row.spread("errors") / 100, abs=1e-12)


def test_a_table_has_a_row_a_model_and_a_score_a_seed(tmp_path: Path) -> None:
    found = [subject("wide", "a", "teacher"), *(subject("small", key) for key in "bcd")]
    scores = Scores(tmp_path / "evaluation.json")
    assert table(found, scores) == []
    for number, one in enumerate(found[:3]):
        scores.put(one, score(number))
    assert table(found, scores) == [
        TableRow("teacher", "wide", (score(0),)),
        TableRow("student", "small", (score(1), score(2))),  # the third was not measured yet
    ]


# Scores


@given(st.dictionaries(st.text("0123456789abcdef", min_size=1, max_size=8), SCORES, min_size=1, max_size=4))
def test_scores_survive(kept: dict[str, Score]) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "evaluation.json"
        scores = Scores(path)
        for key, value in kept.items():
            scores.put(subject("x", key), value)
        again = Scores(path)
        for key, value in kept.items():
            assert again.get(subject("y", key)) == value
        assert again.get(subject("x", "none")) is None


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[1]",
        b'"text"',
        b"null",
        b'{"a": 1}',
        b'{"a": {"errors": 3}}',
        b'{"a": {"new": 1}}',
        b"\xff\xfe",
    ],
)
def test_a_broken_file_counts_as_none_and_is_measured_anew(tmp_path: Path, content: bytes) -> None:
    folder = experiments.copy_finished(tmp_path)
    path = folder / "out" / "evaluation.json"
    expected = path.read_bytes()
    path.write_bytes(content)
    assert Scores(path).get(subject("x", "a")) is None
    if content in (b"{", b'{"a": {"errors": 3}}'):  # two of them through a whole run
        report = experiments.run_document(document(), folder, folder / "out")
        assert len(report.done) == 9
        assert json.loads(path.read_bytes()) == json.loads(expected)


# What there is to score


def finished_subjects(content: dict[str, Any]) -> list[Subject]:
    """What of a document is there in the finished folder."""
    folder = experiments.finished()
    experiment = parsed(content, folder)
    work = Workspace.of_folder(experiment, folder / "out")
    return list(subjects(work, EvaluationExamples(experiment, work.rows)))


def test_keys_belong_to_weights_and_to_the_evaluation_set() -> None:
    found = finished_subjects(document())
    assert [s.run or s.name for s in found] == [
        "wide", "deep", "wide + deep, arithmetic mean",
        "soft-seed0", "soft-seed1", "both-seed0", "hard-seed0", "hard-seed1",
        "wide-2x2",
    ]  # fmt: skip
    assert len({s.key for s in found}) == len(found)
    assert [s.key for s in finished_subjects(document())] == [s.key for s in found]
    content = document()
    content["evaluation_set"]["args"]["fraction"] = 0.5
    assert not {s.key for s in finished_subjects(content)} & {s.key for s in found}


def test_a_model_that_would_be_another_is_not_there() -> None:
    content = document()
    content["student"][0]["temperature"] = 9.0
    assert [s.run for s in finished_subjects(content) if s.kind == "student"] == [
        "both-seed0", "hard-seed0", "hard-seed1",
    ]  # fmt: skip


def test_an_ensemble_of_other_shares_or_another_mean_has_another_key() -> None:
    keys = set()
    for changes in ({}, {"teachers": {"wide": 1.0, "deep": 1.0}}, {"mean": "geometric"}):
        content = document()
        content["student"][1] |= changes
        keys |= {s.key for s in finished_subjects(content) if s.kind == "ensemble"}
    assert len(keys) == 3


def experiment_with(*students: dict[str, Any]) -> Experiment:
    """The tiny experiment with these students."""
    return parsed(document() | {"student": list(students)}, Path())


def test_ensembles_are_those_that_students_learn_from_each_once() -> None:
    pair = {"wide": 1.0, "deep": 1.0}
    experiment = experiment_with(
        student("a", teachers=pair),
        student("b", teachers={"wide": 7.0, "deep": 7.0}, temperature=9.0),
        student("c", teachers=pair, mean="geometric"),
        student("d"),
        student("e", targets="hard"),
    )
    half = {"wide": 0.5, "deep": 0.5}
    assert ensembles(experiment) == [(half, "arithmetic"), (half, "geometric")]
    assert ensemble_name(half, "geometric") == "wide + deep, geometric mean"


# Verdicts


def verdict_of(soft: dict[str, Any], hard: dict[str, Any], errors: tuple[int, int] = (3, 5)) -> list[str]:
    """The verdicts on two students with two seeds each."""
    experiment = experiment_with(soft, hard)
    rows = [
        TableRow("student", name, (score(e), score(e + 1)))
        for name, e in ((soft["name"], errors[0]), (hard["name"], errors[1]))
    ]
    return verdicts(experiment, rows)


def test_a_verdict_says_which_is_better_in_the_mean() -> None:
    soft, hard = student("soft"), student("hard", targets="hard")
    figures = r"errors against \d\.\d in the mean"
    assert verdict_of(soft, hard) == [
        (
            "soft is better than hard: 3.5 errors against 5.5 in the mean (2 and 2 seeds), "
            "a difference of 2.0 ± 0.7 (standard error)."
        )
    ]
    for errors in ((5, 3), (4, 4)):  # equal is not better
        (sentence,) = verdict_of(soft, hard, errors)
        assert sentence.startswith("soft is not better than hard: ")
        assert pytest.importorskip("re").search(figures, sentence)


def test_a_difference_within_two_standard_errors_is_not_clear() -> None:
    """Two seeds, one error apart: the standard error of a difference is 0.7."""
    soft, hard = student("soft"), student("hard", targets="hard")
    for theirs, claim in ((4, "is not clearly better than"), (5, "is better than")):
        (sentence,) = verdict_of(soft, hard, (3, theirs))
        assert sentence.startswith(f"soft {claim} hard: ")


# Errors inside sets


@pytest.mark.parametrize("errors", [ErrorsInside(57, 40, 0.24, 0.09, 100), ErrorsInside(0, 0, 0.24)])
def test_errors_inside_sets_survive_and_make_no_row_of_the_table(
    tmp_path: Path, errors: ErrorsInside
) -> None:
    found = [subject("wide", "a", "teacher"), subject("wide-3x4", "b", "sets")]
    scores = Scores(tmp_path / "evaluation.json")
    scores.put(found[0], score(3))
    assert errors_in_sets(found, scores) is None
    scores.put(found[1], errors)
    again = Scores(tmp_path / "evaluation.json")
    kept = errors_in_sets(found, again)
    assert kept is not None and repr(kept) == repr(errors)  # NaN is not equal to itself
    assert table(found, again) == [TableRow("teacher", "wide", (score(3),))]


@pytest.mark.parametrize(
    "change",
    [
        {"args": {"hidden": [7]}},
        {"factory": "logitstore.pipeline.models:convnet", "args": {}},
        {"views": 0},
        {"rows": 0.5},
    ],
)
def test_a_verdict_compares_the_same_model_on_the_same_views_alone(change: dict[str, Any]) -> None:
    assert MLP_FACTORY not in change.values()
    assert verdict_of(student("soft"), student("hard", targets="hard") | change) == []
    assert verdict_of(student("soft") | change, student("hard", targets="hard") | change) != []


def test_there_is_no_verdict_on_what_has_no_score_or_no_counterpart() -> None:
    experiment = experiment_with(student("soft"), student("hard", targets="hard"))
    rows = [TableRow("student", "soft", (score(1),))]
    assert verdicts(experiment, rows) == []
    assert verdicts(experiment, [TableRow("teacher", "hard", (score(1),)), *rows]) == []
    assert verdict_of(student("soft"), student("softer")) == []
