"""URLs wherever a store is named: what works in a bucket, and what is an error, in one line, with no folder `s3:`."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from support import small_experiment
from support.buckets import Bucket, MemoryS3, serving_bucket
from support.web import Web, serving

import logitstore
from logitstore.cli.main import COMMANDS, cli
from logitstore.storage.backends import conditional, remote
from logitstore.storage.errors import ConfigError

CLUSTER = '\n[cluster]\nteacher = "line"\nclusters = 2\nclasses_per_cluster = 2\n'
SHARD = "/c.0"


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An experiment of one teacher, one student and a clustering."""
    folder = small_experiment.lay_out(tmp_path_factory.mktemp("experiment")).parent
    return small_experiment.write_experiment(folder, more=CLUSTER)


@pytest.fixture(scope="module")
def local(experiment: Path) -> Path:
    """The folder of that experiment, run on this disk; it is not changed."""
    out = experiment.parent / "local"
    done = call("run", experiment, "--out", out)
    assert done.exit_code == 0, done.output
    return out


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Bucket]:
    """A bucket in memory, to which the environment leads; the working directory is empty."""
    monkeypatch.setattr(conditional, "_FIRST_WAIT_S", 0.005)
    monkeypatch.setattr(remote, "_RETRY", {"max_retries": 0})
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with serving_bucket() as found:
        settings = {"ENDPOINT": found.url, "REGION": "us-east-1", "ALLOW_HTTP": "true", "TIMEOUT": "20s"}
        for name, value in {**settings, "ACCESS_KEY_ID": "key", "SECRET_ACCESS_KEY": "secret"}.items():
            monkeypatch.setenv(f"AWS_{name}", value)
        yield found


def call(*words: object) -> Result:
    return CliRunner().invoke(cli, [str(word) for word in words])


def objects_in(bucket: Bucket, prefix: str) -> dict[str, bytes]:
    assert isinstance(bucket.serve, MemoryS3)
    objects = bucket.serve.objects.items()
    return {key.removeprefix(prefix): data for key, data in objects if key.startswith(prefix)}


# What works


def test_a_run_under_a_url_makes_the_store_of_a_run_on_a_disk(
    bucket: Bucket, experiment: Path, local: Path
) -> None:
    done = call("run", experiment, "--out", "S3://bucket/runs")
    assert done.exit_code == 0, done.output
    assert objects_in(bucket, "runs/store.zarr/") == small_experiment.files(local / "store.zarr")
    models = Path("runs") / experiment.stem / "models"
    assert (models / "evaluation.json").read_bytes() == (local / "evaluation.json").read_bytes()
    weights = sorted(models.rglob("*.safetensors"))
    assert weights and all(
        path.read_bytes() == (local / "models" / path.relative_to(models)).read_bytes() for path in weights
    )
    (line,) = [line for line in done.stderr.splitlines() if "the store goes to" in line]
    assert f"s3://bucket/runs/store.zarr; on this disk: networks and scores in {models}, no shards" in line
    assert [path.name for path in Path().iterdir()] == ["runs"]
    again = call("run", experiment, "--out", "s3://bucket/runs", "--json")
    assert again.exit_code == 0 and json.loads(again.stdout)["done"] == []
    dry = call("run", experiment, "--out", "s3://bucket/runs", "--dry-run")
    assert dry.exit_code == 0 and "nothing to do" in dry.output


@pytest.fixture
def copied(bucket: Bucket, local: Path) -> str:
    """The URL of a copy of the store in the bucket."""
    assert call("copy", local / "store.zarr", "s3://bucket/store.zarr").exit_code == 0
    return "s3://bucket/store.zarr"


def test_every_command_takes_the_url_of_a_bucket(
    bucket: Bucket, copied: str, experiment: Path, local: Path, tmp_path: Path
) -> None:
    cluster = ("--teacher", "line", "--clusters", "2", "--classes-per-cluster", "2")
    own, cache = ("--models", tmp_path / "models"), ("--cache", tmp_path / "shards")
    for words in (
        ("inspect", copied),
        ("verify", copied, "--deep"),
        ("list", "s3://bucket"),
        ("doctor", "s3://bucket/runs", "--rounds", "1"),
        ("plan", experiment, "--store", copied, "--rows", "8"),
        ("train", experiment, copied, *own, *cache, "--cache-size", "1GB"),
        ("evaluate", experiment, copied, *own, *cache),
        ("evaluate", copied, "--no-cache"),
        ("cluster", copied, *cluster, "--name", "again", *cache),
        ("compress", copied, "--teacher", "line", "--max-kl", "1e-2", "--name", "small", "--no-cache"),
        ("cache", experiment, "s3://bucket/new.zarr", "--models", local / "models", "--reuse", copied),
        ("copy", copied, "copy.zarr"),
        ("merge", copied, "copy.zarr"),
    ):
        done = call(*words)
        assert done.exit_code == 0, (words, done.output)
    assert [path.name for path in Path().iterdir()] == ["copy.zarr"]
    assert any((tmp_path / "shards" / "v1" / "objects").rglob("*"))
    students = [
        file for file in (tmp_path / "models" / "students").iterdir() if file.suffix == ".safetensors"
    ]
    for file in students:
        assert file.read_bytes() == (local / "models" / "students" / file.name).read_bytes()
    assert students


