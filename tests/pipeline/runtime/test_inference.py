"""Running a network: a user's faults are refused by name, and trying a model leaves no trace."""

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from logitstore.pipeline.runtime.inference import (
    check_model,
    check_rows,
    check_steady,
    forward,
    run_model,
)
from logitstore.storage.errors import BadLogitsError, ConfigError

INPUTS = np.arange(24, dtype=np.float32).reshape(6, 4)


class Own(nn.Module):
    """Gives what a function makes of the inputs."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def forward(self, inputs: Tensor) -> Any:
        return self.function(inputs)


def fails(error: Exception) -> Any:
    """A function that raises."""

    def function(_: Tensor) -> Any:
        raise error

    return function


@pytest.mark.parametrize("layer", [nn.Conv2d(3, 2, 1), nn.Sequential(nn.Flatten(), nn.Linear(48, 2))])
def test_a_model_of_floats_that_is_given_pixels_is_told_how_to_scale_them(layer: nn.Module) -> None:
    with pytest.raises(BadLogitsError) as caught:
        forward(layer, torch.zeros((5, 3, 4, 4), dtype=torch.uint8), "model")
    assert caught.value.remedy == (
        "let the model scale its uint8 inputs of shape (5, 3, 4, 4): logitstore.pipeline.models.libraries has "
        "PixelsToInputs(channels, mean, std), for its register_forward_pre_hook"
    )
    with pytest.raises(BadLogitsError) as caught:  # negative control: another fault of the same rows
        forward(Own(fails(ValueError("no"))), torch.zeros((5, 3, 4, 4), dtype=torch.uint8), "model")
    assert caught.value.remedy.startswith("correct the model for uint8 inputs")


class Outputs(dict[str, Tensor]):
    """The output of a model of transformers."""

    @property
    def logits(self) -> Tensor:
        return self["logits"]


def test_the_logits_of_a_model_of_pixel_values_are_taken_and_of_token_ids_refused() -> None:
    model = Own(lambda x: Outputs(logits=x[:, :3]))
    inputs = torch.from_numpy(INPUTS)
    for name, taken in (("pixel_values", True), ("input_ids", False), (None, False)):
        model.main_input_name = name  # type: ignore[assignment]
        for one in (model, nn.Sequential()):
            if one is not model:
                one.module = model  # as in DistributedDataParallel
                one.forward = model.forward  # type: ignore[method-assign]
            if taken:
                assert torch.equal(forward(one, inputs, "model"), inputs[:, :3])
            else:
                with pytest.raises(BadLogitsError, match="its logits alone"):
                    forward(one, inputs, "model")


WRAP = "wrap the model so that it returns its logits alone"
ONE_EACH = "return one row of logits for each input from the model"
MEND = "correct the model for float32 inputs of shape (6, 4) (-vv shows the traceback)"
FAULTS: list[tuple[Any, str, str, str]] = [
    (fails(KeyError("my own bug")), "logits of shape (batch, classes)", "KeyError: 'my own bug'", MEND),
    (fails(ValueError("two\nlines")), "logits of shape (batch, classes)", "ValueError: two lines", MEND),
    (
        fails(torch.OutOfMemoryError("no room")),
        "logits of shape (batch, classes)",
        "OutOfMemoryError: no room",
        "lower batch_size, or use another device",
    ),
    (lambda x: (x, x), "a tensor of logits of shape (6, classes)", "a tuple", WRAP),
    (
        lambda x: {"logits": x, "loss": 0},
        "a tensor of logits of shape (6, classes)",
        "a dict of 'logits', 'loss'",
        WRAP,
    ),
    (lambda x: None, "a tensor of logits of shape (6, classes)", "a NoneType", WRAP),
    (lambda x: x[:, 0], "a tensor of logits of shape (6, classes)", "a tensor of shape (6,)", WRAP),
    (lambda x: x[1:], "a tensor of logits of shape (6, classes)", "a tensor of shape (5, 4)", ONE_EACH),
    (lambda x: x.sum(), "a tensor of logits of shape (6, classes)", "a tensor of shape ()", WRAP),
]


@pytest.mark.parametrize(("function", "expected", "found", "remedy"), FAULTS, ids=[f[2] for f in FAULTS])
def test_what_a_model_does_wrong_is_said_of_the_model(
    function: Any, expected: str, found: str, remedy: str
) -> None:
    for call in (
        lambda module: run_model(module, INPUTS, 6, where="teacher 't'"),
        lambda module: forward(module, torch.from_numpy(INPUTS), "teacher 't'"),
        lambda module: check_model(module, INPUTS, 4, "teacher 't'"),
    ):
        with pytest.raises(BadLogitsError) as caught:
            call(Own(function))
        assert str(caught.value) == f"teacher 't': expected {expected}, found {found}; {remedy}"
        assert caught.value.exit_code == 65


def test_an_error_of_this_package_passes_as_it_is() -> None:
    error = ConfigError("layer", expected="a", found="b", remedy="c")
    with pytest.raises(ConfigError) as caught:
        forward(Own(fails(error)), torch.from_numpy(INPUTS), "teacher 't'")
    assert caught.value is error


def test_another_number_of_classes_is_refused() -> None:
    check_model(nn.Linear(4, 3), INPUTS, 3, "student 's'")
    with pytest.raises(BadLogitsError) as caught:
        check_model(nn.Linear(4, 3), INPUTS, 5, "student 's'")
    assert str(caught.value) == (
        "student 's': expected logits of 5 classes, as in the transfer set, found logits of 3 classes; "
        "give the student the classes of the transfer set"
    )


def traces(module: nn.Module, inputs: Any) -> Any:
    """What trying a model could leave behind."""
    modes = [part.training for part in module.modules()]
    state = {name: value.tolist() for name, value in module.state_dict().items()}
    return modes, state, torch.random.get_rng_state().tolist(), inputs.tolist()


def draws_and_spoils(inputs: Tensor) -> Tensor:
    """Uses random numbers, and works in place."""
    torch.rand(())
    return inputs.mul_(2)


@pytest.mark.parametrize("wrong", [False, True])
def test_trying_a_model_leaves_no_trace(wrong: bool) -> None:
    """Neither in its modes (part of it is frozen), nor in its state, the random numbers or the inputs."""
    module = nn.Sequential(nn.BatchNorm1d(4), nn.Dropout(0.5), Own(draws_and_spoils), nn.BatchNorm1d(4))
    module.train()
    module[3].eval()
    inputs = INPUTS.copy()
    before = traces(module, inputs)
    try:
        check_model(module, inputs, 5 if wrong else 4, "teacher 't'")
    except BadLogitsError:
        assert wrong
    assert traces(module, inputs) == before
    module(torch.from_numpy(inputs))
    assert traces(module, inputs)[1] != before[1], "nothing that could have left a trace"


def test_a_lazy_model_can_be_trained_after_it_was_tried() -> None:
    module = nn.LazyLinear(3)
    check_model(module, INPUTS, 3, "teacher 't'")
    module(torch.from_numpy(INPUTS)).sum().backward()
    assert module.weight.grad is not None


@pytest.mark.parametrize("inside", [torch.nn.functional.dropout, torch.randn_like], ids=["dropout", "noise"])
def test_a_network_that_is_random_in_evaluation_mode_is_refused(inside: Any) -> None:
    with pytest.raises(BadLogitsError) as caught:
        check_model(Own(inside), INPUTS, 4, "teacher 't'")
    assert caught.value.expected == "the same logits for the same rows in evaluation mode"
    assert caught.value.remedy == "switch off dropout and other random layers where module.training is False"


@pytest.mark.parametrize(("precision", "noise"), [("float32", 1e-6), ("bfloat16", 1e-2)])
def test_rounding_is_no_random_layer(precision: Any, noise: float) -> None:
    """Negative control: kernels of a GPU may differ in the last bits from run to run."""
    check_steady(INPUTS, INPUTS * (1 + noise), "teacher 't'", precision)
    with pytest.raises(BadLogitsError, match="in a second run"):
        check_steady(INPUTS, INPUTS * (1 + 50 * noise if precision == "bfloat16" else 1.1), "t", precision)


@pytest.mark.parametrize("rows", [2, 3, 6])
def test_logits_that_depend_on_other_rows_of_the_batch_are_warned_of(
    rows: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Batch normalisation without running statistics; the control has them."""
    torch.manual_seed(0)
    inputs = np.random.default_rng(0).normal(size=(rows, 4)).astype(np.float32)
    for tracks in (True, False):
        module = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3, track_running_stats=tracks)).eval()
        run = partial(run_model, module, batch_size=rows, where="teacher 't'")
        check_rows(run, inputs, run(inputs), "teacher 't'")
        assert len(caplog.records) == (not tracks)
    message = caplog.records[0].getMessage()
    assert message.startswith("teacher 't': the logits of a row depend on the other rows of its batch: ")
    assert "(track_running_stats)" in message


@pytest.mark.parametrize("rows", [1, 2, 6])
def test_random_logits_are_not_taken_for_those_that_depend_on_other_rows(
    rows: int, caplog: pytest.LogCaptureFixture
) -> None:
    run = partial(run_model, Own(torch.randn_like), batch_size=rows, where="teacher 't'")
    with pytest.raises(BadLogitsError, match="in a second run"):
        check_rows(run, INPUTS[:rows], run(INPUTS[:rows]), "teacher 't'")
    assert not caplog.records
