"""The origin of a thing, which is no part of its identity, and the versions of its libraries, which are noted.

The libraries are stand-ins: classes whose module has the name of theirs. `tests/integrations/test_origins.py` has the real ones.
"""

import importlib.metadata
from collections.abc import Callable
from pathlib import Path
from types import MappingProxyType, SimpleNamespace
from typing import Any, Final

import numpy as np
import pytest
import torch
from support.experiments import some_digits
from support.hands import Net, Pictures
from torch import nn

import logitstore
from logitstore.pipeline.augment import seeded
from logitstore.pipeline.cache import reuse
from logitstore.pipeline.experiment.document import parse_experiment
from logitstore.pipeline.factories.in_hand import in_hand
from logitstore.pipeline.in_hand.networks import module_in_hand
from logitstore.pipeline.models.libraries import PixelsToInputs
from logitstore.pipeline.run import run

VERSIONS: Final = MappingProxyType(
    {"transformers": "5.1", "timm": "1.1", "torchvision": "0.2", "albumentations": "2.3"}
)


def of(package: str, kind: type) -> type:
    """Return a class as one of a package."""
    kind.__module__ = f"{package}.made"
    return kind


class PreTrainedConfig:
    """A configuration as those of transformers."""

    def __init__(self, **changes: Any) -> None:
        self.scaling, self.pad_token_id = 1.0, None
        self.dtype, self.architectures, self._name_or_path, self.transformers_version = None, None, "", "5.1"
        vars(self).update(changes)


class OfTransformers(Net):
    """A network with the attributes of a model of transformers."""

    def __init__(self, path: str = "", **changes: Any) -> None:
        super().__init__()
        self.config: Any = PreTrainedConfig(_name_or_path=path, **changes)
        self.name_or_path = path


class OfTimm(Net):
    """A network with the attributes of a model of timm."""

    def __init__(self, file: str = "") -> None:
        super().__init__()
        self.pretrained_cfg = {"file": file, "license": "mit"}
        self.default_cfg = self.pretrained_cfg


class Own(Net):
    """A network of one's own, with an attribute of such a name."""

    def __init__(self, path: str = "") -> None:
        super().__init__()
        self.name_or_path = path


class Flip(nn.Module):
    """A transform as those of torchvision: a module without parameters."""

    def __init__(self, p: float = 0.5) -> None:
        super().__init__()
        self.p = p

    def forward(self, image: Any) -> Any:
        return image[..., ::-1].copy() if torch.rand(()) < self.p else image


class Dropped(nn.Module):
    """A transform whose mode counts."""

    def forward(self, image: Any) -> Any:
        return image * 0 if self.training else image


of("transformers", PreTrainedConfig)
of("transformers", OfTransformers)
of("timm", OfTimm)
of("torchvision", Flip)
of("albumentations", Dropped)


def identity(module: nn.Module) -> Any:
    given = module_in_hand(module, "net")
    return given.args, given.weights


def changed(module: nn.Module, **attributes: Any) -> nn.Module:
    vars(module).update(attributes)
    return module


SAME: dict[str, Callable[[], tuple[nn.Module, nn.Module]]] = {
    "folder": lambda: (OfTransformers("/a"), OfTransformers("/b")),
    "writer": lambda: (OfTransformers(), OfTransformers(transformers_version="4.0")),
    "saved or loaded": lambda: (OfTransformers(), OfTransformers(architectures=["A"], dtype=torch.float32)),
    "default of a later version": lambda: (OfTransformers(), OfTransformers(scaling=1.0)),
    "ran before": lambda: (OfTransformers(), changed(OfTransformers(), warnings_issued={"tokens": True})),
    "file of timm": lambda: (OfTimm("/a"), OfTimm("/b")),
    "hook of the same settings": lambda: (shown(0.5), shown(0.5)),
    "hook of a library": lambda: (Net(), recorded()),
    "inside a wrapper": lambda: (nn.Sequential(OfTransformers("/a")), nn.Sequential(OfTransformers("/b"))),
}


@pytest.mark.parametrize("name", SAME)
def test_where_a_network_was_loaded_from_does_not_count(name: str) -> None:
    one, other = SAME[name]()
    assert identity(one) == identity(other)


def shown(mean: float | None) -> nn.Module:
    """Return a network with the hook that a teacher of uint8 pixels has."""
    net = Net()
    if mean is not None:
        net.register_forward_pre_hook(PixelsToInputs(1, [mean], [0.5]))
    return net


def recorded() -> nn.Module:
    """Return a network with a hook of a library, which records an output."""
    net = Net()
    net.register_forward_hook(of("transformers", type("Hook", (), {"__call__": lambda *given: None}))())
    return net


DIFFERENT: dict[str, Callable[[], tuple[nn.Module, nn.Module]]] = {
    "an attribute of one's own": lambda: (Own("/a"), Own("/b")),
    "a setting of a configuration": lambda: (OfTransformers(), OfTransformers(scaling=2.0)),
    "a setting beside a dtype": lambda: (
        OfTransformers(dtype=torch.float32),
        OfTransformers(dtype=torch.float32, pad_token_id=3),
    ),
    "a hook": lambda: (shown(None), shown(0.5)),
    "a setting of a hook": lambda: (shown(0.5), shown(0.25)),
    "another attribute": lambda: (OfTransformers(), changed(OfTransformers(), scale=1.0)),
}


@pytest.mark.parametrize("name", DIFFERENT)
def test_settings_beside_it_count(name: str) -> None:
    one, other = DIFFERENT[name]()
    assert identity(one) != identity(other)


def described(transform: Any) -> Any:
    return in_hand(seeded(transform, given="array")).args


