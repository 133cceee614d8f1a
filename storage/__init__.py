"""How do logits lie on a disk, and come back as what was written? numpy and Zarr's format; no torch.

The modules in the order of their levels; each imports only those before it (tests/packaging/test_layers.py):

    errors, progress   the tree of errors; how a library says how far it is
    codec              a chunk made smaller, and whole again
    digest, identity   which input a row belongs to; whether two things are made from the same
    system             what the operating system says, as errors that say what to do
    format             what the files of a store look like (docs/format-v1.md)
    grid               how a store is cut into blocks and chunks: integers
    layouts            which arrays a part has, and how each is cut
    shard              a block of one array as the bytes of one shard, and back
    order, pieces      in which order an epoch goes through the rows; which are left, and which a rank's
    batches | window   how that is cut into batches; windows in memory, read ahead
    encoding           what an encoding of logits is
    half | error_budget | top_k | divergence    the encodings, and how far from the truth each is
    encodings          which of them a user or a spec means
    files, probe       bytes under a name, once and for good; whether a file system is fit for that
    zarr_bytes, zarr_folder    what lies elsewhere, read through Zarr's stores: bytes, then the same folder
    lease, background  whether another writer is at work; writing while the next piece is encoded
    journal            commits, seals, the log of parts
    store, recovery    which parts there are, and whether each is what its seal says; mending what is not sealed
    part_reader | part_writer    rows of a sealed part, without trusting a byte of it; a part, block by block
    reader | writer              samples, captures, clusterings
    batch, inputs      what a stream gives at a time; inputs, checked to be what the teachers saw
    arguments          which arguments of a stream are refused
    stream | dask_view | verify | rebuild
    api | repair       open_store, create_store, Store, Capture; throwing away what is torn

The public names are looked up when they are first used: `logitstore --help` imports this package.
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
    """Import a public name from its home when it is first asked for (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = globals()[name] = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    return value
