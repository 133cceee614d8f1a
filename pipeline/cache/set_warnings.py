"""Warnings about a transfer set: what looks like a mistake and is none for certain, said before a teacher is run.

classes without a row     labels that count from 1, a gap in them, a subset that a class is not in
channels last             (height, width, 3), where networks take (3, height, width)
floats from 0 to 255      only uint8 is divided by 255
many bytes of inputs      the store keeps them unless it is told not to
"""

import logging
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int64, Shaped

from ...storage.errors import some_of
from ...storage.stream.items import listed_labels
from ..datasets.class_names import is_numbered
from ..transfer import TransferRows

log = logging.getLogger(__name__)
_SHOWN = 8
"""Classes that a warning names."""
_CHANNELS = (1, 3, 4)
_TRIED = 16
"""Examples whose label is compared with the list of labels."""
LARGE_INPUTS = 10**10
"""Bytes of stored inputs from which on they are warned of, 10 GB."""


def warn_of_stored_inputs(stored: int, rows: TransferRows) -> None:
    """Warn of a new store most of which would be inputs. stored: bytes of an input there, 0 for a store without inputs."""
    if (total := stored * len(rows)) < LARGE_INPUTS:
        return
    kept, ways = (
        f"as {rows.first.dtype.name}",
        'with store_inputs = "encoded" it keeps the files of images, and ',
    )
    if stored != rows.first.nbytes:
        kept, ways = "as files", ""
    log.warning(
        "%s: the store keeps the inputs, %s GB %s; %swith store_inputs = false it keeps their digests, and students "
        "read the set again",
        rows.where,
        f"{total / 1e9:,.0f}",
        kept,
        ways,
    )


def warn_of_set(rows: TransferRows) -> None:
    """Warn of a transfer set that looks like a mistake, as far as its labels are at hand and its first inputs tell."""
    labels, first = listed_labels(rows.dataset), range(min(_TRIED, len(rows)))
    # A list other than the labels of the items, before a target_transform for example, tells nothing of them.
    if labels is not None and (labels[first] == rows.fetch(first)[1]).all():
        warn_of_absent_classes(
            labels,
            rows.num_classes,
            rows.class_names,
            where=rows.where,
            omitted=getattr(rows.dataset, "omitted", ()),
            is_numbered=is_numbered(rows.dataset),
        )
    for text in odd_inputs(rows.a_few):
        log.warning("%s: %s", rows.where, text)


def warn_of_views(views: Shaped[np.ndarray, "few ..."], inputs: Shaped[np.ndarray, "few ..."]) -> None:
    """Warn of views that look like a mistake of the augmentation. inputs: what a few views are made of."""
    for text in odd_inputs(views):
        if text not in odd_inputs(inputs):
            log.warning("cache.augment: views: %s", text)


def warn_of_absent_classes(
    labels: Int64[np.ndarray, " rows"],
    num_classes: int,
    class_names: Sequence[str] | None,
    *,
    where: str = "transfer_set",
    omitted: Sequence[int] = (),
    is_numbered: bool = False,
) -> None:
    """Warn of classes that no row has. where: the set in the warning. omitted: those that were left out on purpose. Nothing is said of a set without labels.

    is_numbered: whether the classes only number the labels, up to the largest one.
    """
    there = labels[(labels >= 0) & (labels < num_classes)]  # others are refused when they are fetched
    if not len(there):
        return
    counts = np.bincount(there, minlength=num_classes)
    absent = [int(number) for number in np.flatnonzero(counts == 0) if number not in omitted]
    if not absent:
        return
    if absent[0] == 0 and int(there.min()) == 1:
        remedy = (
            "set first_label = 1 in args, or subtract 1 from them" if is_numbered else "subtract 1 from them"
        )
        log.warning(
            "%s: no row of class 0: the labels run from 1 to %d, and labels count from 0; if yours count from 1, %s",
            where,
            int(there.max()),
            remedy,
        )
        absent = absent[1:]
    if absent:
        names = [repr(class_names[n]) if class_names and not is_numbered else str(n) for n in absent]
        log.warning(
            "%s: no row of %d of %d classes: %s", where, len(absent), num_classes, some_of(names, _SHOWN)
        )


def odd_inputs(inputs: Shaped[np.ndarray, "rows ..."]) -> list[str]:
    """Return what looks wrong about the first inputs.

    >>> odd_inputs(np.zeros((2, 32, 32, 3), np.uint8))[0]
    'inputs of shape (32, 32, 3) have their channels last; networks for images take (channels, height, width): transpose them'
    >>> odd_inputs(np.full((2, 3, 32, 32), 200, np.float32))[0]
    'inputs of float32 hold whole numbers up to 200; only uint8 is divided by 255: store such pixels as uint8'
    >>> odd_inputs(np.zeros((2, 3, 32, 32), np.uint8))
    []
    """
    said = []
    shape = inputs.shape[1:]
    if len(shape) == 3 and shape[-1] in _CHANNELS and shape[0] not in _CHANNELS:
        said.append(
            f"inputs of shape {shape} have their channels last; networks for images take (channels, height, width): "
            "transpose them"
        )
    if inputs.dtype.kind == "f" and len(shape) >= 2 and inputs.size:
        least, largest = float(inputs.min()), float(inputs.max())
        if least >= 0 and 2 < largest <= 255 and bool((inputs == np.rint(inputs)).all()):
            said.append(
                f"inputs of {inputs.dtype} hold whole numbers up to {largest:.0f}; only uint8 is divided by 255: store such "
                "pixels as uint8"
            )
    return said
