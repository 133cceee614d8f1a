"""How does a capture that is there become a smaller one, without its teacher?

1. The wish is checked against what is there: a name that is taken, a source that is encoded already.
2. The encoding that fits is chosen from the source's own rows (`choose_encoding`), unless an earlier run has begun with
   one: that one is kept to.
3. Block by block, on all cores, the source's rows are read and written again as a part of its own, which names the
   capture that it was derived from, and its seal.

Killed anywhere and started again, it ends with the same bytes. The source stays as it is.
"""

import logging
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import numcodecs
import numpy as np

from ...storage.api import Capture, Store
from ...storage.encodings.encoding import Encoding
from ...storage.encodings.error_budget import ErrorBudget
from ...storage.encodings.floats import FloatEncoding
from ...storage.encodings.named import encoding_described, encoding_named
from ...storage.encodings.top_k import TopK
from ...storage.errors import ConfigError, NameTaken
from ...storage.format.documents import check_name
from ...storage.identity import check_same
from ...storage.parts.fidelity import Fidelity, fidelity
from ...storage.parts.writer import CaptureWriter
from ...storage.progress import Progress, silent
from ..runtime.dask_tasks import over_blocks
from .choose import SmallestTopK, fit_budget_to, fit_top_k, scan

log = logging.getLogger(__name__)


Wish: TypeAlias = ErrorBudget | TopK | SmallestTopK
"""What a user may ask for; of an error budget, `max_kl` and `min_temperature` alone."""


DERIVED: Final = "derived_from"
"""Key of an identity: the capture that this one was made from, its seal, and which k was wished for."""


_SMALLEST: Final = "smallest_for"


@dataclass(frozen=True)
class CompressReport:
    """What was done, and what came of it."""

    name: str
    """The new capture."""
    source: str
    """The capture that it was made from."""
    made: bool
    """Whether anything was still to do."""
    encoding: Encoding
    """How its logits are stored."""
    source_row_bytes: float
    """Bytes of all arrays of the source, a row of a view."""
    row_bytes: float
    """The same of the new capture."""
    fidelity: tuple[Fidelity, ...]
    """KL to the source, by temperature."""
    digest: str
    """Digest of the store."""


@dataclass(frozen=True)
class CompressPlan:
    """What is to be made of what."""

    source: Capture
    """The capture that is read."""
    name: str
    """The new one."""
    wish: Wish
    """What it shall be."""
    encoding: Encoding | None
    """With which it was begun; None where it is still to be chosen."""
    done: bool
    """Whether it is there, whole."""

    @property
    def lines(self) -> list[str]:
        """What is to be done, a line each, as `--dry-run` prints it."""
        if self.done:
            return []
        verb = "make" if self.encoding is None else "finish"
        return [f"{verb} capture {self.name} from {self.source.name}: {say(self.encoding or self.wish)}"]


def say(wish: Encoding | Wish) -> str:
    """An encoding, or a wish for one, in a few words.

    >>> say(ErrorBudget(1e-3, 2.0)), say(TopK(64)), say(SmallestTopK(0.1, 4.0))
    ('KL at most 0.001 at T >= 2', 'the 64 largest logits', 'the smallest k with max KL at most 0.1 at T = 4')
    """
    if isinstance(wish, ErrorBudget):
        return f"KL at most {wish.max_kl:g} at T >= {wish.min_temperature:g}"
    if isinstance(wish, SmallestTopK):
        return f"the smallest k with {wish.statistic} KL at most {wish.max_kl:g} at T = {wish.temperature:g}"
    return f"the {wish.k} largest logits" if isinstance(wish, TopK) else wish.kind


def wish_named(wish: "str | Mapping[str, Any] | Wish") -> Wish:
    """What a user asks for. Raises ConfigError.

    >>> wish_named({"top_k_kl": 0.1, "temperature": 4})
    SmallestTopK(max_kl=0.1, temperature=4.0, statistic='max')
    """
    if isinstance(wish, SmallestTopK):
        return wish
    if (
        isinstance(wish, Mapping)
        and "top_k_kl" in wish
        and set(wish) <= {"top_k_kl", "temperature", "statistic"}
    ):
        limit, temperature = _number(wish, "top_k_kl"), _number(wish, "temperature")
        return SmallestTopK(limit, temperature, str(wish.get("statistic", "max")))
    named = encoding_named(wish)
    if isinstance(named, ErrorBudget):
        return ErrorBudget(named.max_kl, named.min_temperature)
    if isinstance(named, TopK):
        return named
    raise ConfigError(
        "encoding",
        expected="{ max_kl = 1e-3 } (with min_temperature, 1 unless given), { top_k = 64 } or "
        "{ top_k_kl = 0.1, temperature = 4.0 }",
        found=named.kind,
        remedy="choose one of these; float16 and float32 are what a teacher is captured in",
    )


