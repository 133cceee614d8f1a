"""Covariance and sets of confused classes of a transform capture, against those of float32.

The teacher is that of experiments/omniglot.toml, and the rows are its transfer set.

1. Covariance of the softened predictions: ‖C - C32‖ / ‖C32‖ (Frobenius), of the whole matrix and of the worst
   slice of 100 classes. Beside it stands the difference between the even and the odd rows of float32 alone.
2. Sets of stage two, in several numbers and seeds. Sets are numbered by chance, so they are paired such that most
   classes agree; the rest differ. Beside them stand the sets of float32 with another seed.

Not part of `make bench`: python benchmarks/transform_clusters.py
"""

import tempfile
from collections.abc import Sequence
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
from logitstore.pipeline.cluster.softened import softened_outputs
from logitstore.pipeline.cluster.stage import cluster_store
from logitstore.pipeline.experiment.tables import Cluster
from logitstore.storage.parts.clusterings import ClusteringReader

TRANSFORMS = {"transform-1e-2": 1e-2, "transform-1e-1": 1e-1}
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


def show_covariance(store: logitstore.Store, logits: NDArray[np.float32]) -> None:
    """Print table 1, the covariances."""
    print(
        f"  covariance          T   whole matrix   worst {SLICE} classes   even rows against odd rows of float32"
    )
    every = np.arange(len(logits))
    for temperature in TEMPERATURES:
        exact = covariance(softened_outputs(store, {"float32": 1.0}, temperature))
        even, odd = (covariance_of_rows(logits, every[first::2], temperature) for first in (0, 1))
        halves = relative(even, odd)
        for name in TRANSFORMS:
            found = covariance(softened_outputs(store, {name: 1.0}, temperature))
            whole = relative(found, exact)
            starts = range(0, len(exact), SLICE)
            worst = max(relative(found[s : s + SLICE], exact[s : s + SLICE]) for s in starts)
            print(f"  {name:14s} {temperature:6g} {whole:14.1e} {worst:19.1e} {halves:36.2f}", flush=True)


def sets_of(
    store: logitstore.Store, name: str, temperature: float, sets: int, size: int, seed: int
) -> tuple[NDArray[np.int64], float]:
    """Make a clustering by stage two; return its sets, and the share of the teacher's errors inside them."""
    part = f"{name}-{sets}x{size}-{temperature:g}-{seed}"
    cluster = Cluster(
        teacher=name, clusters=sets, classes_per_cluster=size, temperature=temperature, seed=seed, name=part
    )
    cluster_store(store, cluster)
    reader = ClusteringReader(store.root, part)
    noted = reader.errors_inside
    assert noted is not None
    return reader.sets, noted["inside"] / noted["errors"]


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


def show_sets(store: logitstore.Store) -> None:
    """Print table 2, the sets."""
    print(f"\n  members of sets that differ from float32's; seeds {', '.join(map(str, SEEDS))}")
    print(
        f"  {'':6s} {'sets':>8s} {'members':>8s}"
        + "".join(f"  {name:>18s}" for name in TRANSFORMS)
        + f"  {'two seeds, float32':>18s}   errors inside: float32, {', '.join(TRANSFORMS)}"
    )
    for temperature in TEMPERATURES:
        for sets, size in SETS:
            found = {
                name: [sets_of(store, name, temperature, sets, size, seed) for seed in SEEDS]
                for name in ("float32", *TRANSFORMS)
            }
            exact = [members for members, _ in found["float32"]]
            differ = {
                name: [
                    differing(members, other, store.num_classes)
                    for (members, _), other in zip(found[name], exact, strict=True)
                ]
                for name in TRANSFORMS
            }
            seeds = [differing(a, b, store.num_classes) for a, b in combinations(exact, 2)]
            inside = ", ".join(f"{mean(share for _, share in some):.1%}" for some in found.values())
            print(
                f"  T = {temperature:g} {f'{sets} x {size}':>9s} {sets * size:8d}"
                + "".join(f"  {line(counts):>18s}" for counts in differ.values())
                + f"  {line(seeds):>18s}   {inside}",
                flush=True,
            )
            bar(
                f"7. members that differ, {JUDGED} against float32 / two seeds of float32, means",
                f"{mean(differ[JUDGED]):.0f} / {mean(seeds):.0f}",
                "<= 1",
                mean(differ[JUDGED]) <= mean(seeds),
            )


def main() -> None:
    """Print both tables."""
    print("covariance and clusters: transforms against float32")
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
        show_covariance(store, teacher.logits[: teacher.transfer_rows])
        show_sets(store)


if __name__ == "__main__":
    main()
