"""Students of timm, torchvision and transformers by name: trained from a store, begun from weights, and loaded again."""

import json
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from support.messages import Sentences
from torch import Tensor, nn

import logitstore
from logitstore.pipeline.experiment.document import load_experiment
from logitstore.pipeline.models.hugging_face import ImageClassifier
from logitstore.pipeline.models.libraries import timm_model, torchvision_model
from logitstore.pipeline.run import run
from logitstore.pipeline.train.network import begun_network
from logitstore.pipeline.train.todo import student_seeds
from logitstore.pipeline.trainer.trial import check_training
from logitstore.storage.errors import BadDataError, BadLogitsError, ConfigError, LogitStoreError

NAMES = ["oak", "pine", "ash"]
SMALL = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
ROWS = 12
PROCESSOR = {"do_rescale": True, "do_normalize": True, "image_mean": [0.5] * 3, "image_std": [0.25] * 3}

EXPERIMENT = """
[transfer_set]
factory = "logitstore.pipeline.datasets:arrays"
args = { file = "FILE" }

[[teacher]]
name = "big"
factory = "logitstore.pipeline.models:mlp"
args = { hidden = [] }
train = { lr = 1e-3, epochs = 1 }

[[student]]
name = "small"
KEYS
teachers = ["big"]
train = { lr = 1e-3, epochs = 1, batch_size = 6 }
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Images and token ids, and the folders of two models: of three classes, and of five."""
    from transformers import BertConfig, BertForMaskedLM, ViTConfig, ViTForImageClassification

    random = np.random.default_rng(0)
    labels = np.arange(ROWS) % 3
    pixels = random.integers(0, 256, (ROWS, 3, 32, 32), dtype=np.uint8)
    np.savez(tmp_path / "images.npz", inputs=pixels, labels=labels, class_names=np.array(NAMES))
    ids = random.integers(1, 20, (ROWS, 6)).astype(np.int64)
    np.savez(tmp_path / "ids.npz", inputs=ids, labels=labels, class_names=np.array(NAMES))
    torch.manual_seed(5)
    for name, classes in (("vit", 3), ("five", 5)):
        config = ViTConfig(**SMALL, image_size=32, patch_size=16, initializer_range=0.5, num_labels=classes)
        ViTForImageClassification(config).save_pretrained(tmp_path / name)
        (tmp_path / name / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    BertForMaskedLM(BertConfig(**SMALL, vocab_size=20, max_position_embeddings=8)).save_pretrained(
        tmp_path / "bert"
    )
    return tmp_path


def written(folder: Path, keys: str, file: str = "images.npz") -> Path:
    """Write the experiment of a student with these keys."""
    path = folder / "a.toml"
    path.write_text(EXPERIMENT.replace("KEYS", keys).replace("FILE", file))
    return path


def trained(folder: Path, keys: str, file: str = "images.npz") -> nn.Module:
    """Train a student, see that nothing is left to do, and load it."""
    path, out = written(folder, keys, file), folder / "out"
    with mock.patch("os.fsync"):
        assert "train student small-seed0" in run(load_experiment(path), out, device="cpu").done
        assert not run(load_experiment(path), out, device="cpu").done
    return logitstore.load_student(path, "small", out=out)


def refused(kind: type[LogitStoreError], folder: Path, keys: str) -> str:
    with pytest.raises(kind) as caught:
        run(load_experiment(written(folder, keys)), folder / "out", device="cpu")
    assert "\n" not in str(caught.value)
    assert not (folder / "out" / "store.zarr").exists()  # before a teacher runs
    return str(caught.value)


def pixels(folder: Path) -> Tensor:
    return torch.from_numpy(np.load(folder / "images.npz")["inputs"])


def kept(folder: Path) -> dict[str, Tensor]:
    """The tensors of the trained student, as they are in its file."""
    return load_file(folder / "out" / "models" / "students" / "small-seed0.safetensors")


def state(folder: Path, name: str) -> dict[str, Tensor]:
    """The tensors of the model in a folder, under the names that they have in memory."""
    from transformers import AutoModelForImageClassification

    return dict(AutoModelForImageClassification.from_pretrained(folder / name).state_dict())


def distance(begun: dict[str, Tensor], after: dict[str, Tensor]) -> float:
    """How far the training has led from the weights that it may have begun with."""
    return max(float((tensor - after[f"model.{name}"]).abs().max()) for name, tensor in begun.items())


# timm and torchvision


def test_a_student_of_timm_is_trained_and_loaded(folder: Path) -> None:
    import timm

    student = trained(folder, 'timm = "test_resnet.r160_in1k"')
    with torch.no_grad():
        logits = student(pixels(folder))  # uint8, by the mean and std of timm
    assert logits.shape == (ROWS, 3)
    # Without logitstore: the file has timm's own names.
    theirs = timm.create_model("test_resnet", num_classes=3)
    theirs.load_state_dict(kept(folder))
    config = timm.models.get_pretrained_cfg("test_resnet.r160_in1k")
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (config.mean, config.std))
    with torch.no_grad():
        torch.testing.assert_close(theirs.eval()((pixels(folder) / 255 - mean) / std), logits)


