"""Logits that someone already has, sealed in a store: a new one, or as one more capture of one that has the same rows.

1. The files are opened (`given`) and digested. Their sha256 are the identity of the capture: "imported from FILE of sha256 …".
2. What is at the store's place decides: nothing, or a killed import of these files, begins or resumes it; a store of the same rows
   gets a capture; every other store is refused.
3. All values are checked (`values`) before the first of them is written.
4. `samples` are written from labels, ids and inputs, then the capture, block by block; both are sealed.

Killed anywhere and started again, it ends with the same bytes.
"""

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ...storage.api import Store, begin_store, open_store
from ...storage.backends.remote import folder_to_write, path_of
from ...storage.backends.whole_file import check_room
from ...storage.checks import check_labels
from ...storage.encodings.encoding import Encoding
from ...storage.encodings.error_budget import ErrorBudget
from ...storage.encodings.half import FLOATS, FloatEncoding
from ...storage.encodings.named import encoding_named
from ...storage.encodings.transform import Transform
from ...storage.errors import ConfigError, NameTaken, NotAStoreError
from ...storage.format.constants import SAMPLES
from ...storage.format.documents import check_name
from ...storage.identity import check_same
from ...storage.parts.card import checked_card
from ...storage.parts.sealable import check_class_names, optional_arrays
from ...storage.progress import Progress, silent
from ...storage.sharing.card_file import refresh_card
from ..calibration_rows import drawn
from ..factories.file_digest import file_digest
from ..models.sources import unchanged
from ..runtime.ahead import run_ahead
from .given import GivenLogits, open_logits
from .imported import Imported, ImportedFile
from .row_values import ids_given, labels_given, names_given
from .same_rows import OF_INPUT, Rows, check_rows_agree
from .values import check_values

IMPORTED: Final = "imported_from"
"""Key of an identity: name, size and sha256 of each file."""
_PIECE_BYTES: Final = 16 << 20
"""Bytes of float32 logits that are checked at a time."""


@dataclass(frozen=True)
class _Plan:
    """An import that is known to fit."""

    logits: GivenLogits
    rows: Rows
    names: list[str] | None
    num_classes: int
    classes: list[int] | None
    teacher: str
    encoding: Encoding
    provenance: Mapping[str, Any]
    log_probabilities: bool
    card: dict[str, str]

    @property
    def samples_identity(self) -> dict[str, Any]:
        # Known inputs may be compared with any data set: the files of the logits are no part of it.
        knows_inputs = self.rows.digest_of == OF_INPUT
        return {
            "transfer_set": None if knows_inputs else {IMPORTED: self.provenance[IMPORTED]},
            "order": {"kind": "as_is"},
            "digest_of": self.rows.digest_of,
            "label_kind": "class",
        }

    @property
    def row_bytes(self) -> int:
        kind = self.encoding.kind if isinstance(self.encoding, FloatEncoding) else "float32"
        return self.logits.num_columns * np.dtype(kind).itemsize


