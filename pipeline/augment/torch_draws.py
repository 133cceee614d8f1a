"""Random operations of torch that draw from a generator of their own, in one thread.

torch's global generator belongs to the whole process: seeding it in a thread that makes views would disturb a network that
drops units in another. A dispatch mode is seen by its own thread alone. It hands each random operation of the block a
generator, in place of the global one.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, Final

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ...storage.errors import FactoryError

_NAME: Final = "generator"


class SeededDraws(TorchDispatchMode):
    """A block in which the random operations of this thread draw from a generator of this seed."""

    def __init__(self, seed: int) -> None:
        """Prepare the block. seed: of 64 bits."""
        super().__init__()  # type: ignore[no-untyped-call]
        self._generator = torch.Generator().manual_seed(seed)

    def __torch_dispatch__(
        self,
        function: Any,
        types: Sequence[Any],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Call an operation of torch, a random one with the generator."""
        named = dict(kwargs or {})
        if torch.Tag.nondeterministic_seeded not in function.tags:
            return function(*args, **named)
        seeded, place = _seeded(function)
        if place < len(args):
            if args[place] is None:
                args = (*args[:place], self._generator, *args[place + 1 :])
        elif named.get(_NAME) is None:
            named[_NAME] = self._generator
        return seeded(*args, **named)


@lru_cache(maxsize=256)
def _seeded(function: Any) -> tuple[Any, int]:
    """Return the form of a random operation that takes a generator, and the place of that argument.

    Raises FactoryError for an operation that takes none.
    """
    names = [argument.name for argument in function._schema.arguments]
    if _NAME in names:
        return function, names.index(_NAME)
    for overload in function.overloadpacket.overloads():
        other = getattr(function.overloadpacket, overload)
        arguments = other._schema.arguments
        if any(one.name == _NAME for one in arguments) and [
            (one.name, str(one.type)) for one in arguments if one.name != _NAME
        ] == [(one.name, str(one.type)) for one in function._schema.arguments]:
            return other, len(names)  # it is passed by name
    raise FactoryError(
        "augmentation seeded",
        expected="random operations of torch that take a generator",
        found=f"{function}",
        remedy="draw the numbers by another operation, such as torch.rand",
    )
