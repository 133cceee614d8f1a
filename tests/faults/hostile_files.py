"""Hostile files, links, seals and values, put into a store to harm the process that opens it.

Seals and logs that name other files, strings that steer a terminal, classes that are none, links, pipes and devices,
and addresses for a victim to open. Everything is signed: see `forge`.
"""

import hashlib
import os
import socket
import stat
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from .forge import (
    GADGET,
    HARMLESS,
    LOGITS,
    SECRET,
    SHARD,
    SHOWN,
    UNREADABLE,
    Forge,
    Kinds,
)

KINDS: Final = Kinds()

# Seals and the log


def _seal(name: str, change: Callable[[dict[str, Any]], Any], part: str = "teachers/wide") -> None:
    KINDS.add(f"seal: {name}", lambda forge: forge.seal(part, change))


def _listing(key: str) -> Callable[[dict[str, Any]], None]:
    return lambda seal: seal["files"].update({key: hashlib.sha256(SECRET).hexdigest()})


for _key in ("../../../outside/secret", "/etc/hostname", "a\0b", "x" * 300, "a//b", "./zarr.json", "..", "",
             "logits/../../../../outside/secret", "..\\..\\..\\outside\\secret", "C:\\secret", "con", "nul.txt",
             "Zarr.json", "LOGITS/zarr.json", "x/" * 3000 + "x", "a\x1b[31m", "~/secret", "$HOME/secret",
             "file:///etc/hostname", "é\u0301"):  # fmt: skip
    _seal(f"lists {_key[:40]!r}", _listing(_key))
for _key in ("../../../outside/zarr.json", "../zarr.json", "logits/inner/zarr.json", "__logitstore__/zarr.json",
             "Logits/zarr.json", "con/zarr.json", "a\x1b/zarr.json", "x" * 200 + "/zarr.json"):  # fmt: skip
    _seal(f"lists the array {_key[:40]!r}", _listing(_key))
_seal("arrays twice", lambda seal: seal["arrays"].append(seal["arrays"][0]))
_seal("an array that is none", lambda seal: seal["arrays"].append(["evil", 1]))
_seal("an array of no rows among those of rows", lambda seal: seal["arrays"].append(["classes", 1]))
_seal("an array left out", lambda seal: seal["arrays"].pop())
_seal("no arrays", lambda seal: seal.update(arrays=[], views=0, blocks=0, seal_bin=None))
_seal("2**40 chunks a shard", lambda seal: seal["arrays"][0].__setitem__(1, 1 << 40))
_seal("0 chunks a shard", lambda seal: seal["arrays"][0].__setitem__(1, 0))
_seal("2**50 views", lambda seal: seal.update(views=1 << 50))
_seal("2**50 blocks", lambda seal: seal.update(blocks=1 << 50))
_seal("no blocks", lambda seal: seal.update(blocks=0))
_seal("one block less", lambda seal: seal.update(blocks=2))
_seal("seal.bin of 2**60 bytes", lambda seal: seal["seal_bin"].update(size=1 << 60))
_seal("no seal.bin", lambda seal: seal.update(seal_bin=None))
_seal("files of a list", lambda seal: seal.update(files=[["zarr.json", "0" * 64]]))
_seal("files without the metadata", lambda seal: seal.update(files={}))
_seal("digests in capitals", lambda seal: seal.update(files={k: v.upper() for k, v in seal["files"].items()}))
_seal("arrays of text", lambda seal: seal.update(arrays="logits"))
_seal("4,000 files", lambda seal: seal["files"].update({f"extra/c.{n}": "0" * 64 for n in range(4_000)}))
KINDS.add("seal: of nothing", lambda forge: forge.seal("teachers/wide", lambda _: b"null\n"))
KINDS.add(
    "seal: no list of a small array's chunk",
    lambda f: f.seal("samples", lambda s: s["files"].pop("class_name/c.0.0") and None),
)


@KINDS.one("seal: a table of zeros for 2**50 rows")
def _(forge: Forge) -> None:
    forge.put("teachers/wide/__logitstore__/seal.bin", bytes(3 << 20))


for _part in ("teachers/../../outside", "../outside", "/etc", "teachers/\x1b[31m", "teachers/" + "x" * 300, "teachers/",
              "teachers/Wide", "samples/..", "clusters/wide-2x2/../../teachers/wide", "", "models/wide"):  # fmt: skip
    KINDS.add(
        f"log: a part named {_part[:40]!r}",
        lambda forge, part=_part: forge.log(lambda r: r[1].update(part=part)),
    )
