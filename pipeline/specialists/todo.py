"""Identities of specialists and their captures, and those that are missing. Imports no torch.

specialist   the generalist's weights, the clustering, its set, settings, seed     record beside its weights
capture      the specialist's weights, the generalist's capture, π, share, …       spec in the store
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int64

from ...storage.api import Store
from ...storage.checks import rows_by_share
from ...storage.encodings.encoding import Encoding
from ...storage.encodings.named import encoding_named
from ...storage.errors import BadDataError, ConfigError, PartNotFound
from ...storage.format.constants import SAMPLES
from ...storage.identity import as_json, check_same
from ...storage.parts.reader import sets_of
from ..cache.todo import capture_identity, find_teacher, stated_identity
from ..combine.todo import check_combined_names, needs_combination
from ..experiment.document import Experiment
from ..experiment.schema import settled
from ..experiment.tables import Combine, Specialists
from ..experiment.training import IDLE_KEYS, validation_identity
from ..factories.local_code import SOURCE
from ..factories.read_files import READ
from ..held_out import check_shares, held_out_rows
from ..models.loaders import stable_name
from ..models.records import Record, as_kept
from ..workspace import Workspace
from .dustbin import CORRECTED, DUSTBIN

KIND = "specialists"
"""Folder of their weights, in that of the models."""
_RENAME = "change it back, or give the new ones another specialists.name"


@dataclass(frozen=True)
class SpecialistRun:
    """One specialist, of one set."""

    name: str
    """Name of its capture and of its files."""
    number: int
    """Number of its set in the clustering."""
    seed: int
    """Seed of its batches and of all that is random in its training."""


@dataclass(frozen=True, eq=False)
class SpecialRows:
    """The rows of a specialist, in two strata, and the number of each in a batch."""

    classes: Int64[np.ndarray, " own"]
    """Its classes, ascending."""
    special: Int64[np.ndarray, " special"]
    """Rows of the store with a label among them, ascending."""
    others: Int64[np.ndarray, " others"]
    """Rows with another label, ascending."""
    batch: tuple[int, int]
    """Rows of each kind in a batch: special, others."""
    held_out: Int64[np.ndarray, " held"]
    """Rows that it does not learn from and is validated on, ascending, in the shares of a batch."""

    @property
    def prior(self) -> float:
        """π: share of the labelled rows that are special."""
        return len(self.special) / (len(self.special) + len(self.others))

    @property
    def share(self) -> float:
        """s: share of special rows in every batch, which has whole rows."""
        return self.batch[0] / sum(self.batch)


@dataclass(frozen=True)
class SpecialistsTodo:
    """Missing specialists, captures and combination."""

    train: tuple[SpecialistRun, ...] = ()
    """Specialists to be trained."""
    capture: tuple[SpecialistRun, ...] = ()
    """Specialists to be run over the transfer set."""
    combine: Combine | None = None
    """The combination to be written."""

    def __bool__(self) -> bool:
        return bool(self.train or self.capture or self.combine)

    def lines(self) -> list[str]:
        """List what is to be done."""
        lines = [f"train specialist {run.name}" for run in self.train]
        lines += [f"capture specialist {run.name}" for run in self.capture]
        return lines + ([f"combine into {self.combine.name}"] if self.combine else [])


def find_todo(work: Workspace) -> SpecialistsTodo:
    """Find the specialists, captures and combination that are missing. Changes nothing.

    Raises PartNotFound for a clustering that neither is there nor will be made, SpecMismatch if something in the store
    has a name of the experiment and another identity.
    """
    experiment, store = work.experiment, work.find_store()
    if experiment.specialists is None:
        return SpecialistsTodo()
    names, table = [run.name for run in specialist_runs(experiment, store)], experiment.combine
    if store is not None and table is not None:
        check_combined_names(store, table, names)
    records = find_specialists(work)
    train, capture = missing_specialists(work, records), missing_captures(work, records)
    if table is not None and not train and not capture and store is not None:
        table = table if needs_combination(store, table, experiment.generalist.name, names) else None
    return SpecialistsTodo(tuple(train), tuple(capture), table)


# Specialists and their rows


def table_of(experiment: Experiment) -> Specialists:
    """Return `[specialists]`. Raises ConfigError for an experiment without it."""
    if experiment.specialists is None:
        raise ConfigError(
            "specialists",
            expected="a table that says how specialists are trained",
            found="no such table",
            remedy="add [specialists] to the experiment",
        )
    return experiment.specialists


def specialist_runs(experiment: Experiment, store: Store | None) -> list[SpecialistRun]:
    """List the specialists of an experiment in the order of their sets; none if it has no such table.

    store: the store of the clustering; None if there is none yet. Raises ConfigError for a set that the clustering does
    not have, PartNotFound for a clustering that neither is there nor will be made.
    """
    table = experiment.specialists
    if table is None:
        return []
    name, own = experiment.clustering_name, experiment.cluster
    if store is not None and store.is_whole(f"clusters/{name}"):
        known = len(sets_of(store.clustering(name), store.num_classes))
    elif own is not None and own.part_name == name:
        known = own.clusters
    else:
        there = ", ".join(store.clusterings if store is not None else [])
        raise PartNotFound(
            f"specialists.clustering = '{name}'",
            expected="a clustering of the store",
            found=f"no '{name}'",
            remedy="make it with `logitstore cluster`"
            + (f", or name one that is there: {there}" if there else ""),
        )
    numbers = range(known) if table.sets == "all" else sorted(table.sets)
    if max(numbers) >= known:
        raise ConfigError(
            "specialists.sets",
            expected=f"sets from 0 to {known - 1} of clusters/{name}",
            found=str(max(numbers)),
            remedy="name sets that there are",
        )
    prefix = experiment.specialist_prefix
    return [SpecialistRun(f"{prefix}-{number}", number, table.seed + number) for number in numbers]


def special_classes(
    experiment: Experiment, run: SpecialistRun, store: Store
) -> Int64[np.ndarray, " special"]:
    """Return the classes of a specialist, ascending. Raises BadDataError for a set of no class, or of all."""
    sets = sets_of(store.clustering(experiment.clustering_name), store.num_classes)
    classes = np.unique(sets[run.number])
    if not 1 <= len(classes) < store.num_classes:
        raise BadDataError(
            f"specialist {run.name!r}",
            expected=f"from 1 to {store.num_classes - 1} classes",
            found=f"{len(classes)}",
            remedy="take another set, or another clustering",
        )
    return classes.astype(np.int64)


def special_rows(work: Workspace, run: SpecialistRun) -> SpecialRows:
    """Return the labelled rows that a specialist learns from, in two strata.

    Raises BadDataError for a store without labels, and for a set without rows, or without others.
    """
    table, labels = table_of(work.experiment), work.store.samples.labels
    classes, where = special_classes(work.experiment, run, work.store), f"specialist {run.name!r}"
    known = labels >= 0
    if not known.any():
        raise BadDataError(
            where,
            expected="labels to train it from",
            found="a store without any",
            remedy="label the transfer set",
        )
    check_shares(table.train, len(labels), where)
    mine, held = np.isin(labels, classes), np.zeros(len(labels), bool)
    if table.train.held_out is not None:
        held[held_out_rows(len(labels), table.train.held_out)] = True
    special, others = np.flatnonzero(mine & ~held), np.flatnonzero(known & ~mine & ~held)
    for rows, of in ((special, "of its classes"), (others, "of other classes")):
        if not len(rows):
            raise BadDataError(
                where,
                expected=f"labelled rows {of}, {shown_classes(classes)}",
                found="none",
                remedy="take other sets (specialists.sets), or a transfer set that has such rows",
            )
    batch = rows_by_share(table.train.batch_size, [table.share, 1 - table.share])
    own, rest = np.flatnonzero(mine & held), np.flatnonzero(known & ~mine & held)
    if table.train.held_out is not None and not (len(own) and len(rest)):
        raise BadDataError(
            where,
            expected=f"labelled rows of its classes and of others held out, {shown_classes(classes)}",
            found=f"{len(own)} and {len(rest)}",
            remedy="raise specialists.train.validation, or remove it",
        )
    # As many others as in a batch beside its own rows, spread over all: its logits are for these shares.
    count = min(len(rest), max(1, round(len(own) * batch[1] / batch[0])))
    rest = rest[np.arange(count) * len(rest) // count] if len(rest) else rest
    return SpecialRows(classes, special, others, (batch[0], batch[1]), np.sort(np.concatenate([own, rest])))


def shown_classes(classes: Int64[np.ndarray, " special"]) -> str:
    """Shorten a list of classes.

    >>> shown_classes(np.arange(3)), shown_classes(np.arange(300))
    ('0, 1, 2', '0, 1, 2 … 299')
    """
    text = [str(int(number)) for number in classes]
    return ", ".join(text) if len(text) <= 5 else f"{', '.join(text[:3])} … {text[-1]}"


def columns_of(
    table: Specialists, classes: Int64[np.ndarray, " special"], num_classes: int
) -> Int64[np.ndarray, " columns"]:
    """Return the class of each output of a specialist: its own and then the dustbin, or all of them."""
    if table.variant == "full":
        return np.arange(num_classes, dtype=np.int64)
    return np.append(classes, DUSTBIN).astype(np.int64)


# Training


def specialist_identity(work: Workspace, run: SpecialistRun, generalist: Record) -> dict[str, Any]:
    """Return the identity of a specialist. generalist: the record of its weights.

    Raises PartNotFound or StoreIncomplete if the generalist's capture or the clustering is not sealed.
    """
    experiment, store = work.experiment, work.store
    table, member = table_of(experiment), experiment.generalist
    optional: dict[str, Any] = {} if table.head is None else {"head": table.head}
    if table.variant == "full":
        optional |= {"temperature": table.temperature}
    if source := member.source:
        optional |= {SOURCE: source}
    if files := member.files_read:
        optional |= {READ: files}
    return {
        "variant": table.variant,
        "generalist": {
            "name": member.name,
            "factory": stable_name(member.teacher.factory),
            "args": member.teacher.args,
            "weights": generalist.weights,
        },
        "clustering": _clustering(work),
        "set": run.number,
        "share": special_rows(work, run).share,
        "views": table.views,
        **optional,
        "train": settled(
            table.train,
            later={"clip_norm", "ema", "label_smoothing", "precision"},
            idle={"compile", *IDLE_KEYS},
        ),
        **validation_identity(table.train, lambda: None),
        "seed": run.seed,
        "samples": store.digest_of(SAMPLES),
        "seals": {member.name: store.digest_of(f"teachers/{member.name}")},
    }


def _clustering(work: Workspace) -> dict[str, Any]:
    name = work.experiment.clustering_name
    return {"name": name, "digest": work.store.digest_of(f"clusters/{name}")}


def can_begin(work: Workspace) -> bool:
    """Return whether all is there that specialists are made from: samples, clustering, the generalist's capture.

    Labels and sets are read to find what is missing: parts that lost files are made again first.
    """
    experiment, store = work.experiment, work.find_store()
    if store is None or store.find_spec(f"teachers/{experiment.generalist.name}") is None:
        return False
    return store.is_whole(SAMPLES) and store.is_whole(f"clusters/{experiment.clustering_name}")


def find_generalist(work: Workspace) -> Record | None:
    """Return the record of the generalist's weights; None as long as no specialist can begin from them."""
    return find_teacher(work, work.experiment.generalist) if can_begin(work) else None


