"""Imports into buckets: the bytes of a local store, and a capture added where rows agree."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from support import stores
from support.buckets import Bucket, MemoryS3, serving_bucket

from logitstore.pipeline.exchange.export import export_logits
from logitstore.pipeline.exchange.import_files import import_logits
from logitstore.storage.api import open_store
from logitstore.storage.backends import conditional
from logitstore.storage.format.constants import CARD_FILE

ROWS = 14


@pytest.fixture(autouse=True)
def in_haste(monkeypatch: pytest.MonkeyPatch, without_fsync: None) -> None:
    """Let writers wait for milliseconds."""
    monkeypatch.setattr(conditional, "_FIRST_WAIT_S", 0.005)
    monkeypatch.setattr(conditional, "_LONGEST_WAIT_S", 0.05)


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    """Serve a bucket in memory, to which the environment leads."""
    with serving_bucket() as found:
        settings = {"ENDPOINT": found.url, "REGION": "us-east-1", "ALLOW_HTTP": "true", "TIMEOUT": "5s"}
        for name, value in {**settings, "ACCESS_KEY_ID": "key", "SECRET_ACCESS_KEY": "secret"}.items():
            monkeypatch.setenv(f"AWS_{name}", value)
        yield found


def test_an_import_into_a_bucket_is_that_into_a_folder(bucket: Bucket, tmp_path: Path) -> None:
    for number in range(2):
        np.save(tmp_path / f"{number}.npy", stores.some_logits(1, ROWS, 5, seed=number)[0])
    ids, place = [f"row {row}" for row in range(ROWS)], "s3://bucket/new.zarr"
    for where in (tmp_path / "new.zarr", place):
        assert import_logits(tmp_path / "0.npy", where, "a", ids=ids).new_store
        assert not import_logits(tmp_path / "1.npy", where, "b", ids=ids).new_store
        assert not import_logits(tmp_path / "1.npy", where, "b", ids=ids).made
    assert isinstance(bucket.serve, MemoryS3)
    objects = {key.removeprefix("new.zarr/"): data for key, data in bucket.serve.objects.items()}
    assert b"row" in objects.pop(CARD_FILE)  # its lines name the place
    assert objects == {
        key: data for key, data in stores.tree(tmp_path / "new.zarr").items() if "/lock" not in key
    }
    for where in (tmp_path / "new.zarr", place):
        ending = "remote" if where == place else "local"
        assert (
            export_logits(where, "b", tmp_path / f"{ending}.safetensors").digest == open_store(where).digest
        )
    assert (tmp_path / "remote.safetensors").read_bytes() == (tmp_path / "local.safetensors").read_bytes()
