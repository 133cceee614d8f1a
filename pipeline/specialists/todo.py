"""Which specialists are there to be, what does each follow from, and which are still to be trained or captured?

As in `agenda`: everything that is made has an identity, and is done when something with that identity is there.

    specialist   the generalist's weights, the clustering, its set, settings, seed     record beside its weights
    capture      the specialist's weights, the generalist's capture, π, share, …       spec in the store
    combination  the seals of generalist and specialists, the settings                 spec in the store

Needs no torch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

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
from ..cache.todo import capture_identity, find_teacher, with_agreed_batch
from ..combine.stage import check_same_specialists
from ..experiment.document import Experiment
from ..experiment.schema import settled
from ..experiment.tables import Specialists
from ..models.records import Models, Record
from ..transfer import TransferRows
from .dustbin import CORRECTED, DUSTBIN

KIND = "specialists"
"""The folder of their weights, in that of the models."""


_COMBINED: Final = "with which it was combined"


_RENAME_COMBINATION: Final = "change it back, or give the new one another combine.name"


_RENAME: Final = "change it back, or give the new ones another specialists.name"


@dataclass(frozen=True)
class SpecialistRun:
    """One specialist, of one set."""

    name: str
    """Its name in the store and of its files."""
    number: int
    """Of its set, in the clustering."""
    seed: int
    """Of its batches and of whatever is random in its training."""


@dataclass(frozen=True, eq=False)
class SpecialRows:
    """Which rows are a specialist's, and how many of them come in a batch."""

    classes: Int64[np.ndarray, " own"]
    """Its classes, ascending."""
    special: Int64[np.ndarray, " special"]
    """Rows of the store with a label among them, ascending."""
    others: Int64[np.ndarray, " others"]
    """Rows with another label, ascending."""
    batch: tuple[int, int]
    """Of a batch: special rows, others."""

    @property
    def prior(self) -> float:
        """π: share of the labelled rows that are special."""
        return len(self.special) / (len(self.special) + len(self.others))

    @property
    def share(self) -> float:
        """s: share of special rows in every batch, as it is in whole rows."""
        return self.batch[0] / sum(self.batch)


def table_of(experiment: Experiment) -> Specialists:
    """`[specialists]`. Raises ConfigError where there is none."""
    if experiment.specialists is None:
        raise ConfigError(
            "specialists",
            expected="a table that says how specialists are trained",
            found="no such table",
            remedy="add [specialists] to the experiment",
        )
    return experiment.specialists


def specialist_runs(experiment: Experiment, store: Store | None) -> list[SpecialistRun]:
    """Every specialist that there is to be, in the order of the sets; none for an experiment without.

    store: where the clustering is; None where nothing is there yet. Raises ConfigError for a set that is not in it,
    PartNotFound for a clustering that neither is there nor will be made.
    """
    table = experiment.specialists
    if table is None:
        return []
    name, own = experiment.clustering_name, experiment.cluster
    makes_it = own is not None and own.part_name == name
    if (
        store is not None
        and name in store.clusterings
        and (not makes_it or store.root.is_whole(f"clusters/{name}"))
    ):
        known = len(sets_of(store.clustering(name), store.num_classes))
    elif own is not None and makes_it:
        known = own.clusters
    else:
        known_names = ", ".join(store.clusterings if store is not None else [])
        raise PartNotFound(
            f"specialists.clustering = '{name}'",
            expected="a clustering of the store",
            found=f"no '{name}'",
            remedy="make it with `logitstore cluster`"
            + (f", or name one that is there: {known_names}" if known_names else ""),
        )
    numbers = range(known) if table.sets == "all" else sorted(table.sets)
    if max(numbers) >= known:
        raise ConfigError(
            "specialists.sets",
            expected=f"sets from 0 to {known - 1} of clusters/{name}",
            found=str(max(numbers)),
            remedy="name sets that there are",
        )
    return [
        SpecialistRun(f"{experiment.specialist_prefix}-{number}", number, table.seed + number)
        for number in numbers
    ]


