"""Covariance and sets of confused classes of a transform capture, against those of float32.

The teacher is that of experiments/omniglot.toml, and the rows are its transfer set.

1. Covariance of the softened predictions: ‖C - C32‖ / ‖C32‖ (Frobenius), of the whole matrix and of the worst
   slice of 100 classes. Beside it stands the difference between the even and the odd rows of float32 alone.
2. Sets of stage two, in several numbers and seeds. Sets are numbered by chance, so they are paired such that most
   classes agree; the rest differ. Beside them stand the sets of float32 with another seed. Groupings that differ may
   be equally tight: each is scored on the columns of float32 as well.

Not part of `make bench`: python benchmarks/transform_clusters.py [--temperature 4] [--sets 24x50] [--restarts 50]
"""

import argparse
import tempfile
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from statistics import mean

import numpy as np
from encoding import bar
from numpy.typing import NDArray
from real_logits import omniglot_logits
from rival_encodings import log_softmax
from scipy.optimize import linear_sum_assignment
from students import make_store

import logitstore
from logitstore.pipeline.cluster.covariance import covariance
from logitstore.pipeline.cluster.errors_inside import errors_inside
from logitstore.pipeline.cluster.sets import Clustering, confusable_sets
from logitstore.pipeline.cluster.softened import softened_outputs

TRANSFORMS = {"transform-1e-3": 1e-3, "transform-1e-2": 1e-2, "transform-1e-1": 1e-1}
JUDGED = "transform-1e-2"
TEMPERATURES, SEEDS = (1.0, 4.0), range(3)
SETS = ((12, 100), (24, 50), (48, 25))
"""Numbers of sets and of classes in each."""
SLICE, ROWS_AT_ONCE = 100, 1024


def relative(found: NDArray[np.float64], exact: NDArray[np.float64]) -> float:
    """Return ‖found - exact‖ / ‖exact‖, Frobenius."""
    return float(np.linalg.norm(found - exact) / np.linalg.norm(exact))


def covariance_of_rows(
    logits: NDArray[np.float32], rows: NDArray[np.int64], temperature: float
) -> NDArray[np.float64]:
    """Compute the covariance of the softmax of some rows in float64, slice by slice."""
    classes = logits.shape[1]
    total, products = np.zeros(classes), np.zeros((classes, classes))
    for start in range(0, len(rows), ROWS_AT_ONCE):
        p = np.exp(log_softmax(logits[rows[start : start + ROWS_AT_ONCE]], temperature))
        total += p.sum(axis=0)
        products += p.T @ p
    middle = total / len(rows)
    result: NDArray[np.float64] = products / len(rows) - np.outer(middle, middle)
    return result


def show_covariance(
    store: logitstore.Store, logits: NDArray[np.float32], temperature: float
) -> dict[str, NDArray[np.float64]]:
    """Print table 1, the covariances at a temperature, and return them by capture."""
    names = ("float32", *TRANSFORMS)
    found = {name: covariance(softened_outputs(store, {name: 1.0}, temperature)) for name in names}
    exact, every = found["float32"], np.arange(len(logits))
    even, odd = (covariance_of_rows(logits, every[first::2], temperature) for first in (0, 1))
    print(
        f"\n  T = {temperature:g}; covariance of even rows against odd rows of float32: {relative(even, odd):.2f}"
    )
    for name in TRANSFORMS:
        whole, starts = relative(found[name], exact), range(0, len(exact), SLICE)
        worst = max(relative(found[name][s : s + SLICE], exact[s : s + SLICE]) for s in starts)
        print(f"  {name}: {whole:.1e}, worst slice of {SLICE} classes {worst:.1e}", flush=True)
    return found


def inertia_on(columns: NDArray[np.float64], assignment: NDArray[np.int64]) -> float:
    """Sum the squared distances of columns from the means of their groups."""
    middles = [columns[assignment == group].mean(axis=0) for group in range(assignment.max() + 1)]
    return float(((columns - np.stack(middles)[assignment]) ** 2).sum())


def errors_of(store: logitstore.Store, name: str, found: Sequence[Clustering]) -> float:
    """Return the share of a capture's errors inside sets, the mean of several clusterings."""
    predictions = store.teachers[name].read(slice(None), temperature=1.0).argmax(axis=1)
    return mean(
        errors_inside(some.sets, store.samples.labels, predictions, num_classes=store.num_classes).share
        for some in found
    )


