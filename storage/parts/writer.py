"""Writers of samples and captures.

Each defines the arrays of its part and checks the values that it is given; `part_writer` writes them.
"""

import contextlib
import logging
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, SupportsIndex

import numpy as np
from jaxtyping import Float32, Int64, UInt64
from numpy.typing import NDArray

from ..checks import check_view, warn_of_probabilities
from ..digest import check_digests
from ..encodings.encoding import ArraySpec, Encoding
from ..encodings.feature_logits import FeatureLogits, as_rows, dense
from ..encodings.products import TILE
from ..encodings.refine import ESCAPED
from ..encodings.transform import Transform
from ..errors import (
    BadDataError,
    BadLogitsError,
    ConfigError,
    ManifestInvalid,
    PartSealed,
    RowMismatch,
    SpecMismatch,
    StoreCorrupt,
)
from ..format.constants import INPUT_FILES, ROOT_METADATA, SAMPLES
from ..format.documents import check_name
from ..format.layouts import DIMENSIONS, DTYPES_OF, block_array, small_array
from ..format.metadata import ArrayLayout
from .card import CARD, checked_card
from .chosen_basis import choose_basis
from .copied import CopiedRows, Encode
from .journal import Commit, commit_key, committed_blocks
from .padded_rows import file_rows, text_rows
from .part_reader import PartReader
from .part_spec import spec_bytes
from .part_writer import PartWriter
from .root import Root
from .same_rows import augmentation_of, check_ids, check_row_labels, check_seen, check_sources, is_augmented
from .values import check_input_dtype, check_rows_of

log = logging.getLogger(__name__)
_TRANSFORM_PIECE_BYTES = 16 << 20
"""Bytes of the widest array, but for `escape`, that are encoded at a time by threads of the encoding."""
_MOST_ESCAPED = 0.1
"""Share of rows without the basis from which a capture is warned of."""
_SUM_ERROR = 2e-2
"""Largest distance of the sum of a softmax from 1, if bfloat16 computed it."""


