"""Factory strings: their meaning, their arguments, and the message of each mistake."""

import hashlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from support.tree import ROOT

from logitstore.pipeline import augment, datasets
from logitstore.pipeline.augment import Shift
from logitstore.pipeline.factories.call import (
    build,
    expect_augmentation,
    expect_dataset,
    expect_module,
    resolve,
    source_digest,
)
from logitstore.pipeline.models import networks as models
from logitstore.storage.errors import BadDataError, FactoryError

LOCAL = """
from pathlib import Path
from typing import Literal

class Thing:
    def __init__(self, size: int) -> None:
        self.size = size

NUMBER = 3

def paths(file: Path, other: Path | None = None, several: list[Path] = (), text: str = "x"):
    return file, other, several, text

def typed(rate: float, sizes: tuple[int, ...] = (), kind: Literal["a", "b"] = "a"):
    return rate, sizes, kind

def untyped(anything):
    return anything

def model(hidden, *, num_classes, input_shape=None):
    return hidden, num_classes, input_shape

def open_ended(first, **others):
    return first, others

def failing():
    raise RuntimeError("first line\\nsecond line")

def unknown_hint(value: "NoSuchType"):
    return value
"""


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A folder with modules of the user's own; forgotten afterwards."""
    before, path = set(sys.modules), list(sys.path)
    (tmp_path / "ls_local.py").write_text(LOCAL)
    (tmp_path / "ls_reexport.py").write_text("from ls_local import typed\n")
    (tmp_path / "ls_broken.py").write_text("raise KeyError('half a module')\n")
    (tmp_path / "ls_exits.py").write_text("raise SystemExit(3)\n")
    (tmp_path / "ls_needy.py").write_text("import ls_not_installed\n")
    (tmp_path / "ls_pack").mkdir()
    (tmp_path / "ls_pack" / "__init__.py").write_text("")
    (tmp_path / "ls_pack" / "inner.py").write_text("def make():\n    return 1\n")
    yield tmp_path
    sys.path[:] = path
    for name in set(sys.modules) - before:
        if name.startswith("ls_"):
            del sys.modules[name]


# Resolving ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("factory", "expected"),
    [
        ("logitstore.pipeline.datasets:digits", datasets.digits),
        ("logitstore.pipeline.datasets:idx", datasets.idx),
        ("logitstore.pipeline.datasets:image_folder", datasets.image_folder),
        ("logitstore.pipeline.datasets:arrays", datasets.arrays),
        ("logitstore.pipeline.models:mlp", models.mlp),
        ("logitstore.pipeline.models:convnet", models.convnet),
        ("logitstore.pipeline.augment:shift", augment.shift),
    ],
)
def test_the_factories_of_logitstore_resolve(factory: str, expected: object) -> None:
    assert resolve(factory) is expected


def test_modules_beside_the_experiment_resolve(folder: Path) -> None:
    with pytest.raises(FactoryError):
        resolve("ls_local:paths")  # negative control: without the folder it is not found
    assert resolve("ls_local:untyped", base=folder)("x") == "x"
    assert resolve("ls_pack.inner:make", base=folder)() == 1
    assert sys.path[-1] == str(folder.resolve()), "a local file must not hide an installed module"


@pytest.mark.parametrize(
    "factory", ["", "module", "module.function", "a:b:c", "a b:c", ":f", "m:", "../m:f", "m:f()"]
)
def test_the_form_is_checked(factory: str) -> None:
    with pytest.raises(FactoryError) as caught:
        resolve(factory)
    assert str(caught.value) == (
        f'factory {factory!r}: expected "package.module:function", found {factory!r}; '
        "name the module and the function with one colon between them"
    )


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        (
            "logitstore.pipeline.modles:mlp",
            (
                "expected a module logitstore.pipeline.modles, found no module of that name; "
                "did you mean 'logitstore.pipeline.models'?"
            ),
        ),
        (
            "ls_lcal:paths",
            "expected a module ls_lcal, found no module of that name; did you mean 'ls_local'?",
        ),
        (
            "zzqqxx.models:mlp",
            "expected a module zzqqxx, found no module of that name; install the package, or correct the name",
        ),
        (
            "logitstore.pipeline.datasets:idxx",
            (
                "expected a function 'idxx' in module logitstore.pipeline.datasets, found no 'idxx'; "
                "did you mean 'idx'?"
            ),
        ),
        (
            "ls_local:NUMBER",
            "expected a function 'NUMBER' in module ls_local, found 'NUMBER', an int; use one of ",
        ),
        (
            "ls_broken:f",
            "expected module ls_broken to import, found KeyError: 'half a module'; correct the module",
        ),
        ("ls_exits:f", "expected module ls_exits to import, found SystemExit: 3; correct the module"),
        (
            "ls_needy:f",
            "expected module ls_needy to import, found ModuleNotFoundError: No module named 'ls_not_installed'; ",
        ),
    ],
)
def test_a_factory_that_is_not_there_is_told_apart(folder: Path, factory: str, message: str) -> None:
    with pytest.raises(FactoryError) as caught:
        resolve(factory, base=folder)
    assert str(caught.value).startswith(f"factory {factory!r}: {message}")


