"""Class names as libraries have them, and what would become names without an error."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from torch.utils.data import ConcatDataset, Dataset, Subset

from logitstore.pipeline.datasets import arrays
from logitstore.pipeline.datasets.class_names import as_ids, as_names, names_of
from logitstore.pipeline.factories.call import build
from logitstore.storage.errors import BadDataError, FactoryError


def feature(*names: str) -> Any:
    return SimpleNamespace(names=list(names))


PLAIN = SimpleNamespace(dtype="uint8")


@pytest.mark.parametrize(
    ("attributes", "names"),
    [
        ({"class_names": ("ant", "bee")}, ["ant", "bee"]),
        ({"class_names": np.array(["ant", "bee"])}, ["ant", "bee"]),
        ({"class_names": np.array([b"caf\xc3\xa9", b"bee"])}, ["caf\u00e9", "bee"]),
        ({"class_names": [1, 2]}, ["1", "2"]),
        ({"class_names": ()}, None),
        ({"classes": ["ant", "bee"]}, ["ant", "bee"]),
        ({"classes": [("tench", "Tinca tinca"), ("goldfish",)]}, ["tench, Tinca tinca", "goldfish"]),
        ({"class_names": ["a", "b"], "classes": ["c", "d"]}, ["a", "b"]),
        ({"classes": [0, 1]}, None),
        ({"classes": 10}, None),
        ({"classes": {"ant": 0}}, None),
        ({"features": {"image": PLAIN, "label": feature("ant", "bee")}}, ["ant", "bee"]),
        ({"features": {"coarse": feature("ant"), "fine": feature("bee")}}, None),
        ({"features": {"image": PLAIN}}, None),
        ({}, None),
    ],
)
def test_names_come_from_where_the_set_has_them(attributes: dict[str, Any], names: list[str] | None) -> None:
    assert names_of(SimpleNamespace(**attributes), "transfer_set") == names


class Named(Dataset[Any]):
    """A set of one's own with these class names."""

    def __init__(self, *names: str, numbered: bool = False) -> None:
        self.class_names, self.is_numbered = list(names) or None, numbered

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> Any:
        return np.zeros(2, np.uint8), 0


@pytest.mark.parametrize(
    ("dataset", "names"),
    [
        (Subset(Named("ant", "bee"), [0, 2]), ["ant", "bee"]),
        (Subset(Subset(Named("ant", "bee"), [0, 2]), [1]), ["ant", "bee"]),
        (ConcatDataset([Named("ant", "bee"), Subset(Named("ant", "bee"), [1])]), ["ant", "bee"]),
        (ConcatDataset([Named(), Named("ant", "bee")]), ["ant", "bee"]),
        (Subset(Named("0", "1", numbered=True), [0]), None),
        (Subset(Named(), [0]), None),
    ],
)
def test_names_go_through_the_sets_of_torch(dataset: Any, names: list[str] | None) -> None:
    """Dropped, orders of classes would be taken for equal."""
    assert names_of(dataset, "transfer_set") == names


def test_parts_that_name_their_classes_in_part_are_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    names_of(ConcatDataset([Named("ant", "bee"), Named("ant", "bee")]), "transfer_set")
    assert not caplog.records  # control
    names_of(ConcatDataset([Named("ant", "bee"), Named()]), "transfer_set")
    assert "transfer_set: only some of its 2 parts name their classes; taken for all" in caplog.text


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (("bee", "ant"), "part 1 as in part 0, where class 0 is 'ant', found 'bee'"),
        (("ant", "bee", "cow"), "part 1 as in part 0, found 3 classes"),
    ],
)
def test_parts_that_number_their_classes_otherwise_are_refused(other: tuple[str, ...], message: str) -> None:
    with pytest.raises(
        BadDataError, match=f"transfer_set: class_names: expected the same classes in {message}"
    ):
        names_of(ConcatDataset([Named("ant", "bee"), Named(*other)]), "transfer_set")


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ("ant", "a str"),
        (b"ant", "a bytes"),
        ({"bee": 1, "ant": 0}, "a dict"),
        ({"ant", "bee"}, "a set"),
        (3, "a int"),
        ([("ant", 0)], "a tuple as name 0"),
        (["ant", None], "a NoneType as name 1"),
        (["ant", b"caf\xe9"], "b'caf\\xe9' as name 1, which is no UTF-8"),
        (["\udce9"], "'\\udce9' as name 0, which is no UTF-8"),
    ],
)
def test_what_is_no_list_of_names_is_refused(given: Any, found: str) -> None:
    with pytest.raises(BadDataError) as caught:
        as_names(given, "transfer_set: class_names")
    assert (caught.value.expected, caught.value.found) == ("a list of texts, one a class", found)


