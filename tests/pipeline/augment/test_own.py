"""Augmentations of your own: the guide is true, and an augmentation without replay is refused in time."""

import pickle
import re
import runpy
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from support import experiments
from support.experiments import document, parsed
from support.tree import ROOT

from logitstore.pipeline.augment import augment_rows, mixup, row_generator, torch_seeded
from logitstore.pipeline.cache.stage import cache
from logitstore.pipeline.factories.call import build_augmentation, expect_augmentation, source_digest
from logitstore.pipeline.views import replay, rows_of_store
from logitstore.pipeline.workspace import Workspace
from logitstore.storage.api import create_store
from logitstore.storage.digest import digest_rows
from logitstore.storage.errors import ConfigError, FactoryError

IMAGES = np.random.default_rng(0).normal(size=(20, 1, 6, 6)).astype(np.float32)
ROWS = np.arange(len(IMAGES))


def guide() -> list[str]:
    """The Python of the guide."""
    text = (ROOT / "docs" / "guides" / "views.md").read_text(encoding="utf-8")
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The modules of the guide, beside an experiment."""
    *modules, _ = guide()
    (tmp_path / "ls_my_views.py").write_text("\n\n".join(modules), encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize(
    ("name", "args"), [("brightness", {"most": 0.1}), ("noise", {"deviation": 0.2}), ("noise", {})]
)
def test_the_augmentations_of_the_guide_can_be_replayed(
    folder: Path, name: str, args: dict[str, Any]
) -> None:
    again = [build_augmentation(f"ls_my_views:{name}", args, base=folder) for _ in range(2)]
    made = [augment_rows(IMAGES, one, 3, 1, ROWS, made_twice=True) for one in again]
    assert made[0].tobytes() == made[1].tobytes() != IMAGES.tobytes()
    assert augment_rows(IMAGES[5:6], again[0], 3, 1, ROWS[5:6])[0].tobytes() == made[0][5].tobytes()
    assert (
        len({np.subtract(view, image).tobytes() for view, image in zip(made[0], IMAGES, strict=True)}) == 20
    )


def test_the_guides_version_stands_for_its_file(folder: Path) -> None:
    assert source_digest("ls_my_views:brightness", base=folder) == "brightness 1"
    assert source_digest("ls_my_views:noise", base=folder).startswith("sha256:")


def test_the_guides_loop_gets_the_mixtures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    labels = np.arange(20) % 3
    store = create_store(
        tmp_path / "store.zarr", num_classes=3, inputs=IMAGES, labels=labels, store_inputs=True
    )
    make_view = replay(mixup(alpha=0.5), others=rows_of_store(store))
    with store.capture("wide", provenance={"augmentation": {"first_view": 1}}, views=2) as capture:
        for view in range(2):
            for rows in capture.missing_blocks(view):
                numbers = np.arange(rows.start, rows.stop)
                seen = digest_rows(make_view(IMAGES[numbers], view, numbers))
                capture.write(rows, np.zeros((len(rows), 3), np.float32), view, seen=seen)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "loop.py").write_text(guide()[-1], encoding="utf-8")
    names = runpy.run_path("loop.py")
    batch, share = names["batch"], names["shares"][:, None, None, None]
    own, other = IMAGES[batch.rows], IMAGES[names["partners"]]
    np.testing.assert_allclose(batch.inputs, share * own + (1 - share) * other, atol=1e-6)
    assert (names["labels"][0] == batch.labels).all() and (names["labels"][1] == names["partners"] % 3).all()


# torch -------------------------------------------------------------------------------------------


def _in_place(image: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    return image.add_(torch.rand(image.shape, generator=generator))


def test_torch_seeded_draws_from_the_row_alone_and_leaves_torchs_own_generator() -> None:
    before, torch_state = IMAGES.copy(), torch.get_rng_state()
    augmentation = pickle.loads(pickle.dumps(torch_seeded(_in_place)))
    made = augment_rows(IMAGES, augmentation, 0, 1, ROWS, made_twice=True)
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert np.array_equal(IMAGES, before)
    seed = int(row_generator(0, 1, 7).bit_generator.random_raw())
    drawn = torch.rand((1, 6, 6), generator=torch.Generator().manual_seed(seed))
    assert np.array_equal(made[7], IMAGES[7] + drawn.numpy())


def test_what_draws_from_torchs_own_generator_is_found() -> None:
    """Negative control: with no use of the generator that it is given."""
    careless = torch_seeded(lambda image, generator: image + torch.rand(image.shape))
    with pytest.raises(FactoryError, match="expected the same bytes from the same generator"):
        augment_rows(IMAGES, careless, 0, 1, ROWS, made_twice=True)


def test_what_returns_no_tensor_is_named() -> None:
    with pytest.raises(
        FactoryError,
        match=r"^torch_seeded: expected a function that returns a Tensor, found a function that returns int; ",
    ):
        augment_rows(IMAGES, torch_seeded(lambda image, generator: 5), 0, 1, ROWS)


# In stage one ------------------------------------------------------------------------------------


def _experiment(folder: Path, views: dict[str, Any], **train: Any) -> Any:
    experiments.write_data(folder)
    whole = document()
    content = {
        "transfer_set": whole["transfer_set"],
        "teacher": whole["teacher"][:1],
        "cache": whole["cache"],
    }
    content["teacher"][0]["train"] = experiments.train(epochs=1, **train)
    content["cache"]["augment"] = views
    return parsed(content, folder)


MODULE = """
import numpy as np