def _number(wish: Mapping[str, Any], key: str) -> float:
    """A number of a wish. Raises ConfigError where it is none, or is not there."""
    value = wish.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ConfigError(
            f"encoding: top_k_kl: {key}",
            expected="a positive number"
            + (": where the KL is to be kept" if key == "temperature" else " of nats"),
            found="none" if value is None else repr(value)[:40],
            remedy="give one",
        )
    return float(value)


def compress(
    store: Store,
    teacher: str,
    name: str,
    encoding: "str | Mapping[str, Any] | Wish",
    *,
    progress: Progress = silent,
) -> CompressReport:
    """Make and seal `teachers/<name>`, an encoded copy of `teachers/<teacher>`, or go on with it.

    encoding: {"max_kl": 1e-3} (with "min_temperature"), {"top_k": 64}, or {"top_k_kl": 0.1, "temperature": 4.0} (with
    "statistic": "mean", "max" or "p99.9") for the smallest k that keeps it over all rows.
    Raises PartNotFound or StoreIncomplete where the source is not there or not sealed, ConfigError for a source that is
    encoded already and for a wish that cannot be kept, NameTaken or SpecMismatch for a name that is another's.
    """
    plan = plan_compression(store, teacher, name, encoding)
    chosen = plan.encoding
    if not plan.done:
        if chosen is None:
            chosen = _choose(store, plan, progress)
        _write(store, plan, chosen, progress)
    report = _report(store, plan)
    if report.made and report.row_bytes >= report.source_row_bytes:
        log.warning(
            "%s: %.1f bytes a row, %s has %.1f: with so few classes nothing is gained",
            f"{store.path}: teachers/{name}",
            report.row_bytes,
            teacher,
            report.source_row_bytes,
        )
    return report


def plan_compression(
    store: Store, teacher: str, name: str, encoding: "str | Mapping[str, Any] | Wish"
) -> CompressPlan:
    """What `compress` would do, with all its refusals that need no logit. Writes nothing."""
    wish = wish_named(encoding)
    check_name(name, "the name of the new capture")
    source = store.teachers[teacher]
    if not isinstance(source.encoding, FloatEncoding):
        origin = source.provenance.get(DERIVED)
        instead = origin.get("capture") if isinstance(origin, Mapping) else None
        raise ConfigError(
            f"{store.path}: teachers/{teacher}",
            expected="a capture in float16 or float32",
            found=f"one that is encoded already ({source.encoding.kind})",
            remedy=f"compress {instead}, which it was made from" if instead else "compress one that is not",
        )
    if isinstance(wish, TopK):
        wish.arrays(source.shape[2])  # k beyond the classes
    begun = _begun(store, name)
    if begun is None:
        return CompressPlan(source, name, wish, None, False)
    _check_name_is_ours(store, source, name, wish, begun)
    there = encoding_described(begun["encoding"], f"teachers/{name}")
    return CompressPlan(source, name, wish, there, store.root.is_whole(f"teachers/{name}"))


def _begun(store: Store, name: str) -> Mapping[str, Any] | None:
    """The identity of what has the name, sealed or not; None where it is free."""
    part = f"teachers/{name}"
    if store.root.has(part):
        return store.root.spec(part).identity
    begun = store.root.begun(part)
    return None if begun is None else begun.identity


def _check_name_is_ours(
    store: Store, source: Capture, name: str, wish: Wish, there: Mapping[str, Any]
) -> None:
    """Refuse a name under which something else is. Raises NameTaken or SpecMismatch."""
    where = f"{store.path}: teachers/{name}"
    origin, encoding = there.get(DERIVED), there.get("encoding")
    if not isinstance(origin, Mapping) or not isinstance(encoding, Mapping):
        raise NameTaken(
            where,
            expected="a name that is free, or the capture that this would make",
            found="another capture, which was not derived from any",
            remedy="choose another name",
        )
    remedy, made = "choose another name", "with which it was made"
    if not store.root.has(f"teachers/{name}"):
        remedy += f"; to begin it anew, delete {store.root.folder.sub(f'teachers/{name}').path}"
        made = "with which it was begun"
    ours = {DERIVED: _origin(source), "encoding": _asked(wish)}
    theirs = {
        DERIVED: {key: origin.get(key) for key in ("capture", "seal")},
        "encoding": _asked_of(encoding, origin),
    }
    check_same(where, ours, theirs, made=made, remedy=remedy)


