"""Transfer sets as users write them: no fingerprint, and whatever may be wrong with one."""

import itertools
import threading
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


class Own:
    """The examples of an `.npz` file, and nothing that states their content."""

    def __init__(self, file: Path) -> None:
        with np.load(file) as archive:
            self.x, self.y = archive["inputs"], archive["labels"]
            self.class_names = archive["class_names"].tolist()
            if "ids" in archive:
                self.ids = archive["ids"].tolist()

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> tuple[NDArray[Any], int]:
        return self.x[index], int(self.y[index])


class Listed(Own):
    """As a set of torchvision: its labels are listed in `targets`."""

    def __init__(self, file: Path) -> None:
        super().__init__(file)
        self.targets = self.y.tolist()


class Turned(Listed):
    """A set whose items have other labels than its list, from row 100 on."""

    def __getitem__(self, index: int) -> tuple[NDArray[Any], int]:
        inputs, label = super().__getitem__(index)
        return inputs, (label + (index >= 100)) % len(self.class_names)


class Noisy(Own):
    """A set with a random change inside."""

    def __getitem__(self, index: int) -> tuple[NDArray[Any], int]:
        inputs, label = super().__getitem__(index)
        return inputs ^ np.random.default_rng().integers(2, size=inputs.shape, dtype=np.uint8), label


class Guessing(Own):
    """A set whose labels are random."""

    def __getitem__(self, index: int) -> tuple[NDArray[Any], int]:
        return self.x[index], int(np.random.default_rng().integers(len(self.class_names)))


class Counting(Own):
    """A set whose examples depend on how many were asked for before."""

    def __init__(self, file: Path) -> None:
        super().__init__(file)
        self._calls = itertools.count()

    def __getitem__(self, index: int) -> tuple[NDArray[Any], int]:
        inputs, label = super().__getitem__(index)
        return inputs ^ np.uint8(next(self._calls) % 5 == 0), label


class Rare(Counting):
    """A set of which one example changes, when it is asked for the 500th time."""

    def __getitem__(self, index: int) -> tuple[NDArray[Any], int]:
        return self.x[index] ^ np.uint8(next(self._calls) == 500), int(self.y[index])


class OfThread(Own):
    """A set whose examples depend on the thread that asks."""

    def __getitem__(self, index: int) -> tuple[NDArray[Any], int]:
        inputs, label = super().__getitem__(index)
        return inputs ^ np.uint8(threading.current_thread() is not threading.main_thread()), label


class Split(Own):
    """A random half of the examples, another for each object."""

    def __init__(self, file: Path) -> None:
        super().__init__(file)
        kept = np.random.default_rng().permutation(len(self.x))[: len(self.x) // 2]
        self.x, self.y = self.x[kept], self.y[kept]


def own(file: Path) -> Own:
    """Return a set without a fingerprint."""
    return Own(file)


def listed(file: Path, seed: int = 0) -> Listed:
    """Return a set that lists its labels. seed: without effect."""
    return Listed(file)


def turned(file: Path) -> Turned:
    """Return a set whose list of labels is not that of its items."""
    return Turned(file)


def noisy(file: Path) -> Noisy:
    """Return a set with random inputs."""
    return Noisy(file)


def guessing(file: Path) -> Guessing:
    """Return a set with random labels."""
    return Guessing(file)


def counting(file: Path) -> Counting:
    """Return a set that depends on the order of calls."""
    return Counting(file)


def rare(file: Path) -> Rare:
    """Return a set that changes once."""
    return Rare(file)


def of_thread(file: Path) -> OfThread:
    """Return a set that depends on the thread."""
    return OfThread(file)


def split(file: Path) -> Split:
    """Return a random half that is not seeded."""
    return Split(file)


def jitter() -> Any:
    """Return an augmentation of vectors."""
    return lambda x, generator: x + generator.random(x.shape, dtype="float32")