KINDS.add("log: a part twice", lambda forge: forge.log(lambda records: [*records, dict(records[1])]))
KINDS.add("log: a part that is a number", lambda forge: forge.log(lambda records: records[1].update(part=7)))
KINDS.add("log: a seal that is a list", lambda forge: forge.log(lambda records: records[1].update(seal=[])))
KINDS.add(
    "log: 4,200 parts",
    lambda forge: forge.log(
        lambda r: [*r, *({"part": f"teachers/t{n}", "seal": "0" * 64} for n in range(4200))]
    ),
)
KINDS.add(
    "log: a record of a number of 25 digits",
    lambda forge: forge.put("__logitstore__/log/" + "9" * 25 + ".json", {"part": "samples"}),
    HARMLESS,
)
KINDS.add(
    "log: a part that is not there",
    lambda forge: forge.log(lambda r: [*r, {"part": "teachers/none", "seal": "0" * 64}]),
)

# Values

_PROVENANCE = ("wide: provenance",)


def _text(forge: Forge, number: int, text: bytes) -> None:
    """Change the name of a class."""
    data = forge.file("samples/class_name/c.0.0").read_bytes()[:-4]
    width = len(data) // 5
    forge.small(
        "samples",
        "class_name",
        data[: number * width] + text.ljust(width, b"\0") + data[(number + 1) * width :],
    )


_NAMES = ("names",)
for _name, _bytes in {
    "ANSI colours": b"\x1b[31mred", "a window title": b"\x1b]0;x\x07", "a line end": b"a\nexit 0", "a return": b"a\rclean",
    "C1 control": "\x9b31m".encode(), "bidirectional": "\u202eabc".encode(), "a bell": b"\x07\x08", "a line separator": "\u2028".encode(),
}.items():  # fmt: skip
    KINDS.add(f"class name: {_name}", lambda forge, b=_bytes: _text(forge, 1, b), SHOWN, _NAMES)
KINDS.add("class name: no UTF-8", lambda forge: _text(forge, 1, b"\xff\xfe"))
KINDS.add("class name: half a character", lambda forge: _text(forge, 1, b"a" + "clà".encode()[:3]))
KINDS.add(
    "provenance: escapes in keys and values",
    lambda forge: forge.spec(
        "teachers/wide", **{"\x1b[2J": "\x1b]8;;http://x\x07y", "a\nb": {"\u202e": "\x9b31m"}}
    ),
    SHOWN,
    _PROVENANCE,
)


@KINDS.one("ids that are no UTF-8", UNREADABLE)
def _(forge: Forge) -> None:
    data = forge.file("samples/id/c.0.0").read_bytes()
    forge.shard("samples/id/c.0.0", b"\xff" + data[1:])


def _integers(part: str, array: str, values: list[int]) -> Callable[[Forge], None]:
    return lambda forge: forge.small(part, array, struct.pack(f"<{len(values)}q", *values))


KINDS.add("classes out of range", _integers("teachers/wide", "classes", [0, 1, 2, 3, 1 << 62]))
KINDS.add("classes below -1", _integers("teachers/wide", "classes", [0, 1, 2, 3, -(1 << 62)]))
KINDS.add("sets out of range", _integers("clusters/wide-2x2", "sets", [0, 1, 2, 5]))
KINDS.add("sets below 0", _integers("clusters/wide-2x2", "sets", [0, 1, 2, -1]))
KINDS.add("a small chunk that is too short", lambda forge: forge.put("samples/class_name/c.0.0", b"short"))
KINDS.add(
    "a small chunk with another checksum",
    lambda f: f.put("samples/class_name/c.0.0", f.file("samples/class_name/c.0.0").read_bytes()[:-1] + b"\0"),
)


@KINDS.one("labels out of range", UNREADABLE)
def _(forge: Forge) -> None:
    data = forge.file("samples/label/c.0").read_bytes()
    forge.shard("samples/label/c.0", struct.pack("<q", 1 << 40) + data[8:])


# Links, pipes, devices


def _instead(key: str, make: Callable[[Path, Forge], Any]) -> Callable[[Forge], None]:
    """A builder that moves something out of the store and puts what `make` makes in its place."""

    def swap(forge: Forge) -> None:
        place, moved = forge.file(key), forge.outside / "moved"
        place.rename(moved)
        make(place, forge)

    return lambda forge: forge.last.append(swap)


def _link_to_moved(place: Path, forge: Forge) -> None:
    place.symlink_to(forge.outside / "moved")


