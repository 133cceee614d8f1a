"""The step that a network takes: averages, clipping, precision, compiling, and that each setting is what it says."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from logitstore.pipeline.experiment.training import Train
from logitstore.pipeline.models.weights import save_weights
from logitstore.pipeline.trainer.loop import fit
from logitstore.pipeline.trainer.steps import Steps
from logitstore.storage.errors import ConfigError

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Examples:
    """A batch of a regression."""

    inputs: Tensor
    targets: Tensor

    def __len__(self) -> int:
        return len(self.inputs)


def batches_of(count: int, size: int = 4) -> list[Examples]:
    """The batches of an epoch."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(count, size, 2, generator=generator)
    return [Examples(x, x.sum(dim=1, keepdim=True) * 3) for x in inputs]


def squared_error(outputs: Tensor, batch: Examples) -> Tensor:
    """Mean squared error."""
    return ((outputs - batch.targets) ** 2).mean()


def trained(module: nn.Module, settings: Train, loss: Any = squared_error, count: int = 5) -> float:
    """Fit a module to `batches_of`."""
    return fit(module, lambda _: batches_of(count), 4 * count, count, settings, loss, where="fitting")


def network(seed: int = 0) -> nn.Sequential:
    """A net with a buffer that moves, and one that counts."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.ReLU(), nn.Linear(3, 1))


class Watched(nn.Sequential):
    """A net whose weights after each step are kept."""

    def __init__(self) -> None:
        super().__init__(*network())
        self.seen: list[dict[str, Tensor]] = []

    def apply_constraints(self) -> None:
        self.seen.append({name: t.detach().clone() for name, t in self.state_dict().items()})


def test_what_is_kept_is_the_moving_average_of_weights_and_buffers() -> None:
    """ema ← decay · ema + (1 - decay) · weights after every step; the first step begins it. By hand, in float64."""
    decay = 0.8
    module = Watched()
    trained(module, Train(lr=0.05, epochs=3, ema=decay))
    assert len(module.seen) == 15
    expected = {name: t.double() for name, t in module.seen[0].items()}
    for state in module.seen[1:]:
        for name, tensor in state.items():
            if tensor.is_floating_point():
                expected[name] = decay * expected[name] + (1 - decay) * tensor.double()
    kept = module.state_dict()
    assert {"1.running_mean", "1.running_var", "0.weight"} <= kept.keys()
    for name, tensor in kept.items():
        if tensor.is_floating_point():
            torch.testing.assert_close(tensor.double(), expected[name], rtol=1e-5, atol=1e-6)
            assert not torch.allclose(tensor, module.seen[-1][name], rtol=1e-4), name  # control


def test_without_an_average_the_last_weights_are_kept() -> None:
    module = Watched()
    trained(module, Train(lr=0.05, epochs=1))
    assert all(torch.equal(t, module.seen[-1][name]) for name, t in module.state_dict().items())


def test_a_gradient_that_is_too_long_is_scaled_down_and_no_other() -> None:
    """With SGD and a rate of 1 the step is the gradient."""
    for scale, expected in ((100.0, 0.5), (0.01, None)):
        module = nn.Linear(2, 1)
        before = torch.cat([p.detach().flatten() for p in module.parameters()])
        steps = Steps(module, Train(lr=1.0, epochs=1, optimizer="sgd", clip_norm=0.5), 1, CPU)
        loss = scale * module(torch.ones(1, 2)).sum()
        steps.take(0, loss, lambda value: value.backward())
        after = torch.cat([p.detach().flatten() for p in module.parameters()])
        length = float((after - before).norm())
        assert length == pytest.approx(scale * 3**0.5 if expected is None else expected, rel=1e-4)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_the_network_computes_in_the_precision_and_the_loss_in_float32(precision: Any) -> None:
    seen: list[tuple[torch.dtype, torch.dtype]] = []

    class Net(nn.Linear):
        def forward(self, inputs: Tensor) -> Tensor:
            outputs = super().forward(inputs)
            seen.append((outputs.dtype, self.weight.dtype))
            return outputs

    def loss(outputs: Tensor, batch: Examples) -> Tensor:
        assert outputs.dtype == torch.float32
        assert not torch.is_autocast_enabled("cpu")
        return squared_error(outputs, batch)

    torch.manual_seed(0)
    module, reference = Net(2, 1), nn.Linear(2, 1)
    reference.load_state_dict(module.state_dict())
    settings = {"lr": 0.1, "epochs": 20}
    last = trained(module, Train(**settings, precision=precision), loss)
    assert set(seen) == {(getattr(torch, precision), torch.float32)}
    whole = trained(reference, Train(**settings))
    assert last == pytest.approx(whole, rel=0.1, abs=1e-2)
    assert last != whole  # control: it was another precision


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_the_gradient_that_is_clipped_is_that_of_the_loss(precision: Any) -> None:
    """Not the one that float16 scales up: clipped before it is unscaled, it would be all but nothing."""
    module = nn.Linear(2, 1, bias=False)
    before = module.weight.detach().clone()
    settings = Train(lr=1.0, epochs=1, optimizer="sgd", clip_norm=0.5, precision=precision)
    steps = Steps(module, settings, 1, CPU)
    steps.take(0, (module.weight * torch.tensor([[30.0, 40.0]])).sum(), Tensor.backward)
    assert torch.allclose(before - module.weight.detach(), torch.tensor([[0.3, 0.4]]), atol=1e-4)


def test_small_gradients_survive_float16() -> None:
    """Scaled, a gradient of 1e-8 reaches the weights; as it is, it is below float16's smallest number."""
    moved = []
    for enabled in (True, False):
        module = nn.Linear(2, 1)
        before = module.weight.detach().clone()
        steps = Steps(module, Train(lr=1e6, epochs=1, optimizer="sgd", precision="float16"), 1, CPU)
        steps.scaler = torch.amp.GradScaler("cpu", enabled=enabled)
        with torch.autocast("cpu", dtype=torch.float16):
            logits = module(torch.ones(1, 2))
        steps.take(0, 1e-8 * logits.float().sum(), lambda value: value.backward())
        moved.append(float((module.weight.detach() - before).abs().sum()))
    assert moved[0] > 1e-3
    assert moved[1] == 0.0


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_steps_go_on_from_what_was_kept_to_the_same_bits(optimizer: Any) -> None:
    settings = Train(lr=0.1, epochs=2, optimizer=optimizer, ema=0.9, precision="float16")
    batches = batches_of(6)

    def take(module: nn.Module, steps: Steps, which: range) -> None:
        for step in which:
            steps.take(
                step, squared_error(module(batches[step].inputs), batches[step]), lambda v: v.backward()
            )

    whole = network()
    steps = Steps(whole, settings, 3, CPU)
    take(whole, steps, range(3))
    kept = {name: t.clone() for name, t in steps.tensors().items()}, steps.numbers()
    take(whole, steps, range(3, 6))
    other = network(seed=9)
    again = Steps(other, settings, 3, CPU)
    again.restore(*kept)
    take(other, again, range(3, 6))
    for name, tensor in steps.tensors().items():
        assert torch.equal(tensor, again.tensors()[name]), name
    assert steps.numbers() == again.numbers()


