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