@pytest.mark.parametrize(
    ("given", "found"),
    [
        (["a"], "a list of 1"),
        ("ab", "a str of 2"),
        (3, "a int"),
        (["a", "\udce9"], "'a\\udce9'"),
        ([b"a", b"\xe9"], "b'\\xe9'"),
    ],
)
def test_ids_are_a_text_a_row(given: Any, found: str) -> None:
    assert as_ids(("a", b"b"), 2, "transfer_set: ids") == ["a", "b"]
    assert as_ids(np.array([1, 2]), 2, "transfer_set: ids") == ["1", "2"]
    with pytest.raises(BadDataError) as caught:
        as_ids(given, 2, "transfer_set: ids")
    assert caught.value.found == found


def save(folder: Path, **more: Any) -> Path:
    path = folder / "set.npz"
    np.savez(path, **{"inputs": np.zeros((2, 4), np.uint8), "labels": np.array([0, 1])} | more)
    return path


def test_names_of_a_file_may_be_bytes(tmp_path: Path) -> None:
    """`str` of bytes is "b'ant'"."""
    assert arrays(save(tmp_path, class_names=np.array([b"ant", b"bee"]))).class_names == ("ant", "bee")
    with pytest.raises(
        BadDataError, match=r"expected a list of texts, one a class, found a ndarray as name 0"
    ):
        arrays(save(tmp_path, class_names=np.array([["ant"], ["bee"]])))


@pytest.mark.parametrize(
    ("inputs", "labels"),
    [
        (np.arange(8, dtype=">f4").reshape(2, 4), np.array([0, 1], ">i2")),
        (np.asfortranarray(np.arange(8, dtype=np.float32).reshape(2, 4)), np.array([0, 1], np.uint8)),
        (np.arange(8, dtype=np.float64).reshape(2, 4), np.array([0, 1], np.uint64)),
        (np.arange(16, dtype=np.float32).reshape(2, 8)[:, ::2] / 2, np.array([0, -1, 1, -1], np.int8)[::2]),
    ],
    ids=["big-endian", "fortran", "double", "strided"],
)
def test_the_layout_of_a_file_does_not_matter(tmp_path: Path, inputs: Any, labels: Any) -> None:
    dataset = arrays(save(tmp_path, inputs=inputs, labels=labels))
    plain = arrays(
        save(tmp_path, inputs=np.arange(8, dtype=np.float32).reshape(2, 4), labels=np.array([0, 1]))
    )
    np.testing.assert_array_equal(dataset.inputs, plain.inputs)
    assert (
        dataset.inputs.dtype == np.float32
        and dataset.inputs.dtype.isnative
        and dataset.inputs.flags.c_contiguous
    )
    assert dataset.labels is not None and dataset.labels.dtype == np.int64
    assert dataset.fingerprint() == plain.fingerprint()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"labels": np.array([0.0, 1.0])}, "expected integer labels"),
        ({"labels": np.array([False, True])}, "expected integer labels"),
        ({"labels": np.array(["0", "1"])}, "expected integer labels"),
        ({"labels": np.array([[0], [1]])}, "expected integer labels"),
        ({"labels": np.array([0, 1, 1])}, "expected 2 labels, one an input, found 3"),
        ({"labels": np.array([0, -2])}, "found -2"),
        ({"labels": np.array([0, 2**64 - 1], np.uint64)}, "found 18446744073709551615"),
        ({"labels": np.array([0, None])}, "expected an .npz file of plain arrays"),
        ({"inputs": np.array([[1, np.nan], [0, 0]], np.float32)}, "example 0: expected finite inputs"),
        ({"inputs": np.zeros((2, 4), bool)}, "expected inputs as uint8 or float"),
        ({"inputs": np.zeros((2, 4), complex)}, "expected inputs as uint8 or float"),
    ],
)
def test_arrays_of_a_file_that_may_be_a_mistake_are_refused(
    tmp_path: Path, more: dict[str, Any], message: str
) -> None:
    with pytest.raises(BadDataError, match=message):
        arrays(save(tmp_path, **more))


def test_a_text_that_names_a_file_beside_the_experiment_gets_a_hint(tmp_path: Path) -> None:
    (tmp_path / "ls_paths.py").write_text("def read(root: str) -> object:\n    return open(root)\n")
    (tmp_path / "there.txt").write_text("")
    for root, remedy in (
        ("there.txt", "annotate root as pathlib.Path, which is relative to the experiment file"),
        ("absent.txt", "correct the factory or its args"),
    ):
        with pytest.raises(FactoryError) as caught:
            build("ls_paths:read", {"root": root}, base=tmp_path)
        assert caught.value.remedy == remedy


def test_labels_may_count_from_one(tmp_path: Path) -> None:
    path = save(tmp_path, inputs=np.zeros((3, 4), np.uint8), labels=np.array([1, -1, 2]))
    dataset = arrays(path, first_label=1)
    assert dataset.labels is not None and dataset.labels.tolist() == [0, -1, 1]
    assert dataset.class_names == ("0", "1")
    with pytest.raises(BadDataError) as caught:
        arrays(path, first_label=2)
    assert (caught.value.expected, caught.value.found) == ("labels from first_label = 2, or -1", "1")
    with pytest.raises(BadDataError, match="expected integer labels"):
        arrays(save(tmp_path, labels=np.array([1.0, 2.0])), first_label=1)
