"""Workspaces of the commands: an experiment and its store, with the device, progress and ranks of the call."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import click

from .options import settings
from .printing.progress import show_progress

if TYPE_CHECKING:
    from ..pipeline.workspace import Workspace
    from ..storage.api import Store
    from ..storage.backends.remote import Access

_OF_ONE_RANK = {
    *("experiment", "store", "models", "device", "reuse"),
    *("cache", "no_cache", "cache_size", "follow_links"),
}
"""Parameters that may differ between ranks: places, and a device of each."""


@contextmanager
def workspace(
    experiment: Path,
    store: str,
    models: Path | None,
    device: str | None,
    reuse: Sequence[str] = (),
    access: "Access | None" = None,
) -> "Iterator[Workspace]":
    """Yield the workspace of an experiment around a store; every rank of a `torchrun` joins.

    reuse: earlier stores. access: the way to the store; that of the environment by default.
    Raises SpecMismatch if the ranks run different commands or versions.
    """
    from ..pipeline.experiment.document import load_experiment
    from ..pipeline.runtime.ranks import joined
    from ..pipeline.workspace import Workspace
    from ..storage.backends.remote import path_of, usual_access

    with (
        joined() as ranks,
        show_progress(quiet=settings().quiet or not ranks.is_first) as progress,
    ):
        if ranks.size > 1:
            call = click.get_current_context()
            options = {key: value for key, value in call.params.items() if key not in _OF_ONE_RANK}
            ranks.agree({"logitstore": version("logitstore"), "command": call.info_name, "options": options})
        loaded, path = load_experiment(experiment), path_of(store)
        yield Workspace.of_store(
            loaded,
            path,
            models,
            device=device,
            progress=progress,
            ranks=ranks,
            reuse=reuse,
            access=access or usual_access(),
        )


def store_to_write(store: str, access: "Access") -> "Store":
    """Open a store that will be written to. Raises ConfigError for one that is only read, NotAStoreError."""
    from ..storage.api import Store
    from ..storage.backends.remote import folder_to_write
    from ..storage.parts.root import open_root

    return Store(open_root(folder_to_write(store, access)))


def store_to_read(store: str, access: "Access", expect: str | None = None) -> "Store":
    """Open a store that will be read. Raises as `open_store`."""
    from ..storage.api import Store
    from ..storage.backends.remote import folder_at
    from ..storage.parts.root import open_root

    return Store(open_root(folder_at(store, access), expect))
