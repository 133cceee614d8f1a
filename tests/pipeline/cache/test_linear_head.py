"""A teacher whose head is taken off: the same logits from its features, or one line that refuses it."""

import copy
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from support import experiments, stores
from support.children import apart
from support.experiments import CLASSES, ROWS, SHAPE, VIEWS, contents, document, parsed
from torch import Tensor, nn

from logitstore.pipeline.cache import capture, linear_head
from logitstore.pipeline.cache.capture import CapturePass
from logitstore.pipeline.cache.linear_head import take_head
from logitstore.pipeline.cache.monitor import Quality
from logitstore.pipeline.cache.stage import cache
from logitstore.pipeline.cache.todo import find_todo
from logitstore.pipeline.models.networks import convnet, mlp
from logitstore.pipeline.models.records import Models
from logitstore.pipeline.runtime.inference import Runner
from logitstore.pipeline.workspace import Workspace
from logitstore.storage.api import Store, open_store
from logitstore.storage.encodings import transform
from logitstore.storage.encodings.feature_logits import FeatureLogits, LinearHead
from logitstore.storage.encodings.products import TILE
from logitstore.storage.errors import BadLogitsError, ConfigError, LogitStoreError, SpecMismatch
from logitstore.storage.integrity.verify import verify

Content = dict[str, Any]
WHERE = "teacher 't'"
INPUTS = np.random.default_rng(0).normal(size=(2, 6)).astype(np.float32)


class Net(nn.Module):
    """A network with a head `fc` of 9 classes, and something behind it."""

    def __init__(self, behind: Callable[[Tensor], Any] = lambda logits: logits, features: int = 5) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body, self.fc = nn.Linear(6, features), nn.Linear(features, 9)
        self.behind = behind

    def forward(self, inputs: Tensor) -> Any:
        return self.behind(self.fc(torch.relu(self.body(inputs))))


def taken(module: nn.Module, asked: str = "auto", inputs: NDArray[Any] = INPUTS) -> tuple[str, LinearHead]:
    return take_head(module.eval(), asked, inputs, 9, where=WHERE)


def logits_of(module: nn.Module, head: LinearHead | None, inputs: NDArray[Any] = INPUTS) -> NDArray[Any]:
    runner = Runner(module, where=WHERE, batch_size=7, head=head)
    return np.asarray(runner.rows(runner.logits(inputs)))


# The layer


