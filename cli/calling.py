"""The means of a call from Python: its ranks, its progress, and its store."""

import contextlib
import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from ..storage.progress import Progress, silent
from .printing.progress import show_progress

if TYPE_CHECKING:
    from ..pipeline.runtime.ranks import Ranks
    from ..pipeline.trainer.log import Outlet
    from ..storage.api import Store

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Call:
    """The means of one call."""

    ranks: "Ranks"
    progress: Progress
    shows: bool
    """Whether results are printed."""

    def say(self, print_it: Callable[[], None], logged: str) -> None:
        """Print a result where results are printed, on the first rank alone; log one line elsewhere."""
        if self.ranks.is_first and self.shows:
            print_it()
        elif self.ranks.is_first:
            log.info("%s", logged)


@contextlib.contextmanager
def calling(progress: "bool | Progress | None") -> Iterator[Call]:
    """Join the ranks, choose the progress, and leave the random numbers of the process as they are."""
    from ..pipeline.in_hand.networks import kept_random_state
    from ..pipeline.runtime.session import session

    asked = progress is True
    shows = asked or (progress is None and sys.stderr.isatty())
    with session() as ranks, kept_random_state():
        if callable(progress):
            yield Call(ranks, progress if ranks.is_first else silent, shows=False)
            return
        with show_progress(quiet=not shows or not ranks.is_first) as shown:
            yield Call(ranks, shown, shows)


def end_if_imported(workers: int) -> None:
    """End a worker that makes a call while it imports the script of its parent, so that the parent names the missing guard.

    A worker that went on would make the call of its parent once more, and might wait for it. workers: of the call.
    """
    from ..pipeline.runtime.workers import IMPORTS_A_CALL, is_importing_script

    if workers and is_importing_script():
        raise SystemExit(IMPORTS_A_CALL)


def place_of(
    store: "Store | str | os.PathLike[str]", storage_options: Mapping[str, Any] | None
) -> tuple[PurePath, dict[str, Any]]:
    """Return the path of a store that may still have to be made, and the settings of a workspace that lead there.

    storage_options: as for `open_store`. Raises ConfigError for a URL of an unknown scheme, and for options of an open store.
    """
    from ..storage.api import Store
    from ..storage.backends.remote import access_of, path_of

    if isinstance(store, Store):
        _check_unopened(storage_options)
        return store.path, {"given_place": store.root.folder}
    return path_of(store), {"access": access_of(storage_options, cache=None)}


def opened_store(
    store: "Store | str | os.PathLike[str]", storage_options: Mapping[str, Any] | None
) -> "Store":
    """Return a store, opened unless it is. Raises as `open_store`, and ConfigError for options of an open store."""
    from ..storage.api import Store, open_store

    if isinstance(store, Store):
        _check_unopened(storage_options)
        return store
    return open_store(store, storage_options=storage_options)


def local_folder(name: str, location: "str | os.PathLike[str] | None") -> Path | None:
    """Return a folder that an argument names. Raises ConfigError for a URL, of which a path would make a folder `s3:`."""
    from ..storage.backends.local import local_path
    from ..storage.errors import ConfigError

    if location is None:
        return None
    try:
        return local_path(location)
    except ConfigError as error:
        raise ConfigError(
            name,
            expected="a local folder",
            found=error.where,
            remedy="pass a folder of this machine; stores alone lie in buckets",
        ) from None


def _check_unopened(storage_options: Mapping[str, Any] | None) -> None:
    from ..storage.errors import ConfigError

    if storage_options:
        raise ConfigError(
            "storage_options",
            expected="the path or the URL of a store, with options",
            found="an open store, with options",
            remedy="pass the options to open_store",
        )


def as_stores(
    given: "Store | str | os.PathLike[str] | Sequence[Store | str | os.PathLike[str]] | None",
) -> "list[Store | str | os.PathLike[str]]":
    """Return one store or several, or none, as a list."""
    from ..storage.api import Store

    if given is None:
        return []
    return [given] if isinstance(given, (Store, str, os.PathLike)) else list(given)


def teacher_names(store: "Store") -> list[str]:
    """Return the captures that a stream reads by default: of networks, with all classes. Raises PartNotFound."""
    from ..storage.errors import PartNotFound
    from ..storage.stream.teachers import choose_captures

    store.refresh()
    names = list(choose_captures(store.teachers, None, "all", store.num_classes, str(store.path)))
    if not names:
        raise PartNotFound(
            f"{store.path}: teachers",
            expected="a capture of all classes",
            found=f"the captures {', '.join(store.teachers) or 'none'}",
            remedy="run logitstore.cache first, or name the captures, teachers=…",
        )
    return names


def as_weights(teachers: str | Sequence[str] | Mapping[str, float]) -> list[str] | dict[str, float]:
    """Return captures as a table of an experiment names them: a list, or weights by name. Raises ConfigError."""
    from ..storage.errors import ConfigError

    if isinstance(teachers, str):
        return [teachers]
    if (
        isinstance(teachers, (Mapping, Sequence))
        and teachers
        and all(isinstance(one, str) for one in teachers)
    ):
        if not isinstance(teachers, Mapping):
            return list(teachers)
        with contextlib.suppress(TypeError, ValueError):
            return {name: float(weight) for name, weight in teachers.items()}
    raise ConfigError(
        "teachers",
        expected="the name of a capture, a list of names, or weights by name",
        found=repr(teachers)[:60],
        remedy="pass teachers=['NAME', …] or {'NAME': 1.0, …}, or leave it out for all teachers",
    )


def check_share(name: str, value: object) -> None:
    """Refuse an argument that is neither None nor a number from 0 to 1. Raises ConfigError."""
    from ..storage.errors import ConfigError

    is_number = isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= 1
    if value is not None and not is_number:
        raise ConfigError(
            name,
            expected="a number from 0 to 1, or None",
            found=repr(value)[:60],
            remedy=f"pass another {name}",
        )


def check_scored(place: PurePath, evaluation: object) -> None:
    """Refuse scores of a store that is not on a local disk, where they would lie beside it. Raises ConfigError."""
    from ..storage.errors import ConfigError

    if evaluation is not None and not isinstance(place, Path):
        raise ConfigError(
            "evaluation",
            expected="a store on a local disk, beside which the scores are kept",
            found=str(place),
            remedy="leave it out; logitstore.evaluate scores networks",
        )


def check_validation(validation: object, evaluation: object, keep: str) -> None:
    """Refuse the choice of weights on the examples of the scores. Raises ConfigError."""
    if validation is not None and validation is evaluation and keep == "best":
        from ..storage.errors import ConfigError

        raise ConfigError(
            "validation",
            expected="examples besides those of evaluation=…, for keep='best'",
            found="the same set, whose scores would be those of the choice",
            remedy="pass validation=0.1, a share of the rows that it does not learn from, or another set",
        )


def check_log(log: object, checkpoint: object) -> "Outlet | None":
    """Return the function among the values of `log`; None for "tensorboard" or nothing. Raises ConfigError."""
    from ..storage.errors import ConfigError

    if log is None:
        return None
    if log == "tensorboard":
        if checkpoint is None:
            raise ConfigError(
                "log='tensorboard'",
                expected="a folder for its files, checkpoint=…",
                found="checkpoint=None",
                remedy="pass checkpoint='runs/NAME'",
            )
        return None
    if not callable(log):
        raise ConfigError(
            "log",
            expected="'tensorboard', or a function of a step and its values",
            found=repr(log)[:60],
            remedy="pass log=lambda step, values: …",
        )
    return log
