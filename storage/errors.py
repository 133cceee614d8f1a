"""The errors that logitstore raises on purpose, in one tree.

Every error is one line of four fields: where, expected, found, and a remedy. Each has a `code` (stable, append-only, for
programs), an `exit_code` (of the command line), and a builtin base class that a caller would think of catching.

    LogitStoreError                             code                 exit  also a
    ├── ConfigError                             config                64   ValueError
    │   └── FactoryError                        factory               64
    ├── MissingPackage                          missing-package       64   ImportError
    ├── UnsupportedSystem                       unsupported-system    64   NotImplementedError
    ├── BadDataError                            bad-data              65   ValueError
    │   ├── BadLogitsError                      bad-logits            65
    │   └── RowMismatch                         row-mismatch          65
    ├── NotAStoreError                          not-a-store           65   ValueError
    ├── PartNotFound                            part-not-found        65   KeyError
    ├── NameTaken                               name-taken            65   FileExistsError
    ├── SpecMismatch                            spec-mismatch         65   ValueError
    ├── StoreIncomplete                         store-incomplete      65   RuntimeError
    ├── PartSealed                              part-sealed           65   RuntimeError
    ├── UnsupportedFeature                      unsupported-feature   65   NotImplementedError
    ├── StoreCorrupt                            store-corrupt         65   ValueError
    │   ├── ShardMissing                        shard-missing         65
    │   ├── ShardCorrupt                        shard-corrupt         65
    │   └── ManifestInvalid                     manifest-invalid      65
    ├── UntrustedStoreError                     untrusted-store       65   ValueError
    │   ├── WrongStore                          wrong-store           65
    │   └── LimitExceeded                       limit-exceeded        65
    └── StorageError                            storage-io            75   OSError
        ├── StorageFull                         storage-full          75
        ├── StorageRefused                      storage-refused       65
        ├── TransientIOError                    transient-io          75
        ├── WriterBusy                          writer-busy           75
        ├── UnsafeFileSystem                    unsafe-file-system    75
        └── CommitStateUnknown                  commit-state-unknown  75
"""

import contextlib
import errno
from collections.abc import Iterator, Sequence
from typing import ClassVar, Final, TypeVar

EX_USAGE = 64
"""A wrong command line or experiment file (sysexits.h)."""
EX_DATAERR = 65
"""Wrong or missing input data (sysexits.h)."""
EX_SOFTWARE = 70
"""A bug in logitstore (sysexits.h)."""
EX_TEMPFAIL = 75
"""A temporary failure: nothing is lost, the same command may be run again (sysexits.h)."""


class LogitStoreError(Exception):
    """Base class of all errors that logitstore raises on purpose.

    >>> print(LogitStoreError("store.zarr", expected="a store", found="a file", remedy="name a folder"))
    store.zarr: expected a store, found a file; name a folder
    """

    code: ClassVar[str] = "error"
    """Stable identifier, for programs. Codes are append-only."""
    exit_code: ClassVar[int] = EX_SOFTWARE
    """Exit code of a command that ends with this error."""

    def __init__(self, where: str, *, expected: str, found: str, remedy: str) -> None:
        super().__init__(where, expected, found, remedy)
        self.where = where
        """The file, row, key or argument that the error is about."""
        self.expected = expected
        """The value, or kind of value, that would be right."""
        self.found = found
        """The value that is there."""
        self.remedy = remedy
        """A command or a key to type, as an imperative."""

    def __str__(self) -> str:
        return f"{self.where}: expected {self.expected}, found {self.found}; {self.remedy}"

    def with_remedy(self, remedy: str) -> "LogitStoreError":
        """Return the same error with another remedy."""
        return type(self)(self.where, expected=self.expected, found=self.found, remedy=remedy)

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (type(self), self.where, self.expected, self.found, self.remedy)


_Error = TypeVar("_Error", bound=LogitStoreError)


def _rebuild(
    kind: type[LogitStoreError], where: str, expected: str, found: str, remedy: str
) -> LogitStoreError:
    return kind(where, expected=expected, found=found, remedy=remedy)


class ConfigError(LogitStoreError, ValueError):
    """A wrong argument, option or key of an experiment file."""

    code = "config"
    exit_code = EX_USAGE


class FactoryError(ConfigError):
    """A `module:function` string that cannot be imported, or returns a wrong kind of object."""

    code = "factory"


class MissingPackage(LogitStoreError, ImportError):
    """A package of an extra that is not installed."""

    code = "missing-package"
    exit_code = EX_USAGE


class UnsupportedSystem(LogitStoreError, NotImplementedError):
    """A call that this operating system cannot do, such as writing a store on Windows."""

    code = "unsupported-system"
    exit_code = EX_USAGE


class BadDataError(LogitStoreError, ValueError):
    """A data file or an example of the transfer set that cannot be used."""

    code = "bad-data"
    exit_code = EX_DATAERR


class BadLogitsError(BadDataError):
    """Logits of a teacher that cannot be stored: wrong shape, NaN, infinite, or out of range."""

    code = "bad-logits"


class RowMismatch(BadDataError):
    """An input that differs from the one that the store's row was made from."""

    code = "row-mismatch"


class NotAStoreError(LogitStoreError, ValueError):
    """A path without a store, or with one of another major version."""

    code = "not-a-store"
    exit_code = EX_DATAERR


class PartNotFound(LogitStoreError, KeyError):
    """A part of that name does not exist."""

    code = "part-not-found"
    exit_code = EX_DATAERR


