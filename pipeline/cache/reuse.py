"""Rows of earlier stores, which a capture takes instead of running its teacher on them: `--reuse OLD_STORE`.

1. A capture there must be of this very teacher, in an encoding whose rows can be taken (`find_old`). The new capture has
   the seals of these captures in its identity, and is resumed with them alone.
2. Stage one fetches and digests every row and makes every view, as without reuse. A row of a view is taken where the teacher
   saw the same input there (`OldCapture.find`): no statement about a data set is believed, only digests.

       view as the row is    any row there with the digest of this row
       augmented view        the row of the same number, of the same augmentation: its draws follow from (seed, view, row)

3. The teacher runs on the rest of a view of a block, in batches that depend on the block alone (`rest`).

The old stores are read as by any reader: each chunk is compared with its seal.
"""

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any, Final

import numpy as np
from jaxtyping import Int64, UInt64
from numpy.typing import NDArray

from ...storage.api import Capture, Store, open_store
from ...storage.encodings.basis import Basis
from ...storage.encodings.encoding import Encoding
from ...storage.encodings.half import FloatEncoding
from ...storage.encodings.refine import ESCAPED
from ...storage.encodings.transform import Transform
from ...storage.errors import BadLogitsError, ConfigError, SpecMismatch
from ...storage.format.documents import invalid
from ...storage.identity import as_json, difference
from ...storage.parts.same_rows import augmentation_of, is_augmented
from ..factories.local_code import SOURCE
from ..same_set import check_names
from ..transfer import TransferRows
from ..workspace import Workspace
from .notes import LIBRARIES
from .todo import HALVED, REUSED, agreed, noted_files

log = logging.getLogger(__name__)
_MAY_DIFFER: Final = frozenset(
    {
        "augmentation",  # compared by view
        "encoding",  # compared by itself
        "views",
        "transfer_set",
        # These change the last bits of a row at most, as another batch does.
        "batch_size",
        HALVED,
        "threads",
        "compile",
        "channels_last",
        REUSED,
    }
)
"""Keys of an identity that may differ between a capture and one that it takes rows from."""

_COMPUTED_BY: Final = ("device", "torch", *LIBRARIES)
"""Notes of a capture that its bits follow from."""
_NOTED: Final = (*_COMPUTED_BY, "python", "numpy", "batch_size", "threads", "compile", "channels_last")
"""What the capture that takes rows notes of the one that they are from."""
SOURCES: Final = "reused"
"""Key of that note, a list in the order of `REUSED`."""


