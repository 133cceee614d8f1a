"""Trials of networks in training mode: what cannot be trained is found before, and nothing is left changed."""

import copy
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from support.experiments import Recorder
from torch import Tensor, nn

from logitstore.pipeline.experiment.training import Train
from logitstore.pipeline.models.weights import load_weights, save_weights
from logitstore.pipeline.stream.batch import TorchBatch
from logitstore.pipeline.trainer.loop import fit
from logitstore.pipeline.trainer.trial import (
    check_training,
    make_lazy_layers,
    refuses_single_row,
    try_neighbours,
)
from logitstore.storage.errors import BadDataError, BadLogitsError, LogitStoreError

Out = namedtuple("Out", "logits aux")
FEW = np.random.default_rng(0).normal(size=(2, 4)).astype(np.float32)


class Network(nn.Module):
    """Batch normalisation, dropout and a head of three classes."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(0.5), nn.Linear(6, 3))

    def forward(self, inputs: Tensor) -> Any:
        return self.layers(inputs)


class Auxiliary(Network):
    def forward(self, inputs: Tensor) -> Any:
        logits = super().forward(inputs)
        return Out(logits, logits) if self.training else logits


class Loss(Network):
    def forward(self, inputs: Tensor) -> Any:
        logits = super().forward(inputs)
        return logits.sum() if self.training else logits


class Dictionary(Network):
    def forward(self, inputs: Tensor) -> Any:
        logits = super().forward(inputs)
        return {"logits": logits} if self.training else logits


class Fails(Network):
    def forward(self, inputs: Tensor) -> Any:
        if self.training:
            raise RuntimeError("no such mode")
        return super().forward(inputs)


class MoreClasses(Network):
    def forward(self, inputs: Tensor) -> Any:
        logits = super().forward(inputs)
        return logits.repeat(1, 2) if self.training else logits


class NoGradient(Network):
    @torch.no_grad()
    def forward(self, inputs: Tensor) -> Any:
        return super().forward(inputs)


def frozen() -> nn.Module:
    return Network().requires_grad_(False)


def frozen_but_unused() -> nn.Module:
    network = frozen()
    network.extra = nn.Linear(2, 2)
    return network


WRONG: dict[Callable[[], nn.Module], tuple[type[LogitStoreError], str]] = {
    Auxiliary: (BadLogitsError, "a Out"),
    Loss: (BadLogitsError, "a tensor of shape ()"),
    Dictionary: (BadLogitsError, "a dict of 'logits'"),
    Fails: (BadLogitsError, "RuntimeError: no such mode"),
    MoreClasses: (BadLogitsError, "logits of 6 classes"),
    frozen: (BadDataError, "nothing to train: 6 frozen ones"),
    NoGradient: (BadDataError, "nothing to train: logits that do not depend on any (no_grad, or detached)"),
    frozen_but_unused: (
        BadDataError,
        "nothing to train: logits that do not depend on any (no_grad, or detached)",
    ),
}


@pytest.mark.parametrize("make", WRONG, ids=lambda make: make.__name__)
def test_what_cannot_be_trained_is_named(make: Callable[[], nn.Module]) -> None:
    kind, found = WRONG[make]
    with pytest.raises(kind) as caught:
        check_training(make(), FEW, 3, "student 'small'")
    assert caught.value.found == found
    mode = " in training mode" if kind is BadLogitsError else ""
    assert caught.value.where == f"student 'small'{mode}"


def test_a_network_without_parameters_has_nothing_to_train() -> None:
    with pytest.raises(BadDataError) as caught:
        check_training(nn.Identity(), FEW, 4, "teacher 't'")
    assert caught.value.found == "nothing to train: a network without any"


@pytest.mark.parametrize("rows", [1, 2])
def test_a_trial_changes_nothing(rows: int) -> None:
    """Negative control: a pass in training mode changes buffers, and draws random numbers."""
    network = Network()
    network.layers[0].eval()  # a mode of its own
    state, random = copy.deepcopy(network.state_dict()), torch.random.get_rng_state()
    check_training(network, FEW[:rows], 3, "student 'small'")
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())
    assert torch.equal(torch.random.get_rng_state(), random)
    assert network.training and not network.layers[0].training
    network(torch.from_numpy(FEW))
    assert any(not torch.equal(value, state[name]) for name, value in network.state_dict().items())
    assert not torch.equal(torch.random.get_rng_state(), random)


# Lazy layers


class Lazy(nn.Module):
    """Layers of unknown sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.LazyLinear(6), nn.LazyBatchNorm1d(), nn.LazyLinear(3))

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.layers(inputs)
        return logits


