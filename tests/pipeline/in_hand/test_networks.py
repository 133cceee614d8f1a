"""The identity of a network in hand: equal for equal logits, another for any other ones."""

import importlib
import linecache
import random
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.hands import Darker, Net, Pictures, closure
from torch import nn

import logitstore
from logitstore.pipeline.factories.in_hand import in_hand
from logitstore.pipeline.factories.running_source import source_digest_of
from logitstore.pipeline.in_hand.networks import copy_of, kept_random_state, module_in_hand
from logitstore.storage.errors import ConfigError


def identity(module: nn.Module) -> tuple[Any, ...]:
    """Return everything that the identity of a capture holds of a network."""
    given = module_in_hand(module, "net")
    return given.factory, dict(given.args), given.weights


def sequence(activation: nn.Module, *more: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3), activation, *more)


def with_constant(value: float) -> nn.Module:
    made = Net()
    made.mean = torch.full((2,), value)  # neither a parameter nor a buffer
    return made


def with_buffer(value: float) -> nn.Module:
    made = Net()
    made.register_buffer("std", torch.full((2,), value), persistent=False)
    return made


def scaled(value: float) -> nn.Module:
    made = Net()
    made.scale = value
    return made


def acting(function: Any) -> nn.Module:
    made = Net()
    made.act = function
    return made


def made_with(inherited: str = "return x", helper: str = "return x", scale: int = 1) -> nn.Module:
    """Return a network of code as a cell of a notebook gives it: its text is in `linecache` alone."""
    text = f"""
from torch import nn
SCALE = {scale}
def helper(x):
    {helper}
class Base(nn.Module):
    def scaled(self, x):
        {inherited}
class Own(Base):
    def forward(self, x):
        return [helper(self.scaled(x)) * SCALE for _ in range(1)][0]
"""
    name = f"<cell {len(text)} {hash(text)}>"
    linecache.cache[name] = (len(text), None, text.splitlines(True), name)
    space: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(text, name, "exec"), space)  # noqa: S102 - as IPython runs a cell
    own: nn.Module = space["Own"]()
    return own


SAME: dict[str, Any] = {
    "made twice": (Net(), Net()),
    "in another mode": (Net(), Net().eval()),
    "copied": (Net(), copy_of(Net())),
    "compiled": (Net(), torch.compile(Net(), backend="eager")),
    "parallel": (Net(), nn.DataParallel(Net())),
    "frozen": (Net(), Net().requires_grad_(False)),
    "of equal layers": (sequence(nn.GELU()), sequence(nn.GELU())),
    "of a cell that is run again": (made_with(), made_with()),
}


@pytest.mark.parametrize("name", SAME)
def test_networks_of_equal_logits_have_one_identity(name: str) -> None:
    one, other = SAME[name]
    assert identity(one) == identity(other)


DIFFERENT: dict[str, Any] = {
    "weights": (Net(), Net(seed=1)),
    "activation of equal weights": (sequence(nn.ReLU()), sequence(nn.Tanh())),
    "setting of a layer": (sequence(nn.LeakyReLU(0.1)), sequence(nn.LeakyReLU(0.2))),
    "further layer without weights": (sequence(nn.ReLU()), sequence(nn.ReLU(), nn.ReLU6())),
    "constant": (with_constant(0.0), with_constant(1.0)),
    "buffer that is not saved": (with_buffer(0.0), with_buffer(1.0)),
    "number among the attributes": (scaled(255.0), scaled(128.0)),
    "precision": (Net(), Net().half()),
    "function among the attributes": (acting(torch.relu), acting(torch.tanh)),
    "lambda among the attributes": (acting(lambda x: x + 1), acting(lambda x: x + 2)),
    "table among the attributes": (acting({"scale": 1}), acting({"scale": 2})),
    "class that it inherits from": (made_with("return x"), made_with("return -x")),
    "function that it calls": (made_with(helper="return x"), made_with(helper="return -x")),
    "global that it reads": (made_with(scale=1), made_with(scale=2)),
    "one weight by the last bit": (
        sequence(nn.ReLU()),
        sequence(nn.ReLU()).apply(
            lambda part: (
                part.bias.data.copy_(part.bias.nextafter(part.bias + 1))
                if isinstance(part, nn.Linear)
                else None
            )
        ),
    ),
}


@pytest.mark.parametrize("name", DIFFERENT)
def test_networks_of_other_logits_have_another_identity(name: str) -> None:
    one, other = DIFFERENT[name]
    assert identity(one) != identity(other)


SOURCE = """
    from torch import nn

    class Net(nn.Module):
        '''A network.'''

        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(2, 2)

        def forward(self, x):
            return self.layer(x)  # no activation

    def view(image, generator):
        return image + generator.integers(SHIFT)

    SHIFT = 3
"""


