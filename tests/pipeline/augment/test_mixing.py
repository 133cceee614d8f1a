"""Laws of mixtures: partner and share follow from (seed, view, row), and a student gets what the teacher saw."""

import copy
import pickle
from collections import Counter
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats
from support import experiments
from support.experiments import document, parsed, student

from logitstore.pipeline.augment import Mixup, augment_rows, mixup, raw_words, row_generator
from logitstore.pipeline.cache.stage import cache
from logitstore.pipeline.experiment.document import Experiment
from logitstore.pipeline.train.stage import open_stream
from logitstore.pipeline.train.todo import student_seeds
from logitstore.pipeline.views import experiment_views, replay, rows_of_store
from logitstore.pipeline.workspace import Workspace
from logitstore.storage.api import Store, open_store
from logitstore.storage.errors import BadDataError, ConfigError, FactoryError, RowMismatch

INPUTS = np.random.default_rng(0).integers(0, 256, size=(100, 3, 5), dtype=np.uint8)
FACTORY = "logitstore.pipeline.augment:mixup"


class Others:
    """The rows of a store, and which of them were asked for."""

    def __init__(self, inputs: NDArray[Any] = INPUTS) -> None:
        self.inputs = inputs
        self.asked: list[int] = []

    def __len__(self) -> int:
        return len(self.inputs)

    def inputs_of(self, rows: NDArray[np.int64]) -> NDArray[Any]:
        assert (np.diff(rows) > 0).all(), "ascending, each once"
        self.asked += rows.tolist()
        return self.inputs[rows]


def drawn(augmentation: Mixup, rows: NDArray[np.int64], num_rows: int, seed: int = 0, view: int = 1) -> Any:
    """Partners and shares of some rows."""
    words = raw_words(seed, view, rows, 2)
    return augmentation.partners(rows, words, num_rows), augmentation.shares(words)


# The law -----------------------------------------------------------------------------------------


@given(
    st.integers(0, 2**64 - 1),
    st.integers(1, 9),
    st.lists(st.integers(0, 99), min_size=1, max_size=12),
    st.sampled_from([2, 7, 64, 100, 5000]),
    st.sampled_from(["uint8", "float16", "float32", "float64"]),
)
def test_a_mixture_alone_is_that_of_any_batch(
    seed: int, view: int, order: list[int], among: int, dtype: str
) -> None:
    rows, inputs = np.array(order), INPUTS.astype(dtype)
    made = augment_rows(
        inputs[rows], mixup(0.4, among), seed, view, rows, others=Others(inputs), made_twice=True
    )
    partners, shares = drawn(mixup(0.4, among), rows, 100, seed, view)
    for place, (row, partner, share) in enumerate(zip(order, partners, shares, strict=True)):
        alone = augment_rows(
            inputs[[row]], mixup(0.4, among), seed, view, np.array([row]), others=Others(inputs)
        )
        assert alone[0].tobytes() == made[place].tobytes()
        exact = share / 8192 * inputs[row].astype(float) + (1 - share / 8192) * inputs[partner].astype(float)
        error = {"uint8": 0.5, "float16": 0.0626, "float32": 4e-5, "float64": 1e-12}[dtype]
        assert np.abs(made[place] - exact).max() <= error


