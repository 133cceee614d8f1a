"""The bytes of a part freed, once the log says that the part is gone, or if it was never sealed.

    log      teachers/wide is gone              durable, before the first byte is freed
    part     zarr.json of the part, its arrays  plain readers of Zarr do not see it any more
             records, shards, small arrays
             seal.bin, seal.json, spec.json     the spec last: until then nobody begins another part there

A removal that was killed leaves some of them. No reader looks at those; the next one removes the rest.
"""

import contextlib
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Final

from ..backends.emptying import remove_empty_folders, remove_objects
from ..backends.lease import Lease
from ..backends.local import Folder
from ..backends.place import Place
from ..backends.writable import Writable
from ..format.constants import COMMITS, LOCK, ROOT_METADATA, SEAL, SEAL_TABLE, SPEC, STAGING

PART_KEY: Final = re.compile(
    rf"{SPEC}|{SEAL}|{SEAL_TABLE}|{ROOT_METADATA}|{COMMITS}/(0|[1-9]\d*)-(0|[1-9]\d*)\.json"
    r"|[a-z][a-z0-9_]*/(zarr\.json|c(\.(0|[1-9]\d*))+)"
)
"""Keys, relative to a part, of files that a writer may have put."""
_LAST: Final = (SEAL_TABLE, SEAL, SPEC)


def part_keys(keys: Iterable[str]) -> list[str]:
    """Return the keys, relative to a part, of files that a writer may have put, in the order of their removal.

    >>> part_keys(["notes.txt", "__logitstore__/spec.json", "peak/c.0.0", "peak/zarr.json", "zarr.json"])
    ['zarr.json', 'peak/zarr.json', 'peak/c.0.0', '__logitstore__/spec.json']
    """

    def turn(key: str) -> tuple[int, int, int, str]:
        is_metadata = key.rpartition("/")[2] == ROOT_METADATA
        last = _LAST.index(key) + 1 if key in _LAST else 0
        return last, 0 if is_metadata else 1 if key.startswith(COMMITS) else 2, key.count("/"), key

    return sorted((key for key in keys if PART_KEY.fullmatch(key)), key=turn)


def is_there(store: Place, part: str) -> bool:
    """Return whether there is anything under the name of a part; True where the place does not list its files."""
    group, _, name = part.rpartition("/")
    return not store.can_list or name in store.names(group)


@contextlib.contextmanager
def alone_with(store: Writable, part: str) -> Iterator[None]:
    """Hold a part alone while the block runs, where there are leases; afterwards its empty folders are removed.

    Raises WriterBusy if a writer is at work on it.
    """
    if not is_there(store, part):
        yield
        return
    folder = store.sub(part)
    if not isinstance(folder, Folder):
        yield
        return
    lease = Lease(folder)
    lease.take_alone()
    try:
        yield
    finally:
        lease.release()
        if not part_keys(folder.files()):
            remove_empty_folders(store, part)


def free(store: Writable, part: str, done: Callable[[int], None] = lambda count: None) -> list[str]:
    """Remove the files of a part that a writer may have put; return the keys of others, which stay.

    Only for a caller that holds it alone. done: called with numbers of files that were removed.
    """
    folder = store.sub(part)
    files = folder.files()
    keys = part_keys(files)
    remove_objects(folder, keys, done)
    removed = set(keys)
    return [key for key in files if key not in removed and not key.startswith((f"{STAGING}/", LOCK))]
