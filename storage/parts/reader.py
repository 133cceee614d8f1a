"""What is in a store: the samples of its transfer set, the logits of each teacher, the sets of a clustering?

`Samples`, `CaptureReader` and `sets_of` give the arrays of a sealed part their names and meanings, and refuse
values that can have none; `part_reader` reads them.
"""

from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Float32, Float64, Int64, UInt64
from numpy.typing import NDArray

from ..encodings.divergence import kl_of_error
from ..encodings.encoding import Encoding
from ..encodings.named import encoding_described
from ..errors import ConfigError
from ..format.constants import SAMPLES, SPEC
from ..format.documents import integer, invalid, shorten, table
from .part_reader import LazyRows, PartReader
from .root import Root
from .sealed_part import SealedPart, Spec


class Samples:
    """The examples of the transfer set, in the order of the store."""

    def __init__(self, root: Root) -> None:
        self._part = root.part(SAMPLES)
        self._reader = PartReader(self._part, root.grid)
        self._num_classes = root.attributes.num_classes

    @property
    def digest(self) -> str:
        """Identity of the part: "sha256:…" of its seal."""
        return self._part.digest

    @property
    def spec(self) -> Spec:
        """Fingerprint of the transfer set, order, how digests were made."""
        return self._part.spec

    @property
    def reader(self) -> PartReader:
        """Reads rows of the arrays below."""
        return self._reader

    @cached_property
    def labels(self) -> Int64[np.ndarray, " rows"]:
        """The class of each row, -1 where unknown."""
        return self.labels_of(slice(None))

    def labels_of(self, rows: Any) -> Int64[np.ndarray, " rows"]:
        """The class of each of `rows` (a slice, or ascending integers). Raises ManifestInvalid for what is no class."""
        where = f"{self._part.folder.path}/label"
        return in_range(self._reader.read("label", rows), -1, self._num_classes, where)

    def read_labels(self, rows: Any, out: NDArray[np.int64]) -> None:
        """What `labels_of` gives, into `out`."""
        self._reader.read_into("label", rows, 0, out)
        in_range(out, -1, self._num_classes, f"{self._part.folder.path}/label")

    @cached_property
    def source(self) -> Int64[np.ndarray, " rows"]:
        """Index of each row in the transfer set."""
        return self._reader.read("source", slice(None))

    @cached_property
    def digests(self) -> UInt64[np.ndarray, " rows"]:
        """`digest_rows` of each row's input before augmentation."""
        return self._reader.read("digest", slice(None))

    @property
    def inputs(self) -> LazyRows | None:
        """The inputs, read when indexed; None where the store does not keep them."""
        return LazyRows(self._reader, "input") if "input" in self._part.layouts else None

    @cached_property
    def ids(self) -> list[str] | None:
        """The id of each row; None where there are none."""
        if "id" not in self._part.layouts:
            return None
        return texts_of(self._reader.read("id", slice(None)), f"{self._part.folder.path}/id")

    @cached_property
    def class_names(self) -> list[str]:
        """The name of each class; its number where it has none."""
        if "class_name" not in self._part.layouts:
            return [str(c) for c in range(self._num_classes)]
        where = f"{self._part.folder.path}/class_name"
        named = self._part.layouts["class_name"].shape[0]
        if named != self._num_classes:
            raise invalid(where, f"{self._num_classes} names", named)
        return texts_of(self._part.small("class_name"), where)


