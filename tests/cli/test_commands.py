"""Commands: they report what they did, and leave finished work alone.

Most of these laws run on the small experiment, done once by `logitstore run`.
"""

import contextlib
import json
import logging
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from click.testing import CliRunner, Result
from support import small_experiment as small

import logitstore
from logitstore.cli.commands import demo
from logitstore.cli.dask_client import scheduler_at
from logitstore.cli.main import COMMANDS, cli
from logitstore.pipeline.experiment.document import load_experiment, parse_experiment
from logitstore.storage.describe import describe
from logitstore.storage.errors import (
    ConfigError,
    LogitStoreError,
    ShardCorrupt,
    SpecMismatch,
    TransientIOError,
    UnsupportedFeature,
    UntrustedStoreError,
)
from logitstore.storage.integrity.verify import Report
from logitstore.storage.parts.root import Root
from logitstore.storage.parts.sealed_part import SealedPart

MORE = """
[[student]]
name = "plain"
factory = "logitstore.pipeline.models:mlp"
args = { hidden = [4] }
targets = "hard"
train = { lr = 1e-2, epochs = 1, batch_size = 64, seeds = [0, 1] }

[cluster]
teacher = "line"
clusters = 2
classes_per_cluster = 2
"""


def call(*arguments: object) -> Result:
    """Run a command in this process; it must be done without a word on stderr."""
    result = CliRunner().invoke(cli, [str(argument) for argument in arguments])
    assert result.exit_code == 0, (result.stderr, result.stdout)
    return result


