"""Ready-made hostile clusterings: classes, clusters, matrices and figures that no clustering of the store has.

A clustering under the very name and settings that a victim asks for is taken for one that is made already, so that its
arrays and figures are used as they stand. Every digest is right: see `forge`.
"""

import json
from collections.abc import Callable
from typing import Any, Final

import numpy as np

from .forge import SHOWN, Forge, Kinds, change_values

PART: Final = "clusters/wide-2x2"
CLASSES: Final = 5
KINDS: Final = Kinds()
_SPEC: Final = f"{PART}/__logitstore__/spec.json"


def _array(name: str, values: Any, dtype: str) -> Callable[[Forge], None]:
    """A builder that replaces an array, with its shape."""

    def build(forge: Forge) -> None:
        array = np.asarray(values, dtype)
        grid = {"name": "regular", "configuration": {"chunk_shape": list(array.shape)}}
        change_values(forge, f"{PART}/{name}/zarr.json", shape=list(array.shape), chunk_grid=grid)
        forge.small(PART, name, array.tobytes())

    return build


def _unit(size: int) -> Any:
    return np.eye(size, dtype=np.float32)


_NO_NUMBER = _unit(CLASSES)
_NO_NUMBER[0, 1] = np.nan
_ARRAYS: Final[dict[str, tuple[str, Any, str]]] = {
    "assignment to cluster 10**9": ("assignment", [0, 1, 0, 1, 10**9], "<i8"),
    "assignment to cluster 2**62": ("assignment", [0, 1, 0, 1, 1 << 62], "<i8"),
    "assignment to cluster -1": ("assignment", [0, 1, -1, 1, 0], "<i8"),
    "assignment to a cluster without a set": ("assignment", [0, 1, 2, 1, 0], "<i8"),
    "assignment of a class too many": ("assignment", [0, 1, 0, 1, 0, 1], "<i8"),
    "assignment of a class too few": ("assignment", [0, 1, 0, 1], "<i8"),
    "sets of class 5": ("sets", [[0, 5], [1, 3]], "<i8"),
    "sets of class -1": ("sets", [[0, -1], [1, 3]], "<i8"),
    "sets of more members than classes": ("sets", [[0] * 6, [1] * 6], "<i8"),
    "more sets than centres": ("sets", [[0, 2], [1, 3], [0, 1]], "<i8"),
    "covariance of a class too many": ("covariance", _unit(CLASSES + 1), "<f4"),
    "covariance that is no square": ("covariance", _unit(CLASSES)[:4], "<f4"),
    "covariance that is no number": ("covariance", _NO_NUMBER, "<f4"),
    "covariance of infinity": ("covariance", np.full((CLASSES, CLASSES), np.inf), "<f4"),
    "centres of a class too few": ("centres", np.zeros((2, CLASSES - 1)), "<f4"),
}
for _name, (_key, _values, _dtype) in _ARRAYS.items():
    KINDS.add(_name, _array(_key, _values, _dtype), differs=(f"wide-2x2: {_key}",))


@KINDS.one("sets of 2**23 classes together", differs=("wide-2x2: sets",))
def _(forge: Forge) -> None:
    grid = {"name": "regular", "configuration": {"chunk_shape": [1 << 21, 2]}}
    change_values(forge, f"{PART}/sets/zarr.json", shape=[1 << 22, 2], chunk_grid=grid)
    forge.seal(PART, lambda seal: seal["files"].update({"sets/c.1.0": "0" * 64}))


def _notes(**changes: Any) -> Callable[[Forge], None]:
    def build(forge: Forge) -> None:
        notes = json.loads(forge.file(_SPEC).read_bytes())["notes"]
        change_values(forge, _SPEC, notes=notes | changes)

    return build


_INSIDE: Final = {"errors": 9, "inside": 4, "random_share": 0.5}
_PROJECTED: Final = {"classes": 5, "rms": 0.1, "largest": 0.2, "expected": 0.1}
for _name, _changes in {
    "inertia of 400 digits": {"inertia": 10**400}, "inertia of text": {"inertia": "1"}, "inertia of a list": {"inertia": [1]},
    "true inertia": {"inertia": True}, "inertia of a table": {"inertia": {"a": 1}},
    "projection error of text": {"projection_error": "0.1"}, "projection error without figures": {"projection_error": {}},
    "projection error of 400 digits": {"projection_error": {**_PROJECTED, "rms": 10**400}},
    "projection error of texts": {"projection_error": {**_PROJECTED, "largest": "0.2"}},
    "projection error of half a class": {"projection_error": {**_PROJECTED, "classes": 0.5}},
    "errors inside of a list": {"errors_inside": [9, 4]}, "errors inside without figures": {"errors_inside": {}},
    "errors inside of text": {"errors_inside": {**_INSIDE, "errors": "nine"}},
    "errors inside of -1": {"errors_inside": {**_INSIDE, "inside": -1}},
    "errors inside of 400 digits": {"errors_inside": {**_INSIDE, "inside": 10**400}},
    "errors inside, draws of text": {"errors_inside": {**_INSIDE, "draws": "many"}},
    "errors inside, deviation of a table": {"errors_inside": {**_INSIDE, "random_deviation": {}}},
    "errors inside, nothing": {"errors_inside": {**_INSIDE, "random_share": None}},
}.items():  # fmt: skip
    KINDS.add(f"notes: {_name}", _notes(**_changes))

for _name, _identity in {
    "a capture named 5": {"capture": {"name": 5}}, "a capture named by a table": {"capture": {"name": {}}},
    "a capture named by 100,000 letters": {"capture": {"name": "x" * 100_000}},
    "a capture named by a list": {"capture": {"name": ["wide"]}},
    "a temperature of text": {"temperature": "hot"}, "a temperature of 400 digits": {"temperature": 10**400},
    "an algorithm of a list": {"algorithm": ["k-means"]}, "dimensions of text": {"dimensions": "many"},
    "dimensions of 400 digits": {"dimensions": 10**400},
    "shares of text": {"captures": {"wide": {"share": "half"}}},
    "shares of 400 digits": {"captures": {"wide": {"share": 10**400}}},
    "a teacher of 100,000 letters": {"captures": {"x" * 100_000: {"share": 1}}},
}.items():  # fmt: skip
    KINDS.add(f"identity: {_name}", lambda forge, i=_identity: forge.spec(PART, **i))

for _part in ("samples", "teachers/wide", PART):
    KINDS.add(
        f"a seal of {_part} without a spec",
        lambda forge, part=_part: forge.seal(
            part, lambda seal: seal["files"].pop("__logitstore__/spec.json") and None
        ),
    )


def _names(width: int, letter: bytes) -> Callable[[Forge], None]:
    """A builder of five class names of `width` bytes."""

    def build(forge: Forge) -> None:
        shape = [CLASSES, width]
        grid = {"name": "regular", "configuration": {"chunk_shape": shape}}
        change_values(forge, "samples/class_name/zarr.json", shape=shape, chunk_grid=grid)
        forge.small("samples", "class_name", (letter * (CLASSES * width))[: CLASSES * width])

    return build


_NAMED: Final = ("names",)
KINDS.add("class names of 2 MiB of escapes", _names(2 << 20, b"\x1b"), SHOWN, _NAMED)
KINDS.add("class names of 2 MiB of control sequences", _names(2 << 20, b"\xc2\x9b"), SHOWN, _NAMED)
KINDS.add("class names of 2 MiB of letters", _names(2 << 20, b"x"), SHOWN, _NAMED)
