"""Files of TensorBoard beside a training's weights, for `log = "tensorboard"`."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from ...storage.errors import MissingPackage
from .log import Outlet


def check_tensorboard() -> None:
    """Raise MissingPackage unless tensorboard is installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter as _  # noqa: F401
    except ImportError as error:
        raise MissingPackage(
            "tensorboard",
            expected='an installed package, for log = "tensorboard"',
            found="none" if isinstance(error, ModuleNotFoundError) else str(error),
            remedy="pip install tensorboard, or remove log",
        ) from error


@contextlib.contextmanager
def tensorboard(folder: Path) -> Iterator[Outlet]:
    """Yield an outlet that writes scalars to a folder, and close its file at the end. Raises MissingPackage.

    Curves have a name a value: `tensorboard --logdir` of the folder above shows all trainings together.
    """
    check_tensorboard()
    from torch.utils.tensorboard import SummaryWriter

    writer: SummaryWriter | None = None

    def write(step: int, values: dict[str, float]) -> None:
        nonlocal writer
        if writer is None:
            # Steps that a resumed training takes again are hidden from the file of the first attempt.
            writer = SummaryWriter(str(folder), purge_step=step)
        for name, value in values.items():
            writer.add_scalar(name, value, step)

    try:
        yield write
    finally:
        if writer is not None:
            writer.close()
