"""The training loop: its schedule, what it calls after a step, what it reports, and how it refuses to diverge."""

import itertools
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.experiments import Recorder
from torch import Tensor, nn

from logitstore.pipeline.experiment.training import Train
from logitstore.pipeline.runtime.device import choose_device
from logitstore.pipeline.runtime.ranks import Ranks
from logitstore.pipeline.trainer.loop import REPORT_EVERY, fit
from logitstore.pipeline.trainer.steps import learning_rate_factor, make_optimizer
from logitstore.storage.errors import BadDataError, BadLogitsError, ConfigError


@dataclass(frozen=True)
class Examples:
    """A batch of a regression."""

    inputs: Tensor
    targets: Tensor

    def __len__(self) -> int:
        return len(self.inputs)


SCHEDULES = ("constant", "cosine", "linear")


@st.composite
def plans(draw: st.DrawFn) -> tuple[dict[str, Any], int]:
    """Draw keys of settings, and steps an epoch. Settings are made outside: their checks of types draw numbers."""
    epochs = draw(st.integers(1, 8))
    keys = {
        "lr": 0.1,
        "epochs": epochs,
        "schedule": draw(st.sampled_from(SCHEDULES)),
        "warmup_epochs": draw(st.integers(0, epochs - 1)),
    }
    return keys, draw(st.integers(1, 7))


@given(plans())
def test_the_schedule_rises_to_the_full_rate_and_then_never_rises_again(
    plan: tuple[dict[str, Any], int],
) -> None:
    settings, steps = Train(**plan[0]), plan[1]
    warmup, total = settings.warmup_epochs * steps, settings.epochs * steps
    factors = [learning_rate_factor(settings, step, steps) for step in range(total)]
    assert all(0 < factor <= 1 for factor in factors)
    # The warm-up is linear, from one step's share (no step is wasted on a rate of 0) to the full rate.
    assert factors[:warmup] == pytest.approx([(step + 1) / warmup for step in range(warmup)])
    after = factors[warmup:]
    assert after[0] == 1.0
    assert after == sorted(after, reverse=True)
    left = len(after)
    expected = {
        "constant": [1.0] * left,
        "linear": [1 - step / left for step in range(left)],
        "cosine": [math.cos(math.pi * step / left / 2) ** 2 for step in range(left)],
    }[settings.schedule]
    assert after == pytest.approx(expected)
    if settings.schedule != "constant":
        assert learning_rate_factor(settings, total, steps) == pytest.approx(0.0)


class Counting(nn.Linear):
    """A layer that records when it is asked to apply its constraints, and what it then does."""

    def __init__(self) -> None:
        super().__init__(2, 1)
        self.norms: list[float] = []

    def apply_constraints(self) -> None:
        with torch.no_grad():
            self.norms.append(float(self.weight.norm()))
            self.weight.renorm_(2, 0, 0.5)


