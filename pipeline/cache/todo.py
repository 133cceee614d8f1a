"""Identities of captures, and the captures that are missing. Imports no torch, except to make a ready teacher.

Everything that a stage makes has an identity: all that it follows from. It is done if something of that identity is
there.

    teacher   its factory, arguments, code, settings, seed, the set        record beside its weights
    capture   the teacher's weights, augmentation, encoding, …             spec in the store
    clusters  the seal of a capture, the settings                          spec in the store
    student   the seals of the captures, code, loss, settings, seed        record beside its weights

So another temperature trains one student again and touches no capture.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...storage.api import Store
from ...storage.encodings.encoding import Encoding
from ...storage.encodings.widths import row_widths
from ...storage.errors import ConfigError, SpecMismatch
from ...storage.format.constants import MAX_SHARD_BYTES, SAMPLES
from ...storage.format.grid import Grid, floor_power_of_two, plan_block_rows
from ...storage.identity import as_json, check_same
from ...storage.parts.card import warn_of_other_card
from ...storage.parts.root import BegunPart
from ..evaluation_set import content_of
from ..experiment.document import Experiment, TeacherMember
from ..experiment.schema import settled
from ..experiment.tables import AUTO
from ..experiment.training import IDLE_KEYS, TeacherTrain, validation_identity
from ..factories.local_code import SOURCE
from ..factories.read_files import READ, files_read
from ..models.class_names import check_class_order, stated_class_names
from ..models.loaders import stable_name
from ..models.records import Record, as_kept, warn_of_missing_keys
from ..models.rules import loader_rules
from ..models.sources import source_digests
from ..same_set import check_samples
from ..transfer import TransferRows, files_of, input_bytes, set_identity
from ..views import augmentation_identity
from ..workspace import Workspace
from .notes import source_note

log = logging.getLogger(__name__)
HALVED = "batch_size_asked"
"""In the identity of a capture whose batches did not fit the device: the batch that was asked for."""
REUSED = "reused_from"
"""In the identity of a capture that takes rows of captures in other stores (`reuse`): the seals of these."""
_OF_SET = ("transfer_set", "num_examples")
"""Keys of a teacher's identity that state the set that it was trained on."""
_FILES_BYTES = 1 << 29
"""Most bytes of a block of files before its codec."""
_RENAME = "change it back, or give what is new another name (or another --out)"


@dataclass(frozen=True)
class CacheTodo:
    """Missing captures and samples."""

    captures: tuple[TeacherMember, ...] = ()
    """Teachers to be run, and trained if they have no weights."""
    samples: bool = False
    """Whether the samples are to be written, or have lost files."""
    compared: str = ""
    """What of the transfer set was compared with the store, in words; empty if there is no store."""

    def __bool__(self) -> bool:
        return bool(self.captures or self.samples)

    def lines(self) -> list[str]:
        """List what is to be done; samples that come with the first capture are not named."""
        samples = ["write samples again"] if self.samples else []
        return samples + [f"capture teacher {member.name}" for member in self.captures]


def find_todo(work: Workspace) -> CacheTodo:
    """Find the captures and samples that are missing. Changes nothing.

    Warns of another card than the store's. Raises SpecMismatch if something in the store has the name of a capture and another identity.
    """
    store = work.find_store()
    compared = "" if store is None else check_samples(store, work.rows)
    if store is not None and work.ranks.is_first and store.identity_of(SAMPLES) is not None:
        warn_of_other_card(store.card, work.experiment.card.texts, str(store.path))
    return CacheTodo(
        missing_captures(work),
        samples=store is not None and store.is_sealed(SAMPLES) and not store.is_whole(SAMPLES),
        compared=compared,
    )


# Teachers


def teacher_identity(member: TeacherMember, rows: TransferRows) -> dict[str, Any]:
    """Return the identity of a teacher that is trained here."""
    teacher, later, source = member.teacher, {"clip_norm", "ema", "precision"}, member.source
    train = teacher.train
    return {
        "factory": stable_name(teacher.factory),
        "args": teacher.args,
        "train": None if train is None else settled(train, later=later, idle={"compile", *IDLE_KEYS}),
        "seed": member.seed,
        "transfer_set": set_identity(rows),
        "num_examples": len(rows),
        **({SOURCE: source} if source else {}),
        **({READ: files} if (files := member.files_read) else {}),
        **loader_rules(teacher, member.weights),
        **({} if train is None else _validation_identity(member, train, rows)),
    }