def differing(sets: NDArray[np.int64], others: NDArray[np.int64], classes: int) -> int:
    """Count the members of sets that are not in the set paired with theirs."""
    one, other = (np.zeros((len(some), classes)) for some in (sets, others))
    np.put_along_axis(one, sets, 1, axis=1)
    np.put_along_axis(other, others, 1, axis=1)
    common = one @ other.T
    return int(sets.size - common[linear_sum_assignment(common, maximize=True)].sum())


def line(counts: Sequence[int]) -> str:
    """Format some counts."""
    return " ".join(f"{count:5d}" for count in counts)


def show_sets(
    store: logitstore.Store,
    columns: Mapping[str, NDArray[np.float64]],
    shapes: Sequence[tuple[int, int]],
    restarts: int,
) -> None:
    """Print table 2, the sets."""
    print(
        f"  members of sets that differ from float32's, seeds {', '.join(map(str, SEEDS))}; {restarts} restarts"
    )
    heads = (*TRANSFORMS, "two seeds, float32")
    print(f"  {'sets':>9s} {'members':>8s}" + "".join(f"  {head:>18s}" for head in heads))
    for sets, size in shapes:
        found = {
            name: [
                confusable_sets(of, clusters=sets, classes_per_cluster=size, seed=seed, restarts=restarts)
                for seed in SEEDS
            ]
            for name, of in columns.items()
        }
        exact = found["float32"]
        differ = {
            name: [
                differing(some.sets, other.sets, store.num_classes)
                for some, other in zip(found[name], exact, strict=True)
            ]
            for name in TRANSFORMS
        }
        seeds = [differing(one.sets, other.sets, store.num_classes) for one, other in combinations(exact, 2)]
        print(
            f"  {f'{sets} x {size}':>9s} {sets * size:8d}"
            + "".join(f"  {line(counts):>18s}" for counts in (*differ.values(), seeds)),
            flush=True,
        )
        inertia = {
            name: [inertia_on(columns["float32"], some.assignment) for some in groups]
            for name, groups in found.items()
        }
        least = min(inertia["float32"])
        for name, groups in found.items():
            ratios = " ".join(f"{one / least:.4f}" for one in inertia[name])
            print(
                f"  {'':9s} {name}: inertia on float32's columns / the least of float32 {ratios}; "
                f"{errors_of(store, name, groups):.1%} of its errors inside"
            )
        bar(
            f"7. members that differ, {JUDGED} against float32 / two seeds of float32, means",
            f"{mean(differ[JUDGED]):.0f} / {mean(seeds):.0f}",
            "<= 1",
            mean(differ[JUDGED]) <= mean(seeds),
        )


def main(temperatures: Sequence[float], shapes: Sequence[tuple[int, int]], restarts: int) -> None:
    """Print both tables at each temperature."""
    print("covariance and clusters: transforms against float32, ‖C - C32‖ / ‖C32‖ (Frobenius)")
    teacher = omniglot_logits()
    if isinstance(teacher, str):
        print(f"  {teacher}")
        return
    print(f"  {teacher.about}")
    encodings = {name: {"transform": {"max_kl": max_kl}} for name, max_kl in TRANSFORMS.items()}
    with tempfile.TemporaryDirectory() as folder:
        store = make_store(
            Path(folder) / "store.zarr", teacher, lambda _: {"float32": "float32", **encodings}
        )
        for temperature in temperatures:
            columns = show_covariance(store, teacher.logits[: teacher.transfer_rows], temperature)
            show_sets(store, columns, shapes, restarts)


def shape(text: str) -> tuple[int, int]:
    """Parse "24x50"."""
    sets, _, size = text.partition("x")
    return int(sets), int(size)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--temperature", action="append", type=float, help="1 and 4 by default")
    parser.add_argument("--sets", action="append", type=shape, help="SETSxCLASSES; three by default")
    parser.add_argument("--restarts", type=int, default=10, help="starts of k-means")
    arguments = parser.parse_args()
    main(arguments.temperature or TEMPERATURES, arguments.sets or SETS, arguments.restarts)
