"""Scores of captures, and the change by specialists, as records for JSON and as tables of them.

Percentages are of examples. A change is a number of examples, which shows how few they are.
"""

from typing import TYPE_CHECKING, Any

from .text import format_cell, pick, print_records, print_table, print_text

if TYPE_CHECKING:
    from ...pipeline.evaluate.captures import CaptureScores, Compared
    from ...pipeline.evaluate.coverage import Conditional, CoverageRow


def capture_records(scores: "CaptureScores") -> dict[str, Any]:
    """Return all scores as records for JSON."""
    measures = "errors", "accuracy", "top_k", "top_k_accuracy", "nll", "calibration_error", "ties"
    return {
        "captures": [
            {"name": name, "examples": metrics.rows, **pick(metrics, *measures)}
            for name, metrics in scores.metrics.items()
        ],
        "comparisons": [_comparison_record(compared) for compared in scores.compared],
    }


def _comparison_record(compared: "Compared") -> dict[str, Any]:
    return {
        **pick(compared.comparison, "generalist", "combined"),
        "sets": len(compared.comparison.sets),
        "special_classes": compared.special,
        "conditional": {"before": _conditional(compared.before), "after": _conditional(compared.after)},
        "coverage": [_cover(row.label, row) for row in compared.coverage.rows()],
        "specialists": [
            {
                **pick(one, "name", "classes"),
                "generalist": _conditional(one.generalist),
                "specialist": _conditional(one.specialist),
            }
            for one in compared.specialists
        ],
    }


def _conditional(scores: "Conditional") -> dict[str, Any]:
    return pick(scores, "examples", "correct", "accuracy")


def _cover(label: str, row: "CoverageRow") -> dict[str, Any]:
    return {"covering": label, **pick(row, "examples", "before", "after", "change", "relative")}


def print_captures(scores: "CaptureScores") -> None:
    """Print all scores as tables."""
    captures = capture_records(scores)["captures"]
    examples = ", ".join(sorted({f"{capture['examples']:,}" for capture in captures}))
    columns = {
        "capture": "name",
        "errors": "errors",
        "accuracy": "accuracy:.2%",
        f"top-{max((capture['top_k'] for capture in captures), default=0)}": "top_k_accuracy:.2%",
        "NLL": "nll:.4f",
        "calibration error": "calibration_error:.4f",
        **({"ties": "ties:,"} if any(capture["ties"] for capture in captures) else {}),
    }
    print_records(columns, captures, title=f"{examples} labelled rows")
    for compared in scores.compared:
        _print_comparison(_comparison_record(compared), _cover("all", compared.coverage.total))


def _print_comparison(record: dict[str, Any], total: dict[str, Any]) -> None:
    before, after = record["conditional"].values()
    print_text(
        "",
        f"{record['combined']} against {record['generalist']}: {record['sets']} sets, "
        f"{record['special_classes']} special classes; "
        f"conditional accuracy {_share(before)} -> {_share(after)} ({before['examples']:,} examples)",
    )
    columns = {
        "specialists covering the class": "covering",
        "examples": "examples",
        "right before": "before",
        "right after": "after",
        "change": "change:+,",
        "relative": "relative:+.2%",
    }
    print_records(columns, [*record["coverage"], total])
    if record["specialists"]:
        print_text("")
        print_table(
            ["specialist", "classes", "examples", "generalist", "specialist"],
            [
                [one["name"], one["classes"], own["examples"], _share(own), _share(one["specialist"])]
                for one in record["specialists"]
                for own in [one["generalist"]]
            ],
            title="examples of a specialist's own classes, with only those to choose from",
        )


def _share(scores: dict[str, Any]) -> str:
    return format_cell(scores["accuracy"], ".2%")
