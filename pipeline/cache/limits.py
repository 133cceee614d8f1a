"""Limits of the format that an experiment would pass, found before a teacher is trained or run."""

from ...storage.encodings.encoding import Encoding
from ...storage.encodings.widths import sized
from ...storage.format.grid import Grid
from ...storage.parts.footprint import capture_layouts
from ...storage.parts.sealable import (
    check_class_names,
    check_samples_sealable,
    check_sealable,
    optional_arrays,
)
from ..experiment.document import Experiment
from ..transfer import TransferRows, files_of


def arrays_of_samples(experiment: Experiment, rows: TransferRows) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Return `optional_arrays` of the store of an experiment."""
    files = files_of(experiment, rows)
    example = rows.first if experiment.transfer_set.store_inputs is True else None
    return optional_arrays(example, rows.ids, None if files is None else files.width)


def check_limits(experiment: Experiment, rows: TransferRows, encoding: Encoding, grid: Grid) -> None:
    """Refuse captures, or samples, that no seal could hold. Raises ConfigError or LimitExceeded.

    grid: of the store. The largest basis is assumed of a transform that has none yet.
    """
    check_class_names(rows.class_names, "transfer_set")
    check_samples_sealable(grid, arrays_of_samples(experiment, rows), "store")
    views, classes = experiment.cache.views, rows.num_classes
    layouts = capture_layouts(sized(encoding, classes), classes, grid, views)
    check_sealable(encoding.form, layouts, grid, views, "teachers")
