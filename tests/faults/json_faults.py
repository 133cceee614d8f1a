"""Cuts and mutations of the JSON files of a store, and a judge of the answers.

1. `Files` is a store in memory, in which one file can be another.
2. `read_alone` gives a file to the function that parses it; `read_through` opens what the file belongs to as a
   reader does: the root and its log, a part with its spec and metadata. `UNSIGNED` leaves every digest as it was;
   `SIGNED` is a writer of malice, whose digests fit: the check of an object against a known sha256 is left out.
3. `cuts` and `mutations` are the faults; `judge` lists what is wrong with an answer.
"""

import contextlib
import json
import os
import random
import re
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from unittest import mock

from logitstore.storage.api import Capture
from logitstore.storage.backends.local import Folder
from logitstore.storage.errors import (
    LogitStoreError,
    NotAStoreError,
    PartNotFound,
    StoreCorrupt,
    UnsupportedFeature,
    UntrustedStoreError,
)
from logitstore.storage.format.documents import canonical_json, parse_spec, sha256_hex
from logitstore.storage.format.metadata import ArrayLayout, RootAttributes, group_attributes
from logitstore.storage.parts.journal import Commit, Seal
from logitstore.storage.parts.log import read_log
from logitstore.storage.parts.reader import Samples, sets_of
from logitstore.storage.parts.root import Root

SIGNED, UNSIGNED = True, False
MOST_SECONDS: Final = 1.0
MOST_GROWTH: Final = 64 << 20


class Files(Folder):
    """A store in memory: keys and bytes."""

    def __init__(self, files: dict[str, bytes], path: Path = Path("memory"), prefix: str = "") -> None:
        self.files = files
        self.path = path
        self._prefix = prefix

    def sub(self, name: str) -> "Files":
        return Files(self.files, self.path / name, f"{self._prefix}{name}/")

    def read(self, key: str, *_: Any, **__: Any) -> bytes:
        try:
            return self.files[self._prefix + key]
        except KeyError:
            raise FileNotFoundError(key) from None

    def read_range(self, key: str, offset: int, length: int) -> tuple[bytes, int]:
        data = self.read(key)
        return data[offset : offset + length], len(data)

    def exists(self, key: str) -> bool:
        key = self._prefix + key
        return any(name == key or name.startswith(f"{key}/") for name in self.files)

    def names(self, prefix: str = "") -> list[str]:
        start = self._prefix + (f"{prefix}/" if prefix not in ("", ".") else "")
        return sorted({name[len(start) :].split("/")[0] for name in self.files if name.startswith(start)})


def read_alone(files: dict[str, bytes], key: str) -> None:
    """Parse the file `key` of a store with the function that does it for readers."""
    data, name = files[key], key.rpartition("/")[2]
    if "/commits/" in key:
        Commit.from_bytes(data, key)
    elif name == "seal.json":
        Seal.from_bytes(data, key)
    elif name == "spec.json":
        parse_spec(data, key)
    elif key == "zarr.json":
        RootAttributes.from_bytes(data, key)
    elif key in ("teachers/zarr.json", "clusters/zarr.json") or "/log/" in key:
        read_log(Files(files))
    elif key.count("/") == 1 + key.startswith(("teachers/", "clusters/")):
        group_attributes(data, key)
    else:
        ArrayLayout.from_bytes(key.split("/")[-2], data, key)


def read_through(files: dict[str, bytes], key: str) -> None:
    """Read what the file `key` of a store belongs to, as far as a reader interprets it."""
    if "/commits/" in key:
        read_alone(files, key)
        return
    folder = Files(files)
    root = Root(folder, RootAttributes.from_bytes(folder.read("zarr.json"), "zarr.json"))
    for record in root.records:
        if not key.startswith(f"{record.part}/"):
            continue
        part = root.part(record.part)
        if record.part == "samples":
            samples = Samples(root)
            _ = samples.class_names, samples.inputs, samples.spec, part.table if part.seal.arrays else None
        elif record.part.startswith("teachers/"):
            capture = Capture(root, record.part.partition("/")[2])
            _ = capture.classes, capture.shape, capture.provenance, part.table
        else:
            _ = part.spec, sets_of(part, root.attributes.num_classes)


