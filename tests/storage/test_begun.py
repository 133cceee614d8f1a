"""Samples that are not sealed yet, read for a comparison before a writer resumes them."""

from pathlib import Path

import numpy as np
import pytest
from support import stores

from logitstore.storage.api import create_store
from logitstore.storage.errors import ShardCorrupt
from logitstore.storage.parts.begun import committed_samples
from logitstore.storage.parts.root import Root, open_root

ROWS, BLOCK_ROWS = 20, 8
LABELS = np.arange(ROWS) % 3


@pytest.fixture
def begun(tmp_path: Path) -> Root:
    """Make a store whose samples lack their seal, and the record of their second block."""
    path = tmp_path / "store"
    create_store(path, num_classes=3, inputs=stores.some_inputs(ROWS), labels=LABELS, block_rows=BLOCK_ROWS)
    part = path / "samples/__logitstore__"
    for file in ("seal.json", "seal.bin", "commits/0-1.json", "../../__logitstore__/log/1.json"):
        (part / file).unlink()
    return open_root(path)


def found(root: Root) -> dict[int, list[int]]:
    return {rows.start: labels.tolist() for rows, labels in committed_samples(root, "label")}


def test_blocks_with_a_record_are_read_in_their_order(begun: Root) -> None:
    """The shard of a block without a record may be of another set."""
    assert found(begun) == {0: LABELS[:8].tolist(), 16: LABELS[16:].tolist()}
    (Path(begun.path) / "samples/label/c.0").unlink()
    assert found(begun) == {16: LABELS[16:].tolist()}


@pytest.mark.parametrize("change", ["cut", "longer", "flipped"])
def test_no_label_of_a_damaged_shard_is_compared(begun: Root, change: str) -> None:
    shard = Path(begun.path) / "samples/label/c.0"
    data = shard.read_bytes()
    flipped = bytes([data[0] ^ 1]) + data[1:]
    shard.write_bytes({"cut": data[:-1], "longer": data + b"\0", "flipped": flipped}[change])
    with pytest.raises(ShardCorrupt, match=r"label/c\.0"):
        found(begun)
