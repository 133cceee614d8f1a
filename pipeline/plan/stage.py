"""What will an experiment cost, in bytes, files, error and teacher hours, before anything is spent?

1. Every teacher gives the logits of a sample of the transfer set: its own where it can run (`sampling`).
2. Every encoding stores that sample, as stage one would: the bytes of all rows follow (`footprint`), and the error of
   each row is measured as a capture records it.
3. The passes of the teachers are counted, once for the cache and once for students that would run them live.

Nothing is written.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any, Final

import numpy as np

from ...storage.api import Store
from ...storage.backends.local import Folder
from ...storage.encodings.encoding import Encoding
from ...storage.encodings.error_budget import ErrorBudget
from ...storage.encodings.named import encoding_named
from ...storage.errors import ConfigError
from ...storage.format.constants import SAMPLES, TEMPERATURES
from ...storage.format.grid import Grid
from ...storage.parts.footprint import SampleRows, plain_bytes, root_footprint, samples_footprint, spread_rows
from ...storage.progress import Progress, silent
from ..cache.todo import capture_identity, check_samples, plan_grid
from ..experiment.document import Experiment
from ..experiment.tables import Student
from ..models.records import Models
from ..specialists.todo import special_classes, specialist_runs
from ..train.todo import student_seeds
from ..transfer import TransferRows, input_bytes
from ..views import experiment_views
from ..workspace import Workspace
from .encodings import CapturePlan, considered, refused_capture, try_compression, try_encoding
from .sample import Source, TeacherSample, sample_teacher

SAMPLE_ROWS: Final = 2048
"""Rows of a sample, of all views together, unless it is said."""


_SAMPLE_LOGITS: Final = 1 << 26
"""Most logits of a sample, unless its rows are said: a quarter of a GiB."""


@dataclass(frozen=True)
class EncodingPlan:
    """All teachers in one encoding."""

    name: str
    """As the experiment file would say it."""
    is_own: bool
    """Whether the experiment takes it."""
    block_rows: int | None
    """Rows a block of the store; None where there can be none."""
    row_bytes: float | None
    """Bytes of a row of one view of one teacher: the arrays of its capture, after the codec. None where refused."""
    bytes: int | None
    """Of a whole store: all captures, samples and inputs, records and metadata."""
    files: int | None
    """Number of files of a whole store."""
    kl_max: tuple[float, ...] | None
    """Over the captures whose logits are not from a model, or over all where there are none such."""
    kl_mean: tuple[float, ...] | None
    """The same in the mean."""
    bound: tuple[float, ...] | None
    """KL that no row exceeds, at the same temperatures; None where it is only measured."""
    compressed_row_bytes: float | None
    """As `row_bytes`, of what `logitstore compress` would make of the experiment's captures by this budget."""
    compressed_dtype: str | None
    """Of its codes: "uint8" where those of every teacher's sample fit."""
    not_compressed: str | None
    """Why `compress` could not keep the budget for some teacher; None where it can."""
    captures: tuple[CapturePlan, ...]
    """Each teacher, in order."""
    refused: str | None
    """Why some teacher's sample cannot be stored so."""


@dataclass(frozen=True)
class TeacherPlan:
    """What running one teacher takes."""

    name: str
    """Name of its capture."""
    source: Source
    """Where the logits of its sample are from."""
    is_rounded: bool
    """Whether these are a float16 capture's."""
    rows_per_second: float
    """Measured; of the network alone, without reading inputs."""
    live_passes: int
    """Passes over the rows if every student ran it in every epoch."""
    cached_hours: float
    """Of this teacher over all rows and views."""
    live_hours: float
    """Of the live passes."""


@dataclass(frozen=True)
class Passes:
    """Passes of one teacher over the rows: as many for the cache, as many without."""

    cached: int
    """Views, for each teacher."""
    live: int
    """Epochs of all students and seeds, for each teacher that they learn from."""
    epochs: int
    """Epochs of the students that learn from a teacher, seeds and all."""
    pays_from: int | None
    """The epoch, students and seeds in turn, from which on more passes would have been run live; None for never."""


@dataclass(frozen=True)
class Plan:
    """What an experiment will cost."""

    num_rows: int
    """Rows of the transfer set."""
    num_classes: int
    """Classes."""
    views: int
    """Views of each row."""
    input_bytes: int
    """Bytes of an input that the store keeps; 0 where it keeps none."""
    sample_rows: int
    """(row, view) pairs in the sample."""
    temperatures: tuple[float, ...]
    """At which KL is given."""
    device: str
    """Where the teachers ran."""
    teachers: tuple[TeacherPlan, ...]
    """Each network to be cached."""
    encodings: tuple[EncodingPlan, ...]
    """Every encoding."""
    passes: Passes
    """Of the teachers."""
    specialists: int
    """Captures of specialists, and of their combination, that come beside those of the teachers."""
    specialist_bytes: int
    """Bytes of these in float16, which is the most that another encoding takes."""
    store: Path
    """Where the store will be."""
    free_bytes: int
    """Free on its disk."""

    @property
    def own(self) -> EncodingPlan:
        """The encoding that the experiment takes."""
        return next(encoding for encoding in self.encodings if encoding.is_own)