def batches_of(count: int, size: int = 4) -> list[Examples]:
    """The batches of an epoch."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(count, size, 2, generator=generator)
    return [Examples(x, x.sum(dim=1, keepdim=True) * 3) for x in inputs]


def squared_error(outputs: Tensor, batch: Examples) -> Tensor:
    """Mean squared error."""
    return ((outputs - batch.targets) ** 2).mean()


def trained(module: nn.Module, settings: Train, count: int = 5, **others: Any) -> float:
    """Fit a module to `batches_of`."""
    return fit(
        module,
        lambda _: batches_of(count),
        4 * count,
        count,
        settings,
        squared_error,
        where="fitting",
        **others,
    )


def test_the_loss_that_is_returned_is_the_mean_of_the_last_epoch() -> None:
    torch.manual_seed(0)
    module = nn.Linear(2, 1)
    still = Train(lr=1e-12, epochs=2)
    with torch.no_grad():
        expected = sum(float(squared_error(module(b.inputs), b)) for b in batches_of(5)) / 5
    assert trained(module, still) == pytest.approx(expected, rel=1e-4)
    assert not module.training
    assert trained(module, Train(lr=0.1, epochs=30)) < expected / 10


def test_constraints_are_applied_after_every_step() -> None:
    torch.manual_seed(0)
    module = Counting()
    trained(module, Train(lr=0.3, epochs=3, optimizer="sgd"))
    assert len(module.norms) == 15
    assert max(module.norms[1:]) > 0.5 + 1e-3, "no step ever left the bound, so nothing was tested"
    assert float(module.weight.detach().norm()) <= 0.5 + 1e-6


def test_the_rates_of_the_steps_are_those_of_the_schedule() -> None:
    """Read off the steps of SGD on a loss of gradient 1, whatever the order of calls in the loop."""
    settings = Train(lr=0.25, epochs=4, optimizer="sgd", schedule="linear", warmup_epochs=1)
    module = nn.Linear(2, 1, bias=False)
    seen: list[float] = []

    def loss(outputs: Tensor, batch: Examples) -> Tensor:
        seen.append(float(module.weight.detach().sum()))
        return module.weight.sum() + 0 * outputs.sum()

    fit(module, lambda _: batches_of(3), 12, 3, settings, loss, where="fitting")
    seen.append(float(module.weight.detach().sum()))
    steps = [(before - after) / 2 for before, after in itertools.pairwise(seen)]
    expected = [0.25 * learning_rate_factor(settings, step, 3) for step in range(12)]
    assert steps == pytest.approx(expected, abs=1e-6)


def test_an_epoch_asks_for_its_own_batches_and_empty_ones_are_passed_over() -> None:
    asked: list[int] = []
    empty = Examples(torch.zeros(0, 2), torch.zeros(0, 1))

    def epoch_batches(epoch: int) -> Iterator[Examples]:
        asked.append(epoch)
        yield from [*batches_of(2), empty]

    loss = fit(nn.Linear(2, 1), epoch_batches, 8, 3, Train(lr=0.1, epochs=3), squared_error, where="fitting")
    assert asked == [0, 1, 2]
    assert math.isfinite(loss)


class WithoutRows(Ranks):
    """A rank of two that has no rows in a step in which the other has four."""

    def numbers(self, *numbers: int) -> list[tuple[int, ...]]:
        return [numbers, (4, *(0 for _ in numbers[1:]))]

    def wrap(self, module: nn.Module) -> nn.Module:
        return module

    def mean(self, value: Tensor) -> Tensor:
        return value


def test_a_rank_without_rows_takes_part_in_the_step_and_adds_nothing_to_it() -> None:
    """As many passes as the other ranks, or they would wait for ever; no gradient, no statistics."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 1))
    before = {name: t.clone() for name, t in module.state_dict().items()}
    empty = Examples(torch.zeros(0, 2), torch.zeros(0, 1))
    calls: list[int] = []
    module[0].weight.register_hook(lambda gradient: calls.append(1))

    def fitted(batches: list[Examples]) -> None:
        settings = Train(lr=0.1, epochs=1, optimizer="sgd")
        fit(
            module, lambda _: batches, 8, 2, settings, squared_error, where="fitting", ranks=WithoutRows(0, 2)
        )

    fitted([empty, empty])
    assert len(calls) == 2
    assert all(torch.equal(t, before[name]) for name, t in module.state_dict().items())
    fitted(batches_of(2))  # control
    assert not all(torch.equal(t, before[name]) for name, t in module.state_dict().items())


def test_progress_reaches_its_total() -> None:
    recorder = Recorder()
    count = 2 * REPORT_EVERY + 3
    trained(nn.Linear(2, 1), Train(lr=1e-3, epochs=2), count=count, progress=recorder)
    told = recorder.of("fitting")
    assert told[0] == (0, 8 * count)
    assert told[-1] == (8 * count, 8 * count)
    assert told == sorted(told)
    assert len(told) == 2 + 2 * count // REPORT_EVERY
    assert recorder.calls[-1][4].startswith("loss ")
    assert re.fullmatch(r"loss \S+, waiting \d+ %", recorder.calls[1][4])


def test_a_training_that_diverges_says_what_to_lower() -> None:
    settings = Train(lr=1e30, epochs=3, optimizer="sgd")
    message = (
        r"training student small-seed0, epoch \d: expected a finite loss, found (nan|inf); "
        r"lower train\.lr \(now 1e\+30\), or add warmup_epochs"
    )
    with pytest.raises(ConfigError, match=message):
        fit(
            nn.Linear(2, 1),
            lambda _: batches_of(5),
            20,
            5,
            settings,
            squared_error,
            where="training student small-seed0",
        )


@pytest.mark.parametrize(
    ("settings", "kind", "defaults"),
    [
        (Train(lr=0.1, epochs=1, optimizer="sgd", momentum=0.9), torch.optim.SGD, {"momentum": 0.9}),
        (Train(lr=0.1, epochs=1, weight_decay=0.02), torch.optim.Adam, {"weight_decay": 0.02}),
        (Train(lr=0.1, epochs=1, optimizer="adamw"), torch.optim.AdamW, {"weight_decay": 0.0}),
    ],
    ids=["sgd", "adam", "adamw"],
)
def test_the_optimiser_is_the_one_that_is_named(
    settings: Train, kind: type[torch.optim.Optimizer], defaults: dict[str, float]
) -> None:
    optimizer = make_optimizer(nn.Linear(2, 1), settings)
    assert type(optimizer) is kind
    assert {key: optimizer.defaults[key] for key in defaults} == defaults
    assert optimizer.defaults["lr"] == 0.1


def test_a_device_that_is_named_is_taken() -> None:
    assert choose_device("cpu") == torch.device("cpu")
    assert choose_device().type == ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize("spoilt", ["inputs", "weights"])
