"""How do a generalist and its specialists become one teacher in the store?

1. Everything that needs no logit is checked: that the specialists were made from this very capture of the generalist,
   that each has a dustbin column, corrected, and saw the same views; and whose the new name is.
2. Block by block, on all cores: the generalist's rows are read, of each specialist just those in which it is active, and
   `combination` says what they agree on best.
3. ln q is written as the logits of an ordinary capture of all classes, whose identity names the seals of what it was made
   from. From it a single net can be distilled.

Killed anywhere and started again, it ends with the same bytes. Source: Hinton et al. 2015, section 5.4, eq. 5.
"""

import fnmatch
import logging
import platform
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from ...storage.api import Capture, Store
from ...storage.encodings.encoding import Encoding
from ...storage.encodings.named import encoding_named
from ...storage.errors import ConfigError, NameTaken, RowMismatch, SpecMismatch
from ...storage.format.documents import check_name
from ...storage.identity import check_same
from ...storage.progress import Progress, silent
from ...storage.stream.inputs import common_augmentation
from ..runtime.dask_tasks import over_blocks
from .experts import Experts, active_specialists, check_columns
from .solve import check_settings, combine_rows

log = logging.getLogger(__name__)


COMBINATION: Final = "combination"
"""Key of an identity: the captures that this one was combined from, and how."""


_HEAD: Final = "head"


_SEAL_SHOWN: Final = 19
"""Characters of a seal in a message: "sha256:" and 12 digits."""


@dataclass(frozen=True)
class CombinePlan:
    """What is to be combined from what."""

    generalist: Capture
    """The capture of all classes."""
    specialists: tuple[Capture, ...]
    """Captures of some of the classes and a dustbin."""
    name: str
    """The new capture."""
    top: int
    """Specialists of a row are those whose set meets its so many most likely classes."""
    direction: str
    """Which way the divergences go."""
    method: str
    """How q is found where several specialists are active."""
    encoding: Encoding
    """How the new capture is stored."""
    done: bool
    """Whether it is there, whole."""
    begun: bool
    """Whether some of it is."""

    @property
    def lines(self) -> list[str]:
        """What is to be done, a line each, as `--dry-run` prints it."""
        if self.done:
            return []
        verb = "finish" if self.begun else "make"
        count = len(self.specialists)
        others = f"{count} specialist{'' if count == 1 else 's'}"
        return [f"{verb} capture {self.name} from {self.generalist.name} and {others}"]

    @property
    def identity(self) -> dict[str, Any]:
        """What the new capture follows from, but for its encoding and views, which its writer adds."""
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


@dataclass(frozen=True)
class CombineReport:
    """What was done."""

    name: str
    """The new capture."""
    generalist: str
    """The capture of all classes."""
    specialists: tuple[str, ...]
    """The captures of some."""
    made: bool
    """Whether anything was still to do."""
    digest: str
    """Digest of the store."""
    active: Mapping[int, int] = field(default_factory=dict)
    """Of the rows that were written now, of all views: how many had so many active specialists."""


