"""A clustering as it is read: sets of classes, assignment, covariance and figures, each checked before it is used.

A store may come from somebody else, with every digest right. A class that does not exist, a matrix of another shape or a
figure of another type is an error here, with the file that states it.
"""

import math
from collections.abc import Mapping
from functools import cached_property
from typing import Any, Final

import numpy as np
from jaxtyping import Float32, Int64
from numpy.typing import NDArray

from ..format.constants import MAX_SET_MEMBERS, SPEC
from ..format.documents import beyond, invalid, shorten, table
from .root import Root
from .sealed_part import SealedPart
from .values import in_range

_CLASS_AXES: Final[Mapping[str, tuple[int, ...]]] = {
    "covariance": (0, 1),
    "assignment": (0,),
    "centres": (1,),
    "projected": (0,),
}
"""Axes of the arrays that are as long as the store has classes."""
_MOST_TEXT: Final = 1000
"""Characters of a text that a clustering states about itself."""


def check_shapes(part: SealedPart, num_classes: int) -> None:
    """Refuse arrays of a clustering that do not fit the classes, or each other. Raises ManifestInvalid, LimitExceeded."""
    where = str(part.folder.path)
    shapes = {name: layout.shape for name, layout in part.layouts.items()}
    for name, shape in shapes.items():
        wrong = [shape[axis] for axis in _CLASS_AXES.get(name, ()) if shape[axis] != num_classes]
        if wrong:
            raise invalid(f"{where}/{name}", f"{num_classes} classes", wrong[0])
    if "sets" in shapes:
        sets, members = shapes["sets"]
        if members > num_classes:
            raise invalid(f"{where}/sets", f"at most {num_classes} classes a set", members)
        if sets * members > MAX_SET_MEMBERS:
            raise beyond(f"{where}/sets", MAX_SET_MEMBERS, "classes in all sets", sets * members)
    counts = {name: shapes[name][0] for name in ("sets", "centres", "projected_centres") if name in shapes}
    if len(set(counts.values())) > 1:
        raise invalid(where, "as many sets as centres", counts)


class ClusteringReader:
    """The sets of a clustering, and what they were made from."""

    def __init__(self, root: Root, name: str) -> None:
        """Open a sealed clustering. Raises ManifestInvalid for arrays of shapes that do not fit the classes."""
        self.name = name
        """Its name."""
        self.part = root.part(f"clusters/{name}")
        """The sealed part."""
        self._classes = root.attributes.num_classes
        self._where = str(self.part.folder.path)
        self._spec = f"{self._where}/{SPEC}"
        check_shapes(self.part, self._classes)

    @property
    def num_sets(self) -> int | None:
        """Number of its clusters; None if it has neither sets nor centres."""
        shapes = (self.part.layouts[name].shape for name in ("sets", "centres") if name in self.part.layouts)
        return next((shape[0] for shape in shapes), None)

    @cached_property
    def sets(self) -> Int64[np.ndarray, "sets members"]:
        """The classes of each set. Raises PartNotFound, ManifestInvalid for a false class."""
        return in_range(self.part.small("sets"), 0, self._classes, f"{self._where}/sets")

    @cached_property
    def assignment(self) -> Int64[np.ndarray, " classes"]:
        """The cluster of each class. Raises PartNotFound, ManifestInvalid for a false cluster."""
        end = self._classes if self.num_sets is None else self.num_sets
        where = f"{self._where}/assignment"
        return in_range(self.part.small("assignment"), 0, end, where, "clusters")

    @cached_property
    def covariance(self) -> Float32[np.ndarray, "classes classes"]:
        """The covariance of the softened predictions. Raises PartNotFound, ManifestInvalid for no numbers."""
        matrix: NDArray[np.float32] = self.part.small("covariance")
        if not np.isfinite(matrix).all():
            raise invalid(f"{self._where}/covariance", "finite numbers", "NaN or infinity")
        return matrix

    def check(self) -> None:
        """Read everything. Raises ManifestInvalid for values that mean nothing."""
        for name in ("sets", "assignment", "covariance"):
            if name in self.part.layouts:
                getattr(self, name)
        _ = self.about, self.errors_inside

    @cached_property
    def about(self) -> dict[str, Any]:
        """Teachers, options and figures, as they were stated; None for those that were not.

        Raises ManifestInvalid for a value of another type.
        """
        identity, notes = self.part.spec.identity, self.part.spec.notes
        capture, captures = identity.get("capture"), identity.get("captures")
        named = capture.get("name") if isinstance(capture, Mapping) else None
        teacher = self._text(named, "capture: name")
        shares: dict[str, float | None] = {} if teacher is None else {teacher: 1.0}
        if isinstance(captures, Mapping):
            shares = {
                str(self._text(one, "captures")): self._number(said.get("share"), f"captures: {one}: share")
                for one, said in captures.items()
                if isinstance(said, Mapping)
            }
        return {
            "teacher": teacher,
            "teachers": shares,
            "temperature": self._number(identity.get("temperature"), "temperature"),
            "algorithm": self._text(identity.get("algorithm"), "algorithm"),
            "normalise": bool(identity.get("normalise")),
            "disjoint": bool(identity.get("disjoint")),
            "dimensions": self._count(identity.get("dimensions"), "dimensions"),
            "inertia": self._number(notes.get("inertia"), "inertia"),
            "projection_error": self._figures(
                "projection_error", ("classes",), ("rms", "largest", "expected")
            ),
        }

    @property
    def errors_inside(self) -> dict[str, Any] | None:
        """The counts of errors inside sets, as noted; None if none are. Raises ManifestInvalid for other values."""
        noted = self._figures("errors_inside", ("errors", "inside"), ("random_share",))
        if noted is None:
            return None
        more = self.part.spec.notes["errors_inside"]
        for key in ("draws", "random_deviation"):
            if key in more:
                check = self._count if key == "draws" else self._number
                noted[key] = check(more[key], f"errors_inside: {key}")
        return noted

    def _figures(self, key: str, counts: tuple[str, ...], numbers: tuple[str, ...]) -> dict[str, Any] | None:
        """Return a table of figures in the notes; None without it."""
        noted = self.part.spec.notes.get(key)
        if noted is None:
            return None
        noted = table(noted, self._spec, key)
        for name in (*counts, *numbers):
            if noted.get(name) is None:
                raise invalid(f"{self._spec}: {key}", f"a number {name}", shorten(sorted(noted)))
        found: dict[str, Any] = {name: self._count(noted[name], f"{key}: {name}") for name in counts}
        return found | {name: self._number(noted[name], f"{key}: {name}") for name in numbers}

    def _number(self, value: Any, key: str) -> float | None:
        number: float | None = value
        try:
            if number is None or (type(number) in (int, float) and math.isfinite(number)):
                return number
        except OverflowError:  # an integer beyond float64
            pass
        raise invalid(f"{self._spec}: {key}", "a number that a float64 holds", shorten(value))

    def _count(self, value: Any, key: str) -> int | None:
        if value is not None and not (type(value) is int and 0 <= value < 1 << 63):
            raise invalid(f"{self._spec}: {key}", "a number of at least 0", shorten(value))
        return value

    def _text(self, value: Any, key: str) -> str | None:
        if value is not None and not (isinstance(value, str) and len(value) <= _MOST_TEXT):
            raise invalid(
                f"{self._spec}: {key}", f"a text of at most {_MOST_TEXT} characters", shorten(value)
            )
        return value
