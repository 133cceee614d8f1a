"""The rows on which a network is compared with and without its head: from all over the transfer set."""

from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from support import experiments
from support.experiments import CLASSES, ROWS, SHAPE, document, parsed
from torch import Tensor, nn

from logitstore.pipeline.cache.linear_head import take_head
from logitstore.pipeline.cache.stage import cache
from logitstore.pipeline.models.networks import mlp
from logitstore.pipeline.models.records import Models
from logitstore.pipeline.models.weights import save_weights
from logitstore.pipeline.workspace import Workspace
from logitstore.storage.errors import BadLogitsError


def capped(hidden: list[int], most: float, *, input_shape: list[int], num_classes: int) -> nn.Module:
    """Return an mlp that halves its logits, but not those of inputs with a mean up to a limit."""
    module = mlp(hidden, input_shape=input_shape, num_classes=num_classes)

    def halve(_: Any, inputs: tuple[Tensor], logits: Tensor) -> Tensor:
        mean = inputs[0].float().flatten(1).mean(dim=1)
        return torch.where(mean[:, None] > most, logits / 2, logits)

    module.register_forward_hook(halve)
    return module


class Named(nn.Module):
    """A layer of two names, of which the later one is used."""

    def __init__(self) -> None:
        super().__init__()
        self.alias = self.fc = nn.Linear(6, CLASSES)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.fc(inputs)


def workspace(folder: Path, most: float) -> Workspace:
    whole = document()
    whole["cache"]["encoding"] = {"transform": {"max_kl": 1e-3, "rows": 100}}
    teacher = {
        "name": "capped",
        "factory": f"{__name__}:capped",
        "args": {"hidden": [12], "most": most},
        "weights": "capped.safetensors",
        "head": "head",
    }
    content = {"transfer_set": whole["transfer_set"], "cache": whole["cache"], "teacher": [teacher]}
    return Workspace(parsed(content, folder), folder / "store.zarr", Models(folder / "models"), device="cpu")


def test_a_layer_of_two_names_is_taken_off_under_the_one_that_is_used() -> None:
    inputs = np.random.default_rng(0).normal(size=(3, 6)).astype(np.float32)
    for asked in ("fc", "auto"):
        assert take_head(Named(), asked, inputs, CLASSES, where="teacher 't'")[0] == "fc"
    with pytest.raises(BadLogitsError, match="head = 'alias'"):  # control
        take_head(Named(), "alias", inputs, CLASSES, where="teacher 't'")


def test_a_cap_that_the_first_rows_do_not_reach_is_found(
    tmp_path: Path, sentence: Callable[..., None]
) -> None:
    folder = experiments.copy_finished(tmp_path)
    torch.manual_seed(0)
    save_weights(mlp([12], input_shape=SHAPE, num_classes=CLASSES), folder / "capped.safetensors")
    rows = workspace(folder, 0.0).rows
    means = rows.a_few.astype(float).reshape(2, -1).mean(axis=1)
    with mock.patch("os.fsync"):
        with pytest.raises(BadLogitsError) as caught:
            cache(workspace(folder, means.max()))
        sentence(caught.value)
        assert not (folder / "store.zarr").exists()
        cache(workspace(folder, 1e9))  # control: no row reaches it


def test_examples_come_from_all_over_the_set(tmp_path: Path) -> None:
    rows = workspace(experiments.copy_finished(tmp_path), 0.0).rows
    asked: list[int] = []
    genuine = type(rows).fetch
    with mock.patch.object(
        type(rows), "fetch", lambda self, some: (asked.extend(some), genuine(self, some))[1]
    ):
        assert len(rows.spread()) == 32
    assert len(set(asked)) == 32 and asked == sorted(asked)
    assert asked[0] == 0 and ROWS * 0.9 < asked[-1] < len(rows)