def combine(
    store: Store,
    *,
    generalist: str,
    specialists: Sequence[str],
    name: str,
    top: int = 1,
    direction: str = "pq",
    method: str = "fixed_point",
    encoding: "str | Mapping[str, Any] | Encoding" = "float16",
    progress: Progress = silent,
) -> CombineReport:
    """Make and seal `teachers/<name>`, the combination of a generalist and its specialists, or go on with it.

    specialists: names; one with * or ? stands for all captures that it matches, but for `name` and other combinations.
    top: specialists of a row are those whose set meets its so many most likely classes. direction: "pq" for KL(p, q) as in
    the paper, or "qp" for KL(q, p), for which the sets must be disjoint and `top` 1. method: "fixed_point", or, with "pq"
    alone, "gradient_descent" as in the paper, which is slow. encoding: as for any capture. Combined at temperature 1.
    Raises PartNotFound or StoreIncomplete where a capture is not there or not sealed, ConfigError for one that is no
    generalist or no specialist and for settings that do not fit, SpecMismatch for specialists of another generalist or of
    another store, NameTaken or SpecMismatch for a name that is another's.
    """
    plan = plan_combination(
        store,
        generalist=generalist,
        specialists=specialists,
        name=name,
        top=top,
        direction=direction,
        method=method,
        encoding=encoding,
    )
    active = Counter[int]() if plan.done else _write(store, plan, progress)
    return CombineReport(
        name,
        generalist,
        tuple(one.name for one in plan.specialists),
        not plan.done,
        store.digest,
        dict(sorted(active.items())),
    )


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
    """What `combine` would do, with all its refusals that need no logit. Writes nothing."""
    check_name(name, "the name of the new capture")
    check_settings(direction, method)
    chosen = encoding_named(encoding)
    chief = store.teachers[generalist]
    _check_generalist(store, chief)
    captures = [store.teachers[one] for one in _named(store, specialists, name)]
    for one in captures:
        _check_specialist(store, chief, one)
    experts = _experts(store, captures)
    if not 1 <= top <= store.num_classes:
        raise ConfigError(
            "top",
            expected=f"a number of classes from 1 to {store.num_classes}",
            found=str(top),
            remedy="leave it out for 1, as in the paper",
        )
    if direction == "qp" and not (top == 1 and experts.are_disjoint):
        raise ConfigError(
            "direction 'qp'",
            expected="disjoint sets and top = 1: KL(q, p) has a closed form for one active specialist alone",
            found=f"top = {top}" if top != 1 else "sets that overlap",
            remedy="take direction 'pq'",
        )
    part = f"teachers/{name}"
    there = _there(store, name)
    if there is not None:
        captures = _in_their_order(captures, there)
    whole = store.root.is_whole(part)
    plan = CombinePlan(chief, tuple(captures), name, top, direction, method, chosen, whole, there is not None)
    if there is not None:
        _check_name_is_ours(store, plan, there)
    return plan


def _named(store: Store, specialists: Sequence[str], new: str) -> list[str]:
    """The names that are meant, each once. Raises ConfigError for none, for one twice and for a pattern of nothing.

    new: the capture that is made, which no pattern matches, be it there or not.
    """
    names: list[str] = []
    for given in specialists:
        found, combined = [given], []
        if any(sign in given for sign in "*?"):
            # A bracket, which would be a set of characters, is in no name.
            matches = fnmatch.filter(store.teachers, given.replace("[", "[[]"))
            combined = [one for one in matches if one == new or _is_combined(store.teachers[one])]
            found = [one for one in matches if one not in combined]
        if not found:
            raise ConfigError(
                f"specialist {given!r}",
                expected="a pattern of some of the captures of this store that are no combinations",
                found=f"one of {', '.join(combined)} alone" if combined else "one of none",
                remedy=f"the captures are {', '.join(store.teachers) or 'none'}",
            )
        names += found
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
    """Whether a capture is itself a combination of others."""
    return isinstance(capture.part.spec.identity.get(COMBINATION), Mapping)


def _check_generalist(store: Store, generalist: Capture) -> None:
    """Refuse a capture that does not have all classes. Raises ConfigError."""
    if not np.array_equal(generalist.classes, np.arange(store.num_classes)):
        own = (
            "a dustbin" if (generalist.classes < 0).any() else f"{len(generalist.classes)}, or another order"
        )
        raise ConfigError(
            f"{store.path}: teachers/{generalist.name}",
            expected=f"a generalist: all {store.num_classes} classes, in order",
            found=own,
            remedy="name the capture that the specialists were made from",
        )


def _check_specialist(store: Store, generalist: Capture, one: Capture) -> None:
    """Refuse what is no specialist of this generalist. Raises ConfigError, SpecMismatch."""
    where = f"{store.path}: teachers/{one.name}"
    head = one.part.spec.identity.get(_HEAD)
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
    views = range(_views(generalist, [one]))
    common_augmentation({generalist.name: generalist, one.name: one}, views, str(store.path))


def _experts(store: Store, captures: Sequence[Capture]) -> Experts:
    return Experts.of([one.classes for one in captures], store.num_classes)


def _views(generalist: Capture, specialists: Sequence[Capture]) -> int:
    """The views that all of them have."""
    return min(one.num_views for one in (generalist, *specialists))


