"""Captures that are made from captures of the same store: the identity under a name, and the blocks still missing."""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from ...storage.api import Store
from ...storage.errors import NameTaken
from ...storage.parts.writer import CaptureWriter
from ...storage.progress import Progress
from ..runtime.dask_tasks import over_blocks

_Result = TypeVar("_Result")


def identity_of(store: Store, name: str) -> Mapping[str, Any] | None:
    """Return the identity of a capture, sealed or begun; None where the name is free."""
    part = f"teachers/{name}"
    if store.root.has(part):
        return store.root.part(part).spec.identity
    begun = store.root.begun(part)
    return None if begun is None else begun.identity


def check_derived(store: Store, name: str, identity: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """Return what `identity` says under `key`. Raises NameTaken for a capture that was not made in this way."""
    origin = identity.get(key)
    if not isinstance(origin, Mapping) or not isinstance(identity.get("encoding"), Mapping):
        raise NameTaken(
            f"{store.path}: teachers/{name}",
            expected=f"a name that is free, or a capture with {key} in its identity",
            found=f"a capture with {', '.join(sorted(identity)) or 'no keys'}",
            remedy="choose another name",
        )
    return origin


def how_made(store: Store, name: str, verb: str) -> dict[str, str]:
    """Return the words of `check_same` for a capture that is sealed or begun."""
    if store.root.has(f"teachers/{name}"):
        return {"made": f"with which it was {verb}", "remedy": "choose another name"}
    path = store.root.folder.sub(f"teachers/{name}").path
    remedy = f"choose another name; to begin it anew, delete {path}"
    return {"made": "with which it was begun", "remedy": remedy}


def over_missing(
    task: str,
    store: Store,
    capture: CaptureWriter,
    views: int,
    write: Callable[[int, range], _Result],
    progress: Progress,
) -> list[_Result]:
    """Call `write(view, rows)` for each block of a capture that is not committed, on all cores."""
    missing = [(view, rows) for view in range(views) for rows in capture.missing_blocks(view)]
    done = views * store.num_rows - sum(len(rows) for _, rows in missing)
    return over_blocks(task, missing, write, progress=progress, done=done)
