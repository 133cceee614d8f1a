"""Identity of a combination, its checks, and whether it is missing. Imports no torch.

All of it is known without a logit: each specialist was made from this very capture of the generalist, has a corrected
dustbin column and saw the same views, and the name of the combination is free or its own.
"""

import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from ...storage.api import Capture, Store
from ...storage.encodings.encoding import Encoding
from ...storage.encodings.named import encoding_named
from ...storage.errors import ConfigError, NameTaken, SpecMismatch
from ...storage.format.documents import check_name
from ...storage.identity import check_same
from ...storage.parts.same_inputs import check_same_inputs
from ...storage.parts.sealed_part import Spec
from ..experiment.tables import Combine
from .experts import Experts, check_columns
from .solve import check_settings

COMBINATION: Final = "combination"
"""Key of an identity: the captures of the combination, and how they were combined."""
_SEAL_SHOWN: Final = 19
"""Characters of a seal in a message: "sha256:" and 12 digits."""
_SHOWN = 4
"""Names that a message lists; of more it has the first and the last."""


@dataclass(frozen=True)
class CombinePlan:
    """A combination that fits together."""

    generalist: Capture
    """The capture of all classes."""
    specialists: tuple[Capture, ...]
    """Captures of some of the classes and a dustbin."""
    name: str
    """Name of the new capture."""
    top: int
    """A specialist is active in a row if its set meets this many most likely classes."""
    direction: str
    """Direction of the divergences."""
    method: str
    """Method for rows of several active specialists."""
    encoding: Encoding
    """How the new capture is stored."""
    done: bool
    """Whether it is there, whole."""
    begun: bool
    """Whether some of it is there."""

    @property
    def experts(self) -> Experts:
        """The sets of the specialists."""
        return Experts.of([one.classes for one in self.specialists], self.generalist.shape[2])

    @property
    def views(self) -> int:
        """Views that all of the captures have."""
        return min(one.num_views for one in (self.generalist, *self.specialists))

    @property
    def lines(self) -> list[str]:
        """What is to be done, a line each, as `--dry-run` prints it."""
        if self.done:
            return []
        verb = "finish" if self.begun else "make"
        return [f"{verb} capture {self.name} from {self.generalist.name} and {_counted(self.specialists)}"]

    @property
    def identity(self) -> dict[str, Any]:
        """Identity of the new capture without encoding and views, which its writer adds."""
        theirs = self.generalist.part.spec.identity
        return {
            COMBINATION: {
                "generalist": _sealed(self.generalist),
                "specialists": [_sealed(one) for one in self.specialists],
                "top": self.top,
                "direction": self.direction,
                "method": self.method,
            },
            "augmentation": theirs.get("augmentation"),
            **({"transfer_set": theirs["transfer_set"]} if "transfer_set" in theirs else {}),
        }


def plan_combination(
    store: Store,
    *,
    generalist: str,
    specialists: Sequence[str],
    name: str,
    top: int = 1,
    direction: str = "pq",
    method: str = "fixed_point",
    encoding: "str | Mapping[str, Any] | Encoding" = "float16",
) -> CombinePlan:
    """Plan a combination of a generalist and its specialists, checked; writes nothing.

    specialists: names; one with * or ? stands for each capture that it matches, except `name` and other combinations.
    top: number of a row's most likely classes; a specialist whose set has one of them is active. direction: "pq" for
    KL(p, q) as in the paper, or "qp" for KL(q, p), which needs disjoint sets and `top` 1. method: "fixed_point", or, with
    "pq" alone, "gradient_descent" as in the paper, which is slow. encoding: as of any capture.
    Raises PartNotFound or StoreIncomplete for a capture that is not sealed, ConfigError for settings or captures that do
    not fit, SpecMismatch for specialists of another generalist or store, SpecMismatch or RowMismatch for those that saw other
    inputs, NameTaken or SpecMismatch for a name that is another capture's.
    """
    check_name(name, "the name of the new capture")
    check_settings(direction, method)
    chosen = encoding_named(encoding)
    chief = store.teachers[generalist]
    _check_generalist(store, chief)
    captures = [store.teachers[one] for one in _named(store, specialists, name)]
    for one in captures:
        _check_specialist(store, chief, one)
    if not 1 <= top <= store.num_classes:
        raise ConfigError(
            "top",
            expected=f"a number of classes from 1 to {store.num_classes}",
            found=str(top),
            remedy="leave it out for 1, as in the paper",
        )
    part = f"teachers/{name}"
    there = store.identity_of(part)
    if there is not None:
        captures = _in_their_order(captures, there)
    plan = CombinePlan(
        chief,
        tuple(captures),
        name,
        top,
        direction,
        method,
        chosen,
        done=store.is_whole(part),
        begun=there is not None,
    )
    if direction == "qp" and not (top == 1 and plan.experts.are_disjoint):
        raise ConfigError(
            "direction 'qp'",
            expected="disjoint sets and top = 1: KL(q, p) has a closed form for one active specialist alone",
            found=f"top = {top}" if top != 1 else "sets that overlap",
            remedy="take direction 'pq'",
        )
    if there is not None:
        _check_name(store, plan, there)
    return plan


