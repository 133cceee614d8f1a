"""Hostile files of weights and hostile factory strings.

Each checkpoint is a function that writes one; most of them claim to be the weights of `model()`. A gadget that
runs makes a file named `GADGET_RAN`.
"""

import io
import json
import os
import pickle
import struct
import tarfile
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn

from logitstore.pipeline.models.networks import mlp

GADGET_RAN: Final = "the-gadget-ran"


def model(seed: int = 0) -> nn.Module:
    """The module that weights are loaded into."""
    torch.manual_seed(seed)
    return mlp([4], input_shape=(2, 2), num_classes=3)


class Gadget:
    """Touches a file when it is unpickled."""

    def __init__(self, folder: Path, how: str = "system") -> None:
        self._file = folder / GADGET_RAN
        self._how = how

    def __reduce__(self) -> tuple[Any, ...]:
        if self._how == "system":
            return os.system, (f"touch '{self._file}'",)
        if self._how == "open":
            return open, (str(self._file), "w")
        return exec, (f"open({str(self._file)!r}, 'w').close()",)


Build = Callable[[Path], None]
"""Writes a checkpoint at a path, whose folder is its own."""
SAFETENSORS: Final[dict[str, Build]] = {}
"""Checkpoints that are named `.safetensors`."""
PICKLES: Final[dict[str, Build]] = {}
"""Checkpoints that are named `.pt`, read where the user allows it."""


def good_state() -> dict[str, torch.Tensor]:
    """The state dict of the model."""
    return dict(model(seed=1).state_dict())


def header_and_data(change: Callable[[dict[str, Any]], Any] | None = None) -> tuple[bytes, bytes]:
    """The two parts of a good safetensors file; the header changed as a table where that is said."""
    import safetensors.torch

    content = safetensors.torch.save(good_state())
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    if change is not None:
        header = change(header) or header
    return json.dumps(header).encode(), content[8 + size :]


def write(path: Path, header: bytes, data: bytes, stated: int | None = None) -> None:
    """A safetensors file of a header and data; `stated` is the size that it gives of its header."""
    path.write_bytes(struct.pack("<Q", len(header) if stated is None else stated) + header + data)


def _changed(change: Callable[[dict[str, Any]], Any]) -> Build:
    return lambda path: write(path, *header_and_data(change))


def _offsets(name: str, offsets: list[Any]) -> Build:
    return _changed(lambda header: header[name].update(data_offsets=offsets))


def _padded(megabytes: int) -> Build:
    def build(path: Path) -> None:
        header, data = header_and_data()
        write(path, header.ljust(megabytes << 20), data)

    return build


def _raw_header(change: Callable[[bytes], bytes]) -> Build:
    def build(path: Path) -> None:
        header, data = header_and_data()
        write(path, change(header), data)

    return build


def _bytes(change: Callable[[bytes], bytes]) -> Build:
    def build(path: Path) -> None:
        header, data = header_and_data()
        path.write_bytes(change(struct.pack("<Q", len(header)) + header + data))

    return build


def _sparse(path: Path) -> None:
    """A file of a tebibyte of zeros, of no bytes on the disk, that says that it is one tensor."""
    size = 1 << 40
    header = json.dumps(
        {"hidden.0.weight": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}
    ).encode()
    write(path, header, b"")
    with path.open("r+b") as file:
        file.truncate(8 + len(header) + size)


