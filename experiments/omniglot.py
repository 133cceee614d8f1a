"""Omniglot as these experiments use it: training drawings, test drawings, and the alphabet of each character.

964 characters of 30 alphabets, each drawn by 20 people (Lake, Salakhutdinov & Tenenbaum 2015), are read from
the zip in place. Nothing is unpacked. Drawers 4, 8, 12, 16 and 20 are the test: 15 drawings of each character
train, 5 test. The set holds one image twice (`Braille/character01`, drawers 3 and 19). It is then twice in
the training set, and never in both.

    characters     a factory of transfer sets, "omniglot:characters" in an experiment file of this folder
    alphabets_of   the alphabet of each class, which no stage ever gets
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from logitstore.pipeline.datasets import ArrayDataset, image_folder
from logitstore.storage.errors import ConfigError

ZIP: Final = Path(__file__).resolve().parents[1] / "../shared/data/omniglot_images_background.zip"
"""The zip of the data, as the experiment file names it."""
TEST_DRAWERS: Final = (4, 8, 12, 16, 20)
TRAIN_DRAWERS: Final = tuple(drawer for drawer in range(1, 21) if drawer not in TEST_DRAWERS)
SIZE: Final = 28
"""Pixels a side, of 105 in the zip (bilinear)."""


def characters(
    root: Path,
    drawers: Sequence[int] = TRAIN_DRAWERS,
    size: int = SIZE,
    alphabets: Sequence[str] | None = None,
) -> ArrayDataset:
    """Load the drawings of some people: inputs uint8 (rows, size, size), ink 255 on 0.

    Rows are sorted by class, then by drawer. root: the zip. drawers: from 1 to 20. size: pixels a side.
    alphabets: the names to use; all when None. Raises ConfigError for unknown drawers or alphabets,
    BadDataError for a zip of something else.
    """
    unknown = sorted(set(drawers) - set(range(1, 21)))
    if unknown or not drawers:
        raise ConfigError(
            "drawers", expected="numbers from 1 to 20", found=str(unknown or "none"), remedy="correct them"
        )
    images = image_folder(root, size=size)
    assert images.labels is not None
    known = sorted({name.partition("/")[0] for name in images.class_names})
    for name in alphabets or ():
        if name not in known:
            raise ConfigError(
                "alphabets", expected="one of " + ", ".join(known), found=repr(name), remedy="correct it"
            )
    kept_names = [
        name for name in images.class_names if alphabets is None or name.partition("/")[0] in alphabets
    ]
    number = {name: position for position, name in enumerate(kept_names)}
    rows = [
        (number[images.class_names[label]], position)
        for position, label in enumerate(images.labels.tolist())
        if images.class_names[label] in number and drawer_of(images.ids[position]) in drawers
    ]
    pixels = np.stack([np.asarray(images[position][0]) for _, position in rows])
    labels = np.array([label for label, _ in rows], np.int64)
    return ArrayDataset(
        255 - pixels, labels, kept_names, [images.ids[position] for _, position in rows], where=str(root)
    )


def drawer_of(name: str) -> int:
    """Return the drawer of an image, 1 … 20, by the name of its file.

    >>> drawer_of("images_background/Braille/character01/0192_03.png")
    3
    """
    return int(name.rpartition("_")[2].partition(".")[0])


def alphabets_of(class_names: Sequence[str]) -> tuple[NDArray[np.int64], list[str]]:
    """Return the number of each class's alphabet, (class,), and the alphabets by number.

    >>> alphabets_of(["Greek/character01", "Latin/character01", "Latin/character02"])
    (array([0, 1, 1]), ['Greek', 'Latin'])
    """
    alphabets = [name.partition("/")[0] for name in class_names]
    distinct = sorted(set(alphabets))
    return np.array([distinct.index(alphabet) for alphabet in alphabets], np.int64), distinct
