"""Versions of our loaders' rules: teachers whose logits a newer version changed have it in their identity, no others."""

import json
from pathlib import Path
from typing import Any

import pytest
from support import experiments
from support.experiments import document, parsed

from logitstore.pipeline.cache.todo import capture_identity, stated_identity, teacher_identity
from logitstore.pipeline.experiment.tables import Teacher
from logitstore.pipeline.models.rules import loader_rules
from logitstore.pipeline.models.sources import CONFIG, PREPROCESSOR
from logitstore.pipeline.workspace import Workspace
from logitstore.storage.encodings.named import encoding_named
from logitstore.storage.errors import SpecMismatch
from logitstore.storage.identity import check_same

NORMALISED = {"do_normalize": True, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}


def rules(
    folder: Path, settings: dict[str, Any] | None, config: dict[str, Any], **args: Any
) -> dict[str, int]:
    (folder / CONFIG).write_text(json.dumps(config), encoding="utf-8")
    if settings is not None:
        (folder / PREPROCESSOR).write_text(json.dumps(settings), encoding="utf-8")
    return loader_rules(Teacher.model_validate({"name": "t", "hugging_face": "m", "args": args}), folder)


@pytest.mark.parametrize(
    "settings",
    [
        None,
        NORMALISED,
        {"do_normalize": False},
        {**NORMALISED, "do_flip_channel_order": False, "include_top": False, "rescale_offset": False},
        {**NORMALISED, "image_processor_type": "ViTImageProcessor"},
        {
            "image_processor_type": "MobileViTImageProcessor",
            "do_flip_channel_order": False,
            "do_normalize": False,
        },
        {**NORMALISED, "image_processor_type": "EfficientNetImageProcessor", "include_top": False},
    ],
)
def test_settings_that_were_obeyed_before_are_no_other_teacher(
    settings: dict[str, Any] | None, tmp_path: Path
) -> None:
    assert rules(tmp_path, settings, {}) == {}


@pytest.mark.parametrize(
    "settings",
    [
        {**NORMALISED, "do_flip_channel_order": True},
        {**NORMALISED, "include_top": True},
        {**NORMALISED, "rescale_offset": True},
        {"image_processor_type": "MobileViTImageProcessor", "do_normalize": False},
        {"feature_extractor_type": "MobileViTFeatureExtractor", "do_normalize": False},
        {**NORMALISED, "image_processor_type": "EfficientNetImageProcessor"},
        {"do_normalize": True},
        {"image_processor_type": "ViTImageProcessor"},
    ],
)
def test_settings_that_were_ignored_before_are_another_teacher(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    assert rules(tmp_path, settings, {}) == {"rules": 2}


def test_a_pad_id_of_args_matters_where_it_is_another(tmp_path: Path) -> None:
    assert rules(tmp_path, None, {"pad_token_id": 0}) == {}
    assert rules(tmp_path, None, {"pad_token_id": 0}, pad_id=0) == {}
    assert rules(tmp_path, None, {"pad_token_id": 0}, pad_id=1) == {"rules": 2}
    assert rules(tmp_path, None, {}, pad_id=1) == {"rules": 2}


@pytest.mark.parametrize(
    ("key", "name", "args", "expected"),
    [
        ("torchvision", "inception_v3", {}, {"rules": 2}),
        ("torchvision", "quantized_inception_v3", {}, {"rules": 2}),
        ("torchvision", "googlenet", {"options": {"aux_logits": False}}, {"rules": 2}),
        ("torchvision", "efficientnet_v2_l", {"mean": [0.1]}, {"rules": 2}),
        ("torchvision", "inception_v3", {"options": {"transform_input": True}}, {}),
        ("torchvision", "efficientnet_v2_l", {"mean": [0.1], "std": [0.2]}, {}),
        ("torchvision", "inception_v3.IMAGENET1K_V1", {}, {}),
        ("torchvision", "resnet18", {}, {}),
        ("timm", "inception_v3", {}, {}),
    ],
)
def test_networks_by_name(key: str, name: str, args: dict[str, Any], expected: dict[str, int]) -> None:
    table = Teacher.model_validate({"name": "t", key: name, "weights": "w.safetensors", "args": args})
    assert loader_rules(table, Path("w.safetensors")) == expected


def work_with(folder: Path, teacher: dict[str, Any]) -> Workspace:
    experiments.write_data(folder)
    content = document()
    content["teacher"][0] = {"name": "wide", **teacher}
    return Workspace.of_folder(parsed(content, folder), folder / "out")


def test_a_capture_by_older_rules_is_refused_and_others_are_not(tmp_path: Path) -> None:
    encoding = encoding_named("float32")
    for name, differs in (("inception_v3", True), ("resnet18", False)):
        work = work_with(tmp_path, {"torchvision": name, "weights": "wide.safetensors"})
        ours = capture_identity(work.experiment, work.experiment.teacher_members()[0], work.rows, "sha256:0")
        older = {key: value for key, value in ours["teacher"].items() if key != "rules"}
        written = {**ours, "teacher": older, "encoding": encoding.describe(), "views": 1}
        stated = stated_identity(ours, written, encoding, 1)
        if differs:
            with pytest.raises(SpecMismatch, match=r"teacher\.rules"):
                check_same("store", stated, written, made="with which it was captured", remedy="rename it")
        else:
            check_same("store", stated, written, made="with which it was captured", remedy="rename it")


def test_a_network_that_is_trained_here_has_them_too(tmp_path: Path) -> None:
    work = work_with(tmp_path, {"torchvision": "efficientnet_v2_l", "train": experiments.train(epochs=1)})
    identity = teacher_identity(work.experiment.teacher_members()[0], work.rows)
    assert identity["rules"] == 2
