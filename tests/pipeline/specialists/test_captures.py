"""Captures of specialists: logits corrected once, under columns that name their classes."""

import shutil
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from support.experiments import (
    BATCH_SIZE,
    BLOCK_ROWS,
    ROWS,
    VIEWS,
    contents,
    parsed,
    run_document,
    some_digits,
    train,
)
from support.special import SETS, Field, content, grounds
from support.stores import softmax

from logitstore.pipeline.cache import capture as capture_pass
from logitstore.pipeline.combine.stage import combine
from logitstore.pipeline.models.weights import load_weights
from logitstore.pipeline.runtime.inference import run_model
from logitstore.pipeline.specialists.captures import (
    SpecialistQuality,
    capture_specialists,
    column_of,
)
from logitstore.pipeline.specialists.dustbin import dustbin_shift
from logitstore.pipeline.specialists.stage import make_specialists
from logitstore.pipeline.specialists.todo import find_todo, special_rows
from logitstore.pipeline.specialists.training import specialist_network, train_specialists
from logitstore.pipeline.views import experiment_views
from logitstore.pipeline.workspace import Workspace
from logitstore.storage.api import open_store
from logitstore.storage.errors import BadDataError, SpecMismatch
from logitstore.storage.integrity.verify import verify


def ready(folder: Path, document: dict[str, Any]) -> Field:
    """The grounds with trained specialists, which are not captured."""
    field = Field(grounds(folder), document)
    with mock.patch("os.fsync"):
        train_specialists(field.work)
    return field


def captured(field: Field, **others: Any) -> list[str]:
    """Capture what is not."""
    with mock.patch("os.fsync"):
        return capture_specialists(field.work, **others)


def plain_logits(field: Field, number: int, view: int) -> Any:
    """What a specialist's own weights say of a view of all rows, uncorrected; batches as in the capture."""
    run = field.runs[number]
    network = specialist_network(field.work, run, special_rows(field.work, run))
    load_weights(network, field.models.weights_path("specialists", field.runs[number].name))
    make_view = experiment_views(field.experiment, field.rows)
    assert make_view is not None
    found = []
    for start in range(0, ROWS, BLOCK_ROWS):
        rows = range(start, min(start + BLOCK_ROWS, ROWS))
        inputs = make_view(field.rows.rows(rows)[0], view, np.array(rows, np.int64))
        found.append(run_model(network.eval(), inputs, BATCH_SIZE, where="specialist"))
    return np.concatenate(found)


@pytest.mark.parametrize("share", [0.5, 0.25])
def test_a_capture_is_the_network_with_the_correction_in_the_dustbin(tmp_path: Path, share: float) -> None:
    field = ready(tmp_path, content(share=share))
    assert captured(field) == ["pairs-0", "pairs-1"]
    labels = field.store.samples.labels
    for number, classes in enumerate(SETS):
        capture = field.store.teachers[f"pairs-{number}"]
        assert capture.classes.tolist() == [*classes, -1] and capture.shape == (VIEWS, ROWS, 3)
        prior = np.isin(labels, classes).mean()
        for view in range(VIEWS):
            expected = plain_logits(field, number, view)
            expected[:, -1] += dustbin_shift(float(prior), share)
            stored = capture.read(slice(None), view) + capture.peak(slice(None), view)[:, None]
            np.testing.assert_allclose(stored, expected, atol=5e-3)  # float16
            np.testing.assert_array_equal(
                capture.seen(slice(None), view), field.store.teachers["wide"].seen(slice(None), view)
            )
    assert not verify(field.store.path, deep=True).problems


def test_the_correction_is_seen_in_the_capture(tmp_path: Path) -> None:
    """Negative control of the comparison above: it is far larger than what float16 loses."""
    field = ready(tmp_path, content(share=0.25))
    special = special_rows(field.work, field.runs[0])
    assert abs(dustbin_shift(special.prior, special.share)) > 0.1


