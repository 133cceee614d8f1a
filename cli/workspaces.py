"""Workspaces of the commands: an experiment and its store, with the device, progress and ranks of the call."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from .options import settings
from .printing.progress import show_progress

if TYPE_CHECKING:
    from ..pipeline.workspace import Workspace

PATIENCE = 86_400.0
"""Seconds that a rank waits for the others. A rank that dies is noticed at once; this is for one that hangs."""


@contextmanager
def workspace(
    experiment: Path, store: str, models: Path | None, device: str | None, *, patience: float = PATIENCE
) -> "Iterator[Workspace]":
    """Yield the workspace of an experiment around a local store; every rank of a `torchrun` joins."""
    from ..pipeline.experiment.document import load_experiment
    from ..pipeline.runtime.ranks import joined
    from ..pipeline.workspace import Workspace
    from ..storage.backends.local import local_path

    with (
        joined(patience) as ranks,
        show_progress(quiet=settings().quiet or not ranks.is_first) as progress,
    ):
        loaded, path = load_experiment(experiment), local_path(store)
        yield Workspace.of_store(loaded, path, models, device=device, progress=progress, ranks=ranks)
