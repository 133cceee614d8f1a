"""A finished run from which specialists are trained in a second.

`grounds` is a folder with the data of `experiments` and a finished run of one trained teacher, "wide", whose store has a
clustering "pairs" of two overlapping sets; `content` is the document that asks for its specialists.
"""

import functools
import shutil
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from logitstore.pipeline.experiment.document import Experiment
from logitstore.pipeline.models.records import Models
from logitstore.pipeline.specialists.todo import SpecialistRun, specialist_runs
from logitstore.pipeline.transfer import TransferRows
from logitstore.pipeline.workspace import Workspace
from logitstore.storage.api import Store, open_store
from support import experiments

SETS = [[0, 2], [1, 2]]
"""Classes of each set of "pairs"; class 3 is in none."""


def content(cached: int = 3, **changes: Any) -> dict[str, Any]:
    """Return a document with the specialists of "pairs", all of whose parts have a memory: dropout, Adam, a schedule.

    cached: views of the teacher's capture.
    """
    document = experiments.document()
    del document["cluster"]
    if cached == 1:
        del document["cache"]["augment"], document["cache"]["views"]
    table = {
        "clustering": "pairs",
        "generalist": "wide",
        "train": experiments.train(epochs=2, batch_size=16, schedule="cosine"),
    }
    return document | {
        "teacher": [experiments.teacher("wide")],
        "student": [],
        "specialists": table | changes,
    }


@functools.cache
def _grounds(cached: int) -> Path:
    document = content(cached)
    del document["specialists"]
    folder = experiments.kept_run(document)
    write_pairs(open_store(folder / "out" / "store.zarr"))
    return folder


def write_pairs(store: Store) -> None:
    """Write the clustering "pairs"."""
    arrays = {"sets": np.array(SETS), "assignment": np.array([0, 1, 0, 1])}
    with mock.patch("os.fsync"):
        store.write_clustering("pairs", arrays, identity={"made": "by hand"})


def grounds(folder: Path, cached: int = 3) -> Path:
    """Copy the finished run: `folder` holds the data and `out`."""
    shutil.copytree(_grounds(cached), folder, dirs_exist_ok=True)
    return folder


class Field:
    """A document with its store, models and transfer set."""

    def __init__(self, folder: Path, document: dict[str, Any]) -> None:
        self.experiment: Experiment = experiments.parsed(document, folder)
        self.work = Workspace.of_folder(self.experiment, folder / "out", device="cpu")

    @property
    def store(self) -> Store:
        """The store."""
        return self.work.store

    @property
    def models(self) -> Models:
        """The networks."""
        return self.work.models

    @property
    def rows(self) -> TransferRows:
        """The transfer set."""
        return self.work.rows

    @property
    def runs(self) -> list[SpecialistRun]:
        """The specialists."""
        return specialist_runs(self.experiment, self.store)

    def weights(self, number: int) -> bytes:
        """Return the weights file of a specialist."""
        return self.models.weights_path("specialists", self.runs[number].name).read_bytes()