def test_its_identity_says_what_it_is(tmp_path: Path) -> None:
    field = ready(tmp_path, content(share=0.25))
    captured(field)
    identity = field.store.teachers["pairs-1"].part.spec.identity
    labels = field.store.samples.labels
    assert identity["head"] == {
        "kind": "specialist",
        "variant": "joint",
        "generalist": {"capture": "wide", "seal": field.store.teachers["wide"].digest},
        "clustering": {"name": "pairs", "digest": field.store.clustering("pairs").digest},
        "set": 1,
        "prior": pytest.approx(np.isin(labels, SETS[1]).mean()),
        "share": 0.25,
        "dustbin_corrected": True,
    }
    generalist = field.store.teachers["wide"].part.spec.identity
    assert {k: v for k, v in identity.items() if k not in ("head", "teacher")} == {
        k: v for k, v in generalist.items() if k != "teacher"
    }
    assert identity["teacher"]["weights"] != generalist["teacher"]["weights"]
    assert identity["teacher"]["head"] == {"kind": "softmax"}


def test_the_full_variant_keeps_all_classes_and_raises_the_others(tmp_path: Path) -> None:
    field = ready(tmp_path, content(variant="full", name="whole", share=0.75, sets=[0]))
    assert captured(field) == ["whole-0"]
    capture = field.store.teachers["whole-0"]
    assert capture.classes.tolist() == [0, 1, 2, 3]
    assert capture.part.spec.identity["head"]["variant"] == "full"
    expected = plain_logits(field, 0, 1)
    prior = float(np.isin(field.store.samples.labels, SETS[0]).mean())
    expected[:, [1, 3]] += dustbin_shift(prior, 0.75)
    np.testing.assert_allclose(softmax(capture.read(slice(None), 1), 1.0), softmax(expected, 1.0), atol=2e-3)


def test_a_capture_that_was_interrupted_ends_in_the_same_bytes(tmp_path: Path) -> None:
    whole = ready(tmp_path / "whole", content())
    captured(whole)
    cut = ready(tmp_path / "cut", content())
    genuine, calls = capture_pass.teacher_logits, []

    def interrupted(*args: Any) -> None:
        calls.append(args)
        if len(calls) > 7:
            raise KeyboardInterrupt
        genuine(*args)

    with mock.patch.object(capture_pass, "teacher_logits", interrupted), pytest.raises(KeyboardInterrupt):
        captured(cut)
    assert "teachers/pairs-0" in cut.store.unsealed()
    again = Field(tmp_path / "cut", content())
    assert captured(again) == ["pairs-0", "pairs-1"]
    assert contents(again.store.path) == contents(whole.store.path)
    assert captured(again) == []


def test_specialists_of_other_settings_do_not_take_a_name_that_is_taken(tmp_path: Path) -> None:
    grounds(tmp_path)
    run_document(content(sets=[0]), tmp_path, tmp_path / "out")
    before = contents(tmp_path / "out")
    for change in ({"share": 0.25}, {"seed": 9}, {"train": train(epochs=1)}, {"variant": "full"}):
        with pytest.raises(SpecMismatch) as caught:
            run_document(content(**{"sets": [0], **change}), tmp_path, tmp_path / "out")
        assert "with which it was trained" in str(caught.value)
        assert str(caught.value).endswith("change it back, or give the new ones another specialists.name")
    assert contents(tmp_path / "out") == before  # and nothing was trained for it
    done = run_document(content(sets=[0], share=0.25, name="quarter"), tmp_path, tmp_path / "out").done
    assert done == ["train specialist quarter-0", "capture specialist quarter-0"]


def test_a_specialist_that_is_not_trained_is_not_captured(tmp_path: Path) -> None:
    field = Field(grounds(tmp_path), content())
    with pytest.raises(BadDataError) as caught:
        captured(field)
    assert "none that were trained with this experiment and store; run `logitstore train`" in str(
        caught.value
    )