@pytest.mark.parametrize(
    ("module", "name", "shape"),
    [
        (Net(), "fc", (6,)),
        (nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Sequential(nn.Linear(5, 9))), "2.0", (6,)),
        (mlp([5], input_shape=[6], num_classes=9), "head", (6,)),
        (convnet([4], [5], input_shape=[1, 6, 6], num_classes=9), "head", (1, 6, 6)),
        (nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 9)), "2", (6,)),
    ],
    ids=["named", "nested", "mlp", "convnet", "two of as many outputs"],
)
def test_the_last_fitting_layer_is_found_and_gives_the_same_logits(
    module: nn.Module, name: str, shape: tuple[int, ...]
) -> None:
    inputs = np.random.default_rng(0).normal(size=(11, *shape)).astype(np.float32)
    wanted = logits_of(module.eval(), None, inputs)
    for asked in ("auto", name):
        one = copy.deepcopy(module)
        found, head = taken(one, asked, inputs[:2])
        assert found == name
        assert isinstance(one.get_submodule(name), nn.Identity)
        runner = Runner(one, where=WHERE, batch_size=7, head=head)
        features = runner.logits(inputs)
        assert features.shape == (11, runner.width(9)) == (11, head.num_features)
        np.testing.assert_allclose(np.asarray(runner.rows(features)), wanted, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_network_of_another_precision_is_taken_apart(dtype: torch.dtype) -> None:
    class Cast(Net):
        def forward(self, inputs: Tensor) -> Any:
            return super().forward(inputs.to(dtype))

    module = Cast().to(dtype)
    wanted = logits_of(module, None)
    _, head = taken(module)
    found = logits_of(module, head)
    centred = [z - z.max(axis=1, keepdims=True) for z in (wanted, found)]
    tolerance = {torch.float16: 1e-2, torch.bfloat16: 5e-2, torch.float64: 1e-5}[dtype]
    np.testing.assert_allclose(*centred, atol=tolerance * wanted.std())


def test_features_of_float64_are_not_centred_like_logits() -> None:
    class Cast(Net):
        def forward(self, inputs: Tensor) -> Any:
            return super().forward(inputs.double())

    module = Cast().double()
    _, head = taken(module)
    features = Runner(module, where=WHERE, batch_size=2, head=head).logits(INPUTS)
    assert (features.max(axis=1) != 0).all()


def test_a_mean_over_places_behind_the_head_is_a_linear_map_as_well() -> None:
    class Mean(Net):
        def forward(self, inputs: Tensor) -> Any:
            places = torch.stack([inputs, inputs * 2, inputs - 1], dim=1)
            return super().forward(places).mean(dim=1)

    module = Mean()
    wanted = logits_of(module, None)
    _, head = taken(module)
    np.testing.assert_allclose(logits_of(module, head), wanted, atol=1e-5)


class Twice(Net):
    def forward(self, inputs: Tensor) -> Any:
        units = torch.relu(self.body(inputs))
        return self.fc(units) + self.fc(-units)[:, :5].sum(dim=1, keepdim=True) * self.fc(units)


class OwnWeight(Net):
    def forward(self, inputs: Tensor) -> Any:
        return torch.relu(self.body(inputs)) @ self.fc.weight.T


class Scaled(nn.Linear):
    def forward(self, inputs: Tensor) -> Tensor:
        return super().forward(inputs) * 2


class Hooked(Net):
    """A hook of the layer would go with it."""

    def __init__(self) -> None:
        super().__init__()
        self.fc.register_forward_pre_hook(lambda module, given: (given[0] * 2,))


def with_layer(layer: nn.Module) -> Net:
    module = Net()
    module.fc = layer
    return module


@pytest.mark.parametrize(
    ("module", "asked"),
    [
        (Net(lambda logits: 5 * torch.tanh(logits / 5)), "fc"),
        (Net(lambda logits: torch.log_softmax(logits * logits, dim=1)), "auto"),
        (Net(lambda logits: logits * 1.1), "fc"),
        (Net(lambda logits: logits.flip(1)), "fc"),
        (Twice(), "fc"),
        (OwnWeight(), "fc"),
        (Hooked(), "fc"),
    ],
    ids=["softcap", "softmax", "scale", "flipped", "twice", "own weight", "hook"],
)
def test_a_network_whose_logits_are_no_linear_map_is_refused(
    module: nn.Module, asked: str, sentence: Callable[..., None]
) -> None:
    with pytest.raises(BadLogitsError) as caught:
        taken(module, asked)
    assert caught.value.where == "teacher 't': head = 'fc'"
    sentence(caught.value)


@pytest.mark.parametrize(
    ("module", "asked"),
    [
        (Net(), "fcc"),
        (Net(), "body"),
        (Net(), "body.weight"),
        (with_layer(Scaled(5, 9)), "fc"),
        (with_layer(nn.Sequential(nn.Linear(5, 9))), "fc"),
        (with_layer(nn.Sequential(nn.Linear(5, 8), nn.Linear(8, 7))), "auto"),
        (nn.Linear(6, 9), "auto"),
        (torch.nn.utils.parametrizations.weight_norm(Net().fc).eval(), "auto"),
    ],
    ids=["no module", "outputs", "no layer", "subclass", "container", "none", "all head", "parametrised"],
)
def test_a_module_that_is_no_such_layer_is_refused(
    module: nn.Module, asked: str, sentence: Callable[..., None]
) -> None:
    with pytest.raises(ConfigError) as caught:
        taken(module, asked)
    assert caught.value.where == f"teacher 't': head = {asked!r}"
    sentence(caught.value)


def test_outputs_that_are_no_row_of_features_are_refused(sentence: Callable[..., None]) -> None:
    class Several(Net):
        def forward(self, inputs: Tensor) -> Any:
            logits = self.fc(torch.relu(self.body(inputs)))
            return logits if logits.shape[1] == 9 else (logits, logits)

    with pytest.raises(BadLogitsError) as caught:
        taken(Several())
    sentence(caught.value)


def test_an_offloaded_layer_is_refused() -> None:
    module = with_layer(nn.Linear(5, 9, device="meta"))
    with pytest.raises(ConfigError, match="a layer whose weight is in memory"):
        taken(module)


def test_a_basis_beyond_the_limit_of_readers_is_refused_at_once(
    monkeypatch: pytest.MonkeyPatch, sentence: Callable[..., None]
) -> None:
    monkeypatch.setattr(linear_head, "MAX_BASIS_BYTES", 4 * 9 * 6)
    taken(Net())  # control: five features and the constant
    monkeypatch.setattr(linear_head, "MAX_BASIS_BYTES", 4 * 9 * 6 - 1)
    with pytest.raises(ConfigError) as caught:
        taken(Net())
    sentence(caught.value)


def test_a_random_layer_is_named_as_what_it_is() -> None:
    class Random(Net):
        def forward(self, inputs: Tensor) -> Any:
            return super().forward(inputs + torch.randn_like(inputs))

    with pytest.raises(BadLogitsError, match="switch off dropout"):
        taken(Random())


def test_many_features_for_few_classes_are_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    taken(Net(features=8))
    assert "nothing is gained" not in caplog.text  # control
    taken(Net(features=9))
    assert "head = 'fc': 9 features stand for 9 logits: nothing is gained; remove head" in caplog.text


def test_the_tallies_of_features_are_those_of_their_logits() -> None:
    random = np.random.default_rng(0)
    lazy = FeatureLogits(
        random.standard_normal((300, 5)).astype(np.float32), LinearHead(random.standard_normal((9, 5)))
    )
    labels = random.integers(-1, 9, 300)
    found = []
    for rows in (lazy, lazy.dense()):
        quality = Quality(["a", "b"])
        for name in ("a", "b"):
            quality.note(name, (0, 0), rows, labels)
        found.append((quality.tallies, quality.compared, quality.disagreed))
    assert found[0] == found[1] and found[0][1] == 300 and found[0][0]["a"].right > 0


def test_no_rows_are_made_where_nothing_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    genuine = FeatureLogits.dense
    monkeypatch.setattr(FeatureLogits, "dense", lambda self: [sizes.append(len(self)), genuine(self)][1])
    lazy = FeatureLogits(np.ones((300, 5), np.float32), LinearHead(np.ones((9, 5), np.float32)))
    labels = np.full(300, -1)
    Quality(["a"]).note("a", (0, 0), lazy, labels)
    assert sizes == []
    labels[200] = 3
    Quality(["a"]).note("a", (0, 0), lazy, labels)
    assert sizes == [TILE]  # control: the tile with a label
    Quality(["a", "b"]).note("a", (0, 0), lazy, labels)
    assert sum(sizes) == TILE + 300  # control: two teachers are compared


# The capture

ENCODING = {"transform": {"max_kl": 1e-3, "rows": 100, "seed": 3}}


def with_head(head: str | None = "head", encoding: Any = ENCODING, **cache_settings: Any) -> Content:
    whole = document()
    whole["cache"] |= {"encoding": encoding, **cache_settings}
    teacher = whole["teacher"][0] | ({} if head is None else {"head": head})
    return {"transfer_set": whole["transfer_set"], "teacher": [teacher], "cache": whole["cache"]}


def workspace(content: Content, folder: Path, out: str) -> Workspace:
    models = Models(folder / "out" / "models")
    return Workspace(parsed(content, folder), folder / out, models, device="cpu")


def captured(content: Content, folder: Path, out: str = "store.zarr") -> Store:
    """Run stage one of a document in a copy of the finished experiment, whose teachers are trained."""
    with mock.patch("os.fsync"):
        cache(workspace(content, folder, out))
    return open_store(folder / out)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the data and trained teachers."""
    return experiments.copy_finished(tmp_path)


def test_a_capture_of_features_is_one_of_the_dense_logits(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    plain = captured(with_head(None, "float32"), folder, "plain.zarr").teachers["wide"]
    dense = captured(with_head(None), folder, "dense.zarr").teachers["wide"]
    with caplog.at_level(logging.INFO):
        store = captured(with_head(), folder)
    found = store.teachers["wide"]
    assert "its head 'head' is taken off; 12 features are captured" in caplog.text
    for view in range(VIEWS):
        exact = plain.read(slice(None), view)
        for capture_ in (found, dense):
            decoded = capture_.read(slice(None), view)
            for t in (1.0, 2.0, 4.0, 8.0):
                p, q = stores.softmax(exact, t), stores.softmax(decoded, t)
                assert (p * np.log(p / q)).sum(axis=1).max() <= 1e-3
            assert np.array_equal(decoded.argmax(axis=1), exact.argmax(axis=1))
    assert verify(store.path, deep=True).exit_code == 0
    identities = [one.part.spec.identity for one in (found, dense)]
    assert identities[0]["teacher"]["head"] == {"kind": "softmax", "layer": "head"}
    assert identities[1]["teacher"]["head"] == {"kind": "softmax"}  # as before
    assert not find_todo(workspace(with_head(), folder, "store.zarr"))


def test_only_features_wait_in_the_queue(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    widths: list[int] = []
    genuine = capture.block_logits

    def noting(runner: Any, rows: int, width: int, **more: Any) -> Any:
        widths.append(width)
        return genuine(runner, rows, width, **more)

    passes: list[CapturePass] = []
    run = CapturePass.run
    monkeypatch.setattr(CapturePass, "run", lambda self: [passes.append(self), run(self)][1])
    monkeypatch.setattr(capture, "block_logits", noting)
    content = with_head()
    content["teacher"][0]["args"] = {"hidden": [3], "dropout": 0.1}  # fewer than the classes
    captured(content, folder)
    assert set(widths) == {3}
    assert passes[0].logit_bytes == 3 * 4


def test_auto_is_the_same_capture_as_the_name_that_it_finds(folder: Path) -> None:
    named = contents(captured(with_head("head"), folder).root.path)
    assert contents(captured(with_head("auto"), folder, "auto.zarr").root.path) == named
    for head in ("auto", "head"):
        assert not find_todo(workspace(with_head(head), folder, "store.zarr"))
    for head in ("hidden.0", None):
        with pytest.raises(SpecMismatch, match=r"teacher\.head\.layer"):
            find_todo(workspace(with_head(head), folder, "store.zarr"))
    captured(with_head(None), folder, "none.zarr")
    for head in ("auto", "head"):
        with pytest.raises(SpecMismatch, match=r"teacher\.head\.layer"):
            find_todo(workspace(with_head(head), folder, "none.zarr"))


@pytest.mark.parametrize("head", ["head", "auto"])
def test_a_capture_that_was_broken_off_ends_with_the_same_bytes(folder: Path, head: str) -> None:
    whole = contents(captured(with_head(head), folder, "whole.zarr").root.path)
    with experiments.interrupted_capture(5):
        captured(with_head(head), folder)
    assert open_store(folder / "store.zarr").begun("teachers/wide") is not None
    assert contents(captured(with_head(head), folder).root.path) == whole


@pytest.mark.parametrize("settings", [{"precision": "bfloat16"}, {"workers": 1}, {"batch_size": 7}], ids=str)
def test_other_settings_of_the_cache_go_along(folder: Path, settings: Content) -> None:
    plain = captured(with_head(None, "float32", **settings), folder, "plain.zarr").teachers["wide"]
    exact = plain.read(slice(None), 0)
    found = captured(with_head(**settings), folder).teachers["wide"].read(slice(None), 0)
    p, q = stores.softmax(exact, 1.0), stores.softmax(found, 1.0)
    loose = 5e-3 if settings.get("precision") else 1.01e-3  # bfloat16 rounds the dense logits, too
    assert (p * np.log(p / q)).sum(axis=1).max() <= loose


def test_what_is_compiled_is_the_network_without_its_head(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[nn.Module] = []
    monkeypatch.setattr(torch, "compile", lambda module, **_: [compiled.append(module), module][1])
    captured(with_head(compile=True), folder)
    assert [type(module.head) for module in compiled] == [nn.Identity]


@pytest.mark.xdist_group("ranks")
def test_several_ranks_killed_and_resumed_make_the_same_bytes(tmp_path: Path) -> None:
    report = apart(
        "support.capturing_ranks:killed",
        seconds=600,
        base=str(experiments.finished()),
        work=str(tmp_path),
        plan=[[2, 1, 0.5, 1], [1, 0, 0.5, 2]],
        encoding=ENCODING,
        head="auto",
    )
    for statuses, found in report["whole"].values():
        assert set(statuses) == {0}
        assert found == report["whole"]["1"][1]
    for statuses, _, _, ended, differing in report["killed"]:
        assert -9 in statuses
        assert (set(ended), differing) == ({0}, [])


def test_a_block_is_never_dense(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    genuine = FeatureLogits.dense
    monkeypatch.setattr(FeatureLogits, "dense", lambda self: [sizes.append(len(self)), genuine(self)][1])
    monkeypatch.setattr(transform, "_PIECE_BYTES", 1)
    captured(with_head(block_rows=256), folder)
    assert max(sizes) == TILE < ROWS  # a block is all rows of a view
    assert sum(sizes) >= VIEWS * ROWS


def nan_feature(hidden: list[int], *, input_shape: list[int], num_classes: int) -> nn.Module:
    """Return an mlp with a feature that is no number in some rows."""
    module = mlp(hidden, dropout=0.1, input_shape=input_shape, num_classes=num_classes)

    def spoil(_: Any, inputs: Any, units: Tensor) -> Tensor:
        marked = units.new_zeros(units.shape, dtype=torch.bool)
        if len(units) > 2:
            marked[3, 4] = True
        return torch.where(marked, torch.nan, units)

    module.hidden[0].register_forward_hook(spoil)
    return module


def test_a_feature_that_is_not_finite_leaves_nothing_behind(
    folder: Path, sentence: Callable[..., None]
) -> None:
    from logitstore.pipeline.models.weights import save_weights

    torch.manual_seed(0)
    save_weights(mlp([12], dropout=0.1, input_shape=SHAPE, num_classes=CLASSES), folder / "bad.safetensors")
    content = with_head()
    content["teacher"] = [
        {
            "name": "bad",
            "factory": f"{__name__}:nan_feature",
            "args": {"hidden": [12]},
            "weights": "bad.safetensors",
            "head": "head",
        }
    ]
    with pytest.raises(BadLogitsError, match=r"teacher 'bad', row 3 \(index \d+ .*feature 4") as caught:
        captured(content, folder)
    sentence(caught.value)
    assert not (folder / "store.zarr").exists()


def test_a_head_needs_the_transform_encoding(tmp_path: Path, sentence: Callable[..., None]) -> None:
    for encoding in ("float16", {"max_kl": 1e-3}, {"top_k": 2}):
        with pytest.raises(
            ConfigError, match=r"teacher\[0\]\.head: expected the transform encoding"
        ) as caught:
            parsed(with_head("fc", encoding), tmp_path)
        sentence(caught.value)
    with pytest.raises(ConfigError, match=r"teacher\[0\]\.head"):
        parsed(with_head(""), tmp_path)


def test_a_wrong_head_is_refused_before_anything_is_written(
    folder: Path, sentence: Callable[..., None]
) -> None:
    before = contents(folder)
    with pytest.raises(LogitStoreError) as caught:
        captured(with_head("hidden.0"), folder)
    sentence(caught.value)
    assert contents(folder) == before


def test_members_have_their_head_taken_off_each(folder: Path) -> None:
    content = with_head()
    content["teacher"][0] |= {"members": 2, "name": "pair"}
    store = captured(content, folder)
    assert sorted(store.teachers) == ["pair-0", "pair-1"]
    first, second = (store.teachers[name].read(slice(None), 0) for name in ("pair-0", "pair-1"))
    assert len(first) == ROWS and not np.allclose(first, second)