def import_logits(
    files: "Sequence[str | os.PathLike[str]] | str | os.PathLike[str]",
    store: "str | os.PathLike[str]",
    teacher: str,
    *,
    labels: Any = None,
    ids: Any = None,
    class_names: Any = None,
    inputs: Any = None,
    digests: Any = None,
    store_inputs: bool = True,
    encoding: "str | Mapping[str, Any] | None" = None,
    card: Mapping[str, str] | None = None,
    log_probabilities: bool = False,
    column: str | None = None,
    view: int | None = None,
    dry_run: bool = False,
    progress: Progress = silent,
) -> Imported:
    """Seal logits that lie in plain files as a capture of a store, which is made, or has the same rows.

    Rows are stored in the order of the files. Made again after it was killed, the call resumes to the same bytes.

    files: `.npy`, `.safetensors`, `.parquet`, `.pt` or `.pth`, several in order. Floating (rows, classes), in nats, any additive
    constant per row. float64 is centred and rounded to float32; bfloat16 is exact. No file runs code.
    store: path or bucket URL. Where a store is, its rows must have the ids, labels or inputs that are given, and classes as many.
    labels, ids, class_names: a sequence, a file (`.npy`, `.txt`, `.json`; labels and ids in `.parquet`, `.safetensors`, `.pt`,
    too), or a list of paths. By default those of an export of logitstore's; without labels, every label is -1, unknown.
    inputs: array (rows, …) or `.npy` that the teacher saw, kept in the store with `store_inputs`. digests: `digest_rows` of them.
    Without either, no input can be compared with the store's rows.
    encoding: as of `Store.capture`. float32 by default, and float16 for an export of a float16 capture, which holds them.
    card: of a new store, as of `create_store`. log_probabilities: the values are log-softmax at temperature 1: logits but for a
    constant of each row. column: name of the logits among the arrays of a file. view: of logits (view, row, class).
    dry_run: check all values, and write nothing.

    Raises BadLogitsError for NaN, infinities and probabilities, BadDataError for damaged files, other shapes and lengths,
    RowMismatch with the first row of a store that is another one, SpecMismatch for a capture of other files, NameTaken for another
    capture or a place that is taken, ConfigError, StorageFull. Nothing is written before every value was checked.
    """
    check_name(teacher, "teacher")
    folder_to_write(store)  # refuses a place that is only read, before a file is
    with contextlib.ExitStack() as stack:
        logits = open_logits(files, column, view)
        for path in {one.file.path for one in logits.files}:
            stack.enter_context(unchanged(path))
        imported = _digested(logits, progress)
        plan = _plan(
            logits,
            imported,
            teacher,
            Rows.of(
                labels_given(labels, logits),
                ids_given(ids, logits),
                inputs,
                digests,
                logits.num_rows,
                store_inputs,
            ),
            names_given(class_names, logits),
            encoding,
            checked_card(card),
            log_probabilities,
        )
        there = _store_at(store)
        is_new = there is None or _is_ours(there, plan)
        done = there is not None and _is_done(there, plan)
        if there is not None and not is_new and not done:
            check_rows_agree(there, plan.rows, plan.names, plan.num_classes)
        begun = there is not None and there.identity_of(f"teachers/{teacher}") is not None
        if not done and not begun:
            _check(plan, progress)
        size = plan.row_bytes * logits.num_rows
        if not done and not dry_run:
            if not begun and isinstance(there.path if there else path_of(store), Path):
                check_room(Path(os.fspath(store)), size)
            there = _write(there, store, plan, progress, is_new=is_new, check=stack.pop_all().close)
    if there is not None and not dry_run:
        refresh_card(there.root, made=not done)
    return Imported(
        there.path if there is not None else path_of(store),
        None if there is None else there.digest,
        teacher,
        dry_run,
        not done,
        is_new,
        logits.num_rows,
        logits.num_columns,
        logits.dtype,
        log_probabilities,
        plan.encoding.describe(),
        int((plan.rows.labels >= 0).sum()),
        plan.rows.ids is not None,
        size,
        imported,
    )


def _digested(logits: GivenLogits, progress: Progress) -> tuple[ImportedFile, ...]:
    """Digest the files."""
    found = []
    for number, one in enumerate(logits.files):
        progress("digest files", number, len(logits.files), "files")
        path = one.file.path
        digest = file_digest(path).removeprefix("sha256:")
        found.append(ImportedFile(path.name, digest, path.stat().st_size, one.rows))
    progress("digest files", len(logits.files), len(logits.files), "files")
    return tuple(found)