def test_a_student_of_torchvision_is_trained_and_loaded(folder: Path) -> None:
    from torchvision import models

    student = trained(folder, 'torchvision = "squeezenet1_1"\nargs = { options = { dropout = 0.1 } }')
    theirs = models.squeezenet1_1(num_classes=3)
    theirs.load_state_dict(kept(folder))
    mean, std = (
        torch.tensor(values).view(-1, 1, 1) for values in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    )
    with torch.no_grad():
        torch.testing.assert_close(
            theirs.eval()((pixels(folder) / 255 - mean) / std), student(pixels(folder))
        )


@pytest.mark.parametrize(
    ("keys", "make", "head"),
    [
        (
            'timm = "test_resnet"',
            lambda n: timm_model("test_resnet", input_shape=(3, 32, 32), num_classes=n),
            "fc",
        ),
        (
            'torchvision = "squeezenet1_1"',
            lambda n: torchvision_model("squeezenet1_1", input_shape=(3, 32, 32), num_classes=n),
            "classifier.1",
        ),
    ],
)
def test_published_weights_begin_a_student_with_a_new_head(
    folder: Path, keys: str, make: Any, head: str, sentence: Sentences
) -> None:
    torch.manual_seed(3)
    published = make(1000).state_dict()
    torch.save({"state_dict": {f"module.{n}": t for n, t in published.items()}}, folder / "net.pth.tar")
    keys += '\nweights = "net.pth.tar"\nallow_pickle = true'
    sentence(refused(BadDataError, folder, keys))
    experiment = load_experiment(written(folder, f"{keys}\nreset_classifier = true"))
    (seed,) = student_seeds(experiment)
    module, _ = begun_network(experiment, seed, pixels(folder)[:2].numpy(), 3)
    ours = module.state_dict()
    other = {name for name in ours if not torch.equal(ours[name], published[name])}
    assert other == {f"{head}.weight", f"{head}.bias"}


def test_a_network_with_further_heads_is_refused_until_they_are_off(folder: Path) -> None:
    line = refused(
        BadLogitsError,
        folder,
        'torchvision = "googlenet.IMAGENET1K_V1"\nargs = { options = { aux_logits = true } }',
    )
    assert "in training mode: expected a tensor of logits" in line
    experiment = load_experiment(
        written(folder, 'torchvision = "googlenet"\nargs = { options = { aux_logits = false } }')
    )
    (seed,) = student_seeds(experiment)
    module, _ = begun_network(experiment, seed, pixels(folder)[:2].numpy(), 3)
    check_training(module, pixels(folder)[:2].numpy(), 3, "student")


def test_a_network_of_timm_from_a_factory_is_refused_uint8_with_a_remedy(
    folder: Path, sentence: Sentences
) -> None:
    (folder / "mine.py").write_text(
        "import timm\n\n\ndef net(*, num_classes):\n    return timm.create_model('test_resnet', num_classes=num_classes)\n"
    )
    sentence(refused(BadLogitsError, folder, 'factory = "mine:net"'))


# transformers


def test_a_folder_begins_a_student_and_its_result_is_such_a_folder(folder: Path) -> None:
    from transformers import AutoModelForImageClassification

    student = trained(folder, 'hugging_face = "vit"')
    assert isinstance(student, ImageClassifier)
    student.save_pretrained(folder / "saved")
    theirs = AutoModelForImageClassification.from_pretrained(folder / "saved").eval()
    assert theirs.config.id2label == dict(enumerate(NAMES))
    with torch.no_grad():
        values = (pixels(folder) / 255 - 0.5) / 0.25
        torch.testing.assert_close(theirs(pixel_values=values).logits, student(pixels(folder)))
    # The training began with the weights: two steps do not lead far away.
    assert distance(state(folder, "vit"), kept(folder)) < 0.01
    # It is a teacher as it is.
    again = trained(folder, 'hugging_face = "saved"')
    assert isinstance(again, ImageClassifier)