_FIRST = b'{"head.bias": {"dtype": "F32", "shape": [3], "data_offsets": [0, 12]}, '
SAFETENSORS |= {
    "nothing": lambda path: path.write_bytes(b""),
    "a header longer than the file": lambda path: write(path, *header_and_data(), stated=1 << 40),
    "a header of 2**64 - 1 bytes": lambda path: write(path, *header_and_data(), stated=2**64 - 1),
    "a header of 100 MB": _padded(95),
    "a header of 32 MB": _padded(32),
    "truncated data": _bytes(lambda data: data[:-5]),
    "truncated header": _bytes(lambda data: data[:40]),
    "more data than tensors": _bytes(lambda data: data + b"more"),
    "NaN in the header": _changed(lambda header: header["head.bias"].update(shape=[float("nan")])),
    "a number beyond float64": _raw_header(lambda header: header.replace(b"[3]", b"[1e999]", 1)),
    "a negative shape": _changed(lambda header: header["head.bias"].update(shape=[-3])),
    "a shape of 2**62": _changed(lambda header: header["head.bias"].update(shape=[1 << 62])),
    "a shape whose product overflows": _changed(
        lambda header: header["head.bias"].update(shape=[1 << 33, 1 << 33])
    ),
    "a tensor twice": _raw_header(lambda header: header.replace(b"{", _FIRST, 1)),
    "overlapping offsets": _offsets("head.weight", [0, 48]),
    "offsets beyond the file": _offsets("head.bias", [1 << 40, (1 << 40) + 12]),
    "offsets backwards": _offsets("head.bias", [12, 0]),
    "an unknown dtype": _changed(lambda header: header["head.bias"].update(dtype="PICKLE")),
    "complex numbers": _changed(lambda header: header["head.bias"].update(dtype="C64")),
    "a header that is a list": _raw_header(lambda header: b"[" + header + b"]"),
    "a header of 100,000 levels": _raw_header(lambda _: b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
    "metadata that are no text": _changed(lambda header: header.update(__metadata__={"a": [1]})),
    "a name with escapes": _changed(lambda header: header.update({"\x1b[2J\n../x": header.pop("head.bias")})),
    "a header that is no UTF-8": _raw_header(lambda header: header.replace(b"head", b"h\xffad")),
    "a tebibyte of zeros": _sparse,
    "a pickle of another name": lambda path: path.write_bytes(pickle.dumps(Gadget(path.parent))),
    "torch's format of another name": lambda path: torch.save(good_state(), path),
    "a link to itself": lambda path: path.symlink_to(path.name),
    "a pipe": lambda path: os.mkfifo(path),
    "a folder": lambda path: path.mkdir(),
}


def _pickled(protocol: int, how: str) -> Build:
    return lambda path: path.write_bytes(pickle.dumps(Gadget(path.parent, how), protocol))


def _saved(make: Callable[[Path], Any], **options: Any) -> Build:
    """What torch.save makes of an object."""
    return lambda path: torch.save(make(path), path, **options)


def _rezipped(change: Callable[[str, bytes], bytes], compression: int = zipfile.ZIP_STORED) -> Build:
    """A good file of torch's, some members of its archive changed."""

    def build(path: Path) -> None:
        whole = io.BytesIO()
        torch.save(good_state(), whole)
        with zipfile.ZipFile(whole) as old, zipfile.ZipFile(path, "w", compression) as new:
            for name in old.namelist():
                new.writestr(name, change(name, old.read(name)))

    return build


def _data_pickle(content: Callable[[Path], bytes]) -> Build:
    """A good file of torch's with another pickle in it."""

    def build(path: Path) -> None:
        data = content(path)
        _rezipped(lambda name, old: data if name.endswith("data.pkl") else old)(path)

    return build


def _legacy_tar(path: Path) -> None:
    with tarfile.open(path, "w") as archive:
        for name, value in (
            ("sys_info", {}),
            ("pickle", Gadget(path.parent)),
            ("storages", 0),
            ("tensors", 0),
        ):
            data = pickle.dumps(value, 2)
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))


