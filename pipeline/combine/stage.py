"""One more teacher in the store from a generalist and its specialists.

1. Everything that needs no logit is checked: each specialist was made from this capture of the generalist, has a corrected
   dustbin column and saw the same views; the new name is free or is this combination's.
2. Block by block, on all cores, the generalist's rows are read, and each specialist's rows where it is active. `solve`
   returns the distribution that they agree on best.
3. ln q is written as the logits of a capture of all classes, whose identity names the seals of its sources. A single net
   can be distilled from it.

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
from ...storage.errors import ConfigError, RowMismatch, SpecMismatch
from ...storage.format.documents import check_name
from ...storage.identity import check_same
from ...storage.progress import Progress, silent
from ...storage.stream.inputs import common_augmentation
from ..compress.derived import check_derived, how_made, identity_of, over_missing
from .experts import Experts, active_specialists, check_columns
from .solve import check_settings, combine_rows

log = logging.getLogger(__name__)


COMBINATION: Final = "combination"
"""Key of an identity: the captures that this one was combined from, and the settings."""


_HEAD: Final = "head"


_SEAL_SHOWN: Final = 19
"""Characters of a seal in a message: "sha256:" and 12 digits."""


@dataclass(frozen=True)
class CombinePlan:
    """The work of a combination."""

    generalist: Capture
    """The capture of all classes."""
    specialists: tuple[Capture, ...]
    """Captures of some of the classes and a dustbin."""
    name: str
    """Name of the new capture."""
    top: int
    """Number of most likely classes of a row whose specialists are asked."""
    direction: str
    """Direction of the divergences, one of `DIRECTIONS`."""
    method: str
    """Method where several specialists are active, one of `METHODS`."""
    encoding: Encoding
    """Encoding of the new capture."""
    done: bool
    """Whether it is sealed and no file is missing."""
    begun: bool
    """Whether it is sealed or begun."""

    @property
    def lines(self) -> list[str]:
        """Return the work that is left, a line each, for `--dry-run`."""
        if self.done:
            return []
        verb = "finish" if self.begun else "make"
        count = len(self.specialists)
        others = f"{count} specialist{'' if count == 1 else 's'}"
        return [f"{verb} capture {self.name} from {self.generalist.name} and {others}"]

    @property
    def identity(self) -> dict[str, Any]:
        """Return the identity of the new capture, but for its encoding and views, which its writer adds."""
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
    """Result of a combination."""

    name: str
    """Name of the new capture."""
    generalist: str
    """Name of the capture of all classes."""
    specialists: tuple[str, ...]
    """Names of the captures of some classes."""
    made: bool
    """Whether anything was written now."""
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
    """Make and seal `teachers/<name>`, the combination of a generalist and its specialists, or resume it.

    specialists: names; * and ? match captures other than `name` and other combinations. top: number of most likely classes of
    a row whose specialists are asked. direction: "pq" for KL(p, q) as in the paper, or "qp" for KL(q, p), with disjoint
    sets and `top` 1. method: "fixed_point", or, with "pq", the paper's "gradient_descent", which is slow. encoding: as for
    any capture. Combined at temperature 1.
    Raises PartNotFound or StoreIncomplete for a capture that is missing or not sealed, ConfigError for one that is no
    generalist or no specialist and for settings that do not fit, SpecMismatch for specialists of another generalist or
    store, NameTaken or SpecMismatch for the name of another capture.
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
    """Plan `combine`, with all its refusals that need no logit. Writes nothing."""
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
            expected="disjoint sets and top = 1",
            found=f"top = {top}" if top != 1 else "sets that overlap",
            remedy="take direction 'pq'",
        )
    identity, whole = identity_of(store, name), store.root.is_whole(f"teachers/{name}")
    if identity is not None:
        captures = _in_their_order(captures, identity)
    plan = CombinePlan(
        chief, tuple(captures), name, top, direction, method, chosen, whole, identity is not None
    )
    if identity is not None:
        combination, words = (
            check_derived(store, name, identity, COMBINATION),
            how_made(store, name, "combined"),
        )
        ours = {**plan.identity, "encoding": chosen.describe()}
        where, specialists = f"{store.path}: teachers/{name}", ours[COMBINATION]["specialists"]
        check_same_specialists(where, specialists, combination.get("specialists"), **words)
        check_same(where, ours, {key: identity.get(key) for key in ours}, **words)
    return plan


