"""Image processors of transformers: for random settings of every class our pixel values are theirs, or we refuse.

No folder is downloaded: a processor is made with its default settings, some of them are drawn anew, and it is saved.
"""

import json
import logging
import random
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
import transformers
from support.messages import Sentences
from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING_NAMES
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES

from logitstore.pipeline.models import preprocessing
from logitstore.pipeline.models.preprocessing import OBEYED, SIZING, pixel_values
from logitstore.pipeline.models.sources import PREPROCESSOR
from logitstore.storage.errors import BadDataError

CONFIG = transformers.ViTConfig()
NAMES = sorted({name for names in IMAGE_PROCESSOR_MAPPING_NAMES.values() for name in names.values() if name})
OF_CLASSIFIERS = sorted(
    {
        name
        for model in MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES
        for name in IMAGE_PROCESSOR_MAPPING_NAMES.get(model, {}).values()
    }
)
REFUSED = {
    "Gemma3ImageProcessor": None,  # of ShieldGemma 2, which answers questions about images
    "Gemma3ImageProcessorPil": None,
    "ImageGPTImageProcessor": "do_color_quantize",
    "ImageGPTImageProcessorPil": "do_color_quantize",
    "PPLCNetImageProcessor": "values that differ",  # it exchanges red and blue without a setting
    "Siglip2ImageProcessor": "max_num_patches",  # pixel values cut into patches
    "Siglip2ImageProcessorPil": "max_num_patches",
    "TimmWrapperImageProcessor": None,  # its settings are in config.json
}
"""Image processors of classifiers that are refused, and what the line names; None where it cannot be made by itself."""


def processor_of(name: str, **settings: Any) -> Any:
    """An image processor with its default settings, but for some; skips nothing: all that can be made is tried."""
    return getattr(transformers, name)(**settings)


def written(folder: Path, settings: dict[str, Any]) -> Path:
    (folder / PREPROCESSOR).write_text(json.dumps(settings), encoding="utf-8")
    return folder


def pixels(channels: int = 3) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (3, channels, 24, 24), dtype=np.uint8)


def theirs(processor: Any, images: np.ndarray) -> torch.Tensor:
    """The pixel values of the image processor, without the steps that change sizes."""
    switches = {key: False for key in SIZING if getattr(processor, key, None)}
    made = processor(list(images), input_data_format="channels_first", return_tensors="pt", **switches)
    return torch.as_tensor(made["pixel_values"], dtype=torch.float32)


def refused(folder: Path, channels: int = 3) -> BadDataError:
    with pytest.raises(BadDataError) as caught:
        pixel_values(transformers, folder, CONFIG, channels)
    assert "\n" not in str(caught.value)
    return caught.value


