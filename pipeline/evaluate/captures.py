"""Scores of the captures of a store, and the effect of specialists, without a model. Imports no torch.

1. `scored_captures` lists the captures of all classes: teachers, combinations. Each gets its metrics.
2. `comparisons` pairs a capture with a generalist and sets: the spec of a combination names its own, for any other capture the
   caller does.
3. `evaluate_captures` reads every block once, on all cores, and adds up: metrics, conditional accuracy before and after, the
   table by cover, and each specialist against the generalist within its own set.

The labels are the store's. Source: Hinton et al. 2015, section 5.5, tables 3 and 4.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from jaxtyping import Int64
from numpy.typing import NDArray

from ...storage.api import Store
from ...storage.errors import BadDataError, ConfigError, SpecMismatch, some_of
from ...storage.parts.reader import sets_of
from ...storage.parts.same_inputs import check_same_inputs
from ...storage.progress import Progress, silent
from ..runtime.dask_tasks import every_block, over_blocks
from .coverage import Conditional, Coverage, conditional, coverage, covers_of, special_classes
from .metrics import Accumulator, Metrics

log = logging.getLogger(__name__)
_AT_A_TIME: Final = 1 << 20
"""Logits that are converted to float64 probabilities at a time."""


@dataclass(frozen=True, eq=False)
class Comparison:
    """A capture, to be compared with a generalist."""

    generalist: str
    """Name of the generalist's capture."""
    combined: str
    """Name of the capture."""
    sets: Sequence[NDArray[np.int64]]
    """Special classes of each specialist; a dustbin (-1) is ignored."""
    specialists: Sequence[str] = ()
    """Captures of the specialists, in the order of the sets; empty if only the sets are known."""


@dataclass(frozen=True)
class SpecialistScore:
    """A specialist within its own set: examples of its classes, predictions restricted to them."""

    name: str
    """Name of its capture."""
    classes: int
    """Number of special classes."""
    generalist: Conditional
    """The generalist on the same examples and classes."""
    specialist: Conditional
    """The specialist."""

    def __add__(self, other: "SpecialistScore") -> "SpecialistScore":
        """Add the counts of other rows."""
        return replace(
            self, generalist=self.generalist + other.generalist, specialist=self.specialist + other.specialist
        )


@dataclass(frozen=True)
class Compared:
    """Result of a comparison."""

    comparison: Comparison
    """The comparison."""
    special: int
    """Number of classes in any set."""
    before: Conditional
    """The generalist on examples of special classes, predictions restricted to them."""
    after: Conditional
    """The compared capture on the same examples and classes."""
    coverage: Coverage
    """Both by the number of sets that hold the correct class."""
    specialists: Sequence[SpecialistScore]
    """One entry for each specialist whose capture is known."""

    def __add__(self, other: "Compared") -> "Compared":
        """Add the counts of other rows."""
        return replace(
            self,
            before=self.before + other.before,
            after=self.after + other.after,
            coverage=self.coverage + other.coverage,
            specialists=[a + b for a, b in zip(self.specialists, other.specialists, strict=True)],
        )


@dataclass(frozen=True)
class CaptureScores:
    """Scores of the captures of a store."""

    metrics: Mapping[str, Metrics]
    """Metrics by capture."""
    compared: Sequence[Compared]
    """Results in the order of the comparisons."""


def scored_captures(store: Store) -> list[str]:
    """List the captures of all classes of the store, in the order in which they were sealed."""
    return [name for name, capture in store.teachers.items() if capture.has_all_classes]


