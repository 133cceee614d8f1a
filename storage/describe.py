"""Descriptions of a store and its parts, from metadata alone, as records that JSON can hold.

Log, seals and specs are read and checked, and the recorded error and refinement of encoded captures; no other shard is opened.
Libraries are imported on use: the command line imports this module for its help.
"""

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .api import Store
    from .errors import LogitStoreError
    from .parts.fidelity import Fidelity
    from .parts.sealed_part import SealedPart

_MOST_NAME = 256
"""Characters of a class name that a record holds."""
_MOST_SHOWN = 1 << 26
"""Characters of names in the sets of a clustering that a record holds."""


def describe(
    store: "Store | str | os.PathLike[str]", *, expect: str | None = None, follow_links: bool = False
) -> "tuple[dict[str, Any], list[LogitStoreError]]":
    """Describe a store; return the record that `inspect --json` prints, and the errors of damaged parts.

    store: an opened store, or a location, its expected digest and `follow_links` for `open_store`.
    A part that cannot be read is listed under "unreadable" with the reason. One that needs a newer logitstore is no
    error.
    """
    from .api import Store, open_store
    from .errors import LogitStoreError, UnsupportedFeature
    from .format.constants import FORMAT_VERSION, INPUT_FILES, SAMPLES, VERSIONS

    store = store if isinstance(store, Store) else open_store(store, expect=expect, follow_links=follow_links)
    samples: dict[str, Any] | None = None
    card: dict[str, str] = {}
    class_names: list[str] | None = None
    captures, clusterings, unsealed, unreadable = [], [], [], []
    errors: list[LogitStoreError] = []
    for record in store.root.records:
        group, _, name = record.part.partition("/")
        try:
            part = store.root.part(record.part)
            about = {"digest": part.digest, "bytes": part_bytes(part)}
            if group == SAMPLES:
                samples = {**about, **_samples(part)}
                class_names, card = shown_names(store.class_names), store.card
            elif group == "teachers":
                unread = {"divergence": None, "transform": None}
                captures.append({"name": name, **about, **_capture(store, name), **unread})
                captures[-1]["divergence"] = _divergence(store, name)
                captures[-1]["transform"] = _transform(store, name)
            else:
                clusterings.append({**clustering_record(store, name), **about})
        except LogitStoreError as error:
            unreadable.append({"part": record.part, "reason": str(error)})
            if not isinstance(error, UnsupportedFeature):
                errors.append(error)
    for name in store.unsealed():
        try:
            begun = store.begun(name)
            card = store.card if name == SAMPLES else card
        except LogitStoreError as error:
            unreadable.append({"part": name, "reason": str(error)})
            errors.append(error)
        else:
            if begun is not None:
                unsealed.append({"part": name, "blocks_done": begun.blocks_done, "blocks": begun.blocks})
    keeps_files = samples is not None and "files" in (samples["inputs"] or {})
    forms = [INPUT_FILES] * keeps_files + [capture["encoding"] for capture in captures]
    description = {
        "path": store.path,
        "format_version": max([FORMAT_VERSION, *(VERSIONS.get(form, "") for form in forms)]),
        "digest": store.digest,
        "card": card or None,
        "num_rows": store.num_rows,
        "num_classes": store.num_classes,
        "class_names": class_names,
        "block_rows": store.block_rows,
        "num_blocks": store.grid.num_blocks,
        "bytes": sum(part["bytes"] for part in (samples, *captures, *clusterings) if part is not None),
        "samples": samples,
        "captures": captures,
        "clusterings": clusterings,
        "unsealed": unsealed,
        "removed": sorted(store.root.gone),
        "unreadable": unreadable,
    }
    return description, errors


def _samples(part: "SealedPart") -> dict[str, Any]:
    inputs, files = part.layouts.get("input"), part.layouts.get("file")
    stored: dict[str, Any] | None = None
    if inputs is not None:
        stored = {"dtype": inputs.dtype, "shape": inputs.row_shape}
    elif files is not None:
        stored = {"files": True, "most_bytes": files.row_shape[0]}
    return {"inputs": stored, "has_ids": "id" in part.layouts, "identity": part.spec.identity}


