"""Measures of the specialists on Omniglot, and their tables beside the paper's figures.

1. `agreement_with` compares a grouping of the classes with the alphabets by adjusted mutual information: 0 in
   expectation for a grouping by chance, 1 for the same groups.
2. `confusion_between` is the matrix whose clusters need labels: the counts of confusions between two classes.
3. `tables` combines the figures of some seeds: Markdown, mean ± standard deviation over the seeds.
"""

from collections.abc import Mapping, Sequence
from statistics import mean, stdev
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import adjusted_mutual_info_score

Figures = Mapping[str, Any]
"""The content of one seed's `results.json`."""

PAPER_COVERAGE: Final = {
    "0": (350037, 0, 0.0),
    "1": (141993, 1421, 3.4),
    "2": (67161, 1572, 7.4),
    "3": (38801, 1124, 8.8),
    "4": (26298, 835, 10.5),
    "5": (16474, 561, 11.1),
    "6": (10682, 362, 11.3),
    "7": (7376, 232, 12.8),
    "8": (4703, 182, 13.6),
    "9": (4706, 208, 16.6),
    "10 or more": (9082, 324, 14.1),
}
"""Hinton et al. 2015, table 4, JFT test set: examples, change in the number correct, relative change in percent."""
PAPER_ACCURACY: Final = {"generalist": (43.1, 25.0), "combined": (45.9, 26.1)}
"""Table 3, JFT development set, percent: conditional accuracy, accuracy."""
RANDOM_DRAWS: Final = 20


def agreement_with(truth: NDArray[np.int64], groups: NDArray[np.int64]) -> float:
    """Compute the adjusted mutual information of two groupings of the classes: (class,) each."""
    return float(adjusted_mutual_info_score(truth, groups))


def agreement_by_chance(
    truth: NDArray[np.int64], groups: NDArray[np.int64], seed: int = 0
) -> tuple[float, float]:
    """Compute the same of groups of these sizes with random classes: mean and standard deviation."""
    random = np.random.default_rng(seed)
    found = [agreement_with(truth, random.permutation(groups)) for _ in range(RANDOM_DRAWS)]
    return mean(found), stdev(found)


def random_sets(sets: NDArray[np.int64], num_classes: int, random: np.random.Generator) -> NDArray[np.int64]:
    """Draw as many sets of the same size, of random classes: (set, member), ascending."""
    rows = [np.sort(random.choice(num_classes, sets.shape[1], replace=False)) for _ in range(len(sets))]
    return np.stack(rows).astype(np.int64)


def confusion_between(
    labels: NDArray[np.int64], predictions: NDArray[np.int64], num_classes: int
) -> NDArray[np.float64]:
    """Count the confusions of two classes, (class, class), symmetric, 0 on the diagonal.

    >>> confusion_between(np.array([0, 0, 1]), np.array([1, 0, 0]), 2).tolist()
    [[0.0, 2.0], [2.0, 0.0]]
    """
    counts = np.zeros((num_classes, num_classes))
    np.add.at(counts, (labels, predictions), 1)
    np.fill_diagonal(counts, 0)
    return counts + counts.T


def share_inside(
    sets: NDArray[np.int64], labels: NDArray[np.int64], predictions: NDArray[np.int64], num_classes: int
) -> float:
    """Share of the errors with label and prediction in one set; 0 if there are no errors."""
    together = np.zeros((num_classes, num_classes), bool)
    for members in sets:
        together[np.ix_(members, members)] = True
    wrong = labels != predictions
    return float(together[labels[wrong], predictions[wrong]].mean()) if wrong.any() else 0.0


# Tables


def tables(seeds: Sequence[Figures]) -> str:
    """Format all tables, as Markdown."""
    parts = [_clusters(seeds), _accuracies(seeds), _coverage(seeds), _within(seeds), _cost(seeds)]
    return "\n\n".join(parts) + "\n"


def spread(values: Sequence[float], form: str = ".2f", scale: float = 1.0) -> str:
    """Format mean ± standard deviation (n - 1) over seeds; the mean alone for one seed.

    >>> spread([0.5, 0.7], ".1f", 100), spread([3.0])
    ('60.0 ± 14.1', '3.00')
    """
    scaled = [value * scale for value in values]
    text = format(mean(scaled), form)
    return f"{text} ± {format(stdev(scaled), form.lstrip('+'))}" if len(scaled) > 1 else text


def markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Format a table; every column but the first is aligned to the right."""
    lines = [columns, ["---", *["---:"] * (len(columns) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _clusters(seeds: Sequence[Figures]) -> str:
    rows = []
    for name in seeds[0]["clusters"]:
        found = [figures["clusters"][name] for figures in seeds]
        agreement = spread([one["ami"] for one in found], ".3f")
        rows.append([name, agreement, spread([one["inside"] for one in found], ".1f", 100)])
    return "### Clusters against the alphabets\n\n" + markdown(
        ["classes grouped by", "AMI with the alphabets", "test errors inside a set, %"], rows
    )


def _of_all(seeds: Sequence[Figures], key: str) -> list[str]:
    """Return the lines that every seed has: the seeds may have finished different parts."""
    return [name for name in seeds[0][key] if all(name in figures[key] for figures in seeds)]


def _accuracies(seeds: Sequence[Figures]) -> str:
    rows = []
    for name in _of_all(seeds, "captures"):
        found = [figures["captures"][name] for figures in seeds]
        cells = [spread([one[key] for one in found], ".2f", 100) for key in ("accuracy", "top_5")]
        cells.append(spread([one["nll"] for one in found], ".4f"))
        cells.append(spread([one["conditional"] for one in found], ".2f", 100))
        conditional, accuracy = PAPER_ACCURACY.get(name, ("", ""))
        rows.append([name, *cells, str(accuracy), str(conditional)])
    return "### Accuracy on the test drawers\n\n" + markdown(
        [
            "",
            "accuracy, %",
            "top-5, %",
            "NLL, nats",
            "conditional, %",
            "paper: accuracy",
            "paper: conditional",
        ],
        rows,
    )


def _coverage(seeds: Sequence[Figures]) -> str:
    met = {row["covering"] for figures in seeds for row in figures["coverage"]}
    by_seed = [{row["covering"]: row for row in figures["coverage"]} for figures in seeds]
    none = {"examples": 0, "change": 0, "before": 0, "after": 0}
    rows = []
    for covering in [name for name in PAPER_COVERAGE if name in met]:
        lines = [table.get(covering, none) for table in by_seed]
        before = sum(line["before"] for line in lines)
        change = sum(line["change"] for line in lines)
        examples, theirs, relative = PAPER_COVERAGE[covering]
        rows.append(
            [
                covering,
                spread([line["examples"] for line in lines], ",.0f"),
                spread([line["change"] for line in lines], "+.1f"),
                f"{100 * change / before:+.1f} %" if before else "—",
                f"{examples:,}",
                f"{theirs:+,}",
                f"{relative:+.1f} %",
            ]
        )
    return "### By the number of specialists that cover the correct class\n\n" + markdown(
        ["covering", "examples", "change", "relative, all seeds", "paper: examples", "change", "relative"],
        rows,
    )


def _within(seeds: Sequence[Figures]) -> str:
    rows = []
    for figures in seeds:
        own = [(one["specialist"] - one["generalist"]) for one in figures["specialists"]]
        rows.append(
            [
                f"seed {figures['seed']}",
                str(len(own)),
                f"{100 * mean(one['generalist'] for one in figures['specialists']):.2f}",
                f"{100 * mean(one['specialist'] for one in figures['specialists']):.2f}",
                str(sum(one > 0 for one in own)),
                str(sum(one < 0 for one in own)),
            ]
        )
    return (
        "### Each specialist within its own set (conditional accuracy, mean over specialists)\n\n"
        + markdown(["", "specialists", "generalist, %", "specialist, %", "better", "worse"], rows)
    )


def _cost(seeds: Sequence[Figures]) -> str:
    rows = []
    for name in _of_all(seeds, "cost"):
        found = [figures["cost"][name] for figures in seeds]
        passes = spread([one["passes"] for one in found])
        rows.append(
            [
                name,
                f"{found[0]['parameters']:,}",
                passes,
                spread([one["seconds"] for one in found], ",.0f"),
            ]
        )
    return "### Cost\n\n" + markdown(
        ["", "parameters", "forward passes an image", "seconds of training"], rows
    )
