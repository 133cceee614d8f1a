"""A bucket in memory, as far as copies of stores use one: objects that are put once, under names that are free."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray

from logitstore.storage.backends.place import Place, check_size
from logitstore.storage.backends.remote_folder import Address
from logitstore.storage.backends.writable import ENDLESS
from logitstore.storage.format.constants import MAX_JSON_BYTES


@dataclass
class Contents:
    """The objects of a bucket, and what was asked of it."""

    objects: dict[str, bytes] = field(default_factory=dict)
    """By key."""
    puts: list[str] = field(default_factory=list)
    """Keys of all puts, as they came."""
    wasted: list[str] = field(default_factory=list)
    """Keys of puts whose name was taken."""
    before_put: Callable[[str], None] = lambda key: None
    """Called before each put."""
    lock: threading.Lock = field(default_factory=threading.Lock)


class Bucket(Place):
    """A folder of a bucket, which can be written to (`Writable`)."""

    is_remote = True
    is_held = False

    def __init__(
        self, contents: Contents | None = None, inside: tuple[str, ...] = (), can_list: bool = True
    ) -> None:
        self.contents = contents or Contents()
        self._inside = inside
        self.can_list = can_list
        self.path: PurePath = Address("mem://bucket").joinpath(*inside)

    def sub(self, name: str) -> "Bucket":
        return Bucket(self.contents, (*self._inside, *name.split("/")), self.can_list)

    def _key(self, key: str) -> str:
        return "/".join((*self._inside, *([key] if key else [])))

    def _object(self, key: str) -> bytes:
        try:
            return self.contents.objects[self._key(key)]
        except KeyError:
            raise FileNotFoundError(key) from None

    def kind(self) -> str:
        return "a folder" if self.contents.objects else "nothing"

    def read(self, key: str, most: int = MAX_JSON_BYTES) -> bytes:
        check_size(len(self._object(key)), most, self.path / key)
        return self._object(key)

    def read_range(self, key: str, offset: int, length: int) -> tuple[bytes, int]:
        return self._object(key)[offset : offset + length], len(self._object(key))

    def read_through(
        self,
        key: str,
        offset: int,
        length: int,
        take: Callable[[NDArray[np.uint8]], None],
        place: Callable[[], NDArray[np.uint8] | None] = lambda: None,
    ) -> int:
        take(np.frombuffer(self._object(key)[offset : offset + length], np.uint8))
        return len(self._object(key))

    def size(self, key: str) -> int:
        return len(self._object(key))

    def exists(self, key: str) -> bool:
        return self._key(key) in self.contents.objects

    def names(self, prefix: str = "") -> list[str]:
        begin = f"{self._key(prefix)}/".lstrip("/")
        with self.contents.lock:
            keys = list(self.contents.objects)
        assert self.can_list or prefix.endswith("log")
        return sorted({key.removeprefix(begin).partition("/")[0] for key in keys if key.startswith(begin)})

    def files(self) -> list[str]:
        begin = f"{self._key('')}/".lstrip("/")
        return sorted(key.removeprefix(begin) for key in self.contents.objects if key.startswith(begin))

    def put_new(self, key: str, data: bytes) -> bool:
        name = self._key(key)
        self.contents.before_put(name)
        with self.contents.lock:
            self.contents.puts.append(name)
            if name in self.contents.objects:
                self.contents.wasted.append(name)
                return self.contents.objects[name] == data
            self.contents.objects[name] = bytes(data)
            return True

    def hold(self, *, make: bool = False) -> "Bucket":
        return self

    def let_go(self) -> None:
        pass

    def check_in_place(self) -> None:
        pass

    def stage(self, *keys: str) -> NoReturn:
        raise NotImplementedError

    def prove_exclusive(self) -> None:
        pass

    def sync(self, key: str) -> None:
        pass

    def tidy(self) -> None:
        pass

    def free_bytes(self) -> int:
        return ENDLESS
