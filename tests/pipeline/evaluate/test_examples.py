"""The evaluation set: its labels count in the classes of the transfer set, whatever the order of its own."""

import logging
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from support import experiments
from support.experiments import document, parsed, run_document, student, train

from logitstore.pipeline.evaluation_set import EvaluationExamples, warn_if_unlike, warn_of_first_class
from logitstore.pipeline.models.class_names import match_classes
from logitstore.pipeline.workspace import Workspace
from logitstore.storage.errors import BadDataError, ConfigError

NAMES = [f"stroke {c}" for c in range(4)]


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A folder with the data."""
    experiments.write_data(tmp_path)
    return tmp_path


def opened(base: Path, content: dict[str, Any]) -> EvaluationExamples:
    """The evaluation set of a document."""
    work = Workspace.of_folder(parsed(content, base), base / "out")
    return EvaluationExamples(work.experiment, work.rows)


def with_test_set(base: Path, names: list[str] | None, labels: Any, **args: Any) -> dict[str, Any]:
    """A document whose evaluation set has other names and labels."""
    held = {} if names is None else {"class_names": np.array(names)}
    inputs = np.load(base / "test.npz")["inputs"]
    np.savez(base / "other.npz", inputs=inputs, labels=np.asarray(labels), **held)
    content = document()
    content["evaluation_set"]["args"] = {"file": "other.npz"} | args
    return content


def test_without_an_evaluation_set_nothing_can_be_evaluated(base: Path) -> None:
    content = document()
    del content["evaluation_set"]
    with pytest.raises(
        ConfigError, match=r"evaluation_set: expected the labelled examples .*; add \[evaluation_set\]"
    ):
        opened(base, content)


@pytest.mark.parametrize("order", [[3, 1, 0, 2], [2, 0], [1]])
def test_classes_in_another_order_or_fewer_are_taken_by_name(base: Path, order: list[int]) -> None:
    labels = np.load(base / "test.npz")["labels"]
    place = {number: own for own, number in enumerate(order)}
    own = [place.get(label, -1) for label in labels.tolist()]
    examples = opened(base, with_test_set(base, [NAMES[number] for number in order], own))
    found = examples.fetch(range(len(examples)))[1]
    assert found.tolist() == [label if label in place else -1 for label in labels.tolist()]
    assert examples.fetch([2, 5])[1].tolist() == found[[2, 5]].tolist()


@given(st.permutations(NAMES), st.integers(1, 4), st.permutations(NAMES))
def test_a_label_keeps_its_name(own: list[str], count: int, wanted: list[str]) -> None:
    found = match_classes(own[:count], wanted, 4, "evaluation_set")
    numbers = list(range(count)) if found is None else found.tolist()
    assert [wanted[number] for number in numbers] == own[:count]


def test_a_set_in_another_order_has_the_scores_of_the_set_in_order(base: Path) -> None:
    """Teachers, ensemble, students and sets; the score of before is not taken, though all weights are the same."""
    order = [3, 1, 0, 2]
    own = [order.index(label) for label in np.load(base / "test.npz")["labels"].tolist()]
    content = document()
    content["teacher"] = [experiments.teacher("wide", members=2)]
    content["cluster"]["teacher"] = "wide-0"
    content["student"] = [student("soft", teachers={"wide": 1.0}, train=train(seeds=[0]))]
    plain = run_document(content, base, base / "out")
    content["evaluation_set"] = with_test_set(base, [NAMES[number] for number in order], own)[
        "evaluation_set"
    ]
    moved = run_document(content, base, base / "out")
    assert len(plain.table) == 4 and moved.table == plain.table
    assert moved.errors_inside == plain.errors_inside
    assert sum(line.startswith("evaluate") for line in moved.done) == 5


def test_scores_by_number_are_others(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The negative control: what a set in another order had for scores before."""
    order = [3, 1, 0, 2]
    own = [order.index(label) for label in np.load(base / "test.npz")["labels"].tolist()]
    content = with_test_set(base, [NAMES[number] for number in order], own)
    monkeypatch.setattr("logitstore.pipeline.evaluation_set.match_classes", lambda *_: None)
    assert opened(base, content).fetch(range(9))[1].tolist() == own[:9]


@pytest.mark.parametrize(
    ("names", "strange", "instead"),
    [
        ([*NAMES[:3], "stroke x"], "stroke x", "stroke 3"),  # renamed
        ([*NAMES, "stroke 4"], "stroke 4", "stroke 0"),  # one more
        ([*NAMES[1:], "tick"], "tick", "stroke 0"),  # one more and one less
        (["images"], "images", "stroke 0"),
        (["01", "02", "03", "04"], "01", "stroke 0"),
        (["0", "1", "2"], "0", "stroke 0"),  # numbers, but not as many
    ],
)
def test_a_class_of_another_name_is_refused(base: Path, names: list[str], strange: str, instead: str) -> None:
    content = with_test_set(base, names, np.arange(70) % len(names))
    with pytest.raises(BadDataError) as caught:
        opened(base, content)
    assert str(caught.value) == (
        f"evaluation_set: class '{strange}': expected a class of the transfer set, such as '{instead}', "
        "found a name that none of its 4 classes has; "
        "name the classes as the transfer set does, or evaluate on examples of the same classes"
    )


