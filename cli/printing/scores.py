"""Scores of an experiment's models, as records for JSON and as a table."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .text import pick, print_table, print_text

if TYPE_CHECKING:
    from ...pipeline.evaluate.scores import TableRow
    from ...pipeline.models.records import Models

_FORMATS = {"errors": ",.1f", "accuracy": ".2%", "nll": ".4f", "calibration_error": ".4f"}
"""Measures with a spread, and their formats."""


def score_records(rows: Sequence["TableRow"]) -> list[dict[str, Any]]:
    """Return the table of scores: means, standard deviations over seeds, and every single score."""
    return [
        {
            **pick(row, "kind", "name"),
            "seeds": len(row.scores),
            "examples": row.scores[0].examples,
            **{measure: row.average(measure) for measure in (*_FORMATS, "parameters")},
            "spread": {measure: row.spread(measure) for measure in _FORMATS},
            "scores": list(row.scores),
        }
        for row in rows
    ]


def print_scores(rows: Sequence["TableRow"], sentences: Sequence[str]) -> None:
    """Print the table of scores, and the comparisons of students after an empty line.

    Scores of students are mean ± standard deviation over their seeds.
    """
    examples = ", ".join(sorted({f"{score.examples:,}" for row in rows for score in row.scores}))
    figures = zip(*(_figures(rows, *measure) for measure in _FORMATS.items()), strict=True)
    print_table(
        ["kind", "model", "errors", "accuracy", "NLL", "calibration error", "parameters", "seeds"],
        [
            [
                row.kind,
                row.name,
                *cells,
                round(row.average("parameters")),
                len(row.scores) if row.kind == "student" else None,
            ]
            for row, cells in zip(rows, figures, strict=True)
        ],
        title=f"{examples} labelled examples for evaluation; students: mean ± standard deviation over seeds",
    )
    if sentences:
        print_text("", *sentences)


def _figures(rows: Sequence["TableRow"], measure: str, form: str) -> list[str]:
    """Format the cells of a measure, the means below one another."""
    means = [format(row.average(measure), form) for row in rows]
    spreads = [row.spread(measure) for row in rows]
    if all(mean.endswith(".0") for mean in means) and all(map(math.isnan, spreads)):
        means = [mean[:-2] for mean in means]
    width = max(map(len, means), default=0)
    return [
        # A single count is an integer; the blanks align it with the units of the means.
        f"{mean[:-2] + '  ' if mean.endswith('.0') else mean:>{width}}"
        if math.isnan(spread)
        else f"{mean:>{width}} ± {spread:{form}}"
        for mean, spread in zip(means, spreads, strict=True)
    ]


def validated_lines(models: "Models", kind: str, name: str) -> list[str]:
    """Return a line with the best and the last validation of a trained network; none without one.

    kind: "teachers", "specialists" or "students".
    """
    from ...pipeline.trainer.validation import in_words

    told = in_words(models.recorded_facts(kind, name))
    return [f"validated {name}: {told}"] if told else []