def _plan(
    logits: GivenLogits,
    imported: tuple[ImportedFile, ...],
    teacher: str,
    rows: Rows,
    names: list[str] | None,
    encoding: "str | Mapping[str, Any] | None",
    card: dict[str, str],
    log_probabilities: bool,
) -> _Plan:
    """Return the import, with all its refusals that need neither the store nor a logit."""
    note = logits.note or {}
    chosen = encoding_named(encoding) if encoding is not None else _default_encoding(note, logits)
    if not isinstance(chosen, Transform):
        chosen.arrays(logits.num_columns)  # refuses more logits than there are classes
    classes, num_classes = note.get("classes"), int(note.get("num_classes", logits.num_columns))
    if classes is None or len(classes) != logits.num_columns:  # other logits under the name of an export
        classes, num_classes = None, logits.num_columns
    if names is not None and len(names) != num_classes:
        raise ConfigError(
            "class_names",
            expected=f"{num_classes} names, one a class",
            found=str(len(names)),
            remedy="name one class for each column of the logits, in their order",
        )
    check_class_names(names, "class_names")
    check_labels(rows.labels, num_classes)
    first = logits.files[0]
    provenance: dict[str, Any] = {
        IMPORTED: [{"file": one.file, "sha256": one.sha256, "bytes": one.bytes} for one in imported],
        "values": "log-probabilities" if log_probabilities else "logits",
    }
    if first.name:
        provenance["column"] = first.name
    if first.of_view:
        provenance["view"] = first.of_view
    return _Plan(
        logits,
        rows,
        names,
        num_classes,
        classes,
        teacher,
        chosen,
        provenance,
        log_probabilities,
        card,
    )


def _default_encoding(note: Mapping[str, Any], logits: GivenLogits) -> Encoding:
    """Return the encoding that keeps every digit of the files."""
    described = note.get("encoding")
    is_half = isinstance(described, Mapping) and described.get("kind") == "float16"
    # The note may be older than the logits, which someone has put in the place of an export.
    return FLOATS["float16" if is_half and _are_halves(logits) else "float32"]


