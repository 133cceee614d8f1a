"""Laws of weight files: what is written comes back, all or nothing, and what differs is named."""

import errno
import hashlib
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from logitstore.pipeline.models import weights
from logitstore.pipeline.models.networks import mlp
from logitstore.pipeline.models.records import weights_digest
from logitstore.pipeline.models.weights import load_weights, save_weights
from logitstore.storage.errors import BadDataError, ConfigError, StorageError, StorageFull


def model(hidden: int = 4, num_classes: int = 3, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return mlp([hidden], input_shape=(2, 2), num_classes=num_classes)


def same_weights(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def test_weights_come_back_bit_for_bit(tmp_path: Path) -> None:
    path = tmp_path / "new" / "wide.safetensors"
    digest = save_weights(model(seed=1), path)
    assert digest == f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}" == weights_digest(path)
    other = model(seed=2)
    assert not same_weights(other, model(seed=1))
    assert load_weights(other, path) == digest
    assert same_weights(other, model(seed=1))
    assert os.listdir(path.parent) == ["wide.safetensors"]


def test_the_same_weights_are_the_same_bytes(tmp_path: Path) -> None:
    paths = [tmp_path / f"{n}.safetensors" for n in range(3)]
    digests = [save_weights(model(seed=seed), path) for path, seed in zip(paths, (1, 1, 2), strict=True)]
    assert digests[0] == digests[1] != digests[2]


def test_buffers_and_tied_weights_are_kept(tmp_path: Path) -> None:
    def tied() -> nn.Module:
        layer = nn.Linear(3, 3)
        return nn.Sequential(layer, nn.BatchNorm1d(3), layer)

    source, target = tied(), tied()
    source(torch.rand(5, 3))
    save_weights(source, tmp_path / "tied.safetensors")
    load_weights(target, tmp_path / "tied.safetensors")
    assert same_weights(source, target)


def test_a_file_with_two_values_of_a_tied_weight_is_refused(tmp_path: Path) -> None:
    """The model keeps one of them: the last, which is not what the file says of the other."""
    path = tmp_path / "tied.safetensors"
    layer = nn.Linear(3, 3)
    target = nn.Sequential(layer, nn.ReLU(), layer)
    tensors = {name: tensor.clone() for name, tensor in target.state_dict().items()}
    save_file(tensors, path)
    load_weights(target, path)  # control
    save_file({**tensors, "2.weight": tensors["2.weight"] + 1}, path)
    with pytest.raises(
        BadDataError, match=r"expected '2\.weight' equal to '0\.weight', which the model ties"
    ):
        load_weights(target, path)
    assert torch.equal(layer.weight, tensors["0.weight"])
    load_weights(nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3)), path)  # control: not tied


