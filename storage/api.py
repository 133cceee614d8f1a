"""The public names of storage: `open_store`, `create_store`, `Store`, `Capture`."""

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .backends.local import Folder, writable
from .backends.obstacles import check_folder
from .backends.paths import PathFolder
from .backends.place import Place
from .backends.remote import access_of, folder_at, folder_to_write
from .checks import as_labels, check_labels, common_length
from .digest import given_digests
from .encodings.encoding import Encoding
from .encodings.named import encoding_named
from .errors import ConfigError, ManifestInvalid, NameTaken
from .format.constants import MAX_SHARD_BYTES, SAMPLES
from .format.grid import Grid, plan_block_rows
from .format.metadata import RootAttributes
from .parts.begun import committed_samples
from .parts.captures import Captures, IndexedCapture
from .parts.card import card_of, checked_card, warn_of_other_card
from .parts.clustering_writer import write_clustering
from .parts.reader import Samples
from .parts.root import BegunPart, Root, create_root, join_root, open_root, unsealed_parts
from .parts.sealable import check_class_names, check_samples_sealable, optional_arrays
from .parts.sealed_part import SealedPart, Spec
from .parts.values import kept_example
from .parts.writer import CaptureWriter, SamplesWriter
from .stream.forgotten_ranks import processes_of_torchrun, warn_of_forgotten_ranks
from .stream.inputs import Augment
from .stream.options import StreamOptions
from .stream.stream import Stream
from .stream.teachers import choose_captures, warn_of_unfinished

if TYPE_CHECKING:
    from zarr.abc.store import Store as ZarrStore


class Capture(IndexedCapture):
    """The sealed logits of one teacher: `capture[rows]`, `np.asarray(capture)`, `read`, `dask`."""

    def dask(self, temperature: float | None = None, rows_per_chunk: int | None = None) -> Any:
        """Return a dask.array float32 (view, row, class), each chunk checked against the seal.

        temperature: as for `read`. rows_per_chunk: by default whole blocks, as many as 16 MiB of logits hold, and at least
        one. Fewer rows than a block has need less memory.
        """
        from .dask_view import logits_array

        return logits_array(self, temperature, rows_per_chunk)

    def __repr__(self) -> str:
        return f"<Capture {self.name!r} (view, row, class) = {self.shape}, {self.encoding.kind}>"


@contextlib.contextmanager
def _unless_lost() -> Iterator[None]:
    """End the block quietly where a file of a part's metadata is missing. Raises ManifestInvalid for a damaged one."""
    try:
        yield
    except ManifestInvalid as error:
        if error.found != "no file":
            raise


