"""Identities and versions of real models and transforms: the folder that they are loaded from does not count."""

import importlib.metadata
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import nn
from torchvision.transforms import v2
from transformers import GPT2Config, GPT2ForSequenceClassification, ViTConfig, ViTForImageClassification

import logitstore
from logitstore.pipeline.augment import seeded
from logitstore.pipeline.factories.in_hand import in_hand
from logitstore.pipeline.in_hand.networks import module_in_hand
from logitstore.pipeline.models.hugging_face import classifier

SIDE = 16


def identity(module: nn.Module) -> Any:
    given = module_in_hand(module, "net")
    return given.args, given.weights


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Write a tiny model by `save_pretrained`, and its copy into another folder."""
    small: Any = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    torch.manual_seed(0)
    model = ViTForImageClassification(ViTConfig(**small, image_size=SIDE, patch_size=8, num_labels=4))
    before = identity(model)
    model.save_pretrained(tmp_path / "one")
    assert identity(model) == before
    shutil.copytree(tmp_path / "one", tmp_path / "other")
    return tmp_path


def loaded(folder: Path) -> Any:
    return ViTForImageClassification.from_pretrained(folder)


def test_a_model_from_another_folder_is_the_same_teacher(folder: Path) -> None:
    one, other = loaded(folder / "one"), loaded(folder / "other")
    assert one.name_or_path != other.name_or_path
    assert identity(one) == identity(other)
    made = ViTForImageClassification(ViTConfig(**one.config.to_dict()))  # of no folder
    made.load_state_dict(one.state_dict())
    assert identity(made) == identity(one)
    assert identity(classifier(folder / "one")) == identity(classifier(folder / "other"))
    one(torch.zeros(1, 3, SIDE, SIDE), labels=torch.zeros(1, dtype=torch.long))  # sets problem_type
    assert identity(one) == identity(other)
    other.config.image_size += 1  # control: a setting
    assert identity(one) != identity(other)


def test_a_setting_that_the_configuration_alone_has_counts() -> None:
    """Compare two pad ids, by which GPT-2 finds the token that it reads."""
    found = []
    for pad in (0, 3):
        torch.manual_seed(0)
        config = GPT2Config(
            n_embd=8, n_layer=1, n_head=2, vocab_size=8, pad_token_id=pad, bos_token_id=1, eos_token_id=2
        )
        found.append(identity(GPT2ForSequenceClassification(config)))
    assert found[0][1] == found[1][1] and found[0] != found[1]


def test_a_model_of_timm_from_another_file_is_the_same_teacher() -> None:
    def made(file: str, rate: float = 0.0) -> nn.Module:
        torch.manual_seed(0)
        net: nn.Module = timm.create_model(
            "test_vit2", pretrained_cfg_overlay={"file": file}, drop_rate=rate, img_size=32
        )
        return net

    assert identity(made("/a")) == identity(made("/b"))
    assert identity(made("/a")) != identity(made("/a", 0.5))


def pipeline(size: int = SIDE, dtype: torch.dtype = torch.float32) -> Any:
    steps = [v2.RandomResizedCrop(size), v2.ToImage(), v2.ToDtype(dtype, scale=True)]
    return v2.Compose([*steps, v2.RandomApply([v2.RandomHorizontalFlip()])])


def test_a_pipeline_of_torchvision_is_described_by_its_settings() -> None:
    described = in_hand(seeded(pipeline(), dtype="float32")).args
    assert "hooks" not in str(described) and "training" not in str(described)
    assert in_hand(seeded(pipeline().eval(), dtype="float32")).args == described
    assert in_hand(seeded(pipeline(8), dtype="float32")).args != described
    assert in_hand(seeded(pipeline(dtype=torch.float16), dtype="float32")).args != described


def test_versions_of_both_libraries_are_noted(folder: Path, without_fsync: None) -> None:
    images = np.random.default_rng(0).integers(0, 256, (8, 3, 20, 20), dtype=np.uint8)
    data = images, np.arange(8) % 4
    views: dict[str, Any] = {"first_view": 0, "views": 2, "device": "cpu"}
    for number, place in enumerate(("one", "other")):  # the second call finds a sealed store
        store = logitstore.cache(
            folder / "store.zarr",
            {"vit": loaded(folder / place)},
            data,
            augment=seeded(pipeline().train(not number), dtype="float32"),
            **views,
        )
    notes = store.teachers["vit"].part.spec.notes
    for library in ("transformers", "torchvision"):
        assert notes[library] == importlib.metadata.version(library)
    assert "timm" not in notes