def find_specialists(work: Workspace) -> dict[SpecialistRun, Record | None]:
    """Return the record of each specialist, in order; None if it is still to be trained."""
    runs, generalist = specialist_runs(work.experiment, work.find_store()), find_generalist(work)
    if generalist is None:
        return dict.fromkeys(runs)
    return {run: work.models.find(KIND, run.name, specialist_identity(work, run, generalist)) for run in runs}


def missing_specialists(
    work: Workspace, records: Mapping[SpecialistRun, Record | None]
) -> list[SpecialistRun]:
    """Return the specialists that are not trained yet, or were trained from something else.

    records: as of `find_specialists`. Raises SpecMismatch for one that is captured and would be trained otherwise now.
    """
    missing = [run for run, record in records.items() if record is None]
    generalist = find_generalist(work) if missing else None
    if generalist is None:
        return missing
    for run in missing:
        recorded, part = work.models.recorded_identity(KIND, run.name), f"teachers/{run.name}"
        if recorded is not None and work.store.identity_of(part) is not None:
            check_same(
                f"{work.store.path}: {part}",
                as_kept(as_json(specialist_identity(work, run, generalist)), recorded),
                recorded,
                made="with which it was trained",
                remedy=_RENAME,
            )
    return missing


# Captures


def specialist_encoding(work: Workspace, onto: Workspace) -> Encoding:
    """Return the encoding of specialists' logits: the teachers', or float16 if those are the largest few alone."""
    chosen = onto.experiment.cache.chosen_encoding
    narrow = table_of(work.experiment).variant != "full" and not chosen.is_dense
    return encoding_named("float16") if narrow else chosen


