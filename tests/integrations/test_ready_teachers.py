"""Ready teachers and checkpoints of other libraries: tiny networks that the tests make, saved as each library saves them.

transformers   from_pretrained of a folder, with its trained head and with a new one
timm           create_model(pretrained=True) of a local file, and the checkpoint of its training script
torchvision    the checkpoint of its training script, with an average of the weights
Lightning      checkpoints of a Trainer
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from logitstore.pipeline.experiment.document import parse_experiment
from logitstore.pipeline.models.weights import load_weights
from logitstore.pipeline.run import run
from logitstore.storage.errors import BadDataError, BadLogitsError, FactoryError, LogitStoreError

NETS = """
from pathlib import Path

import timm
from transformers import AutoModelForImageClassification, AutoModelForSequenceClassification

from logitstore.pipeline.models.libraries import PixelsToInputs


def vit(folder: Path, labels=None):
    more = {} if labels is None else {"num_labels": labels, "ignore_mismatched_sizes": True}
    net = AutoModelForImageClassification.from_pretrained(folder, **more)
    net.register_forward_pre_hook(PixelsToInputs(3, [0.5] * 3, [0.25] * 3))
    return net


def bert(folder: Path):
    return AutoModelForSequenceClassification.from_pretrained(folder)


def of_timm(file: Path, *, num_classes, pretrained=True):
    overlay = {"file": str(file), "num_classes": num_classes}
    net = timm.create_model(
        "test_vit2", pretrained=pretrained, pretrained_cfg_overlay=overlay, num_classes=num_classes, img_size=32
    )
    net.register_forward_pre_hook(PixelsToInputs(3, net.pretrained_cfg["mean"], net.pretrained_cfg["std"]))
    return net
"""


IMAGES = "images.npz"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Images, and the module of the factories."""
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (12, 3, 32, 32), dtype=np.uint8)
    np.savez(tmp_path / IMAGES, inputs=pixels, labels=np.arange(12) % 3)
    ids = random.integers(1, 20, (12, 6)).astype(np.int64)
    np.savez(tmp_path / "ids.npz", inputs=ids, labels=np.arange(12) % 3)
    (tmp_path / "brought_nets.py").write_text(NETS)
    return tmp_path


def captured(folder: Path, factory: str, data: str, /, **args: Any) -> np.ndarray:
    """Return the logits of a ready teacher from its store, and check that nothing is left to do."""
    document = {
        "transfer_set": {
            "factory": "logitstore.pipeline.datasets:arrays",
            "args": {"file": data},
            "order": "as_is",
            "num_classes": 3,
        },
        "teacher": [{"name": "t", "factory": f"brought_nets:{factory}", "args": args, "weights": "factory"}],
        "cache": {"batch_size": 4},
    }
    experiment = parse_experiment(document, where="a.toml", base=folder)
    out = folder / f"out-{len(list(folder.glob('out-*')))}"
    report = run(experiment, out, device="cpu")
    assert not run(experiment, out, device="cpu").done
    return report.store.teachers["t"].read(slice(None), 0)


def refused(kind: type[LogitStoreError], /, *given: Any, **args: Any) -> str:
    with pytest.raises(kind) as caught:
        captured(*given, **args)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def check_logits(found: np.ndarray, network: nn.Module, folder: Path) -> None:
    """Compare logits of a store with those of a network, pixels scaled and normalised by hand."""
    pixels = torch.from_numpy(np.load(folder / IMAGES)["inputs"])
    with torch.no_grad():
        output: Any = network.eval()((pixels / 255 - 0.5) / 0.25)
    expected = output if isinstance(output, torch.Tensor) else output.logits
    expected = (expected - expected.amax(dim=1, keepdim=True)).numpy()
    assert np.ptp(expected) > 0.1
    np.testing.assert_allclose(found, expected, atol=5e-3, rtol=1e-3)  # of float16


SMALL = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}


def test_from_pretrained_is_taken_and_a_new_head_refused(folder: Path) -> None:
    from transformers import ViTConfig, ViTForImageClassification

    torch.manual_seed(0)
    config = ViTConfig(**SMALL, image_size=32, patch_size=8, initializer_range=0.5, num_labels=3)
    network = ViTForImageClassification(config)
    network.save_pretrained(folder / "vit")
    check_logits(captured(folder, "vit", IMAGES, folder="vit"), network, folder)
    config.num_labels = 5
    ViTForImageClassification(config).save_pretrained(folder / "five")
    line = refused(FactoryError, folder, "vit", IMAGES, folder="five", labels=3)
    assert "found 'classifier.bias' and 1 more of " in line or "found 'classifier.weight' of" in line


def test_a_model_of_token_ids_is_pointed_elsewhere(folder: Path) -> None:
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(**SMALL, vocab_size=20, max_position_embeddings=8, num_labels=3)
    BertForSequenceClassification(config).save_pretrained(folder / "bert")
    assert "its logits alone" in refused(BadLogitsError, folder, "bert", "ids.npz", folder="bert")


