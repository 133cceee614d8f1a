"""Records and tables of the scores of captures, and of the change by specialists.

Percentages are of examples. A change is in examples, which shows how few they are.
"""

import math
from typing import TYPE_CHECKING, Any

from .text import print_table, print_text, printable

if TYPE_CHECKING:
    from ...pipeline.evaluate.captures import CaptureScores, Compared
    from ...pipeline.evaluate.coverage import Conditional


def capture_records(scores: "CaptureScores") -> dict[str, Any]:
    """Return all scores as records for JSON."""
    return {
        "captures": [
            {
                "name": name,
                "examples": metrics.rows,
                "errors": metrics.errors,
                "accuracy": metrics.accuracy,
                "top_k": metrics.top_k,
                "top_k_accuracy": metrics.top_k_accuracy,
                "nll": metrics.nll,
                "calibration_error": metrics.calibration_error,
            }
            for name, metrics in scores.metrics.items()
        ],
        "comparisons": [_comparison_record(compared) for compared in scores.compared],
    }


def _comparison_record(compared: "Compared") -> dict[str, Any]:
    return {
        "generalist": compared.comparison.generalist,
        "combined": compared.comparison.combined,
        "sets": len(compared.comparison.sets),
        "special_classes": compared.special,
        "conditional": {
            "before": _conditional_record(compared.before),
            "after": _conditional_record(compared.after),
        },
        "coverage": [
            {
                "covering": row.label,
                "examples": row.examples,
                "before": row.before,
                "after": row.after,
                "change": row.change,
                "relative": row.relative,
            }
            for row in compared.coverage.rows()
        ],
        "specialists": [
            {
                "name": one.name,
                "classes": one.classes,
                "generalist": _conditional_record(one.generalist),
                "specialist": _conditional_record(one.specialist),
            }
            for one in compared.specialists
        ],
    }


def _conditional_record(scores: "Conditional") -> dict[str, Any]:
    return {"examples": scores.examples, "correct": scores.correct, "accuracy": scores.accuracy}


def print_captures(scores: "CaptureScores") -> None:
    """Print all scores as tables."""
    examples = ", ".join(sorted({f"{metrics.rows:,}" for metrics in scores.metrics.values()}))
    top = max((metrics.top_k for metrics in scores.metrics.values()), default=0)
    print_table(
        ["capture", "errors", "accuracy", f"top-{top}", "NLL", "calibration error"],
        [
            [
                name,
                metrics.errors,
                f"{metrics.accuracy:.2%}",
                f"{metrics.top_k_accuracy:.2%}",
                f"{metrics.nll:.4f}",
                f"{metrics.calibration_error:.4f}",
            ]
            for name, metrics in scores.metrics.items()
        ],
        title=f"{examples} labelled rows",
    )
    for compared in scores.compared:
        print_text()
        _print_comparison(compared)


def _print_comparison(compared: "Compared") -> None:
    comparison = compared.comparison
    before, after = compared.before, compared.after
    print_text(
        printable(
            f"{comparison.combined} against {comparison.generalist}: {len(comparison.sets)} sets, "
            f"{compared.special} special classes; conditional accuracy {_share(before)} -> {_share(after)} "
            f"({before.examples:,} examples)"
        )
    )
    total = compared.coverage.total
    rows = [(row.label, row) for row in compared.coverage.rows()] + [("all", total)]
    print_table(
        ["specialists covering the class", "examples", "right before", "right after", "change", "relative"],
        [
            [label, row.examples, row.before, row.after, f"{row.change:+,}", _signed(row.relative)]
            for label, row in rows
        ],
    )
    if compared.specialists:
        print_text()
        print_table(
            ["specialist", "classes", "examples", "generalist", "specialist"],
            [
                [
                    one.name,
                    one.classes,
                    one.generalist.examples,
                    _share(one.generalist),
                    _share(one.specialist),
                ]
                for one in compared.specialists
            ],
            title="examples of a specialist's own classes, with only those to choose from",
        )


def _share(scores: "Conditional") -> str:
    return "—" if math.isnan(scores.accuracy) else f"{scores.accuracy:.2%}"


def _signed(share: float) -> str:
    return "—" if math.isnan(share) else f"{share:+.2%}"
