"""Stage one with workers where shared memory is small, called in an interpreter of its own (`children.apart`), as root."""

from pathlib import Path
from typing import Any, Final
from unittest import mock

import numpy as np
import torch
from safetensors.torch import save_file
from support import stores

from logitstore.pipeline.cache.stage import cache
from logitstore.pipeline.experiment.document import load_experiment
from logitstore.pipeline.workspace import Workspace

from .mounts import enter_namespace, tmpfs

MODULE: Final = """
import numpy as np, torch

class Set:
    class_names = tuple("abcde")

    def __len__(self):
        return 600

    def __getitem__(self, index):
        return np.full((3, 112, 112), index % 251, np.uint8), index % 5

def images():
    return Set()

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(8, 5)

    def forward(self, inputs):
        return self.layer(inputs.flatten(1)[:, :8] / 255)

def net():
    return Net()
"""
EXPERIMENT: Final = """
[transfer_set]
factory = "large:images"
store_inputs = false
[[teacher]]
name = "t"
factory = "large:net"
weights = "t.safetensors"
[cache]
workers = {workers}
batch_size = 64
"""
SIZES: Final = (64 << 10, 1 << 20, 8 << 20)
"""Bytes of the shared memory: the first two hold no chunk, the last holds two."""
WORKERS: Final = (1, 3)
SECONDS: Final = 15


def captured(folder: Path, name: str, workers: int) -> dict[str, bytes]:
    """Capture with some workers; return the bytes of the store."""
    (folder / "e.toml").write_text(EXPERIMENT.format(workers=workers))
    with mock.patch("os.fsync"):
        cache(Workspace.of_store(load_experiment(folder / "e.toml"), folder / name, device="cpu"))
    return stores.tree(folder / name)


def trials(work: str) -> list[str]:
    """Capture with each number of workers on each size of shared memory; return what went wrong."""
    folder = Path(work)
    torch.set_num_threads(1)
    (folder / "large.py").write_text(MODULE)
    save_file({"layer.weight": torch.eye(5, 8), "layer.bias": torch.zeros(5)}, str(folder / "t.safetensors"))
    whole, harm = captured(folder, "whole.zarr", 0), []
    enter_namespace()
    for size in SIZES:
        with tmpfs(Path("/dev/shm"), size):
            for workers in WORKERS:
                if captured(folder, f"{size}-{workers}.zarr", workers) != whole:
                    harm.append(f"{workers} workers, {size} bytes: other bytes")
    return harm


class Chunks:
    """Chunks of 4 MiB, as a data set of torch."""

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.from_numpy(np.full(4 << 20, index, np.uint8))


def by_shared_memory() -> bool:
    """Negative control: return whether a DataLoader of torch loses such chunks."""
    enter_namespace()
    with tmpfs(Path("/dev/shm"), SIZES[1]):
        loader: Any = torch.utils.data.DataLoader(
            Chunks(),  # type: ignore[arg-type]
            batch_size=None,
            num_workers=2,
            timeout=SECONDS,
            multiprocessing_context="forkserver",
        )
        try:
            return len(list(loader)) != len(Chunks())
        except RuntimeError:
            return True