def _named(store: Store, specialists: Sequence[str], new: str) -> list[str]:
    """List the captures that are named, each once. new: the name of the combination, which no pattern matches.

    Raises ConfigError for no name, for a name that is given twice and for a pattern without a match.
    """
    names: list[str] = []
    for given in specialists:
        matches = [given]
        if any(sign in given for sign in "*?"):
            # A bracket, which would be a set of characters, is in no name.
            matches = fnmatch.filter(store.teachers, given.replace("[", "[[]"))
            matches = [one for one in matches if one != new and not _is_combined(store.teachers[one])]
        if not matches:
            raise ConfigError(
                f"specialist {given!r}",
                expected="a pattern that matches captures of this store other than combinations",
                found=f"no match among {', '.join(store.teachers) or 'no captures'}",
                remedy="name the captures of the specialists",
            )
        names += matches
    twice = next((one for number, one in enumerate(names) if one in names[:number]), None)
    if not names or twice is not None:
        raise ConfigError(
            "specialists",
            expected="one or more captures, each once",
            found="no capture" if twice is None else f"{twice} twice",
            remedy="name each specialist once",
        )
    return names


def _is_combined(capture: Capture) -> bool:
    """Return whether a capture is itself a combination of others."""
    return isinstance(capture.part.spec.identity.get(COMBINATION), Mapping)


def _check_generalist(store: Store, generalist: Capture) -> None:
    """Refuse a capture that does not have all classes. Raises ConfigError."""
    if not np.array_equal(generalist.classes, np.arange(store.num_classes)):
        dustbin = ", one of them the dustbin" if (generalist.classes < 0).any() else ""
        raise ConfigError(
            f"{store.path}: teachers/{generalist.name}",
            expected=f"a generalist with all {store.num_classes} classes, in order",
            found=f"{len(generalist.classes)} columns, from class {generalist.classes[0]}{dustbin}",
            remedy="name the capture that the specialists were made from",
        )


def _check_specialist(store: Store, generalist: Capture, one: Capture) -> None:
    """Refuse a capture that is no specialist of this generalist. Raises ConfigError, SpecMismatch."""
    where = f"{store.path}: teachers/{one.name}"
    head = one.part.spec.identity.get(_HEAD)
    check_columns(one.classes, store.num_classes, where)
    if not isinstance(head, Mapping) or head.get("kind") != "specialist":
        raise ConfigError(
            where,
            expected="a specialist, whose provenance has a head of kind 'specialist'",
            found="a provenance without a head" if head is None else f"a head {repr(head)[:80]}",
            remedy="capture it with provenance={'head': {'kind': 'specialist', 'generalist': "
            f"{{'capture': {generalist.name!r}, 'seal': store.teachers[{generalist.name!r}].digest}}, …}}}}",
        )
    made_from = head.get("generalist")
    theirs = made_from if isinstance(made_from, Mapping) else {}
    if theirs.get("seal") != generalist.digest:
        raise SpecMismatch(
            where,
            expected=f"a specialist of teachers/{generalist.name} ({generalist.digest[:_SEAL_SHOWN]}…) of this store",
            found=f"a specialist of {str(theirs.get('capture'))[:64]} ({str(theirs.get('seal'))[:_SEAL_SHOWN]}…)",
            remedy="name the generalist that it was made from, or capture the specialist again in this store",
        )
    if head.get("dustbin_corrected") is not True:
        raise ConfigError(
            where,
            expected="logits whose dustbin is corrected for the share of special rows (dustbin_corrected = true)",
            found=f"dustbin_corrected = {head.get('dustbin_corrected')!r}",
            remedy="add log(s(1-π)/((1-s)π)) to the dustbin's logit, and set dustbin_corrected in the head",
        )
    views = range(_views(generalist, [one]))
    common_augmentation({generalist.name: generalist, one.name: one}, views, str(store.path))


