"""The cost of an experiment in bytes, files, error and teacher hours, before it is run.

1. The networks of all students are tried, and the labelled sets compared with the transfer set (`trials`).
2. Inputs are timed (`inputs`), and a step of each student (`students`).
3. Every teacher gives the logits of a sample of the transfer set (`sample`).
4. Every encoding stores that sample (`encodings`): the bytes of all rows follow, and error and time are measured.
5. The passes of the teachers are counted, for the cache and for students that would run them live.

Nothing is written.
"""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import PurePath
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ...storage.api import Store
from ...storage.backends.writable import ENDLESS, Writable
from ...storage.encodings.encoding import Encoding
from ...storage.encodings.error_budget import ErrorBudget
from ...storage.encodings.half import FloatEncoding
from ...storage.encodings.named import encoding_named
from ...storage.encodings.transform import Transform
from ...storage.errors import ConfigError, LimitExceeded
from ...storage.format.constants import SAMPLES, TEMPERATURES
from ...storage.format.grid import Grid
from ...storage.format.layouts import DTYPES_OF
from ...storage.parts.footprint import Footprint, plain_bytes, root_footprint, samples_footprint
from ...storage.parts.padded_rows import file_rows
from ...storage.processors import processors
from ...storage.progress import Progress, silent
from ..cache.limits import arrays_of_samples, check_limits
from ..cache.set_warnings import warn_of_set, warn_of_stored_inputs
from ..cache.todo import capture_identity, find_teacher, plan_grid
from ..experiment.document import Experiment
from ..models.records import Models
from ..same_set import check_samples
from ..specialists.todo import special_classes, specialist_runs
from ..train.todo import student_seeds
from ..transfer import TransferRows, files_of, input_bytes
from ..trials import LABELLED_SETS, try_ahead
from ..views import experiment_views
from ..workspace import Workspace
from .encodings import CapturePlan, considered, try_encoding
from .inputs import (
    Bound,
    InputTimes,
    measure_inputs,
    network_threads,
    row_seconds,
    together,
)
from .reuse import ReusePlan, plan_reuse
from .sample import Origin, sample_teacher, spread_rows
from .students import StudentPlan, StudentTimes, passes_an_epoch, plan_students

SAMPLE_ROWS: Final = 2048
"""Default number of (row, view) pairs in a sample."""
_SAMPLED_FILES: Final = 64
"""Files from which the bytes of all files in a store are estimated."""
_SAMPLE_LOGITS: Final = 1 << 26
"""Maximum number of logits in a sample of default size: 256 MiB."""


@dataclass(frozen=True)
class EncodingPlan:
    """All teachers in one encoding."""

    name: str
    """The encoding in the words of an experiment file."""
    is_own: bool
    """Whether it is the experiment's encoding."""
    block_rows: int | None
    """Rows a block of the store; None where no store has blocks for it."""
    row_bytes: float | None
    """Bytes of a row of one view of one teacher: the arrays of its capture, after the codec. None where refused."""
    bytes: int | None
    """Bytes of a whole store: all captures, samples and inputs, records and metadata."""
    files: int | None
    """Number of files of a whole store."""
    kl_max: tuple[float, ...] | None
    """Maximum KL over captures whose logits are not from the model, or over all where every one is; nats."""
    kl_mean: tuple[float, ...] | None
    """Mean KL over the same captures."""
    bound: tuple[float | None, ...] | None
    """KL that no row exceeds, at the same temperatures; None where it is only measured."""
    encode_rows_per_second: float | None
    """Rows a second that were encoded, over all teachers, without the codec and the disk; None where refused."""
    decode_rows_per_second: float | None
    """Rows a second that were decoded to all of their logits, the same way."""
    compressed_row_bytes: float | None
    """As `row_bytes`, of what `logitstore compress` would make of the experiment's captures by this budget."""
    compressed_dtype: str | None
    """dtype of its codes: "uint8" where the codes of every teacher's sample fit."""
    not_compressed: str | None
    """Why `compress` cannot keep the budget for some teacher; None where it can."""
    captures: tuple[CapturePlan, ...]
    """Each teacher, in order."""
    refused: str | None
    """Why some teacher's sample cannot be stored so; None where it can."""
    cheaper: str | None = None
    """Of a transform: the encoding of the fewest bytes in all, of those with a bound as tight, if it takes no more."""


@dataclass(frozen=True)
class TeacherPlan:
    """Speed and hours of one teacher."""

    name: str
    """Name of its capture."""
    source: Origin
    """Origin of the logits of its sample."""
    is_rounded: bool
    """Whether these come from a float16 capture."""
    rows_per_second: float
    """Measured speed of the network alone, without reading inputs."""
    live_passes: int
    """Passes over the rows if every student ran it in every epoch."""
    cached_hours: float
    """Hours of this teacher over all rows and views, but for those that are reused."""
    live_hours: float
    """Hours of the live passes."""