def comparisons(
    store: Store, *, generalist: str | None = None, clustering: str | None = None
) -> list[Comparison]:
    """List the comparisons: every combination with the generalist that its spec names.

    generalist, clustering: both or none; given both, every other capture of all classes is compared with this generalist by
    the sets of this clustering, whatever the specs.
    Raises PartNotFound for an unknown name, ConfigError for one without the other, SpecMismatch for a combination of a capture
    that is not the one of that name here.
    """
    if (generalist is None) != (clustering is None):
        raise ConfigError(
            "evaluate",
            expected="a generalist and a clustering, or neither",
            found="one of them",
            remedy="name both: against whom, and which sets",
        )
    if generalist is not None and clustering is not None:
        known = store.teachers[generalist]
        if not known.has_all_classes:
            raise ConfigError(
                f"{store.path}: teachers/{generalist}",
                expected="a generalist, which has all classes",
                found=f"a capture of {known.shape[2]} columns",
                remedy="name the generalist",
            )
        sets = list(sets_of(store.clustering(clustering), store.num_classes))
        return [Comparison(generalist, name, sets) for name in scored_captures(store) if name != generalist]
    specs = {name: store.teachers[name].part.spec.identity for name in scored_captures(store)}
    combined = {name: spec.get("combination") for name, spec in specs.items()}
    recorded = {name: made_of for name, made_of in combined.items() if isinstance(made_of, Mapping)}
    return [
        _as_recorded(store, name, made_of)
        for name, made_of in recorded.items()
        if not _lacks_sources(store, name, made_of)
    ]


def _lacks_sources(store: Store, name: str, made_of: Mapping[str, Any]) -> bool:
    """Return whether captures that a combination was made from were removed, which is logged as a warning."""
    lost = [part for part, record in store.root.gone.items() if f"sha256:{record.seal}" in str(dict(made_of))]
    if lost:
        log.warning(
            "%s: teachers/%s is not compared with its generalist: `logitstore rm` has removed %s",
            store.path,
            name,
            some_of(sorted(lost), 3),
        )
    return bool(lost)


def _as_recorded(store: Store, name: str, made_of: Mapping[str, Any]) -> Comparison:
    """Read the comparison from the spec of a combination."""
    where = f"{store.path}: teachers/{name}"
    try:
        given = made_of["generalist"]
        # An ensemble of generalists has no capture of its own; the first of them stands for it.
        sources = [given] if isinstance(given, Mapping) else list(given)
        specialists = list(made_of["specialists"])
        for source in [*sources, *specialists]:
            seal = store.teachers[str(source["capture"])].digest
            if seal != source["seal"]:
                raise SpecMismatch(
                    where,
                    expected=f"the capture {source['capture']} that it was made from, {source['seal']}",
                    found=f"{seal} under this name",
                    remedy="evaluate it in the store that it was made in",
                )
        names = [str(source["capture"]) for source in specialists]
        generalist = str(sources[0]["capture"])
    except (KeyError, TypeError, IndexError):
        raise ConfigError(
            where,
            expected="a combination that says which generalist and which specialists it was made from",
            found=str(dict(made_of))[:120],
            remedy="name generalist and clustering instead",
        ) from None
    sets = [store.teachers[specialist].classes for specialist in names]
    return Comparison(generalist, name, sets, names)


