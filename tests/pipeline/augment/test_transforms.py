"""Transforms of other libraries, seeded by row and view: they replay, and leave all generators of the process as they were."""

import contextlib
import pickle
import random
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from support import experiments
from support.experiments import document, parsed
from support.hands import Net, Pictures
from support.messages import Sentences
from support.random_states import generator_states

from logitstore.pipeline.augment import augment_rows, rand_augment, seeded
from logitstore.pipeline.augment.torch_draws import SeededDraws
from logitstore.pipeline.factories.call import build_augmentation, expect_augmentation
from logitstore.pipeline.in_hand.experiments import capture_of
from logitstore.pipeline.views import augmentation_identity, replay
from logitstore.storage.errors import BadDataError, ConfigError, FactoryError

IMAGES = np.random.default_rng(0).integers(0, 256, size=(20, 3, 6, 7), dtype=np.uint8)
ROWS = np.arange(len(IMAGES))
DRAWS: dict[str, Callable[[], float]] = {
    "uniform_": lambda: torch.empty(1).uniform_(0, 1).item(),
    "rand": lambda: torch.rand(()).item(),
    "randn": lambda: torch.randn(1).item(),
    "randint": lambda: torch.randint(0, 1 << 40, (1,)).item() / 2**40,
    "randperm": lambda: float(torch.randperm(1000)[0]),
    "randn_like": lambda: torch.randn_like(torch.zeros(1)).item(),
    "normal": lambda: torch.normal(0.0, 1.0, (1,)).item(),
    "normal of tensors": lambda: torch.normal(torch.zeros(1), torch.ones(1)).item(),
    "multinomial": lambda: float(torch.multinomial(torch.ones(1000), 1)),
    "bernoulli": lambda: float((torch.bernoulli(torch.full((40,), 0.5)) * 2.0 ** torch.arange(40)).sum()),
    "dropout": lambda: float((torch.nn.functional.dropout(torch.ones(20)) * 2.0 ** torch.arange(20)).sum()),
    "beta": lambda: torch.distributions.Beta(2.0, 3.0).sample().item(),
    "random": random.random,
    "numpy": lambda: float(np.random.random()),
    "numpy normal": lambda: float(np.random.standard_normal()),
}
"""Ways to draw a number from a generator of the process."""


class Drawn:
    """A transform whose image is the numbers that it draws."""

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def __call__(self, image: Any) -> Any:
        return np.array([[DRAWS[self.kind]()] * 2])


@pytest.mark.parametrize("kind", DRAWS)
def test_each_row_and_view_has_numbers_of_its_own_and_the_process_keeps_its_own(kind: str) -> None:
    before = generator_states()
    once = seeded(Drawn(kind), given="array", dtype="float64")
    again = pickle.loads(pickle.dumps(once))
    views = [
        augment_rows(IMAGES, one, 3, view, ROWS, made_twice=True) for one in (once, again) for view in (1, 2)
    ]
    assert views[0].tobytes() == views[2].tobytes() and views[1].tobytes() == views[3].tobytes()
    numbers = {float(value) for view in views for value in view[:, 0, 0].ravel()}
    assert len(numbers) > 35
    one = augment_rows(IMAGES[5:6], once, 3, 1, ROWS[5:6])
    assert one.tobytes() == views[0][5:6].tobytes()
    assert generator_states() == before


def test_the_state_of_random_is_put_back_though_a_transform_fails() -> None:
    def fails(image: Any) -> Any:
        raise ValueError(str(random.random()))

    got: list[Any] = []
    put: list[Any] = []
    get_state, set_state = random.getstate, random.setstate
    with (
        mock.patch.object(random, "getstate", lambda: got.append(get_state()) or got[-1]),
        mock.patch.object(random, "setstate", lambda state: put.append(state) or set_state(state)),
    ):
        for transform in (fails, Drawn("random")):
            with contextlib.suppress(FactoryError):
                augment_rows(IMAGES[:3], seeded(transform, given="array", dtype="float64"), 0, 1, ROWS[:3])
    assert len(got) == 4 and put == got


def test_a_transform_that_keeps_a_generator_of_its_own_is_refused() -> None:
    """Negative control: seeding cannot reach it."""
    own = np.random.default_rng(0)
    kept = seeded(lambda image: image ^ own.integers(256, dtype=np.uint8), given="array")
    with pytest.raises(FactoryError, match="expected the same bytes from the same generator"):
        augment_rows(IMAGES, kept, 0, 1, ROWS, made_twice=True)