def test_what_is_read_over_http_is_read_by_every_command_that_writes_nothing_there(
    local: Path, experiment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with serving(local) as web:
        url = f"{web.url}/store.zarr"
        for words, code in (
            (("inspect", url), 0),
            (("train", experiment, url, "--models", tmp_path / "models"), 0),
            (("evaluate", experiment, url, "--models", tmp_path / "models"), 0),
            (("evaluate", url), 0),
            (("plan", experiment, "--store", url, "--rows", "8"), 0),
            (("list", url), 0),
            (("copy", url, "copy.zarr"), 0),
            (("verify", url), 64),
            (("run", experiment, "--out", f"{web.url}/runs"), 64),
        ):
            done = call(*words)
            assert done.exit_code == code, (words, done.output)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy.zarr", "models"]


# What is an error

STORE_AT = {
    "run": ("{e}", "--out", "{u}"),
    "plan": ("{e}", "--store", "{u}"),
    "cache": ("{e}", "{u}", "--models", "m"),
    "cluster": ("{u}", "--teacher", "line", "--clusters", "2", "--classes-per-cluster", "2"),
    "train": ("{e}", "{u}", "--models", "m"),
    "combine": ("{u}", "--generalist", "line", "--specialist", "x", "--name", "new"),
    "evaluate": ("{u}",),
    "inspect": ("{u}",),
    "compress": ("{u}", "--teacher", "line", "--max-kl", "1e-2", "--name", "small"),
    "copy": ("{s}", "{u}"),
    "merge": ("{s}", "{u}"),
    "list": ("{u}",),
    "verify": ("{u}",),
    "repair": ("{u}",),
    "doctor": ("{u}",),
    "rm": ("{u}", "--teacher", "line"),
    "concat": ("{u}", "{s}", "out.zarr"),
    "export": ("{u}", "--teacher", "line", "out.npy"),
    "import": ("{s}/x.npy", "--out", "{u}", "--teacher", "new"),
    "card": ("{u}",),
    "demo": ("--out", "{u}"),
}
"""The arguments of each command; {u} is the place of a store, {e} an experiment, {s} a store."""


def _words(command: str, url: str, experiment: Path, local: Path) -> list[str]:
    places = {"u": url, "e": experiment, "s": local / "store.zarr"}
    return [command, *(word.format_map(places) for word in STORE_AT[command])]


def test_the_table_names_every_command_that_takes_a_store() -> None:
    assert set(COMMANDS) == set(STORE_AT)


@pytest.mark.parametrize("command", STORE_AT)
def test_a_misspelt_url_is_one_line_and_no_folder(
    experiment: Path, local: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for url in ("s3:/bucket/x", "s3:bucket/x", "s4://bucket/x", "S3:/bucket/x", "file://host/x", "s3://"):
        done = call(*_words(command, url, experiment, local))
        assert done.exit_code in (4, 64), (url, done.output)
        lines = [line for line in done.stderr.splitlines() if "expected" in line]
        assert len(lines) == 1 and "bug" not in done.output, (url, done.output)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["train", "cluster", "evaluate", "run", "cache"])
def test_a_store_in_the_memory_of_another_process_is_one_line(
    experiment: Path, local: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.chdir(tmp_path)
    done = call(*_words(command, "memory://nothing/store.zarr", experiment, local))
    assert done.exit_code in (64, 65), done.output
    assert len([line for line in done.stderr.splitlines() if "expected" in line]) == 1, done.output
    assert not any(":" in path.name for path in tmp_path.iterdir())


def test_options_that_exclude_each_other_are_one_line(local: Path) -> None:
    done = call("evaluate", local / "store.zarr", "--no-cache", "--cache-size", "1GB")
    assert done.exit_code == 64 and "found --no-cache with --cache-size; remove one of them" in done.stderr


# Calls


def test_options_of_a_url_reach_every_call(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"endpoint": bucket.url, "allow_http": True, "region": "us-east-1"}
    options |= {"access_key_id": "mine", "secret_access_key": "very-secret"}
    for name in ("ENDPOINT", "ACCESS_KEY_ID", "SECRET_ACCESS_KEY", "REGION", "ALLOW_HTTP"):
        monkeypatch.delenv(f"AWS_{name}")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    url, way = "s3://bucket/s.zarr", {"storage_options": options}
    inputs = np.random.default_rng(0).normal(size=(40, 4)).astype(np.float32)
    labels, teachers = np.arange(40) % 3, {"line": torch.nn.Linear(4, 3)}
    made = logitstore.cache(url, teachers, (inputs, labels), progress=False, **way)
    more = {"line": teachers["line"], "other": torch.nn.Linear(4, 3)}
    again = logitstore.cache(made, more, (inputs, labels), progress=False)  # an open store keeps its own
    assert list(again.teachers) == ["line", "other"]
    sizes = {"clusters": 1, "classes_per_cluster": 2, "progress": False}
    assert logitstore.cluster(url, teachers="line", **sizes, **way).sets.shape == (1, 2)
    network = logitstore.distill(url, torch.nn.Linear(4, 3), lr=0.1, epochs=1, progress=False, **way)
    assert isinstance(network, torch.nn.Linear)
    done = logitstore.copy_store(url, "s3://bucket/c.zarr", destination_options=options, **way)
    assert [one.name for one in logitstore.find_stores("s3://bucket", **way)] == ["c.zarr", "s.zarr"]
    assert logitstore.open_store("s3://bucket/c.zarr", **way).digest == done.digest
    with pytest.raises(ConfigError, match="found an open store, with options"):
        logitstore.cluster(made, **sizes, **way)
    with pytest.raises(ConfigError, match="checkpoint: expected a local folder, found s3://bucket/x"):
        logitstore.distill(made, network, lr=0.1, epochs=1, checkpoint="s3://bucket/x")
    assert list(Path().iterdir()) == []


@pytest.mark.parametrize("location", [Path("s3://bucket/x"), "s3:/bucket/x"])
def test_calls_make_no_folder_of_a_url(
    location: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    digests, line = np.arange(4, dtype=np.uint64), {"line": torch.nn.Linear(4, 3)}
    for make in (
        lambda: logitstore.create_store(location, num_classes=2, digests=digests),
        lambda: logitstore.cache(location, line, np.zeros((4, 4), np.float32), progress=False),
        lambda: logitstore.open_store(location),
        lambda: logitstore.find_stores(location),
        lambda: logitstore.copy_store(location, "copy"),
        lambda: logitstore.load_student("e.toml", "small", out=location),
    ):
        with pytest.raises(ConfigError) as caught:
            make()
        assert "s3:" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


# Requests


def test_list_and_inspect_read_metadata_alone(local: Path, bucket: Bucket, copied: str) -> None:
    bucket.requests.clear()
    assert call("list", "s3://bucket").exit_code == call("inspect", copied).exit_code == 0
    shards = [line for line in bucket.requests if line.rpartition("/")[2].startswith("c.")]
    assert {line.split("/")[-2] for line in shards} <= _small_arrays(local)
    assert len(bucket.requests) < 120  # a few for each part, and none for a shard
    bucket.requests.clear()
    assert call("verify", copied, "--deep").exit_code == 0  # control
    assert any("logits/c." in line for line in bucket.requests)


def _small_arrays(local: Path) -> set[str]:
    """The arrays of metadata: of the store's class names and of clusterings."""
    return {path.parent.name for path in (local / "store.zarr" / "clusters").rglob("c.*")} | {
        "class_name",
        "classes",
    }


def test_keys_that_may_read_and_not_list(
    local: Path, experiment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(local) as web:
        web.lists = False
        _lead_to(web, monkeypatch)
        url = "s3://bucket/store.zarr"
        for words, code, said in (
            (("inspect", url), 0, ""),
            (("train", experiment, url, "--models", tmp_path / "m"), 0, ""),
            (("evaluate", url), 0, ""),
            (("copy", url, tmp_path / "c.zarr"), 0, ""),
            (("verify", url), 64, "expected a place that lists its files"),
            (("list", "s3://bucket"), 65, "AccessDenied"),
        ):
            done = call(*words)
            assert done.exit_code == code and said in done.output, (words, done.output)


def _lead_to(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    address = {"ENDPOINT": web.url, "ALLOW_HTTP": "true", "REGION": "x", "SKIP_SIGNATURE": "true"}
    for name, value in address.items():
        monkeypatch.setenv(f"AWS_{name}", value)