def of_source(folder: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> tuple[Any, Any]:
    """Return identities of the network and of the view that a module of this source defines."""
    folder.mkdir()
    (folder / "ls_hand_nets.py").write_text(textwrap.dedent(text))
    with monkeypatch.context() as patched:
        patched.syspath_prepend(folder)
        nets = importlib.import_module("ls_hand_nets")
        torch.manual_seed(0)
        found = identity(nets.Net()), in_hand(nets.view).source
    del sys.modules["ls_hand_nets"]
    return found


def test_a_text_that_does_not_run_is_not_taken_for_the_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that is edited after its import states other code than that which runs."""
    (tmp_path / "ls_hand_edited.py").write_text(textwrap.dedent(SOURCE))
    monkeypatch.syspath_prepend(tmp_path)
    nets = importlib.import_module("ls_hand_edited")
    before = source_digest_of(nets.view)
    for old, new in (("SHIFT = 3", "SHIFT = 3\n\n"), ("\nclass", "\n\n\nclass")):
        (tmp_path / "ls_hand_edited.py").write_text(textwrap.dedent(SOURCE).replace(old, new))
        assert source_digest_of(nets.view) == before  # lines may move
    edited = textwrap.dedent(SOURCE).replace("image +", "image -")
    (tmp_path / "ls_hand_edited.py").write_text(edited)
    linecache.clearcache()
    running = source_digest_of(nets.view)
    del sys.modules["ls_hand_edited"]
    importlib.invalidate_caches()
    of_edited = source_digest_of(importlib.import_module("ls_hand_edited").view)
    del sys.modules["ls_hand_edited"]
    assert len({before, running, of_edited}) == 3


def test_code_counts_and_comments_do_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net, view = of_source(tmp_path / "a", monkeypatch, SOURCE)
    commented = SOURCE.replace("# no activation", "# linear").replace("A network.", "Another text.")
    assert of_source(tmp_path / "b", monkeypatch, commented) == (net, view)
    other, same = of_source(
        tmp_path / "c", monkeypatch, SOURCE.replace("self.layer(x)", "self.layer(x).relu()")
    )
    assert other != net and same == view
    # A global of a view is a setting of it.
    same, other = of_source(tmp_path / "d", monkeypatch, SOURCE.replace("SHIFT = 3", "SHIFT = 4"))
    assert same == net and other != view


def test_settings_of_a_view_count_wherever_they_stand() -> None:
    assert in_hand(closure(2)).source != in_hand(closure(3)).source
    assert in_hand(closure(2)).source == in_hand(closure(2)).source
    assert in_hand(Darker(2)).source != in_hand(Darker(3)).source
    table = np.arange(4)
    one, other = (in_hand(lambda image, generator, table=each: image + table) for each in (table, table + 1))
    assert one.source != other.source


REFUSED: dict[str, Any] = {
    "a class": Net,
    "a function": closure,
    "lazy layers": nn.LazyLinear(3),
    "no memory": nn.Linear(2, 2, device="meta"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_network_is_refused(name: str, tmp_path: Path, sentence: Any) -> None:
    with pytest.raises(ConfigError) as refused:
        logitstore.cache(tmp_path / "store.zarr", {"net": REFUSED[name]}, Pictures())
    sentence(refused.value)


def test_wrong_arguments_are_refused_by_name(tmp_path: Path, sentence: Any) -> None:
    calls: list[dict[str, Any]] = [
        {"teachers": Net()},
        {"teachers": {}},
        {"teachers": {"My Net": Net()}},
        {"teachers": {"net": nn.Sequential(nn.Flatten(), nn.Linear(3, 3))}},
        {"teachers": {"net": Net(), "five": nn.Sequential(nn.Flatten(), Floats(), nn.Linear(16, 5))}},
        {"views": 4},
        {"views": 0},
        {"encoding": "float8"},
        {"batch_size": 0},
        {"views": 2, "augment": 3},
        {"device": "tpu"},
    ]
    for call in calls:
        settings: dict[str, Any] = {"teachers": {"net": Net()}, "device": "cpu"} | call
        with pytest.raises(logitstore.LogitStoreError) as refused:
            logitstore.cache(tmp_path / "store.zarr", dataset=Pictures(), **settings)
        sentence(refused.value)
    assert not (tmp_path / "store.zarr").exists()


class Floats(nn.Module):
    """A layer that turns pixels into fractions."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return inputs.float() / 255


class ModelOutput(dict[str, Any]):
    """A mapping with attributes, as that of transformers."""

    logits: torch.Tensor


class Output(Net):
    """A network that returns an object, as models of transformers do."""

    main_input_name = "pixel_values"

    def forward(self, inputs: torch.Tensor) -> Any:
        output = ModelOutput(hidden=inputs)
        output.logits = super().forward(inputs)
        return output


def test_an_output_with_logits_is_taken_apart(tmp_path: Path) -> None:
    stores = [
        logitstore.cache(tmp_path / f"{number}.zarr", {"net": net}, Pictures(), device="cpu")
        for number, net in enumerate((Net(), Output()))
    ]
    one, other = (store.teachers["net"].read(slice(None)) for store in stores)
    assert np.array_equal(one, other)


def test_an_output_of_token_ids_is_refused(tmp_path: Path) -> None:
    """Without its mask, a model would read the padding as well."""
    with pytest.raises(logitstore.LogitStoreError, match="wrap the model"):
        tokens, net = np.zeros((20, 16), np.int64), Output()
        net.main_input_name = "input_ids"
        logitstore.cache(tmp_path / "store.zarr", {"net": net}, tokens, device="cpu")


class Uncopyable(Net):
    """A network that cannot be copied."""

    def __deepcopy__(self, memo: Any) -> "Uncopyable":
        raise RuntimeError("no copy")


def test_a_network_that_cannot_be_copied_comes_back_as_it_was(tmp_path: Path) -> None:
    net = Uncopyable()
    net.first.eval()
    before = [part.training for part in net.modules()]
    calls: list[Callable[[], Any]] = [
        lambda: logitstore.cache(tmp_path / "named.zarr", {"net": net}, Pictures(), device="cpu"),
        lambda: logitstore.cache(tmp_path / "store.zarr", {"net": net}, Pictures().images, device="cpu"),
        lambda: logitstore.evaluate(net, Pictures(), device="cpu"),
    ]
    for call in calls:
        call()
        assert [part.training for part in net.modules()] == before == [True, False, True, True]


def test_random_numbers_are_restored() -> None:
    def draw() -> list[float]:
        return [random.random(), float(np.random.random()), float(torch.rand(()))]

    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(3)
    expected = draw()
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(3)
    with kept_random_state():
        draw()
    assert draw() == expected