def _unchecked(folder: Folder, key: str, digest: str, *_: Any, **__: Any) -> bytes:
    """`read_checked` as if its digest fitted."""
    try:
        return folder.read(key)
    except FileNotFoundError:
        raise StoreCorrupt(str(folder.path / key), expected="a file", found="none", remedy="-") from None


@contextlib.contextmanager
def digests_fit() -> Iterator[None]:
    """Whatever is read has the sha256 that is stated of it. Used for `SIGNED`, and as a control for the rest."""
    with contextlib.ExitStack() as stack:
        for module in ("journal", "root", "sealed_part"):
            stack.enter_context(mock.patch(f"logitstore.storage.parts.{module}.read_checked", _unchecked))
        yield


# Faults


def cuts(data: bytes) -> Iterator[bytes]:
    """The file cut at every byte."""
    return (data[:end] for end in range(len(data)))


NASTY: Final[tuple[Any, ...]] = (
    None, True, -1, 0, 1, 2**31, 2**63, 2**64, 2**70, -(2**80), 10**400, 0.5, -0.0, 1e308, "", "NaN", "..", "../../x",
    "/etc/hostname", "a\0b", "\x1b[31m", "\u202e", "x" * 300, "con", [], {}, [[]], [None], {"": None}, [0] * 40,
)  # fmt: skip
"""What stands where something else is expected."""
RAW: Final = (
    b"NaN", b"-Infinity", b"1e999", b"-1e999", b"9" * 5000, b"0x10", b"01", b"1.", b"'a'", b'"\\ud800"', b'"\xff"',
    b"[" * 5000, b'{"a":' * 40 + b"1" + b"}" * 40, b"//", b"\xef\xbb\xbf", b"nul", b"\0", b'"\x01"', b"1E5", b"\\",
)  # fmt: skip
"""Bytes that no canonical JSON holds."""
_TOKEN = re.compile(rb'"(?:[^"\\]|\\.)*"|[-0-9.eE+]+|true|false|null|[][{},:]')