class Store:
    """A store: the samples of a transfer set, and the logits of its teachers."""

    def __init__(self, root: Root) -> None:
        """Wrap an opened root; use `open_store` or `create_store`."""
        self._root = root
        self.teachers: Mapping[str, Capture] = Captures(root, Capture)
        """The sealed captures, in the order of their seals."""

    def __repr__(self) -> str:
        return f"<Store {str(self.path)!r}: {self.num_rows} rows, {self.num_classes} classes, {list(self.teachers)}>"

    def __len__(self) -> int:
        """Return the number of rows."""
        return self.num_rows

    @property
    def root(self) -> Root:
        """The log and the parts, for tools within storage."""
        return self._root

    @property
    def path(self) -> PurePath:
        """Its path; for a remote store, a PurePath that prints as its URL or name."""
        return self._root.path

    @property
    def num_rows(self) -> int:
        """Rows, N."""
        return self._root.attributes.num_rows

    @property
    def num_classes(self) -> int:
        """Classes, C."""
        return self._root.attributes.num_classes

    @property
    def block_rows(self) -> int:
        """Rows a block, R."""
        return self._root.attributes.block_rows

    @property
    def grid(self) -> Grid:
        """Division of the rows into blocks and chunks."""
        return self._root.grid

    @property
    def class_names(self) -> list[str]:
        """The name of each class; its number if classes have no names."""
        return self.samples.class_names

    @property
    def digest(self) -> str:
        """ "sha256:…" of the content as it was opened, or as this object has written it."""
        return self._root.digest

    @cached_property
    def samples(self) -> Samples:
        """Labels, source, digests, inputs. Raises StoreIncomplete if they are not sealed yet."""
        return Samples(self._root)

    @property
    def card(self) -> dict[str, str]:
        """Its maker's `name`, `data_set`, `data_set_licence`, `licence`, `contact` and `description`, where given.

        Empty before the first row is written. Raises ManifestInvalid for damaged metadata.
        """
        spec = self._root.begun(SAMPLES) or self.find_spec(SAMPLES)
        return {} if spec is None else card_of(spec.notes, f"{self.path}: {SAMPLES}")

    @property
    def clusterings(self) -> list[str]:
        """Names of the sealed clusterings."""
        return self._root.names("clusters")

    def clustering(self, name: str) -> SealedPart:
        """Return a sealed clustering: `.small("sets")`, `.small("assignment")`, `.spec`, `.digest`."""
        return self._root.part(f"clusters/{name}")

    def unsealed(self) -> list[str]:
        """Return the unfinished parts: "teachers/wide"."""
        return unsealed_parts(self._root)

    def begun(self, part: str) -> BegunPart | None:
        """Return the progress of an unfinished part ("samples", "teachers/wide"); None if it is sealed or absent."""
        return self._root.begun(part)

    def committed_samples(self, array: str) -> Iterator[tuple[range, NDArray[Any]]]:
        """Yield rows and values of "source", "digest" or "label" of each committed block of unfinished samples."""
        return committed_samples(self._root, array)

    def is_sealed(self, part: str) -> bool:
        """Return whether a part is sealed; some of its files may be missing all the same."""
        return self._root.has(part)

    def find_spec(self, part: str) -> Spec | None:
        """Return the spec of a sealed part, even if other metadata are missing; None if it is not sealed or has no spec.

        The writer of a part writes missing metadata again, as it does lost blocks. Raises ManifestInvalid for a damaged
        file.
        """
        if not self._root.has(part):
            return None
        with _unless_lost():
            return self._root.part(part).spec
        with _unless_lost():
            return self._root.spec(part)
        return None

    def digest_of(self, part: str) -> str:
        """Return "sha256:…" of the seal of a sealed part, even if other files are missing. Raises PartNotFound."""
        return self._root.digest_of(part)

    def is_whole(self, part: str) -> bool:
        """Return whether a part is sealed and none of its files is missing, by name alone."""
        return self.find_spec(part) is not None and self._root.is_whole(part)

    def identity_of(self, part: str) -> Mapping[str, Any] | None:
        """Return the identity of a part, sealed or unfinished; None if its name is free. Raises NameTaken if it was removed."""
        self._root.check_name(part)
        known = self._root.begun(part) or self.find_spec(part)
        return None if known is None else known.identity

    def refresh(self) -> None:
        """Read the log again, which shows parts that other processes have sealed."""
        self._root.refresh()

    def check_writable(self) -> None:
        """Refuse a store that cannot be written to, before work is done for it. Raises ConfigError, StorageError."""
        check_folder(writable(self._root.folder))

    def tidy_up(self) -> None:
        """Delete the locks and temporary files of killed writers."""
        self._root.tidy_up()

    def samples_writer(
        self,
        *,
        identity: Mapping[str, Any],
        class_names: Sequence[str] | None = None,
        example: NDArray[Any] | None = None,
        ids: Sequence[str] | None = None,
        file_width: int | None = None,
        card: Mapping[str, str] | None = None,
    ) -> SamplesWriter:
        """Begin or resume the part "samples"; arguments as of `SamplesWriter`."""
        return SamplesWriter(
            self._root,
            identity=identity,
            class_names=class_names,
            example=example,
            ids=ids,
            file_width=file_width,
            card=card,
        )

    def capture(
        self,
        name: str,
        *,
        provenance: Mapping[str, Any],
        views: int = 1,
        encoding: "str | Mapping[str, Any] | Encoding" = "float16",
        classes: "Sequence[int] | NDArray[Any] | None" = None,
        notes: Mapping[str, Any] | None = None,
        calibration: Any = None,
    ) -> CaptureWriter:
        """Begin or resume the capture of a teacher; a context manager that seals a complete capture on leaving.

        provenance: model, weights sha256, preprocessing …; compared on resuming. A key "augmentation" describes how
        views differ from the rows. notes: not compared.
        encoding: "float16", "float32", {"max_kl": 1e-3, "min_temperature": 1.0}, {"top_k": 64} or
        {"transform": {"max_kl": 1e-2}} (docs/encodings.md).
        classes: the store's class of each column that is written, -1 the dustbin class; None for all in order. All
        classes may come in any order, and are read in that of the store.
        calibration: for the transform encoding: logits of some 2,000 rows of the teacher (rows, classes), or `FeatureLogits`,
        from which its basis is made, or a function that returns them. A capture that is begun has a basis, and needs none.
        Raises ConfigError for columns that are no classes of the store, SpecMismatch if the name was begun with another
        provenance, views, classes or encoding.
        """
        writable(self._root.folder)
        return CaptureWriter(
            self._root,
            name,
            identity=provenance,
            views=views,
            encoding=encoding_named(encoding),
            classes=classes,
            notes=notes,
            calibration=calibration,
        )

    def write_clustering(
        self,
        name: str,
        arrays: Mapping[str, NDArray[Any]],
        *,
        identity: Mapping[str, Any],
        notes: Mapping[str, Any] | None = None,
    ) -> str:
        """Write and seal `clusters/<name>` ("covariance", "assignment", "centres", "sets" …); return its digest.

        identity: its source and options. notes: figures that are not compared. Sets ascend (`np.sort(sets, axis=1)`).
        Raises BadDataError for arrays or figures that no reader takes, SpecMismatch if the name is taken.
        """
        writable(self._root.folder)
        return write_clustering(self._root, name, arrays, identity=identity, notes=notes)

    def stream(
        self,
        batch_size: int = 256,
        *,
        teachers: Sequence[str] | None = None,
        views: "str | int" = "cycle",
        rows: Any = None,
        strata: Sequence[Any] | None = None,
        shares: Sequence[int | float] | None = None,
        shuffle: bool = True,
        seed: int = 0,
        rank: int | None = None,
        world_size: int | None = None,
        drop_last: bool = False,
        window: int | None = None,
        decode: bool = True,
        temperature: float | None = None,
        columns: str = "all",
        inputs: bool = True,
        transfer_set: Any = None,
        augment: Augment | None = None,
    ) -> Stream:
        """Return the batches of the store for training; an iteration is an epoch.

        teachers: captures in each batch. None for all, without those that `logitstore compress` or `combine` derived
        from others here, and those that lack classes, as specialists' do.
        views: "all" passes over every view of every row in an epoch, "cycle" takes view `epoch mod V`, an integer
        that view. rows: a slice or ascending integers, repeats allowed; None for all.
        strata: instead of rows, two or more such selections. Every batch is full and holds rows of each by `shares`
        (any scale, equal by default), in their order. An epoch passes once over the stratum that lasts longest and
        repeats the others.
        window: approximate number of rows that are shuffled together; two windows are held in memory
        (`Stream.window_bytes` each). decode: False leaves logits as stored. temperature: of the softmax, for top-k captures.
        columns: "all" gives logits in the order of the store's classes, and refuses a capture that lacks some and is no
        specialist, and captures of equally many and other classes. "own" gives every capture with the columns that its
        `classes` name; a label is then no number of a column.
        inputs: False leaves them out. transfer_set: their source instead of the store, checked by digest
        and, where both have them, by label.
        augment: makes the inputs of a view from those of the rows, checked against the teacher's.

        Every rank of `world_size` gets equally many batches; together they are the epoch, each row once. Pass both or
        neither. Without them this process reads every row; a warning follows if it is one of several (WORLD_SIZE) and
        selects no rows.
        Raises ConfigError for arguments out of range and captures that lack classes, PartNotFound or StoreIncomplete for
        absent teachers, SpecMismatch or RowMismatch for teachers that saw different inputs; while reading, RowMismatch and
        StoreCorrupt.
        """
        captures = choose_captures(self.teachers, teachers, columns, self.num_classes, str(self.path))
        # A remote store would have to be listed.
        if teachers is None and isinstance(self._root.folder, Folder | PathFolder):
            warn_of_unfinished(self.unsealed(), str(self.path))
        options = StreamOptions(
            num_rows=self.num_rows,
            num_views=min((capture.num_views for capture in captures.values()), default=1),
            batch_size=batch_size,
            views=views,
            rows=rows,
            strata=strata,
            shares=shares,
            shuffle=shuffle,
            seed=seed,
            rank=rank,
            world_size=world_size,
            drop_last=drop_last,
            window=window,
            decode=decode,
            temperature=temperature,
            inputs=inputs,
            transfer_set=transfer_set,
            augment=augment,
        )
        stream = Stream(self._root, captures, options)
        if stream.reads_every_row:
            warn_of_forgotten_ranks(processes_of_torchrun())
        return stream


