"""Sets of classes of a clustering: the sets, remarks about them, and the errors inside them."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ...storage.errors import some_of
from .text import pick, print_text, shorten_names

if TYPE_CHECKING:
    from ...pipeline.cluster.errors_inside import ErrorsInside


_MAX_NAMES = 20
"""Maximum number of classes that a line names."""


def print_clustering(record: Mapping[str, Any]) -> None:
    """Print a line a set, and the classes in no set."""
    teachers = " + ".join(record["teachers"]) or str(record["teacher"])
    verb = "confuse" if len(record["teachers"]) > 1 else "confuses"
    print_text(
        f"classes that {teachers} {verb} (clusters/{record['name']})",
        *(f"  {number}: {', '.join(members)}" for number, members in enumerate(record["sets"])),
        *([f"  in no set: {single_classes(record)}"] if record["single"] else []),
        *set_remarks(record["sets"]),
    )
    error = record["projection_error"]
    if isinstance(error, Mapping):
        print_text(
            f"columns projected into {record['dimensions']:,} dimensions: error of squared distances "
            f"{error['rms']:.1%} (root mean square), {error['largest']:.1%} at most, over "
            f"{error['classes']:,} classes that were also kept whole"
        )


def error_record(errors: "ErrorsInside | None") -> dict[str, Any] | None:
    """Return the errors inside sets, beside the share of random sets; None where none were counted."""
    names = "errors", "inside", "share", "random_share", "random_deviation", "draws"
    return None if errors is None else pick(errors, *names)


def errors_sentence(teachers: Collection[str], errors: "ErrorsInside", where: str) -> str:
    """Return the errors inside sets as a sentence. where: the rows that the errors were made on."""
    share = f"{errors.inside:,} of them ({errors.share:.1%})" if errors.errors else "none of them"
    makers = f"{' + '.join(teachers)} {'makes' if len(teachers) == 1 else 'make'}"
    spread = f" ± {errors.random_deviation:.1%}, {errors.draws} draws" if errors.draws else ""
    return (
        f"{makers} {errors.errors:,} errors on {where}; {share} lie inside a set, "
        f"random sets would hold {errors.random_share:.1%}{spread}"
    )


def set_remarks(sets: Sequence[Sequence[str]]) -> list[str]:
    """List equal sets, and classes in more than half of the sets.

    >>> for line in set_remarks([["a", "b"], ["a", "c"], ["a", "b"], ["a", "d"]]):
    ...     print(line)
    sets 0 and 2 are the same; try fewer clusters
    warning: class a is in all 4 sets. Rare classes lie close to every cluster centre; try --normalise to cluster correlations.
    """
    first: dict[tuple[str, ...], int] = {}
    remarks = []
    for number, members in enumerate(sets):
        other = first.setdefault(tuple(sorted(members)), number)
        if other != number:
            remarks.append(f"sets {other} and {number} are the same; try fewer clusters")
    counts = Counter(name for members in sets for name in members).most_common()
    common = [
        f"class {name} is in {'all' if count == len(sets) else f'{count} of'} {len(sets)} sets"
        for name, count in counts
        if 2 * count > len(sets) > 2
    ]
    if common:
        remarks.append(
            f"warning: {some_of(common, _MAX_NAMES)}. "
            "Rare classes lie close to every cluster centre; try --normalise to cluster correlations."
        )
    return remarks


def single_classes(record: Mapping[str, Any]) -> str:
    """Return the number of classes in no set, and the first of their names."""
    return f"{len(record['single']):,} ({shorten_names(record['single'])})"
