"""How is a damaged store brought to where the next run of its writer makes it whole?

For the root and for each part, as far as its seal or its records tell what was there:

1. What follows from other files is rebuilt, and is put back only with the sha256 that it had: commit records from
   `seal.bin`, `seal.bin` from the records and the shards, metadata of groups and arrays, every record of the log that
   another one follows (`rebuild`).
2. What can be made again is thrown away where it is torn or of another store: shards, chunks of small arrays. Whatever
   wrote the part then writes just that again: a writer takes a block as missing when one of its shards is.
3. A part that is not sealed is mended as its next writer would mend it (`recovery`), but by the digests of its records.
4. What no other file tells (`spec.json`, `seal.json`, the last record of the log) is listed: it comes back from a copy only.

A file that is intact is never deleted, nor is one that could not be read. Nothing is deleted while a writer is at
work on the part: each part is held alone (`lease`) while it is changed.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from .errors import (
    LimitExceeded,
    LogitStoreError,
    ManifestInvalid,
    ShardCorrupt,
    ShardMissing,
    StorageError,
    StoreCorrupt,
)
from .files import Folder
from .format import (
    GROUPS,
    MAX_SEAL_TABLE_BYTES,
    MAX_SHARD_BYTES,
    PRIVATE,
    ROOT_METADATA,
    SEAL,
    SEAL_TABLE,
    SPEC,
    STAGING,
    ArrayLayout,
    parse_json,
    sha256_hex,
)
from .journal import (
    Commit,
    LogRecord,
    Seal,
    SealTable,
    StoredShard,
    commit_key,
    committed_blocks,
    last_record,
    log_key,
    read_checked,
    root_record,
)
from .layouts import DIMENSIONS, check_layout, features_of, form_of
from .lease import Lease
from .progress import Progress, silent
from .rebuild import array_of_part, form_of_seal, group_of_part, log_record, record_of, root_file
from .recovery import Plan, recover, stored_shard
from .shard import is_shard_size
from .store import KINDS, Root, begun_form, open_root, part_metadata, small_keys
from .verify import (
    check_begun_group,
    check_begun_seal,
    check_file,
    check_shard,
    check_small,
    file_digest,
    find_strays,
    sealed_commit,
    unsealed_parts,
)

DONE, BEYOND = 0, 1
"""What `logitstore repair` leaves with."""


@dataclass
class Repairs:
    """What repair did, or with `dry_run` would do. Keys are relative to the store."""

    dry_run: bool = False
    """Whether nothing was changed."""
    rebuilt: list[str] = field(default_factory=list)
    """Files that were made from others, with the bytes that they had."""
    removed: list[str] = field(default_factory=list)
    """Files that were torn, or not of this store, and can be made again."""
    adopted: list[str] = field(default_factory=list)
    """Commit records of blocks whose shards were whole and whose record was lost."""
    missing: list[str] = field(default_factory=list)
    """Metadata and small arrays of sealed parts that the next run of their writer puts back."""
    blocks: dict[str, int] = field(default_factory=dict)
    """Blocks of sealed parts that are to be made again, by part."""
    unsealed: list[str] = field(default_factory=list)
    """Parts that are not sealed; whatever wrote them goes on where it stopped."""
    beyond: list[LogitStoreError] = field(default_factory=list)
    """What only a copy brings back, and strays that plain readers take for data."""
    strays: list[str] = field(default_factory=list)
    """Files that nothing knows; they are left where they are."""

    @property
    def exit_code(self) -> int:
        """0 where nothing is wrong, or nothing that the next run of a writer does not mend; 1 otherwise."""
        return BEYOND if self.beyond else DONE


def repair(path: Path, *, dry_run: bool = False, progress: Progress = silent) -> Repairs:
    """Mend what can be mended of a store, and make room for what can be made again.

    Raises NotAStoreError where the path holds no store, WriterBusy where a writer is at work on it, StorageError where
    it cannot be written. Run again after that, it goes on.
    """
    done = Repairs(dry_run)
    top = Folder(path)
    if not top.exists(log_key(0)) and not top.exists(ROOT_METADATA):
        open_root(path)  # says what is there instead
    _repair_root(_Site(top, "", done))
    _repair_log(_Site(top, "", done))
    try:
        root = open_root(path)
    except LogitStoreError as error:
        if not done.beyond and not (dry_run and done.rebuilt):
            done.beyond.append(error)
        return done
    seals = {}
    for record in root.records:
        site = _Site(root.folder.sub(record.part), record.part, done)
        with _giving_up(done):
            seal = _SealedRepair(root, record, site, progress).run()
            if seal is not None:
                seals[record.part] = seal
    done.unsealed = unsealed_parts(root)
    # No later record vouches for the last one. Where its seal is not found it may be the record that is wrong, and
    # what looks like a part that was begun may be the one that it named.
    in_doubt = bool(root.records) and root.records[-1].part not in seals
    if in_doubt:
        done.beyond.append(_lost(str(path / log_key(len(root.records)))))
    for name in () if in_doubt else done.unsealed:
        with _giving_up(done):
            _BegunRepair(root, name, _Site(root.folder.sub(name), name, done), progress).run()
    done.strays, shown = find_strays(open_root(path), seals, Folder(path).files())
    done.beyond += shown
    return done


@contextlib.contextmanager
def _giving_up(done: Repairs) -> Iterator[None]:
    """Go on with the next part where this one is of a kind that no repair knows; not where the disk fails."""
    try:
        yield
    except StorageError:
        raise
    except LogitStoreError as error:
        done.beyond.append(error)


class _Site:
    """A part, or the root, while it is mended: every change goes through here, and is written down."""

    def __init__(self, folder: Folder, name: str, done: Repairs) -> None:
        self.folder = folder
        self.done = done
        self._prefix = f"{name}/" if name else ""

    def key(self, key: str) -> str:
        """A key as seen from the store."""
        return f"{self._prefix}{key}"

    def path(self, key: str) -> str:
        """Where a file is, for messages."""
        return str(self.folder.path / key)

    def remove(self, key: str) -> None:
        """Take a file away."""
        self.done.removed.append(self.key(key))
        if not self.done.dry_run:
            self.folder.remove(key)

    def rebuild(self, key: str, data: bytes) -> None:
        """Put a file back, in place of what is there."""
        self.done.rebuilt.append(self.key(key))
        if not self.done.dry_run:
            self.folder.remove(key)
            self.folder.put_new(key, data)

    def give_up(self, error: LogitStoreError) -> None:
        """Note what is beyond repair."""
        self.done.beyond.append(error)

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Hold the part alone, as long as it is changed. Raises WriterBusy."""
        if self.done.dry_run:
            yield
            return
        lease = Lease(self.folder)
        lease.take_alone()
        try:
            yield
        finally:
            lease.release()

    @property
    def has_litter(self) -> bool:
        """Whether killed writers left staged files, or a lock."""
        return bool({STAGING.rpartition("/")[2], "lock"} & set(self.folder.names(PRIVATE)))

    def damage(self, key: str, digest: str) -> StoreCorrupt | None:
        """What is wrong with a file that a seal lists; None where it is intact, or cannot be read."""
        try:
            check_file(self.folder, key, digest)
        except StoreCorrupt as error:
            return error
        except LimitExceeded as error:  # whatever it is, it is not what was sealed
            return ManifestInvalid(
                error.where, expected=error.expected, found=error.found, remedy=error.remedy
            )
        except LogitStoreError as error:
            self.give_up(error)
        return None