@dataclass(frozen=True)
class Passes:
    """Passes of all teachers over the rows, with the cache and without."""

    cached: int
    """Number of views, summed over teachers."""
    live: int
    """Epochs of all students and seeds, summed over the teachers that they learn from."""
    epochs: int
    """Epochs of the students that learn from a teacher, summed over seeds."""
    pays_from: int | None
    """First epoch, over students and seeds in turn, after which the live passes exceed the cached ones; None for never."""


@dataclass(frozen=True)
class InputsPlan:
    """The inputs of stage one, and its hours with them."""

    fetch_seconds: float
    """Seconds of one thread to fetch, decode and digest an input."""
    view_seconds: float
    """Seconds of one thread to make an augmented view of it, and to digest that; 0 without an augmentation."""
    row_seconds: float
    """Seconds of one thread for all views of a row, each fetch counted."""
    workers: int
    """Processes that prepare them (`cache.workers`); 0 for a thread of stage one."""
    hours: float
    """Hours of stage one: inputs and all teachers, which work at the same time."""
    bound: Bound
    """The one of inputs, networks and processors that takes so long."""


@dataclass(frozen=True)
class Plan:
    """The cost of an experiment."""

    num_rows: int
    """Rows of the transfer set."""
    num_classes: int
    """Number of classes."""
    views: int
    """Number of views of each row."""
    input_bytes: int
    """Bytes of an input that the store keeps; 0 where it keeps none."""
    sample_rows: int
    """(row, view) pairs in the sample."""
    temperatures: tuple[float, ...]
    """Temperatures at which KL is given."""
    device: str
    """Device that the teachers ran on."""
    teachers: tuple[TeacherPlan, ...]
    """Each network to be cached."""
    encodings: tuple[EncodingPlan, ...]
    """Every encoding that the plan compares."""
    passes: Passes
    """Passes of the teachers."""
    inputs: InputsPlan
    """Inputs of stage one."""
    students: tuple[StudentPlan, ...]
    """Each student."""
    specialists: int
    """Number of captures of specialists and of their combination, beside those of the teachers."""
    specialist_bytes: int
    """Bytes of these in float16, the largest of the encodings that they may have."""
    store: PurePath
    """Path or URL of the store."""
    free_bytes: int | None
    """Free bytes on its disk; None where nothing states them, as in a bucket."""
    reuse: tuple[ReusePlan, ...] = ()
    """Of each teacher, the rows that would be taken from earlier stores; empty without such stores."""

    @property
    def own(self) -> EncodingPlan:
        """Return the plan of the experiment's encoding."""
        return next(encoding for encoding in self.encodings if encoding.is_own)


