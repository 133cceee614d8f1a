"""Pipelines of torchvision's transforms as people write them, seeded by row and view, with the real library."""

import pickle
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from support.random_states import generator_states
from torchvision import transforms as v1
from torchvision.transforms import v2

from logitstore.pipeline.augment import augment_rows, rand_augment, seeded

IMAGES = np.random.default_rng(0).integers(0, 256, size=(12, 3, 40, 48), dtype=np.uint8)
ROWS = np.arange(len(IMAGES))
MEAN, DEVIATION = (0.5, 0.4, 0.3), (0.2, 0.2, 0.2)
PIPELINES: dict[str, tuple[Callable[[], Any], dict[str, Any]]] = {
    "v2 of PIL images": (
        lambda: v2.Compose(
            [v2.RandomResizedCrop(32), v2.RandomHorizontalFlip(), v2.ColorJitter(0.4, 0.4, 0.4, 0.1)]
        ),
        {},
    ),
    "v2 of tensors": (
        lambda: v2.Compose(
            [v2.RandomResizedCrop(32, antialias=True), v2.RandomRotation(20), v2.GaussianBlur(3)]
        ),
        {"given": "tensor"},
    ),
    "v2 to floats": (
        lambda: v2.Compose(
            [
                v2.ToImage(),
                v2.RandomResizedCrop(32, antialias=True),
                v2.TrivialAugmentWide(),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize(MEAN, DEVIATION),
                v2.RandomErasing(1.0),
            ]
        ),
        {"dtype": "float32"},
    ),
    "v2 in any order": (
        lambda: v2.RandomOrder(
            [v2.RandomChoice([v2.RandomInvert(), v2.RandomSolarize(100)]), v2.AugMix(), v2.AutoAugment()]
        ),
        {},
    ),
    "v2 noise": (
        lambda: v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.GaussianNoise()]),
        {"dtype": "float32"},
    ),
    "v1": (
        lambda: v1.Compose(
            [
                v1.RandomResizedCrop(32),
                v1.RandomOrder([v1.RandomGrayscale(0.2), v1.RandomPerspective()]),
                v1.RandAugment(),
                v1.ToTensor(),
                v1.Normalize(MEAN, DEVIATION),
            ]
        ),
        {"dtype": "float32"},
    ),
}


@pytest.mark.parametrize("name", PIPELINES)
def test_a_pipeline_is_replayed(name: str) -> None:
    make, settings = PIPELINES[name]
    before = generator_states()
    once = seeded(make(), **settings)
    again = pickle.loads(pickle.dumps(once))
    made = [
        augment_rows(IMAGES, one, 3, view, ROWS, made_twice=True) for one in (once, again) for view in (1, 2)
    ]
    assert made[0].dtype == np.dtype(settings.get("dtype", "uint8"))
    assert np.array_equal(made[0], made[2]) and np.array_equal(made[1], made[3])
    assert len({view.tobytes() for views in made for view in views}) == 2 * len(ROWS)
    alone = augment_rows(IMAGES[4:5], once, 3, 1, ROWS[4:5])
    assert np.array_equal(alone, made[0][4:5])
    assert generator_states() == before


def test_a_network_that_draws_meanwhile_changes_nothing() -> None:
    once = seeded(PIPELINES["v2 to floats"][0](), dtype="float32")
    expected = augment_rows(IMAGES, once, 0, 1, ROWS)
    made: list[NDArray[Any]] = []
    thread = threading.Thread(
        target=lambda: made.extend(augment_rows(IMAGES, once, 0, 1, ROWS) for _ in range(5))
    )
    thread.start()
    while thread.is_alive():
        torch.nn.functional.dropout(torch.ones(1000))
    assert len(made) == 5 and all(np.array_equal(one, expected) for one in made)


def test_rand_augment_is_torchvisions() -> None:
    for inputs in (IMAGES, IMAGES[:, 0]):
        made = augment_rows(inputs, rand_augment(2, 15), 0, 1, ROWS, made_twice=True)
        assert made.shape == inputs.shape and (made != inputs).any()
    assert np.array_equal(augment_rows(IMAGES, rand_augment(0), 0, 1, ROWS), IMAGES)
    last = augment_rows(IMAGES.transpose(0, 2, 3, 1), rand_augment(2, 15, "last"), 0, 1, ROWS)
    assert np.array_equal(last.transpose(0, 3, 1, 2), augment_rows(IMAGES, rand_augment(2, 15), 0, 1, ROWS))
