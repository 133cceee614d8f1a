"""Printing of clusterings: the sets of classes, and remarks about them."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from .text import print_text, printable

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