def _named(store: Store, specialists: Sequence[str], new: str) -> list[str]:
    """Return the names that are meant, each once. new: the capture that is made, which no pattern matches.

    Raises ConfigError for none, for one twice and for a pattern without a match.
    """
    names: list[str] = []
    for given in specialists:
        matches, combined = [given], []
        if any(sign in given for sign in "*?"):
            # No name has a bracket, which would open a set of characters.
            matches = fnmatch.filter(store.teachers, given.replace("[", "[[]"))
            combined = [one for one in matches if one == new or _is_combined(store.teachers[one])]
            matches = [one for one in matches if one not in combined]
        if not matches:
            raise ConfigError(
                f"specialist {given!r}",
                expected="a pattern of some of the captures of this store that are no combinations",
                found=f"one of {', '.join(combined)} alone" if combined else "one of none",
                remedy=f"the captures are {', '.join(store.teachers) or 'none'}",
            )
        names += matches
    twice = next((one for number, one in enumerate(names) if one in names[:number]), None)
    if not names or twice is not None:
        raise ConfigError(
            "specialists",
            expected="one or more captures, each once",
            found="none" if twice is None else f"{twice} twice",
            remedy="name each specialist once",
        )
    return names


def _is_combined(capture: Capture) -> bool:
    return isinstance(capture.part.spec.identity.get(COMBINATION), Mapping)


def _check_generalist(store: Store, generalist: Capture) -> None:
    """Refuse a capture that does not have all classes. Raises ConfigError."""
    if not generalist.has_all_classes:
        raise ConfigError(
            f"{store.path}: teachers/{generalist.name}",
            expected=f"a generalist: all {store.num_classes} classes",
            found="a dustbin" if (generalist.classes < 0).any() else str(len(generalist.classes)),
            remedy="name the capture that the specialists were made from",
        )


def _check_specialist(store: Store, generalist: Capture, one: Capture) -> None:
    """Refuse a capture that is no specialist of this generalist. Raises ConfigError, SpecMismatch, RowMismatch."""
    where = f"{store.path}: teachers/{one.name}"
    head = one.part.spec.identity.get("head")
    check_columns(one.classes, store.num_classes, where)
    if not isinstance(head, Mapping) or head.get("kind") != "specialist":
        raise ConfigError(
            where,
            expected="a specialist, whose provenance has a head of kind 'specialist'",
            found="none" if head is None else repr(head)[:80],
            remedy="capture it with provenance={'head': {'kind': 'specialist', 'generalist': "
            f"{{'capture': {generalist.name!r}, 'seal': store.teachers[{generalist.name!r}].digest}}, …}}}}",
        )
    made_from = head.get("generalist")
    theirs = made_from if isinstance(made_from, Mapping) else {}
    if theirs.get("seal") != generalist.digest:
        raise SpecMismatch(
            where,
            expected=f"a specialist of teachers/{generalist.name} ({generalist.digest[:_SEAL_SHOWN]}…) of this store",
            found=f"one of {str(theirs.get('capture'))[:64]} ({str(theirs.get('seal'))[:_SEAL_SHOWN]}…)",
            remedy="name the generalist that it was made from, or capture the specialist again in this store",
        )
    if head.get("dustbin_corrected") is not True:
        raise ConfigError(
            where,
            expected="logits whose dustbin is corrected for the share of special rows (dustbin_corrected = true)",
            found=f"dustbin_corrected = {head.get('dustbin_corrected')!r}",
            remedy="add log(s(1-π)/((1-s)π)) to the dustbin's logit, and say so in the head",
        )
    views = range(min(generalist.num_views, one.num_views))
    remedy = "capture the specialist again, with the same views"
    check_same_inputs({generalist.name: generalist, one.name: one}, views, str(store.path), remedy)


def _sealed(capture: Capture) -> dict[str, str]:
    return {"capture": capture.name, "seal": capture.digest}


def _in_their_order(captures: list[Capture], there: Mapping[str, Any]) -> list[Capture]:
    """Sort the specialists as the combination that is there does, if they are the same: their order changes nothing."""
    combination = there.get(COMBINATION)
    order = list(_seals(combination.get("specialists") if isinstance(combination, Mapping) else None))
    if sorted(order) != sorted(one.name for one in captures):
        return captures
    return sorted(captures, key=lambda one: order.index(one.name))


