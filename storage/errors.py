"""What can go wrong, in one tree, and what does each error tell its reader?

Every error is one line made of four things: where it happened, what was expected, what was found,
and what to do. Each has a `code` (stable, append-only, for programs) and an `exit_code` (what the
command line leaves with), and each is also the builtin that a caller would think of catching.

    LogitStoreError                             code                 exit  also a
    ├── ConfigError                             config                64   ValueError
    │   └── FactoryError                        factory               64
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
        ├── TransientIOError                    transient-io          75
        ├── WriterBusy                          writer-busy           75
        ├── UnsafeFileSystem                    unsafe-file-system    75
        └── CommitStateUnknown                  commit-state-unknown  75
"""

from typing import ClassVar

EX_USAGE = 64
"""The command line or the experiment file is wrong (sysexits.h)."""
EX_DATAERR = 65
"""What was to be read is wrong, or is not there (sysexits.h)."""
EX_SOFTWARE = 70
"""A bug in logitstore (sysexits.h)."""
EX_TEMPFAIL = 75
"""Nothing is lost; the same command may be run again once its cause is gone (sysexits.h)."""


class LogitStoreError(Exception):
    """Base of all errors that logitstore raises on purpose.

    >>> print(LogitStoreError("store.zarr", expected="a store", found="a file", remedy="name a folder"))
    store.zarr: expected a store, found a file; name a folder
    """

    code: ClassVar[str] = "error"
    """Stable identifier, for programs. Codes are append-only."""
    exit_code: ClassVar[int] = EX_SOFTWARE
    """What a command that ends with this error leaves with."""

    def __init__(self, where: str, *, expected: str, found: str, remedy: str) -> None:
        super().__init__(where, expected, found, remedy)
        self.where = where
        """The file, row, key or argument that the error is about."""
        self.expected = expected
        """What would have been right."""
        self.found = found
        """What was there instead."""
        self.remedy = remedy
        """What to do, as an imperative."""

    def __str__(self) -> str:
        return f"{self.where}: expected {self.expected}, found {self.found}; {self.remedy}"

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (type(self), self.where, self.expected, self.found, self.remedy)


def _rebuild(
    kind: type[LogitStoreError], where: str, expected: str, found: str, remedy: str
) -> LogitStoreError:
    return kind(where, expected=expected, found=found, remedy=remedy)


class ConfigError(LogitStoreError, ValueError):
    """An argument, an option or a key of an experiment file is wrong."""

    code = "config"
    exit_code = EX_USAGE


class FactoryError(ConfigError):
    """A `module:function` string cannot be imported, or did not return what it is for."""

    code = "factory"


class BadDataError(LogitStoreError, ValueError):
    """A data file or an example of the transfer set cannot be used."""

    code = "bad-data"
    exit_code = EX_DATAERR


class BadLogitsError(BadDataError):
    """A teacher gave logits that cannot be kept: wrong shape, NaN, infinite, or out of range."""

    code = "bad-logits"


class RowMismatch(BadDataError):
    """An input is not the one that the store's row was made from."""

    code = "row-mismatch"


class NotAStoreError(LogitStoreError, ValueError):
    """The path holds no store, or a store of another major version."""

    code = "not-a-store"
    exit_code = EX_DATAERR


class PartNotFound(LogitStoreError, KeyError):
    """The store has no part of that name."""

    code = "part-not-found"
    exit_code = EX_DATAERR


class NameTaken(LogitStoreError, FileExistsError):
    """Something else already has this path or this name."""

    code = "name-taken"
    exit_code = EX_DATAERR


class SpecMismatch(LogitStoreError, ValueError):
    """A part exists already and was begun with another teacher, augmentation, encoding or data."""

    code = "spec-mismatch"
    exit_code = EX_DATAERR


class StoreIncomplete(LogitStoreError, RuntimeError):
    """A part is not sealed yet: some of its blocks are still to be written."""

    code = "store-incomplete"
    exit_code = EX_DATAERR


class PartSealed(LogitStoreError, RuntimeError):
    """Another writer finished and sealed the part while this one was stopped; it has changed nothing since."""

    code = "part-sealed"
    exit_code = EX_DATAERR


class UnsupportedFeature(LogitStoreError, NotImplementedError):
    """A part needs a feature that this version of logitstore does not have."""

    code = "unsupported-feature"
    exit_code = EX_DATAERR


class StoreCorrupt(LogitStoreError, ValueError):
    """A file of the store is not what its seal says."""

    code = "store-corrupt"
    exit_code = EX_DATAERR


class ShardMissing(StoreCorrupt):
    """A shard that the seal lists is not there."""

    code = "shard-missing"


class ShardCorrupt(StoreCorrupt):
    """A shard is there and its bytes are not the ones that were committed."""

    code = "shard-corrupt"


class ManifestInvalid(StoreCorrupt):
    """A metadata file (zarr.json, spec, commit record, seal, log) does not parse or does not agree."""

    code = "manifest-invalid"


class UntrustedStoreError(LogitStoreError, ValueError):
    """A store asks for something that a reader does not do: other codecs, dtypes, names or links."""

    code = "untrusted-store"
    exit_code = EX_DATAERR


class WrongStore(UntrustedStoreError):
    """The store is not, and never was, the one that was expected."""

    code = "wrong-store"


class LimitExceeded(UntrustedStoreError):
    """A size that a store states is beyond what a reader allows."""

    code = "limit-exceeded"


class StorageError(LogitStoreError, OSError):
    """The file system or the object store failed."""

    code = "storage-io"
    exit_code = EX_TEMPFAIL


class StorageFull(StorageError):
    """No space, or no quota, is left where the store is. What was committed is intact."""

    code = "storage-full"


class TransientIOError(StorageError):
    """A read or a write failed in a way that may pass."""

    code = "transient-io"


class WriterBusy(StorageError):
    """What needs to be alone with a part is not: another writer is at work, or is stopped in the middle of it."""

    code = "writer-busy"


class UnsafeFileSystem(StorageError):
    """The file system can neither link a file to a free name nor rename it to one: writers would overwrite."""

    code = "unsafe-file-system"


class CommitStateUnknown(StorageError):
    """A write may or may not have happened, and it could not be read back."""

    code = "commit-state-unknown"
