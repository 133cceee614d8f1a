"""A whole experiment whose captures are in the transform encoding: every stage reads them, and a second run makes nothing."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import experiments, stores
from support.experiments import contents, parsed, run_document, whole_document

from logitstore.pipeline.cluster.covariance import covariance
from logitstore.pipeline.cluster.softened import softened_outputs
from logitstore.pipeline.evaluate.captures import evaluate_captures
from logitstore.pipeline.run import pending
from logitstore.pipeline.workspace import Workspace
from logitstore.storage.api import Store, open_store
from logitstore.storage.errors import SpecMismatch

TEMPERATURES = (1.0, 2.0, 4.0, 8.0)


def content(encoding: Any) -> dict[str, Any]:
    """A document with specialists and their combination."""
    return whole_document() | {"cache": whole_document()["cache"] | {"encoding": encoding}}


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the data and a finished run, and in `plain` the captures in float32."""
    folder = tmp_path_factory.mktemp("done")
    experiments.write_data(folder)
    run_document(content({"transform": {"max_kl": 1e-3, "rows": 100}}), folder, folder / "out")
    plain = content("float32")
    del plain["student"], plain["combine"]
    run_document(plain, folder, folder / "plain")
    return folder


@pytest.fixture
def store(done: Path) -> Store:
    """The store of the run."""
    return open_store(done / "out" / "store.zarr")


def test_teachers_and_specialists_are_within_the_budget(done: Path, store: Store) -> None:
    kinds = {name: capture.encoding.kind for name, capture in store.teachers.items()}
    assert kinds == {"wide": "transform", "spec-0": "transform", "spec-1": "transform", "all": "float16"}
    plain = open_store(done / "plain" / "store.zarr")
    wide, exact = store.teachers["wide"], plain.teachers["wide"]
    for view in range(wide.num_views):
        for t in TEMPERATURES:
            p = stores.softmax(exact.read(slice(None), view), t)
            q = stores.softmax(wide.read(slice(None), view), t)
            assert (p * np.log(p / q)).sum(axis=1).max() <= 1e-3
    # Control: they are not the same logits.
    assert np.abs(wide.read(slice(None)) - exact.read(slice(None))).max() > 1e-3
    # A specialist's basis has its own columns, the dustbin among them.
    assert store.teachers["spec-0"].shape[2] == 3
    assert store.teachers["spec-0"].divergence().max() <= 1e-3


def test_a_second_run_makes_nothing(done: Path) -> None:
    same = content({"transform": {"max_kl": 1e-3, "rows": 100}})
    before = contents(done / "out")
    assert run_document(same, done, done / "out").done == []
    assert contents(done / "out") == before
    # Control: another budget is another capture.
    other = parsed(content({"transform": {"max_kl": 1e-2, "rows": 100}}), done)
    with pytest.raises(SpecMismatch, match=r"encoding\.max_kl"):
        pending(Workspace.of_folder(other, done / "out", device="cpu"))


def test_the_covariance_is_nearly_that_of_the_plain_logits(done: Path, store: Store) -> None:
    found, exact = (
        covariance(softened_outputs(open_store(done / out / "store.zarr"), {"wide": 1.0}, 3.0))
        for out in ("out", "plain")
    )
    assert np.abs(found - exact).max() < 0.02 * np.abs(exact).max()
    # Sent to another process, as to the workers of a cluster.
    source = softened_outputs(store, {"wide": 1.0}, 3.0)
    sent = pickle.loads(pickle.dumps(source))
    np.testing.assert_array_equal(sent.read(1, range(9)), source.read(1, range(9)))


def test_captures_are_scored_as_the_plain_ones(done: Path, store: Store) -> None:
    names = ["wide"]
    found = evaluate_captures(store, captures=names).metrics["wide"]
    exact = evaluate_captures(open_store(done / "plain" / "store.zarr"), captures=names).metrics["wide"]
    # The most likely class of each row is kept, and the budget bounds the rest.
    assert (found.errors, found.ties) == (exact.errors, 0)
    assert found.nll == pytest.approx(exact.nll, abs=0.02)