def _experts(store: Store, captures: Sequence[Capture]) -> Experts:
    return Experts.of([one.classes for one in captures], store.num_classes)


def _views(generalist: Capture, specialists: Sequence[Capture]) -> int:
    """Return the number of views that all of them have."""
    return min(one.num_views for one in (generalist, *specialists))


def _sealed(capture: Capture) -> dict[str, str]:
    return {"capture": capture.name, "seal": capture.digest}


def _in_their_order(captures: list[Capture], identity: Mapping[str, Any]) -> list[Capture]:
    """Return the specialists in the order of an identity that names the same ones."""
    combination = identity.get(COMBINATION)
    named = combination.get("specialists") if isinstance(combination, Mapping) else None
    order = [one.get("capture") for one in named or [] if isinstance(one, Mapping)]
    if sorted(map(str, order)) != sorted(one.name for one in captures):
        return captures
    return sorted(captures, key=lambda one: order.index(one.name))


def _write(store: Store, plan: CombinePlan, progress: Progress) -> Counter[int]:
    """Write the missing blocks of the new capture, and seal it; count rows by number of active specialists."""
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

        counts = over_missing(f"combine {plan.name}", store, capture, views, write, progress)
    total = Counter[int]()
    for one in counts:
        total.update(one)
    return total


def _check_seen(generalist: Capture, one: Capture, rows: range, view: int, seen: Any) -> None:
    """Refuse a specialist that saw other inputs. Raises RowMismatch with the first row."""
    block = rows.start // generalist.reader.grid.block_rows
    sealed = [capture.part.table.shard("seen", view, block).sha256 for capture in (generalist, one)]
    if sealed[0] == sealed[1]:  # nearly always; no shard is read
        return
    theirs = one.seen(rows, view)
    bad = np.flatnonzero(theirs != seen)
    if len(bad):
        first = int(bad[0])
        raise RowMismatch(
            f"teachers/{one.name}, view {view}, row {rows.start + first}",
            expected=f"the input that {generalist.name} saw, with digest {int(seen[first]):016x}",
            found=f"an input with digest {int(theirs[first]):016x}",
            remedy="capture the specialist again, with the same views",
        )


_SHOWN = 4
"""Maximum number of names that a message lists; of more it lists the first and the last."""


def check_same_specialists(
    where: str, ours: Sequence[Mapping[str, Any]], theirs: Any, *, made: str, remedy: str
) -> None:
    """Refuse specialists other than those of an existing combination. Raises SpecMismatch.

    ours, theirs: {"capture": name, "seal": digest} of each, in any order; `theirs` comes from a store, other entries of it
    are ignored. made: as in `check_same`.

    >>> one, two = ({"capture": name, "seal": "…"} for name in ("s-0", "s-1"))
    >>> check_same_specialists("teachers/all", [one], [one, two], made="with which it was combined", remedy="rename it")
    Traceback (most recent call last):
    logitstore.storage.errors.SpecMismatch: teachers/all: expected 2 specialists (s-0, s-1), with which it was combined, \
found 1 specialist (s-0); rename it
    """
    mine, said = _seals(ours), _seals(theirs)
    if not said:
        return  # the comparison of the whole identity refuses it
    if mine.keys() == said.keys():
        check_same(where, {"specialists": mine}, {"specialists": said}, made=made, remedy=remedy)
        return
    found = _counted([*mine])
    if len(mine) == len(said):
        new, gone = (
            [one for one in names if one not in others] for names, others in ((mine, said), (said, mine))
        )
        found = f"{len(mine)} specialists, {new[0]} in the place of {gone[0]}"
    raise SpecMismatch(where, expected=f"{_counted([*said])}, {made}", found=found, remedy=remedy)


def _seals(specialists: Any) -> dict[str, Any]:
    """Map each name to its seal."""
    listed = specialists if isinstance(specialists, list) else []
    return {str(one.get("capture"))[:64]: one.get("seal") for one in listed if isinstance(one, Mapping)}


def _counted(names: list[str]) -> str:
    listed = ", ".join(names) if len(names) <= _SHOWN else f"{names[0]} … {names[-1]}"
    return f"{len(names)} specialist{'s' * (len(names) != 1)} ({listed})"
