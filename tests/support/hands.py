"""Things in hand: a network, a data set and an augmentation as a script has them, and calls that are killed or shared.

`killed` and `shared` are called in an interpreter of their own (`children.apart`).
"""

import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import distributed, nn

import logitstore
from logitstore.pipeline.factories.in_hand import in_hand
from logitstore.pipeline.in_hand.networks import module_in_hand
from logitstore.pipeline.trainer.checkpoints import Checkpoints
from logitstore.storage.backends.local import NewObject
from support import experiments
from support.children import Child, Countdown, ranks

CLASSES, ROWS, BLOCK_ROWS = experiments.CLASSES, experiments.ROWS, experiments.BLOCK_ROWS


class Net(nn.Module):
    """A small network with dropout, which scales pixels by itself."""

    def __init__(self, width: int = 8, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.scale = 255.0
        self.first, self.second = nn.Linear(16, width), nn.Linear(width, CLASSES)
        self.dropout = nn.Dropout(0.3)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        hidden = torch.relu(self.first(inputs.flatten(1).float() / self.scale))
        logits: torch.Tensor = self.second(self.dropout(hidden))
        return logits


class MeanColour(nn.Module):
    """A small network of uint8 images in colour, of any size."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.layer = nn.Linear(3, 2)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.layer(images.float().mean(dim=(2, 3)) / 255)
        return logits


class Floats(nn.Module):
    """The inputs in float32."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return inputs.float()


class Pictures:
    """A data set as torchvision has them: pairs, and the names in `classes`."""

    def __init__(self, rows: int = ROWS, seed: int = 1) -> None:
        self.images, self.targets = experiments.some_digits(rows, seed)
        self.classes = [f"stroke {number}" for number in range(CLASSES)]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return torch.from_numpy(self.images[index]), int(self.targets[index])


class Darker:
    """An augmentation of one's own, with a setting."""

    def __init__(self, most: int = 40) -> None:
        self.most = most

    def __call__(self, image: NDArray[Any], generator: np.random.Generator) -> NDArray[Any]:
        return np.maximum(image, 90) - np.uint8(generator.integers(self.most))


class Failing(Pictures):
    """A set with one example that fails, once it was captured."""

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        if index == 70:
            raise ValueError("a torn file")
        return super().__getitem__(index)


class Changed(Pictures):
    """A set with one other example than the store."""

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        image, label = super().__getitem__(index)
        return (image + 1 if index == 70 else image), label


class Killing(Darker):
    """An augmentation during which the process is killed, if it is a worker."""

    def __call__(self, image: Any, generator: Any) -> Any:
        if os.getppid() == int(os.environ["TEST_PARENT"]):
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__call__(image, generator)


def closure(most: int) -> Any:
    """Return a view as a closure."""

    def view(image: NDArray[Any], generator: np.random.Generator) -> NDArray[Any]:
        return image - np.uint8(generator.integers(most))

    return view


def identities() -> list[Any]:
    """Return identities of things with every kind of part, as JSON."""
    views = [
        in_hand(one).args for one in (Darker(), closure(3), closure, Darker(2).__call__, {1, 2}, Path("a"))
    ]
    net = module_in_hand(Net(), "net")
    return [net.factory, dict(net.args), net.weights, *views]


def cached(folder: Path, **changes: Any) -> Any:
    """Return the store of a call with three views."""
    settings: dict[str, Any] = {"views": 3, "augment": Darker(), "batch_size": 24, "block_rows": BLOCK_ROWS}
    settings |= {"device": "cpu", "evaluation": Pictures(40, 2)} | changes
    return logitstore.cache(folder / "store.zarr", {"net": Net()}, Pictures(), **settings)


def distilled(folder: Path, seed: int = 3, **changes: Any) -> Net:
    """Return a student of the store, with checkpoints."""
    settings: dict[str, Any] = {
        "lr": 1e-2,
        "epochs": 2,
        "batch_size": 32,
        "temperature": 2.0,
        "device": "cpu",
    }
    settings |= {"augment": Darker(), "checkpoint": folder / "student", "checkpoint_every": 2} | changes
    return logitstore.distill(folder / "store.zarr", Net(6, seed), **settings)


def both(folder: Path) -> None:
    """Make both calls, and note the digest of the student's weights."""
    os.fsync = lambda descriptor: None  # a killed process takes nothing of the page cache with it
    torch.set_num_threads(1)
    cached(folder)
    student = distilled(folder)
    weights = torch.cat([tensor.flatten() for tensor in student.state_dict().values()])
    (folder / f"weights-{os.environ.get('RANK', '0')}").write_text(str(weights.tolist()))


def _run(folder: Path, put: int | None = None, checkpoint: int | None = None) -> int:
    """Make both calls; die at a put of the store, or at a checkpoint."""
    puts, checkpoints = Countdown(put), Countdown(checkpoint)
    NewObject.publish = puts.counted(NewObject.publish)  # type: ignore[method-assign]
    Checkpoints.save = checkpoints.counted(Checkpoints.save, after=True)  # type: ignore[method-assign]
    both(folder)
    return 0


def _result(folder: Path) -> dict[str, str]:
    """Return the digest of every file of the store and of the student's weights."""
    found = experiments.contents(folder)
    return {
        name: sha
        for name, sha in found.items()
        if not name.endswith((".metrics.jsonl", ".json")) or "zarr" in name
    }


def killed(work: str, puts: list[int], checkpoints: list[int]) -> dict[str, Any]:
    """Make both calls whole, and killed at some puts and checkpoints and made again; return statuses and results."""
    there = Path(work)
    report: dict[str, Any] = {"statuses": [], "results": [], "identities": identities()}
    points: list[dict[str, int]] = [
        {},
        *({"put": one} for one in puts),
        *({"checkpoint": one} for one in checkpoints),
    ]
    for number, point in enumerate(points):
        folder = there / str(number)
        folder.mkdir()
        statuses = [Child(lambda: _run(folder, **point)).wait()]  # noqa: B023 - it runs at once
        if point:
            statuses.append(Child(lambda: _run(folder)).wait())  # noqa: B023
        report["statuses"].append(statuses)
        report["results"].append(_result(folder))
    return report


def _rank(rank: int, folder: Path) -> int:
    both(folder)
    return 0


def _own_group(rank: int, folder: Path) -> int:
    """Make both calls in a script with a process group of its own."""
    distributed.init_process_group("gloo", rank=rank, world_size=2)
    both(folder)
    assert distributed.get_world_size() == 2  # it is the script's, and stays
    distributed.destroy_process_group()
    return 0


def _differing_rank(rank: int, folder: Path) -> int:
    """Make a call with another network on each rank."""
    torch.set_num_threads(1)
    try:
        logitstore.cache(folder / "store.zarr", {"net": Net(seed=rank)}, Pictures(), device="cpu")
    except Exception as error:  # noqa: BLE001 - of both kinds
        (folder / f"said-{rank}").write_text(f"{type(error).__name__}: {error}")
        return 1
    return 0


def shared(work: str) -> dict[str, Any]:
    """Make both calls on one rank and on two, and one that differs; return statuses, results and lines."""
    report: dict[str, Any] = {}
    for number in (1, 2):
        folder = Path(work) / str(number)
        folder.mkdir()
        report[f"statuses {number}"] = ranks(number, _rank, folder)
        report[f"store {number}"] = experiments.contents(folder / "store.zarr")
        report[f"weights {number}"] = [path.read_text() for path in sorted(folder.glob("weights-*"))]
    folder = Path(work) / "own"
    folder.mkdir()
    report["statuses own"] = ranks(2, _own_group, folder)
    report["store own"] = experiments.contents(folder / "store.zarr")
    folder = Path(work) / "differing"
    folder.mkdir()
    report["differing"] = ranks(2, _differing_rank, folder)
    report["said"] = [path.read_text() for path in sorted(folder.glob("said-*"))]
    return report
