"""Laws of sets held in memory (`digits`, `arrays`), and of choosing examples."""

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from logitstore.pipeline.datasets import ArrayDataset, arrays, digits
from logitstore.pipeline.datasets.selection import parse_slice, random_order, select
from logitstore.storage.errors import BadDataError, ConfigError

INPUTS = np.random.default_rng(0).integers(0, 256, size=(6, 2, 3), dtype=np.uint8)
LABELS = np.array([0, 1, 2, 1, 0, -1])
TEST_DIGITS = "sha256:88e9f05b8d3b3f95d0048d6199fd37d46f7ff34d3b7610fcf62a20ed387b191e"


# In memory ---------------------------------------------------------------------------------------


def test_examples_are_given_one_by_one_and_several_at_once() -> None:
    dataset = ArrayDataset(INPUTS, LABELS, ["a", "b", "c"], ["r0", "r1", "r2", "r3", "r4", "r5"])
    assert len(dataset) == 6 and dataset.input_shape == (2, 3)
    for row, (example, label) in enumerate(dataset.__getitems__([0, 5, 3])):
        assert np.array_equal(example, INPUTS[[0, 5, 3][row]]) and label == LABELS[[0, 5, 3][row]]
    unlabelled = ArrayDataset(INPUTS)
    assert isinstance(unlabelled[2], np.ndarray) and unlabelled.class_names == ()
    assert [len(list(iter(each))) for each in (dataset, unlabelled)] == [6, 6]  # IndexError ends it


def test_a_data_loader_takes_them() -> None:
    batches = list(DataLoader(ArrayDataset(INPUTS, LABELS), batch_size=4))  # type: ignore[arg-type]
    inputs = np.concatenate([np.asarray(batch[0]) for batch in batches])
    labels = np.concatenate([np.asarray(batch[1]) for batch in batches])
    assert np.array_equal(inputs, INPUTS) and inputs.dtype == np.uint8
    assert np.array_equal(labels, LABELS) and labels.dtype == np.int64


