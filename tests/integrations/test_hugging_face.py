"""Teachers of Hugging Face: tiny models that the tests make and save, read again as a teacher and captured."""

import json
import logging
import shutil
import socket
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch

from logitstore.pipeline.experiment.document import Experiment, parse_experiment
from logitstore.pipeline.models.hugging_face import ImageClassifier, SequenceClassifier, classifier
from logitstore.pipeline.run import run
from logitstore.storage.errors import BadDataError, ConfigError, LogitStoreError, SpecMismatch

NAMES = ["oak", "pine", "ash"]
LENGTH, PAD = 6, 0


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both models, saved once: `vit` with its image processor, `bert` in several shards."""
    from transformers import BertConfig, BertForSequenceClassification, ViTConfig, ViTForImageClassification

    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    small = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    labels = {"id2label": dict(enumerate(NAMES)), "label2id": {name: i for i, name in enumerate(NAMES)}}
    vit = ViTForImageClassification(
        ViTConfig(**small, image_size=8, patch_size=4, initializer_range=0.5, **labels)
    )
    vit.save_pretrained(folder / "vit")
    (folder / "vit" / "preprocessor_config.json").write_text(
        json.dumps(
            {"do_rescale": True, "do_normalize": True, "image_mean": [0.5] * 3, "image_std": [0.25] * 3}
        )
    )
    bert = BertForSequenceClassification(
        BertConfig(
            **small,
            vocab_size=20,
            max_position_embeddings=8,
            pad_token_id=PAD,
            initializer_range=0.5,
            num_labels=3,
        )
    )
    bert.save_pretrained(folder / "bert", max_shard_size="2KB")
    assert len(list((folder / "bert").glob("*.safetensors"))) > 1
    return folder


@pytest.fixture
def models(saved: Path, tmp_path: Path) -> Path:
    """A copy of both, to be spoilt."""
    shutil.copytree(saved, tmp_path, dirs_exist_ok=True)
    return tmp_path


def tokens(rows: int) -> torch.Tensor:
    """Rows of token ids with padding at their ends."""
    draw = np.random.default_rng(0)
    ids = draw.integers(1, 20, (rows, LENGTH))
    ids[np.arange(LENGTH) >= draw.integers(2, LENGTH + 1, (rows, 1))] = PAD
    return torch.from_numpy(ids)


def changed_config(folder: Path, **changes: Any) -> Path:
    """Change config.json."""
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return folder


def refused(*arguments: Any, **more: Any) -> str:
    with pytest.raises(LogitStoreError) as caught:
        classifier(*arguments, **more)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_connection_would_be_noticed() -> None:
    """Negative control."""
    with pytest.raises(AssertionError, match="a connection was opened"):
        socket.create_connection(("127.0.0.1", 9))


# One model


def test_pixel_values_give_the_logits_of_the_model_alone(saved: Path) -> None:
    from transformers import ViTForImageClassification

    theirs = ViTForImageClassification.from_pretrained(saved / "vit").eval()
    ours = classifier(saved / "vit").eval()
    assert isinstance(ours, ImageClassifier)
    values = torch.randn(4, 3, 8, 8)
    with torch.no_grad():
        assert torch.equal(ours(values), theirs(pixel_values=values).logits)


def test_uint8_pixels_are_normalised_as_the_processor_says(saved: Path, models: Path) -> None:
    ours = classifier(saved / "vit").eval()
    pixels = torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8)
    with torch.no_grad():
        torch.testing.assert_close(ours(pixels), ours((pixels / 255 - 0.5) / 0.25))
        torch.testing.assert_close(ours(pixels[:, 0]), ours(pixels[:, :1].expand(-1, 3, -1, -1)))
        (models / "vit" / "preprocessor_config.json").unlink()
        without = classifier(models / "vit").eval()
        without(torch.rand(4, 3, 8, 8))
        with pytest.raises(
            BadDataError,
            match=r"expected preprocessor_config.json, which states how uint8 .* found no preprocessor_config.json",
        ):
            without(pixels)
        with pytest.raises(BadDataError, match="found inputs of int64"):
            ours(pixels.long())


def test_what_is_padding_changes_no_logit(saved: Path) -> None:
    from transformers import BertForSequenceClassification

    theirs = BertForSequenceClassification.from_pretrained(saved / "bert").eval()
    ours = classifier(saved / "bert").eval()
    assert isinstance(ours, SequenceClassifier)
    ids = tokens(16)
    with torch.no_grad():
        logits = ours(ids)
        assert torch.equal(logits, theirs(input_ids=ids, attention_mask=(ids != PAD).long()).logits)
        longer = torch.cat([ids, torch.full((16, 2), PAD)], dim=1)
        torch.testing.assert_close(ours(longer), logits)
        # The mask is what does it: with another pad id the padding is read.
        assert (classifier(saved / "bert", pad_id=19).eval()(longer) - logits).abs().max() > 1e-3
        with pytest.raises(BadDataError, match=r"expected token ids, .* found float32 of shape \(2, 6\)"):
            ours(torch.zeros(2, 6))


def test_without_a_pad_id_every_token_counts_and_that_is_said(
    models: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="logitstore.pipeline.models.hugging_face"):
        ours = classifier(changed_config(models / "bert", pad_token_id=None))
    assert isinstance(ours, SequenceClassifier) and ours.pad_id is None
    assert "has no pad id; every token is attended to" in caplog.text


def test_weights_are_brought_to_the_dtype_that_is_asked_for(models: Path) -> None:
    from transformers import ViTForImageClassification

    half = ViTForImageClassification.from_pretrained(models / "vit").to(torch.bfloat16)
    half.save_pretrained(models / "half")
    for dtype in ("float32", "bfloat16"):
        module = classifier(models / "half", dtype=dtype)
        assert {p.dtype for p in module.parameters()} == {getattr(torch, dtype)}
        with torch.no_grad():
            assert module.eval()(torch.rand(2, 3, 8, 8)).dtype == getattr(torch, dtype)


def test_what_is_missing_is_never_drawn_at_random(models: Path) -> None:
    from transformers import ViTConfig, ViTModel

    small = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    ViTModel(ViTConfig(**small, image_size=8, patch_size=4)).save_pretrained(models / "headless")
    line = refused(models / "headless")
    assert (
        "expected a model for image or sequence classification, found ViTModel; save the model with" in line
    )
    line = refused(changed_config(models / "headless", architectures=["ViTForImageClassification"]))
    assert (
        "expected a tensor 'classifier.bias' of the model's shape, found no such tensor (and 1 more" in line
    )


def test_a_head_of_another_size_is_refused(models: Path) -> None:
    labels = {"id2label": {"0": "a", "1": "b"}, "label2id": {"a": 0, "b": 1}}
    refused(changed_config(models / "vit", **labels))


def test_what_a_folder_may_not_ask_for(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import transformers

    code = "raise AssertionError('code of a model was run')\n"
    (models / "bert" / "modeling_own.py").write_text(code)
    own = {"AutoModelForSequenceClassification": "modeling_own.Own", "AutoConfig": "modeling_own.OwnConfig"}
    line = refused(changed_config(models / "bert", model_type="own", auto_map=own))
    assert "loads, without code of its own, found " in line
    # Negative control: it is what trust_remote_code would run.
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(models / "modules"))
    with pytest.raises(AssertionError, match="code of a model was run"):
        transformers.AutoConfig.from_pretrained(models / "bert", trust_remote_code=True)
    line = refused(changed_config(models / "vit", attn_implementation="somebody/kernel"))
    assert "found attn_implementation = 'somebody/kernel', a kernel on a server; remove attn_" in line
    with pytest.raises(ConfigError, match="expected no pad_id for images, found pad_id = 3; remove it"):
        classifier(changed_config(models / "vit", attn_implementation="sdpa"), pad_id=3)


def test_a_damaged_file_is_one_line(models: Path) -> None:
    weights = models / "vit" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-50])
    assert str(models / "vit") in refused(models / "vit")


# In an experiment


def experiment(base: Path, **teacher: Any) -> Experiment:
    """Images or sequences in `data.npz`, and one teacher of the name "hf"."""
    document = {
        "transfer_set": {"factory": "logitstore.pipeline.datasets:arrays", "args": {"file": "data.npz"}},
        "teacher": [{"name": "hf", **teacher}],
        "cache": {"batch_size": 16, "block_rows": 64, "encoding": "float32"},
    }
    return parse_experiment(document, where="a.toml", base=base)


def write_data(folder: Path, inputs: Any, names: list[str] = NAMES) -> None:
    labels = np.arange(len(inputs)) % 3
    np.savez(folder / "data.npz", inputs=inputs, labels=labels, class_names=np.array(names))


def captured(found: Experiment, out: Path) -> Any:
    with mock.patch("os.fsync"):
        return run(found, out, device="cpu").store


@pytest.mark.parametrize("kind", ["vit", "bert"])
def test_a_folder_is_captured_and_each_of_its_files_is_compared(models: Path, kind: str) -> None:
    images = np.random.default_rng(1).integers(0, 256, (100, 3, 8, 8)).astype(np.uint8)
    inputs = images if kind == "vit" else tokens(100).numpy()
    write_data(models, inputs)
    teacher = experiment(models, hugging_face=kind)
    store = captured(teacher, models / "out")
    with torch.no_grad():
        expected = classifier(models / kind).eval()(torch.from_numpy(inputs))
    expected = (expected - expected.max(dim=1, keepdim=True).values)[store.samples.source.copy()]
    found = store.teachers["hf"].read(slice(None))
    np.testing.assert_allclose(found - found.max(axis=1, keepdims=True), expected, atol=1e-5)
    made_by = store.teachers["hf"].provenance
    assert set(made_by["teacher"]["files"]) == {
        path.name for path in (models / kind).iterdir() if path.suffix in (".json", ".safetensors")
    }
    assert made_by["transformers"]

    moved = models / "elsewhere"
    (models / kind).rename(moved)
    with mock.patch(
        "logitstore.pipeline.cache.stage.load_without_head", side_effect=AssertionError("loaded")
    ):
        again = experiment(models, hugging_face="elsewhere")
        captured(again, models / "out")  # nothing to do: where it lies makes no difference
        (moved / "README.md").write_text("a note")
        captured(again, models / "out")
        for name in made_by["teacher"]["files"]:
            content = (moved / name).read_bytes()
            (moved / name).write_bytes(content + b" ")
            with pytest.raises(SpecMismatch) as caught:
                captured(again, models / "out")
            assert f"teacher.files.{name} = 'sha256:" in str(caught.value)
            (moved / name).write_bytes(content)


def test_another_order_of_classes_is_refused_before_anything_is_built(models: Path) -> None:
    write_data(models, np.zeros((100, 3, 8, 8), np.uint8), ["oak", "ash", "pine"])
    with (
        mock.patch(
            "logitstore.pipeline.models.hugging_face.import_library", side_effect=AssertionError("loaded")
        ),
        pytest.raises(
            BadDataError,
            match=r"expected 'ash' as class 1, as in the transfer set, found 'pine', class 2 of the transfer set; ",
        ),
    ):
        captured(experiment(models, hugging_face="vit"), models / "out")
    found = captured(experiment(models, hugging_face="vit", check_class_names=False), models / "out")
    assert "hf" in found.teachers


def test_members_are_folders_with_their_number(models: Path) -> None:
    write_data(models, np.zeros((70, 3, 8, 8), np.uint8))
    shutil.copytree(models / "vit", models / "vit-0")
    (models / "vit").rename(models / "vit-1")
    store = captured(experiment(models, hugging_face="vit-{member}", members=2), models / "out")
    assert list(store.teachers) == ["hf-0", "hf-1"]


def test_a_model_that_accelerate_has_placed_stays_there(models: Path) -> None:
    write_data(models, tokens(70).numpy())
    found = experiment(models, hugging_face="bert", args={"device_map": "cpu"})
    assert "hf" in captured(found, models / "out").teachers