# The root


def _repair_root(site: _Site) -> None:
    """Root metadata, by the digests in record 0 of the log; that record, by record 1."""
    keys = sorted({ROOT_METADATA, *(f"{group}/{ROOT_METADATA}" for group in GROUPS)})
    again = record = vouched = None
    with contextlib.suppress(FileNotFoundError, LogitStoreError):
        again = root_record({key: site.folder.read(key) for key in keys})
    with contextlib.suppress(FileNotFoundError, LogitStoreError):
        record = site.folder.read(log_key(0))
    with contextlib.suppress(FileNotFoundError, LogitStoreError):
        vouched = parse_json(site.folder.read(log_key(1)), site.path(log_key(1))).get("previous")
    if record != again and again is not None and sha256_hex(again) == vouched:
        with site.alone():
            site.rebuild(log_key(0), again)
        record = again
    digests = _root_digests(record or b"", site.path(log_key(0)), keys)
    if digests is None:
        site.give_up(_lost(site.path(log_key(0))))
        return
    wrong = {key: digest for key, digest in digests.items() if site.damage(key, digest)}
    if wrong or site.has_litter:
        with site.alone():
            for key, digest in wrong.items():
                data = root_file(site.folder, key, digest)
                if data is not None:
                    site.rebuild(key, data)
                    continue
                site.give_up(_lost(site.path(key)))
                if sha256_hex(record or b"") != vouched:  # the digest may be what is wrong
                    site.give_up(_lost(site.path(log_key(0))))


