"""The folder of an experiment: its store, models and results."""

from dataclasses import dataclass
from pathlib import Path

from .models.records import Models


@dataclass(frozen=True)
class Workspace:
    """Where an experiment keeps what it makes."""

    folder: Path
    """The folder that `--out` names."""

    @property
    def store(self) -> Path:
        """Path of the store."""
        return self.folder / "store.zarr"

    @property
    def models(self) -> Models:
        """The trained models."""
        return Models(self.folder / "models")

    @property
    def scores(self) -> Path:
        """File of the scores."""
        return self.folder / "evaluation.json"