def test_a_loss_that_is_not_finite_from_the_start_is_not_blamed_on_the_rate(spoilt: str) -> None:
    module = nn.Linear(2, 1)
    batches = batches_of(5)
    (batches[0].inputs if spoilt == "inputs" else module.weight.data)[0, 0] = math.nan
    with pytest.raises(BadDataError) as caught:
        fit(
            module,
            lambda _: batches,
            20,
            5,
            Train(lr=0.1, epochs=1),
            squared_error,
            where="training teacher t",
        )
    assert str(caught.value) == (
        "training teacher t, first step: expected a finite loss, found nan before the first update; "
        "look for NaN or very large numbers in the inputs and the initial weights"
    )


class Refused(torch.autograd.Function):
    """Fails on its way back."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor) -> Tensor:
        return inputs.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        raise KeyError("my own bug")


class Faulty(nn.Linear):
    """A user's own model, which does not do its work."""

    def __init__(self, fault: str) -> None:
        super().__init__(2, 1)
        self.fault = fault

    def forward(self, inputs: Tensor) -> Any:
        logits = super().forward(inputs)
        if self.fault == "fails":
            raise KeyError("my own bug")
        if self.fault == "returns a dict":
            return {"logits": logits, "loss": 0}
        return Refused.apply(logits) if self.fault == "fails backwards" else logits


FAILED = (
    "training teacher t: expected logits of shape (batch, classes), found KeyError: 'my own bug'; "
    "correct the model for float32 inputs of shape (4, 2) (-vv shows the traceback)"
)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("fails", FAILED),
        ("fails backwards", FAILED),
        (
            "returns a dict",
            (
                "training teacher t: expected a tensor of logits of shape (4, classes), "
                "found a dict of 'logits', 'loss'; wrap the model so that it returns its logits alone"
            ),
        ),
    ],
    ids=["forward", "backward", "a dict"],
)
def test_a_models_fault_is_its_own(fault: str, message: str) -> None:
    settings = Train(lr=0.1, epochs=1)
    with pytest.raises(BadLogitsError) as caught:
        fit(
            Faulty(fault), lambda _: batches_of(5), 20, 5, settings, squared_error, where="training teacher t"
        )
    assert str(caught.value) == message
    assert fault == "returns a dict" or isinstance(caught.value.__cause__, KeyError)
    fit(Faulty(""), lambda _: batches_of(5), 20, 5, settings, squared_error, where="training teacher t")


class Two(Ranks):
    """The first of two ranks, in one process: the other has `others` rows in each step, and its gradients are 0."""

    others = 3

    def numbers(self, *numbers: int) -> list[tuple[int, ...]]:
        return [numbers, (self.others, *(0 for _ in numbers[1:]))]

    def wrap(self, module: nn.Module) -> nn.Module:
        return module

    def mean(self, value: Tensor) -> Tensor:
        return value / 2


@pytest.mark.parametrize("of_all", [False, True], ids=["own rows", "rows of all"])
def test_the_gradient_of_a_rank_counts_as_much_as_its_rows(of_all: bool) -> None:
    """One row here, three there. DistributedDataParallel averages over ranks, so that each is multiplied by their number."""
    module = nn.Linear(1, 1, bias=False)
    before = module.weight.item()
    batch = Examples(torch.ones(1, 1), torch.zeros(1, 1))
    fit(
        module,
        lambda _: [batch],
        4,
        1,
        Train(lr=1.0, epochs=1, optimizer="sgd"),
        lambda outputs, _: outputs.sum(),
        where="training s",
        ranks=Two(0, 2),
        loss_is_of_all_ranks=of_all,
    )
    # The loss has a gradient of 1: of this rank's rows it is a quarter of the step, of the rows of all the whole.
    assert before - module.weight.item() == pytest.approx(2 * (1.0 if of_all else 0.25))


@dataclass(frozen=True)
class Sliced(Examples):
    """A batch of which the first rows can be taken."""

    def head(self, count: int) -> "Sliced":
        return Sliced(self.inputs[:count], self.targets[:count])


@pytest.mark.parametrize("normalised", [True, False], ids=["batch normalisation", "none"])
def test_the_single_row_of_a_rank_is_left_out_where_it_cannot_be_normalised(normalised: bool) -> None:
    """The rank joins the step without a row: its gradient is 0, and its statistics stay."""
    module = nn.Sequential(nn.Linear(2, 2), *([nn.BatchNorm1d(2)] if normalised else []))
    before = {name: value.clone() for name, value in module.state_dict().items()}
    fit(
        module,
        lambda _: [Sliced(torch.ones(1, 2), torch.zeros(1, 2))],
        4,
        1,
        Train(lr=1.0, epochs=1, optimizer="sgd"),
        lambda outputs, batch: (outputs - batch.targets).square().mean(),
        where="training s",
        ranks=Two(0, 2),
    )
    same = all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert same is normalised