def special_classes(
    experiment: Experiment, run: SpecialistRun, store: Store
) -> Int64[np.ndarray, " special"]:
    """The classes of a specialist, ascending. Raises BadDataError for a set that is none, or all classes."""
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


def special_rows(experiment: Experiment, run: SpecialistRun, store: Store) -> SpecialRows:
    """The rows that a specialist learns from: those with a label, in two strata.

    Raises BadDataError for a store without labels, and for a set of which there is no row, or no other.
    """
    table = table_of(experiment)
    classes, labels = special_classes(experiment, run, store), store.samples.labels
    where = f"specialist {run.name!r}"
    known = labels >= 0
    if not known.any():
        raise BadDataError(
            where,
            expected="labels to train it from",
            found="a store without any",
            remedy="label the transfer set",
        )
    mine = np.isin(labels, classes)
    special, others = np.flatnonzero(mine), np.flatnonzero(known & ~mine)
    for rows, of in ((special, "of its classes"), (others, "of other classes")):
        if not len(rows):
            raise BadDataError(
                where,
                expected=f"labelled rows {of}, {shown_classes(classes)}",
                found="none",
                remedy="take other sets (specialists.sets), or a transfer set that has such rows",
            )
    batch = rows_by_share(table.train.batch_size, [table.share, 1 - table.share])
    return SpecialRows(classes, special, others, (batch[0], batch[1]))


def shown_classes(classes: Int64[np.ndarray, " special"]) -> str:
    """Some classes in a few words.

    >>> shown_classes(np.arange(3)), shown_classes(np.arange(300))
    ('0, 1, 2', '0, 1, 2 … 299')
    """
    text = [str(int(number)) for number in classes]
    return ", ".join(text) if len(text) <= 5 else f"{', '.join(text[:3])} … {text[-1]}"


def columns_of(
    experiment: Experiment, classes: Int64[np.ndarray, " special"], num_classes: int
) -> Int64[np.ndarray, " columns"]:
    """The class of each of a specialist's outputs: its own and then the dustbin, or all of them."""
    if table_of(experiment).variant == "full":
        return np.arange(num_classes, dtype=np.int64)
    return np.append(classes, DUSTBIN).astype(np.int64)


# Training


def specialist_identity(
    experiment: Experiment, run: SpecialistRun, store: Store, generalist: Record
) -> dict[str, Any]:
    """What a specialist follows from. generalist: the record of its weights.

    Raises PartNotFound or StoreIncomplete where the generalist's capture or the clustering is not there.
    """
    table, member, rows = table_of(experiment), experiment.generalist, special_rows(experiment, run, store)
    optional: dict[str, Any] = {} if table.head is None else {"head": table.head}
    if table.variant == "full":
        optional |= {"temperature": table.temperature}
    return {
        "variant": table.variant,
        "generalist": {
            "name": member.name,
            "factory": member.teacher.factory,
            "args": member.teacher.args,
            "weights": generalist.weights,
        },
        "clustering": _clustering(experiment, store),
        "set": run.number,
        "share": rows.share,
        "views": table.views,
        **optional,
        "train": settled(
            table.train,
            later={"clip_norm", "ema", "label_smoothing", "precision"},
            idle={"checkpoint_every", "compile"},
        ),
        "seed": run.seed,
        "samples": store.root.digest_of(SAMPLES),
        "seals": {member.name: store.root.digest_of(f"teachers/{member.name}")},
    }


def _clustering(experiment: Experiment, store: Store) -> dict[str, Any]:
    name = experiment.clustering_name
    return {"name": name, "digest": store.root.digest_of(f"clusters/{name}")}


def find_specialist(
    experiment: Experiment, run: SpecialistRun, store: Store, models: Models, generalist: Record | None
) -> Record | None:
    """The record of a specialist that is trained; None where it is still to be."""
    if generalist is None or not _can_be_begun(experiment, store):
        return None
    return models.find(KIND, run.name, specialist_identity(experiment, run, store, generalist))