def _are_halves(logits: GivenLogits) -> bool:
    """Return whether float16 holds every logit, less the largest of its row."""
    step = max(1, _PIECE_BYTES // (4 * logits.num_columns))
    for start in range(0, logits.num_rows, step):
        values = logits.read(start, min(start + step, logits.num_rows))
        with np.errstate(over="ignore", invalid="ignore"):  # such values are refused later
            centred = values - values.max(axis=1, keepdims=True)
            if not np.array_equal(centred.astype(np.float16), centred):
                return False
    return True


def _store_at(store: "str | os.PathLike[str]") -> Store | None:
    """Return the store at a place; None where there is none."""
    try:
        return open_store(store)
    except NotAStoreError:
        return None  # `begin_store` refuses what else is there


def _is_ours(store: Store, plan: _Plan) -> bool:
    """Return whether a store was begun by this very import."""
    identity = store.identity_of(SAMPLES)
    if (store.num_rows, store.num_classes) != (plan.logits.num_rows, plan.num_classes):
        return False
    if identity is None:
        return True
    if plan.rows.digest_of == OF_INPUT and store.is_sealed(SAMPLES):
        return False  # of this import or of another writer: the inputs are compared
    return {key: value for key, value in identity.items() if key != "views"} == plan.samples_identity


def _is_done(store: Store, plan: _Plan) -> bool:
    """Return whether the capture is sealed and whole. Raises NameTaken, SpecMismatch for another one of its name."""
    part = f"teachers/{plan.teacher}"
    identity = store.identity_of(part)
    if identity is None:
        return False
    where = f"{store.path}: {part}"
    if IMPORTED not in identity:
        raise NameTaken(
            where,
            expected=f"a name that is free, or a capture with {IMPORTED} in its identity",
            found=f"a capture with {', '.join(sorted(identity)) or 'no keys'}",
            remedy="choose another name",
        )
    remedy, made = "choose another name", "with which it was made"
    if not store.is_sealed(part):
        remedy += f"; to begin it anew, delete {store.path / 'teachers' / plan.teacher}"
        made = "with which it was begun"
    ours = {**plan.provenance, "encoding": plan.encoding.describe()}
    check_same(
        where,
        ours,
        {key: identity.get(key) for key in {*ours, *identity} - {"views"}},
        made=made,
        remedy=remedy,
    )
    return store.is_whole(part)


def _check(plan: _Plan, progress: Progress) -> None:
    """Check all values, before anything is written. Raises BadLogitsError."""
    logits, done = plan.logits, 0
    step = max(1, _PIECE_BYTES // (4 * logits.num_columns))
    for file in logits.files:
        is_half = file.array.dtype in ("float16", "bfloat16")
        for start in range(0, file.rows, step):
            stop = min(start + step, file.rows)
            values = np.asarray(file.read(start, stop))
            wide = values if values.dtype == np.float64 else values.astype(np.float32, copy=False)
            where = str(file.file.path)
            check_values(wide, start, where, is_half=is_half, log_probabilities=plan.log_probabilities)
            if isinstance(plan.encoding, FloatEncoding | ErrorBudget):  # float16 and codes have a range
                centred = (wide - wide.max(axis=1, keepdims=True)).astype(np.float32)
                plan.encoding.encode(centred, start, where)
            done += stop - start
            progress("check values", done, logits.num_rows)


def _write(
    store: Store | None,
    location: "str | os.PathLike[str]",
    plan: _Plan,
    progress: Progress,
    *,
    is_new: bool,
    check: Any,
) -> Store:
    """Write and seal what is missing. check: called before the capture is sealed; raises if a file has changed."""
    if is_new:
        store = _with_samples(store, location, plan)
    assert store is not None
    logits = plan.logits
    encoding = plan.encoding
    calibration = None
    if isinstance(encoding, Transform):
        wanted = drawn(logits.num_rows, encoding)

        def calibration() -> NDArray[Any]:
            return np.concatenate([logits.read(int(row), int(row) + 1) for row in wanted])

    with store.capture(
        plan.teacher,
        provenance=plan.provenance,
        encoding=encoding,
        classes=plan.classes,
        calibration=calibration,
    ) as capture:
        capture.warns_of_probabilities = False  # every row was checked
        missing = list(capture.missing_blocks())
        done = logits.num_rows - sum(map(len, missing))
        task = f"import {plan.teacher}"
        progress(task, done, logits.num_rows)
        for rows, values, peak in _read_ahead(logits, missing):
            capture.write(rows, values, peak=peak)
            done += len(rows)
            progress(task, done, logits.num_rows)
        check()
    return store


def _read_ahead(
    logits: GivenLogits, blocks: list[range]
) -> Iterator[tuple[range, NDArray[Any], NDArray[np.float32] | None]]:
    """Yield the logits and constants of each block, the next of which is read by a thread."""

    def read(rows: range) -> tuple[range, NDArray[Any], NDArray[np.float32] | None]:
        values = logits.read(rows.start, rows.stop)
        # Constants of other logits, which someone has put in the place of an export, are not theirs.
        are_centred = bool((values.max(axis=1) == 0).all())
        return rows, values, logits.read_peak(rows.start, rows.stop) if are_centred else None

    return run_ahead(blocks, read, 1)


def _with_samples(store: Store | None, location: "str | os.PathLike[str]", plan: _Plan) -> Store:
    """Begin the store, or resume it, and seal its samples."""
    rows = plan.rows
    example = rows.example
    if store is None:
        store = begin_store(
            location,
            num_rows=plan.logits.num_rows,
            num_classes=plan.num_classes,
            row_bytes=max(4 * plan.num_classes, 0 if example is None else example.nbytes),
            exist_ok=True,
            arrays=optional_arrays(example, rows.ids),
        )
    writer = store.samples_writer(
        identity=plan.samples_identity,
        class_names=plan.names,
        example=example,
        ids=rows.ids,
        card=plan.card or None,
    )
    with contextlib.closing(writer):
        for block in map(store.grid.rows, range(store.grid.num_blocks)):
            part = slice(block.start, block.stop)
            writer.write(
                block,
                source=np.arange(block.start, block.stop, dtype=np.int64),
                digest=rows.digests[part],
                label=rows.labels[part],
                id=None if rows.ids is None else rows.ids[part],
                input=None if example is None else np.asarray(rows.inputs[part]),
            )
        writer.seal()
    return store
