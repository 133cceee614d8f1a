"""The binding of a writer to the store and the part that it opened.

A path may lead to another store tomorrow: this one was moved, or deleted and begun anew, or a link was switched. A writer
holds the folder of the store, and that of its part, open, and walks from there: nothing that it writes gets into another
store. Before each commit three comparisons turn that into an error:

    path         ─ leads to ─>  the very folders that are held open
    log/<n>.json ─ sha256 ──>   the record that was the last one when the store was opened
    spec.json    ─ sha256 ──>   the spec with which the part was begun

In a bucket nothing can be held open, and only the last two are compared.
"""

import contextlib
import os
import weakref
from collections.abc import Iterator

from ..backends.lease import lease_on
from ..backends.local import writable
from ..errors import StorageError, WrongStore
from ..format.constants import SPEC
from ..format.documents import sha256_hex
from .root import Root


class Binding:
    """A writer's hold on its store, its part and the part's lease."""

    def __init__(self, root: Root, name: str) -> None:
        self._root = root
        self._name = name
        self.store = writable(root.folder)
        """The folder of the store."""
        self.folder = self.store.sub(name)
        """The folder of the part."""
        self.lease = lease_on(self.folder)
        """The lease of the part."""
        self._process = -1

    def open(self) -> None:
        """Hold the store open, unless it is. Raises WrongStore if it is not the one that was opened."""
        if not self.store.is_held:
            self.store = self.store.hold()
            self.folder = self.store.sub(self._name)
            self._root.check_log(self.store)

    def take(self) -> bool:
        """Hold the part open, and take its lease; return whether alone. The caller then shares it."""
        self.open()
        self.folder = self.store.sub(self._name).hold(make=True)
        self.lease = lease_on(self.folder)
        weakref.finalize(self, self.lease.release)
        self._process = os.getpid()
        return self.lease.take()

    @property
    def is_taken(self) -> bool:
        """Whether this process has taken the part. A forked child has not, whatever its parent did."""
        return self._process == os.getpid()

    def share(self) -> None:
        """Hold the part and its lease, shared with other writers, unless it is held."""
        if not self.is_taken:
            self.take()
        elif not self.lease.held:  # released when the part was sealed by another writer
            self.lease.take()
        else:
            return
        self.lease.share()

    def check(self, spec: str | None) -> None:
        """Refuse to write on in another store or part. spec: sha256 of the part's, once it is begun. Raises WrongStore."""
        self.open()  # again, after a writer was closed
        self.folder.check_in_place()
        self._root.check_log(self.store)
        if spec is None:
            return
        found = "no spec"
        with contextlib.suppress(FileNotFoundError):
            found = sha256_hex(self.folder.read(SPEC))
            if found == spec:
                return
        raise WrongStore(
            str(self.folder.path / SPEC),
            expected=f"the spec with which this writer began the part, {spec[:12]}…",
            found=f"{found[:12]}: the part was deleted and begun anew",
            remedy="run the command again; nothing of this block was kept",
        )

    @contextlib.contextmanager
    def checked(self, spec: str | None) -> Iterator[None]:
        """Check before the block, and after a failure in it: the folder may be gone with its store. As `check`."""
        self.check(spec)
        try:
            yield
        except StorageError:
            self.check(spec)
            raise

    def let_go(self) -> None:
        """Release the lease, and close the folders. A second call does nothing."""
        self.lease.release()
        self.folder.let_go()
        self.store.let_go()
        self.store = writable(self._root.folder)
        self.folder = self.store.sub(self._name)
        self._process = -1