def _can_be_begun(experiment: Experiment, store: Store) -> bool:
    """Whether what specialists are made from is there."""
    return (
        experiment.generalist.name in store.teachers
        and store.root.is_whole(f"clusters/{experiment.clustering_name}")
        and store.root.is_whole(SAMPLES)
    )


def missing_specialists(
    experiment: Experiment, rows: TransferRows, models: Models, store: Store | None
) -> list[SpecialistRun]:
    """The specialists that are not trained yet, or were trained from something else.

    Raises SpecMismatch where one is captured that would be trained otherwise now.
    """
    runs = specialist_runs(experiment, store)
    if store is None or not runs or not _can_be_begun(experiment, store):
        return runs
    generalist = find_teacher(experiment, experiment.generalist, rows, models)
    missing = []
    for run in runs:
        if find_specialist(experiment, run, store, models, generalist) is not None:
            continue
        recorded = models.recorded_identity(KIND, run.name)
        captured = run.name in store.teachers or store.root.begun(f"teachers/{run.name}") is not None
        if generalist is not None and recorded is not None and captured:
            check_same(
                f"{store.path}: teachers/{run.name}",
                as_json(specialist_identity(experiment, run, store, generalist)),
                recorded,
                made="with which it was trained",
                remedy=_RENAME,
            )
        missing.append(run)
    return missing


# Captures


def specialist_encoding(experiment: Experiment, shown: Experiment) -> Encoding:
    """How specialists' logits are stored: as the teachers' are; float16 where those are the largest few alone.

    shown: the experiment whose store it is; most often the same one.
    """
    chosen = shown.cache.chosen_encoding
    narrow = table_of(experiment).variant != "full" and not chosen.is_dense
    return encoding_named("float16") if narrow else chosen


def specialist_capture_identity(
    experiment: Experiment,
    run: SpecialistRun,
    home: Store,
    weights: str,
    *,
    onto: Store,
    shown: Experiment,
    rows: TransferRows,
) -> dict[str, Any]:
    """What the capture of a specialist follows from, but for its encoding and number of views.

    home: the store that it was trained from. weights: digest of its weights. onto, shown, rows: the store that it is
    captured in, the experiment that this is of, and its transfer set; home's own, or another one.
    """
    member, special = experiment.generalist, special_rows(experiment, run, home)
    variant = table_of(experiment).variant
    plain = capture_identity(shown, member, rows, weights)
    made_by = {key: value for key, value in plain["teacher"].items() if key != "files"}
    head = {
        "kind": "specialist",
        "variant": variant,
        "generalist": {"capture": member.name, "seal": onto.root.digest_of(f"teachers/{member.name}")},
        "clustering": _clustering(experiment, home),
        "set": run.number,
        "prior": special.prior,
        "share": special.share,
        CORRECTED: True,
    }
    return {**plain, "teacher": made_by, "head": head}


def missing_specialist_captures(
    experiment: Experiment,
    rows: TransferRows,
    models: Models,
    store: Store | None,
    *,
    onto: tuple[Experiment, Store] | None = None,
) -> list[SpecialistRun]:
    """The specialists that are not captured yet, or whose capture has lost blocks.

    onto: an experiment on another transfer set, and its store, where they are to be captured there; `rows` is then
    that set. Raises SpecMismatch where a capture has the name of a specialist and is of something else.
    """
    if experiment.specialists is None or not experiment.specialists.capture:
        return []
    runs = specialist_runs(experiment, store)
    if store is None or not _can_be_begun(experiment, store):
        return runs
    shown, there = (experiment, store) if onto is None else onto
    own = rows if onto is None else TransferRows(experiment)
    generalist = find_teacher(experiment, experiment.generalist, own, models)
    missing = []
    for run in runs:
        record = find_specialist(experiment, run, store, models, generalist)
        if run.name not in there.teachers or experiment.generalist.name not in there.teachers:
            missing.append(run)
            continue
        theirs = there.root.spec(f"teachers/{run.name}").identity
        ours = _whole_capture_identity(experiment, run, store, record, theirs, there, shown, rows)
        check_same(
            f"{there.path}: teachers/{run.name}",
            with_agreed_batch(ours, theirs),
            theirs,
            made="with which it was captured",
            remedy=_RENAME,
        )
        if record is None or not there.root.is_whole(f"teachers/{run.name}"):
            missing.append(run)
    return missing


