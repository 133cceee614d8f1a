"""The workspace of an experiment: its tables, the store and the models that they lead to, and how work is done."""

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from ..storage.api import Store
from ..storage.backends.local import writable
from ..storage.backends.obstacles import check_folder
from ..storage.backends.place import Place
from ..storage.backends.posix import check_writable
from ..storage.backends.remote import Access, folder_at, usual_access
from ..storage.errors import ConfigError, ManifestInvalid, NotAStoreError, UntrustedStoreError
from ..storage.format.constants import GROUPS, PRIVATE, ROOT_METADATA
from ..storage.format.metadata import RootAttributes
from ..storage.parts.root import open_root
from ..storage.progress import Progress, silent
from .experiment.document import Experiment
from .models.records import Models
from .runtime.ranks import ALONE, Ranks
from .transfer import TransferRows
from .views import first_views

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

STORE = "store.zarr"
"""Name of the store in the folder of an experiment."""


@dataclass(frozen=True)
class Workspace:
    """An experiment with its place and its means, as a stage is handed it.

    DIR/store.zarr         the store
    DIR/models/            trained networks, each with a record of its origin
    DIR/evaluation.json    the scores

    A store in a bucket has its models, and the scores among them, in a local folder that is named.
    """

    experiment: Experiment
    """The tables of the experiment file."""
    path: PurePath
    """The store's place: a `Path`, or the `Address` of a URL."""
    models: Models
    """The trained networks."""
    device: str | None = None
    """Where networks are computed: "cpu", "cuda", "cuda:1" …; by default the GPU if there is one."""
    progress: Progress = silent
    """Callback for the rows, steps or models that are done."""
    ranks: Ranks = ALONE
    """The processes that share the work; each of them calls the stage."""
    outlet: Callable[[int, dict[str, float]], object] | None = None
    """A function of a step and its values, which a student's training calls with each line of its log."""
    given_rows: TransferRows | None = None
    """The transfer set, if the caller has opened it already."""
    reuse: Sequence["str | os.PathLike[str] | Store"] = ()
    """Earlier stores, whose rows stage one takes instead of running a teacher on them (`cache.reuse`)."""
    access: Access = field(default_factory=usual_access)
    """The way to the store: options of a URL, the cache of a remote store, links."""
    given_place: Place | None = None
    """The store's folder, if the caller has opened it."""

    def __post_init__(self) -> None:
        if not self.ranks.is_first:
            object.__setattr__(self, "progress", silent)

    @classmethod
    def of_folder(
        cls, experiment: Experiment, folder: PurePath, models: Path | None = None, **settings: Any
    ) -> "Workspace":
        """Lay out a workspace in the folder of `--out`, or under a URL. settings: device, progress, ranks, reuse, access …

        models: as for `of_store`.
        """
        return cls.of_store(experiment, folder / STORE, models, **settings)

    @classmethod
    def of_store(
        cls, experiment: Experiment, path: PurePath, models: Path | None = None, **settings: Any
    ) -> "Workspace":
        """Lay out a workspace around a store. models: folder of the networks, `models` beside the store by default.

        Raises ConfigError for a remote store without a folder of the networks.
        """
        if models is None and not isinstance(path, Path):
            raise ConfigError(
                str(path),
                expected="a local folder for the trained networks, beside a store at a URL",
                found="none",
                remedy="add --models DIR",
            )
        assert isinstance(path, Path) or models is not None
        return cls(experiment, path, Models(models or Path(path.parent / "models")), **settings)

    @cached_property
    def rows(self) -> TransferRows:
        """The transfer set, opened on first use."""
        return TransferRows(self.experiment) if self.given_rows is None else self.given_rows

    @cached_property
    def shown_few(self) -> "NDArray[Any]":
        """One or two inputs as the teachers get them, to try a network on: those of view 0."""
        return first_views(self.experiment, self.rows)

    @cached_property
    def ready(self) -> dict[str, dict[str, str]]:
        """Digests of the tensors of each ready teacher, by name, as its factory returned it first."""
        return {}

    @cached_property
    def store(self) -> Store:
        """The store, opened on first use. Raises NotAStoreError if there is none."""
        return Store(open_root(self.place))

    @property
    def place(self) -> Place:
        """The folder of the store, named anew: a local path may lead elsewhere by now."""
        return folder_at(self.path, self.access) if self.given_place is None else self.given_place

    def find_store(self) -> Store | None:
        """Return the store; None if there is none yet. Raises NotAStoreError for a place that holds something else."""
        if "store" not in vars(self) and (store := open_existing(self.place)) is not None:
            vars(self)["store"] = store
        return vars(self).get("store")

    def agree(self, **found: Any) -> None:
        """Compare the experiment, libraries and device of all ranks, and more that is given. Raises SpecMismatch.

        found: JSON values by name. Every rank calls this before it begins; a difference ends all of them at once.
        """
        if self.ranks.size == 1:
            return
        import numpy as np
        import torch

        tables: dict[str, Any] = {}
        for name, table in self.experiment.model_dump(mode="json", by_alias=True).items():
            several = isinstance(table, (list, tuple))
            tables |= {f"{name}[{i}]": one for i, one in enumerate(table)} if several else {name: table}
        libraries = {"python": sys.version_info[:2], "numpy": np.__version__, "torch": torch.__version__}
        self.ranks.agree({**tables, **libraries, "device": self.choose_device().type, **found})

    def check_writable(self, *, store: bool) -> None:
        """Refuse places that cannot be written to, before a network is run for them. Raises StorageError.

        store: whether the store is written to, beside the models.
        """
        if store:
            check_folder(writable(self.place))
        check_writable(self.models.folder)

    def choose_device(self) -> "torch.device":
        """Return the device of this rank. Raises ConfigError for one that this machine does not have."""
        from .runtime.device import choose_device

        return choose_device(self.ranks.device(self.device))

    @property
    def scores(self) -> Path:
        """File of the scores, beside the store, or among the models of a remote one."""
        folder = self.path.parent if isinstance(self.path, Path) else self.models.folder
        return folder / "evaluation.json"


def open_existing(location: PurePath | Place) -> Store | None:
    """Open the store at a place; None if it is still to be made. Raises NotAStoreError if something else is there."""
    place = folder_at(location)
    try:
        return Store(open_root(place))
    except NotAStoreError:
        names = set(place.names() if place.can_list else ())
        if place.kind() not in ("nothing", "a folder") or names - {ROOT_METADATA, *GROUPS, PRIVATE}:
            raise
        # Another program's Zarr group is refused before a teacher is trained for it.
        if ROOT_METADATA in names and not _begins_a_store(place):
            raise
        # Nothing, an empty folder, or a store whose creation was interrupted.
        return None


def _begins_a_store(place: Place) -> bool:
    """Return whether the root metadata of a folder are those of a store."""
    try:
        RootAttributes.from_bytes(place.read(ROOT_METADATA), str(place.path / ROOT_METADATA))
    except (ManifestInvalid, NotAStoreError, UntrustedStoreError):
        return False
    return True