class SamplesWriter(PartWriter):
    """A writer of `samples`: source, digest and label of each row, and optionally id, and input or file."""

    is_exact = True

    def __init__(
        self,
        root: Root,
        *,
        identity: Mapping[str, Any],
        class_names: Sequence[str] | None = None,
        example: NDArray[Any] | None = None,
        ids: Sequence[str] | None = None,
        file_width: int | None = None,
        card: Mapping[str, str] | None = None,
    ) -> None:
        """Begin or resume `samples`.

        identity: fingerprint of the transfer set, order, digest_of. example: any input, for its shape and dtype, if
        the store keeps inputs. ids: the id of each row, for the width of the longest, if rows have ids. file_width: bytes
        of the longest file, if the store keeps the files of the inputs instead. card: kept if the part is begun here, and
        not compared.
        """
        notes = {CARD: kept} if (kept := checked_card(card)) else {}
        layouts = [self._rows_of(root, name, ()) for name in ("source", "digest", "label")]
        if file_width is not None:
            layouts.append(self._rows_of(root, "file", (file_width,), form=INPUT_FILES))
            layouts.append(self._rows_of(root, "file_bytes", (), form=INPUT_FILES))
        if id_width := max((len(name.encode()) for name in ids or ()), default=0):
            layouts.append(self._rows_of(root, "id", (id_width,)))
        if example is not None:
            check_input_dtype(example.dtype)
            layouts.append(self._rows_of(root, "input", example.shape, example.dtype.name))
        small = {}
        if class_names is not None:
            small["class_name"] = text_rows(class_names)
            layouts.append(small_array("samples", "class_name", small["class_name"].shape))
        self._id_width = id_width
        super().__init__(root, SAMPLES, views=1, identity=identity, notes=notes, layouts=layouts, small=small)

    @staticmethod
    def _rows_of(
        root: Root, name: str, row_shape: tuple[int, ...], dtype: str = "", form: str = SAMPLES
    ) -> ArrayLayout:
        dtype = dtype or DTYPES_OF[name]
        where = f"{root.path}: {SAMPLES}"
        return block_array(form, name, dtype, root.grid, views=1, row_shape=row_shape, where=where)

    def write(
        self,
        rows: "range | slice",
        *,
        source: Int64[np.ndarray, " rows"],
        digest: UInt64[np.ndarray, " rows"],
        label: Int64[np.ndarray, " rows"],
        id: Sequence[str] | None = None,
        input: NDArray[Any] | None = None,
        file: Callable[[slice], Sequence[bytes]] | None = None,
    ) -> None:
        """Commit a block, or compare it with the committed one.

        file: gives the files of a slice of the block's rows; called in order, for a few rows at a time.
        Raises BadDataError for labels out of range, RowMismatch if a committed block holds other inputs, indices,
        labels or ids.
        """
        block = self.block_of(rows)
        block_rows = self.root.grid.rows(block)
        classes = self.root.attributes.num_classes
        bad = np.flatnonzero((label < -1) | (label >= classes))
        if len(bad):
            raise BadDataError(
                f"row {block_rows.start + int(bad[0])} (index {int(source[bad[0]])} of the transfer set): label",
                expected=f"a class from 0 to {classes - 1}, or -1 for unknown",
                found=str(int(label[bad[0]])),
                remedy="correct the labels or the number of classes",
            )
        arrays: dict[str, Any] = {"source": source, "digest": digest, "label": label}
        if "id" in self.layouts:
            arrays["id"] = text_rows(id or [""] * len(block_rows), self._id_width)
        if self.has_block(0, block):
            self._check_same(block, arrays)
            return
        if "input" in self.layouts:
            arrays["input"] = input
        for name, array in arrays.items():
            self.check_array(name, array, len(block_rows))

        def piece(part: slice) -> dict[str, Any]:
            of_rows = {name: array[part] for name, array in arrays.items()}
            if "file" in self.layouts:
                assert file is not None  # samples that were begun with files
                padded = file_rows(file(part), self.layouts["file"].row_shape[0], block_rows[part])
                of_rows |= {"file": padded[0], "file_bytes": padded[1]}
            return {name: of_rows[name] for name in self.layouts}

        try:
            self.commit(0, block, piece)
        except PartSealed:
            # Samples depend on the transfer set alone: another writer of the same rows was faster.
            self._check_same(block, arrays)
        except RowMismatch:
            # A killed run left some arrays of this block: name the first row that differs.
            self._check_same(block, {name: arrays[name] for name in self._arrays_there(block)})
            raise

    def compare_arrays(self) -> None:
        listed = self._files if self.sealed else [f"{name}/{ROOT_METADATA}" for name in self.folder.names()]
        keys = [key for key in listed if self.sealed or self.folder.exists(key)]
        known = {*DIMENSIONS[INPUT_FILES], "input"}  # a later minor version may add others
        there = {
            name for name, _, file in (key.rpartition("/") for key in keys) if file == ROOT_METADATA
        } & known
        # The first record follows the metadata of all arrays; before it, a killed writer may have put a part of them.
        begun = there if self.sealed else self._recorded_arrays()
        ours = {key.rpartition("/")[0] for key in self._metadata}
        missing, more = sorted(there - ours), sorted(set(self.layouts) - begun) if begun else []
        if missing or more:
            name = (missing or more)[0]
            raise SpecMismatch(
                self._where,
                expected=f"{'' if missing else 'no '}{name}, as it was begun",
                found=f"{'no ' if missing else ''}{name}",
                remedy="pass the arrays with which the store was made, or make a new store",
            )

    def _recorded_arrays(self) -> set[str]:
        """Return the arrays of the first intact record; none before there is one."""
        for view, block in sorted(committed_blocks(self.folder)):
            with contextlib.suppress(FileNotFoundError, ManifestInvalid):
                key = commit_key(view, block)
                return set(Commit.from_bytes(self.folder.read(key), key).objects)
        return set()

    def _arrays_there(self, block: int) -> list[str]:
        return [
            name for name, layout in self.layouts.items() if self.folder.exists(layout.shard_key(0, block))
        ]

    def _check_same(self, block: int, arrays: Mapping[str, Any]) -> None:
        """Compare arrays with those of a block that is there. Raises RowMismatch, ShardMissing.

        An input is compared by its digest.
        """
        rows, source = self.root.grid.rows(block), arrays["source"]
        if "digest" in arrays:
            check_digests(rows, arrays["digest"], self.stored("digest", 0, block), source)
        for name, compare in (("source", check_sources), ("label", check_row_labels)):
            if name in arrays:
                compare(rows, arrays[name], self.stored(name, 0, block), source)
        if "id" in arrays:
            check_ids(rows, arrays["id"], self.stored("id", 0, block), source)