def test_a_network_that_draws_meanwhile_changes_no_view_and_is_not_disturbed() -> None:
    slow = seeded(Drawn("randn"), given="array", dtype="float64")
    expected = augment_rows(IMAGES, slow, 0, 1, ROWS)
    made: list[NDArray[Any]] = []
    thread = threading.Thread(
        target=lambda: made.extend(augment_rows(IMAGES, slow, 0, 1, ROWS) for _ in range(20))
    )
    torch.manual_seed(7)
    thread.start()
    theirs = torch.cat([torch.rand(1) for _ in range(2000)])
    thread.join()
    assert all(np.array_equal(one, expected) for one in made) and len(made) == 20
    torch.manual_seed(7)
    assert torch.equal(theirs, torch.cat([torch.rand(1) for _ in range(2000)]))


def test_an_operation_with_a_generator_keeps_it() -> None:
    def own() -> torch.Tensor:
        return torch.rand(3, generator=torch.Generator().manual_seed(5))

    with SeededDraws(1):
        assert torch.equal(own(), torch.rand(3, generator=torch.Generator().manual_seed(5)))
        positional = torch.empty(3).uniform_(0, 1, generator=torch.Generator().manual_seed(5))
    assert torch.equal(own(), positional)


class Albumentations:
    """The interface of a transform of albumentations."""

    __module__ = "albumentations.core.composition"
    generator = random.Random()

    def set_random_seed(self, seed: int) -> None:
        """Seed its own generator."""
        self.generator = random.Random(seed)

    def __call__(self, *, image: NDArray[Any]) -> dict[str, Any]:
        """Turn an image by a multiple of a right angle, and take a square out of it."""
        assert image.shape[2:] in ((), (3,)) and image.flags.c_contiguous
        return {"image": np.rot90(image[:6, :6], self.generator.randrange(4)) ^ self.generator.randrange(256)}


@pytest.mark.parametrize("channels", ["first", "last"])
def test_a_transform_with_a_seed_of_its_own_is_given_it(channels: Any) -> None:
    inputs = IMAGES if channels == "first" else IMAGES.transpose(0, 2, 3, 1)
    own = seeded(Albumentations(), channels=channels)
    made = augment_rows(inputs, own, 0, 1, ROWS, made_twice=True)
    assert made.shape == ((20, 3, 6, 6) if channels == "first" else (20, 6, 6, 3))
    flat = augment_rows(IMAGES[:, 0], seeded(Albumentations()), 0, 1, ROWS, made_twice=True)
    assert flat.shape == (20, 6, 6) and len({view.tobytes() for view in flat}) == 20


@pytest.mark.parametrize("given", ["pil", "tensor", "array"])
@pytest.mark.parametrize("layout", ["first", "last", "none", "one"])
def test_a_transform_gets_the_image_that_it_takes_and_views_keep_the_axes(given: Any, layout: str) -> None:
    inputs = {
        "first": IMAGES,
        "last": IMAGES.transpose(0, 2, 3, 1),
        "none": IMAGES[:, 0],
        "one": IMAGES[:, :1],
    }[layout]
    seen: list[Any] = []

    def transform(image: Any) -> Any:
        seen.append(image)
        return image

    made = augment_rows(
        inputs, seeded(transform, given=given, channels="last" if layout == "last" else "first"), 0, 1, ROWS
    )
    assert np.array_equal(made, inputs)
    depth = 3 if layout in ("first", "last") else 1
    if given == "pil":
        assert isinstance(seen[0], Image.Image)
        assert (seen[0].mode, seen[0].size) == ("RGB" if depth == 3 else "L", (7, 6))
    elif given == "tensor":
        assert isinstance(seen[0], torch.Tensor) and seen[0].shape == (depth, 6, 7)
    else:
        assert seen[0].shape == ((6, 7) if layout == "none" else (6, 7, depth))