def _sealed(capture: Capture) -> dict[str, str]:
    return {"capture": capture.name, "seal": capture.digest}


def _there(store: Store, name: str) -> Mapping[str, Any] | None:
    """The identity of what has the name, sealed or not; None where it is free."""
    part = f"teachers/{name}"
    if store.root.has(part):
        return store.root.spec(part).identity
    begun = store.root.begun(part)
    return None if begun is None else begun.identity


def _in_their_order(captures: list[Capture], there: Mapping[str, Any]) -> list[Capture]:
    """The specialists as the capture that is there names them, where they are the same: their order says nothing."""
    combination = there.get(COMBINATION)
    named = combination.get("specialists") if isinstance(combination, Mapping) else None
    order = [one.get("capture") for one in named or [] if isinstance(one, Mapping)]
    if sorted(map(str, order)) != sorted(one.name for one in captures):
        return captures
    return sorted(captures, key=lambda one: order.index(one.name))


def _check_name_is_ours(store: Store, plan: CombinePlan, there: Mapping[str, Any]) -> None:
    """Refuse a name under which something else is. Raises NameTaken or SpecMismatch."""
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
    if not store.root.has(f"teachers/{plan.name}"):
        remedy += f"; to begin it anew, delete {store.root.folder.sub(f'teachers/{plan.name}').path}"
        made = "with which it was begun"
    ours = {**plan.identity, "encoding": plan.encoding.describe()}
    check_same_specialists(
        where,
        ours[COMBINATION]["specialists"],
        combination.get("specialists"),
        made=made,
        remedy=remedy,
    )
    check_same(where, ours, {key: there.get(key) for key in ours}, made=made, remedy=remedy)


def _write(store: Store, plan: CombinePlan, progress: Progress) -> Counter[int]:
    """Write what is missing of the new capture, and seal it; rows by number of active specialists."""
    chief, experts = plan.generalist, _experts(store, plan.specialists)
    views = _views(chief, plan.specialists)
    with store.capture(
        plan.name,
        provenance=plan.identity,
        views=views,
        encoding=plan.encoding,
        notes={"python": platform.python_version(), "numpy": np.__version__},
    ) as capture:

        def write(view: int, rows: range) -> Counter[int]:
            seen = chief.seen(rows, view)
            logits = chief.read(rows, view, temperature=1.0)
            active = active_specialists(logits, experts, plan.top)
            said = []
            for one, asked in zip(plan.specialists, active.T, strict=True):
                _check_seen(chief, one, rows, view, seen)
                said.append(one.read(rows.start + np.flatnonzero(asked), view, temperature=1.0))
            combine_rows(
                logits, experts, active, said, direction=plan.direction, method=plan.method, out=logits
            )
            capture.write(rows, logits, view, seen=seen)
            return Counter(active.sum(axis=1).tolist())

        missing = [(view, rows) for view in range(views) for rows in capture.missing_blocks(view)]
        done = views * store.num_rows - sum(len(rows) for _, rows in missing)
        found = over_blocks(f"combine {plan.name}", missing, write, progress=progress, done=done)
    total = Counter[int]()
    for one in found:
        total.update(one)
    return total


def _check_seen(generalist: Capture, one: Capture, rows: range, view: int, seen: Any) -> None:
    """Refuse a specialist that was shown other inputs. Raises RowMismatch with the first row."""
    block = rows.start // generalist.reader.grid.block_rows
    sealed = [capture.part.table.shard("seen", view, block).sha256 for capture in (generalist, one)]
    if sealed[0] == sealed[1]:  # as good as always; nothing of it needs to be read
        return
    theirs = one.seen(rows, view)
    bad = np.flatnonzero(theirs != seen)
    if len(bad):
        first = int(bad[0])
        raise RowMismatch(
            f"teachers/{one.name}, view {view}, row {rows.start + first}",
            expected=f"the input that {generalist.name} saw, with digest {int(seen[first]):016x}",
            found=f"{int(theirs[first]):016x}",
            remedy="capture the specialist again, with the same views",
        )


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
