"""How do the results of an experiment, and the parts of a store, look to somebody who reads them?

What several commands print alike: the table of scores, the sets of classes, how far an encoded capture is from the
truth, where the store is and how large. Sizes come from the seals, so that no shard is read or even looked at.
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .output import print_table, print_text, printable

if TYPE_CHECKING:
    from ..pipeline.fidelity import Fidelity
    from ..pipeline.results import TableRow
    from ..storage.api import Store
    from ..storage.store import SealedPart

_SINGLE_SHOWN = 20
"""Classes in no set that a line names."""
_MEASURES = ("errors", "accuracy", "nll", "calibration_error", "parameters")


def format_bytes(size: int) -> str:
    """A number of bytes, to be read.

    >>> [format_bytes(size) for size in (0, 1023, 1536, 44_956_928, 3 << 40)]
    ['0 bytes', '1,023 bytes', '1.5 KiB', '42.9 MiB', '3.0 TiB']
    """
    if size < 1024:
        return f"{size:,} bytes"
    power = min(4, (size.bit_length() - 1) // 10)
    return f"{size / 1024**power:,.1f} {('KiB', 'MiB', 'GiB', 'TiB')[power - 1]}"


# Stores


def part_bytes(part: "SealedPart") -> int:
    """Bytes of a sealed part: its shards, as the seal has them, and the files beside them.

    Raises ManifestInvalid where one of these files is not there.
    """
    from ..storage.format import SEAL, SEAL_TABLE, invalid

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


def print_store(store: "Store") -> None:
    """The same as three lines."""
    print_text(f"store   {store.path}")
    print_text(f"size    {format_bytes(store_bytes(store))}")
    print_text(f"digest  {store.digest}")


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


def print_fidelity(records: Sequence[Mapping[str, Any]], *, source: str | None) -> None:
    """The same as a table.

    source: the capture that it was made from; None where it was made from the teacher's own logits.
    """
    source = None if source is None else printable(source)  # a store says it
    given = source or "the teacher"
    bounds = {"bound": "bound to the teacher", "bound_to_source": f"bound to {source}"}
    if source is None:
        del bounds["bound_to_source"]
    if all(record["bound"] is None for record in records):
        bounds = {}
    print_table(
        ["T", *bounds.values(), "max", "99.9th percentile", "mean"],
        [
            [f"{record['temperature']:g}"] + [_nats(record[key]) for key in (*bounds, "max", "p99.9", "mean")]
            for record in records
        ],
        title=f"KL to {given} as measured, in nats a row{', and what no row exceeds' if bounds else ''}",
    )


def _nats(value: float | None) -> str | None:
    return None if value is None else f"{value:.2e}"


# Clusterings


def clustering_record(store: "Store", name: str) -> dict[str, Any]:
    """The sets of a clustering, by names of classes, and how they were made.

    Raises ManifestInvalid for sets of what is no class.
    """
    from ..storage.reader import sets_of

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


def print_clustering(record: Mapping[str, Any]) -> None:
    """The same as a line a set, and the classes that are in none."""
    teachers = " + ".join(record["teachers"]) or str(record["teacher"])
    verb = "confuse" if len(record["teachers"]) > 1 else "confuses"
    print_text(printable(f"classes that {teachers} {verb} (clusters/{record['name']})"))
    for number, members in enumerate(record["sets"]):
        print_text(printable(f"  {number}: {', '.join(members)}"))
    if record["single"]:
        print_text(printable(f"  in no set: {single_classes(record)}"))
    for remark in set_remarks(record["sets"]):
        print_text(printable(remark))
    error = record["projection_error"]
    if isinstance(error, Mapping):
        print_text(
            f"columns projected into {record['dimensions']:,} dimensions: squared distances are wrong by "
            f"{error['rms']:.1%} (root mean square), {error['largest']:.1%} at most, among "
            f"{error['classes']:,} classes that were also kept whole"
        )


def set_remarks(sets: Sequence[Sequence[str]]) -> list[str]:
    """What is odd about some sets, a line each.

    >>> for line in set_remarks([["a", "b"], ["a", "c"], ["a", "b"], ["a", "d"]]):
    ...     print(line)
    sets 0 and 2 are the same: ask for fewer clusters
    in more than half of the sets: a (4 of 4); what has a small covariance is near to every centre: cluster correlations (normalise)
    """
    first: dict[tuple[str, ...], int] = {}
    remarks = []
    for number, members in enumerate(sets):
        other = first.setdefault(tuple(sorted(members)), number)
        if other != number:
            remarks.append(f"sets {other} and {number} are the same: ask for fewer clusters")
    counts = Counter(name for members in sets for name in members)
    common = [
        f"{name} ({count} of {len(sets)})" for name, count in counts.most_common() if 2 * count > len(sets)
    ]
    if common and len(sets) > 2:
        more = ", …" if len(common) > _SINGLE_SHOWN else ""
        remarks.append(
            f"in more than half of the sets: {', '.join(common[:_SINGLE_SHOWN])}{more}; what has a small covariance is near "
            "to every centre: cluster correlations (normalise)"
        )
    return remarks


def single_classes(record: Mapping[str, Any]) -> str:
    """The classes that are in no set: their number, and the first of their names."""
    single = record["single"]
    more = ", …" if len(single) > _SINGLE_SHOWN else ""
    return f"{len(single):,} ({', '.join(single[:_SINGLE_SHOWN])}{more})"


# Scores


def score_records(rows: Sequence["TableRow"]) -> list[dict[str, Any]]:
    """The table of scores: means, standard deviations over seeds, and every single score."""
    return [
        {
            "kind": row.kind,
            "name": row.name,
            "seeds": len(row.scores),
            "examples": row.scores[0].examples,
            **{measure: row.average(measure) for measure in _MEASURES},
            "spread": {measure: row.spread(measure) for measure in _MEASURES[:4]},
            "scores": list(row.scores),
        }
        for row in rows
    ]


def print_scores(rows: Sequence["TableRow"]) -> None:
    """The table of scores: students as mean ± standard deviation over their seeds."""
    examples = ", ".join(sorted({f"{score.examples:,}" for row in rows for score in row.scores}))
    columns = {
        "kind": [row.kind for row in rows],
        "model": [row.name for row in rows],
        "errors": _figures(rows, "errors", _count),
        "accuracy": _figures(rows, "accuracy", lambda value: f"{value:.2%}"),
        "NLL": _figures(rows, "nll", lambda value: f"{value:.4f}"),
        "calibration error": _figures(rows, "calibration_error", lambda value: f"{value:.4f}"),
    }
    figures = list(zip(*columns.values(), strict=True))
    seeds = [len(row.scores) if row.kind == "student" else None for row in rows]
    print_table(
        [*columns, "parameters", "seeds"],
        [
            [*cells, round(row.average("parameters")), number]
            for cells, row, number in zip(figures, rows, seeds, strict=True)
        ],
        title=f"{examples} labelled examples for evaluation; students: mean ± standard deviation over seeds",
    )


def _figures(rows: Sequence["TableRow"], measure: str, form: Callable[[float], str]) -> list[str]:
    """Cells of a measure, the means below one another."""
    means = [form(row.average(measure)) for row in rows]
    spreads = [row.spread(measure) for row in rows]
    if all(mean.endswith(".0") for mean in means) and all(map(math.isnan, spreads)):
        means = [mean[:-2] for mean in means]
    width = max(map(len, means), default=0)
    return [
        # A single count is whole; the blanks keep it below the units of the means.
        f"{mean[:-2] + '  ' if mean.endswith('.0') else mean:>{width}}"
        if math.isnan(spread)
        else f"{mean:>{width}} ± {form(spread)}"
        for mean, spread in zip(means, spreads, strict=True)
    ]


def _count(value: float) -> str:
    return f"{value:,.1f}"
