"""The device of a rank, by the GPUs that it sees."""

from unittest import mock

import pytest
import torch

from logitstore.pipeline.runtime.ranks import ALONE, Ranks


@pytest.mark.parametrize(
    ("visible", "local", "device"),
    [
        (4, 3, "cuda:3"),
        (1, 3, "cuda:0"),  # `srun --gpus-per-task=1`
        (0, 1, "cuda:1"),  # asked for and not there: refused by its name later
    ],
)
def test_a_rank_takes_its_own_gpu_of_those_that_it_sees(visible: int, local: int, device: str) -> None:
    rank = Ranks(rank=5, size=8, local=local)
    with mock.patch.object(torch.cuda, "device_count", lambda: visible):
        assert rank.device("cuda") == device
        assert rank.device("cuda:2") == "cuda:2"
        assert rank.device("cpu") == "cpu"
        with mock.patch.object(torch.cuda, "is_available", lambda: visible > 0):
            assert rank.device(None) == (device if visible else None)
        assert ALONE.device("cuda") == "cuda"