class CaptureWriter(PartWriter):
    """A writer of the logits of one teacher; a context manager that seals a complete capture on leaving.

    If another writer seals the capture meanwhile, the context manager leaves its block and logs a warning.
    """

    def __init__(
        self,
        root: Root,
        name: str,
        *,
        identity: Mapping[str, Any],
        views: int,
        encoding: Encoding,
        classes: "Sequence[int] | NDArray[Any] | None" = None,
        notes: Mapping[str, Any] | None = None,
        calibration: Any = None,
    ) -> None:
        """Begin or resume a capture.

        classes: the store's class of each column that `write` is given, -1 the dustbin class; None for all in order. A
        top-k capture keeps them in order of the class, as that decides which of equal logits is kept.
        calibration: of the transform encoding: see `choose_basis`.
        Raises ConfigError for other columns, SpecMismatch if the name was begun with another identity.
        """
        check_name(name, "capture")
        if views < 1:
            raise ConfigError(
                f"capture {name!r}: views",
                expected="at least 1",
                found=str(views),
                remedy="capture at least 1 view",
            )
        num_classes = root.attributes.num_classes
        columns = np.asarray(range(num_classes) if classes is None else classes)
        is_named = columns.ndim == 1 and len(columns) and columns.dtype.kind in "iu"
        if not is_named or ((columns < -1) | (columns >= num_classes)).any():
            raise ConfigError(
                f"capture {name!r}: classes",
                expected=f"for each column a class from 0 to {num_classes - 1}, or -1 for the dustbin class",
                found=str(columns.tolist())[:80],
                remedy="name classes of this store",
            )
        if len(twice := columns[np.flatnonzero(np.bincount(columns + 1)[columns + 1] > 1)]):
            raise ConfigError(
                f"capture {name!r}: classes",
                expected="each class once",
                found=f"{twice[0]} {int((columns == twice[0]).sum())} times",
                remedy="name the class of each column",
            )
        if reserved := {"encoding", "views"} & identity.keys():
            raise ConfigError(
                f"capture {name!r}: provenance",
                expected="no key of the writer's own, encoding and views",
                found=", ".join(sorted(reserved)),
                remedy="give it another name",
            )
        columns = columns.astype(np.int64)
        self._order = self._order_kept(encoding, columns)
        columns = self.columns = columns if self._order is None else columns[self._order]
        where = f"{root.path}: teachers/{name}"
        identity, notes = {"encoding": encoding.describe(), **identity}, dict(notes or {})
        small: dict[str, NDArray[Any]] = {"classes": columns}
        if isinstance(encoding, Transform):
            ours = spec_bytes(identity, views, notes, where)
            basis = choose_basis(root, name, encoding, len(columns), ours, calibration)
            encoding = encoding.with_basis(basis)
            small |= basis.arrays()
            notes["basis"] = basis.digest
            self.piece_bytes, self.tile, self.rare = _TRANSFORM_PIECE_BYTES, TILE, ("escape",)
        self.encoding: Encoding = encoding
        self.teacher = name
        self._rows_written = self._rows_escaped = 0
        self.warns_of_probabilities = True
        """Whether the first block is looked at; False where that was done before."""
        layouts = [
            block_array(
                encoding.form,
                spec.name,
                spec.dtype,
                root.grid,
                views=views,
                row_shape=spec.row_shape,
                where=where,
                attributes=spec.attributes,
            )
            for spec in [*encoding.arrays(len(columns)), ArraySpec("seen", DTYPES_OF["seen"], ())]
        ]
        layouts += [small_array(encoding.form, array, values.shape) for array, values in small.items()]
        self._augmentation = self._checked_augmentation(name, identity.get("augmentation"))
        self._digests: PartReader | None = None
        super().__init__(
            root,
            f"teachers/{name}",
            views=views,
            identity=identity,
            notes=notes,
            layouts=layouts,
            small=small,
        )

    @staticmethod
    def _order_kept(
        encoding: Encoding, columns: Int64[np.ndarray, " columns"]
    ) -> Int64[np.ndarray, " columns"] | None:
        """Return the order in which columns are encoded; None for that in which they are given.

        Of equal logits, top-k rows keep that in the earlier column, which is thus to be the class of the lower number.
        """
        if encoding.is_dense:
            return None
        return np.argsort(np.where(columns < 0, columns.max() + 1, columns), kind="stable")

    @staticmethod
    def _checked_augmentation(name: str, augmentation: Any) -> Mapping[str, Any] | None:
        """Return an augmentation that readers understand. Raises ConfigError."""
        found = dict(augmentation) if isinstance(augmentation, Mapping) else augmentation
        try:
            return augmentation_of({"augmentation": found}, "provenance")
        except ManifestInvalid:
            raise ConfigError(
                f"capture {name!r}: augmentation",
                expected="a table, whose first_view, if it has one, is an integer from 0",
                found=repr(augmentation)[:80],
                remedy="describe the augmentation in a table: {'name': …, 'first_view': 0}",
            ) from None

    def __enter__(self) -> "CaptureWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        try:
            if isinstance(error, PartSealed):
                log.warning("%s", error)
                self.root.refresh()
                return True
            if kind is None:
                self.seal()
            return False
        finally:
            self.close()

    def write(
        self,
        rows: "range | slice",
        logits: Any,
        view: SupportsIndex = 0,
        seen: UInt64[np.ndarray, " rows"] | None = None,
        peak: Float32[np.ndarray, " rows"] | None = None,
        *,
        copied: CopiedRows | None = None,
    ) -> None:
        """Commit the logits of one block of one view; a committed block stays as it is.

        rows: the rows of one block, from missing_blocks().
        logits: (len(rows), classes), floating, nats, any additive constant per row; or `FeatureLogits`, of which the transform
        encoding makes a few dense rows at a time.
        seen: `digest_rows` of the teacher's inputs; None if nothing is augmented. A view that is not augmented shows the
        rows as they are, and is compared with the samples.
        peak: of centred logits (the largest of each row is 0), the constant that was subtracted from each row. It is
        stored as given, since adding it to the logits would cost digits.
        copied: rows that are stored as given; their logits, zeros for example, are not kept.
        Raises ConfigError for other rows, RowMismatch for other inputs, WrongStore if the path leads to another store by
        now, BadLogitsError for NaN, infinities, wrong shapes or float16 overflow.
        """
        block = self.block_of(rows)
        view = check_view(view, self.views, self.name, "begin with more views")
        if self.has_block(view, block):
            return
        block_rows = self.root.grid.rows(block)
        where = f"teacher {self.teacher!r}, view {view}"
        named = f"{where}, rows {block_rows.start} to {block_rows.stop - 1}"
        is_lazy = isinstance(self.encoding, Transform)
        values, constant = as_rows(logits, (len(block_rows), len(self.columns)), named, is_lazy=is_lazy)
        if self.warns_of_probabilities:
            self.warns_of_probabilities = False
            tried = dense(values[:TILE] if isinstance(values, FeatureLogits) else values)
            warn_of_probabilities(tried if constant is None else tried + constant[:, None], named, _SUM_ERROR)
        if self._order is not None:
            values = dense(values)[:, self._order]
        digests = self._seen(block_rows, seen)
        self.check_array("seen", digests, len(block_rows))
        if seen is not None and self._compares(view):
            remedy = "show the rows of this store to the teacher; or name the augmentation in the provenance"
            check_seen(f"{self.name}, view {view}", block_rows, digests, self._digests_of(block_rows), remedy)
        given: dict[str, NDArray[Any]] = {"seen": digests}
        if peak is not None:
            self._check_peak(
                peak, dense(values) if constant is None else constant[:, None], block_rows, where
            )
            constant = peak
        if constant is not None:
            given["peak"] = constant if copied is None else copied.with_constants(constant)
        encode: Encode = self.encoding.encode
        if copied is not None:
            copied.check(self.encoding, len(self.columns), len(block_rows), self._where)
            encode = copied.over(encode, block_rows.start)

        def encoded(part: slice) -> dict[str, NDArray[Any]]:
            try:
                arrays = encode(values[part], block_rows.start + part.start, where)
            except BadLogitsError:
                encode(values, block_rows.start, where)  # raises for the whole block
                raise
            if "refine" in arrays:
                self._rows_written += len(arrays["refine"])
                self._rows_escaped += int((arrays["refine"] == ESCAPED).sum())
            return arrays | {name: array[part] for name, array in given.items()}

        self.commit(view, block, encoded)

    def seal(self) -> bool:
        sealed = super().seal()
        if sealed and self._rows_escaped > _MOST_ESCAPED * self._rows_written:
            log.warning(
                "teacher %r: %.0f %% of the rows are unlike the calibration rows, and stored whole without the basis; under "
                "another name, calibrate with more rows, or with rows like them, for fewer bytes",
                self.teacher,
                100 * self._rows_escaped / self._rows_written,
            )
        return sealed

    def _check_peak(
        self, peak: Float32[np.ndarray, " rows"], logits: NDArray[np.float32], rows: range, where: str
    ) -> None:
        """Refuse a peak of logits that are not centred. Raises BadLogitsError, BadDataError."""
        check_rows_of(f"{self._where}/peak", peak, DTYPES_OF["peak"], (len(rows),))
        largest = logits.max(axis=1)
        # The encoding refuses rows that are not finite.
        bad = np.flatnonzero((np.isfinite(largest) & (largest != 0)) | ~np.isfinite(peak))
        if len(bad):
            first = int(bad[0])
            raise BadLogitsError(
                f"{where}, row {rows.start + first}: peak",
                expected="a finite peak, and logits whose largest is 0",
                found=f"{peak[first]} and {largest[first]}",
                remedy="pass centred logits, or leave the peak out",
            )

    def compare_notes(self, begun: Mapping[str, Any]) -> None:
        """Refuse a basis other than that of the part, which another writer may just have begun. Raises SpecMismatch."""
        if isinstance(self.encoding, Transform) and self.encoding.basis is not None:
            ours, theirs = self.encoding.basis.digest, str(begun.get("basis"))
            if ours != theirs:
                raise SpecMismatch(
                    self._where,
                    expected=f"the basis with which another writer has begun it, {theirs[:19]}…",
                    found=f"{ours[:19]}…, of other calibration rows, versions or another machine",
                    remedy="run the same command again: it uses the basis that is there",
                )

    def _seen(self, rows: range, seen: UInt64[np.ndarray, " rows"] | None) -> UInt64[np.ndarray, " rows"]:
        if seen is not None:
            return seen
        if self._augmentation is not None:
            raise ConfigError(
                f"{self.name}: seen",
                expected="the digests of the augmented inputs",
                found="None",
                remedy="pass seen=digest_rows(inputs) with what the teacher was given",
            )
        return self._digests_of(rows)

    def _digests_of(self, rows: range) -> UInt64[np.ndarray, " rows"]:
        """Return the digests of the samples. Raises StoreIncomplete if they are not sealed."""
        try:
            if self._digests is None:
                self._digests = PartReader(self.root.part(SAMPLES), self.root.grid)
            return self._digests.read("digest", rows)
        except StoreCorrupt:
            self._check_bound()  # the samples of another store, which is at this path by now
            raise

    def _compares(self, view: int) -> bool:
        """Return whether a view shows the rows as they are, to be compared with samples that are sealed."""
        return self.root.has(SAMPLES) and not is_augmented(self._augmentation, view)

    def check_rows(self, view: int, block: int) -> None:
        if self._compares(view):
            rows = self.root.grid.rows(block)
            remedy = self.remake
            check_seen(
                f"{self.root.path}: {self.name}, view {view}",
                rows,
                self.stored("seen", view, block),
                self._digests_of(rows),
                remedy,
            )
