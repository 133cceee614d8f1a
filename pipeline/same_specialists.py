"""Was a combination made from these specialists, by name and seal?"""

from collections.abc import Mapping, Sequence
from typing import Any

from ..storage.errors import SpecMismatch
from ..storage.identity import check_same

_SHOWN = 4
"""Names that a message lists; of more it has the first and the last."""


def check_same_specialists(
    where: str, ours: Sequence[Mapping[str, Any]], theirs: Any, *, made: str, remedy: str
) -> None:
    """Refuse specialists other than those of the combination that is there. Raises SpecMismatch.

    ours, theirs: {"capture": name, "seal": digest} of each, in any order; of `theirs`, which a store says, all else is
    passed over. made: as in `check_same`.

    >>> one, two = ({"capture": name, "seal": "…"} for name in ("s-0", "s-1"))
    >>> check_same_specialists("teachers/all", [one], [one, two], made="with which it was combined", remedy="rename it")
    Traceback (most recent call last):
    logitstore.storage.errors.SpecMismatch: teachers/all: expected 2 specialists (s-0, s-1), with which it was combined, \
found 1 (s-0); rename it
    """
    mine, said = _seals(ours), _seals(theirs)
    if not said:
        return  # a combination of nothing is for the comparison of the whole
    if mine.keys() == said.keys():
        check_same(where, {"specialists": mine}, {"specialists": said}, made=made, remedy=remedy)
        return
    found = f"{len(mine)} ({_listed([*mine])})"
    if len(mine) == len(said):
        new, gone = (
            [one for one in names if one not in others] for names, others in ((mine, said), (said, mine))
        )
        found = f"{new[0]} in the place of {gone[0]}"
    count = f"{len(said)} specialist{'' if len(said) == 1 else 's'}"
    raise SpecMismatch(where, expected=f"{count} ({_listed([*said])}), {made}", found=found, remedy=remedy)


def _seals(specialists: Any) -> dict[str, Any]:
    """The seal of each, by name."""
    listed = specialists if isinstance(specialists, list) else []
    return {str(one.get("capture"))[:64]: one.get("seal") for one in listed if isinstance(one, Mapping)}


def _listed(names: list[str]) -> str:
    return ", ".join(names) if len(names) <= _SHOWN else f"{names[0]} … {names[-1]}"
