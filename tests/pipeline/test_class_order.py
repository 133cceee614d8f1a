"""Two stores of the same logits: in one all columns are in the order of the classes, in the other in orders of their own.

Every stage makes the same of both: sets, a smaller capture, a combination, scores, the targets of an ensemble.
"""

from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from support.combinations import head

from logitstore.pipeline.cluster.softened import softened_outputs
from logitstore.pipeline.cluster.stage import cluster_store
from logitstore.pipeline.combine.stage import combine
from logitstore.pipeline.compress.stage import compress
from logitstore.pipeline.evaluate.captures import comparisons, evaluate_captures
from logitstore.pipeline.experiment.tables import Cluster
from logitstore.pipeline.losses import soft_targets
from logitstore.pipeline.stream.torch_stream import TorchStream
from logitstore.storage.api import Store, create_store
from logitstore.storage.parts.reader import CaptureReader

ROWS, CLASSES = 48, 7
OWN = [1, 3, 6, -1]
"""Columns of the specialist."""


def written(path: Path, orders: dict[str, list[int]], seed: int) -> Store:
    """Make a store of two teachers and a specialist of the first, whose columns are in these orders."""
    random = np.random.default_rng(seed)
    logits = {name: random.normal(0, 3, (ROWS, CLASSES)).astype(np.float32) for name in ("wide", "deep")}
    of_set = random.normal(0, 3, (ROWS, CLASSES + 1)).astype(np.float32)  # by class; the dustbin is last
    labels = random.integers(0, CLASSES, ROWS)
    store = create_store(
        path, num_classes=CLASSES, labels=labels, digests=np.arange(ROWS, dtype=np.uint64), block_rows=16
    )
    for name, order in orders.items():
        made_by = {"head": head(store, 0)} if name == "special" else {"teacher": name}
        values = of_set if name == "special" else logits[name]
        with store.capture(name, provenance=made_by, classes=order, encoding="float32") as capture:
            for rows in capture.missing_blocks():
                capture.write(rows, values[rows.start : rows.stop, order])
    return store


def results(store: Store) -> dict[str, NDArray[Any]]:
    """What the stages make of a store."""
    with mock.patch("os.fsync"):
        table = Cluster(teacher="wide", clusters=2, classes_per_cluster=3)
        cluster_store(store, table)
        compress(store, "deep", "small", {"max_kl": 1e-2})
        combine(store, generalist="wide", specialists=["special"], name="both", top=2, encoding="float32")
    found = evaluate_captures(store, comparisons(store), top_k=3)
    (compared,) = found.compared
    captures = ("wide", "deep", "small", "both")
    assert list(found.metrics) == list(captures)
    batches = list(TorchStream(store.stream(16, views=0, seed=1)))
    assert all(list(batch.logits) == ["wide", "deep"] for batch in batches)
    part = store.clustering(table.part_name)
    return {
        **{name: store.teachers[name].read(slice(None)) for name in captures},
        "sets": part.small("sets"),
        "covariance": part.small("covariance"),
        "errors inside": np.array(part.spec.notes["errors_inside"]["inside"]),
        "softened": softened_outputs(store, {"wide": 2.0, "deep": 1.0}, 2.0).read(0, range(ROWS)),
        "errors": np.array([metrics.errors for metrics in found.metrics.values()]),
        "NLL": np.array([metrics.nll for metrics in found.metrics.values()]),
        "compared": np.array([compared.before.correct, compared.after.correct]),
        "coverage": compared.coverage.counts,
        "specialist": np.array([one.specialist.correct for one in compared.specialists]),
        **{
            mean: np.concatenate([soft_targets(b.logits, 2.0, None, mean).numpy() for b in batches])  # type: ignore[arg-type]
            for mean in ("arithmetic", "geometric")
        },
    }


PLAIN = {"wide": list(range(CLASSES)), "deep": list(range(CLASSES)), "special": OWN}


@settings(max_examples=4, phases=[Phase.explicit, Phase.reuse, Phase.generate])  # an example takes seconds
@given(
    st.permutations(range(CLASSES)), st.permutations(range(CLASSES)), st.permutations(OWN), st.integers(0, 99)
)
def test_every_stage_makes_the_same_of_columns_in_another_order(
    tmp_path_factory: pytest.TempPathFactory, wide: list[int], deep: list[int], special: list[int], seed: int
) -> None:
    folder = tmp_path_factory.mktemp("stages")
    moved = results(written(folder / "moved", {"wide": wide, "deep": deep, "special": special}, seed))
    for name, expected in results(written(folder / "plain", PLAIN, seed)).items():
        # The specialist keeps its columns, so its softmax is summed in their order.
        np.testing.assert_allclose(moved[name], expected, rtol=0, atol=2e-6, err_msg=name)


def test_a_stage_that_takes_columns_as_they_lie_makes_something_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The negative control: the same without the guard."""
    expected = results(written(tmp_path / "plain", PLAIN, 3))
    orders = {"wide": [3, 1, 4, 0, 6, 2, 5], "deep": [6, 5, 4, 3, 2, 1, 0], "special": [6, -1, 1, 3]}
    monkeypatch.setattr(CaptureReader, "_put_in_order", lambda *_: None)
    moved = results(written(tmp_path / "moved", orders, 3))
    assert {name for name in expected if np.array_equal(moved[name], expected[name])} <= {"specialist"}