for _key in (SHARD, f"{LOGITS}/zarr.json", "zarr.json", "samples/class_name/c.0.0", "teachers/wide/__logitstore__/seal.json",
             "teachers/wide/__logitstore__/seal.bin", "teachers/wide/__logitstore__/spec.json", "__logitstore__/log/2.json"):  # fmt: skip
    KINDS.add(f"a link in place of {_key}", _instead(_key, _link_to_moved))
for _key in (
    LOGITS,
    "teachers/wide",
    "teachers",
    "samples",
    "samples/__logitstore__",
    "__logitstore__",
    "__logitstore__/log",
):
    KINDS.add(f"a link in place of the folder {_key}", _instead(_key, _link_to_moved))
KINDS.add(
    "a relative link out of the store",
    _instead(SHARD, lambda place, _: place.symlink_to("../../../../outside/moved")),
)
KINDS.add(
    "a link within the store",
    _instead(
        SHARD, lambda place, f: (os.link(f.outside / "moved", f.file(f"{LOGITS}/x")), place.symlink_to("x"))
    ),
)
KINDS.add("a link to itself", _instead(SHARD, lambda place, _: place.symlink_to(place.name)))
KINDS.add(
    "a link to /dev/zero", _instead(f"{LOGITS}/zarr.json", lambda place, _: place.symlink_to("/dev/zero"))
)
KINDS.add(
    "a link to a file of the system",
    _instead("samples/class_name/c.0.0", lambda place, _: place.symlink_to("/etc/hostname")),
)
KINDS.add(
    "a hard link to a file outside",
    _instead(SHARD, lambda place, f: os.link(f.outside / "moved", place)),
    HARMLESS,
)
KINDS.add("a hard link to a secret", _instead(SHARD, lambda place, f: os.link(f.outside / "secret", place)))
for _key in (
    SHARD,
    f"{LOGITS}/zarr.json",
    "zarr.json",
    "__logitstore__/log/1.json",
    "teachers/wide/__logitstore__/seal.bin",
):
    KINDS.add(f"a pipe in place of {_key}", _instead(_key, lambda place, _: os.mkfifo(place)))
KINDS.add("a folder in place of a shard", _instead(SHARD, lambda place, _: place.mkdir()))
KINDS.add("a folder in place of zarr.json", _instead(f"{LOGITS}/zarr.json", lambda place, _: place.mkdir()))
KINDS.add("a file in place of a folder", _instead(LOGITS, lambda place, _: place.write_bytes(GADGET)))


def _socket(place: Path, _: Forge) -> None:
    short = Path(f"/proc/self/fd/{os.open(place.parent, os.O_RDONLY)}")
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(str(short / place.name))
    os.close(int(short.name))


KINDS.add("a socket in place of a shard", _instead(SHARD, _socket))


def _device(minor: int) -> Callable[[Path, Forge], None]:
    return lambda place, _: os.mknod(place, 0o666 | stat.S_IFCHR, os.makedev(1, minor))


if os.geteuid() == 0:
    KINDS.add("/dev/zero itself in place of a shard", _instead(SHARD, _device(5)))
    KINDS.add("/dev/zero itself in place of zarr.json", _instead(f"{LOGITS}/zarr.json", _device(5)))
    KINDS.add("/dev/full itself in place of a record", _instead("__logitstore__/log/1.json", _device(7)))

# Names that some file systems take for others

for _name in (
    "teachers/WIDE",
    "teachers/con",
    "teachers/nul",
    "teachers/wide ",
    "teachers/wide.",
    "teachers/wi\x1b[31mde",
):
    KINDS.add(
        f"a folder {_name!r} beside the part",
        lambda f, n=_name: f.put(f"{n}/__logitstore__/spec.json", b"{}\n"),
        HARMLESS,
    )


LOCATIONS: Final = (
    "http://127.0.0.1:9/s.zarr?key=word", "https://user:word@localhost/store.zarr", "s3://user:word@bucket/store.zarr",
    "filecache::s3://bucket/s", "file://host/store.zarr", "file://localhost@evil/x", "simplecache::http://127.0.0.1:9/s.zip",
    "zip://::http://127.0.0.1:9/s.zip", "zip:///tmp/x.zip", "memory://store#x", "ftp://127.0.0.1/x", "github://a:b@c/x",
    "reference::file:///etc/hostname", "icechunk://x", "data:application/json,{}", "nothing/../nothing\x1b[31m", "a\0b", "",
)  # fmt: skip
"""What a victim may be told to open, and nothing is asked of any server. (Plain URLs are opened: tests/storage/test_remote.py.)"""