def test_a_transform_that_casts_says_so_first() -> None:
    def to_float(image: Any) -> Any:
        return torch.from_numpy(np.asarray(image, dtype=np.float32).transpose(2, 0, 1) / 255)

    with pytest.raises(FactoryError) as caught:
        augment_rows(IMAGES, seeded(to_float), 0, 1, ROWS)
    assert str(caught.value) == (
        "augmentation seeded: expected views of uint8, found float32; leave casting and normalising to the network, or set "
        "dtype = 'float32' and first_view = 0"
    )
    made = augment_rows(IMAGES, seeded(to_float, dtype="float32"), 0, 1, ROWS, made_twice=True)
    assert np.array_equal(made, (IMAGES / np.float32(255)).astype(np.float32))


MODULE = """
import random
import numpy as np

def train(most=9):
    return lambda image: np.asarray(image) ^ np.uint8(random.randrange(most))

def flat(image):
    return np.asarray(image) * 0

class Kept:
    def __call__(self, image):
        return np.asarray(image) ^ np.uint8(random.randrange(256))

kept = Kept()
number = 5

def broken():
    raise RuntimeError("two\\nlines")
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a module of transforms."""
    (tmp_path / "ls_transforms.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    sys.modules.pop("ls_transforms", None)
    return tmp_path


def test_a_named_transform_is_made_anew_by_another_process(folder: Path) -> None:
    named = build_augmentation(
        "logitstore.pipeline.augment:seeded",
        {"transform": "ls_transforms:train", "args": {"most": 200}},
        base=folder,
    )
    expected = augment_rows(IMAGES, named, 0, 1, ROWS, made_twice=True)
    again = pickle.loads(pickle.dumps(replay(named)))  # though a closure cannot be pickled
    assert np.array_equal(again(IMAGES, 1, ROWS), expected)
    assert not augment_rows(IMAGES, seeded("ls_transforms:flat"), 0, 1, ROWS).any()
    for name in ("kept", "Kept"):
        made = augment_rows(IMAGES, seeded(f"ls_transforms:{name}"), 0, 1, ROWS, made_twice=True)
        assert len({view.tobytes() for view in made}) == 20


def test_the_identity_of_a_capture_follows_the_file_of_the_transform(folder: Path) -> None:
    experiments.write_data(folder)
    content: dict[str, Any] = document()

    def source(name: str) -> str:
        content["cache"]["augment"] = {
            "factory": "logitstore.pipeline.augment:seeded",
            "args": {"transform": f"ls_transforms:{name}"},
        }
        identity = augmentation_identity(parsed(content, folder))
        assert identity is not None
        return str(identity["source"])

    before = {name: source(name) for name in ("train", "kept")}
    assert before["train"].startswith("seeded 1, sha256:") and len(set(before.values())) == 1
    (folder / "ls_transforms.py").write_text(MODULE + "# edited\n")
    assert source("train") == source("kept") != before["train"]


def without_generator(image: Any) -> Any:
    """Return an image by an operation that draws from torch's global generator alone."""
    return torch.native_dropout(torch.ones(3, 6, 7), 0.5, True)[0]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: seeded("ls_transforms"), "expected \"module:name\", found 'ls_transforms'; "),
        (
            lambda: seeded("ls_transforms:absent"),
            "found an error, AttributeError: module 'ls_transforms' has no",
        ),
        (lambda: seeded("ls_transforms:broken"), "found an error, RuntimeError: two lines; correct the name"),
        (
            lambda: seeded("ls_transforms:number"),
            "expected a transform that can be called, found int; return",
        ),
        (
            lambda: seeded("ls_transforms:kept", {"a": 1}),
            "expected a function that takes args, found Kept; remove",
        ),
        (
            lambda: seeded(len, {"a": 1}),
            "expected no args beside a transform that is an object, found ['a']; ",
        ),
        (lambda: seeded(len, given="jpeg"), "expected given among 'pil', 'tensor', 'array', found 'jpeg'; "),
        (lambda: seeded(5), "expected a transform that can be called, or the name of one, found 5; "),
        (
            lambda: augment_rows(IMAGES, seeded(lambda image: image[0]), 0, 1, ROWS),
            "expected a transform of PIL images, found an error, TypeError: ",
        ),
        (
            lambda: augment_rows(IMAGES, seeded(lambda image: (image, 1)), 0, 1, ROWS),
            "expected a transform that returns an image: PIL, a tensor or an array, found tuple; return the image alone",
        ),
        (
            lambda: augment_rows(IMAGES / 255, seeded(lambda image: image), 0, 1, ROWS),
            "expected images of uint8 with 1 or 3 channels, for a transform of PIL images, found inputs of float64 of",
        ),
        (
            lambda: augment_rows(IMAGES[:, None], seeded(lambda image: image), 0, 1, ROWS),
            "found inputs of shape (1, 3, 6, 7); choose another augmentation",
        ),
        (
            lambda: augment_rows(IMAGES, seeded(without_generator), 0, 1, ROWS),
            "expected random operations of torch that take a generator, found aten.native_dropout.default; draw the",
        ),
        (lambda: rand_augment(magnitude=31), "expected magnitude from 0 to 30, found 31; correct magnitude"),
        (lambda: rand_augment(num_ops=-1), "expected num_ops of 0 or more, found -1; correct num_ops"),
    ],
)
@pytest.mark.usefixtures("folder")
def test_bad_transforms_are_named(make: Callable[[], object], message: str) -> None:
    with pytest.raises((FactoryError, ConfigError)) as caught:
        make()
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_rand_augment_without_torchvision_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(ConfigError, match=r"rand_augment: expected torchvision, .*; install torchvision$"):
        rand_augment()