def test_partner_and_share_follow_from_the_words_of_the_rows_generator() -> None:
    rows = np.arange(100)
    partners, shares = drawn(mixup(among=10), rows, 100, seed=5, view=2)
    for row in rows.tolist():
        first, second = (
            int(word) for word in np.asarray(row_generator(5, 2, row).bit_generator.random_raw(2))
        )
        neighbours = [other for other in range(row // 10 * 10, row // 10 * 10 + 10) if other != row]
        assert partners[row] == neighbours[first % 9]
        assert shares[row] == 2 * (second >> 52) + 1  # alpha = 1: the upper 12 bits


# Partners and shares -----------------------------------------------------------------------------


def test_all_other_rows_of_a_group_are_equally_likely_partners() -> None:
    words = raw_words(0, 1, np.arange(70_000), 2)
    for row, group in (
        (3, range(8)),
        (13, range(8, 16)),
        (19, range(12, 20)),
    ):  # 20 rows: the last 8 go together
        rows = np.full(len(words), row)
        counts = Counter(mixup(among=8).partners(rows, words, 20).tolist())
        assert set(counts) == set(group) - {row}
        assert stats.chisquare(list(counts.values())).pvalue > 1e-4


@given(st.integers(1, 300), st.integers(2, 300))
def test_a_partner_is_another_row_of_the_store(num_rows: int, among: int) -> None:
    rows = np.arange(num_rows)
    partners, _ = drawn(mixup(among=among), rows, num_rows)
    assert ((partners >= 0) & (partners < num_rows)).all()
    assert ((partners == rows) == (num_rows == 1)).all()
    assert (abs(partners - rows) < among).all()


@pytest.mark.parametrize("alpha", [0.05, 0.2, 0.5, 1.0, 4.0, 900.0])
def test_shares_are_drawn_from_beta(alpha: float) -> None:
    shares = mixup(alpha).shares(raw_words(0, 1, np.arange(20_000), 2))
    assert shares.min() >= 1 and shares.max() <= 8191 and (shares % 2 == 1).all()
    lower, counts = np.unique((shares - 1) // 2 // 64, return_counts=True)  # 64 of the 4096 cells at a time
    edges = stats.beta.cdf(np.arange(65) / 64, alpha, alpha)
    expected, observed = np.diff(edges) * len(shares), np.zeros(64)
    observed[lower] = counts
    likely = expected >= 5
    assert observed[~likely].sum() <= 5 * (~likely).sum()
    chi_squared = ((observed - expected) ** 2 / np.maximum(expected, 5))[likely].sum()
    assert chi_squared < stats.chi2.ppf(0.9999, likely.sum())


def test_the_test_of_shares_knows_another_alpha() -> None:
    """Negative control of the one above: the share of the middle fifth tells 0.2 from 0.25."""
    shares = mixup(0.2).shares(raw_words(0, 1, np.arange(20_000), 2)) / 8192
    middle = float(((shares > 0.4) & (shares < 0.6)).mean())
    expected = [float(np.diff(stats.beta.cdf([0.4, 0.6], a, a))[0]) for a in (0.2, 0.25)]
    assert abs(middle - expected[0]) < 0.006 < abs(expected[0] - expected[1])


def test_partners_in_the_batch_are_not_fetched_again() -> None:
    others, rows = Others(), np.array([12, 10, 11, 13, 14, 16, 15, 19, 18, 17])
    augment_rows(INPUTS[rows], mixup(among=10), 0, 1, rows, others=others)
    assert others.asked == []
    augment_rows(INPUTS[[12]], mixup(among=10), 0, 1, np.array([12]), others=others)
    assert len(others.asked) == 1  # control: alone it needs another


# What is refused ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("alpha", "among", "message"),
    [
        (0.0, 8, "expected alpha above 0 and at most 1000, found 0.0; correct alpha; 1 is uniform"),
        (float("nan"), 8, "expected alpha above 0 and at most 1000, found nan; correct alpha; 1 is uniform"),
        (1e4, 8, "expected alpha above 0 and at most 1000, found 10000.0; correct alpha; 1 is uniform"),
        (1.0, 1, "expected among of 2 or more, found 1; correct among"),
    ],
)
def test_bad_arguments_are_named(alpha: float, among: int, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        mixup(alpha, among)
    assert str(caught.value) == f"augmentation mixup: {message}"


def test_what_cannot_be_mixed_is_named() -> None:
    rows = np.arange(3)
    with pytest.raises(
        ConfigError, match=r"^augmentation Mixup: expected others=rows_of_store\(store\), found others=None; "
    ):
        augment_rows(INPUTS[:3], mixup(), 0, 1, rows)
    tokens = INPUTS.astype(np.int64)
    with pytest.raises(
        ConfigError, match=r"mixup: expected inputs of uint8 or float, found inputs of int64; "
    ):
        augment_rows(tokens[:3], mixup(), 0, 1, rows, others=Others(tokens))
    with pytest.raises(
        FactoryError, match=r"row 1, .*: expected uint8 of shape \(3, 5\), .*found uint8 of shape \(15,\)"
    ):
        augment_rows(INPUTS[:1], mixup(among=2), 0, 1, rows[:1], others=Others(INPUTS.reshape(100, 15)))


# In a store --------------------------------------------------------------------------------------


def mixed(**changes: Any) -> dict[str, Any]:
    """A document whose teacher sees mixtures."""
    whole = document()
    content = {
        "transfer_set": whole["transfer_set"],
        "teacher": whole["teacher"][:1],
        "cache": whole["cache"],
    }
    content["cache"]["augment"] = {"factory": FACTORY, "args": {"alpha": 0.5, "among": 32}, "seed": 9}
    content["student"] = [student("a", **changes)]
    return content


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the data, and two captures of mixtures: one that keeps its inputs, one that does not."""
    folder = tmp_path_factory.mktemp("mixed")
    experiments.write_data(folder)
    for name, kept in (("kept", True), ("read", False)):
        content = copy.deepcopy(mixed())
        content["transfer_set"]["store_inputs"] = kept
        with mock.patch("os.fsync"):
            cache(Workspace.of_store(parsed(content, folder), folder / name, folder / "models", device="cpu"))
    return folder


def store_and_set(base: Path, name: str) -> tuple[Store, Any]:
    """A store, and the transfer set that its streams need."""
    with np.load(base / "train.npz") as archive:
        inputs = archive["inputs"]
    return open_store(base / name), None if name == "kept" else inputs


@pytest.mark.parametrize("name", ["kept", "read"])
def test_a_student_gets_the_mixtures_that_its_teacher_saw(base: Path, name: str) -> None:
    store, transfer_set = store_and_set(base, name)
    again = replay(mixup(0.5, 32), 9, 1, rows_of_store(store, transfer_set))
    again = pickle.loads(pickle.dumps(again))  # as the workers of a DataLoader get it
    stream = store.stream(17, views="all", augment=again, transfer_set=transfer_set)
    batches = list(stream)  # each input is compared with the digest of what the teacher saw
    assert sum(len(batch.rows) for batch in batches) == experiments.ROWS * experiments.VIEWS
    assert len({np.asarray(b.inputs).tobytes() for b in batches}) == len(batches)
    seen = [store.teachers["wide"].seen(slice(None), view) for view in range(experiments.VIEWS)]
    assert (seen[0] == store.samples.digests).all() and not (seen[1] == seen[2]).any()


def test_another_partner_is_found_by_the_digests(base: Path) -> None:
    """Negative control: the stream does compare."""
    store, _ = store_and_set(base, "kept")
    again = replay(mixup(0.5, 64), 9, 1, rows_of_store(store))
    with pytest.raises(
        RowMismatch, match="view 1, as `augment` makes it; use the transfer set and the augmentation"
    ):
        list(store.stream(16, views=1, augment=again))


def workspace(experiment: Experiment, store: Store) -> Workspace:
    """The workspace of an experiment with a store of its own."""
    return Workspace.of_store(experiment, Path(store.path))


def test_the_experiments_own_students_get_them_too(base: Path) -> None:
    store, _ = store_and_set(base, "kept")
    experiment = parsed(mixed(views="all"), base)
    stream, few = open_stream(workspace(experiment, store), next(student_seeds(experiment)))
    assert few.shape == (2, *experiments.SHAPE) and sum(len(b.rows) for b in stream) == 450
    inputs = np.zeros((2, *experiments.SHAPE), np.uint8)
    rows = np.arange(2)
    alone = experiment_views(experiment)  # makes the transfer set by itself
    assert alone is not None and alone(inputs, 0, rows) is inputs and alone(inputs, 1, rows).any()


@pytest.mark.parametrize("changes", [{"hard_weight": 0.2}, {"targets": "hard"}])
def test_mixtures_have_no_labels_to_learn_from(base: Path, changes: dict[str, Any]) -> None:
    store, _ = store_and_set(base, "kept")
    for views, found in (("cycle", [1, 2]), (2, [2])):
        experiment = parsed(mixed(views=views, **changes), base)
        with pytest.raises(
            BadDataError,
            match=r"student 'a': expected labelled inputs, for .* found unlabelled mixtures of two rows in views",
        ) as e:
            open_stream(workspace(experiment, store), next(student_seeds(experiment)))
        assert f"mixtures of two rows in views {found}; train it on soft targets" in str(e.value)
    experiment = parsed(mixed(views=0, **changes), base)  # control: view 0 is the rows, which have labels
    open_stream(workspace(experiment, store), next(student_seeds(experiment)))


def test_a_store_without_inputs_says_what_to_pass(base: Path) -> None:
    store, _ = store_and_set(base, "read")
    with pytest.raises(
        ConfigError,
        match=r"read: samples: expected inputs, .*found no inputs; pass the data set of the store, transfer_set=",
    ):
        rows_of_store(store)
