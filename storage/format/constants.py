"""Constants of formats 1.0 and 1.1: names, limits and dtypes."""

from collections.abc import Mapping
from typing import Final

FORMAT_VERSION: Final = "1.0"
"""Version of the root, and of every part but those of `VERSIONS`: their bytes are those of format 1.0."""
NEWEST_VERSION: Final = "1.1"
"""The last version of the format that is known here."""
CAPTURE, ERROR_BUDGET, TOP_K, TRANSFORM = "capture", "error-budget", "top-k", "transform"
INPUT_FILES: Final = "input-files"
"""Form of samples that keep each input as the bytes of its file."""
VERSIONS: Final[Mapping[str, str]] = {TRANSFORM: "1.1", INPUT_FILES: "1.1"}
"""Version of the parts of a form that format 1.0 does not have."""
FEATURES: Final = frozenset({ERROR_BUDGET, TOP_K, TRANSFORM, INPUT_FILES})
"""The `required_features` that this version of logitstore can read."""
ROOT_METADATA: Final = "zarr.json"
GROUPS: Final = ("teachers", "clusters")
"""Groups that every store has from the start: the order of its parts leaves no trace in them."""
SAMPLES: Final = "samples"
PRIVATE: Final = "__logitstore__"
"""The folder of our own files. Zarr reserves names with two leading underscores: it is no node of the hierarchy."""
SPEC: Final = f"{PRIVATE}/spec.json"
SEAL: Final = f"{PRIVATE}/seal.json"
SEAL_TABLE: Final = f"{PRIVATE}/seal.bin"
COMMITS: Final = f"{PRIVATE}/commits"
STAGING: Final = f"{PRIVATE}/tmp"
LOCK: Final = f"{PRIVATE}/lock"
LOG: Final = f"{PRIVATE}/log"
CARD_FILE: Final = "STORE.md"
"""The card of a store for people. No reader needs it, and no seal lists it: it is the only file that is replaced."""
LOG_AHEAD: Final = 6
"""Records of the log, from 0, that a remote store is asked for at once: so many have few requests, and one wait."""

# Limits of readers: the most that a store may state. docs/format-v1.md has the same table under this name.

MAX_JSON_BYTES: Final = 1 << 20
"""Of a JSON file."""
MAX_JSON_DEPTH: Final = 32
"""Levels of lists and objects in a JSON file, the outermost counted."""
MAX_SEAL_TABLE_BYTES: Final = 64 << 20
"""Of a part's seal.bin; it limits the blocks that a reader walks through, too."""
MAX_PARTS: Final = 4096
"""Of a store: records of its log."""
MAX_ROWS: Final = 1 << 40
"""Of a store."""
MAX_CLASSES: Final = 1 << 20
"""Of a store: a reader makes a list of their names."""
MAX_NAMES_BYTES: Final = 64 << 20
"""Of the names of all classes, as wide as the longest."""
MAX_CARD_CHARACTERS: Final = 4096
"""Of each text of a store's card."""
MAX_SET_MEMBERS: Final = 1 << 22
"""Of a clustering: classes of all its sets together."""
MAX_BASIS_BYTES: Final = 1 << 30
"""Of the basis of a capture in the transform encoding: a reader holds it whole."""
MAX_TEMPERATURES: Final = 16
"""Of a capture in the transform encoding: those at which its error is recorded."""
MAX_REFINED: Final = 120
"""Of a row in the transform encoding that is not escaped: halvings of its squared step."""
MAX_BLOCKS: Final = 1 << 20
"""Of one view."""
MAX_VIEWS: Final = 1 << 16
"""Of a capture."""
MAX_ARRAYS: Final = 32
"""Of a part."""
MAX_DIMENSIONS: Final = 8
"""Of an array."""
MAX_SHARD_BYTES: Final = 1 << 30
"""Of a shard before its codec."""
MAX_CHUNK_BYTES: Final = 64 << 20
"""Of an inner chunk, or a chunk of a small array, before its codec; so also of a single row."""
MAX_CHUNKS_PER_SHARD: Final = 1 << 20
"""Inner chunks of a shard: the entries of its index."""
MAX_SMALL_CHUNKS: Final = 1 << 14
"""Chunks of a small array: more do not fit into a seal."""
DTYPES: Final[Mapping[str, str]] = {
    "float16": "<f2",
    "float32": "<f4",
    "uint8": "|u1",
    "uint16": "<u2",
    "uint32": "<u4",
    "uint64": "<u8",
    "int32": "<i4",
    "int64": "<i8",
}
"""Dtypes that a store may hold: Zarr's name -> numpy's."""
TEMPERATURES: Final = (1.0, 2.0, 4.0, 8.0, 20.0)
"""Temperatures at which an encoded capture records its error; one in the transform encoding has its own."""
INPUT_DTYPES: Final = ("uint8", "int64", "float16", "float32")
"""Dtypes of the inputs in `samples`."""