def open_store(
    location: "str | os.PathLike[str] | ZarrStore",
    *,
    expect: str | None = None,
    storage_options: Mapping[str, Any] | None = None,
    cache: "bool | str | os.PathLike[str] | None" = None,
    cache_size: "int | str | None" = None,
    follow_links: bool = False,
) -> Store:
    """Open a store to read it, or, on a local disk or in a bucket, to add captures to it.

    location: a path, a URL (s3://, gs://, https:// …) or a `zarr.abc.store.Store` whose top is the store. The checks of
    every byte are the same everywhere (docs/remote.md).
    expect: "sha256:…", a present or former digest of the store, which is opened as of that digest.
    storage_options: of the library that opens a URL: credentials, region … No message shows them. cache: a folder for shards
    of a remote store, False for none; else that of LOGITSTORE_CACHE, or the user's. cache_size: its bytes, such as "50GB".
    follow_links: read links in a local store (Hugging Face's cache, DVC, git-annex), checked as ever; it is never written to.
    Raises NotAStoreError if there is no store, ManifestInvalid if it is damaged, WrongStore if it never had that digest.
    """
    access = access_of(storage_options, cache, cache_size, follow_links)
    return Store(open_root(folder_at(location, access), expect))


def begin_store(
    location: "str | os.PathLike[str] | ZarrStore | Place",
    *,
    num_rows: int,
    num_classes: int,
    row_bytes: int | None = None,
    block_rows: int | None = None,
    exist_ok: bool = False,
    arrays: Mapping[str, tuple[str, tuple[int, ...]]] | None = None,
) -> Store:
    """Make a store without samples, for `Store.samples_writer`.

    row_bytes: bytes of the widest row; those of float32 logits by default. arrays: `optional_arrays` of the samples.
    exist_ok: join a store of the same sizes, for processes that begin one at the same moment.
    Raises NameTaken if the path is not free (with exist_ok, to a store of other sizes), ConfigError for sizes out of range.
    """
    for name, value, least in (("num_rows", num_rows, 1), ("num_classes", num_classes, 2)):
        if value < least:
            expected, remedy = f"at least {least}", "check the transfer set"
            raise ConfigError(name, expected=expected, found=str(value), remedy=remedy)
    widest = row_bytes or 4 * num_classes
    rows = block_rows or plan_block_rows(num_rows, widest)
    if rows < 1 or rows & (rows - 1) or rows * widest > MAX_SHARD_BYTES:
        raise ConfigError(
            "block_rows",
            expected=f"a power of two, at most {MAX_SHARD_BYTES // widest} for rows of {widest} bytes",
            found=str(rows),
            remedy="leave it out, and logitstore chooses",
        )
    folder = folder_to_write(location)
    check_samples_sealable(Grid(num_rows, rows), arrays or {}, str(folder.path))
    try:
        return Store(create_root(folder, RootAttributes(num_rows, num_classes, rows)))
    except NameTaken:
        # Another process may have made it just now.
        there = join_root(folder, num_rows, num_classes, rows) if exist_ok else None
        if there is None:
            raise
        return Store(there)