# Building ----------------------------------------------------------------------------------------


def test_offers_are_taken_only_where_they_are_named(folder: Path) -> None:
    offered = {"num_classes": 10, "input_shape": (8, 8)}
    assert build("ls_local:model", {"hidden": [3]}, offered=offered, base=folder) == ([3], 10, (8, 8))
    assert build("ls_local:model", {"hidden": 1, "num_classes": 4}, offered=offered, base=folder) == (
        1,
        4,
        (8, 8),
    )
    assert build("ls_local:untyped", {"anything": 1}, offered=offered, base=folder) == 1
    assert build("ls_local:open_ended", {"first": 1, "x": 2}, offered=offered, base=folder) == (1, {"x": 2})


def test_relative_paths_start_at_the_experiment(folder: Path) -> None:
    args = {"file": "a/b.npz", "several": ["c", "/d"], "text": "stays"}
    assert build("ls_local:paths", args, base=folder) == (
        folder / "a/b.npz",
        None,
        [folder / "c", Path("/d")],
        "stays",
    )
    made = build("ls_local:paths", {"file": "/absolute", "other": "../up"}, base=folder)
    assert made == (Path("/absolute"), folder / "../up", (), "x")


def test_values_are_fitted_to_the_annotations(folder: Path) -> None:
    rate, sizes, _ = build("ls_local:typed", {"rate": 1, "sizes": [1, 2]}, base=folder)  # type: ignore[misc]
    assert (type(rate), sizes) == (float, (1, 2))
    assert build("ls_local:unknown_hint", {"value": "as it is"}, base=folder) == "as it is"
    thing = build("ls_local:Thing", {"size": 3}, base=folder)
    assert thing.size == 3  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("factory", "args", "message"),
    [
        (
            "ls_local:model",
            {"hiden": [3], "num_classes": 1},
            "expected arguments among (hidden, num_classes, input_shape), found 'hiden'; did you mean 'hidden'?",
        ),
        (
            "ls_local:model",
            {"hidden": [3]},
            "expected an argument 'num_classes', found arguments (hidden=[3]); add 'num_classes' to args",
        ),
        (
            "ls_local:untyped",
            {},
            "expected an argument 'anything', found no arguments; add 'anything' to args",
        ),
        (
            "ls_local:typed",
            {"rate": "fast"},
            "expected argument 'rate' to be float, found 'fast' (input should be a valid number, ",
        ),
        (
            "ls_local:typed",
            {"rate": 1, "sizes": 3},
            "expected argument 'sizes' to be tuple[int, ...], found 3 (input should be a valid tuple); correct",
        ),
        (
            "ls_local:typed",
            {"rate": 1, "kind": "c"},
            "expected argument 'kind' to be typing.Literal['a', 'b'], found 'c' (input should be 'a' or 'b'); ",
        ),
        (
            "ls_local:failing",
            {},
            "expected a result when called with (), found RuntimeError: first line second line; correct the factory",
        ),
    ],
)
def test_bad_arguments_are_named(folder: Path, factory: str, args: dict[str, object], message: str) -> None:
    with pytest.raises(FactoryError) as caught:
        build(factory, args, base=folder)
    assert str(caught.value).startswith(f"factory {factory!r}: {message}")
    assert "\n" not in str(caught.value)


def test_an_error_of_logitstore_passes_as_it_is(folder: Path) -> None:
    with pytest.raises(BadDataError) as caught:
        build("logitstore.pipeline.datasets:idx", {"images": "absent.gz"}, base=folder)
    assert str(caught.value).startswith(f"{folder / 'absent.gz'}: expected an IDX file of images")
    assert not isinstance(caught.value, FactoryError)


def test_a_model_and_an_augmentation_are_built_as_the_experiment_says() -> None:
    model = build(
        "logitstore.pipeline.models:mlp",
        {"hidden": [4], "dropout": 0},
        offered={"num_classes": 3, "input_shape": (2, 2)},
    )
    assert expect_module(model, "mlp")(torch.zeros(5, 2, 2)).shape == (5, 3)
    assert build("logitstore.pipeline.augment:shift", {"pixels": 1}) == Shift(1)


