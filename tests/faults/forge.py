"""Tools of a forger: a good store becomes a hostile one, with every digest fitting.

`Forge` is a store in the hands of its maker: files are changed, and `sign` then makes all digests fit, from the commit
records to the last record of the log, so that nothing but the allow-list and the limits of a reader stands between the
store and its victim. `Kind` is one hostile store; the modules `hostile` and `hostile_files` list them.
"""

import hashlib
import json
import stat
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import google_crc32c

from logitstore.storage.format.documents import canonical_json
from logitstore.storage.format.metadata import ArrayLayout
from logitstore.storage.format.shard import ShardEncoder

SECRET: Final = b"what stands outside the store\n"
GADGET: Final = b"cposix\nsystem\n(S'true'\ntR."
"""A pickle that starts a process when it is read."""
LOGITS: Final = "teachers/wide/logits"
SHARD: Final = f"{LOGITS}/c.0.0.0"
PLAIN: Final = [{"configuration": {"endian": "little"}, "name": "bytes"}, {"name": "crc32c"}]


class Forge:
    """A store in the hands of its maker."""

    def __init__(self, path: Path) -> None:
        self.path = path
        """The store. `outside` beside it holds a secret."""
        self.seals: dict[str, list[Callable[[dict[str, Any]], Any]]] = {}
        self.logs: list[Callable[[list[dict[str, Any]]], Any]] = []
        self.last: list[Callable[[Forge], Any]] = []
        """What is done after everything is signed."""

    @property
    def outside(self) -> Path:
        """A folder beside the store, with a file `secret`."""
        return self.path.parent / "outside"

    def file(self, key: str) -> Path:
        return self.path / key

    def put(self, key: str, value: Any) -> None:
        """Write bytes, or a value as canonical JSON; folders are made."""
        data = value if isinstance(value, bytes) else canonical_json(value)
        self.file(key).parent.mkdir(parents=True, exist_ok=True)
        self.file(key).write_bytes(data)

    def edit(self, key: str, **changes: Any) -> None:
        """Change top-level values of a JSON file; None as a value takes the key away."""
        value = json.loads(self.file(key).read_bytes())
        for name, change in changes.items():
            if change is None:
                del value[name]
            else:
                value[name] = change
        self.put(key, value)

    def array(self, name: str, **changes: Any) -> None:
        """Change the metadata of an array: `samples/label`."""
        self.edit(f"{name}/zarr.json", **changes)

    def root(self, **changes: Any) -> None:
        """Change the attributes of the store."""
        value = json.loads(self.file("zarr.json").read_bytes())
        value["attributes"]["logitstore"] |= changes
        self.put("zarr.json", value)

    def spec(self, part: str, **identity: Any) -> None:
        """Change what a part says that it is made from."""
        key = f"{part}/__logitstore__/spec.json"
        value = json.loads(self.file(key).read_bytes())
        value["identity"] |= identity
        self.put(key, value)

    def seal(self, part: str, change: Callable[[dict[str, Any]], Any]) -> None:
        """Change a seal when it is signed: after its digests were made to fit."""
        self.seals.setdefault(part, []).append(change)

    def log(self, change: Callable[[list[dict[str, Any]]], Any]) -> None:
        """Change the list of log records (from 1 on) when it is signed."""
        self.logs.append(change)

    def shard(self, key: str, data: bytes, given: Sequence[int] | None = None) -> None:
        """Replace the first shard of an array, and its size, sha256 and checksums in seal.bin.

        given: the checksums of its chunks, where these are not raw.
        """
        self.put(key, data)
        part, array, _ = key.rsplit("/", 2)
        seal = json.loads(self.file(f"{part}/__logitstore__/seal.json").read_bytes())
        table = bytearray(self.file(f"{part}/__logitstore__/seal.bin").read_bytes())
        offset, sums = 0, []
        for name, chunks in seal["arrays"]:
            if name == array:
                meta = json.loads(self.file(f"{part}/{array}/zarr.json").read_bytes())
                payload = _payload(meta)
                sums = list(given or ()) or [
                    google_crc32c.value(data[i * (payload + 4) :][:payload]) for i in range(chunks)
                ]
                struct.pack_into(
                    f"<Q32s{chunks}I", table, offset, len(data), hashlib.sha256(data).digest(), *sums
                )
            offset += 40 + 4 * chunks
        self.put(f"{part}/__logitstore__/seal.bin", bytes(table))
        record = f"{part}/__logitstore__/commits/0-0.json"
        value = json.loads(self.file(record).read_bytes())
        value["objects"][array] = {
            "size": len(data),
            "sha256": hashlib.sha256(data).hexdigest(),
            "crc32c": sums,
        }
        self.put(record, value)

    def block(self, part: str, array: str, values: Any) -> None:
        """Replace the first block of an array of rows by others, encoded as its writer does."""
        data = self.file(f"{part}/{array}/zarr.json").read_bytes()
        layout = ArrayLayout.from_bytes(array, data, array)
        encoder = ShardEncoder(layout)
        pieces = [*encoder.append(values), *encoder.finish()]
        self.shard(f"{part}/{layout.shard_key(0, 0)}", b"".join(pieces), encoder.crc32c)

    def small(self, part: str, array: str, data: bytes) -> None:
        """Replace the one chunk of a small array by other bytes and their crc32c."""
        (chunk,) = self.file(f"{part}/{array}").glob("c.*")
        self.put(f"{part}/{array}/{chunk.name}", data + google_crc32c.value(data).to_bytes(4, "little"))

    def sign(self) -> None:
        """Make every digest fit, from the seals to the last record of the log."""
        log = self.path / "__logitstore__/log"
        records: list[dict[str, Any]] = []
        while (file := log / f"{len(records) + 1}.json").exists():
            records.append(json.loads(file.read_bytes()))
            file.unlink()
        seals: dict[str, str] = {}
        for record in records:
            part = record["part"]
            record["seal"] = seals[part] = self._sign_part(part, seals.get("samples"))
        first = json.loads((log / "0.json").read_bytes())
        first["root"] = {key: _sha256(self.file(key), old) for key, old in first["root"].items()}
        previous = canonical_json(first)
        (log / "0.json").write_bytes(previous)
        for change in self.logs:
            records = change(records) or records
        for number, record in enumerate(records, 1):
            record["previous"] = hashlib.sha256(previous).hexdigest()
            previous = canonical_json(record)
            (log / f"{number}.json").write_bytes(previous)
        for act in self.last:
            act(self)

    def _sign_part(self, part: str, samples: str | None) -> str:
        key = f"{part}/__logitstore__/seal.json"
        if not self.file(key).is_file():
            return "0" * 64
        spec = self.file(f"{part}/__logitstore__/spec.json")
        for record in self.file(f"{part}/__logitstore__").glob("commits/*.json"):
            value = json.loads(record.read_bytes())
            del value["self"]
            value["spec"] = _sha256(spec, value["spec"])
            value["self"] = hashlib.sha256(canonical_json(value)).hexdigest()
            record.write_bytes(canonical_json(value))
        seal = json.loads(self.file(key).read_bytes())
        for name, old in seal["files"].items():
            seal["files"][name] = _sha256(self.file(f"{part}/{name}"), old)
        if seal["seal_bin"]:
            table = self.file(f"{part}/__logitstore__/seal.bin")
            old = seal["seal_bin"]["sha256"]
            seal["seal_bin"] = {
                "sha256": _sha256(table, old),
                "size": table.stat().st_size if table.exists() else 0,
            }
        seal["samples"] = samples if part != "samples" else None
        for change in self.seals.get(part, []):
            seal = change(seal) or seal
        data = seal if isinstance(seal, bytes) else canonical_json(seal)
        self.put(key, data)
        return hashlib.sha256(data).hexdigest()