def elsewhere(field: Field, folder: Path, names: list[str]) -> Workspace:
    """A workspace of the same generalist on another transfer set, whose classes have these names."""
    inputs, labels = some_digits(40, seed=5)
    np.savez(folder / "more.npz", inputs=inputs, labels=labels, class_names=np.array(names))
    document = content()
    del document["specialists"]
    document["transfer_set"]["args"]["file"] = "more.npz"
    document["teacher"][0] = {
        **{k: v for k, v in document["teacher"][0].items() if k != "train"},
        "weights": str(field.models.weights_path("teachers", "wide")),
    }
    document["cache"] = {"batch_size": 16, "encoding": "float32"}
    del document["evaluation_set"]
    run_document(document, folder, folder / "more")
    return Workspace.of_folder(parsed(document, folder), folder / "more", device="cpu")


def test_they_are_run_over_another_transfer_set_too(tmp_path: Path) -> None:
    """As a generalist and its specialists are scored together on examples that they did not learn from."""
    field = ready(tmp_path, content())
    captured(field)
    other = elsewhere(field, tmp_path, [f"stroke {c}" for c in range(4)])
    assert captured(field, onto=other) == ["pairs-0", "pairs-1"]
    assert captured(field, onto=other) == []
    there = other.store
    capture = there.teachers["pairs-0"]
    assert capture.shape == (1, 40, 3) and capture.encoding.kind == "float32"
    head = capture.part.spec.identity["head"]
    assert head["generalist"]["seal"] == there.teachers["wide"].digest
    at_home = field.store.teachers["pairs-0"].part.spec.identity["head"]
    assert {**head, "generalist": None} == {
        **at_home,
        "generalist": None,
    }  # its prior is that of its training


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (
            ["stroke 1", "stroke 0", "stroke 2", "stroke 3"],
            "classes: expected those of the specialists' own store",
        ),
        (
            ["stroke 0", "stroke 1", "stroke 2", "x"],
            "class 'x': expected a class of the transfer set, such as",
        ),
    ],
)
def test_a_transfer_set_of_other_classes_is_refused(tmp_path: Path, names: list[str], said: str) -> None:
    """The same weights in the generalist's capture say nothing of the order of the classes."""
    field = ready(tmp_path, content())
    other = elsewhere(field, tmp_path, names)
    with pytest.raises(BadDataError, match=said):
        captured(field, onto=other)


def test_another_generalist_is_not_taken_for_theirs(tmp_path: Path) -> None:
    field = ready(tmp_path, content())
    document = content()
    del document["specialists"]
    document["teacher"][0]["seed"] = 8
    run_document(document, tmp_path, tmp_path / "more")
    other = Workspace.of_folder(parsed(document, tmp_path), tmp_path / "more")
    with pytest.raises(BadDataError, match="the generalist that the specialists began from"):
        captured(field, onto=other)


def test_how_good_they_are_is_said_of_their_own_columns() -> None:
    columns = np.array([1, 3, -1])
    assert column_of(columns, 5).tolist() == [2, 0, 2, 1, 2]
    quality = SpecialistQuality({"a": columns, "b": np.array([0, 2, -1])}, 5)
    logits = np.eye(3, dtype=np.float32)[[0, 1, 2, 2]] * 5
    quality.note("a", (0, 0), logits, np.array([1, 3, 4, -1]))
    quality.note("b", (0, 0), logits, np.array([0, 0, 1, 3]))
    assert (quality.tallies["a"].rows, quality.tallies["a"].right) == (3, 3)
    assert (quality.tallies["b"].rows, quality.tallies["b"].right) == (4, 3)
    assert not quality.compared


def test_a_capture_of_the_largest_few_gives_specialists_in_float16(tmp_path: Path) -> None:
    grounds(tmp_path)
    shutil.rmtree(tmp_path / "out" / "store.zarr")
    document = content(1, sets=[0])
    document["cache"]["encoding"] = {"top_k": 3}
    plain = {k: v for k, v in document.items() if k != "specialists"}
    from support.special import write_pairs

    write_pairs(run_document(plain, tmp_path, tmp_path / "out").store)
    store = run_document(document, tmp_path, tmp_path / "out").store
    assert store.teachers["pairs-0"].encoding.kind == "float16"
    assert run_document(document, tmp_path, tmp_path / "out").done == []