def _origin(source: Capture) -> dict[str, Any]:
    return {"capture": source.name, "seal": source.digest}


def _asked(wish: Wish) -> dict[str, Any]:
    """A wish, as `_asked_of` gives it of what came of it."""
    if isinstance(wish, ErrorBudget):
        return {"kind": wish.kind, "max_kl": wish.max_kl, "min_temperature": wish.min_temperature}
    if isinstance(wish, SmallestTopK):
        return {"kind": TopK.kind, _SMALLEST: wish.describe()}
    return wish.describe()


def _asked_of(encoding: Mapping[str, Any], origin: Mapping[str, Any]) -> dict[str, Any]:
    """What was wished for, from an identity."""
    if encoding.get("kind") == ErrorBudget.kind:
        return {key: encoding.get(key) for key in ("kind", "max_kl", "min_temperature")}
    if _SMALLEST in origin:
        return {"kind": encoding.get("kind"), _SMALLEST: origin[_SMALLEST]}
    return dict(encoding)


def _choose(store: Store, plan: CompressPlan, progress: Progress) -> Encoding:
    """The encoding that the rows of the source allow. Raises ConfigError, or BadLogitsError for rows out of range."""
    source, wish = plan.source, plan.wish
    found = scan(source, wish if isinstance(wish, TopK) else None, progress=progress)
    where = f"{store.path}: teachers/{source.name}"
    chosen: Encoding
    if isinstance(wish, SmallestTopK):
        chosen = fit_top_k(source, wish, progress=progress)
    elif isinstance(wish, ErrorBudget):
        chosen = fit_budget_to(source, wish.max_kl, wish.min_temperature, found, where=where)
    else:
        chosen = wish
    if found.first_constant is not None:
        log.warning(
            "%s: in %s of %s rows all classes have the same logit, as of a teacher that is dead "
            "(the first: view %d, row %d); they are kept as they are",
            where,
            f"{found.constant_rows:,}",
            f"{source.num_views * store.num_rows:,}",
            *found.first_constant,
        )
    return chosen


def _write(store: Store, plan: CompressPlan, encoding: Encoding, progress: Progress) -> None:
    """Write what is missing of the new capture, and seal it."""
    source = plan.source
    identity = dict(source.part.spec.identity)
    views = identity.pop("views", source.num_views)
    del identity["encoding"]
    origin = _origin(source)
    if isinstance(plan.wish, SmallestTopK):
        origin[_SMALLEST] = plan.wish.describe()
    with CaptureWriter(
        store.root,
        plan.name,
        identity={**identity, DERIVED: origin},
        views=views,
        encoding=encoding,
        classes=source.classes,
        notes={
            "python": platform.python_version(),
            "numpy": np.__version__,
            "numcodecs": numcodecs.__version__,
        },
    ) as capture:

        def write(view: int, rows: range) -> None:
            logits, seen, peak = source.read(rows, view), source.seen(rows, view), source.peak(rows, view)
            capture.write(rows, logits, view, seen=seen, peak=peak)

        missing = [(view, rows) for view in range(views) for rows in capture.missing_blocks(view)]
        done = views * store.num_rows - sum(len(rows) for _, rows in missing)
        over_blocks(f"compress {source.name}", missing, write, progress=progress, done=done)


def _report(store: Store, plan: CompressPlan) -> CompressReport:
    capture = store.teachers[plan.name]
    return CompressReport(
        plan.name,
        plan.source.name,
        not plan.done,
        capture.encoding,
        row_bytes(plan.source),
        row_bytes(capture),
        fidelity(capture),
        store.digest,
    )


def row_bytes(capture: Capture) -> float:
    """Bytes of all block arrays of a capture, as they lie on the disk, a row of a view."""
    views, rows, _ = capture.shape
    return capture.part.table.total_bytes() / (views * rows)