def specialist_capture_identity(
    work: Workspace, run: SpecialistRun, weights: str, onto: Workspace
) -> dict[str, Any]:
    """Return the identity of a specialist's capture without encoding and number of views.

    weights: digest of its weights. onto: the workspace whose store and transfer set it is captured with; most often `work`
    itself.
    """
    member, special = work.experiment.generalist, special_rows(work, run)
    plain = capture_identity(onto.experiment, member, onto.rows, weights)
    head = {
        "kind": "specialist",
        "variant": table_of(work.experiment).variant,
        "generalist": {"capture": member.name, "seal": onto.store.digest_of(f"teachers/{member.name}")},
        "clustering": _clustering(work),
        "set": run.number,
        "prior": special.prior,
        "share": special.share,
        CORRECTED: True,
    }
    made_by = {key: value for key, value in plain["teacher"].items() if key != "files"}
    made_by["head"] = {"kind": plain["teacher"]["head"]["kind"]}  # no layer is taken off a specialist
    return {**plain, "teacher": made_by, "head": head}


def missing_captures(
    work: Workspace, records: Mapping[SpecialistRun, Record | None], onto: Workspace | None = None
) -> list[SpecialistRun]:
    """Return the specialists that are not captured yet, or whose capture has lost files.

    records: as of `find_specialists`. onto: as of `specialist_capture_identity`. Raises SpecMismatch if a capture has the
    name of a specialist and another identity.
    """
    table, onto = work.experiment.specialists, onto or work
    if table is None or not table.capture:
        return []
    if not can_begin(work):
        return list(records)
    return [run for run, record in records.items() if _is_uncaptured(work, run, record, onto)]


def _is_uncaptured(work: Workspace, run: SpecialistRun, record: Record | None, onto: Workspace) -> bool:
    store, part_name = onto.store, f"teachers/{run.name}"
    spec = store.find_spec(part_name)
    if spec is None or store.find_spec(f"teachers/{work.experiment.generalist.name}") is None:
        return True
    theirs = spec.identity
    ours = specialist_capture_identity(work, run, "" if record is None else record.weights, onto)
    check_same(
        f"{store.path}: {part_name}",
        stated_identity(ours, theirs, specialist_encoding(work, onto), onto.experiment.cache.views),
        theirs,
        made="with which it was captured",
        remedy=_RENAME,
    )
    return record is None or not store.is_whole(part_name)


def names_of(runs: Sequence[SpecialistRun]) -> list[str]:
    """Return the names of some specialists."""
    return [run.name for run in runs]