def _check_name(store: Store, plan: CombinePlan, there: Mapping[str, Any]) -> None:
    """Refuse a name that is another capture's. Raises NameTaken or SpecMismatch."""
    where = f"{store.path}: teachers/{plan.name}"
    combination = there.get(COMBINATION)
    if not isinstance(combination, Mapping):
        raise NameTaken(
            where,
            expected="a name that is free, or the capture that this would make",
            found="another capture, which was not combined from any",
            remedy="choose another name",
        )
    remedy, made = "choose another name", "with which it was combined"
    if not store.is_sealed(f"teachers/{plan.name}"):
        remedy += f"; to begin it anew, delete {store.path / 'teachers' / plan.name}"
        made = "with which it was begun"
    ours = {**plan.identity, "encoding": plan.encoding.describe()}
    theirs = combination.get("specialists")
    check_same_specialists(where, ours[COMBINATION]["specialists"], theirs, made=made, remedy=remedy)
    check_same(where, ours, {key: there.get(key) for key in ours}, made=made, remedy=remedy)


def check_same_specialists(
    where: str, ours: Sequence[Mapping[str, Any]], theirs: Any, *, made: str, remedy: str
) -> None:
    """Compare specialists with those of a combination that is there. Raises SpecMismatch.

    ours, theirs: {"capture": name, "seal": digest} of each, in any order; a store is the source of `theirs`, and entries
    of another form are skipped. made: as in `check_same`.

    >>> one, two = ({"capture": name, "seal": "…"} for name in ("s-0", "s-1"))
    >>> check_same_specialists("teachers/all", [one], [one, two], made="with which it was combined", remedy="rename it")
    Traceback (most recent call last):
    logitstore.storage.errors.SpecMismatch: teachers/all: expected 2 specialists (s-0, s-1), with which it was combined, \
found 1 (s-0); rename it
    """
    mine, written = _seals(ours), _seals(theirs)
    if not written:
        return  # the comparison of the whole identity refuses a combination of nothing
    if mine.keys() == written.keys():
        check_same(where, {"specialists": mine}, {"specialists": written}, made=made, remedy=remedy)
        return
    found = f"{len(mine)} ({_listed([*mine])})"
    if len(mine) == len(written):
        (new, *_), (gone, *_) = (
            [name for name in names if name not in others]
            for names, others in ((mine, written), (written, mine))
        )
        found = f"{new} in the place of {gone}"
    expected = f"{_counted([*written])} ({_listed([*written])}), {made}"
    raise SpecMismatch(where, expected=expected, found=found, remedy=remedy)


def _seals(specialists: Any) -> dict[str, Any]:
    """Return the seal of each specialist, by name."""
    listed = specialists if isinstance(specialists, list) else []
    return {str(one.get("capture"))[:64]: one.get("seal") for one in listed if isinstance(one, Mapping)}


def _listed(names: list[str]) -> str:
    return ", ".join(names) if len(names) <= _SHOWN else f"{names[0]} … {names[-1]}"


def _counted(specialists: Sequence[Any]) -> str:
    return f"{len(specialists)} specialist{'' if len(specialists) == 1 else 's'}"


# Of an experiment

_OF_EXPERIMENT: Final = {
    "made": "with which it was combined",
    "remedy": "change it back, or give the new one another combine.name",
}


def _written(spec: Spec) -> dict[str, Any]:
    """Return the combination that the capture of an experiment's name states."""
    written = spec.identity.get(COMBINATION)
    return dict(written) if isinstance(written, Mapping) else {}


def check_combined_names(store: Store, table: Combine, specialists: Sequence[str]) -> None:
    """Compare the specialists' names with those combined already, before one is trained. Raises SpecMismatch."""
    if (spec := store.find_spec(f"teachers/{table.name}")) is not None:
        theirs = _written(spec).get("specialists")
        seals = _seals(theirs)
        ours = [{"capture": name, "seal": seals.get(name)} for name in specialists]
        check_same_specialists(f"{store.path}: teachers/{table.name}", ours, theirs, **_OF_EXPERIMENT)


def needs_combination(store: Store, table: Combine, generalist: str, specialists: Sequence[str]) -> bool:
    """Return whether the combination of `[combine]` is missing, or has lost blocks; its captures must be sealed.

    Raises SpecMismatch if its name is another combination's.
    """
    if (spec := store.find_spec(f"teachers/{table.name}")) is None:
        return True
    written = _written(spec)

    def sealed(name: str) -> dict[str, str]:
        # Without opening the capture: one that lost metadata is made again before it is combined.
        return {"capture": name, "seal": store.digest_of(f"teachers/{name}")}

    ours: dict[str, Any] = {
        "generalist": sealed(generalist),
        "specialists": [sealed(name) for name in specialists],
        "top": table.top,
        "direction": table.direction,
    }
    where = f"{store.path}: teachers/{table.name}"
    theirs = {key: written.get(key) for key in ours}
    ours["encoding"], theirs["encoding"] = table.chosen_encoding.describe(), spec.identity.get("encoding")
    check_same_specialists(where, ours["specialists"], theirs["specialists"], **_OF_EXPERIMENT)
    for one in (ours, theirs):  # by name, as their order changes nothing
        one["specialists"] = _seals(one["specialists"])
    check_same(where, ours, theirs, **_OF_EXPERIMENT)
    return not store.is_whole(f"teachers/{table.name}")
