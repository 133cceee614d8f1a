"""The contents of a store: samples of its transfer set, logits of each teacher, sets of each clustering.

`Samples`, `CaptureReader` and `sets_of` name the arrays of a sealed part, which `part_reader` reads. They refuse
values that mean nothing, such as a label that is no class.
"""

from collections.abc import Mapping
from functools import cached_property
from typing import Any, Final, SupportsIndex, cast

import numpy as np
from jaxtyping import Float32, Float64, Int64, UInt16, UInt64
from numpy.typing import NDArray

from ..encodings.divergence import kl_of_error
from ..encodings.encoding import Encoding
from ..encodings.named import encoding_described
from ..encodings.refine import ESCAPED
from ..encodings.top_k import tell_apart
from ..encodings.transform import Transform
from ..errors import ConfigError
from ..format.constants import INPUT_FILES, MAX_NAMES_BYTES, MAX_REFINED, SAMPLES, SPEC, TRANSFORM
from ..format.documents import beyond, invalid, shorten, table
from .clusterings import ClusteringReader, check_sets, check_shapes, shapes_of
from .part_reader import LazyRows, PartReader, check_rows
from .root import Root
from .same_rows import augmentation_of
from .sealed_part import SealedPart, Spec
from .stored_basis import StoredBasis
from .values import in_range

_MOVED: Final = 1 << 18
"""Logits that are moved to other columns at a time, so that little is held twice."""


def _frozen(values: NDArray[Any]) -> NDArray[Any]:
    """Make an array read-only, which several callers share."""
    values.setflags(write=False)
    return values


class Samples:
    """The examples of the transfer set, in the order of the store."""

    def __init__(self, root: Root) -> None:
        """Open the samples. Raises ManifestInvalid for a store of another number of classes than they name."""
        self._part = root.part(SAMPLES)
        self._num_classes = root.attributes.num_classes
        names = self._part.layouts.get("class_name")
        if names is not None and names.shape[0] != self._num_classes:
            where = f"{self._part.folder.path}/class_name"
            raise invalid(where, f"{self._num_classes} names", names.shape[0])
        self.reader = PartReader(self._part, root.grid)
        """Reads rows of the arrays below."""

    def __repr__(self) -> str:
        arrays = {name: layout.shape[0] for name, layout in self._part.layouts.items()}
        return f"<Samples of {arrays['label']} rows: {', '.join(arrays)}>"

    @property
    def digest(self) -> str:
        """Identity of the part: "sha256:…" of its seal."""
        return self._part.digest

    @property
    def num_rows(self) -> int:
        """Rows, N."""
        return self.reader.grid.num_rows

    @property
    def spec(self) -> Spec:
        """Fingerprint of the transfer set, order, kind of digests."""
        return self._part.spec

    @cached_property
    def labels(self) -> Int64[np.ndarray, " rows"]:
        """The class of each row, -1 if unknown. Read-only, as all arrays here are: copy what you change."""
        return _frozen(self.labels_of(slice(None)))

    def labels_of(self, rows: Any) -> Int64[np.ndarray, " rows"]:
        """Return the labels of `rows` (a slice, or ascending integers). Raises ManifestInvalid for a false class."""
        return self._classes(self.reader.read("label", rows))

    def read_labels(self, rows: Any, out: NDArray[np.int64]) -> None:
        """Read the labels of `rows` into `out`."""
        self.reader.read_into("label", rows, 0, out)
        self._classes(out)

    def _classes(self, labels: NDArray[Any]) -> NDArray[Any]:
        return in_range(labels, -1, self._num_classes, f"{self._part.folder.path}/label")

    @cached_property
    def source(self) -> Int64[np.ndarray, " rows"]:
        """Index of each row in the transfer set."""
        return _frozen(self.reader.read("source", slice(None)))

    @cached_property
    def digests(self) -> UInt64[np.ndarray, " rows"]:
        """`digest_rows` of each row's input before augmentation."""
        return _frozen(self.reader.read("digest", slice(None)))

    @property
    def inputs(self) -> LazyRows | None:
        """The inputs, read on indexing; None if the store does not keep them."""
        return LazyRows(self.reader, "input") if "input" in self._part.layouts else None

    @property
    def keeps_files(self) -> bool:
        """Whether the store keeps the file of each input, from which it is decoded, in the place of the input."""
        return self._part.form == INPUT_FILES

    def file(self, row: int) -> bytes:
        """Return the file of a row's input. Raises PartNotFound if the store keeps none, ManifestInvalid for a false size."""
        one = np.array([row])
        size = self.reader.read("file_bytes", one)
        content = self.reader.read("file", one)[0]
        in_range(size, 1, len(content) + 1, f"{self._part.folder.path}/file_bytes", "sizes")
        return bytes(content[: int(size[0])].tobytes())

    @property
    def has_ids(self) -> bool:
        """Whether rows have ids."""
        return "id" in self._part.layouts

    def id_of(self, row: int) -> str | None:
        """Return the id of a row, read alone; None if rows have none."""
        if not self.has_ids:
            return None
        return texts_of(self.reader.read("id", np.array([row])), f"{self._part.folder.path}/id")[0]

    @property
    def ids(self) -> list[str] | None:
        """The id of each row; None if rows have none. A new list at each access."""
        return None if self._ids is None else list(self._ids)

    @cached_property
    def _ids(self) -> list[str] | None:
        if not self.has_ids:
            return None
        return texts_of(self.reader.read("id", slice(None)), f"{self._part.folder.path}/id")

    @property
    def has_class_names(self) -> bool:
        """Whether classes have names."""
        return "class_name" in self._part.layouts

    @property
    def class_names(self) -> list[str]:
        """The name of each class; its number if classes have no names. A new list at each access."""
        return list(self._class_names)

    @cached_property
    def _class_names(self) -> list[str]:
        if not self.has_class_names:
            return [str(c) for c in range(self._num_classes)]
        where = f"{self._part.folder.path}/class_name"
        size = self._num_classes * self._part.layouts["class_name"].row_bytes
        if size > MAX_NAMES_BYTES:
            raise beyond(where, MAX_NAMES_BYTES, "bytes of names", size)
        return texts_of(self._part.small("class_name"), where)