def _capture(store: "Store", name: str) -> dict[str, Any]:
    from .format.constants import TRANSFORM

    capture = store.teachers[name]
    views, rows, columns = capture.shape
    return {
        "row_bytes": capture.part.table.total_bytes() / (views * rows),
        "views": views,
        "classes": columns,
        "encoding": capture.encoding.kind,
        "dtype": capture.part.layouts["codes" if capture.part.form == TRANSFORM else "logits"].dtype,
        "derived_from": capture.provenance.get("derived_from"),
        "provenance": capture.provenance,
    }


def _divergence(store: "Store", name: str) -> list[dict[str, Any]] | None:
    """Return the KL of an encoded capture by temperature; None for float16 and float32."""
    from .parts.fidelity import fidelity

    return fidelity_records(fidelity(store.teachers[name])) or None


def _transform(store: "Store", name: str) -> dict[str, Any] | None:
    """Return the components and refinements of a capture in the transform encoding; None for another one."""
    from dataclasses import asdict

    from .parts.refinement import quantile, refinement

    found = refinement(store.teachers[name])
    if found is None:
        return None
    shares = {"min": 0.0, "p10": 0.1, "median": 0.5, "p90": 0.9, "max": 1.0}
    return asdict(found) | {f"refine_{name}": quantile(found.refine, share) for name, share in shares.items()}


def part_bytes(part: "SealedPart") -> int:
    """Return the bytes of a sealed part: its shards, by the seal, and the files beside them.

    Raises ManifestInvalid if one of these files is missing.
    """
    from .format.constants import SEAL, SEAL_TABLE
    from .format.documents import invalid

    size = part.table.total_bytes() if part.seal.arrays else 0
    for key in [*part.seal.files, SEAL, *([SEAL_TABLE] if part.seal.table_sha256 else [])]:
        try:
            size += part.folder.read_range(key, 0, 0)[1]
        except FileNotFoundError:
            raise invalid(str(part.folder.path / key), "a file that the seal lists", "no file") from None
    return size


def store_bytes(store: "Store") -> int:
    """Return the bytes of all sealed parts of a store."""
    return sum(part_bytes(store.root.part(record.part)) for record in store.root.records)


def store_record(store: "Store") -> dict[str, Any]:
    """Return location, size and digest of a store."""
    return {"path": store.path, "bytes": store_bytes(store), "digest": store.digest}


def fidelity_records(rows: "Sequence[Fidelity]") -> list[dict[str, Any]]:
    """Return the KL of an encoded capture in nats, a record a temperature."""
    from dataclasses import asdict

    names = {"p999": "p99.9"}
    return [{names.get(key, key): value for key, value in asdict(row).items()} for row in rows]


def clustering_record(store: "Store", name: str) -> dict[str, Any]:
    """Return the sets of a clustering, by names of classes, and how they were made.

    Raises ManifestInvalid for a set that holds no class.
    """
    import numpy as np

    from .format.documents import beyond
    from .parts.clusterings import ClusteringReader

    clustering = ClusteringReader(store.root, name)
    sets, names = clustering.sets, shown_names(store.class_names)
    where = f"{clustering.part.folder.path}/sets"
    if (shown := int(np.array([len(one) for one in names])[sets].sum())) > _MOST_SHOWN:
        raise beyond(where, _MOST_SHOWN, "characters of names in all sets", shown)
    inside = set(sets.ravel().tolist())
    return {
        "name": name,
        "digest": clustering.part.digest,
        **clustering.about,
        "sets": [[names[c] for c in members] for members in sets.tolist()],
        "single": [names[c] for c in range(store.num_classes) if c not in inside],
    }


def shown_names(names: Sequence[str]) -> list[str]:
    """Shorten names that are longer than any that people give.

    >>> shown_names(["oak", "x" * 1000])[1][-27:]
    'xxxxxxx… (1,000 characters)'
    """
    most = _MOST_NAME
    return [name if len(name) <= most else f"{name[:most]}… ({len(name):,} characters)" for name in names]
