"""A server that misbehaves gives a reader the right values or an error, never others, and does not hold it up."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest import mock

import pytest

from faults.misbehaving import KINDS, READS, impatient, make, trial
from faults.tally import Tally


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("served")
    make(folder / "store.zarr")
    return folder


@pytest.fixture(autouse=True)
def hurried() -> Iterator[None]:
    with impatient():
        yield


@pytest.mark.parametrize("read", READS)
def test_misbehaviour_gives_no_other_values(served: Path, tmp_path: Path, tally: Tally, read: str) -> None:
    def tried(kind: str) -> list[str]:
        return trial(served, kind, read, tmp_path / kind)

    with ThreadPoolExecutor(6) as threads:  # they wait most of the time
        wrong = [line for lines in threads.map(tried, KINDS) for line in lines]
    tally.reached("misbehaviour", len(KINDS), "answers", wrong)


def test_control_without_checksums_misbehaviour_gives_other_values(
    served: Path, tmp_path: Path, tally: Tally
) -> None:
    with mock.patch("logitstore.storage.parts.part_reader.check_crc32c", lambda *_: None):
        harm = trial(served, "another shard's bytes", "all rows", tmp_path)
    tally.control("misbehaviour", "checksums of chunks", bool(harm))