class CaptureReader:
    """The logits of one teacher over all rows and views."""

    def __init__(self, root: Root, name: str) -> None:
        self.name = name
        """The teacher's name."""
        self.part = root.part(f"teachers/{name}")
        """The sealed part."""
        self.reader = PartReader(self.part, root.grid)
        """Reads rows as they are stored."""
        self._num_classes = root.attributes.num_classes
        where = f"{self.part.folder.path}/{SPEC}"
        encoding = table(self.part.spec.identity.get("encoding"), where, "encoding")
        if not isinstance(encoding.get("kind"), str):
            raise invalid(f"{where}: encoding", "a kind", shorten(encoding.get("kind")))
        self.encoding: Encoding = encoding_described(encoding, self.part.name)
        """The encoding of its logits; of one with a basis, that is read with the first row."""
        if isinstance(self.encoding, Transform) and self.part.form == TRANSFORM:
            self.encoding = self.encoding.with_basis(StoredBasis(self.part, self._stored_places))
        self._check_arrays(where)
        self.augmentation: dict[str, Any] | None = augmentation_of(self.part.spec.identity, where)
        """The augmentation of its views; None if every view is the row itself."""

    def _check_arrays(self, where: str) -> None:
        """Refuse arrays that are not those of the encoding. Raises ManifestInvalid."""
        try:
            specs = self.encoding.arrays(self.shape[2])
        except ConfigError as error:
            raise invalid(where, error.expected, error.found) from None
        for spec in specs:
            layout = self.part.layouts.get(spec.name)
            form = layout and (layout.dtype, layout.row_shape, dict(layout.attributes))
            if form != (spec.dtype, spec.row_shape, dict(spec.attributes)):
                raise invalid(where, f"{spec.name} in {spec.dtype} {spec.row_shape}", shorten(form))
        if "peak" in self.part.layouts and "peak" not in {spec.name for spec in specs}:
            raise invalid(where, "no peak, as the encoding has it", "an array peak")

    @property
    def digest(self) -> str:
        """Identity of the capture: "sha256:…" of its seal."""
        return self.part.digest

    @property
    def num_views(self) -> int:
        """Views that were captured."""
        return self.part.seal.views

    @property
    def shape(self) -> tuple[int, int, int]:
        """(views, rows, classes)."""
        views, rows = self.part.layouts["seen"].shape
        return views, rows, self.part.layouts["classes"].shape[0]

    @cached_property
    def classes(self) -> Int64[np.ndarray, " classes"]:
        """The store's class of each column that is read, -1 the dustbin class.

        A capture of all classes has them in order, whatever order it was written in; one of some has its own columns.
        """
        stored = self._stored_classes
        return _frozen(stored.copy() if self._places is None else stored[self._places])

    @property
    def has_all_classes(self) -> bool:
        """Whether its columns are the classes of the store, no more and no fewer."""
        return np.array_equal(self.classes, np.arange(self._num_classes))

    @property
    def is_specialist(self) -> bool:
        """Whether its provenance says that it is a specialist's, by a head of that kind."""
        head = self.part.spec.identity.get("head")
        return isinstance(head, Mapping) and head.get("kind") == "specialist"

    @property
    def columns_found(self) -> str:
        """The number of its classes, and whether it has a dustbin class, in words."""
        dustbin = " and a dustbin class" if (self.classes < 0).any() else ""
        return f"{len(np.unique(self.classes[self.classes >= 0]))} classes{dustbin}"

    @cached_property
    def _stored_classes(self) -> Int64[np.ndarray, " classes"]:
        return in_range(self.part.small("classes"), -1, self._num_classes, f"{self.part.folder.path}/classes")

    @cached_property
    def _places(self) -> Int64[np.ndarray, " classes"] | None:
        """The stored column of each class of the store; None if all stand in order, or some are missing."""
        stored, in_order = self._stored_classes, np.arange(self._num_classes)
        if np.array_equal(stored, in_order) or not np.array_equal(np.sort(stored), in_order):
            return None
        return np.argsort(stored)

    def _stored_places(self) -> Int64[np.ndarray, " classes"] | None:
        # A method and no lambda: workers of a DataLoader and dask receive captures as pickles.
        return self._places

    @property
    def provenance(self) -> dict[str, Any]:
        """Teacher, weights, augmentation, encoding, precision, versions …"""
        return {**self.part.spec.notes, **self.part.spec.identity}

    def read(
        self, rows: Any, view: SupportsIndex = 0, temperature: float | None = None
    ) -> Float32[np.ndarray, "rows classes"]:
        """Return the logits of `rows` (a slice, or ascending integers), the largest of each row 0, in nats.

        `classes` names the columns: all classes of the store in order, or those that the capture has.
        The constant that was subtracted from each row is its `peak`; a softmax does not depend on it.
        temperature: that of the softmax. Only a top-k capture needs it: the logits of its other classes follow
        from their stored moments at that temperature.
        Raises ConfigError, ShardMissing or ShardCorrupt.
        """
        self.check_temperature(temperature)
        return self.encoding.decode(self.read_stored(rows, view), self.shape[2], temperature)

    def read_ranked(
        self, rows: Any, view: SupportsIndex = 0, temperature: float | None = None
    ) -> Float32[np.ndarray, "rows classes"]:
        """Return `read`, for whoever sorts the classes of a row: equal logits are told apart where their order is stored.

        A top-k capture stores it, also of logits that float16 made equal. In other encodings equal logits stay equal.
        """
        self.check_temperature(temperature)
        stored = self.read_stored(rows, view)
        logits = self.encoding.decode(stored, self.shape[2], temperature)
        return tell_apart(logits, stored["index"]) if "index" in stored else logits

    def check_temperature(self, temperature: float | None) -> None:
        """Refuse to decode a top-k capture without a temperature. Raises ConfigError."""
        if temperature is None and not self.encoding.is_dense:
            raise ConfigError(
                f"{self.part.name}: temperature",
                expected="the temperature of the softmax, by which top-k rows are decoded",
                found="None",
                remedy="pass temperature=…, or read the rows as they are stored",
            )

    def read_stored(self, rows: Any, view: SupportsIndex = 0) -> dict[str, NDArray[Any]]:
        """Return the arrays from which `rows` are decoded: "logits"; "index" and "tail" of a top-k capture.

        "codes" and "refine" of a capture in the transform encoding, and "escape" of those rows alone whose refine is 255.
        Columns are in the order of `classes`. Raises ManifestInvalid for an index that is no column, and for a refine or
        an escaped row that no writer stores.
        """
        stored = {name: self.reader.read(name, rows, view) for name in self.encoding.decoded_from}
        for name, values in stored.items():
            self._put_in_order(name, values)
        if "refine" in stored and (escaped := stored["refine"] == ESCAPED).any():
            numbers = np.asarray(check_rows(rows, self.shape[1]))
            stored["escape"] = self.read_escaped(numbers[escaped], view)
        return stored

    def read_stored_into(self, array: str, rows: Any, view: SupportsIndex, out: NDArray[Any]) -> None:
        """Read one of the arrays of `read_stored` but "escape" into `out`."""
        self.reader.read_into(array, rows, view, out)
        self._put_in_order(array, out)

    def read_escaped(self, rows: Any, view: SupportsIndex = 0) -> UInt16[np.ndarray, "rows classes"]:
        """Return "escape" of `rows`, all of which have a refine of 255 in the transform encoding.

        Raises ManifestInvalid for a row that is not escaped.
        """
        codes = self.reader.read("escape", rows, view)
        where = f"{self.part.folder.path}/escape"
        in_range(codes, 0, int(np.iinfo(codes.dtype).max), where, "codes of escaped rows")
        if len(codes) and codes.min(axis=1).any():
            raise invalid(
                where, "a code of 0 in each escaped row, of its largest logit", int(codes.min(axis=1).max())
            )
        self._put_in_order("escape", codes)
        return codes

    def _put_in_order(self, array: str, stored: NDArray[Any]) -> None:
        """Move the columns of stored rows to their places in `classes`, in `stored` itself."""
        if array == "index":
            in_range(stored, 0, self.shape[2], f"{self.part.folder.path}/index")
        elif array == "refine":
            refined = stored[stored != ESCAPED]
            in_range(refined, 0, MAX_REFINED + 1, f"{self.part.folder.path}/refine", "refinements, or 255,")
        places = self._places
        if places is None:
            return
        if array == "index":
            stored[...] = self._stored_classes.astype(stored.dtype)[stored]
        elif array == "escape" or (array == "logits" and self.encoding.is_dense):
            step = max(1, _MOVED // len(places))
            for first in range(0, len(stored), step):
                part = stored[first : first + step]
                part[...] = part[:, places]

    def divergence(
        self, rows: Any = slice(None), view: SupportsIndex = 0
    ) -> Float64[np.ndarray, "rows temperatures"]:
        """Return KL(given ‖ stored) of `rows` at each of `temperatures`, in nats, as measured on writing.

        Given: the teacher's logits; for a capture made by `logitstore compress`, those of its source.
        Raises ConfigError for float16 and float32, which are not measured.
        """
        if not self.temperatures:
            raise ConfigError(
                f"{self.part.name}: divergence",
                expected="an encoded capture, which records its error",
                found=f"a capture in {self.encoding.kind}",
                remedy="leave it out: float32 has no error, and float16 rounds to 11 bits",
            )
        return kl_of_error(self.reader.read("error", rows, view), self.temperatures)

    @property
    def temperatures(self) -> tuple[float, ...]:
        """The temperatures at which the error of each row is recorded; () for float16 and float32, which record none.

        1, 2, 4, 8 and 20; in the transform encoding those at which its guarantee holds.
        """
        error = self.part.layouts.get("error")
        return () if error is None else tuple(cast(list[float], error.attributes["temperature"]))

    def peak(self, rows: Any, view: SupportsIndex = 0) -> Float32[np.ndarray, " rows"]:
        """Return max(z) of `rows`: `read(rows) + peak(rows)[:, None]` are the raw logits, up to the rounding of float32.

        Raises ConfigError for a capture in the transform encoding that was made without it.
        """
        if not self.has_peak:
            raise ConfigError(
                f"{self.part.name}: peak",
                expected="a capture that keeps the constant of each row",
                found="one in the transform encoding without peak",
                remedy="use the logits as they are read, since a softmax sees no constant; or capture with peak = true",
            )
        return self.reader.read("peak", rows, view)

    @property
    def has_peak(self) -> bool:
        """Whether `peak` is stored; always but in the transform encoding, which keeps it on request."""
        return "peak" in self.part.layouts

    def seen(self, rows: Any, view: SupportsIndex = 0) -> UInt64[np.ndarray, " rows"]:
        """Return `digest_rows` of the teacher's inputs."""
        return self.reader.read("seen", rows, view)


def sets_of(part: SealedPart, num_classes: int) -> Int64[np.ndarray, "sets members"]:
    """Return the sets of classes of a clustering, (set, member). Raises ManifestInvalid for a false class or shape."""
    check_shapes(shapes_of(part), num_classes, str(part.folder.path))
    return check_sets(part.small("sets"), num_classes, f"{part.folder.path}/sets")


def check_values(root: Root, name: str) -> None:
    """Refuse a sealed part whose small arrays or spec mean nothing, though its digests match; reads no shard.

    name: "teachers/wide". Raises ManifestInvalid or UnsupportedFeature.
    """
    group, _, short = name.partition("/")
    if name == SAMPLES:
        samples = Samples(root)
        _ = samples.spec, samples.class_names
    elif group == "teachers":
        capture = CaptureReader(root, short)
        _ = capture.classes
        if isinstance(encoding := capture.encoding, Transform) and isinstance(encoding.basis, StoredBasis):
            encoding.basis.check()
    else:
        ClusteringReader(root, short).check()


def texts_of(rows: NDArray[np.uint8], where: str) -> list[str]:
    """Return the strings of rows of UTF-8, padded with zero bytes. Raises ManifestInvalid for other bytes.

    >>> texts_of(np.frombuffer("né\\0x\\0\\0\\0".encode(), np.uint8).reshape(2, 4), "id")
    ['né', 'x']
    """
    try:
        return [row.tobytes().rstrip(b"\0").decode() for row in rows]
    except UnicodeDecodeError as error:
        raise invalid(where, "UTF-8", f"{error.object[:40]!r}") from None