class OldSet:
    """The rows of an earlier store, by the digests of their inputs."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.digests = store.samples.digests
        self.labels = store.samples.labels
        self.reasons: list[str] = []
        """Why it holds no rows of some teachers."""
        self._order = np.argsort(self.digests, kind="stable")
        self._sorted = self.digests[self._order]

    def rows_of(self, digests: UInt64[np.ndarray, " rows"]) -> Int64[np.ndarray, " rows"]:
        """Return the first row there of each digest, -1 for none."""
        places = np.minimum(np.searchsorted(self._sorted, digests), len(self._sorted) - 1)
        return np.where(self._sorted[places] == digests, self._order[places], -1)

    def relabelled(
        self, digests: UInt64[np.ndarray, " rows"], labels: Int64[np.ndarray, " rows"]
    ) -> Int64[np.ndarray, " some"]:
        """Return the positions of rows that have a label there, and none that is theirs."""
        rows = self.rows_of(digests)
        before = self.labels[rows]
        unlike = np.flatnonzero((rows >= 0) & (labels >= 0) & (before >= 0) & (before != labels))
        # An input that is there several times may have several labels.
        begin, end = (np.searchsorted(self._sorted, digests[unlike], side) for side in ("left", "right"))
        every = [self.labels[self._order[first:last]] for first, last in zip(begin, end, strict=True)]
        return unlike[[label not in there for label, there in zip(labels[unlike], every, strict=True)]]


@dataclass(frozen=True)
class OldCapture:
    """A sealed capture of the same teacher, in an earlier store."""

    set: OldSet
    """The rows of its store."""
    capture: Capture
    """The capture."""
    augmentation: Mapping[str, Any] | None
    """That of the new capture."""

    @property
    def where(self) -> str:
        """Its name in messages."""
        return f"{self.set.store.path}: teachers/{self.capture.name}"

    def candidates(
        self, view: int, numbers: Int64[np.ndarray, " rows"], digests: UInt64[np.ndarray, " rows"]
    ) -> Int64[np.ndarray, " rows"]:
        """Return the row there whose view may be that of each row here, -1 for none.

        numbers: of the rows in the new store. digests: of their inputs before augmentation.
        """
        nothing = np.full(len(numbers), -1, np.int64)
        theirs = self.capture.augmentation
        if view >= self.capture.num_views or is_augmented(self.augmentation, view) != is_augmented(
            theirs, view
        ):
            return nothing
        if not is_augmented(theirs, view):
            return self.set.rows_of(digests)
        if difference(self.augmentation, theirs) is not None:
            return nothing
        inside = numbers < len(self.set.digests)
        same = inside & (self.set.digests[np.where(inside, numbers, 0)] == digests)
        return np.where(same, numbers, -1)

    def find(
        self,
        view: int,
        numbers: Int64[np.ndarray, " rows"],
        digests: UInt64[np.ndarray, " rows"],
        seen: UInt64[np.ndarray, " rows"],
    ) -> Int64[np.ndarray, " rows"]:
        """Return the row there in whose view the teacher saw the input of each row here, -1 for none. seen: digests of these."""
        rows = self.candidates(view, numbers, digests)
        there = np.flatnonzero(rows >= 0)
        if not len(there):  # perhaps of a view that is not there
            return rows
        there = there[np.argsort(rows[there], kind="stable")]  # a reader takes rows that ascend
        other = self.capture.seen(rows[there], view) != seen[there]
        rows[there[other]] = -1
        return rows

    def arrays(
        self, view: int, rows: Int64[np.ndarray, " rows"], encoding: Encoding
    ) -> dict[str, NDArray[Any]]:
        """Return some rows, in any order, in an encoding: as they are stored, or encoded from float32.

        Raises ManifestInvalid for rows that no writer stores, BadLogitsError for rows that the encoding cannot hold.
        """
        order = np.argsort(rows, kind="stable")
        ascending = rows[order]
        capture = self.capture
        stored = capture.read_stored(ascending, view)
        if isinstance(capture.encoding, FloatEncoding):
            logits = capture.encoding.decode(stored)
            self._check(np.isfinite(logits).all() and (logits.max(axis=1) == 0).all(), "logits")
            made = self._encoded(encoding, logits, ascending, view)
        else:
            made = self._as_stored(stored, ascending, view)
        if "peak" in made:
            made["peak"] = capture.peak(ascending, view)
            self._check(np.isfinite(made["peak"]).all(), "peak")
        back = np.empty_like(order)
        back[order] = np.arange(len(order))
        return {name: values[back] for name, values in made.items()}

    def _encoded(
        self, encoding: Encoding, logits: NDArray[np.float32], rows: Int64[np.ndarray, " rows"], view: int
    ) -> dict[str, NDArray[Any]]:
        where = f"{self.where}, view {view}"
        try:
            return encoding.encode(logits, 0, where)
        except BadLogitsError:
            for number, row in enumerate(rows.tolist()):  # raises with the row's number
                encoding.encode(logits[number : number + 1], row, where)
            raise

    def _as_stored(
        self, stored: dict[str, NDArray[Any]], rows: Int64[np.ndarray, " rows"], view: int
    ) -> dict[str, NDArray[Any]]:
        """Return every array of the encoding. stored: those that `read_stored` gives."""
        capture, made = self.capture, dict(stored)
        for spec in capture.encoding.arrays(capture.shape[2]):
            if spec.name == "escape":
                whole = np.full((len(rows), *spec.row_shape), np.iinfo(spec.dtype).max, spec.dtype)
                if "escape" in stored:
                    whole[stored["refine"] == ESCAPED] = stored["escape"]
                made["escape"] = whole
            elif spec.name not in made:
                made[spec.name] = capture.reader.read(spec.name, rows, view)
            if made[spec.name].dtype.kind == "f":
                self._check(np.isfinite(made[spec.name]).all(), spec.name)
        if capture.encoding.scale is not None:
            self._check(not made["logits"].min(axis=1).any(), "logits")
        return made

    def _check(self, is_sound: Any, array: str) -> None:
        if not is_sound:
            raise invalid(f"{self.where}/{array}", "rows as a writer stores them", "other numbers")


def find_old(
    work: Workspace,
    sets: Sequence[OldSet],
    name: str,
    identity: Mapping[str, Any],
    notes: Mapping[str, Any],
    encoding: Encoding,
) -> tuple[OldCapture, ...]:
    """Return the captures that the capture of a teacher takes rows from.

    sets: of `old_sets`. name: of the teacher. identity, notes: of its capture. If that was begun already, its own identity
    names the captures. Raises SpecMismatch if the store of one of them was not given.
    """
    store = work.find_store()
    there = None if store is None else store.identity_of(f"teachers/{name}")
    augmentation = augmentation_of(as_json(identity), name)
    if there is not None:
        return _named_by(there, sets, augmentation, f"{work.path}: teachers/{name}")
    chosen: list[OldCapture] = []
    basis: str | None = None
    for old in sets:
        found = match(old, name, identity, notes, encoding, augmentation)
        if isinstance(found, OldCapture) and isinstance(found.capture.encoding, Transform):
            digest = basis_of(found).digest
            basis = basis or digest
            if digest != basis:
                found = "its rows are in axes other than those of the store before it"
        if isinstance(found, str):
            old.reasons.append(f"teacher {name}: {found}")
            if work.ranks.is_first:
                log.warning("teacher %s: no row of %s is reused: %s", name, old.store.path, found)
        else:
            chosen.append(found)
    return tuple(chosen)


def note_of(old: Sequence[OldCapture]) -> list[dict[str, str]]:
    """Return the note of a capture about its sources: what else the bits of their rows follow from."""
    return [
        {key: str(provenance[key])[:80] for key in _NOTED if key in provenance}
        for provenance in (one.capture.provenance for one in old)
    ]


def warn_of_other_versions(name: str, notes: Mapping[str, Any], old: Sequence[OldCapture]) -> None:
    """Warn of rows from another kind of device or other versions, whose last bits, or more, may be others."""
    for one in old:
        theirs = one.capture.part.spec.notes
        unlike = [
            f"{key} {str(theirs[key])[:40]} there and {notes.get(key, 'none')} here"
            for key in _COMPUTED_BY
            if key in theirs and str(theirs[key]) != str(notes.get(key))
        ]
        if unlike:
            log.warning(
                "teacher %s: the rows of %s were computed otherwise: %s", name, one.where, ", ".join(unlike)
            )


def with_old_basis(encoding: Encoding, old: Sequence[OldCapture]) -> Encoding:
    """Return the encoding of a new capture, in the axes of the rows that it takes.

    The basis decides about bytes alone: each row keeps its budget in any. So no calibration is needed.
    """
    if isinstance(encoding, Transform) and encoding.basis is None:
        for one in old:
            if isinstance(one.capture.encoding, Transform):
                return encoding.with_basis(Basis(**basis_of(one).arrays()))
    return encoding


def basis_of(old: OldCapture) -> Basis:
    """Return the basis of a capture in the transform encoding."""
    encoding = old.capture.encoding
    assert isinstance(encoding, Transform) and encoding.basis is not None  # of a sealed capture
    return encoding.basis


def old_sets(work: Workspace) -> list[OldSet]:
    """Open the stores of `--reuse`, and compare their classes with those of the transfer set.

    Raises ConfigError for the store itself, SpecMismatch for other classes, StoreIncomplete without samples.
    """
    sets = []
    for given in work.reuse:
        store = given if isinstance(given, Store) else open_store(given)
        _check_store(store, work.rows, work.path)
        sets.append(OldSet(store))
    return sets


def _check_store(store: Store, rows: TransferRows, path: PurePath) -> None:
    where = f"--reuse {store.path}"
    if os.path.realpath(str(store.path)) == os.path.realpath(path):
        raise ConfigError(
            where,
            expected="an earlier store",
            found="the store that is made",
            remedy="name another STORE, or remove --reuse",
        )
    remedy = "leave --reuse out: the columns of these captures are other classes"
    if store.num_classes != rows.num_classes:
        raise SpecMismatch(
            where,
            expected=f"{rows.num_classes} classes, as the transfer set has",
            found=f"{store.num_classes} classes",
            remedy=remedy,
        )
    check_names(store, rows, remedy)
    digest_of = store.samples.spec.identity.get("digest_of")
    if digest_of != rows.digest_of:
        raise SpecMismatch(
            where,
            expected=f"digests of each {rows.digest_of}, as the experiment has them",
            found=f"digests of each {digest_of}"[:80],
            remedy="set digest_of to that of the old store, or leave --reuse out",
        )


def _named_by(
    there: Mapping[str, Any], sets: Sequence[OldSet], augmentation: Mapping[str, Any] | None, where: str
) -> tuple[OldCapture, ...]:
    """Return the captures that an identity names. Raises SpecMismatch if one of them is in none of the stores."""
    if REUSED not in there:
        if sets:
            log.warning("%s was begun without --reuse, and is resumed without it", where)
        return ()
    named: dict[str, tuple[OldSet, str]] = {}
    for old in sets:
        for name in old.store.root.names("teachers"):
            named.setdefault(old.store.digest_of(f"teachers/{name}"), (old, name))
    chosen = []
    stated = there[REUSED]
    for seal in map(str, stated if isinstance(stated, list) else [stated]):
        if seal not in named:
            raise SpecMismatch(
                where,
                expected=f"the store that it takes rows from, with a capture of seal {seal[:19]}…",
                found=f"no such capture in {' and '.join(str(old.store.path) for old in sets) or 'no store'}",
                remedy="run the same command with --reuse and that store",
            )
        old, name = named[seal]
        chosen.append(OldCapture(old, old.store.teachers[name], augmentation))
    return tuple(chosen)


def match(
    old: OldSet,
    name: str,
    identity: Mapping[str, Any],
    notes: Mapping[str, Any],
    encoding: Encoding,
    augmentation: Mapping[str, Any] | None,
) -> OldCapture | str:
    """Return the capture of a teacher in an old store: that of its name, or another; or why there is none."""
    ours, reason = as_json(identity), "no capture of this teacher is sealed there"
    names = old.store.root.names("teachers")
    for candidate in sorted(names, key=lambda one: one != name):
        part = f"teachers/{candidate}"
        spec = old.store.find_spec(part)
        if spec is None:
            continue
        why = _unlike(ours, notes, spec.identity, spec.notes) or _unreadable(encoding, spec.identity)
        if why is None:
            capture = old.store.teachers[candidate]
            if np.array_equal(capture.part.small("classes"), np.arange(old.store.num_classes)):
                return OldCapture(old, capture, augmentation)
            why = "its columns are not the classes in order"
        if candidate == name:
            reason = f"{part}: {why}"
    return reason


def _unlike(
    ours: Mapping[str, Any], our_notes: Mapping[str, Any], theirs: Mapping[str, Any], notes: Mapping[str, Any]
) -> str | None:
    """Return the difference between a teacher and that of an old capture; None if they are the same."""
    mine, other = (
        {key: value for key, value in one.items() if key not in _MAY_DIFFER} for one in (ours, theirs)
    )
    mine = agreed(mine, other) | {SOURCE: noted_files(our_notes, notes)}
    first = difference(mine, other | {SOURCE: noted_files(notes, notes)})
    return None if first is None else f"{first[0]} is {first[2][:80]} there, and {first[1][:80]} here"


def _unreadable(encoding: Encoding, theirs: Mapping[str, Any]) -> str | None:
    """Return why the rows of a capture cannot be had in an encoding; None if they can.

    From float32 every encoding has the error that it has from the teacher itself; from any other, only the same is exact.
    """
    written, wanted = theirs.get("encoding"), as_json(encoding.describe())
    if not isinstance(written, Mapping):
        return "its encoding is not stated"
    if written.get("kind") == "float32":
        return None
    first = difference(wanted, {key: written.get(key) for key in wanted}, "encoding")
    if first is None:
        return None
    key, mine, other = first
    return f"{key} is {other[:80]} there, and {mine[:80]} here: only float32 can be encoded in another way"