calls = []

def remembers(from_call=0):
    def augmentation(example, generator):
        calls.append(1)
        return example + np.uint8(len(calls) if len(calls) > from_call else 0)
    return augmentation
"""


def test_an_impure_augmentation_stops_stage_one_before_anything_is_written(tmp_path: Path) -> None:
    (tmp_path / "ls_impure.py").write_text(MODULE)
    experiment = _experiment(tmp_path, {"factory": "ls_impure:remembers"})
    with (
        mock.patch("os.fsync"),
        pytest.raises(
            FactoryError,
            match=r"^augmentation of row 15 \(index \d+ of the transfer set\), view 1: expected the same bytes from",
        ),
    ):
        cache(Workspace.of_store(experiment, tmp_path / "store", tmp_path / "models", device="cpu"))
    assert not (tmp_path / "store").exists()


def test_one_that_becomes_impure_later_is_found_by_a_row_of_its_block(tmp_path: Path) -> None:
    (tmp_path / "ls_later.py").write_text(MODULE)
    experiment = _experiment(tmp_path, {"factory": "ls_later:remembers", "args": {"from_call": 70}})
    with (
        mock.patch("os.fsync"),
        pytest.raises(
            FactoryError,
            match=r"^augmentation of row 0 \(index \d+ of the transfer set\), view 1: expected the same bytes from",
        ),
    ):
        cache(Workspace.of_store(experiment, tmp_path / "store", tmp_path / "models", device="cpu"))
    assert not list((tmp_path / "store").glob("teachers/wide/**/1-0.json"))


def test_a_teacher_is_not_trained_on_mixtures(tmp_path: Path) -> None:
    mixtures = {"factory": "logitstore.pipeline.augment:mixup"}
    experiment = _experiment(tmp_path, mixtures, augment=mixtures)
    with mock.patch("os.fsync"), pytest.raises(ConfigError, match=r"mixtures have no label to train from"):
        cache(Workspace.of_store(experiment, tmp_path / "store", tmp_path / "models", device="cpu"))
    assert not (tmp_path / "store").exists()


def test_what_mixes_rows_is_an_augmentation_and_its_class_is_none() -> None:
    assert expect_augmentation(mixup(), "m:f") == mixup()
    with pytest.raises(FactoryError, match=r"expected an augmentation: .* found the class Mixup"):
        expect_augmentation(type(mixup()), "m:f")