# Source digest -----------------------------------------------------------------------------------


def test_the_source_digest_is_that_of_the_defining_file(folder: Path) -> None:
    content = (folder / "ls_local.py").read_bytes()
    expected = f"sha256:{hashlib.sha256(content).hexdigest()}"
    assert source_digest("ls_local:typed", base=folder) == expected
    assert source_digest("ls_reexport:typed", base=folder) == expected
    (folder / "ls_local.py").write_bytes(content + b"# edited\n")
    assert source_digest("ls_local:typed", base=folder) != expected


def test_a_factory_without_source_has_no_digest() -> None:
    with pytest.raises(FactoryError) as caught:
        source_digest("math:sqrt")
    assert str(caught.value).startswith(
        "factory 'math:sqrt': expected a function defined in a Python source file, found a builtin_function_or_method without source"
    )


# What came back ----------------------------------------------------------------------------------


class Iterable:
    def __iter__(self) -> Iterator[int]:
        return iter(())


class Broken:
    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> object:
        raise OSError("no such example")


def test_data_sets_are_told_from_other_things() -> None:
    for good in (datasets.digits(), [np.zeros(3)], [(torch.zeros(3), 1)]):
        assert expect_dataset(good, "m:f") is good


@pytest.mark.parametrize(
    ("value", "found"),
    [
        (None, "a NoneType"),
        (3, "an int"),
        (Iterable(), "an Iterable"),
        (Broken, "the class Broken"),
        (Broken(), "a Broken whose first example fails (OSError: no such example)"),
        ([], "a list of no examples"),
        ({"a": 1}, "a dict whose first example fails (KeyError: 0)"),
        (["text"], "a list whose first input is a str"),
        ([("text", 1)], "a list whose first input is a str"),
    ],
)
def test_what_is_no_data_set_is_named(value: object, found: str) -> None:
    with pytest.raises(FactoryError) as caught:
        expect_dataset(value, "m:f")
    assert str(caught.value) == (
        "factory 'm:f': expected a map-style data set: len, and [i] -> (input, label) or input, an array or a "
        f"tensor, found {found}; return such a data set from the factory"
    )


@pytest.mark.parametrize(
    ("value", "found"),
    [(None, "a NoneType"), (torch.nn.ReLU, "the class ReLU"), (torch.zeros(1), "a Tensor")],
)
def test_what_is_no_module_is_named(value: object, found: str) -> None:
    module = torch.nn.ReLU()
    assert expect_module(module, "m:f") is module
    with pytest.raises(FactoryError) as caught:
        expect_module(value, "m:f")
    assert str(caught.value) == (
        f"factory 'm:f': expected a torch.nn.Module, found {found}; return the module itself from the factory"
    )


@pytest.mark.parametrize(
    ("value", "found"),
    [
        (None, "a NoneType"),
        (Shift, "the class Shift"),
        (lambda example: example, "a function with other parameters (too many positional arguments)"),
    ],
)
def test_what_is_no_augmentation_is_named(value: object, found: str) -> None:
    assert expect_augmentation(Shift(1), "m:f") == Shift(1)
    with pytest.raises(FactoryError) as caught:
        expect_augmentation(value, "m:f")
    assert str(caught.value) == (
        f"factory 'm:f': expected an augmentation: a callable (input, generator) -> input, found {found}; "
        "return such a callable from the factory"
    )


# The guide ---------------------------------------------------------------------------------------


def test_the_examples_of_the_guide_run_as_they_stand(folder: Path) -> None:
    guide = ROOT / "docs" / "guides" / "transfer-sets.md"
    blocks = re.findall(r"```python\n(.*?)```", guide.read_text(encoding="utf-8"), re.DOTALL)
    ours = [block for block in blocks if "import torchvision" not in block]
    assert len(ours) == len(blocks) - 1 == 2  # tests/integrations has torchvision
    (folder / "ls_guide.py").write_text("\n".join(ours), encoding="utf-8")
    spectra = expect_dataset(build("ls_guide:spectra", {"size": 128}, base=folder), "ls_guide:spectra")
    assert len(spectra) == 100 and spectra[3][0].shape == (128,)  # type: ignore[index]
    mirror = expect_augmentation(build("ls_guide:mirror", {}, base=folder), "ls_guide:mirror")
    image = np.arange(6, dtype=np.uint8).reshape(2, 3)
    made = augment.augment_rows(np.stack([image] * 20), mirror, 0, 1, np.arange(20))
    assert {view.tobytes() for view in made} == {image.tobytes(), image[:, ::-1].tobytes()}
