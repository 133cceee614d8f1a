"""Logits on a disk: written once, sealed, and read back as they were written. NumPy and Zarr's format; no torch.

Levels, each of which imports only earlier ones (tests/packaging/test_layers.py):

    errors, progress            the tree of errors; the progress of long work
    digest, checks, random, …   the identity of inputs; checked arguments; counter-based random numbers
    format/                     the files of a store as bytes and JSON (docs/format-v1.md)
    identity                    the first difference of two identities
    encodings/ | backends/      logits as stored arrays; files on a disk or elsewhere
    parts/                      samples, captures and clusterings: writers and readers
    stream/                     the order of an epoch, and its batches
    integrity/ | dask_view      verify and repair; dask arrays
    api                         open_store, create_store, Store, Capture
    describe                    the description that `logitstore inspect` prints

Public names are imported on first use: `logitstore --help` imports this package.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .api import Capture, Store, begin_store, create_store, open_store
    from .digest import digest_rows
    from .errors import LogitStoreError
    from .stream.batch import Batch
    from .stream.stream import Stream

__all__ = [
    "Batch",
    "Capture",
    "LogitStoreError",
    "Store",
    "Stream",
    "begin_store",
    "create_store",
    "digest_rows",
    "open_store",
]
_HOMES = {
    "Batch": "stream.batch",
    "Capture": "api",
    "LogitStoreError": "errors",
    "Store": "api",
    "Stream": "stream.stream",
    "begin_store": "api",
    "create_store": "api",
    "digest_rows": "digest",
    "open_store": "api",
}


def __getattr__(name: str) -> object:
    """Import a public name from its home on first use (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = globals()[name] = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    return value
