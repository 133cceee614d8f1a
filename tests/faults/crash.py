"""States that a disk may hold after a power loss, and a judge of them.

1. `Windows` makes of a trace (`disk.Disk.trace`), for each of its prefixes, what is certain and what is not. The
   weakest disk that POSIX allows: a name that was given or taken away counts once its directory was synced, and
   until then it may or may not, each for itself; bytes that were not synced are all there, half, zeros, or missing.
2. `Judge` looks at such a state as a reader would, lets a new writer recover and finish it, and lists the faults.
   The judgement follows from the content alone, so that it is made once for states that are alike.

What stands in a staging folder is never read, only listed and removed (the judge sees to that); states that differ
in nothing else are alike.
"""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from faults.baton import bare
from faults.disk import STORE, Disk, Named, Node, Said, Step, Synced, Written
from faults.points import kind_of_name
from faults.traces import everything, record, watched
from logitstore.storage.api import Store, open_store
from logitstore.storage.errors import LogitStoreError, NotAStoreError
from logitstore.storage.format.constants import LOCK, LOG, STAGING

Tree = Mapping[str, bytes]
"""Files by path, and "<folder>/" for empty folders, as `Disk.files` gives them."""
Block = tuple[str, int, int]
"""(part, view, block)."""
_RECENT: Final = 40
"""Steps within which a change is drawn for itself; older ones mostly share one draw (see `Windows.sample`)."""


# What a power loss leaves.


@dataclass(frozen=True)
class _Folder:
    certain: Mapping[str, int]
    """Names that are on the disk."""
    pending: tuple[tuple[str, int | None, int], ...] = ()
    """Names that were given or taken away since, in order: (name, node, number of the step)."""


@dataclass(frozen=True)
class _Window:
    """Certain and uncertain names and bytes after a prefix of a trace."""

    folders: Mapping[int, _Folder]
    files: Mapping[int, tuple[bytes, ...]]
    """What each file may hold; one item where it was synced."""
    said: frozenset[tuple[object, ...]]
    """What was noted before."""


class Windows:
    """The states that a disk may be in after a power loss, for every prefix of a trace."""

    def __init__(self, trace: Sequence[Step], mount: int) -> None:
        """mount: number of the directory in which everything happens."""
        self._mount = mount
        folders: dict[int, _Folder] = {mount: _Folder({})}
        durable: dict[int, bytes] = {}
        files: dict[int, tuple[bytes, ...]] = {}
        said: frozenset[tuple[object, ...]] = frozenset()
        self.prefixes = [_Window(dict(folders), dict(files), said)]
        """One for each number of steps that were taken: 0 to all."""
        for number, step in enumerate(trace):
            match step:
                case Named(directory, name, node, is_folder):
                    if node is not None and is_folder and node not in folders:
                        folders[node] = _Folder({})
                    elif node is not None and not is_folder and node not in files:
                        files[node], durable[node] = (b"",), b""
                    here = folders[directory]
                    folders[directory] = _Folder(here.certain, (*here.pending, (name, node, number)))
                case Written(node, data):
                    kept = durable[node]
                    half = (len(kept) + len(data)) // 2
                    zeros = kept + bytes(len(data) - len(kept))
                    files[node] = tuple(dict.fromkeys([data, kept, data[:half], zeros]))
                case Synced(node) if node in files:
                    files[node] = files[node][:1]
                    durable[node] = files[node][0]
                case Synced(node):
                    here = folders[node]
                    folders[node] = _Folder(_applied(here.certain, here.pending))
                case Said(what):
                    said |= {what}
            self.prefixes.append(_Window(dict(folders), dict(files), said))

    def sample(self, prefix: int, rng: random.Random) -> dict[str, bytes]:
        """A state after `prefix` steps, all choices drawn.

        Of each change that is not certain, by itself. But changes that are long past are (nearly always) all there or
        all not there: what killed writers leave behind in parts that are done has very many subsets.
        """
        window = self.prefixes[prefix]
        draw = rng.random()
        old = None if draw < 0.005 else draw < 0.5

        def names(folder: _Folder) -> Mapping[str, int]:
            if not folder.pending:
                return folder.certain
            bits = rng.getrandbits(len(folder.pending))
            kept = [
                change
                for number, change in enumerate(folder.pending)
                if (bits >> number & 1 if old is None or change[2] > prefix - _RECENT else old)
            ]
            return _applied(folder.certain, kept)

        chosen: dict[int, bytes] = {}  # a file of two names holds the same under both

        def content(node: int) -> bytes:
            options = window.files[node]
            if len(options) == 1:
                return options[0]
            if node not in chosen:
                chosen[node] = rng.choice(options)
            return chosen[node]

        return dict(self._walk(window, self._mount, "", names, content))

    def _walk(
        self,
        window: _Window,
        node: int,
        path: str,
        names: Callable[[_Folder], Mapping[str, int]],
        content: Callable[[int], bytes],
    ) -> Iterator[tuple[str, bytes]]:
        found = names(window.folders[node])
        if not found and path:
            yield f"{path}/", b""
        for name, below in found.items():
            where = f"{path}/{name}" if path else name
            if below in window.files:
                yield where, content(below)
            else:
                yield from self._walk(window, below, where, names, content)


