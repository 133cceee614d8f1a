"""A clustering as it is read: sets of classes, assignment, covariance and figures, each checked before it is used.

A store may come from somebody else, with every digest right. A class that does not exist, a matrix of another shape or a
figure of another type is an error here, with the file that states it. `check_clustering` applies the same checks to a
clustering that is to be sealed.
"""

import math
from collections.abc import Mapping
from functools import cached_property
from typing import Any, Final

import numpy as np
from jaxtyping import Float32, Int64
from numpy.typing import NDArray

from ..checks import hidden_by_mask
from ..errors import BadDataError, LimitExceeded, ManifestInvalid
from ..format.constants import MAX_SET_MEMBERS, SPEC
from ..format.documents import beyond, invalid, shorten, table
from ..format.layouts import DIMENSIONS, DTYPES_OF
from .root import Root
from .sealed_part import SealedPart, Spec
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


def check_shapes(shapes: Mapping[str, tuple[int, ...]], num_classes: int, where: str) -> None:
    """Refuse shapes of arrays that do not fit the classes, or each other. Raises ManifestInvalid, LimitExceeded."""
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


def shapes_of(part: SealedPart) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the arrays of a part."""
    return {name: layout.shape for name, layout in part.layouts.items()}


def check_sets(sets: NDArray[Any], num_classes: int, where: str) -> NDArray[Any]:
    """Return sets of classes (set, member). Raises ManifestInvalid unless each ascends and holds a class once.

    Searches in a set halve it: in another order they would miss classes.
    """
    in_range(sets, 0, num_classes, where)
    falls = np.flatnonzero((sets[:, 1:] <= sets[:, :-1]).any(axis=1))
    if len(falls):
        first = int(falls[0])
        raise invalid(f"{where}: set {first}", "ascending classes, each once", sets[first].tolist())
    return sets


def check_assignment(
    assignment: NDArray[Any], shapes: Mapping[str, tuple[int, ...]], num_classes: int, where: str
) -> NDArray[Any]:
    """Return the cluster of each class. shapes: of the clustering. Raises ManifestInvalid for a false cluster."""
    num_sets = _num_sets(shapes)
    return in_range(assignment, 0, num_classes if num_sets is None else num_sets, where, "clusters")


def check_finite(values: NDArray[Any], where: str) -> NDArray[Any]:
    """Return numbers. Raises ManifestInvalid for NaN and infinity."""
    if not np.isfinite(values).all():
        raise invalid(where, "finite numbers", "NaN or infinity")
    return values


def _num_sets(shapes: Mapping[str, tuple[int, ...]]) -> int | None:
    named = (name for name in ("sets", "centres", "projected_centres") if name in shapes)
    return next((shapes[name][0] for name in named), None)


def check_clustering(
    arrays: Mapping[str, NDArray[Any]], spec: Spec, num_classes: int, where: str
) -> dict[str, NDArray[Any]]:
    """Return the arrays of a clustering in the dtypes of the format; `spec` is what it states about itself.

    Raises BadDataError for whatever a reader would refuse, and for values that a cast would change.
    """
    try:
        cast = {name: _cast(name, values, f"{where}/{name}") for name, values in arrays.items()}
        shapes = {name: values.shape for name, values in cast.items()}
        check_shapes(shapes, num_classes, where)
        for name, values in cast.items():
            place = f"{where}/{name}"
            if name == "sets":
                check_sets(values, num_classes, place)
            elif name == "assignment":
                check_assignment(values, shapes, num_classes, place)
            else:
                check_finite(values, place)
        stated = Stated(spec, where)
        _ = stated.about, stated.errors_inside
    except (ManifestInvalid, LimitExceeded) as error:
        remedy = "correct the clustering; nothing was written"
        raise BadDataError(error.where, expected=error.expected, found=error.found, remedy=remedy) from None
    return cast


def _cast(name: str, given: Any, where: str) -> NDArray[Any]:
    """Return an array in its dtype of the format. Raises ManifestInvalid for another name, form or kind of numbers."""
    dimensions = DIMENSIONS["clustering"].get(name)
    if dimensions is None:
        raise invalid(where, f"one of the arrays {', '.join(DIMENSIONS['clustering'])}", repr(name))
    try:
        values = np.asarray(given)
    except ValueError:  # rows of several lengths
        raise invalid(where, f"an array ({', '.join(dimensions)})", shorten(given)) from None
    dtype = np.dtype(DTYPES_OF[name])
    if (hidden := hidden_by_mask(given)) is not None:
        raise invalid(where, "values without a mask", hidden)
    if values.dtype.kind not in ("iu" if dtype.kind == "i" else "iuf"):
        kind = "integers" if dtype.kind == "i" else "real numbers"
        raise invalid(where, kind, values.dtype)
    if values.ndim != len(dimensions) or 0 in values.shape:
        raise invalid(where, f"an array ({', '.join(dimensions)}) with elements", f"shape {values.shape}")
    if values.dtype == np.uint64 and dtype.kind == "i":
        in_range(values, 0, 1 << 63, where, "numbers")
    with np.errstate(over="ignore"):  # infinity is refused
        return values.astype(dtype)


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
        self._shapes = shapes_of(self.part)
        check_shapes(self._shapes, self._classes, self._where)

    @property
    def num_sets(self) -> int | None:
        """Number of its clusters; None if it has neither sets nor centres."""
        return _num_sets(self._shapes)

    @cached_property
    def sets(self) -> Int64[np.ndarray, "sets members"]:
        """The classes of each set, ascending. Raises PartNotFound, ManifestInvalid for false classes."""
        return check_sets(self.part.small("sets"), self._classes, f"{self._where}/sets")

    @cached_property
    def assignment(self) -> Int64[np.ndarray, " classes"]:
        """The cluster of each class. Raises PartNotFound, ManifestInvalid for a false cluster."""
        where = f"{self._where}/assignment"
        return check_assignment(self.part.small("assignment"), self._shapes, self._classes, where)

    @cached_property
    def covariance(self) -> Float32[np.ndarray, "classes classes"]:
        """The covariance of the softened predictions. Raises PartNotFound, ManifestInvalid for no numbers."""
        return check_finite(self.part.small("covariance"), f"{self._where}/covariance")

    def check(self) -> None:
        """Read everything. Raises ManifestInvalid for values that mean nothing."""
        for name in self.part.layouts:
            if name in ("sets", "assignment", "covariance"):
                getattr(self, name)
            else:
                check_finite(self.part.small(name), f"{self._where}/{name}")
        _ = self.about, self.errors_inside

    @cached_property
    def _stated(self) -> "Stated":
        return Stated(self.part.spec, f"{self._where}/{SPEC}")

    @property
    def about(self) -> dict[str, Any]:
        """Teachers, options and figures, as of `Stated`. Raises ManifestInvalid for a value of another type."""
        return self._stated.about

    @property
    def errors_inside(self) -> dict[str, Any] | None:
        """The counts of errors inside sets, as noted; None if none are. Raises ManifestInvalid for other values."""
        return self._stated.errors_inside


class Stated:
    """The teachers, options and figures in the spec of a clustering."""

    def __init__(self, spec: Spec, where: str) -> None:
        self._spec, self._where = spec, where

    @cached_property
    def about(self) -> dict[str, Any]:
        """Teachers, options and figures, as they were stated; None for those that were not.

        Raises ManifestInvalid for a value of another type.
        """
        identity, notes = self._spec.identity, self._spec.notes
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
        more = self._spec.notes["errors_inside"]
        for key in ("draws", "random_deviation"):
            if key in more:
                check = self._count if key == "draws" else self._number
                noted[key] = check(more[key], f"errors_inside: {key}")
        return noted

    def _figures(self, key: str, counts: tuple[str, ...], numbers: tuple[str, ...]) -> dict[str, Any] | None:
        """Return a table of figures in the notes; None without it."""
        noted = self._spec.notes.get(key)
        if noted is None:
            return None
        noted = table(noted, self._where, key)
        for name in (*counts, *numbers):
            if noted.get(name) is None:
                raise invalid(f"{self._where}: {key}", f"a number {name}", shorten(sorted(noted)))
        found: dict[str, Any] = {name: self._count(noted[name], f"{key}: {name}") for name in counts}
        return found | {name: self._number(noted[name], f"{key}: {name}") for name in numbers}

    def _number(self, value: Any, key: str) -> float | None:
        number: float | None = value
        try:
            if number is None or (type(number) in (int, float) and math.isfinite(number)):
                return number
        except OverflowError:  # an integer beyond float64
            pass
        raise invalid(f"{self._where}: {key}", "a number that a float64 holds", shorten(value))

    def _count(self, value: Any, key: str) -> int | None:
        if value is not None and not (type(value) is int and 0 <= value < 1 << 63):
            raise invalid(f"{self._where}: {key}", "a number of at least 0", shorten(value))
        return value

    def _text(self, value: Any, key: str) -> str | None:
        if value is not None and not (isinstance(value, str) and len(value) <= _MOST_TEXT):
            raise invalid(
                f"{self._where}: {key}", f"a text of at most {_MOST_TEXT} characters", shorten(value)
            )
        return value