class CaptureReader:
    """The logits of one teacher over all rows and views."""

    def __init__(self, root: Root, name: str) -> None:
        self._part = root.part(f"teachers/{name}")
        self._reader = PartReader(self._part, root.grid)
        self._num_classes = root.attributes.num_classes
        self.name = name
        """The teacher's name."""
        where = f"{self._part.folder.path}/{SPEC}"
        encoding = table(self._part.spec.identity.get("encoding"), where, "encoding")
        if not isinstance(encoding.get("kind"), str):
            raise invalid(f"{where}: encoding", "a kind", shorten(encoding.get("kind")))
        self.encoding: Encoding = encoding_described(encoding, self._part.name)
        """How its logits are stored."""
        self._check_arrays(where)
        augmentation = self._part.spec.identity.get("augmentation")
        if augmentation is not None:
            first = table(augmentation, where, "augmentation").get("first_view", 0)
            integer(first, 0, where, "augmentation: first_view")

    def _check_arrays(self, where: str) -> None:
        """Refuse a capture whose arrays are not those of its encoding."""
        try:
            specs = self.encoding.arrays(self._part.layouts["classes"].shape[0])
        except ConfigError as error:
            raise invalid(where, error.expected, error.found) from None
        for spec in specs:
            layout = self._part.layouts.get(spec.name)
            found = layout and (layout.dtype, layout.row_shape, dict(layout.attributes))
            if found != (spec.dtype, spec.row_shape, dict(spec.attributes)):
                raise invalid(where, f"{spec.name} in {spec.dtype} {spec.row_shape}", shorten(found))

    @property
    def digest(self) -> str:
        """Identity of the capture: "sha256:…" of its seal."""
        return self._part.digest

    @property
    def part(self) -> SealedPart:
        """The sealed part behind it."""
        return self._part

    @property
    def reader(self) -> PartReader:
        """Reads rows as they are stored."""
        return self._reader

    @property
    def num_views(self) -> int:
        """Views that were captured."""
        return self._part.seal.views

    @property
    def shape(self) -> tuple[int, int, int]:
        """(views, rows, classes)."""
        views, rows = self._part.layouts["peak"].shape
        return views, rows, self._part.layouts["classes"].shape[0]

    @cached_property
    def classes(self) -> Int64[np.ndarray, " classes"]:
        """The store's class of each column, -1 the dustbin class."""
        where = f"{self._part.folder.path}/classes"
        return in_range(self._part.small("classes"), -1, self._num_classes, where)

    @property
    def provenance(self) -> dict[str, Any]:
        """Teacher, weights, augmentation, encoding, precision, versions …"""
        return {**self._part.spec.notes, **self._part.spec.identity}

    @property
    def augmentation(self) -> dict[str, Any] | None:
        """How its views were made; None where every view is the row as it is."""
        return self._part.spec.identity.get("augmentation")

    def read(
        self, rows: Any, view: int = 0, temperature: float | None = None
    ) -> Float32[np.ndarray, "rows classes"]:
        """Logits of `rows` (a slice, or ascending integers), the largest of each row 0.

        A softmax of any temperature does not see the constant that was taken out; `peak` has it.
        temperature: the one at which the logits will be used, in natural-log units; only a capture of the k largest
        needs it, whose other classes are decoded to what they are worth there.
        Raises ConfigError, ShardMissing or ShardCorrupt.
        """
        self.check_temperature(temperature)
        return self.encoding.decode(self.read_stored(rows, view), self.shape[2], temperature)

    def check_temperature(self, temperature: float | None) -> None:
        """Refuse to decode the k largest logits without a temperature. Raises ConfigError."""
        if temperature is None and not self.encoding.is_dense:
            raise ConfigError(
                f"{self._part.name}: temperature",
                expected="the one at which the logits will be used: top-k rows decode to others at each",
                found="none",
                remedy="pass temperature=…, or read them as they are stored",
            )

    def read_stored(self, rows: Any, view: int = 0) -> dict[str, NDArray[Any]]:
        """What the encoding decodes `rows` from: "logits", and "index" and "tail" of a top-k capture.

        Raises ManifestInvalid for an index that is no column.
        """
        stored = {name: self._reader.read(name, rows, view) for name in self.encoding.decoded_from}
        if "index" in stored:
            in_range(stored["index"], 0, self.shape[2], f"{self._part.folder.path}/index")
        return stored

    def read_stored_into(self, array: str, rows: Any, view: int, out: NDArray[Any]) -> None:
        """One of the arrays that `read_stored` gives, into `out`."""
        self._reader.read_into(array, rows, view, out)
        if array == "index":
            in_range(out, 0, self.shape[2], f"{self._part.folder.path}/index")

    def divergence(self, rows: Any = slice(None), view: int = 0) -> Float64[np.ndarray, "rows temperatures"]:
        """KL(given ‖ stored) of `rows` at T = 1, 2, 4, 8 and 20, in nats, as it was measured when they were written.

        Of a capture made by `logitstore compress` it is the KL to the capture that it was made from.
        Raises ConfigError where nothing was measured (float16, float32).
        """
        if "error" not in self._part.layouts:
            raise ConfigError(
                f"{self._part.name}: divergence",
                expected="an encoded capture, which records its error",
                found=f"one in {self.encoding.kind}",
                remedy="float32 has none, and float16 rounds to 11 bits: nothing is measured of them",
            )
        return kl_of_error(self._reader.read("error", rows, view))

    def peak(self, rows: Any, view: int = 0) -> Float32[np.ndarray, " rows"]:
        """max(z) of `rows`: `read(rows) + peak(rows)[:, None]` are the teacher's raw logits."""
        return self._reader.read("peak", rows, view)

    def seen(self, rows: Any, view: int = 0) -> UInt64[np.ndarray, " rows"]:
        """`digest_rows` of the inputs as the teacher got them."""
        return self._reader.read("seen", rows, view)


def sets_of(part: SealedPart, num_classes: int) -> Int64[np.ndarray, "sets members"]:
    """The sets of classes of a clustering: (set, member). Raises ManifestInvalid for what is no class."""
    return in_range(part.small("sets"), 0, num_classes, f"{part.folder.path}/sets")


def check_values(root: Root, name: str) -> None:
    """Refuse a part whose small arrays and spec say what no reader can use, though its digests fit.

    name: a sealed part, as "teachers/wide". Raises ManifestInvalid or UnsupportedFeature. Reads no shard.
    """
    group, _, short = name.partition("/")
    if name == SAMPLES:
        samples = Samples(root)
        _ = samples.spec, samples.class_names
    elif group == "teachers":
        _ = CaptureReader(root, short).classes
    elif "sets" in root.part(name).layouts:
        sets_of(root.part(name), root.attributes.num_classes)


def in_range(values: NDArray[Any], least: int, end: int, where: str) -> NDArray[Any]:
    """`values` themselves. Raises ManifestInvalid where one is not in least…end - 1: no writer stored it.

    >>> in_range(np.array([-1, 2]), -1, 3, "label").tolist()
    [-1, 2]
    """
    if values.size and (int(values.min()) < least or int(values.max()) >= end):
        found = f"{int(values.min())} to {int(values.max())}"
        raise invalid(where, f"classes from {least} to {end - 1}", found)
    return values


def texts_of(rows: NDArray[np.uint8], where: str) -> list[str]:
    """Strings from rows of UTF-8, padded with zero bytes. Raises ManifestInvalid for other bytes.

    >>> texts_of(np.frombuffer("né\\0x\\0\\0\\0".encode(), np.uint8).reshape(2, 4), "id")
    ['né', 'x']
    """
    try:
        return [row.tobytes().rstrip(b"\0").decode() for row in rows]
    except UnicodeDecodeError as error:
        raise invalid(where, "UTF-8", f"{error.object[:40]!r}") from None