def create_store(
    location: "str | os.PathLike[str] | ZarrStore",
    *,
    num_rows: int | None = None,
    num_classes: int | None = None,
    class_names: Sequence[str] | None = None,
    labels: Sequence[int] | NDArray[Any] | None = None,
    digests: NDArray[Any] | None = None,
    inputs: NDArray[Any] | None = None,
    store_inputs: bool = False,
    ids: Sequence[str] | None = None,
    block_rows: int | None = None,
    card: Mapping[str, str] | None = None,
    exist_ok: bool = False,
    storage_options: Mapping[str, Any] | None = None,
) -> Store:
    """Make a store for a transfer set whose logits come from your own loop.

    num_rows: compared with the length of what is given; may be left out. labels: -1 if unknown.
    digests: `digest_rows` of the inputs, against which later inputs are checked; computed from `inputs` if those are
    given instead, and compared with them if both are. store_inputs: keep `inputs` (rows, …) in the store.
    card: whose store it is: a dict with any of `name`, `data_set`, `data_set_licence`, `licence`, `contact` and
    `description`. The store keeps it for good, and `logitstore inspect` prints it.
    exist_ok: resume the store that this very call would make, for a script that is run again after it was killed, or in
    several processes at once. Labels, ids, digests, class names and inputs are compared with those of the store; what
    you leave out must be absent there, too. Another card than the store's is logged as a warning, and not kept.
    storage_options: of the library that opens a URL, as for `open_store`.
    Raises NameTaken if the path is not free (with exist_ok, if a store of other sizes has it), RowMismatch with the
    first row that differs, SpecMismatch for other class names, or for ids, names or inputs that only one of the two
    has, ConfigError for lengths that differ, labels out of range and digests that are none; nothing is then left
    behind.
    """
    rows = common_length(num_rows, labels=labels, digests=digests, inputs=inputs, ids=ids)
    classes = num_classes if num_classes is not None else len(class_names or ())
    if class_names is not None and len(class_names) != classes:
        expected, found = f"{classes} names", str(len(class_names))
        raise ConfigError("class_names", expected=expected, found=found, remedy="pass one a class")
    label = np.full(rows, -1, np.int64) if labels is None else as_labels(labels)
    check_labels(label, classes)
    check_class_names(class_names, str(location))
    digest, card = given_digests(digests, inputs), checked_card(card)
    kept, example = (inputs, kept_example(inputs)) if store_inputs else (None, None)
    folder = folder_to_write(location, access_of(storage_options))
    there = join_root(folder, rows, classes, block_rows) if exist_ok else None
    if there is not None:
        store = Store(there)
    else:
        store = begin_store(
            folder,
            num_rows=rows,
            num_classes=classes,
            row_bytes=max(4 * classes, 0 if example is None else example.nbytes),
            block_rows=block_rows,
            exist_ok=exist_ok,
            arrays=optional_arrays(example, ids),
        )
    identity = {"transfer_set": None, "order": {"kind": "as_is"}, "digest_of": "array", "label_kind": "class"}
    writer = store.samples_writer(
        identity=identity,
        class_names=class_names,
        example=example,
        ids=ids,
        card=card,
    )
    with contextlib.closing(writer):
        # Every block: a committed one is compared.
        for block in map(store.grid.rows, range(store.grid.num_blocks)):
            part = slice(block.start, block.stop)
            writer.write(
                block,
                source=np.arange(block.start, block.stop, dtype=np.int64),
                digest=digest[part],
                label=label[part],
                id=None if ids is None else list(ids[part]),
                input=None if kept is None else kept[part],
            )
        writer.seal()
    warn_of_other_card(store.card, card, str(store.path))
    return store
