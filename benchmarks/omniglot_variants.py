"""Logits of Omniglot in several views, and of several networks: for transform_variants.py.

The teacher is that of experiments/omniglot.toml, trained by then (`logitstore run`, or another benchmark). It is run on
shifted views of its transfer set and on crops. The members are small networks of other seeds, trained here for five
epochs. Logits are kept in runs/benchmark/variants.
"""

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from real_logits import EXPERIMENTS, RUNS
from torch import nn

from logitstore.pipeline.augment import augment_rows, shift
from logitstore.pipeline.cache.teachers import load_teacher, train_teacher
from logitstore.pipeline.experiment.document import load_experiment
from logitstore.pipeline.runtime.inference import run_model
from logitstore.pipeline.workspace import Workspace

VIEWS, SEEDS, EPOCHS, BATCH = 8, (1, 2, 3), 5, 64

Rows = NDArray[np.float32]


def kept_logits(name: str, make: Callable[[], Rows]) -> Rows:
    """Return logits of an earlier run, or make and keep them."""
    path = RUNS / "benchmark" / "variants" / f"{name}.npy"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, make())
    return np.asarray(np.load(path), np.float32)


def crops(inputs: NDArray[np.uint8], view: int) -> NDArray[np.uint8]:
    """Cut boxes of 40 to 100 % of an image at random places, 3:4 to 4:3, and scale them up again (bilinear)."""
    random, count = np.random.default_rng((3, view)), len(inputs)
    area = random.uniform(0.4, 1, count)
    ratio = np.exp(random.uniform(np.log(3 / 4), np.log(4 / 3), count))
    width, height = np.minimum(np.sqrt(area * ratio), 1), np.minimum(np.sqrt(area / ratio), 1)
    box = np.zeros((count, 2, 3), np.float32)
    box[:, 0, 2] = random.uniform(-1, 1, count) * (1 - width)
    box[:, 1, 2] = random.uniform(-1, 1, count) * (1 - height)
    box[:, 0, 0], box[:, 1, 1] = width, height
    images = torch.from_numpy(inputs.astype(np.float32))[:, None]
    grid = nn.functional.affine_grid(torch.from_numpy(box), list(images.shape), align_corners=False)
    cut = nn.functional.grid_sample(images, grid, padding_mode="border", align_corners=False)
    views: NDArray[np.uint8] = cut[:, 0].round().clamp(0, 255).to(torch.uint8).numpy()
    return views


def view_logits(kind: str) -> list[Rows]:
    """Return the logits of Omniglot's teacher on each view of its transfer set; view 0 is the images themselves."""
    work = Workspace.of_folder(load_experiment(EXPERIMENTS / "omniglot.toml"), RUNS / "omniglot")
    (member,) = work.experiment.teacher_members()

    def made(view: int) -> Rows:
        inputs, _ = work.rows.rows(range(len(work.rows)))
        if view and kind == "shift":
            inputs = augment_rows(inputs, shift(2, fill=255), 0, view, np.arange(len(inputs)))
        elif view:
            inputs = crops(inputs, view)
        train_teacher(work, member)
        return run_model(load_teacher(work, member), inputs, 256, where="teacher")

    return [
        kept_logits(f"{kind}{view}" if view else "shift0", lambda view=view: made(view))
        for view in range(VIEWS)
    ]


class Member(nn.Module):
    """A small convnet with batch norm, which learns something of 964 classes in five epochs."""

    def __init__(self, classes: int) -> None:
        """Make the layers."""
        super().__init__()
        layers: list[nn.Module] = []
        for last, channels in pairwise((1, 32, 64, 96)):
            conv = nn.Conv2d(last, channels, 3, padding=1, bias=False)
            layers += [conv, nn.BatchNorm2d(channels), nn.ReLU(), nn.MaxPool2d(2)]
        head = [nn.Linear(96 * 9, 256, bias=False), nn.BatchNorm1d(256), nn.ReLU(), nn.Linear(256, classes)]
        self.layers = nn.Sequential(*layers, nn.Flatten(), *head)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return logits of images whose background is 255."""
        logits: torch.Tensor = self.layers((255 - images.float())[:, None] / 255)
        return logits


def member_logits() -> list[Rows]:
    """Return the logits of short-trained members on Omniglot's transfer set."""
    work = Workspace.of_folder(load_experiment(EXPERIMENTS / "omniglot.toml"), RUNS / "omniglot")

    def made(seed: int) -> Rows:
        inputs, labels = work.rows.rows(range(len(work.rows)))
        torch.manual_seed(seed)
        module = Member(work.rows.num_classes)
        steps = len(inputs) // BATCH
        optimiser = torch.optim.AdamW(module.parameters(), lr=6e-3, weight_decay=0.05)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 6e-3, total_steps=EPOCHS * steps)
        for epoch in range(EPOCHS):
            order = np.random.default_rng((seed, epoch)).permutation(len(inputs))[: steps * BATCH]
            views = torch.from_numpy(augment_rows(inputs[order], shift(2, fill=255), seed, epoch + 1, order))
            targets = torch.from_numpy(labels[order])
            for batch, target in zip(views.split(BATCH), targets.split(BATCH), strict=True):
                optimiser.zero_grad()
                nn.functional.cross_entropy(module(batch), target).backward()  # type: ignore[no-untyped-call]
                optimiser.step()
                schedule.step()
        logits = run_model(module.eval(), inputs, 256, where="member")
        print(f"  member {seed}: knows {(logits.argmax(axis=1) == labels).mean():.1%} of its training rows")
        return logits

    return [kept_logits(f"member{seed}", lambda seed=seed: made(seed)) for seed in SEEDS]
