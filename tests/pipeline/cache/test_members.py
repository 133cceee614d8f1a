"""Ten teachers of one table: they differ by their seed alone, and each is trained once."""

from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from support import experiments
from support.experiments import document, parsed, run_document, train

from logitstore.pipeline.cache import teachers
from logitstore.pipeline.workspace import Workspace
from logitstore.storage.api import open_store

MEMBERS = 10


def ten(seed: int = 3) -> dict[str, Any]:
    """An experiment of ten members, without a student."""
    content = document()
    table = experiments.teacher("wide", members=MEMBERS, seed=seed, train=train(epochs=1))
    return {key: content[key] for key in ("transfer_set", "cache")} | {"teacher": [table]}


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A folder with the data."""
    experiments.write_data(tmp_path)
    return tmp_path


def test_ten_members_train_and_are_captured_in_one_run(base: Path) -> None:
    names = [f"wide-{number}" for number in range(MEMBERS)]
    members = parsed(ten(), base).teacher_members()
    assert [(member.name, member.seed) for member in members] == [(n, 3 + i) for i, n in enumerate(names)]
    report = run_document(ten(), base, base / "out")
    assert list(report.done) == [f"capture teacher {name}" for name in names]
    store = report.store
    assert list(store.teachers) == names
    logits = np.stack([store.teachers[name].read(slice(None)) for name in names])
    assert len(np.unique(logits.reshape(MEMBERS, -1), axis=0)) == MEMBERS
    identities = [dict(store.teachers[name].part.spec.identity) for name in names]
    weights = {identity["teacher"].pop("weights") for identity in identities}
    assert len(weights) == MEMBERS and all(identity == identities[0] for identity in identities)
    # A member is what a teacher alone of its seed is.
    alone = ten(seed=7)
    alone["teacher"][0] = {**alone["teacher"][0], "members": 1}
    lone = run_document(alone, base, base / "alone").store.teachers["wide"]
    np.testing.assert_array_equal(lone.read(slice(None)), logits[4])


def test_every_epoch_of_a_teacher_has_an_order_of_its_own(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One order for all epochs would make the same batches again and again: a worse teacher, and no error."""
    work = Workspace.of_folder(parsed(ten(), base), base / "out", device="cpu")
    orders: list[list[bytes]] = []

    def fit(module: Any, batches: Any, *settings: Any, **more: Any) -> float:
        for epoch in (0, 1, 2, 1):
            orders.append([row.numpy().tobytes() for batch in batches(epoch) for row in batch.inputs])
        return 0.0

    monkeypatch.setattr(teachers, "fit", fit)
    with mock.patch("os.fsync"):
        teachers.train_teacher(work, work.experiment.teacher_members()[0])
    assert len({tuple(order) for order in orders}) == 3 and orders[1] == orders[3]
    assert len({tuple(sorted(order)) for order in orders}) == 1


def test_members_that_are_trained_are_not_trained_again(base: Path) -> None:
    fit, calls = teachers.fit, []

    def killed(*arguments: Any, **more: Any) -> float:
        calls.append(1)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return fit(*arguments, **more)

    with mock.patch.object(teachers, "fit", killed), pytest.raises(KeyboardInterrupt):
        run_document(ten(), base, base / "out")
    kept = experiments.states(base / "out" / "models" / "teachers")
    assert sorted(kept) == sorted(
        f"wide-{n}{end}" for n in range(4) for end in (".json", ".metrics.jsonl", ".safetensors")
    )
    with mock.patch.object(teachers, "fit", side_effect=fit) as counted:
        run_document(ten(), base, base / "out")
    assert counted.call_count == MEMBERS - 4
    assert experiments.changed(kept, experiments.states(base / "out" / "models" / "teachers")) == set()
    assert len(open_store(base / "out" / "store.zarr").teachers) == MEMBERS
    assert not run_document(ten(), base, base / "out").done