def test_the_fingerprint_is_of_the_content() -> None:
    def fingerprint(
        inputs: np.ndarray = INPUTS, labels: np.ndarray | None = LABELS, **others: list[str]
    ) -> str:
        return ArrayDataset(inputs, labels, **others).fingerprint()  # type: ignore[arg-type]

    same = {
        fingerprint(),
        fingerprint(INPUTS.copy(order="F"), LABELS.astype(np.int8)),
        fingerprint(class_names=["0", "1", "2"]),
    }
    assert len(same) == 1 and same.pop().startswith("sha256:")
    floats = INPUTS.astype("<f4")
    assert fingerprint(floats) == fingerprint(floats.astype(">f4"))
    flipped = INPUTS.copy()
    flipped[5, 1, 2] ^= 1
    changed = [
        fingerprint(),
        fingerprint(flipped),
        fingerprint(INPUTS[::-1].copy()),
        fingerprint(INPUTS.reshape(6, 3, 2)),
        fingerprint(floats),
        fingerprint(labels=None),
        fingerprint(labels=LABELS[::-1].copy()),
        fingerprint(class_names=["0", "1", "2", "3"]),
        fingerprint(ids=list("abcdef")),
    ]
    assert len(set(changed)) == len(changed)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: ArrayDataset(INPUTS, LABELS[:5]),
            "transfer set: expected 6 labels, one an input, found 5; give the labels that belong to these inputs",
        ),
        (lambda: ArrayDataset(INPUTS, ids=["a"]), "transfer set: expected 6 ids, one an input, found 1; "),
        (
            lambda: ArrayDataset(INPUTS, LABELS, ["a", "b"]),
            "transfer set, example 2: expected a label from -1 to 1 (2 classes), found 2; ",
        ),
        (
            lambda: ArrayDataset(INPUTS, LABELS - 1),
            "transfer set, example 5: expected a label from -1 to 1 (2 classes), found -2; ",
        ),
        (
            lambda: ArrayDataset(INPUTS, np.array([0, 1, 2**31 - 1, 0, 1, 2])),
            (
                "transfer set, example 2: expected a label below 1000000, for a set without class names, "
                "found 2147483647; write -1 for an unknown label, or give class names"
            ),
        ),
        (
            lambda: ArrayDataset(INPUTS, LABELS.astype(np.float32)),
            "transfer set: expected integer labels of shape (rows,), found float32 of shape (6,); ",
        ),
        (
            lambda: ArrayDataset(INPUTS, LABELS, ["a", "b", "a"]),
            "transfer set: expected distinct class names, found 'a' 2 times; ",
        ),
        (
            lambda: ArrayDataset(INPUTS.astype(np.int32)),
            "transfer set: expected inputs as uint8 or float, or rows of token ids as int64, found inputs as int32 of 3 axes; ",
        ),
        (
            lambda: ArrayDataset(INPUTS.astype(np.int64)),  # images: nobody would scale them
            "transfer set: expected inputs as uint8 or float, or rows of token ids as int64, found inputs as int64 of 3 axes; ",
        ),
        (
            lambda: ArrayDataset(INPUTS[:0]),
            "transfer set: expected inputs of shape (rows, …), with 1 or more rows, found inputs of shape (0, 2, 3); ",
        ),
        (
            lambda: ArrayDataset(np.array([[1.0], [math.nan], [math.inf]], dtype=np.float32)),
            "transfer set, example 1: expected finite inputs, found NaN or an infinite number; ",
        ),
    ],
)
def test_arrays_that_do_not_fit_are_named(make, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(BadDataError) as caught:
        make()
    assert str(caught.value).startswith(message)


# Digits ------------------------------------------------------------------------------------------


def test_the_digits_are_split_without_overlap() -> None:
    whole, train, test = digits(), digits("train"), digits("test")
    assert (len(whole), len(train), len(test)) == (1797, 1297, 500)
    rows = [example.tobytes() for example in np.concatenate([train.inputs, test.inputs])]
    assert sorted(rows) == sorted(example.tobytes() for example in whole.inputs)
    assert train.inputs.dtype == np.uint8 and train.input_shape == (8, 8)
    assert int(whole.inputs.min()) == 0 and int(whole.inputs.max()) == 255
    assert train.class_names == tuple("0123456789")
    assert train.labels is not None and test.labels is not None
    assert np.bincount(test.labels).min() > 30, "every class is in both"


def test_the_digits_are_the_same_on_every_machine() -> None:
    assert digits("test").fingerprint() == TEST_DIGITS
    assert digits("test").fingerprint() == digits("test").fingerprint() != digits("train").fingerprint()


def test_the_digits_are_those_that_scikit_learn_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    from sklearn.datasets import load_digits

    found = load_digits()
    assert np.array_equal(digits().inputs, np.rint(found.images * (255 / 16)).astype(np.uint8))
    assert np.array_equal(digits().labels, found.target)
    # And where its package keeps them elsewhere.
    before = digits().fingerprint()
    monkeypatch.setattr(sys.modules["logitstore.pipeline.datasets.digits"], "_FILE", Path("nowhere"))
    assert digits().fingerprint() == before


def test_the_digits_need_no_import_of_scikit_learn() -> None:
    code = "import sys; from logitstore.pipeline.datasets import digits; digits(){more}; print('sklearn' in sys.modules)"
    for more, loaded in (("", "False"), ("; import sklearn", "True")):  # the second: negative control
        command = [sys.executable, "-c", code.format(more=more)]
        assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == loaded


def test_every_grey_of_the_digits_is_kept_apart() -> None:
    assert len(np.unique(digits().inputs)) == 17


# .npz --------------------------------------------------------------------------------------------


def test_an_npz_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "set.npz"
    np.savez_compressed(
        path, inputs=INPUTS, labels=LABELS, class_names=np.array(["a", "b", "c"]), x=INPUTS[:2]
    )
    dataset = arrays(path)
    assert dataset.fingerprint() == ArrayDataset(INPUTS, LABELS, ["a", "b", "c"]).fingerprint()
    assert arrays(path, labels="", class_names="").fingerprint() == ArrayDataset(INPUTS).fingerprint()
    assert len(arrays(path, inputs="x", labels="")) == 2
    assert np.array_equal(arrays(path, omit_classes=["b", 2]).inputs, INPUTS[[0, 4, 5]])


def test_an_npz_that_does_not_fit_is_named(tmp_path: Path) -> None:
    path = tmp_path / "set.npz"

    def message(**names: str) -> str:
        with pytest.raises(BadDataError) as caught:
            arrays(path, **names)  # type: ignore[arg-type]
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert message().startswith(f"{path}: expected an .npz file, found nothing there; correct the file name")
    np.savez(path, inputs=INPUTS, label=LABELS)
    assert message() == (
        f"{path}: expected an array 'labels', found the arrays ['inputs', 'label']; "
        'name the arrays: inputs = "…", labels = "…" (labels = "" for a set without labels)'
    )
    whole = path.read_bytes()
    for content, found in (
        (whole[:-30], "BadZipFile: File is not a zip file"),
        (b"", "BadZipFile: File is not a zip file"),
        (whole.replace(INPUTS.tobytes(), bytes(36)), "BadZipFile: Bad CRC-32 for file 'inputs.npy'"),
    ):
        path.write_bytes(content)
        assert message(labels="label") == (
            f"{path}: expected an .npz file of plain arrays, found {found}; "
            "write it with numpy.savez, without object arrays"
        )
    with path.open("wb") as file:
        np.save(file, INPUTS)
    assert message(labels="").startswith(f"{path}: expected an .npz file of plain arrays, found BadZipFile: ")
    np.savez(path, inputs=np.array([{}, None], dtype=object))
    assert message(labels="").startswith(
        f"{path}: expected an .npz file of plain arrays, found ValueError: Object"
    )


# Choosing examples -------------------------------------------------------------------------------


@given(
    st.none() | st.integers(-9, 9),
    st.none() | st.integers(-9, 9),
    st.none() | st.integers(1, 4),
)
def test_a_slice_is_pythons(start: int | None, stop: int | None, step: int | None) -> None:
    text = f"{'' if start is None else start}:{'' if stop is None else stop}"
    text += "" if step is None else f":{step}"
    assert parse_slice(text) == slice(start, stop, step)
    assert parse_slice(text.replace(":", " : ")) == slice(start, stop, step)


@given(st.integers(0, 300), st.integers(0, 2**64 - 1))
def test_a_random_order_is_a_permutation_of_its_own(num_rows: int, seed: int) -> None:
    order = random_order(num_rows, seed)
    assert order.dtype == np.int64 and np.array_equal(np.sort(order), np.arange(num_rows))
    assert np.array_equal(order, random_order(num_rows, seed))
    if num_rows > 50:
        assert not np.array_equal(order, random_order(num_rows, (seed + 1) % 2**64))


@given(st.integers(1, 200), st.floats(0.01, 1.0), st.integers(0, 5))
def test_choices_are_made_in_their_order(num_rows: int, fraction: float, seed: int) -> None:
    labels = np.arange(num_rows) % 4
    names = ("a", "b", "c", "d")
    kept = np.flatnonzero(labels != 1)
    expected = round(fraction * len(kept))
    if expected < 1:
        return
    chosen = select(num_rows, labels, names, omit_classes=["b"], fraction=fraction, seed=seed)
    assert len(chosen) == expected and set(chosen) <= set(kept) and np.array_equal(chosen, np.unique(chosen))
    again = select(num_rows, labels, names, omit_classes=[1], fraction=fraction, seed=seed, subset="::2")
    assert np.array_equal(again, chosen[::2])


def test_an_omitted_class_stays_a_class() -> None:
    dataset = digits(omit_classes=[3])
    assert dataset.labels is not None and 3 not in dataset.labels
    assert set(dataset.labels.tolist()) == {0, 1, 2, 4, 5, 6, 7, 8, 9} and len(dataset.class_names) == 10
    assert np.array_equal(digits(subset="0:7").inputs, digits().inputs[:7])
    assert len(digits("train", fraction=0.03)) == 39


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"subset": "5"}, ("subset: expected a slice \"start:stop\" or \"start:stop:step\" with a step of 1 or more, "
         "found '5'; write for example \"0:1500\" or \"::2\"")),
        ({"subset": "::0"}, "subset: expected a slice "),
        ({"subset": "9:1:-1"}, "subset: expected a slice "),
        ({"subset": "2000:"}, ("transfer set: expected 1 to 1797 selected examples, found 0 "
         "(omit_classes=[], fraction=1.0, subset='2000:'); widen omit_classes, fraction or subset")),
        ({"fraction": 0.0}, "fraction: expected a number above 0, at most 1, found 0.0; "),
        ({"fraction": math.nan}, "fraction: expected a number above 0, at most 1, found nan; "),
        ({"fraction": 0.5, "seed": -1}, "seed: expected an integer from 0 to 2**64 - 1, found -1; "),
        ({"omit_classes": [10]}, ("omit_classes: expected names or numbers of the 10 classes (0, 1, 2, 3, 4, 5, 6, "
         "7, 8, 9), found 10; correct omit_classes")),
        ({"omit_classes": ["three"]}, "omit_classes: expected names or numbers of the 10 classes "),
    ],
)  # fmt: skip
def test_bad_choices_are_named(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        digits(**arguments)  # type: ignore[arg-type]
    assert str(caught.value).startswith(message)


def test_classes_of_a_set_without_labels_cannot_be_omitted() -> None:
    with pytest.raises(
        ConfigError,
        match=r"^omit_classes: expected a transfer set with labels, found a transfer set without labels; ",
    ):
        ArrayDataset(INPUTS).selected(omit_classes=[1])


def test_float64_inputs_of_a_file_become_float32(tmp_path: Path) -> None:
    """NumPy's default, which no network computes in and no store keeps."""
    wide = np.random.default_rng(0).normal(size=(4, 3))
    for dtype, kept in (
        ("<f8", "float32"),
        (">f8", "float32"),
        ("float32", "float32"),
        ("float16", "float16"),
    ):
        np.savez(tmp_path / "set.npz", inputs=wide.astype(dtype), labels=np.arange(4))
        inputs = arrays(tmp_path / "set.npz").inputs
        assert inputs.dtype == kept
        np.testing.assert_array_equal(inputs, wide.astype(kept))


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (
            1e300,
            "set.npz: expected inputs up to 3.403e+38, the maximum of float32, found 1e+300; scale the inputs",
        ),
        (
            np.inf,
            (
                "set.npz, example 2: expected finite inputs, found NaN or an infinite number; "
                "replace them in the data"
            ),
        ),
    ],
)
def test_what_float32_cannot_hold_is_refused(tmp_path: Path, number: float, message: str) -> None:
    inputs = np.zeros((4, 3))
    inputs[2, 1] = number
    np.savez(tmp_path / "set.npz", inputs=inputs, labels=np.arange(4))
    with pytest.raises(BadDataError) as caught:
        arrays(tmp_path / "set.npz")
    assert str(caught.value) == f"{tmp_path}/{message}"
