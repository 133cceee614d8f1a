"""Tables of scores, printed or as JSON records."""

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from .text import print_table

if TYPE_CHECKING:
    from ...pipeline.evaluate.scores import TableRow

_MEASURES = ("errors", "accuracy", "nll", "calibration_error", "parameters")


def score_records(rows: Sequence["TableRow"]) -> list[dict[str, Any]]:
    """Return the table of scores: means, standard deviations over seeds, and every single score."""
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
    """Print the table of scores: students as mean ± standard deviation over their seeds."""
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
    """Format the cells of a measure, the means below one another."""
    means = [form(row.average(measure)) for row in rows]
    spreads = [row.spread(measure) for row in rows]
    if all(mean.endswith(".0") for mean in means) and all(map(math.isnan, spreads)):
        means = [mean[:-2] for mean in means]
    width = max(map(len, means), default=0)
    return [
        # A single count is a whole number; the blanks align it with the units of the means.
        f"{mean[:-2] + '  ' if mean.endswith('.0') else mean:>{width}}"
        if math.isnan(spread)
        else f"{mean:>{width}} ± {form(spread)}"
        for mean, spread in zip(means, spreads, strict=True)
    ]


def _count(value: float) -> str:
    return f"{value:,.1f}"
