"""A dry scan of the data sets of an experiment: every example that cannot be used, at once.

Inputs, labels, shapes and dtypes are checked as `cache` would check them, and no teacher is run. The files of an image folder
are decoded by threads. Other sets are read by one thread in order, since they may not be safe for several.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ...storage.errors import LogitStoreError
from ...storage.progress import Progress, silent
from ...storage.stream.items import fetch_items
from ..datasets.arrays import TransferSet as MapStyle
from ..datasets.bad_files import Problems
from ..datasets.class_names import names_of
from ..datasets.image_folder import ImageFolder
from ..experiment.document import Experiment
from ..experiment.tables import EvaluationSet, TransferSet
from ..factories.call import expect_dataset
from ..factories.products import product_of
from ..transfer import read_examples

_CHUNK_ROWS = 256
"""Examples that are fetched together."""


def scan_sets(experiment: Experiment, progress: Progress = silent) -> dict[str, int]:
    """Read every example of the transfer set, of the validation set and of the evaluation set; return the number of each.

    Raises the first error of a set, with the others as its notes, and FactoryError.
    """
    tables: dict[str, TransferSet | EvaluationSet] = {"transfer_set": experiment.transfer_set}
    for name in ("validation_set", "evaluation_set"):
        if (table := getattr(experiment, name)) is not None:
            tables[name] = table
    return {where: _scan(table, experiment.base, where, progress) for where, table in tables.items()}


def _scan(table: TransferSet | EvaluationSet, base: Path, where: str, progress: Progress) -> int:
    # The checks of `Examples` would stop at a first example that is broken.
    dataset: Any = product_of(table, base=base)
    if not isinstance(dataset, MapStyle) or not len(dataset):
        expect_dataset(dataset, table.factory)
    total, problems = len(dataset), Problems()
    given = table.num_classes if isinstance(table, TransferSet) else None
    errors: Iterable[LogitStoreError | None] = (
        dataset.problems() if isinstance(dataset, ImageFolder) else _errors(dataset, where, given)
    )
    for done, error in enumerate(errors, start=1):
        if error is not None:
            problems.add(error)
        if done % _CHUNK_ROWS == 0 or done == total:
            progress(f"scanning {where}", done, total, unit="examples")
    problems.raise_any(total)
    return total


def _errors(dataset: Any, where: str, given: int | None) -> Iterator[LogitStoreError | None]:
    """Yield the error of each example, or None. given: number of classes in the table of the experiment."""
    names = names_of(dataset, where) or ()
    good: dict[int, Any] = {}  # the first good example, which each other one is read with
    for start in range(0, len(dataset), _CHUNK_ROWS):
        indices = list(range(start, min(start + _CHUNK_ROWS, len(dataset))))
        try:
            # One call for all that are good: some sets read many at once much faster.
            items = fetch_items(dataset, indices)
        except LogitStoreError:
            items = None
        for index in indices:
            try:
                item = fetch_items(dataset, [index])[0] if items is None else items[index - start]
                both = good | {index: item}
                read_examples([*both.values()], [*both], where, names, len(names) or given or 0)
            except LogitStoreError as error:
                yield error
            else:
                good = good or both
                yield None
