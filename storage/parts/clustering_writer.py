"""The writer of clusterings: parts of small arrays alone."""

import contextlib
from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray

from ..format.documents import check_name
from ..format.layouts import small_array
from .clusterings import check_clustering
from .part_writer import PartWriter
from .root import Root
from .sealed_part import Spec


def write_clustering(
    root: Root,
    name: str,
    arrays: Mapping[str, NDArray[Any]],
    *,
    identity: Mapping[str, Any],
    notes: Mapping[str, Any] | None = None,
) -> str:
    """Write and seal a part without blocks, `clusters/<name>`; return its digest. Repeating it changes nothing.

    arrays: by name, of the dimensions in `layouts.DIMENSIONS`. notes: figures that are not compared.
    Raises SpecMismatch if the name is taken, BadDataError for a clustering that a reader would refuse.
    """
    check_name(name, "clustering")
    where = f"{root.path}: clusters/{name}"
    small = check_clustering(arrays, Spec(identity, notes or {}), root.attributes.num_classes, where)
    layouts = [small_array("clustering", array, values.shape) for array, values in small.items()]
    part = PartWriter(
        root, f"clusters/{name}", views=0, identity=identity, notes=notes or {}, layouts=layouts, small=small
    )
    with contextlib.closing(part):
        part.seal()
    return root.part(part.name).digest