def plan(
    experiment: Experiment,
    store: PurePath,
    models: Models,
    *,
    sample_rows: int | None = None,
    rows: TransferRows | None = None,
    device: str | None = None,
    progress: Progress = silent,
    reuse: Sequence[str] = (),
) -> Plan:
    """Return the cost of an experiment, with every encoding.

    store: path of its store, or its `Address`, which may exist. sample_rows: maximum number of (row, view) pairs that a teacher is run on.
    rows: the transfer set, where the caller has opened it. device: as for `cache`. reuse: earlier stores.
    Raises what `cache` would raise before it writes, and what trainings and `evaluate` would of their networks and sets: ConfigError, FactoryError, BadDataError, BadLogitsError,
    SpecMismatch where the store is one of another transfer set.
    """
    work = Workspace(experiment, store, models, device, progress, given_rows=rows, reuse=reuse)
    rows, opened, target, views = work.rows, work.find_store(), work.choose_device(), experiment.cache.views
    if opened is not None:
        check_samples(opened, rows)
    warn_of_set(rows)
    if opened is None:
        warn_of_stored_inputs(input_bytes(experiment, rows), rows)
    measured = StudentTimes()
    try_ahead(
        work,
        teachers=[member for member in experiment.teacher_members() if find_teacher(work, member) is None],
        views=True,
        specialists=True,
        students=True,
        sets={name: None for name in LABELLED_SETS if getattr(experiment, name) is not None},
        warns=True,
        and_then=measured,
    )
    times = measure_inputs(work)
    most = min(SAMPLE_ROWS, max(1, _SAMPLE_LOGITS // rows.num_classes))
    sample = spread_rows(len(rows), views, most if sample_rows is None else max(1, sample_rows))
    own, encodings = experiment.cache.chosen_encoding, considered(experiment, rows.num_classes)
    # A store that exists has its blocks already, whatever the encoding.
    fixed = None if opened is None else opened.grid
    own_grid = fixed or plan_grid(experiment, rows, own)
    grids = {name: _grid(experiment, rows, encoding, fixed) for name, encoding in encodings.items()}
    captures: dict[str, list[CapturePlan]] = {name: [] for name in encodings}
    reused = {one.teacher: one for one in plan_reuse(work)}
    make_view, live, teachers = experiment_views(experiment, rows), live_passes(experiment), []
    for member in experiment.teacher_members():
        found = sample_teacher(work, member, sample, make_view)
        hours = len(rows) / found.rows_per_second / 3600
        passes = live[member.name]
        old = reused.get(member.name)
        run = views * (1.0 if old is None else 1 - old.reused / old.rows)
        teachers.append(
            TeacherPlan(
                member.name,
                found.source,
                found.is_rounded,
                found.rows_per_second,
                passes,
                run * hours,
                passes * hours,
            )
        )
        identity, task = (
            capture_identity(experiment, member, rows, f"sha256:{0:064d}"),
            f"encoding {member.name}",
        )
        for number, (name, encoding) in enumerate(encodings.items()):
            progress(task, number, len(encodings), "encodings")
            captures[name].append(
                try_encoding(encoding, own, member.name, found, grids[name], own_grid, views, identity)
            )
        progress(task, len(encodings), len(encodings), "encodings")
    plans = {
        name: _encoding_plan(experiment, rows, name, encoding, grids[name], captures[name])
        for name, encoding in encodings.items()
    }
    return Plan(
        len(rows),
        rows.num_classes,
        views,
        input_bytes(experiment, rows),
        len(sample),
        TEMPERATURES,
        str(target),
        tuple(teachers),
        tuple(replace(one, cheaper=_cheaper(name, encodings, plans)) for name, one in plans.items()),
        count_passes(experiment),
        _plan_inputs(work, times, own_grid, teachers),
        plan_students(work, times, measured),
        *_of_specialists(experiment, opened, rows.num_classes, own_grid),
        store,
        _free_bytes(work),
        tuple(reused.values()),
    )


def _free_bytes(work: Workspace) -> int | None:
    """Return the bytes that are free for the store, where they are known."""
    place = work.place
    free = place.free_bytes() if isinstance(place, Writable) else ENDLESS
    return None if free == ENDLESS else free


def _plan_inputs(
    work: Workspace, times: InputTimes, grid: Grid, teachers: Sequence[TeacherPlan]
) -> InputsPlan:
    """Return the hours of stage one, in which inputs are prepared while the teachers run."""
    settings, device = work.experiment.cache, work.choose_device()
    row = row_seconds(work, times, grid)
    both = together(
        row * len(work.rows) / 3600,
        sum(teacher.cached_hours for teacher in teachers),
        settings.workers,
        network_threads(device, settings.threads),
        processors(),
    )
    return InputsPlan(times.fetch, times.view, row, settings.workers, both.seconds, both.bound)


def _grid(experiment: Experiment, rows: TransferRows, encoding: Encoding, fixed: Grid | None) -> Grid | str:
    """Return the blocks of a store in this encoding, or why there is none. fixed: of a store that exists."""
    try:
        grid = fixed or plan_grid(experiment, rows, encoding)
        check_limits(experiment, rows, encoding, grid)
    except (ConfigError, LimitExceeded) as error:
        return str(error)
    return grid


def _encoding_plan(
    experiment: Experiment,
    rows: TransferRows,
    name: str,
    encoding: Encoding,
    grid: Grid | str,
    captures: Sequence[CapturePlan],
) -> EncodingPlan:
    """Return the plan of all teachers in one encoding."""
    of = len(rows) * experiment.cache.views * len(captures)
    refused = next((capture.refused for capture in captures if capture.refused is not None), None)
    row_bytes = total = files = None
    if refused is None and isinstance(grid, Grid):
        parts = [SAMPLES, *(f"teachers/{capture.teacher}" for capture in captures)]
        row_bytes = sum(sum(capture.arrays.values()) for capture in captures) / of
        beside = [_samples(experiment, rows, grid), root_footprint(grid, rows.num_classes, parts)]
        total = sum(part.bytes for part in beside) + sum(capture.bytes for capture in captures)
        files = sum(part.files for part in beside) + sum(capture.files for capture in captures)
    theirs = [capture for capture in captures if capture.source != "model"] or captures
    bounds = tuple(map(encoding.bound, TEMPERATURES))
    smaller = [capture.compressed for capture in captures if capture.compressed is not None]
    every = bool(smaller) and len(smaller) == len(captures)
    return EncodingPlan(
        name,
        encoding == experiment.cache.chosen_encoding,
        grid.block_rows if isinstance(grid, Grid) else None,
        row_bytes,
        total,
        files,
        _over_teachers([capture.kl_max for capture in theirs], np.max),
        _over_teachers([capture.kl_mean for capture in theirs], np.mean),
        bounds if any(bound is not None for bound in bounds) else None,
        _speed([capture.encode_rows_per_second for capture in captures]),
        _speed([capture.decode_rows_per_second for capture in captures]),
        sum(sum(one.arrays.values()) for one in smaller) / of if every else None,
        max((one.dtype for one in smaller), key=lambda dtype: np.dtype(dtype).itemsize) if every else None,
        next((capture.not_compressed for capture in captures if capture.not_compressed), None),
        tuple(captures),
        refused,
    )


def _cheaper(name: str, encodings: Mapping[str, Encoding], plans: Mapping[str, EncodingPlan]) -> str | None:
    """Return the encoding that a transform does not pay beside: a float, or an error budget with a bound as tight.

    The logits of the model do not depend on one another, as a teacher's do: they decide nothing here.
    """
    encoding, size = encodings[name], plans[name].bytes
    is_modelled = any(capture.source == "model" for capture in plans[name].captures)
    if not isinstance(encoding, Transform) or size is None or is_modelled:
        return None
    found = {}
    for other, one in encodings.items():
        as_tight = isinstance(one, ErrorBudget) and all(
            one.bound(t) <= encoding.max_kl for t in encoding.temperatures
        )
        theirs = plans[other].bytes
        if (as_tight or isinstance(one, FloatEncoding)) and theirs is not None and theirs <= size:
            found[other] = theirs
    return min(found, key=found.__getitem__) if found else None


def _speed(speeds: Sequence[float | None]) -> float | None:
    """Return the rows a second of all teachers together; None where one has none.

    >>> _speed([100.0, 300.0]), _speed([100.0, None])
    (150.0, None)
    """
    known = [speed for speed in speeds if speed is not None]
    return statistics.harmonic_mean(known) if known and len(known) == len(speeds) else None


def _samples(experiment: Experiment, rows: TransferRows, grid: Grid) -> Footprint:
    """Return the footprint of the part `samples`: what is known of each row, and what else the experiment keeps."""
    every: dict[str, tuple[str, tuple[int, ...]]] = {
        name: (DTYPES_OF[name], ()) for name in ("source", "digest", "label")
    }
    arrays, sample = every | arrays_of_samples(experiment, rows), dict[str, NDArray[Any]]()
    if (files := files_of(experiment, rows)) is not None:
        few = range(min(_SAMPLED_FILES, len(rows)))
        sample["file"], _ = file_rows(files.of_rows(few), files.width, few)
    return samples_footprint(grid, arrays, rows.class_names, rows.identity, experiment.card.texts, sample)


def _over_teachers(
    values: Sequence[tuple[float, ...] | None], reduce: Callable[..., Any]
) -> tuple[float, ...] | None:
    """Return one figure a temperature; None where a teacher has none."""
    known = [value for value in values if value is not None]
    return tuple(reduce(known, axis=0).tolist()) if len(known) == len(values) else None


def _of_specialists(
    experiment: Experiment, store: Store | None, num_classes: int, grid: Grid
) -> tuple[int, int]:
    """Count the captures of specialists and of their combination, and their bytes in float16.

    A combination in float32 is counted as such; in an encoding with a codec it takes fewer bytes than float16.
    """
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
    plain, views = encoding_named("float16"), experiment.cache.views
    captures = [(plain, count) for count in columns]
    if (combine := experiment.combine) is not None:
        chosen = combine.chosen_encoding
        captures.append((chosen if isinstance(chosen, FloatEncoding) else plain, num_classes))
    return len(captures), sum(plain_bytes(encoding, count, grid, views) for encoding, count in captures)


def live_passes(experiment: Experiment) -> dict[str, int]:
    """Count the passes over the rows of each teacher, if every student ran its teachers in every epoch."""
    passes = dict.fromkeys((member.name for member in experiment.teacher_members()), Fraction())
    for run in student_seeds(experiment):
        for name in passes.keys() & experiment.teacher_weights(run.student):
            passes[name] += run.student.train.epochs * passes_an_epoch(experiment, run.student)
    return {name: round(count) for name, count in passes.items()}


def count_passes(experiment: Experiment) -> Passes:
    """Count the passes of all teachers over the rows, with the cache and without."""
    cached = experiment.cache.views * len(experiment.teacher_members())
    live, epochs = Fraction(), 0
    pays_from = None
    for run in student_seeds(experiment):
        each = len(experiment.teacher_weights(run.student)) * passes_an_epoch(experiment, run.student)
        if each:
            before, live = live, live + each * run.student.train.epochs
            if pays_from is None and live > cached:
                # The first of its epochs after which more than `cached` would have been run.
                pays_from = epochs + (cached - before) // each + 1
            epochs += run.student.train.epochs
    return Passes(cached, round(live), epochs, pays_from)