def printed(*arguments: object) -> Any:
    """The JSON that a command prints."""
    return json.loads(call(*arguments, "--json").stdout)


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    """The folder of a finished experiment, not to be changed, and what `run` said of it."""
    folder = tmp_path_factory.mktemp("commands")
    small.lay_out(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", sys.path.copy())
        result = call("run", small.write_experiment(folder, more=MORE), "--out", folder / "out")
        sys.modules.pop("faulty", None)
    return folder, result


@pytest.fixture
def done(whole: tuple[Path, Result], tmp_path: Path) -> Path:
    """A copy of the finished experiment, to be changed."""
    return small.copy_of(whole[0], tmp_path / "copy")


# run


def test_run_says_what_it_did_and_where_things_stand(whole: tuple[Path, Result]) -> None:
    folder, result = whole
    store = logitstore.open_store(folder / "out" / "store.zarr")
    head, table, verdict, sets, where = result.stdout.split("\n\n")
    assert re.sub(r"\d\S*% right, \S+ nats a row", "FIGURES", head).splitlines() == [
        "done now:",
        "  capture teacher line  (FIGURES)",
        "  make clustering line-2x2",
        "  train student small-seed0",
        "  train student plain-seed0",
        "  train student plain-seed1",
    ]
    title, heading, *rows = table.splitlines()
    assert title.startswith("300 labelled examples")
    assert re.split(r"  +", heading)[:4] == ["kind", "model", "errors", "accuracy"]
    assert [row.split()[:2] for row in rows] == [
        ["teacher", "line"],
        ["student", "small"],
        ["student", "plain"],
    ]
    assert "±" in rows[2]
    assert "±" not in rows[0] + rows[1]
    assert verdict == "small and plain are not compared: they differ in train.seeds ([0] and [0, 1])."
    assert sets.splitlines()[0] == "classes that line confuses (clusters/line-2x2)"
    for number, members in enumerate(store.clustering("line-2x2").small("sets").tolist()):
        assert sets.splitlines()[1 + number] == f"  {number}: {', '.join('abc'[c] for c in members)}"
    assert re.fullmatch(
        r"line makes \d+ errors on the evaluation set; .* lie inside a set, random sets would hold .*",
        sets.splitlines()[-1],
    )
    assert where.splitlines()[0] == f"store   {folder / 'out' / 'store.zarr'}"
    assert where.splitlines()[2] == f"digest  {store.digest}"


def test_run_again_has_nothing_to_do(done: Path) -> None:
    before = small.snapshot(done)
    first, *rest = call("run", done / "small.toml", "--out", done / "out").stdout.split("\n\n")
    assert (
        first
        == "nothing to do: everything is done and unchanged (fingerprint of the transfer set and all labels compared)"
    )
    assert len(rest) == 4
    assert call("run", done / "small.toml", "--out", done / "out", "--dry-run").stdout == f"{first}\n"
    assert small.snapshot(done) == before


@pytest.mark.parametrize(
    ("change", "more", "expected"),
    [
        (("temperature = 2.0", "temperature = 3.0"), "", ["train student small-seed0"]),
        (
            ("temperature = 2.0", "temperature = 2.0\nhard_weight = 0.5"),
            "",
            ["train student small-seed0"],
        ),
        (("seeds = [0, 1]", "seeds = [0, 1, 2]"), "", ["train student plain-seed2"]),
        (("clusters = 2", "clusters = 1"), "", ["make clustering line-1x2"]),
        (("[cache]", "[cache]"), small.SECOND_TEACHER, ["capture teacher second", "evaluate second"]),
    ],
)
def test_a_change_does_what_follows_from_it_and_no_more(
    done: Path, change: tuple[str, str], more: str, expected: list[str]
) -> None:
    """And --dry-run says just that, and writes nothing."""
    text = (done / "small.toml").read_text() + more
    assert change[0] in text
    (done / "small.toml").write_text(text.replace(*change))
    before = small.snapshot(done)
    arguments = ("run", done / "small.toml", "--out", done / "out")
    assert call(*arguments, "--dry-run").stdout.splitlines() == expected
    assert printed(*arguments, "--dry-run") == {"pending": expected}
    assert small.snapshot(done) == before
    assert printed(*arguments)["done"] == expected
    after = small.snapshot(done)
    sealed = {name: data for name, data in before.items() if name.startswith("out/store.zarr")}
    card = sealed.pop("out/store.zarr/STORE.md")
    assert all(after[name] == data for name, data in sealed.items())
    adds_a_part = expected[0].startswith(("capture", "make"))
    assert (after["out/store.zarr/STORE.md"] != card) == adds_a_part


def test_run_as_json_is_what_the_table_rounds(whole: tuple[Path, Result]) -> None:
    folder, result = whole
    found = printed("run", folder / "small.toml", "--out", folder / "out")
    assert found["done"] == []
    assert found["store"]["digest"] == logitstore.open_store(folder / "out" / "store.zarr").digest
    assert [row["seeds"] for row in found["table"]] == [1, 1, 2]
    teacher, small_student, plain = found["table"]
    assert teacher["accuracy"] == 1 - teacher["errors"] / 300
    assert f"{teacher['accuracy']:.2%}" in result.stdout
    assert f"{plain['nll']:.4f} ± {plain['spread']['nll']:.4f}" in result.stdout
    errors = [score["errors"] for score in plain["scores"]]
    assert plain["errors"] == np.mean(errors)
    assert plain["spread"]["errors"] == pytest.approx(np.std(errors, ddof=1))
    assert small_student["spread"]["errors"] is None
    (why_not,) = found["uncompared"]
    assert not found["verdicts"]
    assert why_not in result.stdout
    inside = found["errors_inside"]
    assert f"line makes {inside['errors']} errors on the evaluation set" in result.stdout
    assert inside["share"] == inside["inside"] / inside["errors"]


def test_the_folder_of_a_run_is_named_after_its_experiment(
    done: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(done)
    (done / "runs").mkdir()
    (done / "out").rename(done / "runs" / "small")
    assert call("run", "small.toml").stdout.startswith("nothing to do")


# Stage by stage


def test_the_stages_one_by_one_make_what_run_makes(whole: tuple[Path, Result], tmp_path: Path) -> None:
    folder, _ = whole
    made = tmp_path / "made"
    small.lay_out(made)
    experiment, store = small.write_experiment(made, more=MORE), made / "out" / "store.zarr"
    cluster = ("cluster", store, "--teacher", "line", "--clusters", "2", "--classes-per-cluster", "2")
    for arguments, todo in [
        (("cache", experiment, store), ["capture teacher line"]),
        (cluster, ["make clustering line-2x2"]),
        (
            ("train", experiment, store),
            ["train student " + n for n in ("small-seed0", "plain-seed0", "plain-seed1")],
        ),
        (
            ("evaluate", experiment, store),
            ["evaluate " + n for n in ("line", "small-seed0", "plain-seed0", "plain-seed1", "line-2x2")],
        ),
    ]:
        before = small.snapshot(made)
        assert call(*arguments, "--dry-run").stdout.splitlines() == todo
        assert small.snapshot(made) == before
        assert "nothing to do" not in call(*arguments).stdout
        after = small.snapshot(made)
        assert call(*arguments, "--dry-run").stdout.startswith("nothing to do")
        call(*arguments)
        assert small.snapshot(made) == after
    ours, theirs = small.files(made / "out"), small.files(folder / "out")
    assert sorted(ours) == sorted(theirs)
    records = {name for name in ours if name.startswith("models/") and name.endswith(".json")}
    logs = {name for name in ours if name.endswith(".metrics.jsonl")}
    assert len(logs) == 3
    for name in ours.keys() - records - logs:
        assert ours[name] == theirs[name], name
    for name in records:  # they say how long the training took
        one, other = (json.loads(data[name]) for data in (ours, theirs))
        assert {**one, "facts": None} == {**other, "facts": None}


@pytest.mark.parametrize("command", ["cache", "evaluate"])
def test_a_dry_run_refuses_another_transfer_set_as_the_command_does(done: Path, command: str) -> None:
    """It would list scores of another set's classes as work to be done, or say that all is done and unchanged."""
    arguments = [command, str(done / "small.toml"), str(done / "out" / "store.zarr")]
    call(*arguments, "--dry-run")  # control
    small.write_data(done / "data.npz", wrong_label=2)
    for more in ([], ["--dry-run"]):
        result = CliRunner().invoke(cli, [*arguments, *more])
        assert result.exit_code == SpecMismatch.exit_code
        assert "store.zarr: samples: expected transfer_set = 'sha256:" in result.stderr


@pytest.mark.parametrize("command", ["cache", "train", "evaluate"])
def test_the_device_of_a_command_is_used(done: Path, command: str) -> None:
    if command == "cache":
        shutil.rmtree(done / "out" / "store.zarr")
    elif command == "train":
        shutil.rmtree(done / "out" / "models" / "students")
    else:
        (done / "out" / "evaluation.json").unlink()
    arguments = (command, done / "small.toml", done / "out" / "store.zarr")
    refused = CliRunner().invoke(cli, [*map(str, arguments), "--device", "xpu:3"])
    assert refused.exit_code == ConfigError.exit_code
    assert "device: expected a device that PyTorch can use here, such as cpu, found 'xpu:3'" in refused.stderr
    call(*arguments, "--device", "cpu")


def test_models_may_be_kept_elsewhere(done: Path) -> None:
    models, store = done / "elsewhere", done / "out" / "store.zarr"
    (done / "out" / "models").rename(models)
    arguments = (done / "small.toml", store, "--models", models)
    assert call("train", *arguments).stdout == (
        "nothing to do: every student is trained and unchanged "
        "(the store holds the inputs; the transfer set was not read)\n"
    )
    assert call("evaluate", *arguments, "--dry-run").stdout.startswith("nothing to do")
    assert call("train", *arguments[:2], "--dry-run").stdout.startswith("train student small-seed0\n")


def test_evaluate_prints_the_table_of_run(whole: tuple[Path, Result]) -> None:
    folder, result = whole
    arguments = ("evaluate", folder / "small.toml", folder / "out" / "store.zarr")
    text = call(*arguments).stdout
    assert text.strip() in result.stdout
    of_run = printed("run", folder / "small.toml", "--out", folder / "out")
    assert printed(*arguments) == {key: of_run[key] for key in ("table", "verdicts", "uncompared")}


def test_evaluate_looks_at_the_view_that_is_asked_for(tmp_path: Path) -> None:
    """The second view knows every label, the first none."""
    labels = np.arange(30) % 3
    store = logitstore.create_store(
        tmp_path / "s.zarr", num_classes=3, inputs=np.zeros((30, 2), np.uint8), labels=labels
    )
    right = np.eye(3, dtype=np.float32)[labels]
    with store.capture("two", provenance={}, views=2) as capture:
        for view, logits in enumerate((-right, right)):
            for rows in capture.missing_blocks(view):
                capture.write(rows, logits[rows.start : rows.stop], view=view)
    for view, accuracy in ((None, 0.0), (0, 0.0), (1, 1.0)):
        options = () if view is None else ("--view", view)
        (found,) = printed("evaluate", tmp_path / "s.zarr", *options)["captures"]
        assert found["accuracy"] == accuracy


# cluster


def test_cluster_counts_the_errors_inside_its_sets(done: Path) -> None:
    path = done / "out" / "store.zarr"
    options = ("--teacher", "line", "--clusters", "1", "--classes-per-cluster", "2", "--temperature", "3")
    found = printed("cluster", path, *options, "--name", "pair", "--seed", "5")
    store = logitstore.open_store(path)
    assert store.clusterings == ["line-2x2", "pair"]
    identity = store.clustering("pair").spec.identity
    assert (identity["temperature"], identity["seed"], identity["clusters"]) == (3.0, 5, 1)
    predicted, labels = store.teachers["line"].read(slice(None)).argmax(axis=1), store.samples.labels
    names = np.array(store.class_names)
    inside = sum(
        {names[p], names[y]} <= set(found["sets"][0])
        for p, y in zip(predicted, labels, strict=True)
        if p != y
    )
    assert found["errors_inside"]["errors"] == int((predicted != labels).sum()) > 0
    assert found["errors_inside"]["inside"] == inside
    assert found["errors_inside"]["random_share"] == pytest.approx(1 / 3)
    text = call("cluster", path, *options, "--name", "pair", "--seed", "5").stdout
    assert text.startswith("nothing to do: clusters/pair is made and unchanged\n")
    assert f"{inside} of them" in text
    assert "random sets would hold 33.3%" in text


def test_cluster_names_what_is_wrong(whole: tuple[Path, Result]) -> None:
    store = str(whole[0] / "out" / "store.zarr")
    before = small.snapshot(whole[0])

    def refused(code: int, *options: str) -> str:
        result = CliRunner().invoke(cli, ["cluster", store, *options])
        assert (result.exit_code, result.stdout) == (code, "")
        return result.stderr

    sizes = ("--clusters", "1", "--classes-per-cluster", "2")
    assert "expected one of the sealed parts of this store under teachers (line)" in refused(
        65, "--teacher", "lime", *sizes
    )
    assert "logitstore: cluster: temperature: expected " in refused(
        64, "--teacher", "line", *sizes, "--temperature", "0"
    )
    assert "classes_per_cluster: expected at least 2 and fewer than all 3 classes, found 3" in refused(
        64, "--teacher", "line", "--clusters", "1", "--classes-per-cluster", "3"
    )
    taken = refused(65, "--teacher", "line", *sizes, "--name", "line-2x2")
    assert "clusters/line-2x2: expected classes_per_cluster" in taken or "expected clusters = 2" in taken
    assert small.snapshot(whole[0]) == before


def test_a_scheduler_that_does_not_answer(
    whole: tuple[Path, Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_answer(address: str, **_: object) -> None:
        raise OSError(f"Timed out trying to connect to {address} after 10 s")

    monkeypatch.setattr("distributed.Client", no_answer)
    options = [
        "--teacher",
        "line",
        "--clusters",
        "1",
        "--classes-per-cluster",
        "2",
        "--scheduler",
        "tcp://x:1",
    ]
    result = CliRunner().invoke(cli, ["cluster", str(whole[0] / "out" / "store.zarr"), *options])
    assert result.exit_code == 75
    assert result.stderr == (
        "logitstore: --scheduler tcp://x:1: expected a dask scheduler that answers within 10 s, found Timed out "
        "trying to connect to tcp://x:1 after 10 s; start a scheduler with `dask scheduler`, or remove --scheduler to "
        "compute on threads\n"
    )
    with pytest.raises(TransientIOError, match=r"or remove --scheduler$"), scheduler_at("tcp://x:1"):
        pass


@pytest.mark.parametrize(
    "address",
    ["foo", "foo:", ":8786", "foo:0", "foo:65536", "foo:a", "http://foo:80", "tcp://foo", "foo:1/a", ""],
)
def test_what_is_no_address_is_refused_before_a_client_is_made(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("distributed.Client", None)
    with pytest.raises(ConfigError) as caught, scheduler_at(address):
        pass
    assert str(caught.value) == (
        f"--scheduler: expected an address: host:port, or with tcp://, tls:// or ws:// before it, found {address!r}; "
        "copy the address that `dask scheduler` prints, such as tcp://127.0.0.1:8786"
    )


@pytest.mark.parametrize("address", ["foo:8786", "tcp://foo:1", "tls://[::1]:65535", "ws://foo.example:80"])
def test_an_address_is_tried(
    address: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tried: list[str] = []

    def client(there: str, **_: object) -> Any:
        tried.append(there)
        return contextlib.nullcontext()

    monkeypatch.setattr("distributed.Client", client)
    logger = logging.getLogger("distributed.client")
    before = logger.level
    for level, is_shown in ((logging.WARNING, False), (logging.DEBUG, True)):
        with caplog.at_level(level, "logitstore"), scheduler_at(address):
            assert logger.isEnabledFor(logging.CRITICAL) == is_shown, (
                "of a lost connection there is our line alone"
            )
    assert logger.level == before and tried == [address] * 2


# inspect


def test_inspect_says_what_is_in_a_store(whole: tuple[Path, Result]) -> None:
    path = whole[0] / "out" / "store.zarr"
    store, found = logitstore.open_store(path), printed("inspect", path)
    assert (found["num_rows"], found["num_classes"], found["class_names"]) == (300, 3, ["a", "b", "c"])
    assert (found["block_rows"], found["num_blocks"], found["digest"]) == (64, 5, store.digest)
    assert found["samples"]["inputs"] == {"dtype": "float32", "shape": [4]}
    (capture,) = found["captures"]
    assert (capture["name"], capture["views"], capture["encoding"], capture["dtype"]) == (
        "line",
        1,
        "float16",
        "float16",
    )
    assert capture["provenance"] == json.loads(json.dumps(store.teachers["line"].provenance))
    assert capture["digest"] == store.teachers["line"].digest
    assert found["clusterings"][0]["name"] == "line-2x2"
    assert len(found["clusterings"][0]["sets"]) == 2
    assert found["unsealed"] == found["unreadable"] == []
    text = call("inspect", path).stdout
    for piece in (
        store.digest,
        capture["digest"],
        "faulty:linear",
        "a, b, c",
        "float32 of shape (4)",
        "5 blocks",
    ):
        assert piece in text


def test_the_sizes_of_inspect_are_those_of_the_files(whole: tuple[Path, Result]) -> None:
    path = whole[0] / "out" / "store.zarr"
    found = printed("inspect", path)
    sizes = {"samples": 0, "teachers/line": 0, "clusters/line-2x2": 0}
    for name, data in small.files(path).items():
        part = next((part for part in sizes if name.startswith(f"{part}/")), None)
        if part is not None and "/commits/" not in name:
            sizes[part] += len(data)
    parts = [found["samples"], *found["captures"], *found["clusterings"]]
    assert [part["bytes"] for part in parts] == list(sizes.values())
    assert found["bytes"] == sum(sizes.values())


def _shards(store: Path) -> list[Path]:
    arrays = ("source", "digest", "label", "input", "logits", "peak", "seen", "index", "tail")
    return [file for name in arrays for file in store.rglob(f"{name}/c.*")]


def test_inspect_reads_no_shard(done: Path) -> None:
    path = done / "out" / "store.zarr"
    before = call("inspect", path).stdout
    for shard in _shards(path):
        shard.unlink()
    assert call("inspect", path).stdout == before
    # Negative control: the shards were there, and are missed by who looks at them.
    assert CliRunner().invoke(cli, ["verify", str(path)]).exit_code == 1


def test_inspect_lists_a_part_that_needs_a_newer_version(
    whole: tuple[Path, Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    part = Root.part

    def lacking(root: Root, name: str) -> SealedPart:
        if name == "teachers/line":
            raise UnsupportedFeature(name, expected="known features", found="waves", remedy="update")
        return part(root, name)

    monkeypatch.setattr(Root, "part", lacking)
    found, errors = describe(whole[0] / "out" / "store.zarr")
    assert errors == []
    assert found["unreadable"] == [
        {"part": "teachers/line", "reason": "teachers/line: expected known features, found waves; update"}
    ]
    assert found["samples"] is not None
    assert found["captures"] == []


def test_inspect_counts_the_blocks_of_what_is_not_sealed(done: Path) -> None:
    path = done / "out" / "store.zarr"
    store = logitstore.open_store(path)
    capture = store.capture("half", provenance={}, views=2)
    for rows in list(capture.missing_blocks())[:3]:
        capture.write(rows, np.zeros((len(rows), 3), np.float32))
    assert printed("inspect", path)["unsealed"] == [{"part": "teachers/half", "blocks_done": 3, "blocks": 10}]
    assert "teachers/half: not sealed, 3 of 10 blocks are there" in call("inspect", path).stdout


# compress


SMALL = ("--teacher", "line", "--max-kl", "1e-2", "--name", "small")


def test_compress_prints_what_a_row_takes_and_how_far_it_is(done: Path) -> None:
    path = done / "out" / "store.zarr"
    before = small.snapshot(done)
    assert call("compress", path, *SMALL, "--dry-run").stdout == (
        "make capture small from line: KL at most 0.01 at T >= 1\n"
    )
    assert printed("compress", path, *SMALL, "--dry-run") == {
        "pending": ["make capture small from line: KL at most 0.01 at T >= 1"]
    }
    assert small.snapshot(done) == before
    head, table, figures = re.split(r"\n\n|(?<=T >= 1)\n", call("compress", path, *SMALL).stdout)
    assert head == "teachers/small: KL at most 0.01 at T >= 1"
    heading, large, little = (re.split(r"  +", line) for line in table.splitlines())
    assert heading == ["capture", "bytes a row", "share"]
    assert (large[0], large[2], little[0]) == ("teachers/line", "100.0%", "teachers/small")
    title, heading, *rows, digest = (re.split(r"  +", line) for line in figures.splitlines())
    assert title == ["KL to teachers/line as measured, in nats a row, and the bounds that no row exceeds"]
    assert heading == [
        "T",
        "bound to the teacher",
        "bound to teachers/line",
        "max",
        "99.9th percentile",
        "mean",
    ]
    assert [row[0] for row in rows] == ["1", "2", "4", "8", "20"]
    assert [row[1] for row in rows] == ["1.00e-02", "2.50e-03", "6.25e-04", "1.56e-04", "2.50e-05"]
    for row in rows:
        bound, to_source, worst, percentile, mean = map(float, row[1:])
        assert bound >= to_source >= worst >= percentile >= mean > 0
    store = logitstore.open_store(path)
    assert digest == ["digest", store.digest]

    before = small.snapshot(done)
    found = printed("compress", path, *SMALL)
    assert (found["name"], found["source"], found["made"], found["store"]) == (
        "small",
        "line",
        False,
        store.digest,
    )
    assert found["encoding"] == store.teachers["small"].encoding.describe()
    assert found["divergence"][2]["temperature"] == 4.0
    assert found["divergence"][2]["max"] == store.teachers["small"].divergence()[:, 2].max()
    again = call("compress", path, *SMALL).stdout
    assert again.startswith("nothing to do: teachers/small is made and unchanged\nteachers/small: ")
    nothing = "nothing to do: everything is done and unchanged\n"
    assert call("compress", path, *SMALL, "--dry-run").stdout == nothing
    assert small.snapshot(done) == before


def test_compress_by_a_transform_and_inspect_show_its_use(done: Path) -> None:
    path = done / "out" / "store.zarr"
    options = ("--teacher", "line", "--transform-kl", "1e-2", "--temperatures", "1,4", "--name", "few")
    text = call("compress", path, *options).stdout
    assert text.startswith("teachers/few: KL at most 0.01 at T = 1, 4, by a transform\n")
    capture = logitstore.open_store(path).teachers["few"]
    basis = sum(values.nbytes for values in capture.encoding.basis.arrays().values())
    assert f"and {basis} bytes of its basis, once for all rows\n" in text
    assert re.search(r"\nT  bound to teachers/line  max ", text)
    found = printed("compress", path, *options)
    assert (found["basis_bytes"], found["encoding"]["temperatures"]) == (basis, [1.0, 4.0])
    (shown,) = (one for one in printed("inspect", path)["captures"] if one["name"] == "few")
    refine = capture.reader.read("refine", slice(None))
    inside = np.sort(refine[refine < 255])
    assert shown["transform"]["components"] == capture.encoding.basis.num_components
    assert shown["transform"]["refine_min"] == inside[0] <= inside[-1] == shown["transform"]["refine_max"]
    assert shown["transform"]["refine_median"] == inside[(len(inside) - 1) // 2]
    tenth = -(-len(inside) // 10)  # rows, rounded up
    assert shown["transform"]["refine_p10"] == inside[tenth - 1]
    assert (
        (inside <= shown["transform"]["refine_p90"]).mean()
        >= 0.9
        > (inside < shown["transform"]["refine_p90"]).mean()
    )
    assert shown["transform"]["escaped"] == (refine == 255).sum()
    assert 0 < shown["transform"]["alive"] <= shown["transform"]["components"]
    assert shown["row_bytes"] == found["row_bytes"]
    assert printed("inspect", path)["captures"][0]["transform"] is None
    text = call("inspect", path).stdout
    for line in ("  bytes a row      ", "  components       ", "  refinement       ", "  escaped rows     "):
        assert text.count(f"\n{line}") == 1
    assert re.search(r"\n  refinement       \d+ to \d+, median \d+, 80 % of the rows \d+ to \d+: how", text)
    # Damaged codes are reported by verify; inspect shows the rest.
    for shard in path.rglob("codes/c.*"):
        shard.unlink()
    assert "uses unknown on average" in call("inspect", path).stdout


def test_compress_draws_other_calibration_rows_on_request(done: Path) -> None:
    path = done / "out" / "store.zarr"
    options = ("--teacher", "line", "--transform-kl", "1e-2", "--calibration-rows", "40")
    draws = {"few": (), "others": ("--calibration-seed", "7"), "again": ("--calibration-seed", "0")}
    for name, more in draws.items():
        seed = int(more[1]) if more else 0
        found = printed("compress", path, *options, *more, "--name", name)
        assert found["encoding"]["calibration"] == {"rows": 40, "seed": seed}
    store = logitstore.open_store(path)
    digests = {name: store.teachers[name].provenance["basis"] for name in draws}
    assert digests["few"] == digests["again"] != digests["others"]


@pytest.mark.parametrize(
    ("options", "code", "line"),
    [
        (
            (),
            64,
            "logitstore: compress: expected one of --transform-kl, --max-kl, --top-k, --top-k-kl, found no such option; give",
        ),
        (("--max-kl", "1", "--top-k", "2"), 64, "found --max-kl and --top-k; give one of them"),
        (
            ("--top-k", "2", "--statistic", "max"),
            64,
            "--statistic: expected --statistic with --top-k-kl alone, found ",
        ),
        (
            ("--top-k", "2", "--min-temperature", "2"),
            64,
            "--min-temperature with --max-kl alone, found --min-temperature with --top-k",
        ),
        (
            ("--top-k-kl", "0.1"),
            64,
            "temperature: expected a positive number, found no such key",
        ),
        (
            ("--max-kl", "1", "--temperatures", "1,2"),
            64,
            "--temperatures with --transform-kl alone, found --temperatures with --max-kl",
        ),
        (
            ("--max-kl", "1", "--calibration-rows", "9"),
            64,
            "--calibration-rows with --transform-kl alone, found --calibration-rows with --max-kl",
        ),
        (
            ("--top-k", "2", "--calibration-seed", "9"),
            64,
            "--calibration-seed with --transform-kl alone, found --calibration-seed with --top-k",
        ),
        (
            ("--transform-kl", "1", "--calibration-rows", "1"),
            64,
            "rows: expected an integer of at least 2, found 1",
        ),
        (
            ("--transform-kl", "1", "--calibration-seed", "-1"),
            64,
            "seed: expected an integer of at least 0, found -1",
        ),
        (("--transform-kl", "0"), 64, "max_kl: expected a positive number of nats, found 0.0"),
        (
            ("--transform-kl", "1", "--temperatures", "warm"),
            64,
            "--temperatures: expected numbers with commas between them, found 'warm'",
        ),
        (
            ("--transform-kl", "1", "--temperatures", "0.5,1"),
            64,
            "temperatures: expected 1 to 16 ascending temperatures from 1 to 1000, found [0.5, 1.0]",
        ),
        (("--max-kl", "0"), 64, "max_kl: expected a positive number of nats, found 0.0"),
        (("--max-kl", "nan"), 64, "max_kl: expected a positive number of nats, found nan"),
        (("--max-kl", "1e-30"), 64, "max_kl: expected at least "),
        (("--max-kl", "few"), 64, "invalid value for '--max-kl'"),
        (("--top-k", "0"), 64, "top_k: expected an integer of at least 1, found 0"),
        (("--top-k", "4"), 64, "top_k: expected at most 3, the classes of this capture, found 4"),
        (("--top-k", "2", "--teacher", "nobody"), 65, "teachers/nobody: expected one of the sealed parts"),
        (("--top-k", "2", "--name", "line"), 65, "teachers/line: expected a name that is free"),
        (("--top-k", "2", "--name", "A"), 64, "the name of the new capture: expected a name of 1 to 64"),
    ],
)
def test_compress_names_what_is_wrong_and_leaves_nothing(
    whole: tuple[Path, Result], options: tuple[str, ...], code: int, line: str
) -> None:
    before = small.snapshot(whole[0])
    path = str(whole[0] / "out" / "store.zarr")
    result = CliRunner().invoke(cli, ["compress", path, "--teacher", "line", "--name", "new", *options])
    assert (result.exit_code, result.stdout) == (code, "")
    assert result.stderr.count("\n") == 1
    assert line in result.stderr
    assert small.snapshot(whole[0]) == before


def test_inspect_shows_the_error_of_encoded_captures(done: Path) -> None:
    path = done / "out" / "store.zarr"
    line = printed("inspect", path)["captures"][0]
    assert (line["derived_from"], line["divergence"]) == (None, None)
    made = printed("compress", path, *SMALL)
    store = logitstore.open_store(path)
    with store.capture("own", provenance={}, encoding={"top_k": 2}) as capture:
        for rows in capture.missing_blocks():
            capture.write(rows, store.teachers["line"].read(rows))
    captures = {capture["name"]: capture for capture in printed("inspect", path)["captures"]}
    assert captures["small"]["derived_from"] == {"capture": "line", "seal": store.teachers["line"].digest}
    assert captures["small"]["divergence"] == made["divergence"]
    assert captures["own"]["derived_from"] is None
    assert [one["bound"] for one in captures["own"]["divergence"]] == [None] * 5
    text = call("inspect", path).stdout
    assert (
        "KL to teachers/line as measured, in nats a row, and the bounds that no row exceeds\nT   bound to"
        in text
    )
    assert "KL to the teacher as measured, in nats a row\nT   max" in text
    assert text.count("99.9th percentile") == 2

    # The error is all that is read of the rows. Where it is lost the rest is shown, and the exit code tells.
    for shard in _shards(path):
        shard.unlink()
    assert call("inspect", path).stdout == text
    (lost,) = (path / "teachers/small/error").glob("c.0.2*")
    lost.unlink()
    result = CliRunner().invoke(cli, ["inspect", str(path), "--json"])
    assert result.exit_code == 65
    found = json.loads(result.stdout)
    assert [part["part"] for part in found["unreadable"]] == ["teachers/small"]
    assert {c["name"]: c["divergence"] is None for c in found["captures"]} == {
        "line": True, "small": True, "own": False,
    }  # fmt: skip
    assert "expected a shard of" in found["unreadable"][0]["reason"]
    assert CliRunner().invoke(cli, ["inspect", str(path)]).exit_code == 65


@pytest.mark.parametrize("kinds", [[ShardCorrupt, TransientIOError], [TransientIOError, ShardCorrupt]])
def test_inspect_says_try_again_if_one_of_several_parts_could_not_be_read(
    whole: tuple[Path, Result], kinds: list[type[LogitStoreError]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever repairs a store after 65 would remove a part that was only out of reach."""
    path = whole[0] / "out" / "store.zarr"
    record, _ = describe(path)
    for some, code in (([kinds[0]], kinds[0].exit_code), (kinds, 75), ([], 0)):
        errors = [_problem(kind) for kind in some]
        monkeypatch.setattr(
            "logitstore.cli.commands.inspect.describe", lambda *_, e=errors, **__: (record, e)
        )
        assert CliRunner().invoke(cli, ["inspect", str(path)]).exit_code == code


# verify


def verified(path: Path, *options: str) -> tuple[int, list[str]]:
    result = CliRunner().invoke(cli, ["verify", str(path), *options])
    assert result.stderr == ""
    return result.exit_code, result.stdout.splitlines()


def test_a_clean_store(whole: tuple[Path, Result]) -> None:
    path = whole[0] / "out" / "store.zarr"
    digest = logitstore.open_store(path).digest
    for options in ((), ("--deep",), ("--expect", digest)):
        code, (line,) = verified(path, *options)
        assert code == 0
        assert line.startswith(f"{path}: clean; ")
        assert line.endswith(digest)
    found = printed("verify", path, "--deep")
    assert (found["verdict"], found["exit_code"], found["problems"]) == ("clean", 0, [])
    assert found["bytes"] == sum(file.stat().st_size for file in _shards(path))


def test_a_flipped_bit_is_found_by_deep_alone(done: Path) -> None:
    path = done / "out" / "store.zarr"
    shard = path / "teachers" / "line" / "logits" / "c.0.2.0"
    data = bytearray(shard.read_bytes())
    data[11] ^= 4
    shard.write_bytes(data)
    assert verified(path)[0] == 0
    code, lines = verified(path, "--deep")
    assert code == 1
    assert len(lines) == 2
    assert lines[0].startswith(f"{shard}: expected {len(data)} bytes of sha256 ")
    assert lines[1].startswith(f"{path}: corrupt; ")
    result = CliRunner().invoke(cli, ["verify", str(path), "--deep", "--json"])
    assert result.exit_code == 1
    (problem,) = json.loads(result.stdout)["problems"]
    assert (problem["code"], problem["where"]) == ("shard-corrupt", str(shard))


def test_another_store_than_the_expected_one(whole: tuple[Path, Result]) -> None:
    code, lines = verified(whole[0] / "out" / "store.zarr", "--expect", "sha256:" + "0" * 64)
    assert code == 3
    assert "expected the store sha256:000" in lines[0]
    assert lines[-1].endswith("no digest")


def _problem(kind: type[LogitStoreError]) -> LogitStoreError:
    return kind("x", expected="this", found="that", remedy="do so")


@pytest.mark.parametrize(
    ("problems", "unsealed", "code", "verdict"),
    [
        ([], [], 0, "clean"),
        ([], ["teachers/x"], 5, "incomplete"),
        ([TransientIOError], ["teachers/x"], 4, "cannot be read"),
        ([TransientIOError, ShardCorrupt], [], 1, "corrupt"),
        ([ShardCorrupt, UntrustedStoreError], [], 3, "untrusted"),
    ],
)
def test_the_exit_codes_of_verify(
    problems: list[type[LogitStoreError]],
    unsealed: list[str],
    code: int,
    verdict: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    report = Report(None, 7, 2048, [_problem(kind) for kind in problems], unsealed)
    monkeypatch.setattr("logitstore.storage.integrity.verify.verify", lambda *_, **__: report)
    found, lines = verified(Path("x"))
    assert found == code
    assert lines[: len(problems)] == ["x: expected this, found that; do so"] * len(problems)
    assert lines[-1] == f"x: {verdict}; 7 objects, 2.0 KiB of shards compared by size; no digest"
    assert len(lines) == len(problems) + len(unsealed) + 1


# Weight


def test_what_runs_no_network_imports_no_torch(done: Path) -> None:
    """And the last call, which trains a student, shows that this can fail."""
    store, toml, out = done / "out" / "store.zarr", done / "small.toml", done / "out"
    other = done / "other.toml"
    other.write_text(toml.read_text().replace("temperature = 2.0", "temperature = 3.0"))
    sizes = ["--clusters", "1", "--classes-per-cluster", "2"]
    calls: list[list[object]] = [
        ["run", toml, "--out", out],
        ["run", other, "--out", out, "--dry-run"],
        ["cache", toml, store, "--dry-run"],
        ["train", toml, store],
        ["cluster", store, "--teacher", "line", *sizes],
        ["compress", store, "--teacher", "line", "--max-kl", "1e-2", "--name", "small"],
        ["inspect", store],
        ["verify", store, "--deep"],
        ["run", other, "--out", out],
    ]
    code = (
        "import sys, json\n"
        "from click.testing import CliRunner\n"
        "from logitstore.cli.main import cli\n"
        "for call in json.loads(sys.argv[1]):\n"
        "    result = CliRunner().invoke(cli, call)\n"
        "    print(call[0], result.exit_code, 'torch' in sys.modules)\n"
    )
    listed = json.dumps([[str(word) for word in call] for call in calls])
    result = subprocess.run([sys.executable, "-c", code, listed], check=True, capture_output=True, text=True)
    *light, heavy = [line.split() for line in result.stdout.splitlines()]
    assert light == [[str(call[0]), "0", "False"] for call in calls[:-1]]
    assert heavy == ["run", "0", "True"]


# Help


@pytest.mark.parametrize("name", COMMANDS)
def test_the_examples_of_the_help_are_calls_of_the_command(name: str) -> None:
    command = cli.get_command(click.Context(cli), name)
    assert command is not None
    lines = [line.strip() for line in (command.epilog or "").splitlines() if line.startswith("  logitstore ")]
    assert lines
    for line in lines:
        program, called, *arguments = shlex.split(line)
        assert (program, called) == ("logitstore", name)
        command.make_context(name, arguments, parent=click.Context(cli))
    with pytest.raises(click.UsageError):
        command.make_context(name, ["--no-such-option"], parent=click.Context(cli))


# demo


def _experiment(text: str) -> Any:
    import tomllib

    return parse_experiment(tomllib.loads(text), where="demo", base=Path())


def test_the_experiment_of_the_demo_is_what_was_promised() -> None:
    experiment = _experiment(demo.DIGITS_TOML)
    kinds = [member.teacher.factory.partition(":")[2] for member in experiment.teacher_members()]
    assert sorted(kinds) == ["convnet", "mlp", "mlp"]
    assert experiment.cache.views > 1
    assert experiment.cluster is not None
    everything, hard, soft = experiment.students
    assert [student.targets for student in experiment.students] == ["hard", "hard", "soft"]
    assert [student.rows for student in experiment.students] == [1.0, 0.1, 0.1]
    # A fair comparison: the same but for the targets.
    assert (soft.factory, soft.args, soft.views, soft.train) == (
        hard.factory,
        hard.args,
        hard.views,
        hard.train,
    )
    assert (everything.factory, everything.args, everything.views) == (hard.factory, hard.args, hard.views)
    assert len(soft.train.seeds) >= 5
    assert len(experiment.teacher_weights(soft)) == 3
    assert max(map(len, demo.DIGITS_TOML.splitlines())) <= 120
    assert "# " in demo.DIGITS_TOML


def test_the_demo_runs_no_file_but_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An experiment names code; this one was put there by somebody else."""
    (tmp_path / "logitstore-demo").mkdir()
    file = tmp_path / "logitstore-demo" / "digits.toml"
    factory = f'factory = "os:system"\nargs = {{ command = "touch {tmp_path}/ran" }}'
    planted = re.sub(r'factory = "logitstore.pipeline.datasets:digits"', factory, demo.DIGITS_TOML, count=1)
    assert planted != demo.DIGITS_TOML
    file.write_text(planted)
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(cli, ["demo"])
    assert result.exit_code == 64
    assert result.stderr == (
        "logitstore: logitstore-demo/digits.toml: expected the experiment of this demo, to the letter, found another text; "
        "run it by `logitstore run logitstore-demo/digits.toml --out logitstore-demo` if you wrote it, or choose another "
        "--out\n"
    )
    assert file.read_text() == planted
    assert list(tmp_path.rglob("*")) == [file.parent, file]


@pytest.fixture
def quick_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Run a demo of one epoch and two seeds in the current folder."""
    text = re.sub(r"epochs = \d+", "epochs = 1", demo.DIGITS_TOML)
    text = re.sub(r"seeds = \[.*?\]", "seeds = [0, 1]", text)
    text = re.sub(r"views = \d+", "views = 2", text, count=1)
    monkeypatch.setattr(demo, "DIGITS_TOML", text)
    monkeypatch.chdir(tmp_path)
    return lambda *options: call("demo", *options)


def test_the_demo(quick_demo: Callable[..., Result], tmp_path: Path) -> None:
    result = quick_demo()
    folder = tmp_path / "logitstore-demo"
    assert (folder / "digits.toml").read_text() == demo.DIGITS_TOML
    experiment = load_experiment(folder / "digits.toml")
    text = result.stdout
    for name in [member.name for member in experiment.teacher_members()]:
        assert f"  capture teacher {name}  (" in text
    assert "ensemble" in text
    for student in experiment.students:
        (line,) = [line for line in text.splitlines() if line.startswith(f"student   {student.name} ")]
        assert line.count("±") == 4
        assert line.endswith(" 2")
    assert re.search(
        r"^\w+ is (not (clearly )?)?better than \w+: .* in the mean \(2 and 2 seeds\), a difference of .*\.$",
        text,
        re.MULTILINE,
    )
    store = logitstore.open_store(folder / "store.zarr")
    assert f"digest  {store.digest}\n" in text
    assert "size    " in text

    # It ends with three calls that work.
    *_, inspect, verify, run = text.splitlines()
    before = small.snapshot(tmp_path)
    for line, command in ((inspect, "inspect"), (verify, "verify"), (run, "run")):
        words = shlex.split(line, comments=True)
        assert (Path(words[0]).name, words[1]) == ("logitstore", command)
        assert call(*words[1:]).stdout

    # Once more there is nothing to do.
    assert quick_demo().stdout.startswith("nothing to do: ")
    assert small.snapshot(tmp_path) == before

    # A temperature that the user sets is kept, and only the student is trained again.
    file = folder / "digits.toml"
    file.write_text(re.sub(r"temperature = [\d.]+(?= +# try another)", "temperature = 2.5", file.read_text()))
    changed = call("run", "logitstore-demo/digits.toml", "--out", "logitstore-demo")
    head, _, _ = changed.stdout.partition("\n\n")
    soft = next(student.name for student in experiment.students if student.targets == "soft")
    assert head.splitlines() == [
        "done now:",
        f"  train student {soft}-seed0",
        f"  train student {soft}-seed1",
    ]
    assert "2.5" in file.read_text()
