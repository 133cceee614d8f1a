"""The score of a combination is that of the combination in the experiment: its `top`, and its direction."""

from typing import Any
from unittest import mock

import numpy as np
import pytest
from support.experiments import train
from support.special import Field, content, grounds

from logitstore.pipeline.cache.teachers import load_teacher
from logitstore.pipeline.combine.experts import Experts, active_specialists
from logitstore.pipeline.combine.solve import combine_rows
from logitstore.pipeline.evaluate.scores import subjects
from logitstore.pipeline.evaluate.stage import combination_logits
from logitstore.pipeline.evaluation_set import EvaluationExamples
from logitstore.pipeline.experiment.tables import Combine
from logitstore.pipeline.runtime.inference import run_model
from logitstore.pipeline.specialists.todo import find_specialists, special_rows
from logitstore.pipeline.specialists.training import load_specialist, train_specialists

APART = [[0, 2], [1, 3]]
"""Disjoint sets, for which both directions have a solution."""
DOCUMENT = content(clustering="apart", train=train(epochs=8, batch_size=16, lr=0.1))


@pytest.fixture(scope="module")
def field(tmp_path_factory: pytest.TempPathFactory) -> Field:
    """A generalist with two specialists."""
    folder = grounds(tmp_path_factory.mktemp("apart"))
    found = Field(folder, DOCUMENT)
    arrays = {"sets": np.array(APART), "assignment": np.array([0, 1, 0, 1])}
    with mock.patch("os.fsync"):
        found.store.write_clustering("apart", arrays, identity={"made": "by hand"})
        train_specialists(found.work)
    return found


def by_hand(field: Field, inputs: Any, generalist: Any, top: int, direction: str) -> Any:
    """The combination, from every specialist's logits of every row."""
    experts = Experts.of([np.array([*classes, -1]) for classes in APART], 4)
    active, given = active_specialists(generalist, experts, top), []
    for number, (run, record) in enumerate(find_specialists(field.work).items()):
        assert record is not None
        network = load_specialist(field.work, run, special_rows(field.work, run), record.weights)
        given.append(run_model(network, inputs, 512, where="specialist")[active[:, number]])
    return combine_rows(generalist.copy(), experts, active, given, direction=direction, out=generalist.copy())


@pytest.mark.parametrize(("top", "direction"), [(1, "pq"), (2, "pq"), (1, "qp")])
def test_a_combination_is_scored_as_it_is_combined(field: Field, top: int, direction: Any) -> None:
    inputs, _ = field.rows.rows(range(100))
    generalist = run_model(load_teacher(field.work, field.experiment.generalist), inputs, 512, where="wide")
    weights = {run.name: record.weights for run, record in find_specialists(field.work).items() if record}
    table = Combine(top=top, direction=direction)
    found, _ = combination_logits(field.work, table, inputs, generalist, weights)
    np.testing.assert_allclose(found, by_hand(field, inputs, generalist, top, direction), atol=1e-4)
    for other in {(1, "pq"), (2, "pq"), (1, "qp")} - {(top, direction)}:
        assert abs(found - by_hand(field, inputs, generalist, *other)).max() > 1e-2, other


def test_a_score_of_a_combination_is_that_of_its_top_and_its_direction(field: Field) -> None:
    """A combination of another name is not compared with the one of the store: the key of the score alone tells them apart."""
    keys = set()
    for top, direction in ((1, "pq"), (2, "pq"), (1, "qp"), (1, "pq")):
        combine = {"name": f"all-{len(keys)}", "top": top, "direction": direction}
        work = Field(field.experiment.base, DOCUMENT | {"combine": combine}).work
        found = subjects(work, EvaluationExamples(work.experiment, work.rows))
        keys |= {subject.key for subject in found if subject.kind == "combination"}
    assert len(keys) == 3
