"""Laws of cutmix: box and partner follow from (seed, view, row), and a student gets what the teacher saw."""

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

from logitstore.pipeline.augment import augment_rows, cutmix, mixup, raw_words
from logitstore.pipeline.cache.stage import cache
from logitstore.pipeline.factories.call import source_digest
from logitstore.pipeline.train.stage import open_stream
from logitstore.pipeline.train.todo import student_seeds
from logitstore.pipeline.views import mixes_rows, replay, rows_of_store
from logitstore.pipeline.workspace import Workspace
from logitstore.storage.api import open_store
from logitstore.storage.digest import digest_rows
from logitstore.storage.errors import BadDataError, ConfigError

INPUTS = np.random.default_rng(0).integers(0, 256, size=(60, 2, 6, 9), dtype=np.uint8)
FACTORY = "logitstore.pipeline.augment:cutmix"


class Others:
    """The rows of a store."""

    def __init__(self, inputs: NDArray[Any]) -> None:
        self.inputs = inputs

    def __len__(self) -> int:
        return len(self.inputs)

    def inputs_of(self, rows: NDArray[np.int64]) -> NDArray[Any]:
        return self.inputs[rows]


@given(
    st.integers(0, 2**64 - 1),
    st.lists(st.integers(0, 59), min_size=1, max_size=12),
    st.sampled_from([0.2, 1.0]),
    st.sampled_from(["uint8", "float32", "int64"]),
)
def test_a_mixture_is_the_row_with_a_box_of_its_partner(
    seed: int, order: list[int], alpha: float, dtype: str
) -> None:
    rows, inputs = np.array(order), INPUTS.astype(dtype)
    made = augment_rows(
        inputs[rows], cutmix(alpha, 16), seed, 1, rows, others=Others(inputs), made_twice=True
    )
    words = raw_words(seed, 1, rows, 4)
    partners = cutmix(alpha, 16).partners(rows, words, 60)
    assert np.array_equal(partners, mixup(alpha, 16).partners(rows, words[:, :2], 60))
    boxes, pixels = cutmix(alpha).boxes(words, 6, 9), cutmix(alpha).pixels(words, 6, 9)
    for view, row, partner, (top, bottom, left, right), own in zip(
        made, order, partners, boxes.tolist(), pixels, strict=True
    ):
        assert 0 <= top <= bottom <= 6 and 0 <= left <= right <= 9
        inside = np.zeros((6, 9), bool)
        inside[top:bottom, left:right] = True
        assert np.array_equal(view, np.where(inside, inputs[partner], inputs[row])) and own == (~inside).sum()
    assert np.array_equal(inputs, INPUTS)


def test_the_box_has_the_partners_share_and_a_uniform_centre() -> None:
    words = raw_words(0, 1, np.arange(1000), 4)
    boxes = cutmix().boxes(words, 2000, 1000)
    shares = mixup().shares(words[:, :2]) / 8192
    inner = (boxes[:, [0, 2]] > 0).all(axis=1) & (boxes[:, [1, 3]] < [2000, 1000]).all(axis=1)
    area = (boxes[:, 1] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 2]) / 2e6
    assert inner.sum() > 120 and np.abs(area - (1 - shares))[inner].max() < 3e-3
    assert (area <= 1 - shares + 1e-9).all()
    small = cutmix(1000.0).boxes(words, 2000, 1000)  # half of the image: sides of 0.7
    centres = (words[:, 2] % np.uint64(2000)).astype(np.int64)
    assert stats.kstest(centres / 2000, "uniform").pvalue > 1e-3
    inside = (centres > 800) & (centres < 1200)
    assert np.abs((small[:, 0] + small[:, 1]) / 2 - centres)[inside].max() <= 1


def test_another_row_view_or_seed_is_another_mixture() -> None:
    rows = np.arange(20)
    made = [
        augment_rows(INPUTS[:20], cutmix(), seed, view, rows, others=Others(INPUTS))
        for seed in (0, 1)
        for view in (1, 2)
    ]
    assert len({view.tobytes() for views in made for view in views}) > 70
    assert source_digest(FACTORY) == "cutmix 1"


@pytest.mark.parametrize(
    ("alpha", "among", "message"),
    [
        (0.0, 8, "expected alpha above 0 and at most 1000, found 0.0; correct alpha; 1 is uniform"),
        (1.0, 1, "expected among of 2 or more, found 1; correct among"),
    ],
)
def test_bad_arguments_are_named(alpha: float, among: int, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        cutmix(alpha, among)
    assert str(caught.value) == f"augmentation cutmix: {message}"


def test_inputs_that_are_no_images_are_named() -> None:
    flat = INPUTS.reshape(60, -1)
    with pytest.raises(
        ConfigError, match=r"cutmix: expected inputs of shape \(…, height, width\), found .*\(108,\)"
    ):
        augment_rows(flat, cutmix(), 0, 1, np.arange(60), others=Others(flat))


def test_a_student_gets_the_mixtures_that_its_teacher_saw_and_they_have_no_labels(tmp_path: Path) -> None:
    experiments.write_data(tmp_path)
    whole = document()
    content: dict[str, Any] = {name: whole[name] for name in ("transfer_set", "cache")}
    content["teacher"] = whole["teacher"][:1]
    content["teacher"][0]["train"] = experiments.train(epochs=1)
    content["cache"]["augment"] = {"factory": FACTORY, "args": {"among": 32}, "seed": 9}
    content["student"] = [student("a", views="all")]
    work = Workspace.of_store(parsed(content, tmp_path), tmp_path / "store.zarr", device="cpu")
    with mock.patch("os.fsync"):
        cache(work)
    store = open_store(tmp_path / "store.zarr")
    again = replay(cutmix(among=32), 9, others=rows_of_store(store))
    assert mixes_rows(again)
    batches = list(store.stream(17, views="all", augment=again))  # compared with what the teacher saw
    assert sum(len(batch.rows) for batch in batches) == experiments.ROWS * experiments.VIEWS
    inputs, rows = store.samples.reader.read("input", np.arange(150)), np.arange(150)
    assert (store.teachers["wide"].seen(slice(None), 1) == digest_rows(again(inputs, 1, rows))).all()
    stream, _ = open_stream(work, next(student_seeds(work.experiment)))
    assert sum(len(batch.rows) for batch in stream) == 450
    content["student"] = [student("a", views="all", hard_weight=0.2)]
    labelled = Workspace.of_store(parsed(content, tmp_path), tmp_path / "store.zarr", device="cpu")
    with pytest.raises(BadDataError, match="found unlabelled mixtures of two rows in views"):
        open_stream(labelled, next(student_seeds(labelled.experiment)))