def _repair_log(site: _Site) -> None:
    """Records of the log, each by the digest of it that the one after it has, from the seals that there are."""
    last = last_record(site.folder)
    for number in range(last - 1, 0, -1):
        before, record, after = (_record(site, n) for n in (number - 1, number, number + 1))
        if before is None or after is None:
            continue  # reading the log says so
        vouched = str(parse_json(after, site.path(log_key(number + 1))).get("previous"))
        if record is not None and sha256_hex(record) == vouched:
            continue
        again = log_record(site.folder, before, vouched)
        if again is not None:
            with site.alone():
                site.rebuild(log_key(number), again)
            continue
        # One that agrees with its part and with what is before it is right; then the last one, for which none vouches, is not.
        part = record and parse_json(record, site.path(log_key(number))).get("part")
        is_right = record is not None and record == record_of(site.folder, str(part), before)
        if not is_right:
            site.give_up(_lost(site.path(log_key(number))))
        if number + 1 == last:
            site.give_up(_lost(site.path(log_key(last))))


def _record(site: _Site, number: int) -> bytes | None:
    """A record of the log where it is JSON as it must be; None where it is not."""
    with contextlib.suppress(FileNotFoundError, StoreCorrupt, LimitExceeded):
        data = site.folder.read(log_key(number))
        parse_json(data, site.path(log_key(number)))
        return data
    return None


def _root_digests(record: bytes, where: str, keys: list[str]) -> dict[str, str] | None:
    """What record 0 of the log says; None where it is damaged."""
    try:
        digests = parse_json(record, where).get("root")
    except LogitStoreError:
        return None
    if not isinstance(digests, dict) or sorted(digests) != keys:
        return None
    return {key: str(digest) for key, digest in digests.items()}


def _lost(where: str) -> ManifestInvalid:
    return ManifestInvalid(
        where,
        expected="a file that follows from others",
        found="one that does not",
        remedy="restore it from a copy",
    )


# Sealed parts


@dataclass(frozen=True)
class _Fault:
    """A file of a sealed part that is not what was sealed."""

    key: str
    """Of the file, in the part."""
    digest: str
    """What its sha256 was."""
    found: StoreCorrupt
    """What is wrong with it."""
    data: bytes | None = None
    """The bytes that it had, where other files tell."""