def test_the_bookkeeping_of_torch_is_not_in_an_augmentation(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compare with an attribute that a later torch sets in every module, and with a mode that no code reads."""
    before = described(nn.Sequential(Flip()))
    assert described(nn.Sequential(Flip()).eval()) == before
    assert "hooks" not in str(before) and "training" not in str(before)
    begin = nn.Module.__init__

    def later(self: nn.Module, *args: Any, **kwargs: Any) -> None:
        begin(self, *args, **kwargs)
        self._hooks_of_later = {}

    monkeypatch.setattr(nn.Module, "__init__", later)
    assert described(nn.Sequential(Flip())) == before
    made = Flip()
    made.mine = {}  # type: ignore[assignment] # control: of the transform itself
    assert described(nn.Sequential(made)) != before


def hooked() -> nn.Module:
    made = Flip()
    made.register_forward_pre_hook(lambda module, given: given)
    return made


def with_buffer(value: float) -> nn.Module:
    made = Flip()
    made.register_buffer("mean", torch.full((1,), value))
    return made


COUNT: dict[str, tuple[Any, Any]] = {
    "a setting": (Flip(0.5), Flip(0.25)),
    "a part": (nn.Sequential(Flip()), nn.Sequential(Flip(), Flip())),
    "a setting of a part": (nn.Sequential(Flip(0.5)), nn.Sequential(Flip(0.25))),
    "a parameter": (nn.Linear(1, 1), nn.Linear(1, 1)),
    "a buffer": (with_buffer(0.0), with_buffer(1.0)),
    "a hook": (Flip(), hooked()),
    "a mode that is read": (Dropped(), Dropped().eval()),
    "a mode that torch reads": (nn.Dropout(), nn.Dropout().eval()),
    "a dtype": (SimpleNamespace(to=torch.float32), SimpleNamespace(to=torch.float16)),
}


@pytest.mark.parametrize("name", COUNT)
def test_what_a_module_does_counts_in_an_augmentation(name: str) -> None:
    one, other = (in_hand(each).args for each in COUNT[name])
    assert one != other
    assert in_hand(COUNT[name][0]).args == one


def test_a_hook_counts_by_itself_and_not_by_its_number() -> None:
    """Compare hooks that torch numbered otherwise."""
    one, other = Flip(), Flip()
    for made in (one, Flip(), other):
        made.register_forward_pre_hook(print)
    assert described(one) == described(other)


def cached(folder: Path, **settings: Any) -> logitstore.Store:
    net = OfTransformers()
    given: dict[str, Any] = {"teachers": {"net": net}, "device": "cpu", "dataset": Pictures(40)}
    given |= {"views": 2, "augment": seeded(nn.Sequential(Flip()), given="array"), "batch_size": 20}
    return logitstore.cache(folder, **given | settings)


@pytest.fixture
def versions(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Return the versions of the libraries, which a test may change."""
    stated, real = dict(VERSIONS), importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda name: stated.get(name) or real(name))
    return stated


def test_versions_are_noted_and_others_are_warned_of(
    tmp_path: Path, versions: dict[str, str], caplog: pytest.LogCaptureFixture, without_fsync: None
) -> None:
    store = cached(tmp_path / "old.zarr")
    notes = store.teachers["net"].part.spec.notes
    assert {key: notes.get(key) for key in VERSIONS} == {
        "transformers": "5.1",
        "torchvision": "0.2",
        "timm": None,  # of neither
        "albumentations": None,
    }
    described = store.teachers["net"].augmentation
    assert described is not None
    attributes = described["args"]["is"]["attributes"]
    assert "transform" in attributes and "made" not in attributes  # one object, described once
    cached(tmp_path / "old.zarr")
    one = reuse.OldCapture(reuse.OldSet(store), store.teachers["net"], None)
    reuse.warn_of_other_versions("net", notes, [one])
    assert "computed otherwise" not in caplog.text
    versions |= {"transformers": "6.0", "torchvision": "0.3"}
    again = cached(tmp_path / "new.zarr", reuse=store)
    assert "torchvision 0.2 there and 0.3 here, transformers 5.1 there and 6.0 here" in caplog.text
    assert again.teachers["net"].provenance["reused"][0]["torchvision"] == "0.2"


def test_the_versions_of_a_ready_teacher_and_of_a_named_transform_are_noted(
    tmp_path: Path, versions: dict[str, str], without_fsync: None
) -> None:
    inputs, labels = some_digits(40, 0)
    np.savez(tmp_path / "data.npz", inputs=inputs, labels=labels)

    def document(teacher: str, transform: str) -> dict[str, Any]:
        args = {"transform": f"{__name__}:{transform}", "given": "array"}
        return {
            "transfer_set": {"factory": "logitstore.pipeline.datasets:arrays", "args": {"file": "data.npz"}},
            "teacher": [{"name": "net", "factory": f"{__name__}:{teacher}", "weights": "factory"}],
            "cache": {
                "views": 2,
                "augment": {"factory": "logitstore.pipeline.augment:seeded", "args": args, "first_view": 1},
            },
        }

    found = []
    for teacher, transform in (("ready", "flips"), ("plain", "plainly")):
        experiment = parse_experiment(document(teacher, transform), where="a.toml", base=tmp_path)
        run(experiment, tmp_path / teacher, device="cpu")
        store = logitstore.open_store(tmp_path / teacher / "store.zarr")
        notes = store.teachers["net"].part.spec.notes
        found.append({key: notes[key] for key in VERSIONS if key in notes})
    assert found == [{"timm": "1.1", "albumentations": "2.3"}, {}]


def ready() -> nn.Module:
    return OfTimm("/anywhere")


def plain() -> nn.Module:
    return Net()


def flips() -> Any:
    return Dropped().eval()


def plainly() -> Any:
    return lambda image: image