def test_numbers_with_and_without_a_zero_are_other_names() -> None:
    plain, padded = [str(n) for n in range(1, 13)], [f"{n:02}" for n in range(1, 13)]
    for own, wanted in ((sorted(plain), padded), (padded, sorted(plain)), (padded[:9], plain[:9])):
        with pytest.raises(BadDataError, match=f"class '{own[0]}': expected .* such as '{wanted[0]}', found"):
            match_classes(own, wanted, len(wanted), "evaluation_set")
    assert match_classes(["2", "10"], sorted(plain), 12, "evaluation_set").tolist() == [4, 1]  # type: ignore[union-attr]


def test_case_underscores_and_forms_of_unicode_make_no_difference() -> None:
    wanted = ["Äpfel", "red_fox", "Z"]
    own = [unicodedata.normalize("NFD", "äpfel"), "Z", "Red Fox"]
    assert match_classes(own, wanted, 3, "m").tolist() == [0, 2, 1]  # type: ignore[union-attr]
    # Where only case tells two of them apart, it counts; and so does the form.
    assert match_classes(["a", "A"], ["A", "a"], 2, "m").tolist() == [1, 0]  # type: ignore[union-attr]
    assert match_classes(["A"], ["a", "A"], 2, "m").tolist() == [1]  # type: ignore[union-attr]
    assert match_classes(["a", "A"], ["a", "A"], 2, "m") is None
    both = [unicodedata.normalize("NFC", "é"), unicodedata.normalize("NFD", "é")]
    assert match_classes(both[::-1], both, 2, "m").tolist() == [1, 0]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("names", "wanted", "is_said"),
    [
        (None, NAMES, True),
        (["0", "1", "2", "3"], NAMES, True),
        (NAMES, None, True),
        (NAMES, ["0", "1", "2", "3"], True),
        (None, None, False),
        (None, ["0", "1", "2", "3"], False),
        (["0", "1"], None, False),
        (["0", "1", "2"], ["0", "1", "2", "3"], False),
    ],
)
def test_numbers_are_taken_where_one_side_has_no_names(
    names: list[str] | None, wanted: list[str] | None, is_said: bool, caplog: pytest.LogCaptureFixture
) -> None:
    assert match_classes(names, wanted, 4, "evaluation_set") is None
    said = "evaluation_set: labels are taken for the numbers of the transfer set's classes"
    assert [record.levelno for record in caplog.records if said in record.getMessage()] == (
        [logging.WARNING] if is_said else []
    )


@pytest.mark.parametrize(("own", "wanted", "where"), [("aba", "abc", "m"), ("abc", "abb", "transfer_set")])
def test_two_classes_of_one_name_are_refused(own: str, wanted: str, where: str) -> None:
    with pytest.raises(
        BadDataError, match=f"^{where}: class_names: expected each name once, found '.' 2 times;"
    ):
        match_classes(list(own), list(wanted), 3, "m")
    assert (
        match_classes(list("aab"), list("aab"), 3, "m") is None
    )  # as in ImageNet, whose cranes are a bird and a machine


def test_other_numbers_of_classes_do_not_agree() -> None:
    for names, wanted in ((NAMES[:3], None), ([*NAMES, "x"], None), (NAMES, ["0", "1", "2"])):
        with pytest.raises(
            BadDataError, match="evaluation_set: class 'stroke 0': expected a class of the tra"
        ):
            match_classes(names, wanted, 4, "evaluation_set")


class Numbered:
    """A user's own set without names: its labels are numbers."""

    def __init__(self, label: int) -> None:
        self.label = label

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return np.zeros(experiments.SHAPE, np.uint8), self.label


def numbered(label: int) -> Numbered:
    """A factory."""
    return Numbered(label)


def test_labels_of_a_set_without_names_are_classes_of_the_transfer_set(base: Path) -> None:
    content = document()
    for label in (-1, 3, 4):
        content["evaluation_set"] = {"factory": f"{__name__}:numbered", "args": {"label": label}}
        if label < 4:
            assert opened(base, content).fetch([0, 1])[1].tolist() == [label, label]
            continue
        with pytest.raises(
            BadDataError,
            match=r"evaluation_set, example 0: expected a label from -1 to 3, a class of the transfer set, found 4",
        ):
            opened(base, content)