def plan(
    experiment: Experiment,
    store: Path,
    models: Models,
    *,
    sample_rows: int | None = None,
    rows: TransferRows | None = None,
    device: str | None = None,
    progress: Progress = silent,
) -> Plan:
    """What an experiment will cost, with every encoding.

    store: where its store will be, or is. sample_rows: most (row, view) pairs that a teacher is run on.
    rows: the transfer set, where the caller has it at hand. device: as for `cache`.
    Raises what `cache` would raise before it writes: ConfigError, FactoryError, BadDataError, BadLogitsError,
    SpecMismatch where the store is one of another transfer set.
    """
    work = Workspace(experiment, store, models, device, progress, given_rows=rows)
    rows, there = work.rows, work.find_store()
    if there is not None:
        check_samples(there, rows)
    target = work.choose_device()
    most = min(SAMPLE_ROWS, max(1, _SAMPLE_LOGITS // rows.num_classes))
    sample = spread_rows(
        len(rows), experiment.cache.views, most if sample_rows is None else max(1, sample_rows)
    )
    # A store that is there has its blocks already, whatever the encoding.
    trials = _Trials(experiment, rows, sample, None if there is None else there.grid)
    make_view = experiment_views(experiment, rows)
    samples: list[tuple[Source, bool, float]] = []
    for member in experiment.teacher_members():
        found = sample_teacher(work, member, sample, trials.own_grid, make_view)
        samples.append((found.source, found.is_rounded, found.rows_per_second))
        trials.add(
            member.name,
            found,
            capture_identity(experiment, member, rows, f"sha256:{0:064d}"),
            progress,
        )
    return Plan(
        len(rows),
        rows.num_classes,
        experiment.cache.views,
        input_bytes(experiment, rows),
        len(sample),
        TEMPERATURES,
        str(target),
        _teachers(experiment, len(rows), samples),
        trials.encodings(),
        count_passes(experiment),
        *_of_specialists(experiment, there, rows.num_classes, trials.own_grid),
        store,
        Folder(store).free_bytes(),
    )


# Encodings


class _Trials:
    """Every encoding, tried on one teacher after another."""

    def __init__(
        self, experiment: Experiment, rows: TransferRows, sample: SampleRows, fixed: Grid | None
    ) -> None:
        """fixed: the blocks of a store that is there."""
        self._experiment = experiment
        self._rows = rows
        self._sample = sample
        self._own = experiment.cache.chosen_encoding
        self._encodings = considered(experiment, rows.num_classes)
        self._captures: dict[str, list[CapturePlan]] = {name: [] for name in self._encodings}
        self.own_grid = fixed or plan_grid(experiment, rows, self._own)
        """The blocks of the experiment's own store."""
        self._grids: dict[str, Grid | str] = {
            name: self._grid(encoding, fixed) for name, encoding in self._encodings.items()
        }

    def _grid(self, encoding: Encoding, fixed: Grid | None) -> Grid | str:
        """The blocks of a store in this encoding, or why there is none."""
        try:
            return fixed or plan_grid(self._experiment, self._rows, encoding)
        except ConfigError as error:
            return str(error)

    def add(
        self, teacher: str, found: TeacherSample, identity: Mapping[str, Any], progress: Progress
    ) -> None:
        """Store the sample of a teacher in every encoding. identity: of its capture, but for the weights."""
        views, sample = self._experiment.cache.views, self._sample
        for number, (name, encoding) in enumerate(self._encodings.items()):
            progress(f"encoding the sample of {teacher}", number, len(self._encodings), "encodings")
            grid = self._grids[name]
            if isinstance(grid, str):
                capture = refused_capture(teacher, found.source, grid)
            else:
                capture = try_encoding(encoding, teacher, found, sample, grid, views, identity)
            if isinstance(encoding, ErrorBudget):
                compressed = try_compression(
                    encoding, self._own, found, sample, self.own_grid, views, identity
                )
                if isinstance(compressed, str):
                    capture = replace(capture, not_compressed=compressed)
                else:
                    capture = replace(capture, compressed=compressed)
            self._captures[name].append(capture)
        progress(f"encoding the sample of {teacher}", len(self._encodings), len(self._encodings), "encodings")

    def encodings(self) -> tuple[EncodingPlan, ...]:
        """What came of it."""
        return tuple(self._encoding(name) for name in self._encodings)

    def _encoding(self, name: str) -> EncodingPlan:
        encoding, grid, captures = self._encodings[name], self._grids[name], self._captures[name]
        refused = next((capture.refused for capture in captures if capture.refused is not None), None)
        row_bytes = total = files = None
        if refused is None and isinstance(grid, Grid):
            parts = [SAMPLES, *(f"teachers/{capture.teacher}" for capture in captures)]
            samples = samples_footprint(self._experiment, self._rows, grid)
            root = root_footprint(grid, self._rows.num_classes, parts)
            row_bytes = self._row_bytes([capture.arrays for capture in captures])
            total = samples.bytes + root.bytes + sum(capture.bytes for capture in captures)
            files = samples.files + root.files + sum(capture.files for capture in captures)
        theirs = [capture for capture in captures if capture.source != "model"] or captures
        bounds = [bound for bound in map(encoding.bound, TEMPERATURES) if bound is not None]
        smaller = [capture.compressed for capture in captures if capture.compressed is not None]
        dtypes = {compressed.dtype for compressed in smaller} if len(smaller) == len(captures) else set()
        return EncodingPlan(
            name,
            encoding == self._own,
            grid.block_rows if isinstance(grid, Grid) else None,
            row_bytes,
            total,
            files,
            _over_teachers([capture.kl_max for capture in theirs], np.max),
            _over_teachers([capture.kl_mean for capture in theirs], np.mean),
            tuple(bounds) or None,
            self._row_bytes([compressed.arrays for compressed in smaller]) if dtypes else None,
            max(dtypes, key=lambda dtype: np.dtype(dtype).itemsize) if dtypes else None,
            next((capture.not_compressed for capture in captures if capture.not_compressed), None),
            tuple(captures),
            refused,
        )

    def _row_bytes(self, captures: Sequence[Mapping[str, int]]) -> float:
        """Bytes of the arrays of some captures, a row of a view of one of them."""
        total = sum(sum(arrays.values()) for arrays in captures)
        return total / (self._sample.of * len(captures))


def _over_teachers(
    values: Sequence[tuple[float, ...] | None], reduce: Callable[..., Any]
) -> tuple[float, ...] | None:
    """One figure a temperature; None where a teacher has none."""
    known = [value for value in values if value is not None]
    return tuple(reduce(known, axis=0).tolist()) if len(known) == len(values) else None


# Specialists


def _of_specialists(
    experiment: Experiment, store: Store | None, num_classes: int, grid: Grid
) -> tuple[int, int]:
    """Captures of specialists and of their combination, and their bytes in float16."""
    table = experiment.specialists
    if table is None or not table.capture:
        return 0, 0
    columns = []
    for run in specialist_runs(experiment, store):
        if table.variant == "full":
            columns.append(num_classes)
        elif store is not None and experiment.clustering_name in store.clusterings:
            columns.append(len(special_classes(experiment, run, store)) + 1)
        else:
            assert experiment.cluster is not None  # it will make the clustering: specialist_runs has looked
            columns.append(experiment.cluster.classes_per_cluster + 1)
    if experiment.combine is not None:
        columns.append(num_classes)
    plain, views = encoding_named("float16"), experiment.cache.views
    return len(columns), sum(plain_bytes(plain, count, grid, views) for count in columns)


# Teachers


def _teachers(
    experiment: Experiment, num_rows: int, samples: Sequence[tuple[Source, bool, float]]
) -> tuple[TeacherPlan, ...]:
    live = live_passes(experiment)
    return tuple(
        TeacherPlan(
            member.name,
            source,
            is_rounded,
            speed,
            live[member.name],
            experiment.cache.views * num_rows / speed / 3600,
            live[member.name] * num_rows / speed / 3600,
        )
        for member, (source, is_rounded, speed) in zip(experiment.teacher_members(), samples, strict=True)
    )


def live_passes(experiment: Experiment) -> dict[str, int]:
    """Passes over the rows that each teacher would run if every student ran its teachers in every epoch."""
    passes = dict.fromkeys((member.name for member in experiment.teacher_members()), Fraction())
    for run in student_seeds(experiment):
        for name in passes.keys() & experiment.teacher_weights(run.student):
            passes[name] += run.student.train.epochs * _passes_an_epoch(experiment, run.student)
    return {name: round(count) for name, count in passes.items()}


def _passes_an_epoch(experiment: Experiment, student: Student) -> Fraction:
    """Return how many rows a student sees in an epoch, each view counted, as a multiple of the store's."""
    # Exact, as the file has it: 60 epochs of a tenth are six passes and not a little less.
    return Fraction(str(student.rows)) * (experiment.cache.views if student.views == "all" else 1)


def count_passes(experiment: Experiment) -> Passes:
    """Passes of the teachers over the rows, with the cache and without."""
    cached = experiment.cache.views * len(experiment.teacher_members())
    live, epochs = Fraction(), 0
    pays_from = None
    for run in student_seeds(experiment):
        each = len(experiment.teacher_weights(run.student)) * _passes_an_epoch(experiment, run.student)
        if each:
            before, live = live, live + each * run.student.train.epochs
            if pays_from is None and live > cached:
                # The first of its epochs after which more than `cached` would have been run.
                pays_from = epochs + (cached - before) // each + 1
            epochs += run.student.train.epochs
    return Passes(cached, round(live), epochs, pays_from)