def _sha256(path: Path, otherwise: str) -> str:
    """sha256 of what a reader would find, links followed; `otherwise` where that is no ordinary file."""
    try:
        found = path.stat()
    except OSError:
        return otherwise
    if not stat.S_ISREG(found.st_mode) or found.st_size > 1 << 30:
        return otherwise
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _payload(meta: dict[str, Any]) -> int:
    """Bytes of an inner chunk, or of what stands for one where the metadata are none of ours."""
    try:
        shape = meta["codecs"][0]["configuration"]["chunk_shape"]
        size = int("".join(c for c in meta["data_type"] if c.isdigit())) // 8
        for length in shape:
            size *= length
        return int(size)
    except (KeyError, TypeError, ValueError):
        return 40


REFUSED, UNREADABLE, HARMLESS, SHOWN = "refused", "unreadable", "harmless", "shown"


@dataclass(frozen=True)
class Kind:
    """One kind of hostile store."""

    name: str
    """What it is."""
    build: Callable[[Forge], Any]
    """Changes a good store."""
    outcome: str = REFUSED
    """REFUSED: a typed error, and `verify` says so. UNREADABLE: a typed error, of values in rows: `verify` compares
    the bytes of rows, not what they mean. HARMLESS: the numbers are those of the good store.
    SHOWN: read as it is, other strings in it, and none of them steers the terminal."""
    differs: tuple[str, ...] = ()
    """Steps of the sandbox that may give other numbers than the good store: those that were changed."""


class Kinds(list[Kind]):
    """Kinds of hostile stores."""

    def one(self, name: str, outcome: str = REFUSED, differs: tuple[str, ...] = ()) -> Callable[[Any], Any]:
        """Add what is decorated."""

        def decorate(build: Callable[[Forge], Any]) -> Callable[[Forge], Any]:
            self.append(Kind(name, build, outcome, differs))
            return build

        return decorate

    def add(
        self,
        name: str,
        build: Callable[[Forge], Any],
        outcome: str = REFUSED,
        differs: tuple[str, ...] = (),
    ) -> None:
        """Add one of a family."""
        self.append(Kind(name, build, outcome, differs))


def change_values(forge: Forge, key: str, **changes: Any) -> None:
    """Like `Forge.edit`, but None is a value."""
    forge.put(key, json.loads(forge.file(key).read_bytes()) | changes)


def list_file(forge: Forge, seal: dict[str, Any], part: str, key: str) -> None:
    seal["files"][key] = hashlib.sha256(forge.file(f"{part}/{key}").read_bytes()).hexdigest()
