"""Packages of extras: a plain installation opens, streams, verifies and compresses stores, and names the extra of the rest."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from logitstore.storage.errors import MissingPackage
from logitstore.storage.extras import EXTRAS, naming_extras

WITHOUT = """
import sys
sys.modules.update(dict.fromkeys({packages}))
from logitstore.cli.main import main
"""
STORE = """
import numpy as np
import logitstore

logits = np.random.default_rng(0).standard_normal((600, 12), dtype=np.float32)
inputs = np.arange(600, dtype=np.int64)[:, None]
store = logitstore.create_store(
    "small.zarr", num_classes=12, labels=logits.argmax(1), inputs=inputs, store_inputs=True
)
with store.capture("a", provenance={}) as capture:
    for rows in capture.missing_blocks():
        capture.write(rows, logits[rows])
read = logitstore.open_store("small.zarr")
assert sum(len(batch.rows) for batch in read.stream(batch_size=64, views=0)) == 600
assert read.teachers["a"].dask().compute(scheduler="synchronous").shape == (1, 600, 12)
"""
CLUSTER = "cluster small.zarr --teacher a --clusters 2 --classes-per-cluster 3"


def run(folder: Path, code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python code as the command line, without the packages of any extra."""
    preamble = WITHOUT.format(packages=sorted(EXTRAS))
    return subprocess.run(
        [sys.executable, "-c", preamble + code, *arguments],
        check=False,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make, stream and read a store without the packages of any extra; return its folder."""
    folder = tmp_path_factory.mktemp("plain")
    made = run(folder, STORE)
    assert made.returncode == 0, made.stderr
    return folder


@pytest.mark.parametrize(
    "command",
    [
        "inspect small.zarr",
        "verify --deep small.zarr",
        "evaluate small.zarr",
        "repair small.zarr",
        "doctor .",
        "compress small.zarr --teacher a --transform-kl 1e-2 --name a-small",
        "export small.zarr --teacher a a.safetensors",
        "import a.safetensors --out other.zarr --teacher a",
        CLUSTER,
    ],
)
def test_a_plain_installation_runs(folder: Path, command: str) -> None:
    done = run(folder, "main()", *command.split())
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("command", "package"),
    [
        ("demo", "sklearn"),
        (f"{CLUSTER} --method minibatch --name other", "sklearn"),
        (f"{CLUSTER} --scheduler tcp://127.0.0.1:9 --name third", "distributed"),
        (f"{CLUSTER} --figure sets.png --name fourth", "matplotlib"),
        ("export small.zarr --teacher a a.parquet", "pyarrow"),
    ],
)
def test_a_missing_package_is_one_line_that_names_its_extra(folder: Path, command: str, package: str) -> None:
    refused = run(folder, "main()", *command.split())
    assert refused.returncode == 64
    assert package in refused.stderr
    assert refused.stderr.endswith(f"pip install 'logitstore[{EXTRAS[package]}]'\n") or (
        f"pip install 'logitstore[{EXTRAS[package]}]', or" in refused.stderr
    )
    assert refused.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "asked_for", ["p.TorchStream", 'logitstore.cluster("small.zarr", clusters=2, classes_per_cluster=3)']
)
def test_names_of_the_library_name_the_extra(folder: Path, asked_for: str) -> None:
    asked = run(
        folder,
        "import json, logitstore, logitstore.pipeline as p\n"
        f"try: {asked_for}\n"
        "except ImportError as error: print(json.dumps([type(error).__name__, str(error)]))\n",
    )
    line = "torch: expected an installed package, found none; pip install 'logitstore[torch]'"
    assert json.loads(asked.stdout) == ["MissingPackage", line]


def test_a_package_of_nobody_is_left_as_it_is() -> None:
    """Check, as a negative control, that a module that a user misspells is no package of ours."""
    with pytest.raises(ModuleNotFoundError, match="No module named 'torhc'") as caught, naming_extras():
        import torhc  # type: ignore[import-not-found]  # noqa: F401
    assert not isinstance(caught.value, MissingPackage)