class _SealedRepair:
    """Mends one sealed part: looks at all of it first, and holds it alone only where there is something to do."""

    def __init__(self, root: Root, record: LogRecord, site: _Site, progress: Progress) -> None:
        self._root = root
        self._record = record
        self._site = site
        self._folder = site.folder
        self._name = record.part
        self._kind = KINDS[record.part.partition("/")[0]]
        self._progress = progress
        self._faults: list[_Fault] = []
        self._layouts: dict[str, ArrayLayout] = {}
        self._form = self._kind

    def run(self) -> Seal | None:
        """Mend the part; its seal, None where that is lost and nothing can be said of the rest."""
        site = self._site
        where = site.path(SEAL)
        try:
            seal = Seal.from_bytes(read_checked(self._folder, SEAL, self._record.seal), where)
        except LogitStoreError as error:
            site.give_up(_lost(where) if isinstance(error, StoreCorrupt) else error)
            return None
        # The arrays that are intact help to find the others: shards say how large rows are.
        wrong = {key: e for key, digest in seal.files.items() if (e := site.damage(key, digest))}
        self._read_layouts(seal, wrong)
        table = self._table(seal) if seal.arrays else None
        for key, damage in wrong.items():
            self._look_at_file(seal, table, key, damage)
        lacking: set[tuple[int, int]] = set()
        if table is not None:
            lacking = self._look_at_blocks(seal, table)
        if lacking:
            site.done.blocks[self._name] = len(lacking)
        if self._faults or site.has_litter:
            with site.alone():
                for fault in self._faults:
                    self._mend(fault)
        return seal

    def _read_layouts(self, seal: Seal, wrong: dict[str, StoreCorrupt]) -> None:
        self._form = form = form_of_seal(self._name, seal)
        for key in seal.files:
            array, _, name = key.rpartition("/")
            if array and name == ROOT_METADATA and key not in wrong:
                with contextlib.suppress(FileNotFoundError, LogitStoreError):
                    layout = ArrayLayout.from_bytes(array, self._folder.read(key), self._site.path(key))
                    check_layout(layout, form, self._root.grid, seal.views, self._site.path(key))
                    self._layouts[array] = layout

    def _look_at_file(self, seal: Seal, table: SealTable | None, key: str, error: StoreCorrupt) -> None:
        array, _, name = key.rpartition("/")
        digest = seal.files[key]
        data = None
        if key == SPEC:
            self._site.give_up(_lost(self._site.path(key)))
            return
        if key == ROOT_METADATA:
            data = group_of_part(self._name, digest)
        elif name == ROOT_METADATA:
            data = array_of_part(self._folder, self._name, array, seal, table, self._root.grid)
            if data is not None:
                self._layouts[array] = ArrayLayout.from_bytes(array, data, self._site.path(key))
        if data is None:
            self._site.done.missing.append(self._site.key(key))
        self._faults.append(_Fault(key, digest, error, data))

    def _table(self, seal: Seal) -> SealTable | None:
        """`seal.bin`, made again where it is wrong."""
        digest = seal.table_sha256 or ""
        record_bytes = SealTable(seal.arrays, 0, 0).record_bytes
        size = seal.views * seal.blocks * record_bytes
        where = self._site.path(SEAL_TABLE)
        if size > MAX_SEAL_TABLE_BYTES or seal.blocks != self._root.grid.num_blocks:
            self._site.give_up(_lost(where))
            return None
        try:
            data = read_checked(self._folder, SEAL_TABLE, digest, MAX_SEAL_TABLE_BYTES)
            return SealTable(seal.arrays, seal.views, seal.blocks, data)
        except StoreCorrupt as error:
            table = self._table_again(seal)
            if table is None or sha256_hex(table.to_bytes()) != digest:
                self._site.give_up(_lost(where))
                return None
            self._faults.append(_Fault(SEAL_TABLE, digest, error, table.to_bytes()))
            return table
        except LogitStoreError as error:
            self._site.give_up(error)
            return None

    def _table_again(self, seal: Seal) -> SealTable | None:
        """The table that the commit records give, and the shards where a record is lost."""
        table = SealTable(seal.arrays, seal.views, seal.blocks)
        names = {name for name, _ in seal.arrays}
        for view in range(seal.views):
            for block in range(seal.blocks):
                commit = self._intact_record(seal, view, block) or self._record_of_shards(seal, view, block)
                if commit is None or set(commit.objects) != names:
                    return None
                try:
                    table.record(commit)
                except (ValueError, OverflowError):  # a record with checksums of another number of chunks
                    return None
        return table

    def _intact_record(self, seal: Seal, view: int, block: int) -> Commit | None:
        key = commit_key(view, block)
        try:
            commit = Commit.from_bytes(self._folder.read(key), self._site.path(key))
        except (FileNotFoundError, LogitStoreError):
            return None
        about = (commit.view, commit.block, commit.spec)
        return commit if about == (view, block, seal.files.get(SPEC)) else None

    def _record_of_shards(self, seal: Seal, view: int, block: int) -> Commit | None:
        rows = self._root.grid.rows(block)
        try:
            objects = {
                name: stored_shard(self._folder, self._layouts[name], view, block, len(rows))
                for name, _ in seal.arrays
            }
        except (KeyError, FileNotFoundError, LogitStoreError):
            return None
        return Commit(view, block, rows, seal.files.get(SPEC, ""), objects)

    def _look_at_blocks(self, seal: Seal, table: SealTable) -> set[tuple[int, int]]:
        """Compare every shard and record; the blocks that are to be made again."""
        lacking = set()
        total = seal.views * seal.blocks
        for number in range(total):
            view, block = divmod(number, seal.blocks)
            for array, _ in seal.arrays:
                key = self._shard_key(array, view, block)
                if key is None:
                    continue
                stored = table.shard(array, view, block)
                try:
                    check_shard(self._folder, key, stored, deep=True)
                except ShardMissing:
                    lacking.add((view, block))
                except ShardCorrupt as error:
                    lacking.add((view, block))
                    self._faults.append(_Fault(key, stored.sha256, error))
                except LogitStoreError as error:
                    self._site.give_up(error)
            if SPEC in seal.files:
                self._look_at_record(sealed_commit(self._root, seal, table, view, block))
            self._progress(f"repairing {self._name}", number + 1, total, "blocks")
        return lacking

    def _shard_key(self, array: str, view: int, block: int) -> str | None:
        """Key of a shard; None where nothing tells how many dimensions the array has."""
        if array in self._layouts:
            return self._layouts[array].shard_key(view, block)
        dimensions = DIMENSIONS[self._form].get(array)
        if dimensions is None:
            return None
        index = [block] if self._kind == "samples" else [view, block]
        index += [0] * (len(dimensions) - len(index))
        return f"{array}/c.{'.'.join(map(str, index))}"

    def _look_at_record(self, sealed: Commit) -> None:
        data = sealed.to_bytes()
        digest = sha256_hex(data)
        error = self._site.damage(sealed.key, digest)
        if error is not None:
            self._faults.append(_Fault(sealed.key, digest, error, data))

    def _mend(self, fault: _Fault) -> None:
        """Do what is to be done, where it is still to be done: others may have mended the part meanwhile."""
        there = self._folder.exists(fault.key)
        if there and self._is_intact(fault):
            return
        if fault.data is not None:
            self._site.rebuild(fault.key, fault.data)
        elif there:
            self._site.remove(fault.key)

    def _is_intact(self, fault: _Fault) -> bool:
        try:
            return file_digest(self._folder, fault.key, 2 * MAX_SHARD_BYTES)[1] == fault.digest
        except FileNotFoundError:
            return False


