"""The trial of a teacher: a network that depends on its batch is warned of, before anything is written."""

from pathlib import Path

import numpy as np
import pytest
import torch
from support.experiments import document, parsed
from torch import nn

from logitstore.pipeline.cache.preflight import try_out
from logitstore.pipeline.runtime.inference import Runner
from logitstore.storage.encodings.half import FloatEncoding


@pytest.mark.parametrize("tracks", [True, False], ids=["control", "batch statistics"])
def test_a_teacher_that_depends_on_its_batch_is_warned_of(
    tracks: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3, track_running_stats=tracks)).eval()
    inputs = np.random.default_rng(0).normal(size=(20, 4)).astype(np.float32)
    try_out(
        parsed(document(), tmp_path),
        inputs,
        Runner(module, where="teacher 't'", batch_size=16),
        3,
        FloatEncoding("float16"),
    )
    assert ("the logits of a row depend on the other rows of its batch" in caplog.text) is not tracks


class Pixels(nn.Module):
    """A network of two classes that casts what it gets, and does something to it before its first weights."""

    def __init__(self, does: str) -> None:
        super().__init__()
        self.embedding = nn.Embedding(256, 4)
        self.first = nn.BatchNorm1d(4) if does == "normalises" else nn.Identity()
        self.layer, self.does = nn.Linear(4, 2), does

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        numbers = inputs.float() / (255 if self.does == "divides" else 1)
        if self.does == "looks up":
            numbers = self.embedding(inputs.long()).mean(dim=1)
        return self.layer(self.first(numbers))  # type: ignore[no-any-return]


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
@pytest.mark.parametrize("does", ["nothing", "divides", "normalises", "looks up"])
def test_a_teacher_that_takes_pixels_as_numbers_is_warned_of(
    does: str, dtype: type, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As models of transformers do, which cast their inputs."""
    torch.manual_seed(0)
    inputs = np.random.default_rng(0).integers(0, 256, (20, 4)).astype(dtype)
    runner = Runner(Pixels(does).eval(), where="teacher 't'", batch_size=16)
    try_out(parsed(document(), tmp_path), inputs, runner, 2, FloatEncoding("float32"))
    assert ("nothing scales or normalises them" in caplog.text) is (dtype is np.uint8 and does == "nothing")
    assert not any(layer._forward_pre_hooks for layer in runner.module.modules())