class Eager:
    """torch.compile without a compiler: it is slow, and there may be none."""

    def __init__(self) -> None:
        self.compiled = 0
        self.genuine = torch.compile

    def __call__(self, module: nn.Module) -> Any:
        self.compiled += 1
        return self.genuine(module, backend="eager")


@pytest.mark.filterwarnings("ignore:Guards may run slower on Python 3.13.0:RuntimeWarning")
def test_a_compiled_network_keeps_plain_names_and_the_same_weights(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler = Eager()
    monkeypatch.setattr(torch, "compile", compiler)
    compiled, plain = network(), network()
    trained(compiled, Train(lr=0.05, epochs=1, compile=True, ema=0.9), count=2)
    assert compiler.compiled == 1
    trained(plain, Train(lr=0.05, epochs=1, ema=0.9), count=2)
    assert compiler.compiled == 1
    save_weights(compiled, tmp_path / "w.safetensors")
    kept = load_file(tmp_path / "w.safetensors")
    assert kept.keys() == network().state_dict().keys()
    for name, tensor in plain.state_dict().items():
        torch.testing.assert_close(kept[name], tensor)


def test_what_cannot_be_compiled_is_not_called_the_models_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._dynamo.exc import BackendCompilerFailed

    def fails(*_: Any) -> Any:
        raise BackendCompilerFailed(fails, RuntimeError("no C++ compiler"), None)

    monkeypatch.setattr(torch, "compile", lambda module: type("Compiled", (nn.Module,), {"forward": fails})())
    message = r"fitting: train\.compile: expected a model that torch\.compile can compile here, found an error of the compiler: .*no C\+\+ .*; remove compile"
    with pytest.raises(ConfigError, match=message):
        trained(network(), Train(lr=0.1, epochs=1, compile=True))
