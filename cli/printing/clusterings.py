"""Printing of clusterings: the sets of classes, and remarks about them."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .text import print_text, printable

if TYPE_CHECKING:
    from ...pipeline.cluster.errors_inside import ErrorsInside


_SINGLE_SHOWN = 20
"""Maximum number of classes that a line names."""


def print_clustering(record: Mapping[str, Any]) -> None:
    """Print a line a set, and the classes in no set."""
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
            f"columns projected into {record['dimensions']:,} dimensions: error of squared distances "
            f"{error['rms']:.1%} (root mean square), {error['largest']:.1%} at most, over "
            f"{error['classes']:,} classes that were also kept whole"
        )


def error_record(errors: "ErrorsInside | None") -> dict[str, Any] | None:
    """Return how many errors lie inside sets, beside the share of random sets; None where none were counted."""
    if errors is None:
        return None
    return {
        "errors": errors.errors,
        "inside": errors.inside,
        "share": errors.share,
        "random_share": errors.random_share,
        "random_deviation": errors.random_deviation,
        "draws": errors.draws,
    }


def errors_sentence(teachers: Collection[str], errors: "ErrorsInside", where: str) -> str:
    """Return the same as a sentence. where: the rows that the errors were made on."""
    share = f"{errors.inside:,} of them ({errors.share:.1%})" if errors.errors else "none of them"
    who = f"{' + '.join(teachers)} {'makes' if len(teachers) == 1 else 'make'}"
    spread = f" ± {errors.random_deviation:.1%}, {errors.draws} draws" if errors.draws else ""
    return printable(
        f"{who} {errors.errors:,} errors on {where}; {share} lie inside a set, "
        f"random sets would hold {errors.random_share:.1%}{spread}"
    )


def set_remarks(sets: Sequence[Sequence[str]]) -> list[str]:
    """List remarks about sets, a line each.

    >>> for line in set_remarks([["a", "b"], ["a", "c"], ["a", "b"], ["a", "d"]]):
    ...     print(line)
    sets 0 and 2 are the same: ask for fewer clusters
    warning: a (4 of 4) in more than half of the sets; rare classes lie close to every centre: try --normalise
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
            f"warning: {', '.join(common[:_SINGLE_SHOWN])}{more} in more than half of the sets; "
            "rare classes lie close to every centre: try --normalise"
        )
    return remarks


def single_classes(record: Mapping[str, Any]) -> str:
    """Return the number of classes in no set, and the first of their names."""
    single = record["single"]
    more = ", …" if len(single) > _SINGLE_SHOWN else ""
    return f"{len(single):,} ({', '.join(single[:_SINGLE_SHOWN])}{more})"
