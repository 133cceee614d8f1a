"""Logits, labels and a store that the tests of imports share."""

import numpy as np
import pytest
from numpy.typing import NDArray
from support import stores
from support.plain_files import CLASSES, ROWS
from support.stores import Made, Teacher


@pytest.fixture(autouse=True)
def quick(without_fsync: None) -> None:
    """Files are looked at here, not power cuts."""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A store of several encodings; it is not changed."""
    teachers = {
        "wide": Teacher(views=2),
        "deep": Teacher(encoding="float32"),
        "some": Teacher(classes=(3, 1, -1)),
        "small": Teacher(encoding={"transform": {"max_kl": 1e-2}}),
        "budget": Teacher(encoding={"max_kl": 1e-2}),
    }
    return stores.make(tmp_path_factory.mktemp("made") / "store.zarr", rows=ROWS, teachers=teachers)


@pytest.fixture
def logits() -> NDArray[np.float32]:
    """Logits (row, class) that bfloat16 holds."""
    return np.asarray(stores.some_logits(1, ROWS, CLASSES, seed=3)[0].astype("f2").astype("f4").round(1)) * 8


@pytest.fixture
def labels() -> NDArray[np.int64]:
    return np.arange(ROWS, dtype=np.int64) % CLASSES