def _whole_capture_identity(
    experiment: Experiment,
    run: SpecialistRun,
    home: Store,
    record: Record | None,
    theirs: Mapping[str, Any],
    onto: Store,
    shown: Experiment,
    rows: TransferRows,
) -> dict[str, Any]:
    """The identity of a capture as its spec has it; a specialist that is to be trained is taken to have their weights."""
    weights = "" if record is None else record.weights
    if record is None and isinstance(made_by := theirs.get("teacher"), Mapping):
        weights = str(made_by.get("weights"))
    ours = specialist_capture_identity(experiment, run, home, weights, onto=onto, shown=shown, rows=rows)
    encoding = specialist_encoding(experiment, shown).describe()
    return as_json(ours) | {"encoding": encoding, "views": shown.cache.views}


def names_of(runs: Sequence[SpecialistRun]) -> list[str]:
    """Their names."""
    return [run.name for run in runs]


# Combination


def combination_identity(experiment: Experiment, store: Store) -> dict[str, Any]:
    """What the combination of an experiment's specialists follows from; they must be captured."""
    table = experiment.combine
    assert table is not None  # whoever asks has looked

    def sealed(name: str) -> dict[str, str]:
        return {"capture": name, "seal": store.root.digest_of(f"teachers/{name}")}

    return {
        "generalist": sealed(experiment.generalist.name),
        "specialists": [sealed(run.name) for run in specialist_runs(experiment, store)],
        "top": table.top,
        "direction": table.direction,
    }


def check_combined_names(experiment: Experiment, store: Store) -> None:
    """Refuse specialists of other names than those that are combined already, before any is trained. Raises SpecMismatch."""
    table = experiment.combine
    if table is None or table.name not in store.teachers:
        return
    said = store.root.spec(f"teachers/{table.name}").identity.get("combination")
    theirs = said.get("specialists") if isinstance(said, Mapping) else None
    seals = {one.get("capture"): one.get("seal") for one in theirs or [] if isinstance(one, Mapping)}
    ours = [{"capture": run.name, "seal": seals.get(run.name)} for run in specialist_runs(experiment, store)]
    where = f"{store.path}: teachers/{table.name}"
    check_same_specialists(where, ours, theirs, made=_COMBINED, remedy=_RENAME_COMBINATION)


def needs_combination(experiment: Experiment, store: Store) -> bool:
    """Whether the combination is still to be made, or has lost blocks. Raises SpecMismatch where its name is another's."""
    table = experiment.combine
    assert table is not None  # whoever asks has looked
    if table.name not in store.teachers:
        return True
    ours = combination_identity(experiment, store)
    said = store.root.spec(f"teachers/{table.name}").identity.get("combination")
    theirs = {key: (said if isinstance(said, Mapping) else {}).get(key) for key in ours}
    where = f"{store.path}: teachers/{table.name}"
    how = {"made": _COMBINED, "remedy": _RENAME_COMBINATION}
    check_same_specialists(where, ours["specialists"], theirs["specialists"], **how)
    for one in (ours, theirs):  # in whatever order they were named
        one["specialists"] = sorted(one["specialists"] or [], key=lambda sealed: str(sealed["capture"]))
    check_same(where, ours, theirs, **how)
    return not store.root.is_whole(f"teachers/{table.name}")
