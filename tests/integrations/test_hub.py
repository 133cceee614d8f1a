"""Stores on the Hugging Face hub, read through huggingface_hub from a stand-in for its HTTP surface on the loopback.

Each reader is a process of its own, as the library reads its settings when it is imported. The hub itself is not reached.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from support import stores
from support.hub import Hub, serving_hub
from support.stores import Teacher

import logitstore

CARD = {"name": 'strokes: "six"', "licence": "CC-BY-4.0", "description": "---\nlicense: mit\n---"}
STREAM = """
import sys, logitstore
store = logitstore.open_store(sys.argv[1], cache=sys.argv[2], expect=sys.argv[3])
for epoch in range(2):
    print(sum(len(batch) for batch in store.stream(batch_size=8)), flush=True)
    input()
"""


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of the hub: a store with its card, the card as README.md, and the hub's own file; it is not changed."""
    path = tmp_path_factory.mktemp("hub") / "repository"
    teachers = {"wide": Teacher(views=2), "exact": Teacher(encoding={"max_kl": 1e-2})}
    made = stores.make(path / "store.zarr", rows=37, teachers=teachers)
    logitstore.write_card(made.store, path / "README.md", location="hf://datasets/someone/strokes/store.zarr")
    shutil.copytree(path / "store.zarr", path / "top")
    for name in ("README.md", ".gitattributes"):
        (path / "top" / name).write_text("of the hub\n")
    return path


