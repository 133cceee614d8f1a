"""What of an experiment is done already, and what is still to do?

Everything that is made has an identity: all that it follows from. It is done when something with that
identity is there.

    teacher   its factory, arguments, settings, seed, the transfer set     record beside its weights
    capture   the teacher's weights, augmentation, encoding, …             spec in the store
    clusters  the seal of a capture, the settings                          spec in the store
    student   the seals of the captures, loss, settings, seed              record beside its weights

Specialists, and their combination: `specialist_agenda`.

So another temperature makes one student anew and touches no capture. Needs no torch: an experiment in
which everything is done says so at once.
"""

import contextlib
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...storage.api import Store, open_store
from ...storage.backends.local import Folder
from ...storage.encodings.encoding import Encoding, encoded_widths
from ...storage.errors import (
    ConfigError,
    ManifestInvalid,
    NotAStoreError,
    PartNotFound,
    StoreIncomplete,
    UntrustedStoreError,
)
from ...storage.format.constants import GROUPS, MAX_SHARD_BYTES, PRIVATE, ROOT_METADATA, SAMPLES
from ...storage.format.grid import Grid, plan_block_rows
from ...storage.format.metadata import RootAttributes
from ...storage.identity import as_json, check_same
from ..experiment.document import Experiment, TeacherMember
from ..experiment.schema import settled
from ..models.class_names import check_class_order, stated_class_names
from ..models.records import Models, Record
from ..models.sources import source_digests
from ..transfer import TransferRows, input_bytes
from ..views import augmentation_identity
from .notes import SOURCE, source_note

log = logging.getLogger(__name__)


_RENAME = "change it back, or give what is new another name (or another --out)"


def open_existing(path: Path) -> Store | None:
    """The store at `path`; None where there is nothing yet. Raises NotAStoreError where there is something else."""
    try:
        return open_store(path)
    except NotAStoreError:
        names = {entry.name for entry in path.iterdir()} if path.is_dir() else set[str]()
        if path.is_file() or names - {ROOT_METADATA, *GROUPS, PRIVATE}:
            raise
        # A group of somebody else's is refused before a teacher is trained for nothing.
        if ROOT_METADATA in names and not _begins_a_store(path):
            raise
        # Nothing, an empty folder, or a store whose creation was interrupted: all of them can be begun.
        return None


def _begins_a_store(path: Path) -> bool:
    """Whether the root metadata at `path` are those of a store."""
    try:
        RootAttributes.from_bytes(Folder(path).read(ROOT_METADATA), str(path / ROOT_METADATA))
    except (ManifestInvalid, NotAStoreError, UntrustedStoreError):
        return False
    return True


def check_samples(store: Store, rows: TransferRows) -> None:
    """Refuse a store that was made, or begun, from another transfer set, as far as fingerprints and sizes tell.

    Raises SpecMismatch.
    """
    ours: dict[str, Any] = {"rows": len(rows), "classes": rows.num_classes}
    theirs: dict[str, Any] = {"rows": store.num_rows, "classes": store.num_classes}
    begun = store.root.begun(SAMPLES)
    with contextlib.suppress(StoreIncomplete, PartNotFound):  # or nothing is known of them yet
        theirs |= store.samples.spec.identity if begun is None else begun.identity
        theirs.pop("views", None)
        ours |= rows.identity
    check_same(
        f"{store.path}: {SAMPLES}",
        as_json(ours),
        theirs,
        made="from which it was made",
        remedy="change the transfer set back, or make a new store (another --out)",
    )


# Teachers


def teacher_identity(experiment: Experiment, member: TeacherMember, rows: TransferRows) -> dict[str, Any]:
    """What a teacher that is trained here follows from."""
    teacher = member.teacher
    assert teacher.train is not None  # the experiment has checked: weights or train
    return {
        "factory": teacher.factory,
        "args": teacher.args,
        "train": settled(teacher.train, later={"clip_norm", "ema", "precision"}, idle={"compile"}),
        "seed": member.seed,
        "transfer_set": rows.fingerprint,
        "num_examples": len(rows),
    }


def find_teacher(
    experiment: Experiment, member: TeacherMember, rows: TransferRows, models: Models
) -> Record | None:
    """The record of a teacher whose weights are there; None where it is still to be trained.

    Raises BadDataError where the experiment names a weights file that is not there.
    """
    if member.weights is not None:
        return Record({}, source_digests(member.weights)[0], {})
    return models.find("teachers", member.name, teacher_identity(experiment, member, rows))


def check_stated_classes(member: TeacherMember, rows: TransferRows) -> None:
    """Refuse a teacher whose file says that its classes are others than the transfer set's. Raises BadDataError."""
    if member.weights is not None and member.teacher.check_class_names:
        where = f"teacher {member.name!r} ({member.weights})"
        check_class_order(stated_class_names(member.weights), rows.class_names, where)


def capture_identity(
    experiment: Experiment, member: TeacherMember, rows: TransferRows, weights: str
) -> dict[str, Any]:
    """What a capture follows from, but for its encoding and number of views, which its writer adds.

    weights: digest of the teacher's weights. A model that is a folder has each of its files named as well.
    """
    files = None
    if member.weights is not None and member.teacher.is_whole:
        files = source_digests(member.weights)[1]
    return {
        "teacher": {
            "factory": member.teacher.factory,
            "args": member.teacher.args,
            "weights": weights,
            "head": {"kind": "softmax"},
            **({} if files is None else {"files": files}),
        },
        "augmentation": augmentation_identity(experiment),
        "precision": experiment.cache.precision,
        "batch_size": experiment.cache.batch_size,
        "transfer_set": rows.fingerprint,
        # Keys that came later: at their defaults a capture is what it was.
        **{key: True for key in ("compile", "channels_last") if getattr(experiment.cache, key)},
    }


