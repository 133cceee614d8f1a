"""The public names of logitstore.

    cache, cluster, distill     the three stages, with networks and data sets in hand
    load_student                a trained student as a network
    evaluate                    errors, likelihood and calibration of a network
    copy_store, find_stores     a store in another place; the stores under a folder or a URL
    concat_stores               the rows of several stores in one
    remove_parts                captures and clusterings that nobody wants any more
    export_logits               one capture as a file of parquet, safetensors or npy
    import_logits               logits that lie in such files, as a capture
    write_card                  STORE.md, what a store is, for people
    open_store, create_store    a store to read, or to fill from your own inference loop
    Store, Capture              the store, and the logits of one teacher
    FeatureLogits, LinearHead   logits as the inputs of a teacher's last layer, and that layer
    digest_rows                 the digests that identify the inputs of a store's rows
    LogitStoreError             the base of every error that is raised on purpose

Training loops take `TorchStream` and the losses from `logitstore.pipeline`. Names are imported on first use, so
`import logitstore` loads no library.
"""

from pkgutil import extend_path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .cli.calls import cache, cluster, distill, evaluate
    from .cli.trained import load_student
    from .pipeline.exchange.export import export_logits
    from .pipeline.exchange.import_files import import_logits
    from .storage.api import Capture, Store, create_store, open_store
    from .storage.digest import digest_rows
    from .storage.encodings.feature_logits import FeatureLogits, LinearHead
    from .storage.errors import LogitStoreError
    from .storage.sharing.card_file import write_card
    from .storage.sharing.catalog import find_stores
    from .storage.sharing.concatenating import concat_stores
    from .storage.sharing.copying import copy_store
    from .storage.sharing.removing import remove_parts

__all__ = [
    "Capture",
    "FeatureLogits",
    "LinearHead",
    "LogitStoreError",
    "Store",
    "__version__",
    "cache",
    "cluster",
    "concat_stores",
    "copy_store",
    "create_store",
    "digest_rows",
    "distill",
    "evaluate",
    "export_logits",
    "find_stores",
    "import_logits",
    "load_student",
    "open_store",
    "remove_parts",
    "write_card",
]

__version__ = "0.1.0"

# Python started in the root of a checkout finds this folder before the installed package. The sub-packages
# are still found beside the installed one.
__path__ = extend_path(__path__, __name__)

_HOMES = {
    "Capture": "storage.api",
    "FeatureLogits": "storage.encodings.feature_logits",
    "LinearHead": "storage.encodings.feature_logits",
    "LogitStoreError": "storage.errors",
    "Store": "storage.api",
    "cache": "cli.calls",
    "cluster": "cli.calls",
    "concat_stores": "storage.sharing.concatenating",
    "copy_store": "storage.sharing.copying",
    "create_store": "storage.api",
    "digest_rows": "storage.digest",
    "distill": "cli.calls",
    "evaluate": "cli.calls",
    "export_logits": "pipeline.exchange.export",
    "find_stores": "storage.sharing.catalog",
    "import_logits": "pipeline.exchange.import_files",
    "load_student": "cli.trained",
    "open_store": "storage.api",
    "remove_parts": "storage.sharing.removing",
    "write_card": "storage.sharing.card_file",
}


def __getattr__(name: str) -> object:
    """Import a public name from its home on first use (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = globals()[name] = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    return value


def __dir__() -> list[str]:
    return list(__all__)
