"""The selection of the settings of `logitstore demo`, on held-out rows of its training split alone.

    python experiments/demo_selection.py [OUT]

1. The training split of the digits is cut into four folds. Teachers are trained on three of them; the fourth
   replaces the evaluation set. No test row is read.
2. Students of several temperatures learn from a tenth of the rows, with and without views.
3. The teachers' predictions are clustered at several temperatures, into sets of several sizes.

Prints the errors over all four folds, the best setting first.
"""

import os
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from logitstore.cli.commands.demo import DIGITS_TOML
from logitstore.pipeline.cluster.errors_inside import ErrorsInside
from logitstore.pipeline.datasets import ArrayDataset, digits
from logitstore.pipeline.datasets.selection import random_order
from logitstore.pipeline.experiment.document import parse_experiment
from logitstore.pipeline.run import RunReport, run

FOLDS = 4
SEEDS = [0, 1]
"""Seeds of every student, on every fold."""
TEMPERATURES = (1.0, 2.0, 4.0)
SIZES = ((3, 4), (4, 3), (5, 3))
"""Number of sets, and classes of each."""
SOURCES = (["wide"], ["plain"], ["conv"], ["wide", "plain", "conv"])


def fold(number: int, held_out: bool) -> ArrayDataset:
    """Return a fold of the training split, or all rows outside it."""
    train = digits("train")
    part = np.array_split(random_order(len(train), seed=1), FOLDS)[number]
    rows = np.sort(part) if held_out else np.setdiff1d(np.arange(len(train)), part)
    return train.take(rows)


def students() -> Iterator[dict[str, Any]]:
    """Yield the candidates: the student of the demo at other temperatures, with views and without."""
    tables = {table["name"]: table for table in tomllib.loads(DIGITS_TOML)["student"]}
    for table in tables.values():
        table["train"]["seeds"] = SEEDS
    for name in ("all-labels", "hard"):
        yield tables[name]
    for temperature in TEMPERATURES:
        for views in (0, "cycle"):
            name = f"t{temperature:g}-{'one-view' if views == 0 else 'views'}"
            yield {**tables["distilled"], "name": name, "temperature": temperature, "views": views}


def clusterings() -> Iterator[dict[str, Any]]:
    """Yield the candidates of `[cluster]`."""
    for names in SOURCES:
        for temperature in TEMPERATURES:
            for normalise in (False, True):
                for clusters, size in SIZES:
                    kind = "correlation" if normalise else "covariance"
                    yield {
                        "name": f"{'-'.join(names)}-t{temperature:g}-{kind}-{clusters}x{size}",
                        "teachers": names,
                        "temperature": temperature,
                        "normalise": normalise,
                        "clusters": clusters,
                        "classes_per_cluster": size,
                    }


def run_fold(number: int, out: Path, **tables: Any) -> RunReport:
    """Run the demo's experiment on a fold, with some tables replaced."""
    document = tomllib.loads(DIGITS_TOML)
    for table, held_out in (("transfer_set", False), ("evaluation_set", True)):
        document[table] = {
            "factory": f"{Path(__file__).stem}:fold",
            "args": {"number": number, "held_out": held_out},
        }
    document |= tables
    experiment = parse_experiment(document, where="demo", base=Path(__file__).parent)
    return run(experiment, out / f"fold-{number}")


def main() -> None:
    """Run every candidate on every fold, and print the errors."""
    out = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/demo-selection")
    errors: dict[str, list[float]] = {}
    inside: dict[str, list[ErrorsInside]] = {}
    for number in range(FOLDS):
        for row in run_fold(number, out, student=list(students())).table:
            errors.setdefault(row.name, []).append(row.average("errors"))
        for cluster in clusterings():
            found = run_fold(number, out, student=[], cluster=cluster).errors_inside
            assert found is not None  # there is an evaluation set
            inside.setdefault(cluster["name"], []).append(found)
    print("errors on the held-out rows of all folds, mean over seeds")
    for name, counts in sorted(errors.items(), key=lambda item: sum(item[1])):
        print(f"  {name:36s} {sum(counts):6.1f}   {' '.join(f'{count:5.1f}' for count in counts)}")
    print(
        "errors of wide, plain and conv on the held-out rows that lie inside a set, and their share by chance"
    )
    ranked = sorted(inside.items(), key=lambda item: -_times_chance(item[1]))
    for name, counted in ranked:
        all_errors, held = sum(one.errors for one in counted), sum(one.inside for one in counted)
        chance = counted[0].random_share
        print(
            f"  {name:44s} {held:3d} of {all_errors:3d} ({held / all_errors:4.0%}), by chance {chance:4.0%}, "
            f"{_times_chance(counted):.2f} times as many"
        )


def _times_chance(counted: list[ErrorsInside]) -> float:
    held = sum(one.inside for one in counted) / sum(one.errors for one in counted)
    return held / counted[0].random_share


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is imported: small nets are faster so
    main()