def test_a_pretrained_network_of_timm_is_taken(folder: Path) -> None:
    import timm

    torch.manual_seed(0)
    network = timm.create_model("test_vit2", num_classes=3, img_size=32)
    nn.init.normal_(network.get_classifier().weight, std=1.0)  # its default is near zero
    torch.save(network.state_dict(), folder / "net.pth")
    assert network.pretrained_cfg["mean"] == (0.5, 0.5, 0.5)
    found = captured(folder, "of_timm", IMAGES, file="net.pth")
    check_logits(found, nn.Sequential(Halved(), network), folder)
    line = refused(FactoryError, folder, "of_timm", IMAGES, file="net.pth", pretrained=False)
    assert "drawn at random" in line


class Halved(nn.Module):
    """Inputs of std 0.25 as those of 0.5, timm's."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return inputs / 2


def check_loaded(path: Path, network: nn.Module, target: nn.Module, key: str | None = None) -> None:
    load_weights(target, path, allow_pickle=True, key=key)
    for name, tensor in network.state_dict().items():
        assert torch.equal(target.state_dict()[name], tensor), name


def test_a_checkpoint_of_torchvisions_training_is_read(tmp_path: Path) -> None:
    """As `references/classification/train.py` writes it."""
    from torchvision import models

    torch.manual_seed(0)
    network, target = (models.squeezenet1_1(num_classes=3) for _ in range(2))
    average = torch.optim.swa_utils.AveragedModel(models.squeezenet1_1(num_classes=3), use_buffers=True)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    checkpoint = {
        "model": network.state_dict(),
        "optimizer": optimizer.state_dict(),
        "lr_scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 30).state_dict(),
        "epoch": 3,
        "args": argparse.Namespace(model="squeezenet1_1", lr=0.1, output_dir=Path("runs")),
    }
    torch.save(checkpoint, tmp_path / "checkpoint.pth")
    check_loaded(tmp_path / "checkpoint.pth", network, target)
    torch.save({**checkpoint, "model_ema": average.state_dict()}, tmp_path / "both.pth")
    with pytest.raises(BadDataError) as caught:
        load_weights(target, tmp_path / "both.pth", allow_pickle=True)
    assert "weights_key = 'model' or weights_key = 'model_ema.module'" in caught.value.remedy
    check_loaded(tmp_path / "both.pth", average.module, target, key="model_ema.module")


def test_a_checkpoint_of_timms_training_is_read(tmp_path: Path) -> None:
    """As `timm.utils.CheckpointSaver` writes it, wrapped for several processes and compiled."""
    import timm
    from timm.utils import CheckpointSaver, ModelEmaV3

    torch.manual_seed(0)
    network, target = (timm.create_model("test_resnet", num_classes=3) for _ in range(2))
    average = ModelEmaV3(network)
    with torch.no_grad():
        network.fc.weight.add_(1)
    saver = CheckpointSaver(
        nn.DataParallel(network),
        torch.optim.SGD(network.parameters(), lr=0.1),
        args=argparse.Namespace(model="test_resnet"),
        model_ema=average,
        checkpoint_dir=str(tmp_path),
        recovery_dir=str(tmp_path),
    )
    saver.save_checkpoint(0, metric=0.5)
    (path,) = tmp_path.glob("checkpoint-*.pth.tar")
    with pytest.raises(BadDataError) as caught:
        load_weights(target, path, allow_pickle=True)
    assert "weights_key = 'state_dict" in caught.value.remedy and "state_dict_ema" in caught.value.remedy
    check_loaded(path, network, target, key="state_dict")
    check_loaded(path, average.module, target, key="state_dict_ema")


@pytest.mark.filterwarnings("ignore")
def test_a_checkpoint_of_lightning_is_read(tmp_path: Path) -> None:
    import lightning

    class Module(lightning.LightningModule):
        def __init__(self, args: argparse.Namespace, weighted: bool) -> None:
            super().__init__()
            self.save_hyperparameters()
            self.model = network_of_three()
            self.loss = nn.CrossEntropyLoss(weight=torch.ones(3) if weighted else None)

        def training_step(self, batch: Any, _: int) -> torch.Tensor:
            loss: torch.Tensor = self.loss(self.model(batch[0]), batch[1])
            self.log("loss", loss)
            return loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.Adam(self.parameters())

    rows = torch.utils.data.TensorDataset(torch.randn(8, 4), torch.arange(8) % 3)
    for weighted in (False, True):
        module = Module(argparse.Namespace(lr=0.1, out=tmp_path), weighted)
        folder = tmp_path / str(weighted)
        keeper = lightning.pytorch.callbacks.ModelCheckpoint(dirpath=folder, filename="best", monitor="loss")
        trainer = lightning.Trainer(
            max_epochs=1,
            accelerator="cpu",
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=tmp_path,
            callbacks=[keeper],
        )
        trainer.fit(module, torch.utils.data.DataLoader(rows, batch_size=4))
        path, target = folder / "best.ckpt", network_of_three()
        if weighted:
            with pytest.raises(BadDataError) as caught:
                load_weights(target, path, allow_pickle=True)
            assert caught.value.remedy == "set weights_key = 'state_dict.model' to read these alone"
        check_loaded(path, module.model, target, key="state_dict.model" if weighted else None)


def network_of_three() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
