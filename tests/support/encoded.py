"""Stores with a capture of each encoding."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from logitstore.storage.encodings.error_budget import ErrorBudget
from support import stores
from support.stores import Made, Teacher

ENCODINGS: Mapping[str, Any] = {
    "codes": {"max_kl": 1e-3, "min_temperature": 1.5},
    "bytes": ErrorBudget(1e-2, dtype="uint8"),
    "shifted": ErrorBudget(1e-4, shift=3),
    "largest": {"top_k": 4},
    "plain": "float16",
}


CLASSES = 30


def make(path: Path, captures: tuple[str, ...] = tuple(ENCODINGS), **arguments: Any) -> Made:
    """Make a store with a capture of each encoding, two views each."""
    teachers = {name: Teacher(views=2, encoding=ENCODINGS[name]) for name in captures}
    return stores.make(path, classes=CLASSES, teachers=teachers, **arguments)
