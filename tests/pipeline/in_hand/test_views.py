"""Augmentations in hand: ours are stated as a file states them, and views of another shape are what a network gets."""

from pathlib import Path
from typing import Any

import pytest
import torch
from numpy.typing import NDArray
from support.experiments import document, parsed
from support.hands import Net, Pictures
from torch import nn

import logitstore
from logitstore.pipeline.augment import (
    crop_flip,
    cutmix,
    identity,
    mixup,
    random_resized_crop,
    seeded,
    shift,
)
from logitstore.pipeline.in_hand.experiments import capture_of
from logitstore.pipeline.views import augmentation_identity
from logitstore.storage.identity import as_json

NAMED = f"{__name__}:darkened"


def darkened(image: NDArray[Any]) -> NDArray[Any]:
    """A transform that a file can name."""
    return image // 2


STATED: dict[str, tuple[Any, dict[str, Any]]] = {
    "identity": (identity(), {}),
    "shift": (shift(pixels=3), {"pixels": 3}),
    "crop_flip": (crop_flip(flip=0.25), {"flip": 0.25}),
    "mixup": (mixup(among=64), {"among": 64}),
    "cutmix": (cutmix(alpha=0.5), {"alpha": 0.5}),
    "random_resized_crop": (random_resized_crop((3, 2), flip=0.0), {"size": [3, 2], "flip": 0.0}),
    "seeded": (seeded(NAMED, given="array"), {"transform": NAMED, "given": "array"}),
}


@pytest.mark.parametrize("name", STATED)
def test_an_augmentation_of_ours_is_that_of_a_file(name: str, tmp_path: Path) -> None:
    thing, args = STATED[name]
    factory = f"logitstore.pipeline.augment:{name}"
    content = document() | {"student": []}
    content["cache"] |= {"augment": {"factory": factory, "args": args, "seed": 2, "first_view": 1}}
    del content["cluster"]
    settings: dict[str, Any] = {"transfer_set": {"order": "as_is"}, "cache": {"views": 3}, "augment_seed": 2}
    in_hand = capture_of({"net": Net()}, Pictures(), augment=thing, **settings)
    of_file = augmentation_identity(parsed(content, tmp_path))
    assert as_json(augmentation_identity(in_hand)) == as_json(of_file)
    assert of_file is not None and of_file["args"] == args


def test_a_transform_in_hand_is_known_by_itself() -> None:
    """A file cannot name an object; two of them differ."""
    settings: dict[str, Any] = {"transfer_set": {"order": "as_is"}, "cache": {"views": 3}}
    sources = []
    for transform in (darkened, lambda image: image // 3):
        made = capture_of(
            {"net": Net()}, Pictures(), augment=seeded(transform, given="array"), first_view=1, **settings
        )
        stated = augmentation_identity(made)
        assert stated is not None and stated["factory"] == "logitstore.pipeline.augment.transforms:Seeded"
        sources.append(stated["source"])
    assert sources[0] != sources[1]


class Cropped(nn.Module):
    """A network that takes images of 2 x 3 alone."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(6, 4)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.layer(inputs.flatten(1).float() / 255)
        return logits


def test_networks_of_views_of_another_shape_are_run_on_views_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, without_fsync: None
) -> None:
    """Of a set without labels, the number of classes is that of the logits of a view."""
    images, labels = Pictures().images, Pictures().targets
    crop = random_resized_crop((2, 3), scale=(0.5, 1.0))
    common: dict[str, Any] = {"augment": crop, "device": "cpu"}
    store = logitstore.cache(
        tmp_path / "store.zarr", {"net": Cropped()}, (images, labels), first_view=0, **common
    )
    unlabelled = logitstore.cache(
        tmp_path / "images.zarr", {"net": Cropped()}, images, first_view=0, **common
    )
    assert store.num_classes == unlabelled.num_classes == 4
    evaluation = images[:, 1:3, :3], labels
    logitstore.distill(store, Cropped(), lr=1e-2, epochs=1, evaluation=evaluation, **common)
    assert "inputs of shape" not in caplog.text
    with pytest.raises(logitstore.LogitStoreError):  # control: rows as they are fit no such network
        logitstore.cache(tmp_path / "plain.zarr", {"net": Cropped()}, (images, labels), device="cpu")