def _applied(names: Mapping[str, int], changes: Sequence[tuple[str, int | None, int]]) -> Mapping[str, int]:
    found = dict(names)
    for name, node, _ in changes:
        if node is None:
            found.pop(name, None)
        else:
            found[name] = node
    return found


def key_of(tree: Tree) -> frozenset[tuple[str, bytes]]:
    """What two states that are alike have in common."""
    return frozenset(
        (path[: path.index(f"{STAGING}/") + len(STAGING)], b"staged")
        if f"{STAGING}/" in path and not path.endswith("/")
        else (path, data)
        for path, data in tree.items()
    )


# Whether that is harmless.


@dataclass(frozen=True)
class Verdict:
    """The faults of a state."""

    committed: frozenset[Block]
    """Blocks whose record and shards are there, whole."""
    sealed: frozenset[str]
    """Parts that a reader finds sealed, and "root" where there is a store at all."""
    harm: tuple[str, ...]
    """What is wrong: each begins with its kind ("torn: …", "reader: …", "resume: …", "tree: …", "again: …")."""

    def after(self, said: frozenset[tuple[object, ...]]) -> list[str]:
        """What is wrong, given what had been promised."""
        lost = [
            f"lost: {what} had been said"
            for what in said
            if (what[0] == "acknowledged" and what[1:] not in self.committed)
            or (what[0] == "sealed" and what[1] not in self.sealed)
        ]
        return [*self.harm, *sorted(lost)]


def _is_scratch(path: str) -> bool:
    return f"{STAGING}/" in path or path.endswith((f"/{LOCK}", "/"))