def test_a_combination_of_another_order_is_the_one_that_is_asked_for(tmp_path: Path) -> None:
    field = ready(tmp_path, content() | {"combine": {"name": "all"}})
    captured(field)
    assert find_todo(field.work).combine is not None
    with mock.patch("os.fsync"):
        combine(field.store, generalist="wide", specialists=["pairs-1", "pairs-0"], name="all")
    made_from = field.store.teachers["all"].provenance["combination"]["specialists"]
    assert [one["capture"] for one in made_from] == ["pairs-1", "pairs-0"]
    assert find_todo(field.work).combine is None
    fewer = (
        r"2 specialists \(pairs-1, pairs-0\), with which it was combined, found 1 \(pairs-0\); change it back"
    )
    for other, table, said in (
        (content(sets=[0]), {"name": "all"}, fewer),
        (content(), {"name": "all", "top": 2}, "expected top = 1, with which it was combined"),
    ):
        with pytest.raises(SpecMismatch, match=said):
            find_todo(Field(tmp_path, other | {"combine": table}).work)


TRANSFORM = {"transform": {"max_kl": 1e-2, "rows": 40, "seed": 2}}


def test_a_combination_is_stored_as_its_table_says_and_as_the_command_stores_it(
    tmp_path: Path, sentence: Any
) -> None:
    document = content() | {"combine": {"name": "all", "encoding": TRANSFORM}}
    field = ready(tmp_path, document)
    with mock.patch("os.fsync"):
        make_specialists(field.work)
        report = combine(
            open_store(field.store.path),
            generalist="wide",
            specialists=["pairs-*"],
            name="all",
            encoding=TRANSFORM,
        )
    assert not report.made
    encoding = open_store(field.store.path).teachers["all"].encoding.describe()
    assert (encoding["kind"], encoding["calibration"]) == ("transform", {"rows": 40, "seed": 2})
    assert find_todo(field.work).combine is None
    for other, said in (
        ({}, r"expected encoding\.kind = 'transform', with which it was combined, found 'float16'"),
        ({"encoding": "float32"}, r"expected encoding\.kind = 'transform', .* found 'float32'"),
        (
            {"encoding": {"transform": {**TRANSFORM["transform"], "seed": 3}}},
            r"encoding\.calibration\.seed = 2",
        ),
    ):
        with pytest.raises(SpecMismatch, match=said) as caught:
            find_todo(Field(tmp_path, document | {"combine": {"name": "all", **other}}).work)
        sentence(caught.value)


def test_the_identity_of_a_combination_without_an_encoding_is_as_ever(tmp_path: Path) -> None:
    field = ready(tmp_path, content() | {"combine": {"name": "all"}})
    with mock.patch("os.fsync"):
        make_specialists(field.work)
    identity = field.store.teachers["all"].part.spec.identity
    assert identity["encoding"] == {"kind": "float16"}
    assert identity.keys() == {"augmentation", "combination", "encoding", "transfer_set", "views"}


def test_specialists_that_are_added_to_a_combination_are_refused_before_they_are_trained(
    tmp_path: Path,
) -> None:
    field = ready(tmp_path, content(sets=[0]) | {"combine": {"name": "all"}})
    captured(field)
    with mock.patch("os.fsync"):
        combine(field.store, generalist="wide", specialists=["pairs-0"], name="all")
    more = Field(tmp_path, content() | {"combine": {"name": "all"}})
    with pytest.raises(
        SpecMismatch, match=r"expected 1 specialist \(pairs-0\), with which it was combined, found 2"
    ):
        find_todo(more.work)
    assert not find_todo(field.work)


def test_their_names_are_known_beforehand(tmp_path: Path) -> None:
    field = Field(grounds(tmp_path), content(name="experts"))
    assert [run.name for run in field.runs] == ["experts-0", "experts-1"]
