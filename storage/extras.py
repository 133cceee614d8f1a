"""Packages that a plain installation leaves out, and the extra that brings each.

A store is opened, streamed, verified and compressed without them. The stages that run networks need `torch`.
"""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Final

from .errors import MissingPackage

EXTRAS: Final[Mapping[str, str]] = {
    "distributed": "distributed",
    "matplotlib": "plots",
    "obstore": "remote",
    "pyarrow": "parquet",
    "safetensors": "torch",
    "scipy": "torch",
    "sklearn": "torch",
    "torch": "torch",
    "xarray": "xarray",
}
"""Extra of logitstore by the name under which a package is imported."""


def missing_package(error: BaseException) -> MissingPackage | None:
    """Return the error of a package of an extra that is not installed; None for any other exception.

    >>> print(missing_package(ModuleNotFoundError(name="matplotlib.figure")))
    matplotlib: expected an installed package, found none; pip install 'logitstore[plots]'
    """
    name = (error.name or "").partition(".")[0] if isinstance(error, ModuleNotFoundError) else ""
    if name not in EXTRAS:
        return None
    remedy = f"pip install 'logitstore[{EXTRAS[name]}]'"
    return MissingPackage(name, expected="an installed package", found="none", remedy=remedy)


@contextlib.contextmanager
def naming_extras() -> Iterator[None]:
    """Name the extra of a package that the block imports and that is not installed. Raises MissingPackage."""
    try:
        yield
    except ModuleNotFoundError as error:
        if (missing := missing_package(error)) is None:
            raise
        raise missing from error