def evaluate_captures(
    store: Store,
    compare: Sequence[Comparison] = (),
    *,
    captures: Sequence[str] | None = None,
    rows: Int64[np.ndarray, " rows"] | None = None,
    view: int = 0,
    top_k: int = 5,
    temperature: float = 1.0,
    progress: Progress = silent,
) -> CaptureScores:
    """Score captures on the store's labelled rows, a block a task, each block read once.

    compare: as of `comparisons`. captures: the captures that get metrics; by default all of all classes. rows: the rows that
    count; by default all. view: the view that is scored. top_k, temperature: as of `metrics.Accumulator`.
    Raises BadDataError if no row that counts has a label, ConfigError for a view that a capture does not have, PartNotFound
    for an unknown name, SpecMismatch or RowMismatch for captures that are compared and saw different inputs.
    """
    names = scored_captures(store) if captures is None else list(captures)
    for name, capture in store.teachers.items() if captures is None else ():
        if not (capture.has_all_classes or capture.is_specialist):
            log.warning(
                "%s: teachers/%s is not scored: of the store it has %s alone",
                store.path,
                name,
                capture.columns_found,
            )
    for comparison in compare:
        names += [name for name in (comparison.generalist, comparison.combined) if name not in names]
    labels = _labels(store, rows)
    specialists = dict.fromkeys(name for comparison in compare for name in comparison.specialists)
    for name in [*names, *specialists]:
        if not 0 <= view < store.teachers[name].num_views:
            raise ConfigError(
                f"{store.path}: teachers/{name}",
                expected=f"a view below {store.teachers[name].num_views}",
                found=str(view),
                remedy="choose a view that every capture has",
            )
    for name in names:
        if not store.teachers[name].has_all_classes:
            raise ConfigError(
                f"{store.path}: teachers/{name}",
                expected=f"all {store.num_classes} classes",
                found=f"{store.teachers[name].shape[2]} columns",
                remedy="leave it out: a specialist is scored as part of its combination",
            )
    for comparison in compare:
        compared_names = (comparison.generalist, comparison.combined, *comparison.specialists)
        pairs = {name: store.teachers[name] for name in compared_names}
        check_same_inputs(pairs, [view], str(store.path), "compare captures that saw the same inputs")
    covers = [covers_of(comparison.sets, store.num_classes) for comparison in compare]

    def read(name: str, rows: range) -> NDArray[np.float32]:
        return store.teachers[name].read_ranked(slice(rows.start, rows.stop), view, float(temperature))

    def score(_: int, rows: range) -> tuple[dict[str, Accumulator], list[Compared]]:
        known, logits = labels[rows.start : rows.stop], {name: read(name, rows) for name in names}
        metrics = {
            name: Accumulator(store.num_classes, temperature=temperature, top_k=top_k) for name in names
        }
        step = max(1, _AT_A_TIME // store.num_classes)
        for name, accumulator in metrics.items():
            for start in range(0, len(known), step):
                accumulator.update(logits[name][start : start + step], known[start : start + step])
        return metrics, [
            _compare(store, one, cover, logits, lambda name: read(name, rows), known)
            for one, cover in zip(compare, covers, strict=True)
        ]

    blocks = [(view, rows) for _, rows in every_block(store.grid, 1)]
    (metrics, compared), *others = over_blocks("evaluating captures", blocks, score, progress=progress)
    for more, also in others:
        for name, accumulator in metrics.items():
            accumulator.merge(more[name])
        compared = [a + b for a, b in zip(compared, also, strict=True)]
    return CaptureScores({name: accumulator.result() for name, accumulator in metrics.items()}, compared)


def _compare(
    store: Store,
    comparison: Comparison,
    covers: NDArray[np.int64],
    logits: Mapping[str, NDArray[np.float32]],
    read: Callable[[str], NDArray[np.float32]],
    labels: NDArray[np.int64],
) -> Compared:
    """Compare two captures on a block. covers: of each class. read: reads the block of a specialist, one at a time."""
    before, after = logits[comparison.generalist], logits[comparison.combined]
    special, scores = np.flatnonzero(covers), []
    for name, members in zip(comparison.specialists, comparison.sets, strict=False):
        own, columns = special_classes([members]), store.teachers[name].classes
        specialist = conditional(read(name), labels, own, columns=columns)
        scores.append(SpecialistScore(name, len(own), conditional(before, labels, own), specialist))
    by_cover = coverage(
        before.argmax(axis=1) == labels,
        after.argmax(axis=1) == labels,
        labels,
        covers,
        num_sets=len(comparison.sets),
    )
    return Compared(
        comparison,
        len(special),
        conditional(before, labels, special),
        conditional(after, labels, special),
        by_cover,
        scores,
    )


def _labels(store: Store, rows: NDArray[np.int64] | None) -> NDArray[np.int64]:
    """Return the labels of the rows that count, -1 elsewhere."""
    labels = store.samples.labels
    if rows is not None:
        kept = np.full_like(labels, -1)
        kept[rows] = labels[rows]
        labels = kept
    if not (labels >= 0).any():
        raise BadDataError(
            f"{store.path}",
            expected="labelled rows to evaluate on",
            found="none",
            remedy="evaluate a store of labelled examples",
        )
    return labels
