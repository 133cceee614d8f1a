"""Parts of several stores compared, before their rows are put into one part: nothing is encoded again.

| of the parts | must be equal | why |
| --- | --- | --- |
| arrays | names, dtypes, shapes of a row, attributes (the step of an error budget), views | the same codes mean the same logits |
| small arrays | every byte (columns, names of classes, the basis of a transform) | likewise |
| identity | all but what follows from the rows, and how fast they were computed | one teacher, one augmentation |
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np

from ..errors import SpecMismatch
from ..format.constants import SAMPLES, TRANSFORM
from ..format.documents import shorten
from ..format.metadata import ArrayLayout
from ..identity import difference
from ..parts.root import Root
from ..parts.same_rows import augmentation_of, is_augmented
from ..parts.sealed_part import SealedPart

OF_ROWS: Final = frozenset(
    {"transfer_set", "made_by", "order", "reused_from", "concatenated", "numbered", "views"}
)
"""Keys of an identity that follow from the rows. `views` is compared with the arrays."""
OF_SPEED: Final = frozenset({"batch_size", "batch_size_asked", "threads", "compile", "channels_last"})
"""Keys that decide how fast logits are computed, and touch their last digits alone."""
PADDED: Final = frozenset({"id", "file"})
"""Arrays whose rows are padded with zero bytes to the longest."""
_MIXTURES: Final = frozenset({"mixup", "cutmix"})
"""Names of augmentations that mix two rows of a store."""
_AFTERWARDS: Final = (
    "concatenate the capture that it was made from, and compress that afterwards; --teacher names captures"
)


def check_alike(roots: Sequence[Root], name: str) -> list[SealedPart]:
    """Return the parts of a name in all stores. Raises SpecMismatch where their rows cannot stand in one part."""
    parts = [root.part(name) for root in roots]
    first = parts[0]
    for root, part in zip(roots, parts, strict=True):
        _check_no_mixtures(f"{root.path}: {name}", part)
    ours = identity_without_rows(roots[0], first)
    for root, part in zip(roots[1:], parts[1:], strict=True):
        where = f"{root.path}: {name}"
        if differs := difference(identity_without_rows(root, part), ours):
            key, found, expected = differs
            raise _differs(where, roots[0], f"{key} = {expected[:160]}", found[:160], _remedy(first, key))
        _check_layouts(where, roots[0], first, part)
        for array, layout in first.layouts.items():
            if not layout.is_block_array and not np.array_equal(first.small(array), part.small(array)):
                raise _differs(where, roots[0], f"its {array}", f"another {array}", _remedy(first, array))
    return parts


def _check_no_mixtures(where: str, part: SealedPart) -> None:
    """Refuse a capture of mixtures: the partner of a row follows from the rows of its store. Raises SpecMismatch."""
    augmentation = augmentation_of(part.spec.identity, where)
    factory = str((augmentation or {}).get("factory"))
    is_mixture = factory.rpartition(":")[2].lower() in _MIXTURES
    if is_mixture and is_augmented(augmentation, part.seal.views - 1):
        raise SpecMismatch(
            where,
            expected="views of a row alone, which can be made again in the new store",
            found=f"mixtures of rows, by {shorten(factory)}",
            remedy="concatenate the captures without mixtures (--teacher), or cache again from all rows",
        )


def _check_layouts(where: str, root: Root, first: SealedPart, part: SealedPart) -> None:
    lacking = sorted(first.layouts.keys() ^ part.layouts.keys())
    if lacking:
        here, there = ("no ", "") if lacking[0] in first.layouts else ("", "no ")
        raise _differs(
            where, root, f"{there}{lacking[0]}", f"{here}{lacking[0]}", "make both alike, or leave it out"
        )
    for array, layout in first.layouts.items():
        ours, theirs = _form(layout, first), _form(part.layouts[array], part)
        if ours != theirs:
            raise _differs(where, root, f"{array} as {_said(ours)}", _said(theirs), _remedy(first, array))


def _form(layout: ArrayLayout, part: SealedPart) -> tuple[str, tuple[int, ...], int, dict[str, Any]]:
    """Return dtype, shape of a row, views and attributes of an array. Rows that are padded may be of any length."""
    if not layout.is_block_array:
        return layout.dtype, layout.shape, 0, dict(layout.attributes)
    shape = () if part.name == SAMPLES and layout.name in PADDED else layout.row_shape
    return layout.dtype, shape, part.seal.views, dict(layout.attributes)


def _said(form: tuple[str, tuple[int, ...], int, dict[str, Any]]) -> str:
    dtype, shape, views, attributes = form
    more = "".join(f", {key} {value}" for key, value in sorted(attributes.items()))
    return f"{dtype} {shape}, {views} view{'s' * (views != 1)}{more}"[:200]


def _remedy(part: SealedPart, key: str) -> str:
    if part.name == SAMPLES:
        return "concatenate stores of samples that were made alike"
    is_encoded = key.startswith("encoding") or key in ("basis", "centre", "step", "weight")
    if is_encoded or key in ("logits", "index") or (part.form == TRANSFORM and key == "error"):
        return _AFTERWARDS
    return "leave the capture out, with --teacher for the others; or capture one of the two again"


def _differs(where: str, root: Root, expected: str, found: str, remedy: str) -> SpecMismatch:
    return SpecMismatch(where, expected=f"{expected}, as in {root.path}", found=found, remedy=remedy)


def identity_without_rows(root: Root, part: SealedPart) -> dict[str, Any]:
    """Return the identity of a part without keys of its rows; for the seals of other parts of the store stand their names."""
    named = {f"sha256:{record.seal}": f"the seal of {record.part}" for record in root.log}
    identity = {key: value for key, value in part.spec.identity.items() if key not in OF_ROWS | OF_SPEED}
    replaced = replace_texts(identity, named)
    assert isinstance(replaced, dict)
    return replaced


def replace_texts(value: Any, by: Mapping[str, Any]) -> Any:
    """Return a JSON value in which some texts are others.

    >>> replace_texts({"a": ["x", "y"]}, {"x": "z"})
    {'a': ['z', 'y']}
    """
    if isinstance(value, Mapping):
        return {key: replace_texts(inner, by) for key, inner in value.items()}
    if isinstance(value, list):
        return [replace_texts(inner, by) for inner in value]
    return by.get(value, value) if isinstance(value, str) else value


def common(tables: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the entries that all tables have.

    >>> common([{"a": 1, "b": 2}, {"a": 1, "b": 3}])
    {'a': 1}
    """
    first, *others = tables
    return {
        key: value
        for key, value in first.items()
        if all(key in one and difference(value, one[key]) is None for one in others)
    }
