"""Products of the tables of an experiment: made by a factory, or in hand.

Here alone the two are told apart. A product in hand is the same every time; its table states what it is.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path

from ..augment import Augmentation, PairAugmentation, seeded
from .call import build, build_augmentation, expect_augmentation, resolve, source_digest
from .local_code import local_source
from .read_files import Made


def product_of(table: Made, *, base: Path, offered: Mapping[str, object] | None = None) -> object:
    """Return the thing in hand, or call the factory of a table. Raises as `build`."""
    if table.in_hand is not None:
        return table.in_hand.product()
    return build(table.factory, table.args, offered=offered, base=base)


def augmentation_of(table: Made, *, base: Path) -> Augmentation | PairAugmentation:
    """Return the augmentation of a table. Raises FactoryError as `build`, and for anything else than an augmentation."""
    if table.in_hand is not None:
        return expect_augmentation(table.in_hand.thing, table.factory)
    return build_augmentation(table.factory, table.args, base=base)


def augmentation_source(table: Made, *, base: Path) -> str:
    """Return "sha256:…" of the code of an augmentation, or its stated version. Raises as `source_digest`."""
    if table.in_hand is not None:
        return table.in_hand.source
    return stated_source(table.factory, table.args, base=base)


def stated_source(factory: str, args: Mapping[str, object], *, base: Path | None = None) -> str:
    """Return the source of an augmentation by its factory; of `seeded`, with that of a transform that it is given by name."""
    source, named = source_digest(factory, base=base), args.get("transform")
    if isinstance(named, str) and resolve(factory, base=base) is seeded:
        source = f"{source}, {source_digest(named, base=base)}"
    return source


def local_code_of(tables: Iterable[Made], *, base: Path) -> dict[str, str]:
    """Return "sha256:…" of each local file that the products of some tables come from, by its name.

    A script that Python runs as `__main__` is none of them: the description of a thing has the source of its class.
    """
    factories, arguments = list[str](), list[Mapping[str, object]]()
    for table in tables:
        if table.in_hand is None:
            factories.append(table.factory)
            arguments.append(table.args)
        else:
            factories += sorted(table.in_hand.modules - {"__main__"})
    return local_source(factories, arguments, base=base)
