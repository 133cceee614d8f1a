"""The store of the streams."""

import pytest
from support import stores
from support.torch_batches import make_store

from logitstore.storage.api import Store, open_store


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> stores.Made:
    """The store of these tests."""
    return make_store(tmp_path_factory.mktemp("store") / "store.zarr")


@pytest.fixture
def store(made: stores.Made) -> Store:
    """The store, opened anew."""
    return open_store(made.path)
