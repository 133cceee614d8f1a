"""Classifiers of sequences of transformers: logits are those of the model itself, and padding is what the pad id says.

Small models with random weights of the kinds that pool, mask and count positions in different ways.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from support.messages import Sentences
from torch import Tensor

from logitstore.pipeline.experiment.tables import Teacher
from logitstore.pipeline.models.hugging_face import SequenceClassifier, classifier
from logitstore.pipeline.models.rules import loader_rules
from logitstore.storage.errors import LogitStoreError

PAD, END = 1, 2
LENGTH = 7
COMMON = {"vocab_size": 24, "num_labels": 3, "pad_token_id": PAD, "bos_token_id": 3, "eos_token_id": END}
NAMED = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 40,
    "initializer_range": 0.5,
}
ROTARY = {**NAMED, "num_key_value_heads": 2, "head_dim": 8}
GPT2 = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 40, "initializer_range": 0.5}
SHORT = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2, "initializer_factor": 3.0}
DECODERS: dict[str, dict[str, Any]] = {
    "GPT2": GPT2,
    "OpenAIGPT": GPT2,
    "Llama": ROTARY,
    "Qwen2": ROTARY,
    "Mistral": ROTARY,
    "Gemma": ROTARY,
    "Phi": NAMED,
    "OPT": {**NAMED, "ffn_dim": 32, "word_embed_proj_dim": 16, "init_std": 0.5},
    "BioGpt": NAMED,
    "Bloom": {"hidden_size": 16, "n_layer": 2, "n_head": 2, "initializer_range": 0.5},
}
"""Models that read the last token that is not padding."""
ENCODERS: dict[str, dict[str, Any]] = {
    "Bert": NAMED,
    "Electra": {**NAMED, "embedding_size": 16},
    "DistilBert": {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32, "initializer_range": 0.5},
    "T5": {**SHORT, "decoder_start_token_id": PAD},
    "Bart": {
        **{f"{part}_layers": 2 for part in ("encoder", "decoder")},
        **{f"{part}_attention_heads": 2 for part in ("encoder", "decoder")},
        **{f"{part}_ffn_dim": 32 for part in ("encoder", "decoder")},
        "d_model": 16,
        "init_std": 0.5,
        "max_position_embeddings": 40,
    },
}
COUNTING: dict[str, dict[str, Any]] = {
    "Roberta": NAMED,
    "XLMRoberta": NAMED,
    "Camembert": NAMED,
    "Esm": NAMED,
}
"""Models that count positions by the pad id."""
ALL = DECODERS | ENCODERS | COUNTING
XLNET = {"d_model": 16, "n_layer": 2, "n_head": 2, "d_inner": 32, "initializer_range": 0.5}


def make(name: str, folder: Path, settings: dict[str, Any], **more: Any) -> Any:
    """Save a model of random weights, and return it."""
    config = getattr(transformers, f"{name}Config")(**{**COMMON, **settings, **more})
    torch.manual_seed(0)
    model = getattr(transformers, f"{name}ForSequenceClassification")(config).eval()
    model.save_pretrained(folder)
    return model


def stating(folder: Path, **changes: Any) -> Path:
    """Change config.json; None removes nothing, it is written as null."""
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return folder


def texts() -> list[list[int]]:
    """Token ids of texts of different lengths, each with its end."""
    draw = torch.Generator().manual_seed(3)
    return [[*torch.randint(4, 24, (length,), generator=draw).tolist(), END] for length in (6, 3, 1, 5)]


def padded(side: str = "right", pad: int = PAD) -> Tensor:
    rows = [([pad] * (LENGTH - len(text)), text) for text in texts()]
    return torch.tensor([text + fill if side == "right" else fill + text for fill, text in rows])


def alone(model: Any) -> Tensor:
    """The logits of each text by itself, without any padding."""
    with torch.no_grad():
        return torch.cat([model(input_ids=torch.tensor([text])).logits for text in texts()])


def logits(folder: Path, ids: Tensor, **args: Any) -> Tensor:
    with torch.no_grad():
        found: Tensor = classifier(folder, **args).eval()(ids)
    return found


def close(one: Tensor, other: Tensor) -> bool:
    return torch.allclose(one, other, rtol=1e-4, atol=1e-4)


def refused(folder: Path, ids: Tensor | None = None, **args: Any) -> LogitStoreError:
    with pytest.raises(LogitStoreError) as caught:
        logits(folder, padded() if ids is None else ids, **args)
    assert "\n" not in str(caught.value)
    return caught.value


# The pad id


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("side", ["right", "left"])
def test_the_logits_are_those_of_the_model_itself(name: str, side: str, tmp_path: Path) -> None:
    """With its own attention mask, wherever the padding stands; and padding behind a text changes nothing."""
    model, ids = make(name, tmp_path, ALL[name]), padded(side)
    with torch.no_grad():
        expected = model(input_ids=ids, attention_mask=(ids != PAD).long()).logits
    found = logits(tmp_path, ids)
    assert torch.equal(found, expected)
    assert expected.std() > 0.05
    if side == "right":
        assert close(found, alone(model))


@pytest.mark.parametrize("stated", [0, None])
@pytest.mark.parametrize("name", DECODERS | ENCODERS)
def test_a_pad_id_of_args_is_what_the_head_goes_by(name: str, stated: int | None, tmp_path: Path) -> None:
    """config.json states another one, or none."""
    model = make(name, tmp_path, ALL[name])
    expected = alone(model)
    stating(tmp_path, pad_token_id=stated)
    assert close(logits(tmp_path, padded(), pad_id=PAD), expected)
    if name in DECODERS and stated is not None:
        # Negative control: by the id of config.json the last token is padding.
        assert not close(logits(tmp_path, padded()), expected)


@pytest.mark.parametrize("name", DECODERS)
def test_a_head_that_needs_a_pad_id_asks_for_it(name: str, tmp_path: Path) -> None:
    model = make(name, tmp_path, ALL[name])
    stating(tmp_path, pad_token_id=None)
    error = refused(tmp_path)
    assert error.expected == "a pad id, by which the model finds the token that it reads"
    assert "set args = { pad_id = N }" in error.remedy
    # Rows without padding, as the remedy says.
    whole = torch.tensor([text[:2] for text in texts()])
    with torch.no_grad():
        expected = torch.cat([model(input_ids=row[None]).logits for row in whole])
    assert close(logits(tmp_path, whole, pad_id=-1), expected)


@pytest.mark.parametrize("name", COUNTING)
def test_another_pad_id_than_positions_are_counted_by_is_refused(name: str, tmp_path: Path) -> None:
    model = make(name, tmp_path, COUNTING[name])
    error = refused(tmp_path, padded(pad=0), pad_id=0)
    assert error.found == "pad_id = 0" and f"{PAD} in config.json" in error.expected
    # Negative control: with padding before the texts, the model itself gives other logits by that id.
    ids, own = padded("left", pad=0), padded("left")
    with torch.no_grad():
        by_zero = model(input_ids=ids, attention_mask=(ids != 0).long()).logits
        by_own = model(input_ids=own, attention_mask=(own != PAD).long()).logits
    assert not close(by_zero, by_own)
    # The same id in args is no difference.
    assert torch.equal(logits(tmp_path, own, pad_id=PAD), by_own)


def test_xlnet_reads_the_last_token_and_refuses_padding_there(tmp_path: Path, sentence: Sentences) -> None:
    model = make("XLNet", tmp_path, XLNET)
    ids = padded("left")
    with torch.no_grad():
        expected = model(input_ids=ids, attention_mask=(ids != PAD).long()).logits
        behind = model(input_ids=padded(), attention_mask=(padded() != PAD).long()).logits
    assert torch.equal(logits(tmp_path, ids), expected) and close(expected, alone(model))
    assert not close(behind, expected)  # what would have come
    sentence(refused(tmp_path, padded()), tmp=tmp_path)


def test_a_model_without_an_attention_mask_is_given_none(tmp_path: Path) -> None:
    model = make("FNet", tmp_path, {key: NAMED[key] for key in NAMED if key != "num_attention_heads"})
    with torch.no_grad():
        assert torch.equal(logits(tmp_path, padded()), model(input_ids=padded()).logits)


def test_a_pad_id_of_args_is_part_of_newer_identities(tmp_path: Path) -> None:
    make("GPT2", tmp_path, GPT2)

    def rules(**args: Any) -> dict[str, int]:
        table = Teacher.model_validate({"name": "t", "hugging_face": "m", "args": args})
        return loader_rules(table, tmp_path)

    assert rules(pad_id=0) == {"rules": 2}  # the first version read the token at config.json's id
    assert rules() == rules(pad_id=PAD) == {}


# Token types


def test_token_types_are_a_second_row(tmp_path: Path, sentence: Sentences) -> None:
    model, ids = make("Bert", tmp_path / "bert", NAMED), padded()
    types = (torch.arange(LENGTH) >= 3).long().expand_as(ids)
    with torch.no_grad():
        expected = model(input_ids=ids, attention_mask=(ids != PAD).long(), token_type_ids=types).logits
    assert torch.equal(logits(tmp_path / "bert", torch.stack([ids, types], dim=1)), expected)
    # Negative control: types make a difference, and without them all are 0.
    assert not close(logits(tmp_path / "bert", ids), expected)
    zeros = torch.stack([ids, torch.zeros_like(ids)], dim=1)
    assert torch.equal(logits(tmp_path / "bert", zeros), logits(tmp_path / "bert", ids))
    make("DistilBert", tmp_path / "distil", ENCODERS["DistilBert"])
    sentence(refused(tmp_path / "distil", zeros))
    sentence(refused(tmp_path / "bert", torch.zeros(4, 3, LENGTH, dtype=torch.int64)))


# Heads that are no softmax over classes


@pytest.mark.parametrize(
    "changes",
    [
        {"problem_type": "regression"},
        {"problem_type": "multi_label_classification"},
        {"id2label": {"0": "score"}, "label2id": {"score": 0}},
        {"architectures": ["GPT2LMHeadModel"]},
        {"architectures": ["BertForTokenClassification"]},
        {"architectures": ["OtherForSequenceClassification"]},
    ],
    ids=str,
)
def test_a_head_of_another_kind_is_refused(
    changes: dict[str, Any], tmp_path: Path, sentence: Sentences
) -> None:
    make("Bert", tmp_path, NAMED)
    sentence(refused(stating(tmp_path, **changes)))


def test_heads_of_images_are_looked_at_too(tmp_path: Path) -> None:
    config = transformers.ResNetConfig(
        embedding_size=4, hidden_sizes=[4, 4], depths=[1, 1], num_labels=1, layer_type="basic"
    )
    transformers.ResNetForImageClassification(config).save_pretrained(tmp_path)
    assert refused(tmp_path).found == "a head of 1 number, a regression"


@pytest.mark.parametrize("problem", [None, "single_label_classification"])
def test_a_head_over_classes_is_not_refused(problem: str | None, tmp_path: Path) -> None:
    """Negative control."""
    make("Bert", tmp_path, NAMED)
    module = classifier(stating(tmp_path, problem_type=problem))
    assert isinstance(module, SequenceClassifier) and module.pad_id == PAD