def environment(hub: Hub, home: Path, **settings: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    ours = {"HF_ENDPOINT": hub.url, "HF_HOME": str(home), "HF_HUB_DISABLE_TELEMETRY": "1", "NO_PROXY": "*"}
    return {**kept, **ours, **settings}


@pytest.fixture
def call(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run a command of logitstore against a hub."""

    def run(hub: Hub, *arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "logitstore", *arguments]
        env = environment(hub, tmp_path / "home", **settings)
        return subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, check=False)

    return run


Call = Callable[..., subprocess.CompletedProcess[str]]


def test_a_store_on_the_hub_is_listed_inspected_verified_and_copied(
    repository: Path, call: Call, tmp_path: Path
) -> None:
    local = logitstore.open_store(repository / "store.zarr")
    with serving_hub({"someone/strokes": {"main": repository}}) as hub:
        url = "hf://datasets/someone/strokes/store.zarr"
        listed = json.loads(call(hub, "list", "hf://datasets/someone/strokes", "--json").stdout)
        assert [one["name"] for one in listed["stores"]] == ["store.zarr", "top"]
        assert json.loads(call(hub, "inspect", url, "--json").stdout)["digest"] == local.digest
        checked = json.loads(call(hub, "verify", url, "--deep", "--json").stdout)
        assert (checked["exit_code"], checked["problems"]) == (0, [])
        copied = call(hub, "copy", url, str(tmp_path / "copy.zarr"), "--expect", local.digest)
        assert copied.returncode == 0, copied.stderr
        assert stores.tree(tmp_path / "copy.zarr") == stores.tree(repository / "store.zarr")
        assert any(line.startswith("GET /cdn/") for line in hub.requests)
        assert hub.leaks == []


def test_files_of_the_hub_beside_a_store_are_no_strays(repository: Path, call: Call) -> None:
    with serving_hub({"someone/strokes": {"main": repository / "top"}}) as hub:
        checked = json.loads(call(hub, "verify", "hf://datasets/someone/strokes", "--json").stdout)
    assert (checked["exit_code"], checked["strays"]) == (0, [])


def test_the_second_epoch_reads_the_cache_and_a_revision_is_pinned(repository: Path, tmp_path: Path) -> None:
    old, digest = tmp_path / "old", logitstore.open_store(repository / "store.zarr").digest
    shutil.copytree(repository, old)
    store = logitstore.open_store(repository / "store.zarr")
    with serving_hub({"someone/strokes": {"main": tmp_path / "nothing", "v1": old}}) as hub:
        child = subprocess.Popen(
            [
                sys.executable,
                "-c",
                STREAM,
                "hf://datasets/someone/strokes@v1/store.zarr",
                str(tmp_path / "cache"),
                digest,
            ],
            env=environment(hub, tmp_path / "home"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert child.stdin and child.stdout
        with child:
            assert int(child.stdout.readline()) == store.num_rows
            shards = [line for line in hub.requests if "/resolve/" in line and "/logits/c." in line]
            assert len(shards) == 2 * 5  # one view of two captures, five blocks each
            hub.requests.clear()
            child.stdin.write("\n")
            child.stdin.flush()
            assert int(child.stdout.readline()) == store.num_rows
            child.stdin.write("\n")
            child.stdin.flush()
        assert child.returncode == 0
        second = [line for line in hub.requests if "/logits/c." in line and "/wide/" not in line]
        assert second == []  # "wide" has a second view, which the second epoch shows


def test_a_private_data_set_needs_its_token_which_the_cdn_never_gets(repository: Path, call: Call) -> None:
    url = "hf://datasets/someone/strokes/store.zarr"
    with serving_hub({"someone/strokes": {"main": repository}}, token="hf_secret") as hub:
        for settings in ({}, {"HF_TOKEN": "hf_other"}):
            refused = call(hub, "inspect", url, **settings)
            assert refused.returncode == 65
            assert "a private data set needs a token" in refused.stderr
            assert len(refused.stderr.splitlines()) == 1
            assert "hf_" not in refused.stderr.replace("hf_hub", "")
        assert call(hub, "verify", url, "--deep", HF_TOKEN="hf_secret").returncode == 0
        assert any(line.startswith("GET /cdn/") for line in hub.requests)
        assert hub.leaks == []


@pytest.mark.parametrize(
    "url",
    [
        "hf://datasets/someone/other/store.zarr",
        "hf://datasets/someone/strokes@v9/store.zarr",
        "hf://datasets/someone/strokes/other.zarr",
        "hf://datasets/someone",
    ],
)
def test_a_wrong_name_is_one_line(repository: Path, call: Call, url: str) -> None:
    with serving_hub({"someone/strokes": {"main": repository}}) as hub:
        wrong = call(hub, "inspect", url)
    assert wrong.returncode in (64, 65)
    (line,) = wrong.stderr.splitlines()
    assert line.startswith(f"logitstore: {url}: expected ")


def test_a_store_on_the_hub_is_not_written_to(repository: Path, call: Call) -> None:
    with serving_hub({"someone/strokes": {"main": repository}}) as hub:
        url = "hf://datasets/someone/strokes/store.zarr"
        for command in (
            ["compress", url, "--teacher", "wide", "--top-k", "2", "--name", "x"],
            ["copy", str(repository / "store.zarr"), url],
            ["card", url],
        ):
            refused = call(hub, *command)
            assert refused.returncode == 64, command
            assert len(refused.stderr.splitlines()) == 1
        assert {line.split()[0] for line in hub.requests} <= {"GET", "HEAD", "POST"}


def test_one_answer_of_503_is_got_over(repository: Path, call: Call) -> None:
    with serving_hub({"someone/strokes": {"main": repository}}) as hub:
        hub.broken = 1
        assert call(hub, "verify", "hf://datasets/someone/strokes/store.zarr").returncode == 0


def test_the_card_is_a_card_of_the_hub(tmp_path: Path) -> None:
    from huggingface_hub import DatasetCard

    made = stores.make(tmp_path / "store.zarr", rows=37)
    store = logitstore.create_store(
        tmp_path / "carded.zarr",
        num_classes=3,
        labels=[0, 1, 2],
        digests=made.store.samples.digests[:3],
        card=CARD,
    )
    card = DatasetCard(logitstore.write_card(store).text)
    data = card.data.to_dict()
    assert (data["license"], data["pretty_name"]) == ("cc-by-4.0", CARD["name"])
    assert data["size_categories"] == ["n<1K"]
    assert "logitstore" in data["tags"]
    assert card.text.strip().startswith("# strokes: ")