def test_weights_of_lazy_layers_are_loaded_after_a_first_call(tmp_path: Path) -> None:
    torch.manual_seed(0)
    trained = make_lazy_layers(Lazy(), FEW, 3, "teacher 't'")
    save_weights(trained, tmp_path / "w.safetensors")
    other = make_lazy_layers(Lazy(), FEW, 3, "teacher 't'")
    load_weights(other, tmp_path / "w.safetensors")
    inputs = torch.from_numpy(FEW)
    assert torch.equal(other.eval()(inputs), trained.eval()(inputs))
    with pytest.raises(RuntimeError, match="uninitialized"):  # what it is for
        load_weights(Lazy(), tmp_path / "w.safetensors")


def test_other_networks_are_not_called() -> None:
    make_lazy_layers(Fails().train(), FEW, 99, "teacher 't'")


# A batch of a single row


def rows_of(count: int) -> Callable[[int], list[TorchBatch]]:
    """Return batches of 4 rows, and of the rest."""
    inputs = torch.from_numpy(np.random.default_rng(1).normal(size=(count, 4)).astype(np.float32))
    labels = torch.arange(count) % 3
    whole = TorchBatch(torch.arange(count), torch.zeros(count, dtype=torch.int64), inputs, labels, {})

    def cut(start: int) -> TorchBatch:
        part = slice(start, start + 4)
        return TorchBatch(whole.rows[part], whole.views[part], inputs[part], labels[part], {})

    return lambda epoch: [cut(start) for start in range(0, count, 4)]


def trained_on(count: int, network: nn.Module) -> dict[str, Tensor]:
    torch.manual_seed(3)

    def loss(logits: Tensor, batch: TorchBatch) -> Tensor:
        return nn.functional.cross_entropy(logits, batch.labels)

    settings = Train(lr=0.1, epochs=2, batch_size=4)
    progress = Recorder()
    fit(network, rows_of(count), count, -(-count // 4), settings, loss, where="training s", progress=progress)
    return {name: value.clone() for name, value in network.state_dict().items()}


def test_a_single_row_is_left_out_where_it_cannot_be_normalised(caplog: pytest.LogCaptureFixture) -> None:
    torch.manual_seed(0)
    network = Network()
    start = copy.deepcopy(network)
    with pytest.raises(ValueError, match="Expected more than 1 value per channel"):
        start.train()(torch.from_numpy(FEW[:1]))
    start = copy.deepcopy(network)
    nine = trained_on(9, network)
    assert caplog.text.count("training s: a batch of a single row is left out") == 1
    caplog.clear()
    eight = {name: value for name, value in trained_on(8, start).items()}
    assert not caplog.text
    assert all(torch.equal(nine[name], eight[name]) for name in nine), "as if there were no ninth row"


def test_a_single_row_is_learnt_from_where_it_can_be() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 3))
    start = copy.deepcopy(network)
    nine, eight = trained_on(9, network), trained_on(8, start)
    assert any(not torch.equal(nine[name], eight[name]) for name in nine)


@pytest.mark.parametrize(
    ("layer", "refused"),
    [
        (nn.BatchNorm2d(3), False),  # it has the pixels of one image
        (nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(3)), True),
        (nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.GroupNorm(3, 3)), True),
        (nn.Sequential(nn.Flatten(), nn.LayerNorm(75)), False),
        (nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.SyncBatchNorm(3)), True),  # one process has but this row
        (nn.Unflatten(1, (9, 9)), False),  # fails otherwise
    ],
    ids=["maps", "pooled", "groups", "rows", "alone", "broken"],
)
def test_what_torch_refuses_is_found_by_asking_it(layer: nn.Module, refused: bool) -> None:
    state = copy.deepcopy(layer.state_dict())
    assert refuses_single_row(layer, torch.ones(1, 3, 5, 5)) is refused
    assert all(torch.equal(value, state[name]) for name, value in layer.state_dict().items())


def test_statistics_of_all_ranks_are_not_tried_on_one() -> None:
    """A rank that tried it by itself would wait for the others."""
    layer = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.SyncBatchNorm(3))
    with (
        mock.patch("torch.distributed.is_initialized", return_value=True),
        mock.patch("torch.distributed.get_world_size", return_value=2),
    ):
        assert not refuses_single_row(layer, torch.ones(1, 3, 5, 5))


@pytest.mark.parametrize("tracks", [True, False], ids=["control", "batch statistics"])
def test_a_student_that_depends_on_its_batch_is_warned_of(
    tracks: bool, caplog: pytest.LogCaptureFixture
) -> None:
    torch.manual_seed(0)
    student = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3, track_running_stats=tracks)).train()
    state = copy.deepcopy(student.state_dict())
    try_neighbours(student, FEW, "student 'small'")
    assert ("student 'small': the logits of a row depend on" in caplog.text) is not tracks
    assert student.training
    assert all(torch.equal(value, state[name]) for name, value in student.state_dict().items())