def _script(path: Path) -> None:
    # As torch.jit.save would, which is deprecated: a folder of code beside the pickle makes it TorchScript.
    def build(name: str, old: bytes) -> bytes:
        return old

    _rezipped(build)(path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("archive/constants.pkl", pickle.dumps((), 2))
        archive.writestr("archive/code/__torch__.py", "class M(Module):\n  pass\n")


def _storage_lie(path: Path) -> None:
    """Tensors that say that their storage is larger than the record that holds it."""
    whole = io.BytesIO()
    torch.save({"head.bias": torch.zeros(7)}, whole)
    with zipfile.ZipFile(whole) as old, zipfile.ZipFile(path, "w") as new:
        for name in old.namelist():
            data = old.read(name)
            if name.endswith("data.pkl"):
                assert data.count(b"K\x07") >= 2, "seven elements, in the storage and in the tensor"
                data = data.replace(b"K\x07", b"J\x00\x00\x00\x10")
            new.writestr(name, data)


def _exchanged_names(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("../../data.pkl", pickle.dumps(Gadget(path.parent), 2))
        archive.writestr("../../version", "3")


def _cut(path: Path) -> None:
    torch.save(good_state(), path)
    os.truncate(path, 300)


PICKLES |= {
    "a gadget that calls system": _pickled(2, "system"),
    "a gadget of protocol 4": _pickled(4, "exec"),
    "a gadget of protocol 5 that opens": _pickled(5, "open"),
    "a gadget among the tensors": _saved(lambda path: {**good_state(), "extra": Gadget(path.parent)}),
    "a gadget in torch's older format": _saved(
        lambda path: {"a": Gadget(path.parent)}, _use_new_zipfile_serialization=False
    ),
    "a gadget in an archive": _data_pickle(lambda path: pickle.dumps(Gadget(path.parent, "exec"), 2)),
    "the oldest format, a tar": _legacy_tar,
    "TorchScript": _script,
    "a storage that is too short": _storage_lie,
    "an archive with names that lead out": _exchanged_names,
    "an archive with a member that is a bomb": _rezipped(
        lambda name, old: bytes(64 << 20) if name.endswith("data.pkl") else old, zipfile.ZIP_DEFLATED
    ),
    "an archive that is cut": _cut,
    "the module itself": _saved(lambda _: model()),
    "a list": _saved(lambda _: list(good_state().values())),
    "numbers in place of tensors": _saved(lambda _: dict.fromkeys(good_state(), 1.0)),
    "names that are numbers": _saved(lambda _: dict(enumerate(good_state().values()))),
    "tensors that are not there": _saved(lambda _: {n: t.to("meta") for n, t in good_state().items()}),
    "sparse tensors": _saved(lambda _: {n: t.to_sparse() for n, t in good_state().items()}),
    "complex tensors": _saved(lambda _: {n: t.to(torch.complex64) for n, t in good_state().items()}),
    "safetensors of another name": lambda path: write(path, *header_and_data()),
    "opcodes that never end": lambda path: path.write_bytes(b"\x80\x02" + b"(" * 200_000),
    "a memo of 2**31": lambda path: path.write_bytes(b"\x80\x02]r\xff\xff\xff\x7f."),
    "a string of 2**62 bytes": lambda path: path.write_bytes(
        b"\x80\x04\x8d" + struct.pack("<Q", 1 << 62) + b"."
    ),
    "an ordered dict with attributes": _saved(lambda path: _with_attribute(path)),
}


def _with_attribute(path: Path) -> OrderedDict[str, Any]:
    state = OrderedDict(good_state())
    state.extra = Gadget(path.parent)  # type: ignore[attr-defined]
    return state


MALFORMED: Final = (
    "os.system", "os:system()", "os:system;ls", "os:system #", " os:system", "os:system\n", "os:\nsystem", "os::system",
    ".os:system", "..os:system", "os.:system", "os..path:join", "/tmp/evil.py:make", "../evil:make", "evil.py/x:make",
    "logitstore.pipeline.models:mlp.__globals__", "logitstore.pipeline.models:mlp().x", "builtins:__import__",
    "os:__getattribute__", "оs:system", "os:systеm", "ｏｓ:system", "os\u200b:system", "os:system\0", "__import__('os'):x",
    "http://host/evil:make", "file:///tmp/evil:make", "lambda:0", "os:system:x", "%s:%s", "{os}:{system}", "a" * 400 + ":b",
)  # fmt: skip
"""Strings that are no factory: nothing is imported for them."""