@pytest.mark.parametrize("name", OF_CLASSIFIERS)
def test_the_default_settings_of_each_classifier_are_obeyed(name: str, tmp_path: Path) -> None:
    expected = REFUSED.get(name, "")
    if expected is None:
        return
    processor = processor_of(name)
    processor.save_pretrained(tmp_path)
    if expected:
        assert expected in str(refused(tmp_path))
        return
    values = pixel_values(transformers, tmp_path, CONFIG, 3)
    images = pixels()
    torch.testing.assert_close(
        values(torch.from_numpy(images)), theirs(processor, images), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("EfficientNetImageProcessor", {"rescale_offset": True, "rescale_factor": 1 / 127.5}),
        ("EfficientNetImageProcessor", {"rescale_offset": True, "do_normalize": False}),
        ("EfficientNetImageProcessor", {"include_top": False}),
        ("MobileViTImageProcessor", {"do_flip_channel_order": False}),
        ("ViTImageProcessor", {"do_rescale": False, "image_mean": [99.0, 120.0, 30.0]}),
        ("ViTImageProcessor", {"do_normalize": False}),
        ("BeitImageProcessor", {"do_reduce_labels": True}),
    ],
)
def test_each_setting_is_obeyed_and_matters_where_it_should(
    name: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    processor, images = processor_of(name, **settings), pixels()
    processor.save_pretrained(tmp_path)
    values = pixel_values(transformers, tmp_path, CONFIG, 3)(torch.from_numpy(images))
    torch.testing.assert_close(values, theirs(processor, images), rtol=1e-4, atol=1e-4)
    # Negative control: by its default settings the class gives other numbers, but for settings of labels.
    difference = (values - theirs(processor_of(name), images)).abs().max()
    assert (difference > 0.1) == ("do_reduce_labels" not in settings)


def drawn(draw: random.Random, known: set[str]) -> dict[str, Any]:
    """Settings at random, of those that a class knows and now and then of those that it does not."""
    numbers = [
        [draw.uniform(0.1, 0.9) for _ in range(3)],
        draw.uniform(0.1, 0.9),
        [draw.uniform(0.1, 0.9)] * 3,
    ]
    values: dict[str, Any] = {
        "do_rescale": draw.random() < 0.8,
        "rescale_factor": draw.choice([1 / 255, 1 / 127.5, 1 / 256]),
        "rescale_offset": draw.random() < 0.5,
        "do_normalize": draw.random() < 0.7,
        "image_mean": draw.choice(numbers),
        "image_std": draw.choice(numbers),
        "include_top": draw.random() < 0.5,
        "do_flip_channel_order": draw.random() < 0.5,
        "do_reduce_labels": draw.random() < 0.5,
        "do_convert_rgb": draw.random() < 0.5,
        "do_color_quantize": draw.random() < 0.05,
        "offset": draw.random() < 0.05,
    }
    kept = {key: value for key, value in values.items() if key in known or draw.random() < 0.05}
    if "image_mean" in kept and isinstance(kept["image_mean"], float):
        kept["image_std"] = draw.uniform(0.1, 0.9)
    return kept


def compared(name: str, draw: random.Random, folder: Path) -> str:
    """Draw settings for a class: "same" if ours are its pixel values, "refused" if it is refused, else "other"."""
    try:
        plain = processor_of(name)
    except Exception:  # noqa: BLE001 - a class that needs a tokenizer, a font or a package that is not there
        return "not made"
    known = {key for key in [*OBEYED, "do_reduce_labels", "do_convert_rgb"] if hasattr(plain, key)}
    settings = plain.to_dict() | drawn(draw, known)
    if draw.random() < 0.5:  # the names of older versions
        kind = settings.pop("image_processor_type")
        older = {
            "feature_extractor_type": kind.removesuffix("Pil").replace("ImageProcessor", "FeatureExtractor")
        }
        settings |= draw.choice(
            [{"image_processor_type": kind + ("" if kind.endswith("Pil") else "Fast")}, older]
        )
    # A list for a size, and a number, as older files have them.
    if isinstance(settings.get("size"), dict) and "height" in settings["size"] and draw.random() < 0.3:
        settings["size"] = draw.choice([settings["size"]["height"], list(settings["size"].values())])
    settings = json.loads(json.dumps(settings, default=str))
    written(folder, settings)
    try:
        values = pixel_values(transformers, folder, CONFIG, 3)
    except BadDataError:
        return "refused"
    images = pixels()
    processor = transformers.AutoImageProcessor.from_pretrained(str(folder / PREPROCESSOR), config=CONFIG)
    ours, wanted = values(torch.from_numpy(images)), theirs(processor, images)
    same = ours.shape == wanted.shape and bool(
        (ours - wanted).abs().max() <= 1e-3 * max(1, wanted.abs().max())
    )
    return "same" if same else "other"


@pytest.mark.parametrize("part", range(4))
def test_random_settings_of_every_class_are_obeyed_or_refused(part: int, tmp_path: Path) -> None:
    draw = random.Random(part)
    outcomes = [(name, compared(name, draw, tmp_path)) for name in NAMES[part::4] for _ in range(3)]
    assert [name for name, outcome in outcomes if outcome == "other"] == []
    counts = {
        outcome: sum(found == outcome for _, found in outcomes) for outcome in ("same", "refused", "not made")
    }
    assert counts["same"] >= 40 and counts["refused"] >= 40 and counts["not made"] <= 12, counts


def test_without_the_comparison_other_numbers_would_go_in(tmp_path: Path) -> None:
    """Negative control: the checks of names alone let some of the same settings pass with other pixel values."""
    with mock.patch.object(preprocessing, "_compare"):
        processor_of("PPLCNetImageProcessor").save_pretrained(tmp_path)
        values = pixel_values(transformers, tmp_path, CONFIG, 3)
    images = pixels()
    difference = values(torch.from_numpy(images)) - theirs(processor_of("PPLCNetImageProcessor"), images)
    assert difference.abs().max() > 0.1


@pytest.mark.parametrize(
    "name", ["MobileViTImageProcessor", "EfficientNetImageProcessor", "ViTImageProcessor"]
)
def test_numbers_that_a_file_leaves_out_are_those_of_its_class(name: str, tmp_path: Path) -> None:
    values = pixel_values(transformers, written(tmp_path, {"image_processor_type": name}), CONFIG, 3)
    images = pixels()
    expected = theirs(processor_of(name), images)
    torch.testing.assert_close(values(torch.from_numpy(images)), expected, rtol=1e-4, atol=1e-4)
    # Negative control: they are not 0 and 1.
    assert (torch.from_numpy(images) / 255 - expected).abs().max() > 0.1


@pytest.mark.parametrize(
    "settings",
    [
        {"do_color_quantize": True, "clusters": [[0, 0, 0]]},
        {"offset": True},
        {"do_something_new": True},
        {"do_flip_channel_order": True},  # a setting that this class ignores
        {"image_mean": [0.5, 0.5]},
        {"image_mean": "half"},
        {"image_std": [0.5, 0.0, 0.5]},
        {"rescale_factor": None},
        {"image_processor_type": "NoSuchImageProcessor"},
        {"auto_map": {"AutoImageProcessor": "own.Own"}},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_what_is_refused_is_named(settings: dict[str, Any], tmp_path: Path, sentence: Sentences) -> None:
    plain = processor_of("ViTImageProcessor").to_dict() | settings
    sentence(refused(written(tmp_path, json.loads(json.dumps(plain, default=str)))))


def test_what_is_off_is_not_refused(tmp_path: Path) -> None:
    """Negative control: an unknown setting that is off changes nothing."""
    off = {"do_something_new": False, "offset": None, "clusters": [], "bias": 0.0}
    plain = processor_of("ViTImageProcessor").to_dict() | off
    pixel_values(transformers, written(tmp_path, json.loads(json.dumps(plain, default=str))), CONFIG, 3)


def test_the_steps_that_are_left_out_are_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    processor_of("CLIPImageProcessor").save_pretrained(tmp_path)
    with caplog.at_level(logging.INFO, logger=preprocessing.__name__):
        pixel_values(transformers, tmp_path, CONFIG, 3)
    assert "do_resize, do_center_crop left out, as images come sized from the transfer set" in caplog.text


@pytest.mark.parametrize("channels", [1, 3])
def test_other_numbers_of_channels(channels: int, tmp_path: Path) -> None:
    settings = {
        "image_processor_type": "ViTImageProcessor",
        "image_mean": [0.3] * channels,
        "image_std": [0.7] * channels,
    }
    values = pixel_values(transformers, written(tmp_path, settings), CONFIG, channels)
    images = torch.from_numpy(pixels(channels))
    torch.testing.assert_close(values(images), (images / 255 - 0.3) / 0.7)
    if channels == 3:
        assert refused(tmp_path, 1).expected == "image_mean of 1 number"
