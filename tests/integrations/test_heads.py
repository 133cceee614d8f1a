"""The last layer of networks of torchvision, timm and transformers, taken off: the same logits from its inputs.

Networks have the weights that they were initialised with; no weights are fetched.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import nn
from torchvision import models

from logitstore.pipeline.cache.linear_head import take_head
from logitstore.pipeline.models.hugging_face import ImageClassifier, SequenceClassifier
from logitstore.pipeline.models.preprocessing import PixelValues
from logitstore.pipeline.runtime.inference import Runner
from logitstore.storage.errors import LogitStoreError

CLASSES = 70


def of_torchvision(name: str, **more: Any) -> nn.Module:
    network: nn.Module = models.get_model(name, weights=None, num_classes=CLASSES, **more)
    return network


def of_timm(name: str, **more: Any) -> nn.Module:
    network: nn.Module = timm.create_model(name, pretrained=False, num_classes=CLASSES, **more)
    return network


SMALL: dict[str, Any] = {
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "initializer_range": 0.5,
    "num_labels": CLASSES,
}


def vit() -> nn.Module:
    from transformers import ViTConfig, ViTForImageClassification

    model = ViTForImageClassification(ViTConfig(**SMALL, image_size=32, patch_size=8))
    return ImageClassifier(model, 3, PixelValues({}, 3, "vit"), "vit")


def bert() -> nn.Module:
    from transformers import BertConfig, BertForSequenceClassification

    model = BertForSequenceClassification(BertConfig(**SMALL, vocab_size=20, max_position_embeddings=8))
    return SequenceClassifier(model, 0, "bert")


def llama() -> nn.Module:
    """A head that is applied to every token, of which one is taken behind it."""
    from transformers import LlamaConfig, LlamaForSequenceClassification

    model = LlamaForSequenceClassification(LlamaConfig(**SMALL, vocab_size=20, pad_token_id=0))
    return SequenceClassifier(model, 0, "llama")


def roberta() -> nn.Module:
    from transformers import RobertaConfig, RobertaForSequenceClassification

    model = RobertaForSequenceClassification(
        RobertaConfig(**SMALL, vocab_size=20, max_position_embeddings=9, pad_token_id=0)
    )
    return SequenceClassifier(model, 0, "roberta")


def pixels(rows: int, side: int = 32) -> np.ndarray[Any, Any]:
    return np.random.default_rng(0).normal(size=(rows, 3, side, side)).astype(np.float32)


def tokens(rows: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(0).integers(1, 20, (rows, 6))


@pytest.mark.parametrize(
    ("make", "inputs", "name"),
    [
        (lambda: of_torchvision("resnet18"), pixels(5), "fc"),
        (lambda: of_torchvision("mobilenet_v3_small"), pixels(5), "classifier.3"),
        (lambda: of_torchvision("vit_b_16", image_size=32), pixels(3), "heads.head"),
        (lambda: of_torchvision("googlenet", init_weights=False), pixels(3), "fc"),
        (lambda: of_timm("resnet10t"), pixels(5), "fc"),
        (lambda: of_timm("vit_tiny_patch16_224", img_size=32), pixels(3), "head"),
        (lambda: of_timm("convnext_atto"), pixels(3), "head.fc"),
        (vit, pixels(5), "model.classifier"),
        (bert, tokens(5), "model.classifier"),
        (llama, tokens(5), "model.score"),
        (roberta, tokens(5), "model.classifier.out_proj"),
    ],
    ids=[
        "resnet18", "mobilenet_v3", "vit_b_16", "googlenet", "timm resnet", "timm vit", "timm convnext",
        "hugging face vit", "bert", "llama", "roberta",
    ],
)  # fmt: skip
def test_the_head_of_a_known_network_is_found(
    make: Callable[[], nn.Module], inputs: np.ndarray[Any, Any], name: str
) -> None:
    torch.manual_seed(0)
    module = make().eval()
    layer = module.get_submodule(name)
    assert isinstance(layer, nn.Linear)
    nn.init.normal_(layer.weight)  # some begin with zeros
    wanted = Runner(module, where="teacher 't'", batch_size=2).logits(inputs)
    classifier = module.get_classifier() if hasattr(module, "get_classifier") else None  # timm's own word
    assert classifier in (None, layer)
    found, head = take_head(module, "auto", inputs[:2], CLASSES, where="teacher 't'")
    assert found == name
    runner = Runner(module, where="teacher 't'", batch_size=2, head=head)
    logits = np.asarray(runner.rows(runner.logits(inputs)))
    assert np.abs(logits - wanted).max() <= 1e-3 * wanted.std()
    assert logits.std(axis=0).max() > 0  # control: rows differ


def test_a_network_with_two_heads_is_refused() -> None:
    """Its logits are the mean of both: one of them alone gives others."""
    with pytest.raises(LogitStoreError) as caught:
        take_head(
            of_timm("deit_tiny_distilled_patch16_224", img_size=32).eval(),
            "auto",
            pixels(2),
            CLASSES,
            where="teacher 't'",
        )
    assert "head = 'head_dist'" in str(caught.value)


def test_a_convolution_as_head_is_refused() -> None:
    with pytest.raises(LogitStoreError, match=f"expected a torch.nn.Linear of {CLASSES} outputs, found none"):
        take_head(of_torchvision("squeezenet1_1").eval(), "auto", pixels(2), CLASSES, where="teacher 't'")