# Parts that were begun


class _BegunRepair:
    """Mends one part that is not sealed: only its records, and the form of its metadata, tell what was there."""

    def __init__(self, root: Root, name: str, site: _Site, progress: Progress) -> None:
        self._root = root
        self._name = name
        self._site = site
        self._folder = site.folder
        self._kind = KINDS[name.partition("/")[0]]
        self._progress = progress
        self._layouts: dict[str, ArrayLayout] = {}

    def run(self) -> None:
        """Mend the part."""
        site = self._site
        spec, views = b"", None
        try:
            spec = self._folder.read(SPEC)
            identity = parse_json(spec, site.path(SPEC)).get("identity")
            views = identity.get("views") if isinstance(identity, dict) else None
        except (FileNotFoundError, StoreCorrupt):
            pass
        with site.alone():
            commits = self._intact_records()
            # Where every record was made for another spec, it is the spec that has changed.
            specs = {commit.spec for commit in commits.values()}
            if not isinstance(views, int) or (specs and sha256_hex(spec) not in specs):
                site.give_up(
                    ManifestInvalid(
                        site.path(SPEC),
                        expected="what the part is made from",
                        found="a file that was changed",
                        remedy=f"restore it from a copy, or delete {self._folder.path} to begin the part anew",
                    )
                )
                return
            self._mend_seal()
            kept = self._mend_records(commits, sha256_hex(spec))
            whole = self._mend_metadata(views, kept)
            arrays = [layout for layout in self._layouts.values() if layout.is_block_array]
            named = {name for commit in kept for name in commit.objects}
            # Where an array is not known, only its writer can say what the shards must be like.
            if whole and named <= {layout.name for layout in arrays} and not site.done.dry_run:
                found = recover(self._folder, Plan(arrays, views, self._root.grid, sha256_hex(spec)))
                site.done.removed += map(site.key, found.dropped)
                site.done.adopted += [site.key(commit_key(*place)) for place in found.adopted]

    def _intact_records(self) -> dict[tuple[int, int], Commit]:
        """The commit records that are intact in themselves, by the place of which their names speak."""
        commits = {}
        for place in committed_blocks(self._folder):
            key = commit_key(*place)
            with contextlib.suppress(FileNotFoundError, StoreCorrupt):
                commits[place] = Commit.from_bytes(self._folder.read(key), self._site.path(key))
        return commits

    def _mend_seal(self) -> None:
        """A seal that no log names rests on nothing: its writer makes it again."""
        if not self._folder.exists(SEAL):
            if self._folder.exists(SEAL_TABLE):
                self._site.remove(SEAL_TABLE)
            return
        try:
            check_begun_seal(self._folder)
        except StoreCorrupt:
            self._site.remove(SEAL)
            if self._folder.exists(SEAL_TABLE):
                self._site.remove(SEAL_TABLE)

    def _mend_records(self, commits: dict[tuple[int, int], Commit], spec: str) -> list[Commit]:
        """Take away records that are not intact, and those of shards that are not; the others."""
        kept = []
        places = sorted(committed_blocks(self._folder))
        for number, place in enumerate(places):
            key = commit_key(*place)
            commit = commits.get(place)
            if commit is None or (commit.view, commit.block, commit.spec) != (*place, spec):
                self._site.remove(key)
            elif (torn := self._torn_shards(commit)) is not None:
                self._site.remove(key)  # before its shards: a record is never without them
                for shard in torn:
                    self._site.remove(shard)
            else:
                kept.append(commit)
            self._progress(f"repairing {self._name}", number + 1, len(places), "blocks")
        return kept

    def _torn_shards(self, commit: Commit) -> list[str] | None:
        """Keys of the shards of a block that are there and torn; None where the block is whole."""
        torn, whole = [], True
        for array, stored in commit.objects.items():
            key = self._shard_key(array, commit)
            if key is None:
                whole = False
                continue
            try:
                check_shard(self._folder, key, stored, deep=True)
            except ShardMissing:
                whole = False
            except ShardCorrupt:
                torn.append(key)
                whole = False
        return None if whole else torn

    def _shard_key(self, array: str, commit: Commit) -> str | None:
        """Key of the shard of a block, by the names that are there: the metadata may be what is wrong."""
        index = [commit.block] if self._kind == "samples" else [commit.view, commit.block]
        start = f"c.{'.'.join(map(str, index))}"
        for name in self._folder.names(array) if "/" not in array else []:
            if name == start or (name.startswith(start) and not name[len(start) :].strip(".0")):
                if name != start and name[len(start)] != ".":
                    continue
                return f"{array}/{name}"
        return None

    def _mend_metadata(self, views: int, commits: list[Commit]) -> bool:
        """Take away metadata that is not of this store, or with which no block agrees; whether none was."""
        whole = True
        try:
            check_begun_group(self._folder, self._name)
        except FileNotFoundError:
            whole = False
        except LogitStoreError:
            form = form_of(self._kind, self._folder.names())
            self._site.rebuild(ROOT_METADATA, part_metadata(self._kind, features_of(form)))
        for array in self._folder.names():
            key = f"{array}/{ROOT_METADATA}"
            if array == PRIVATE or not self._folder.exists(key):
                continue
            where = self._site.path(key)
            try:
                layout = ArrayLayout.from_bytes(array, self._folder.read(key), where)
                check_layout(layout, begun_form(self._folder, self._name), self._root.grid, views, where)
            except LogitStoreError:
                self._site.remove(key)
                whole = False
                continue
            if not all(self._agrees(layout, commit) for commit in commits):
                self._site.remove(key)
                whole = False
                continue
            self._layouts[array] = layout
            for chunk in [] if layout.is_block_array else small_keys(layout):
                try:
                    check_small(self._folder, layout, chunk)
                except FileNotFoundError:
                    continue
                except ShardCorrupt:
                    self._site.remove(chunk)
        return whole

    def _agrees(self, layout: ArrayLayout, commit: Commit) -> bool:
        """Whether a block that is whole can be one of this layout."""
        stored: StoredShard | None = commit.objects.get(layout.name)
        if stored is None:
            return not layout.is_block_array
        rows = len(self._root.grid.rows(commit.block))
        return layout.is_block_array and is_shard_size(layout, rows, stored.size)