class Judge:
    """Judges states against the store that an uninterrupted run makes."""

    def __init__(self, job: Callable[[], object] = everything) -> None:
        """job: the work that is finished after the power loss."""
        self._job = job
        disk = record(job)
        self.golden = disk.files()
        """The tree of the uninterrupted run."""
        self._prefix = STORE.name
        self._blocks = self._find_blocks(disk)
        with disk.mounted():
            self._readings = self._read_all(open_store(STORE))
        self._memo: dict[frozenset[tuple[str, bytes]], Verdict] = {}

    @property
    def num_distinct(self) -> int:
        """States that were judged; the others were like one of them."""
        return len(self._memo)

    def _find_blocks(self, disk: Disk) -> dict[Block, list[str]]:
        """Return by block its record, its shards, and the first files of its part: spec, metadata, small arrays."""
        computed = [s.what for s in disk.trace if isinstance(s, Said) and s.what[0] == "computed"]
        found: dict[Block, list[str]] = {}
        for _, part, view, block in computed:
            folder = f"{self._prefix}/{part}"
            ends = (f"/c.{block}", f"/c.{view}.{block}", f"/c.{view}.{block}.0")
            here = [path for path in self.golden if path.startswith(f"{folder}/")]
            begun = [path for path in here if kind_of_name(path) in ("metadata", "basis")]
            begun = [path for path in begun if part != "samples" or "/c." not in path]
            shards = [
                path
                for path in here
                if path not in begun and path.endswith(ends[:1] if part == "samples" else ends[1:])
            ]
            assert len(shards) == len(
                {path.split("/")[-2] for path in here if path not in begun and "/c." in path}
            )
            record_key = f"{folder}/__logitstore__/commits/{view}-{block}.json"
            found[(str(part), int(str(view)), int(str(block)))] = [record_key, *shards, *begun]
        return found

    @staticmethod
    def _read_all(store: Store) -> dict[str, list[bytes]]:
        """Every number of every sealed part."""
        found = {"root": [repr((store.num_rows, store.num_classes, store.block_rows)).encode()]}
        if store.root.has("samples"):
            samples = store.samples
            found["samples"] = [a.tobytes() for a in (samples.labels, samples.source, samples.digests)]
        for name, teacher in store.teachers.items():
            found[f"teachers/{name}"] = [
                array(slice(None), view).tobytes()
                for view in range(teacher.num_views)
                for array in (teacher.read, teacher.seen, *([teacher.peak] if teacher.has_peak else []))
            ]
        return found

    def __call__(self, tree: Tree) -> Verdict:
        """The verdict on a state."""
        key = key_of(tree)
        if key not in self._memo:
            self._memo[key] = self._judge(tree)
        return self._memo[key]

    def _judge(self, tree: Tree) -> Verdict:
        harm = [
            f"torn: {path} holds {len(data)} bytes that are not the {len(self.golden.get(path, b''))} it should"
            for path, data in tree.items()
            if not _is_scratch(path) and self.golden.get(path) != data
        ]
        committed = {block for block, (record_key, *_) in self._blocks.items() if record_key in tree}
        for block in sorted(committed):
            if any(tree.get(path) != self.golden[path] for path in self._blocks[block]):
                harm.append(f"torn: the record of {block} is there and what it describes is not")
                committed.discard(block)
        disk = Disk()
        staged = set[int]()
        for path, data in tree.items():
            made = disk.put(path, None if path.endswith("/") else data)
            if f"{STAGING}/" in path:
                staged.add(made.number)

        def guard(call: str, node: Node | None) -> None:
            assert node is None or node.number not in staged or node.parts is not None, (
                f"{call} of a staged file"
            )

        disk.before = guard
        with disk.mounted():
            sealed, wrong = self._reader(tree)
            harm += wrong
            harm += self._resume(disk, committed)
        return Verdict(frozenset(committed), frozenset(sealed), tuple(harm))

    def _reader(self, tree: Tree) -> tuple[set[str], list[str]]:
        """The parts that a reader finds sealed, and what is wrong with what it reads."""
        try:
            found = self._read_all(open_store(STORE))
        except NotAStoreError as error:
            begun = f"{self._prefix}/{LOG}/0.json" in tree
            return set(), [f"reader: {error}"] if begun else []
        except LogitStoreError as error:
            return set(), [f"reader: {type(error).__name__}: {error}"]
        return set(found), [
            f"reader: {part} reads as other numbers"
            for part, arrays in found.items()
            if arrays != self._readings[part]
        ]

    def _resume(self, disk: Disk, committed: set[Block]) -> list[str]:
        """Recover and finish as the same command would that is run again; what is wrong then."""
        computed: list[Block] = []

        def say(what: str, *block: Any) -> None:
            if what == "computed":
                computed.append(block)  # type: ignore[arg-type]

        try:
            with watched(say):
                self._job()
        except (LogitStoreError, OSError) as error:
            return [f"resume: {type(error).__name__}: {bare(error)}"]
        harm = [f"again: {block} was computed, and was there" for block in computed if block in committed]
        after = disk.files()
        if after != self.golden:
            wrong = sorted(
                path for path in {*after, *self.golden} if after.get(path) != self.golden.get(path)
            )
            harm.append(
                f"tree: after the resumed run {', '.join(wrong[:4])} differ from the uninterrupted one's"
            )
        if disk.num_open:
            harm.append(f"tree: {disk.num_open} descriptors are left open")
        return harm
