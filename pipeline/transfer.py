"""Data sets of an experiment as arrays, and the transfer set in the order of its store.

The factory of a table makes a map-style data set (`datasets`). The transfer set is shuffled by a seed, or left as it is; with
shuffled rows, every window of a stream is a fair sample. Each example is checked when it is fetched. No torch is imported.

A set that has no `fingerprint()` is known by what is read of it (`Looked`): a small set in full, of a larger one a sample of
the inputs, and all labels if the set lists them. `set_identity` is the one statement of a set in the identities of models.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64, Shaped, UInt64

from ..storage.digest import digest_rows
from ..storage.errors import BadDataError, ConfigError
from ..storage.format.constants import INPUT_DTYPES
from ..storage.random import philox_permutation, raw_words
from ..storage.stream.items import (
    class_number,
    describe,
    fetch_items,
    in_file,
    listed_labels,
    read_inputs,
    split_item,
)
from .datasets.class_names import as_ids, is_numbered, names_of
from .datasets.listed_files import listed_files
from .datasets.stored_images import Decoding, GivesFiles
from .experiment.document import Experiment
from .experiment.tables import ENCODED, EvaluationSet, TransferSet
from .factories.call import expect_dataset
from .factories.local_code import SOURCE
from .factories.products import local_code_of, product_of

SAMPLED_ROWS = 64
"""Examples of a large set that are read to compare it."""
WHOLE_BYTES = 64 << 20
"""Bytes of inputs up to which a set is read in full, where each example counts as `_LEAST_BYTES` or more."""
_LEAST_BYTES = 1024
_CHUNK_ROWS = 1024
"""Examples that are fetched together."""
_SAMPLE_SEED = 0x5E7
_DECODED = 16
"""Files that are decoded as a store decodes them, and compared, before one is stored."""
_SPREAD_ROWS = 32
"""Examples all over the set on which two ways to compute are compared."""


@dataclass(frozen=True, eq=False)
class Looked:
    """The examples of a data set that were read, to compare it with a set of an earlier day.

    `digests[i]` belongs to example `indices[i]`, and `labels[i]` to example `labelled[i]`. All indices ascend.
    """

    num_rows: int
    """Examples of the whole set."""
    indices: Int64[np.ndarray, " read"]
    """Examples whose inputs were read."""
    digests: UInt64[np.ndarray, " read"]
    """Digests of these inputs."""
    labelled: Int64[np.ndarray, " labelled"]
    """Examples whose labels are known: all if the set lists its labels, those of `indices` otherwise."""
    labels: Int64[np.ndarray, " labelled"]
    """Class of each of these, -1 if unknown."""

    @property
    def is_whole(self) -> bool:
        """Whether every input was read."""
        return len(self.indices) == self.num_rows

    def describe(self) -> str:
        """Put the extent of the comparison in words.

        >>> some, all = np.zeros(1, np.int64), np.arange(9)
        >>> Looked(1, some, np.zeros(1, np.uint64), some, some).describe()
        'inputs and labels of all 1 rows compared'
        >>> Looked(9, some, np.zeros(1, np.uint64), all, all).describe()
        'labels of all 9 rows and the inputs of 1 compared'
        """
        if self.is_whole:
            return f"inputs and labels of all {self.num_rows:,} rows compared"
        if len(self.labelled) == self.num_rows:
            return f"labels of all {self.num_rows:,} rows and the inputs of {len(self.indices):,} compared"
        return f"inputs and labels of {len(self.indices):,} of {self.num_rows:,} rows compared, the others not read"


class Examples:
    """A data set, labelled or not, as arrays on demand."""

    _stated: int | None = None
    """Number of classes in the table of the experiment."""

    def __init__(self, table: TransferSet | EvaluationSet, base: Path, where: str) -> None:
        """Make the data set of a table and check its first example.

        base: folder of relative file names. where: the set in messages.
        Raises FactoryError, BadDataError as `fetch` does, and ConfigError if the set and the table have different numbers of
        classes.
        """
        self.dataset: Any = expect_dataset(product_of(table, base=base), table.factory)
        self.where = where
        self._origin = table, base, where
        local = local_code_of([table], base=base)
        self.made_by: Mapping[str, Any] = {
            "factory": table.factory,
            "args": table.args,
            **({SOURCE: local} if local else {}),
        }
        """Factory and arguments, and the digest of each local file that they come from."""
        self._stated = table.num_classes if isinstance(table, TransferSet) else None
        names = self.class_names
        if names is not None and self._stated not in (None, len(names)):
            source, remedy = (
                "class_names of the data set",
                "remove num_classes, or give the data set all class_names",
            )
            if is_numbered(self.dataset):
                source = f"classes from 0 to {names[-1]}, the largest label"
                remedy = "remove num_classes, set first_label = 1 in args for labels that count from 1, or give the data set class_names"
            raise ConfigError(
                f"{where}.num_classes",
                expected=f"{len(names)}, the number of {source}",
                found=str(self._stated),
                remedy=remedy,
            )
        self.fetch([0])

    def __len__(self) -> int:
        return len(self.dataset)

    def again(self) -> "Examples":
        """Return the data set of a second call of the factory, in the order of the set."""
        return Examples(*self._origin)

    @cached_property
    def class_names(self) -> list[str] | None:
        """Names of the classes (`datasets.class_names`); None if the set has none."""
        return names_of(self.dataset, self.where)

    @cached_property
    def ids(self) -> Sequence[str] | None:
        """Name of each example; None if the set has none."""
        ids = getattr(self.dataset, "ids", None)
        return None if ids is None else as_ids(ids, len(self), f"{self.where}: ids")

    @cached_property
    def fingerprint(self) -> str | None:
        """The set's own digest of its content; None if it has none."""
        fingerprint = getattr(self.dataset, "fingerprint", None)
        return str(fingerprint()) if callable(fingerprint) else None

    @cached_property
    def content(self) -> str:
        """Fingerprint of the set, or a digest of every input and label, of class names and ids."""
        if self.fingerprint is not None:
            return self.fingerprint
        looked = self.looked
        return self.digest(looked if looked.is_whole else self.look(np.arange(len(self), dtype=np.int64)))

    @cached_property
    def looked(self) -> Looked:
        """Labels and inputs for comparisons: all of a small set, otherwise a sample and the labels that the set lists.

        The sample is the same for every set of this length: an example of each 64th part of it.
        """
        each = max(self.first.nbytes, _LEAST_BYTES)
        if len(self) <= max(SAMPLED_ROWS, WHOLE_BYTES // each):
            return self.look(np.arange(len(self), dtype=np.int64))
        sampled = self.look(_sample(len(self)))
        listed = listed_labels(self.dataset)
        # A set whose items have other labels than its list, by a `target_transform` for example, is known by the items.
        if listed is None or (listed[sampled.indices] != sampled.labels).any():
            return sampled
        return Looked(
            len(self), sampled.indices, sampled.digests, np.arange(len(self), dtype=np.int64), listed
        )

    def look(self, indices: Int64[np.ndarray, " read"]) -> Looked:
        """Read the examples at `indices`. Raises as `fetch`."""
        digests, labels = [], []
        for start in range(0, len(indices), _CHUNK_ROWS):
            inputs, of_chunk = self.fetch(indices[start : start + _CHUNK_ROWS].tolist())
            digests.append(digest_rows(inputs))
            labels.append(of_chunk)
        return Looked(len(self), indices, np.concatenate(digests), indices, np.concatenate(labels))

    def digest(self, looked: Looked) -> str:
        """Digest class names, ids, and what was read of the inputs and labels, "sha256:…"."""
        digest = hashlib.sha256(json.dumps([len(self), self.class_names, self.ids]).encode())
        for column in (looked.indices, looked.digests, looked.labelled, looked.labels):
            digest.update(column.astype(column.dtype.newbyteorder("<")).tobytes())
        return f"sha256:{digest.hexdigest()}"

    @cached_property
    def first(self) -> Shaped[np.ndarray, "..."]:
        """Input of the first example, whose shape and dtype all have."""
        return np.asarray(self.a_few[0])

    @cached_property
    def a_few(self) -> Shaped[np.ndarray, "few ..."]:
        """Inputs of the first examples, two at most, to try a model on."""
        return self.fetch(range(min(2, len(self))))[0]

    def spread(self) -> Shaped[np.ndarray, "some ..."]:
        """Fetch inputs of examples all over the set, 32 at most: of those that stand first, some networks show one face."""
        return self.fetch(spread_over(len(self)).tolist())[0]

    @property
    def num_classes(self) -> int:
        """Number of classes in the set or the table. Raises ConfigError if neither has it."""
        names = self.class_names or []
        if not names and self._stated is not None:
            return self._stated
        if len(names) < 2:
            remedy = "give the data set class_names"
            raise ConfigError(
                self.where,
                expected="class_names of at least 2 classes",
                found=f"class_names of 1 class ({names[0]})" if names else "no class_names",
                remedy=remedy if names else f"{remedy}, or set num_classes in [{self.where}]",
            )
        return len(names)

    def fetch(
        self, indices: Sequence[int]
    ) -> tuple[Shaped[np.ndarray, "rows ..."], Int64[np.ndarray, " rows"]]:
        """Fetch inputs (rows, …) and labels (rows,), -1 if unknown, of the examples at `indices`.

        Raises BadDataError for inputs of different shapes or dtypes, or of a dtype outside `INPUT_DTYPES`, and for a label
        that is no class.
        """
        items, names = fetch_items(self.dataset, indices), self.class_names or ()
        return read_examples(items, indices, self.where, names, len(names) or self._stated or 0)


def read_examples(
    items: Sequence[Any], indices: Sequence[int], where: str, class_names: Sequence[str], num_classes: int
) -> tuple[Shaped[np.ndarray, "rows ..."], Int64[np.ndarray, " rows"]]:
    """Return inputs and labels of some items of a data set. Raises BadDataError as `Examples.fetch`.

    where: the set in messages. num_classes: 0 if it is not known.
    """
    inputs = read_inputs(items, indices, where)
    if inputs.dtype.name not in INPUT_DTYPES:
        raise BadDataError(
            f"{where}, example {indices[0]}",
            expected=f"inputs of dtype {', '.join(INPUT_DTYPES[:-1])} or {INPUT_DTYPES[-1]}",
            found=inputs.dtype.name,
            remedy="cast them in the data set, fractions to float32",
        )
    labels = np.empty(len(items), dtype=np.int64)
    for position, (index, item) in enumerate(zip(indices, items, strict=True)):
        place = f"{where}, example {index}"
        labels[position] = class_number(split_item(item, place).label, place, class_names, num_classes)
    return inputs, labels


def set_identity(examples: Examples) -> str | dict[str, Any]:
    """Return the identity of a data set, for the identity of a model that is trained on it.

    It is the set's fingerprint. A set without one is known by its length and the digest of what is read of it
    (`Examples.looked`); `rows` holds how many labels and inputs that were. Unless these are all, its factory, arguments and
    source file belong to it.
    """
    if examples.fingerprint is not None:
        return examples.fingerprint
    looked = examples.looked
    return {
        **({} if looked.is_whole else examples.made_by),
        "num_examples": len(examples),
        "rows": {"labels": len(looked.labelled), "inputs": len(looked.indices)},
        "content": examples.digest(looked),
    }


def _sample(num_rows: int) -> Int64[np.ndarray, " sample"]:
    """Return an example of each 64th part of a set.

    >>> _sample(640)[:4] // 10
    array([0, 1, 2, 3])
    """
    bounds = np.arange(SAMPLED_ROWS + 1, dtype=np.int64) * num_rows // SAMPLED_ROWS
    words = raw_words(_SAMPLE_SEED, 0, np.arange(SAMPLED_ROWS, dtype=np.int64), 1)[:, 0]
    return bounds[:-1] + (words % np.diff(bounds).astype(np.uint64)).astype(np.int64)


def spread_over(num_rows: int) -> Int64[np.ndarray, " some"]:
    """Return numbers of rows all over a set, 32 at most.

    >>> spread_over(3).tolist(), spread_over(320)[:4].tolist()
    ([0, 1, 2], [0, 10, 20, 30])
    """
    number = min(_SPREAD_ROWS, num_rows)
    return np.arange(number, dtype=np.int64) * num_rows // number


class TransferRows(Examples):
    """The transfer set of an experiment, in the order of its store."""

    def __init__(self, experiment: Experiment) -> None:
        """Make the data set and its order. Raises FactoryError, BadDataError or ConfigError."""
        table = experiment.transfer_set
        # A caller of Python passed it as `dataset`.
        super().__init__(table, experiment.base, "transfer_set" if table.in_hand is None else "dataset")
        self._order: dict[str, Any] = {"kind": table.order}
        self.source: Int64[np.ndarray, " rows"] = np.arange(len(self), dtype=np.int64)
        """Index in the transfer set of each row of the store."""
        if table.order == "shuffled":
            self._order["seed"] = table.seed
            self.source = philox_permutation(len(self), table.seed, stream=0, counter=0)
        self.is_joined = False
        """Whether `source` is that of a store of several sets, and not the order of this one."""
        self.digest_of = table.digest_of

    @property
    def identity(self) -> dict[str, Any]:
        """Identity of the samples of a store of this set; its factory is stated if nothing else tells of all its content."""
        is_known = self.fingerprint is not None or self.looked.is_whole
        return {
            "transfer_set": self.fingerprint,
            **({} if is_known else {"made_by": self.made_by}),
            "order": self._order,
            "digest_of": self.digest_of,
            "label_kind": "class",
        }

    @cached_property
    def files(self) -> "Files | None":
        """The files of the set; None if it gives none. Raises BadDataError for files that do not decode to its inputs."""
        dataset: Any = self.dataset
        giver = dataset if isinstance(dataset, GivesFiles) else listed_files(dataset)
        if giver is None:
            return None
        sizes = giver.encoded_sizes()
        files = Files(self, giver, int(sizes.max()), int(sizes.sum()))
        indices = np.unique(np.linspace(0, len(self) - 1, _DECODED).astype(np.int64))
        for index in indices.tolist():
            files.check(index, giver.encoded(index), digest_rows(self.fetch([index])[0])[0])
        return files

    def rows(self, rows: range) -> tuple[Shaped[np.ndarray, "rows ..."], Int64[np.ndarray, " rows"]]:
        """Fetch inputs and labels of some rows of the store."""
        return self.fetch(self.source[rows.start : rows.stop].tolist())

    def inputs_of(self, rows: Int64[np.ndarray, " rows"]) -> Shaped[np.ndarray, "rows ..."]:
        """Fetch inputs of some rows of the store, for mixtures (`augment.OtherRows`)."""
        return self.fetch(self.source[rows].tolist())[0]


def input_bytes(experiment: Experiment, rows: TransferRows) -> int:
    """Return the bytes of an input in the store, the mean of files; 0 for a store without inputs. Raises as `files_of`."""
    if (files := files_of(experiment, rows)) is not None:
        return -(-files.total // len(rows))
    return rows.first.nbytes if experiment.transfer_set.store_inputs else 0


@dataclass(frozen=True)
class Files:
    """The files of a transfer set, which its store keeps in the place of inputs."""

    rows: TransferRows
    """The set."""
    giver: GivesFiles
    """The set as far as it gives files, or those that it lists."""
    width: int
    """Bytes of the longest."""
    total: int
    """Bytes of all."""

    @property
    def decoding(self) -> dict[str, Any]:
        """The way from a file to its pixels, for the identity of the samples."""
        return dict(self.giver.decoding)

    @cached_property
    def _decoding(self) -> Decoding:
        return Decoding.of(self.decoding, f"{self.rows.where}: decoding")

    def of_rows(self, rows: range, digests: UInt64[np.ndarray, " rows"] | None = None) -> list[bytes]:
        """Read the files of some rows of the store.

        digests: of their inputs, with which the files are compared if other code than ours decodes them in the set. Raises
        BadDataError as `check`.
        """
        indices = self.rows.source[rows.start : rows.stop].tolist()
        contents = [self.giver.encoded(index) for index in indices]
        if digests is not None and getattr(self.giver, "is_decoded_elsewhere", False):
            for index, content, digest in zip(indices, contents, digests, strict=True):
                self.check(index, content, digest)
        return contents

    def check(self, index: int, content: bytes, digest: np.uint64) -> None:
        """Compare the pixels of a file with the input of its example. Raises BadDataError for other ones. digest: of the input."""
        where = f"{self.rows.where}, example {index}{in_file(self.rows.dataset, index)}"
        name = "" if self.rows.ids is None else self.rows.ids[index]
        ours = digest_rows(self._decoding.decode(content, name, where)[None])[0]
        if ours != digest:
            raise BadDataError(
                where,
                expected=f"a file that decodes to the input of the set, digest {int(digest):016x}",
                found=f"{int(ours):016x}",
                remedy="set store_inputs = true to keep arrays, or false to keep no inputs",
            )


def files_of(experiment: Experiment, rows: TransferRows) -> Files | None:
    """Return the files that the store of an experiment keeps; None if it keeps none (`store_inputs = "encoded"`).

    Raises ConfigError for a set that gives no files, BadDataError for files that do not decode to the inputs of the set.
    """
    if experiment.transfer_set.store_inputs != ENCODED:
        return None
    if rows.files is None:
        raise ConfigError(
            "transfer_set.store_inputs",
            expected="a data set that gives the files of its images, such as image_folder or torchvision's ImageFolder",
            found=f"{ENCODED!r}, and {describe(rows.dataset)}",
            remedy="set store_inputs = true to keep arrays, or false to keep no inputs",
        )
    return rows.files
