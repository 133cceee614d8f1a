"""How do the results of an experiment, and the parts of a store, look to somebody who reads them?

What several commands print alike: the table of scores, the sets of classes, how far an encoded capture is from the
truth, where the store is and how large. Sizes come from the seals, so that no shard is read or even looked at.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from .text import print_text, printable

_SINGLE_SHOWN = 20
"""Classes in no set that a line names."""


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