def _validation_identity(member: TeacherMember, train: TeacherTrain, rows: TransferRows) -> dict[str, Any]:
    """Return the part of a teacher's identity that follows from its validation."""
    found = validation_identity(train, lambda: content_of(member.validation_set, member.base))
    if train.held_out is not None:
        # The rows of the store are held out, so that they are those of a student.
        found["validation"]["order"] = rows.identity["order"]
    return found


def as_recorded(ours: Mapping[str, Any], theirs: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return our identity of a teacher as its record states it, without what the record cannot tell.

    The source of a transfer set may change where its content does not. The record of an earlier version holds nothing of a
    set without a fingerprint.

    >>> as_recorded({"transfer_set": {"content": "a", "source": "new"}}, {"transfer_set": {"content": "b", "source": "old"}})
    {'transfer_set': {'content': 'a', 'source': 'old'}}
    >>> as_recorded({"transfer_set": {"content": "a"}}, {"transfer_set": None})
    {'transfer_set': None}
    """
    identity, mine = dict(ours), ours["transfer_set"]
    if theirs is None or not isinstance(mine, Mapping):
        return identity
    written = theirs.get("transfer_set")
    if written is None:
        identity["transfer_set"] = None
    elif isinstance(written, Mapping):
        without = {key: value for key, value in mine.items() if key != "source"}
        identity["transfer_set"] = without | ({"source": written["source"]} if "source" in written else {})
    return identity


def find_teacher(work: Workspace, member: TeacherMember) -> Record | None:
    """Return the record of a teacher's weights; None if it is still to be trained.

    A ready teacher is made to find the digest of its weights. Raises BadDataError for a weights file that is not there.
    """
    if (given := member.teacher.in_hand) is not None:
        return Record({}, given.weights, {})
    if member.teacher.is_ready:
        from .ready import find_ready  # imports torch

        return Record({}, find_ready(work, member), {})
    if member.weights is not None:
        return Record({}, source_digests(member.weights)[0], {})
    recorded = work.models.recorded_identity("teachers", member.name)
    return work.models.find(
        "teachers", member.name, as_recorded(teacher_identity(member, work.rows), recorded)
    )


def weights_key(member: TeacherMember) -> dict[str, str]:
    """Return the part of its file that a teacher's weights are read from, for identities; nothing for a whole file."""
    key = member.teacher.weights_key
    return {} if key is None else {"weights_key": key}


def check_stated_classes(member: TeacherMember, rows: TransferRows) -> None:
    """Compare the classes that a teacher's file names with those of the transfer set. Raises BadDataError."""
    if member.weights is not None and member.teacher.check_class_names:
        where = f"teacher {member.name!r} ({member.weights})"
        check_class_order(stated_class_names(member.weights), rows.class_names, where)


# Captures


def capture_identity(
    experiment: Experiment, member: TeacherMember, rows: TransferRows, weights: str, layer: str | None = None
) -> dict[str, Any]:
    """Return the identity of a capture without encoding and number of views, which its writer adds.

    weights: digest of the teacher's weights. Of a model that is a folder, the digest of each file is in it as well.
    layer: name of the head that is taken off; that of the experiment, perhaps `AUTO`, before the teacher is made.
    """
    layer = layer or member.teacher.head
    files, augment = None, experiment.cache.augment
    tables = [member.teacher, *([augment] if augment is not None else [])]
    read = files_read(tables, base=experiment.base)
    if member.weights is not None and member.teacher.is_whole:
        files = source_digests(member.weights)[1]
    return {
        "teacher": {
            "factory": stable_name(member.teacher.factory),
            "args": member.teacher.args,
            "weights": weights,
            "head": {"kind": "softmax", **({} if layer is None else {"layer": layer})},
            **weights_key(member),
            **({} if files is None else {"files": files}),
            **loader_rules(member.teacher, member.weights),
        },
        "augmentation": augmentation_identity(experiment),
        "precision": experiment.cache.precision,
        "batch_size": experiment.cache.batch_size,
        "transfer_set": rows.fingerprint,
        # Keys that came later: at their defaults they are left out, and an older capture is the same.
        **{key: True for key in ("compile", "channels_last") if getattr(experiment.cache, key)},
        **({READ: read} if read else {}),
        **({} if (threads := experiment.cache.threads) is None else {"threads": threads}),
    }


def agreed(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> dict[str, Any]:
    """Return our identity of a capture as the one that is there states it: its halved batch, threads, name of a loader.

    The layer of `head = "auto"` is found when the teacher is made; until then it is taken to be theirs.

    A capture of a GPU, or of an earlier version, states no threads; then ours are left out. So are the digests of the files
    that its factories read. Rows that theirs has from another store do not make it another capture.

    >>> agreed({"batch_size": 256}, {"batch_size": 64, "batch_size_asked": 256})
    {'batch_size': 64, 'batch_size_asked': 256}
    >>> agreed({"batch_size": 64}, {"batch_size": 64, "batch_size_asked": 256})
    {'batch_size': 64, 'batch_size_asked': 256}
    >>> agreed({"batch_size": 512}, {"batch_size": 64, "batch_size_asked": 256})
    {'batch_size': 512}
    >>> agreed({"batch_size": 64}, {"batch_size": 64, "threads": 2})
    {'batch_size': 64, 'threads': 2}
    >>> agreed({"teacher": {"factory": "timm"}}, {"teacher": {"factory": "logitstore.pipeline.named_models:timm_model"}})
    {'teacher': {'factory': 'logitstore.pipeline.named_models:timm_model'}}
    >>> agreed({"teacher": {"factory": "a:b", "head": {"layer": "auto"}}}, {"teacher": {"factory": "a:b", "head": {"layer": "fc"}}})
    {'teacher': {'factory': 'a:b', 'head': {'layer': 'fc'}}}
    """
    identity = dict(ours)
    if HALVED in theirs and ours["batch_size"] in (theirs[HALVED], theirs["batch_size"]):
        identity |= {"batch_size": theirs["batch_size"], HALVED: theirs[HALVED]}
    if "threads" not in theirs:
        identity.pop("threads", None)
    else:
        identity.setdefault("threads", theirs["threads"])
    if READ not in theirs:
        identity.pop(READ, None)
    if REUSED in theirs:
        identity.setdefault(REUSED, theirs[REUSED])
    teacher, written = ours.get("teacher"), theirs.get("teacher")
    if isinstance(teacher, Mapping) and isinstance(written, Mapping):
        factory = str(written.get("factory"))
        if stable_name(factory) == teacher["factory"]:
            identity["teacher"] = {**teacher, "factory": factory}
        head, found = teacher.get("head"), written.get("head")
        if isinstance(head, Mapping) and isinstance(found, Mapping) and head.get("layer") == AUTO:
            identity["teacher"] = {**identity["teacher"], "head": {**head, "layer": found.get("layer", AUTO)}}
    return identity


def stated_identity(
    ours: Mapping[str, Any], theirs: Mapping[str, Any], encoding: Encoding, views: int
) -> dict[str, Any]:
    """Return our identity of a capture in the form of a spec, to be compared with theirs (`agreed`).

    A network that is still to be trained has no weights in ours; it is taken to come out with theirs.
    """
    ours = as_json(ours)
    if not ours["teacher"]["weights"] and isinstance(written := theirs.get("teacher"), Mapping):
        ours["teacher"]["weights"] = str(written.get("weights"))
    return agreed({**ours, "encoding": encoding.describe(), "views": views}, theirs)


def missing_captures(work: Workspace) -> tuple[TeacherMember, ...]:
    """Return the teachers whose capture is missing or has lost files, or whose own weights are missing.

    Raises SpecMismatch if a capture, sealed or begun, has the name of a teacher and another identity.
    """
    return tuple(member for member in work.experiment.teacher_members() if _is_missing(work, member))


def _is_missing(work: Workspace, member: TeacherMember) -> bool:
    part_name, store = f"teachers/{member.name}", work.find_store()
    record = find_teacher(work, member)
    check_stated_classes(member, work.rows)
    if record is None:
        _check_taught_set(work, member)
    if store is None:
        return True
    begun = store.begun(part_name)
    spec = begun or store.find_spec(part_name)
    if spec is None:
        store.root.check_name(part_name)
        return True
    if record is None:
        _check_training(work, member, store)
    settings = work.experiment.cache
    ours = capture_identity(work.experiment, member, work.rows, "" if record is None else record.weights)
    warn_of_missing_keys(ours, spec.identity, f"{store.path}: {part_name}")
    ours = stated_identity(ours, spec.identity, settings.chosen_encoding, settings.views)
    where = f"{store.path}: {part_name}"
    if begun is not None:
        check_begun(store, begun, ours, source_note(work.experiment, member))
        check_reuse(where, begun.identity, work.reuse, is_begun=True)
        return True
    check_same(where, ours, spec.identity, made="with which it was captured", remedy=_RENAME)
    if record is None:
        return True
    _warn_of_changed_source(work.experiment, member, spec.notes)
    if store.is_whole(part_name):
        return False
    check_reuse(where, spec.identity, work.reuse, is_begun=False)
    return True


def _check_taught_set(work: Workspace, member: TeacherMember) -> None:
    """Refuse to train a teacher in the place of one of the same name and another transfer set. Raises SpecMismatch."""
    recorded = work.models.recorded_identity("teachers", member.name)
    if recorded is not None:
        ours = as_json(as_recorded(teacher_identity(member, work.rows), recorded))
        record = work.models.weights_path("teachers", member.name).with_suffix(".json")
        check_same(
            f"teacher {member.name!r} ({record})",
            {key: ours[key] for key in _OF_SET},
            {key: recorded.get(key) for key in _OF_SET},
            made="on which it was trained",
            remedy="change the transfer set back; or name another folder (--out, or --models), or give the teacher "
            "another name; or delete the record",
        )


def check_begun(store: Store, begun: BegunPart, ours: Mapping[str, Any], notes: Mapping[str, Any]) -> None:
    """Compare identity and local code with those of a capture that is begun. Raises SpecMismatch.

    ours: `stated_identity`. notes: those of the capture now.
    """
    check_same(
        f"{store.path}: {begun.name}",
        {**ours, SOURCE: noted_files(notes, begun.notes)},
        {**begun.identity, SOURCE: noted_files(begun.notes, begun.notes)},
        made="with which it was begun",
        remedy=f"{_RENAME}; to begin it anew, delete {store.path / begun.name} with the "
        f"{begun.blocks_done} blocks that are there",
    )


def check_reuse(where: str, theirs: Mapping[str, Any], given: Sequence[Any], *, is_begun: bool) -> None:
    """Refuse to resume a capture with rows of another store, or to make its lost blocks, without a store. Raises SpecMismatch.

    theirs: its identity. given: the stores of `--reuse`.
    """
    if REUSED in theirs and not given:
        raise SpecMismatch(
            where,
            expected=f"the store that it takes rows from (--reuse), whose capture has the seal {_seals(theirs)}",
            found="no --reuse",
            remedy="run the same command with --reuse OLD_STORE"
            + ("; or delete the unfinished capture to begin it anew" if is_begun else ""),
        )


def _seals(theirs: Mapping[str, Any]) -> str:
    seals = theirs[REUSED]
    return (
        " and ".join(f"{str(seal)[:19]}…" for seal in seals) if isinstance(seals, list) else str(seals)[:40]
    )


def noted_files(notes: Mapping[str, Any], noted: Mapping[str, Any]) -> dict[str, Any]:
    """Return the digests of those local files that a capture has noted; earlier versions noted one at most."""
    files, digests = noted.get(SOURCE), notes.get(SOURCE)
    known = digests if isinstance(digests, Mapping) else {}
    return {file: known.get(file) for file in files} if isinstance(files, Mapping) else {}


def _check_training(work: Workspace, member: TeacherMember, store: Store) -> None:
    """Compare the settings of a captured teacher whose weights are gone with its record. Raises SpecMismatch.

    Without a record it is trained again, and its weights are compared with those of the capture.
    """
    recorded = work.models.recorded_identity("teachers", member.name)
    if recorded is not None:
        check_same(
            f"{store.path}: teachers/{member.name}",
            as_kept(as_json(as_recorded(teacher_identity(member, work.rows), recorded)), recorded),
            recorded,
            made="with which it was trained",
            remedy=_RENAME,
        )


def _warn_of_changed_source(experiment: Experiment, member: TeacherMember, notes: Mapping[str, Any]) -> None:
    """Warn if the module of a captured teacher has changed: its logits may no longer be those of the capture."""
    then, now = noted_files(notes, notes), noted_files(source_note(experiment, member), notes)
    if changed := [file for file in then if now[file] != then[file]]:
        log.warning(
            "teacher %s: %s has changed since it was captured; its capture is kept, as factory, arguments and "
            "weights are the same",
            member.name,
            ", ".join(changed),
        )


def plan_grid(experiment: Experiment, rows: TransferRows, encoding: Encoding) -> Grid:
    """Plan the blocks of a new store in an encoding. Raises ConfigError for a block_rows that makes none."""
    widest = max([input_bytes(experiment, rows), *row_widths(encoding, rows.num_classes).values()])
    block_rows = experiment.cache.block_rows or plan_block_rows(len(rows), widest)
    if (files := files_of(experiment, rows)) is not None:
        # Rows of files are as wide as the longest. Behind their codec most of them are short.
        most = floor_power_of_two(_FILES_BYTES // files.width)
        block_rows = experiment.cache.block_rows or min(block_rows, most)
        widest = max(widest, files.width)
    if block_rows & (block_rows - 1) or block_rows * widest > MAX_SHARD_BYTES:
        raise ConfigError(
            "block_rows",
            expected=f"a power of two, at most {MAX_SHARD_BYTES // widest} for rows of {widest} bytes",
            found=str(block_rows),
            remedy="leave it out: logitstore chooses",
        )
    return Grid(len(rows), block_rows)