def test_a_configuration_alone_makes_new_weights(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    trained(folder, 'hugging_face = "vit/config.json"\nargs = { options = { hidden_dropout_prob = 0.2 } }')
    assert distance(state(folder, "vit"), kept(folder)) > 0.1
    assert "no model.safetensors" not in caplog.text
    weights = folder / "vit" / "model.safetensors"
    weights.unlink()
    trained(folder, 'hugging_face = "vit"')
    assert f"no model.safetensors in {folder / 'vit'}: begins with new weights" in caplog.text


def test_another_head_is_refused_or_made_new(folder: Path, sentence: Sentences) -> None:
    sentence(refused(BadDataError, folder, 'hugging_face = "five"'))
    student = trained(folder, 'hugging_face = "five"\nreset_classifier = true')
    body = {
        name: tensor for name, tensor in state(folder, "five").items() if not name.startswith("classifier.")
    }
    assert distance(body, kept(folder)) < 0.01
    assert kept(folder)["model.classifier.weight"].shape == (3, 8)
    with torch.no_grad():
        assert student(pixels(folder)).shape == (ROWS, 3)


def test_a_language_model_begins_a_classifier_of_texts(folder: Path, sentence: Sentences) -> None:
    keys = 'hugging_face = "bert/config.json"\nweights = "bert"'
    with pytest.raises(BadDataError) as caught:
        trained(folder, keys, "ids.npz")
    sentence(str(caught.value))
    trained(
        folder, f"{keys}\nreset_classifier = true", "ids.npz"
    )  # with a new pooler, which BERT's head reads
    body = {
        n: t for n, t in load_file(folder / "bert" / "model.safetensors").items() if n.startswith("bert.")
    }
    assert len(body) > 10 and distance(body, kept(folder)) < 0.01


def test_a_file_begins_a_student_of_hugging_face(folder: Path) -> None:
    """A state dict, that of a trained student, and the file inside a folder."""
    save_file(state(folder, "vit"), folder / "vit.safetensors")
    for file in ("vit.safetensors", "own.safetensors", "vit/model.safetensors"):
        trained(folder, f'hugging_face = "vit/config.json"\nweights = "{file}"')
        assert distance(state(folder, "vit"), kept(folder)) < 0.01
        save_file(kept(folder), folder / "own.safetensors")


def test_folders_that_begin_no_student_are_refused(folder: Path, sentence: Sentences) -> None:
    (folder / "vit" / "model.safetensors").rename(folder / "vit" / "pytorch_model.bin")
    sentence(refused(BadDataError, folder, 'hugging_face = "vit"'))
    (folder / "vit" / "pytorch_model.bin").unlink()
    sentence(refused(BadDataError, folder, 'hugging_face = "vit"\nreset_classifier = true'))
    sentence(refused(BadDataError, folder, 'hugging_face = "absent"'))
    key = 'hugging_face = "vit"\nargs = { options = { num_labels = 4 } }'
    sentence(refused(ConfigError, folder, key))


def test_a_configuration_runs_no_code_and_asks_no_server(folder: Path, sentence: Sentences) -> None:
    path = folder / "vit" / "config.json"
    content = json.loads(path.read_text())
    (folder / "vit" / "own.py").write_text("raise AssertionError('code of a model was run')\n")
    own = {"AutoConfig": "own.Config", "AutoModelForImageClassification": "own.Model"}
    for change in ({"model_type": "own", "auto_map": own}, {"auto_map": own}):
        path.write_text(json.dumps(content | change))
        if "model_type" in change:
            line = refused(BadDataError, folder, 'hugging_face = "vit"')
            assert "makes a model of, without code of its own" in line
        else:  # transformers has this model itself
            trained(folder, 'hugging_face = "vit"')
    path.write_text(json.dumps(content | {"attn_implementation": "somebody/kernel"}))
    with pytest.raises(ConfigError) as caught:
        trained(folder, 'hugging_face = "vit"')
    sentence(str(caught.value))
    path.write_text(json.dumps(content))
    with pytest.raises(ConfigError, match="attn_implementation = 'somebody/kernel', a kernel on a server"):
        trained(
            folder, 'hugging_face = "vit"\nargs = { options = { attn_implementation = "somebody/kernel" } }'
        )


def test_the_configuration_is_part_of_the_identity(folder: Path) -> None:
    trained(folder, 'hugging_face = "vit"')
    path = folder / "vit" / "preprocessor_config.json"
    path.write_text(json.dumps(PROCESSOR | {"image_std": [0.5] * 3}))
    assert run(load_experiment(folder / "a.toml"), folder / "out", device="cpu").done == [
        "train student small-seed0"
    ]