def test_folders_of_images_are_matched_by_name(tmp_path: Path) -> None:
    for place, names in (("train", ["ant", "bee", "cow"]), ("test", ["ant", "cow"]), ("flat", ["."])):
        for name in names:
            (tmp_path / place / name).mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((4, 4), ord(name[0]), np.uint8)).save(tmp_path / place / name / "0.png")
    content = document()
    folder = {"factory": "logitstore.pipeline.datasets:image_folder"}
    content["transfer_set"] = folder | {"args": {"root": "train"}}
    content["evaluation_set"] = folder | {"args": {"root": "test"}}
    assert opened(tmp_path, content).fetch([0, 1])[1].tolist() == [0, 2]
    content["evaluation_set"]["args"]["root"] = "flat"
    with pytest.raises(
        BadDataError, match=r"evaluation_set: expected labelled examples, .* found a set without"
    ):
        opened(tmp_path, content)


class Reversed:
    """A set of one's own, without a fingerprint, whose classes stand in another order."""

    class_names = NAMES[::-1]

    def __init__(self, file: Path) -> None:
        with np.load(file) as arrays:
            self._inputs, self._labels = arrays["inputs"], arrays["labels"]

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> Any:
        return self._inputs[index], len(NAMES) - 1 - int(self._labels[index])


def reversed_set(folder: str) -> Reversed:
    """Factory of an experiment."""
    return Reversed(Path(folder) / "test.npz")


def test_a_set_without_a_fingerprint_may_have_its_classes_in_another_order(base: Path) -> None:
    """A second call of the factory is compared with the first in the same numbers."""
    content = document()
    plain = run_document(content, base, base / "out")
    content["evaluation_set"] = {"factory": f"{__name__}:reversed_set", "args": {"folder": str(base)}}
    own = run_document(content, base, base / "out")
    assert own.table == plain.table and any(line.startswith("evaluate") for line in own.done)


def with_inputs(base: Path, change: Any, dtype: str) -> dict[str, Any]:
    """A document whose transfer set is of float32, and whose evaluation set is changed and of a dtype."""
    content = document()
    for table, name in (("transfer_set", "train"), ("evaluation_set", "test")):
        with np.load(base / f"{name}.npz") as arrays:
            inputs, labels = arrays["inputs"] / np.float32(255), arrays["labels"]
        if name == "test":
            inputs = change(inputs).astype(dtype)
        np.savez(base / f"{name}_float.npz", inputs=inputs, labels=labels, class_names=NAMES)
        content[table]["args"] = {"file": f"{name}_float.npz"}
    return content


def test_inputs_of_another_kind_than_the_transfer_sets_are_refused(base: Path) -> None:
    opened(base, with_inputs(base, lambda x: x, "float16"))  # control: fractions of another size
    with pytest.raises(
        BadDataError, match="expected inputs of float32, as in the transfer set, found uint8; prepare both"
    ):
        opened(base, with_inputs(base, lambda x: x * 255, "uint8"))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda x: x, ""),
        (lambda x: x * 0.8, ""),
        (lambda x: x * 255, "are unlike those of the transfer set"),
        (lambda x: x / 255, "are unlike those of the transfer set"),
        (lambda x: x + 2 * x.std(), "are unlike those of the transfer set"),
        (lambda x: x[..., None], "those of the transfer set have"),
    ],
)
def test_inputs_of_another_scale_or_shape_than_the_transfer_sets_are_warned_of(
    base: Path, caplog: pytest.LogCaptureFixture, change: Any, said: str
) -> None:
    work = Workspace.of_folder(parsed(with_inputs(base, change, "float32"), base), base / "out")
    warn_if_unlike(EvaluationExamples(work.experiment, work.rows), work.rows)
    assert (said in caplog.text) if said else not caplog.records


def test_an_evaluation_of_inputs_of_another_scale_says_so(
    base: Path, caplog: pytest.LogCaptureFixture
) -> None:
    content = with_inputs(base, lambda x: x * 255, "float32")
    run_document(content | {"student": content["student"][2:]}, base, base / "out")
    assert caplog.text.count("are unlike those of the transfer set") == 1


@pytest.mark.parametrize(
    ("names", "labels", "is_said"),
    [(None, [1, 2, 3, -1], True), (None, [0, 2, 3], False), (None, [2, 3], False), (NAMES, [1, 2, 3], False)],
)
def test_labels_that_seem_to_count_from_one_are_warned_of(
    base: Path, caplog: pytest.LogCaptureFixture, names: list[str] | None, labels: list[int], is_said: bool
) -> None:
    own = np.resize(labels, len(np.load(base / "test.npz")["labels"]))
    examples = opened(base, with_test_set(base, names, own))
    caplog.clear()
    warn_of_first_class(examples, examples.fetch(range(len(examples)))[1])
    assert ("evaluation_set: no example of class 0: the labels run from 1 to 3" in caplog.text) == is_said


def test_an_evaluation_by_labels_that_count_from_one_says_so(
    base: Path, caplog: pytest.LogCaptureFixture
) -> None:
    labels = np.maximum(np.load(base / "test.npz")["labels"], 1)
    content = with_test_set(base, None, labels)
    run_document(content | {"student": content["student"][2:]}, base, base / "out")
    assert caplog.text.count("if yours count from 1, set first_label = 1 in args") == 1
