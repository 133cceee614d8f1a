"""Augmentations of docs/guides/views.md that call torchvision, with the real one."""

import re
from pathlib import Path

import numpy as np
from support.tree import ROOT
from torchvision.transforms.v2 import functional

from logitstore.pipeline.augment import augment_rows
from logitstore.pipeline.factories.call import build_augmentation

IMAGES = np.random.default_rng(0).normal(size=(20, 1, 6, 6)).astype(np.float32)
ROWS = np.arange(len(IMAGES))


def test_functions_of_torchvision_are_called_with_numbers_drawn_here(tmp_path: Path) -> None:
    assert callable(functional.resized_crop)
    *modules, _ = re.findall(
        r"```python\n(.*?)```", (ROOT / "docs/guides/views.md").read_text(encoding="utf-8"), re.DOTALL
    )
    (tmp_path / "ls_my_views.py").write_text("\n\n".join(modules), encoding="utf-8")
    crop = build_augmentation("ls_my_views:square_crop", {"size": 6}, base=tmp_path)
    made = augment_rows(IMAGES, crop, 0, 1, ROWS, made_twice=True)
    assert made.shape == IMAGES.shape and len({view.tobytes() for view in made}) == 20
    assert np.array_equal(made, augment_rows(IMAGES, crop, 0, 1, ROWS))