class NameTaken(LogitStoreError, FileExistsError):
    """A path or name that is already taken."""

    code = "name-taken"
    exit_code = EX_DATAERR


class SpecMismatch(LogitStoreError, ValueError):
    """A part that was begun with another teacher, augmentation, encoding or data."""

    code = "spec-mismatch"
    exit_code = EX_DATAERR


class StoreIncomplete(LogitStoreError, RuntimeError):
    """A part that is not sealed yet: some of its blocks are missing."""

    code = "store-incomplete"
    exit_code = EX_DATAERR


class PartSealed(LogitStoreError, RuntimeError):
    """A part that another writer sealed while this one was stopped; nothing was changed since."""

    code = "part-sealed"
    exit_code = EX_DATAERR


class UnsupportedFeature(LogitStoreError, NotImplementedError):
    """A part that needs a feature of a newer logitstore."""

    code = "unsupported-feature"
    exit_code = EX_DATAERR


class StoreCorrupt(LogitStoreError, ValueError):
    """A file that differs from its seal."""

    code = "store-corrupt"
    exit_code = EX_DATAERR


class ShardMissing(StoreCorrupt):
    """A missing shard that the seal lists."""

    code = "shard-missing"


class ShardCorrupt(StoreCorrupt):
    """A shard whose bytes differ from the committed ones."""

    code = "shard-corrupt"


class ManifestInvalid(StoreCorrupt):
    """A metadata file (zarr.json, spec, commit record, seal, log) that does not parse or contradicts others."""

    code = "manifest-invalid"


class UntrustedStoreError(LogitStoreError, ValueError):
    """A store that needs what readers refuse: other codecs, dtypes, names or links."""

    code = "untrusted-store"
    exit_code = EX_DATAERR


class WrongStore(UntrustedStoreError):
    """A store that is not, and never was, the expected one."""

    code = "wrong-store"


class LimitExceeded(UntrustedStoreError):
    """A size in a store above the limits of readers."""

    code = "limit-exceeded"


class StorageError(LogitStoreError, OSError):
    """A failure of the file system or the object store."""

    code = "storage-io"
    exit_code = EX_TEMPFAIL


class StorageFull(StorageError):
    """A full disk or quota. Committed data are intact."""

    code = "storage-full"


class StorageRefused(StorageError):
    """A place that refuses to be read or written so: no permission, a read-only disk, a server without ranges."""

    code = "storage-refused"
    exit_code = EX_DATAERR


class TransientIOError(StorageError):
    """A read or a write that failed and may succeed later."""

    code = "transient-io"


class WriterBusy(StorageError):
    """A part that another writer, running or stopped, holds."""

    code = "writer-busy"


class UnsafeFileSystem(StorageError):
    """A file system that can neither link nor rename a file to a free name: writers would overwrite."""

    code = "unsafe-file-system"


class CommitStateUnknown(StorageError):
    """A write whose outcome is unknown: it could not be read back."""

    code = "commit-state-unknown"


REFUSED: Final = frozenset(
    {
        errno.EACCES,
        errno.EPERM,
        errno.EROFS,
        errno.ENOENT,
        errno.ENOTDIR,
        errno.EISDIR,
        errno.ENAMETOOLONG,
        errno.ELOOP,
    }
)
"""Numbers of OSError that are the same at each try."""
TRANSIENT: Final = frozenset(
    {
        errno.EIO,
        errno.EINTR,
        errno.EAGAIN,
        errno.EMFILE,
        errno.ENFILE,
        errno.ESTALE,
        errno.ETIMEDOUT,
    }
)
"""Numbers of OSError that may be gone at the next try."""
_NO_MEMORY: Final = (
    "can't allocate memory",
    "cannot allocate memory",
    "can't start new thread",
    "bad_alloc",
    "failed to map segment",
)
"""Words of exceptions, in lower case, that libraries raise in the place of MemoryError."""


MOST_LISTED: Final = 10
"""Maximum number of errors that are listed together; the others are counted."""


def with_notes(listed: Sequence[_Error], rest: str = "") -> _Error:
    """Return the first of some errors, with the others as its notes (PEP 678). rest: a last note.

    listed: at most `MOST_LISTED`. A remedy that they share stands in the first line alone.
    """
    first, *others = listed
    for other in others:
        first.add_note(str(other).removesuffix(f"; {first.remedy}"))
    if rest:
        first.add_note(rest)
    return first


@contextlib.contextmanager
def remedied(kind: type[LogitStoreError], remedy: str) -> Iterator[None]:
    """Give another remedy to an error of this kind in the block."""
    try:
        yield
    except kind as error:
        raise error.with_remedy(remedy) from None


def some_of(names: Sequence[str], most: int) -> str:
    """Return the first names, separated by commas, with an ellipsis in the place of the others.

    >>> some_of(["a", "b", "c"], 2), some_of(["a", "b"], 2)
    ('a, b, …', 'a, b')
    """
    return ", ".join([*names[:most], *["…"] * (len(names) > most)])


def described(error: BaseException) -> str:
    """Put an exception's type and text on one line.

    >>> described(ValueError("two\\n lines"))
    'ValueError: two lines'
    """
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def is_short_of_memory(error: BaseException) -> bool:
    """Return whether an exception says that the memory of this machine, or of this process, is used up.

    >>> is_short_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory")), is_short_of_memory(ValueError("b"))
    (True, False)
    """
    if isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM:
        return True
    said = str(error).lower()
    return isinstance(error, (RuntimeError, ImportError, OSError)) and any(
        words in said for words in _NO_MEMORY
    )