# In an experiment --------------------------------------------------------------------------------

FLOATS = """
import numpy as np
import torch

def train():
    return floats

def floats(image):
    pixels = torch.from_numpy(np.asarray(image, dtype=np.float32)[None] / 255)
    return torch.flip(pixels, [2]) if torch.rand(()) < 0.5 else pixels
"""


def test_an_experiment_runs_on_views_of_another_dtype(tmp_path: Path) -> None:
    (tmp_path / "ls_floats.py").write_text(FLOATS)
    experiments.write_data(tmp_path)
    with np.load(tmp_path / "test.npz") as archive:
        arrays = dict(archive)
    args = {"transform": "ls_floats:train", "dtype": "float32"}
    seeded_views = {"factory": "logitstore.pipeline.augment:seeded", "args": args}
    trained = experiments.train(epochs=1, augment=seeded_views)
    content: dict[str, Any] = document() | {
        "teacher": [experiments.teacher("wide", train=trained)],
        "student": [experiments.student("soft", views="all", train=experiments.train(epochs=1))],
    }
    content["cache"] |= {"views": 2, "workers": 1, "augment": seeded_views | {"first_view": 0}}
    with pytest.raises(
        BadDataError, match="expected inputs of float32, as in the transfer set as its views are made"
    ):
        experiments.run_document(content, tmp_path, tmp_path / "out")
    np.savez(tmp_path / "test.npz", **(arrays | {"inputs": arrays["inputs"].astype(np.float32) / 255}))
    store = experiments.run_document(content, tmp_path, tmp_path / "out").store
    again = replay(seeded("ls_floats:train", dtype="float32"), first_view=0)
    batches = list(store.stream(32, views="all", augment=again))
    assert {np.asarray(batch.inputs).dtype for batch in batches} == {np.dtype(np.float32)}
    content["cache"]["augment"] |= {"first_view": 1}
    content["teacher"][0]["train"] = experiments.train(epochs=1)
    np.savez(tmp_path / "test.npz", **arrays)
    with pytest.raises(
        FactoryError, match=r"view 1: expected inputs of uint8 .*, found float32 .*; set first_view = 0"
    ):
        experiments.run_document(content, tmp_path, tmp_path / "mixed")


def test_a_transform_that_is_not_seeded_is_refused_by_name(sentence: Sentences) -> None:
    compose = type("Compose", (), {"__module__": "torchvision.transforms.v2._container", "__call__": _fails})
    own = type("Mine", (compose,), {"__module__": "my_transforms"})
    with pytest.raises(FactoryError) as of_file:
        expect_augmentation(compose(), "ls_mine:views")
    with pytest.raises(ConfigError) as in_hand:
        capture_of({"net": Net()}, Pictures(), augment=compose(), transfer_set={}, cache={})
    assert expect_augmentation(own(), "m:f")  # it may take a generator, so that it is tried first
    with pytest.raises(FactoryError) as tried:
        augment_rows(IMAGES, own(), 0, 1, ROWS)
    with pytest.raises(FactoryError) as other:  # negative control
        augment_rows(IMAGES, _fails, 0, 1, ROWS)
    for error in (of_file, in_hand, tried, other):
        sentence(error.value)


def _fails(*_: Any) -> Any:
    raise TypeError("No image, video, mask, bounding box of keypoint was found in the sample")