def test_weights_never_have_the_digest_of_a_file_that_came_while_they_were_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tensors of the one file and the digest of the other would make a capture that states a teacher it is not of."""
    path, module = tmp_path / "wide.safetensors", model(seed=3)
    save_weights(model(seed=1), path)
    save_weights(model(seed=2), tmp_path / "other.safetensors")
    genuine = weights._check_tensors

    def exchanging(*arguments: Any) -> None:
        genuine(*arguments)
        os.replace(tmp_path / "other.safetensors", path)

    with monkeypatch.context() as patch:
        patch.setattr(weights, "_check_tensors", exchanging)
        with pytest.raises(BadDataError, match="expected a file that does not change while it is read"):
            load_weights(module, path)
    assert same_weights(module, model(seed=3))
    assert load_weights(module, path) == weights_digest(path)  # control: afterwards it is a file like another
    assert same_weights(module, model(seed=2))


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin"])
def test_pickles_are_read_only_on_request(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"wide{suffix}"
    torch.save(model(seed=1).state_dict(), path)
    target = model(seed=2)
    with pytest.raises(ConfigError) as caught:
        load_weights(target, path)
    assert str(caught.value) == (
        f"{path}: expected a file name that ends in .safetensors, found {suffix}, a pickle; "
        "convert it with safetensors.torch.save_file, or set allow_pickle = true if you trust it"
    )
    assert same_weights(target, model(seed=2))
    load_weights(target, path, allow_pickle=True)
    assert same_weights(target, model(seed=1))


def test_a_pickle_that_names_code_is_refused_even_then(tmp_path: Path) -> None:
    path = tmp_path / "whole.pt"
    torch.save(model(), path)  # the module itself, not its state dict
    with pytest.raises(BadDataError) as caught:
        load_weights(model(), path, allow_pickle=True)
    assert str(caught.value).startswith(
        f"{path}: expected a state dict of torch tensors, found a whole module, whose classes are code: logitstore."
    )
    assert "\n" not in str(caught.value)


def test_other_weights_are_named_and_change_nothing(tmp_path: Path) -> None:
    remedy = "; name the weights of this model, or correct the model's args"
    deep = mlp([4, 4], input_shape=(2, 2), num_classes=3)
    whole = nn.ModuleDict({"head": nn.Linear(4, 3)})
    for number, (source, message) in enumerate(
        [
            (model(num_classes=5), "expected 'head.weight' of shape (3, 4), found shape (5, 4)"),
            (model(hidden=6), "expected 'hidden.0.weight' of shape (4, 4), found shape (6, 4)"),
            (
                deep,
                "expected the 4 tensors of the model alone, found all of them, beside 'hidden.1.bias' and 1 more",
            ),
            (
                whole,
                "expected the 4 tensors of the model, found 2 of them among 2 tensors, without 'hidden.0.weight' and 1 more",
            ),
        ]
    ):
        path = tmp_path / f"{number}.safetensors"
        save_weights(source, path)
        target = model(seed=3)
        with pytest.raises(BadDataError) as caught:
            load_weights(target, path)
        assert str(caught.value) == f"{path}: {message}{remedy}"
        assert same_weights(target, model(seed=3))


def test_a_file_that_is_none_is_named(tmp_path: Path) -> None:
    path = tmp_path / "wide.safetensors"
    with pytest.raises(BadDataError) as caught:
        load_weights(model(), path)
    assert str(caught.value).startswith(f"{path}: expected a file of weights, found no regular file; correct")
    with pytest.raises(BadDataError, match="expected a file of weights, found No such file or directory"):
        weights_digest(path)
    save_weights(model(), path)
    whole = path.read_bytes()
    for content in (b"", b"garbage" * 10, whole[:-1], whole[: len(whole) // 2]):
        path.write_bytes(content)
        with pytest.raises(BadDataError) as caught:
            load_weights(model(), path)
        assert str(caught.value).startswith(f"{path}: expected a safetensors file, found SafetensorError: ")
    with pytest.raises(ConfigError, match=r"expected a file name that ends in \.safetensors, found \.npz; "):
        path.rename(tmp_path / "wide.npz")
        load_weights(model(), tmp_path / "wide.npz")


@pytest.mark.parametrize(
    ("number", "kind", "remedy"),
    [
        (errno.ENOSPC, StorageFull, "make room and run the same command again"),
        (errno.EDQUOT, StorageFull, "make room and run the same command again"),
        (errno.EIO, StorageError, "check the folder and its rights"),
    ],
)
def test_a_write_that_fails_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, kind: type[StorageError], remedy: str
) -> None:
    path = tmp_path / "wide.safetensors"
    digest = save_weights(model(seed=1), path)

    def fail(descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", fail)
        with pytest.raises(kind) as caught:
            save_weights(model(seed=2), path)
    assert type(caught.value) is kind
    assert str(caught.value).startswith(f"{path}: expected ")
    assert str(caught.value).endswith(f"found {os.strerror(number)}; {remedy}")
    assert weights_digest(path) == digest
    assert os.listdir(tmp_path) == ["wide.safetensors"]