HALVED = "batch_size_asked"
"""In the identity of a capture whose batches did not fit the device: the batch that was asked for."""


def with_agreed_batch(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> dict[str, Any]:
    """Our identity of a capture, with the batch to which theirs was halved where we ask for the same.

    >>> with_agreed_batch({"batch_size": 256}, {"batch_size": 64, "batch_size_asked": 256})
    {'batch_size': 64, 'batch_size_asked': 256}
    >>> with_agreed_batch({"batch_size": 64}, {"batch_size": 64, "batch_size_asked": 256})
    {'batch_size': 64, 'batch_size_asked': 256}
    >>> with_agreed_batch({"batch_size": 512}, {"batch_size": 64, "batch_size_asked": 256})
    {'batch_size': 512}
    """
    if HALVED in theirs and ours["batch_size"] in (theirs[HALVED], theirs["batch_size"]):
        return {**ours, "batch_size": theirs["batch_size"], HALVED: theirs[HALVED]}
    return dict(ours)


def missing_captures(
    experiment: Experiment, rows: TransferRows, models: Models, store: Store | None
) -> list[TeacherMember]:
    """The teachers that are not cached yet, or not trained yet, or whose capture has lost blocks.

    Raises SpecMismatch where a sealed capture has the name of a teacher and is of another one.
    """
    missing = []
    for member in experiment.teacher_members():
        record = find_teacher(experiment, member, rows, models)
        check_stated_classes(member, rows)
        if store is None or member.name not in store.teachers:
            if store is not None:
                _check_begun(experiment, member, rows, models, record, store)
            missing.append(member)
            continue
        if record is None:
            _check_training(experiment, member, rows, models, store)
        spec = store.teachers[member.name].part.spec
        check_same(
            f"{store.path}: teachers/{member.name}",
            with_agreed_batch(
                _whole_identity(experiment, member, rows, record, spec.identity), spec.identity
            ),
            spec.identity,
            made="with which it was captured",
            remedy=_RENAME,
        )
        if record is None:
            missing.append(member)
            continue
        _say_changed_source(experiment, member, spec.notes)
        if not store.root.is_whole(f"teachers/{member.name}"):
            missing.append(member)
    return missing


def _whole_identity(
    experiment: Experiment,
    member: TeacherMember,
    rows: TransferRows,
    record: Record | None,
    theirs: Mapping[str, Any],
) -> dict[str, Any]:
    """The identity of a capture as its spec has it; a teacher that is to be trained is taken to have their weights."""
    weights = "" if record is None else record.weights
    if record is None and isinstance(made_by := theirs.get("teacher"), Mapping):
        weights = str(made_by.get("weights"))
    ours = as_json(capture_identity(experiment, member, rows, weights))
    return ours | {"encoding": experiment.cache.chosen_encoding.describe(), "views": experiment.cache.views}


def _check_begun(
    experiment: Experiment,
    member: TeacherMember,
    rows: TransferRows,
    models: Models,
    record: Record | None,
    store: Store,
) -> None:
    """Refuse to go on with a capture that was begun as something else, before anything is run. Raises SpecMismatch."""
    begun = store.root.begun(f"teachers/{member.name}")
    if begun is None:
        return
    if record is None:
        _check_training(experiment, member, rows, models, store)
    ours = _whole_identity(experiment, member, rows, record, begun.identity)
    now = source_note(experiment, member) if SOURCE in begun.notes else {}
    check_same(
        f"{store.path}: teachers/{member.name}",
        {**with_agreed_batch(ours, begun.identity), **now},
        {**begun.identity, **({SOURCE: begun.notes[SOURCE]} if now else {})},
        made="with which it was begun",
        remedy=f"{_RENAME}; to begin it anew, delete {store.path / begun.name} with the "
        f"{begun.blocks_done} blocks that are there",
    )


def _say_changed_source(experiment: Experiment, member: TeacherMember, notes: Mapping[str, Any]) -> None:
    """Say that the module of a captured teacher is another one now: its logits may not be what it would give."""
    now = source_note(experiment, member)
    if now and SOURCE in notes and notes[SOURCE] != now[SOURCE]:
        log.warning(
            "teacher %s: %s has changed since it was captured; its capture is kept, as factory, arguments and "
            "weights are the same",
            member.name,
            ", ".join(now[SOURCE]),
        )


def _check_training(
    experiment: Experiment, member: TeacherMember, rows: TransferRows, models: Models, store: Store
) -> None:
    """Refuse a captured teacher that would be trained otherwise now, rather than after it was. Raises SpecMismatch.

    Where its record is gone it is trained again, and its weights are compared with those of the capture.
    """
    recorded = models.recorded_identity("teachers", member.name)
    if recorded is None:
        return
    check_same(
        f"{store.path}: teachers/{member.name}",
        as_json(teacher_identity(experiment, member, rows)),
        recorded,
        made="with which it was trained",
        remedy=_RENAME,
    )


def plan_grid(experiment: Experiment, rows: TransferRows, encoding: Encoding) -> Grid:
    """The blocks of a store that is begun with this encoding. Raises ConfigError where its block_rows makes none."""
    widest = max([input_bytes(experiment, rows), *encoded_widths(encoding, rows.num_classes)])
    block_rows = experiment.cache.block_rows or plan_block_rows(len(rows), widest)
    if block_rows & (block_rows - 1) or block_rows * widest > MAX_SHARD_BYTES:
        raise ConfigError(
            "block_rows",
            expected=f"a power of two, at most {MAX_SHARD_BYTES // widest} for rows of {widest} bytes",
            found=str(block_rows),
            remedy="leave it out: logitstore chooses",
        )
    return Grid(len(rows), block_rows)
