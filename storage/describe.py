"""The description of a store that `logitstore inspect` prints, from metadata alone."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .api import Store
    from .errors import LogitStoreError
    from .parts.fidelity import Fidelity
    from .parts.sealed_part import SealedPart


def describe(store: "Store", damaged: "list[LogitStoreError] | None" = None) -> dict[str, Any]:
    """Everything that the metadata of a store say, as `inspect --json` prints it.

    damaged: a list to which the errors of parts that are damaged, or refused, are added.
    """
    from .errors import LogitStoreError, UnsupportedFeature
    from .format.constants import FORMAT_VERSION, SAMPLES

    root = store.root
    samples: dict[str, Any] | None = None
    class_names: list[str] | None = None
    captures, clusterings, unreadable = [], [], []
    failed: list[LogitStoreError] = [] if damaged is None else damaged
    for record in root.records:
        group, _, name = record.part.partition("/")
        try:
            part = root.part(record.part)
            about = {"digest": part.digest, "bytes": part_bytes(part)}
            if group == SAMPLES:
                samples = {**about, **_samples(part)}
                class_names = store.class_names
            elif group == "teachers":
                captures.append({"name": name, **about, **_capture(store, name), "divergence": None})
                captures[-1]["divergence"] = _divergence(store, name)
            else:
                clusterings.append({**clustering_record(store, name), **about})
        except LogitStoreError as error:
            unreadable.append({"part": record.part, "reason": str(error)})
            if not isinstance(error, UnsupportedFeature):
                failed.append(error)
    unsealed = []
    for name in store.unsealed():
        try:
            begun = root.begun(name)
        except LogitStoreError as error:
            unreadable.append({"part": name, "reason": str(error)})
            failed.append(error)
            continue
        if begun is not None:
            unsealed.append({"part": name, "blocks_done": begun.blocks_done, "blocks": begun.blocks})
    parts = [samples, *captures, *clusterings]
    return {
        "path": store.path,
        "format_version": FORMAT_VERSION,
        "digest": store.digest,
        "num_rows": store.num_rows,
        "num_classes": store.num_classes,
        "class_names": class_names,
        "block_rows": store.block_rows,
        "num_blocks": root.grid.num_blocks,
        "bytes": sum(part["bytes"] for part in parts if part is not None),
        "samples": samples,
        "captures": captures,
        "clusterings": clusterings,
        "unsealed": unsealed,
        "unreadable": unreadable,
    }


def _samples(part: "SealedPart") -> dict[str, Any]:
    inputs = part.layouts.get("input")
    stored = None if inputs is None else {"dtype": inputs.dtype, "shape": inputs.row_shape}
    return {"inputs": stored, "has_ids": "id" in part.layouts, "identity": part.spec.identity}


def _capture(store: "Store", name: str) -> dict[str, Any]:
    capture = store.teachers[name]
    views, _, columns = capture.shape
    return {
        "views": views,
        "classes": columns,
        "encoding": capture.encoding.kind,
        "dtype": capture.part.layouts["logits"].dtype,
        "derived_from": capture.provenance.get("derived_from"),
        "provenance": capture.provenance,
    }


def _divergence(store: "Store", name: str) -> list[dict[str, Any]] | None:
    """KL of an encoded capture by temperature, bounded and measured; None of one in float16 or float32."""
    from .encodings.floats import FLOATS

    capture = store.teachers[name]
    if capture.encoding.kind in FLOATS:
        return None
    from .parts.fidelity import fidelity

    return fidelity_records(fidelity(capture))


# Stores


def part_bytes(part: "SealedPart") -> int:
    """Bytes of a sealed part: its shards, as the seal has them, and the files beside them.

    Raises ManifestInvalid where one of these files is not there.
    """
    from .format.constants import SEAL, SEAL_TABLE
    from .format.documents import invalid

    files = 0
    for key in [*part.seal.files, SEAL, *([SEAL_TABLE] if part.seal.table_sha256 else [])]:
        try:
            files += part.folder.read_range(key, 0, 0)[1]
        except FileNotFoundError:
            raise invalid(str(part.folder.path / key), "a file that the seal lists", "no file") from None
    return files + (part.table.total_bytes() if part.seal.arrays else 0)


def store_bytes(store: "Store") -> int:
    """Bytes of all sealed parts of a store."""
    return sum(part_bytes(store.root.part(record.part)) for record in store.root.records)


def store_record(store: "Store") -> dict[str, Any]:
    """Where a store is, how large, and what identifies its content."""
    return {"path": store.path, "bytes": store_bytes(store), "digest": store.digest}


# Encoded captures


def fidelity_records(found: "Sequence[Fidelity]") -> list[dict[str, Any]]:
    """How far an encoded capture is from what it was made from, in nats, a record a temperature."""
    return [
        {
            "temperature": one.temperature,
            "bound": one.bound,
            "bound_to_source": one.bound_to_source,
            "max": one.max,
            "p99.9": one.p999,
            "mean": one.mean,
        }
        for one in found
    ]


# Clusterings


def clustering_record(store: "Store", name: str) -> dict[str, Any]:
    """The sets of a clustering, by names of classes, and how they were made.

    Raises ManifestInvalid for sets of what is no class.
    """
    from .parts.reader import sets_of

    part = store.clustering(name)
    identity, notes = part.spec.identity, part.spec.notes
    names = store.class_names
    sets = sets_of(part, store.num_classes)
    inside = set(sets.ravel().tolist())
    capture, captures = identity.get("capture"), identity.get("captures")
    teacher = capture.get("name") if isinstance(capture, Mapping) else None
    shares: dict[str, Any] = {teacher: 1.0} if teacher is not None else {}
    if isinstance(captures, Mapping):
        shares = {one: about.get("share") for one, about in captures.items() if isinstance(about, Mapping)}
    return {
        "name": name,
        "digest": part.digest,
        "teacher": teacher,
        "teachers": shares,
        "temperature": identity.get("temperature"),
        "algorithm": identity.get("algorithm"),
        "normalise": bool(identity.get("normalise")),
        "disjoint": bool(identity.get("disjoint")),
        "dimensions": identity.get("dimensions"),
        "inertia": notes.get("inertia"),
        "projection_error": notes.get("projection_error"),
        "sets": [[names[c] for c in members] for members in sets.tolist()],
        "single": [names[c] for c in range(store.num_classes) if c not in inside],
    }