def mutations(data: bytes, others: list[bytes], count: int, seed: str) -> Iterator[tuple[str, bytes]]:
    """`count` changed versions of a JSON file: (how, bytes), each another one than the file.

    others: the other files of the store. The second half parse, mostly: values are changed in the tree and spelled
    canonically again, commit records with their own digest made to fit.
    """
    rng = random.Random(seed)
    made = 0
    while made < count:
        how = rng.choice(_WAYS if made < count // 2 else ("value", "value", "key", "drop", "self"))
        changed = _tree_change(data, how, rng) if how in ("value", "key", "drop", "self") else None
        if changed is None:
            changed = _byte_change(data, how if how in _WAYS else "flip", others, rng)
        if changed != data:
            made += 1
            yield how, changed


_WAYS = ("flip", "insert", "delete", "double", "swap", "raw", "key twice", "other file", "append")


def _byte_change(data: bytes, how: str, others: list[bytes], rng: random.Random) -> bytes:
    place = rng.randrange(len(data))
    tokens = list(_TOKEN.finditer(data))
    if how == "flip":
        return data[:place] + bytes([data[place] ^ 1 << rng.randrange(8)]) + data[place + 1 :]
    if how == "insert":
        return data[:place] + rng.randbytes(rng.randint(1, 4)) + data[place:]
    if how == "delete":
        return data[:place] + data[place + rng.randint(1, 20) :]
    if how == "double":
        return data[:place] + data[rng.randrange(place + 1) :]
    if how == "swap":
        one, other = sorted(rng.sample(range(len(tokens)), 2))
        a, b = tokens[one], tokens[other]
        return data[: a.start()] + b[0] + data[a.end() : b.start()] + a[0] + data[b.end() :]
    if how == "raw":
        token = rng.choice(tokens)
        return data[: token.start()] + rng.choice(RAW) + data[token.end() :]
    if how == "key twice":
        pairs = list(re.finditer(rb'"[^"]*":(?:"[^"]*"|[-0-9.]+|null)', data))
        pair = rng.choice(pairs)[0] if pairs else b'"a":1'
        return data[:1] + pair + b"," + data[1:]
    if how == "other file":
        return rng.choice(others)
    return data + rng.choice([b"\n", b" ", b"{}", data, b"\0", b"]"])


def _tree_change(data: bytes, how: str, rng: random.Random) -> bytes | None:
    """One value, or one key, of the tree changed and spelled again; None where it cannot be spelled."""
    value = json.loads(data)
    places = list(_places(value))
    if not places:
        return None
    holder, key = rng.choice(places)
    if how == "drop":
        del holder[key]
    elif how == "key" and isinstance(holder, dict):
        holder[rng.choice(["", "..", "self", "x" * 300, "part", str(key) + "\x1b"])] = holder.pop(key)
    else:
        holder[key] = rng.choice(NASTY) if rng.random() < 0.8 else rng.choice(places)[0]
    try:
        if "self" in value and how != "self":
            value.pop("self")
            value["self"] = sha256_hex(canonical_json(value))
        return canonical_json(value)
    except (ValueError, RecursionError):
        return None


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every (holder, key or index) in a tree."""
    items = (
        list(value.items())
        if isinstance(value, dict)
        else list(enumerate(value))
        if isinstance(value, list)
        else []
    )
    for key, inner in items:
        yield value, key
        yield from _places(inner)


# Judging


@dataclass
class Answers:
    """Answers to the faults, counted."""

    violations: list[str] = field(default_factory=list)
    tried: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    """How often which error, "read" where there was none."""
    slowest: float = 0.0
    growth: int = 0
    """Most bytes by which the process was larger than at first."""
    _first: int = field(default_factory=lambda: resident_bytes())

    def ask(self, files: dict[str, bytes], key: str, data: bytes, how: str, *, signed: bool) -> None:
        """Read a store in which the file `key` is `data`, and note the answer and what is wrong with it.

        signed: whether this happens under `digests_fit`.
        """
        changed = {**files, key: data}
        start = time.process_time()
        error: BaseException | None = None
        try:
            (read_alone if how == "cut" else read_through)(changed, key)
        except Exception as caught:  # noqa: BLE001 - whatever it is, it is the answer
            error = caught
        seconds = time.process_time() - start
        self.tried += 1
        self.kinds["read" if error is None else type(error).__name__] += 1
        self.slowest = max(self.slowest, seconds)
        if self.tried % 50 == 1:
            self.growth = max(self.growth, resident_bytes() - self._first)
        wrong = judge(error, key, how, signed=signed)
        if seconds >= MOST_SECONDS:
            wrong = f"{seconds:.1f} s"
        if wrong:
            self.violations.append(f"{key}, {how}: {wrong} for {data[:120]!r}")

    def finish(self) -> list[str]:
        """All violations."""
        if self.growth >= MOST_GROWTH:
            self.violations.append(f"{self.growth >> 20} MiB more memory")
        return self.violations


def judge(error: BaseException | None, key: str, how: str, *, signed: bool) -> str | None:
    """What is wrong with an answer to a changed file; None where nothing is.

    A cut is never JSON of ours: it is refused whoever signed it. Other changes are refused where the digests are those
    of the store; where they fit, a value may be another good one, and what is refused is so as the format says.
    """
    if error is None:
        refusable = how == "cut" or not (signed or "/commits/" in key)
        return "read, and nothing was said" if refusable and not _is_unprotected(key) else None
    if not isinstance(error, LogitStoreError):
        return f"{type(error).__name__}: {str(error)[:200]}"
    allowed: tuple[type[LogitStoreError], ...] = (StoreCorrupt, UntrustedStoreError)
    if signed or key == "zarr.json":
        # Another version or feature of the format, well signed, is not damage. Of the root it is told before its digest.
        allowed += (UnsupportedFeature, NotAStoreError, PartNotFound)
    if how == "cut":
        allowed = (StoreCorrupt,)
    if not isinstance(error, allowed):
        return f"{type(error).__name__}: {error}"
    line = str(error)
    return f"more than a line: {line!r}" if "\n" in line or len(line) > 2000 else None


def _is_unprotected(key: str) -> bool:
    """Whether a reader may not see a change: the last record of the log is bound by `expect` alone."""
    return key.startswith("__logitstore__/log/")


def resident_bytes() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
