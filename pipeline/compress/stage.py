"""A smaller capture from a sealed one, without its teacher.

1. The request is checked against the store: a name that is taken, a source that is encoded already.
2. The encoding is chosen from the source's own rows (`choose`). An unfinished capture keeps the encoding that it was begun
   with.
3. The basis of a transform is made of a draw of the source's rows, of all its views (`calibration`).
4. Block by block, on all cores, the source's rows are read and written again as a part that names the source and its seal.

Killed anywhere and started again, it ends with the same bytes. The source is not changed.
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
from ...storage.encodings.half import FloatEncoding, rounding_error
from ...storage.encodings.named import encoding_described, encoding_named
from ...storage.encodings.top_k import TopK
from ...storage.encodings.transform import Transform
from ...storage.errors import ConfigError, NameTaken
from ...storage.format.documents import check_name
from ...storage.identity import check_same
from ...storage.parts.fidelity import Fidelity, fidelity
from ...storage.parts.refinement import basis_bytes
from ...storage.progress import Progress, silent
from ...storage.sharing.card_file import refresh_card
from ..calibration_rows import capture_rows
from ..runtime.dask_tasks import over_blocks
from .choose import SmallestTopK, fit_budget, fit_top_k, positive_number, sample_chunks, scan

log = logging.getLogger(__name__)
Wish: TypeAlias = ErrorBudget | TopK | SmallestTopK | Transform
"""A user's request; of an error budget, `max_kl` and `min_temperature` alone."""
DERIVED: Final = "derived_from"
"""Key of an identity: the source capture, its seal, and the request for the smallest k."""
_SMALLEST: Final = "smallest_for"


@dataclass(frozen=True)
class CompressReport:
    """Result of a compression."""

    name: str
    """Name of the new capture."""
    source: str
    """Name of the capture that it was made from."""
    made: bool
    """Whether anything was written now."""
    encoding: Encoding
    """Encoding of its logits."""
    source_row_bytes: float
    """Bytes of all arrays of the source, a row of a view."""
    row_bytes: float
    """The same of the new capture."""
    basis_bytes: int
    """Bytes of its basis, once a capture; 0 without one."""
    fidelity: tuple[Fidelity, ...]
    """KL to the source, by temperature."""
    digest: str
    """Digest of the store."""


@dataclass(frozen=True)
class CompressPlan:
    """The work of a compression."""

    source: Capture
    """The capture that is read."""
    name: str
    """Name of the new capture."""
    wish: Wish
    """The user's request."""
    encoding: Encoding | None
    """Encoding that it was begun with; None where it is still to be chosen."""
    done: bool
    """Whether it is sealed and no file is missing."""

    @property
    def lines(self) -> list[str]:
        """Return the work that is left, a line each, for `--dry-run`."""
        if self.done:
            return []
        verb = "make" if self.encoding is None else "finish"
        return [f"{verb} capture {self.name} from {self.source.name}: {say(self.encoding or self.wish)}"]


def say(wish: Encoding | Wish) -> str:
    """Return an encoding, or a request for one, in a few words.

    >>> say(ErrorBudget(1e-3, 2.0)), say(TopK(64)), say(SmallestTopK(0.1, 4.0))
    ('KL at most 0.001 at T >= 2', 'the 64 largest logits', 'the smallest k with max KL at most 0.1 at T = 4')
    >>> say(Transform(1e-2, (1.0, 4.0)))
    'KL at most 0.01 at T = 1, 4, by a transform'
    """
    if isinstance(wish, Transform):
        temperatures = ", ".join(f"{t:g}" for t in wish.temperatures)
        return f"KL at most {wish.max_kl:g} at T = {temperatures}, by a transform"
    if isinstance(wish, ErrorBudget):
        return f"KL at most {wish.max_kl:g} at T >= {wish.min_temperature:g}"
    if isinstance(wish, SmallestTopK):
        return f"the smallest k with {wish.statistic} KL at most {wish.max_kl:g} at T = {wish.temperature:g}"
    return f"the {wish.k} largest logits" if isinstance(wish, TopK) else wish.kind


def wish_named(wish: "str | Mapping[str, Any] | Wish") -> Wish:
    """Parse a user's request. Raises ConfigError.

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
        limit, temperature = (positive_number(key, wish.get(key)) for key in ("top_k_kl", "temperature"))
        return SmallestTopK(limit, temperature, str(wish.get("statistic", "max")))
    named = encoding_named(wish)
    if isinstance(named, ErrorBudget):
        return ErrorBudget(named.max_kl, named.min_temperature)
    if isinstance(named, TopK | Transform):
        return named
    raise ConfigError(
        "encoding",
        expected="{ transform = { max_kl = 1e-2 } } (with temperatures, 1, 2, 4 and 8 unless given), { max_kl = 1e-3 } "
        "(with min_temperature, 1 unless given), { top_k = 64 } or { top_k_kl = 0.1, temperature = 4.0 }",
        found=named.kind,
        remedy="choose one of these; a teacher is captured in float16 or float32 by `cache`",
    )


def compress(
    store: Store,
    teacher: str,
    name: str,
    encoding: "str | Mapping[str, Any] | Wish",
    *,
    progress: Progress = silent,
) -> CompressReport:
    """Make and seal `teachers/<name>`, an encoded copy of `teachers/<teacher>`, or resume it.

    encoding: {"transform": {"max_kl": 1e-2}} (with "temperatures"), {"max_kl": 1e-3} (with "min_temperature"), {"top_k": 64},
    or {"top_k_kl": 0.1, "temperature": 4.0} (with "statistic": "mean", "max" or "p99.9") for the smallest k that keeps it
    over all rows. The KL of a transform is to the rows of the source as they are decoded.
    Raises PartNotFound or StoreIncomplete where the source is missing or not sealed, ConfigError for a source that is
    encoded already and for a request that cannot be met, NameTaken or SpecMismatch for the name of another capture.
    """
    plan = plan_compression(store, teacher, name, encoding)
    if not plan.done:
        store.check_writable()
        _write(store, plan, plan.encoding or _choose(store, plan, progress), progress)
    refresh_card(store.root, made=not plan.done)
    source, capture = plan.source, store.teachers[name]
    report = CompressReport(
        name,
        teacher,
        not plan.done,
        capture.encoding,
        row_bytes(source),
        row_bytes(capture),
        basis_bytes(capture),
        fidelity(capture),
        store.digest,
    )
    views, rows, _ = capture.shape
    with_basis = report.row_bytes + report.basis_bytes / (views * rows)
    if report.made and with_basis >= report.source_row_bytes:
        log.warning(
            "%s: %.1f bytes a row%s, %s has %.1f: compression gains nothing with so few %s",
            f"{store.path}: teachers/{name}",
            with_basis,
            " with its share of the basis" if report.basis_bytes else "",
            teacher,
            report.source_row_bytes,
            "classes" if report.row_bytes >= report.source_row_bytes else "rows",
        )
    return report


def plan_compression(
    store: Store, teacher: str, name: str, encoding: "str | Mapping[str, Any] | Wish"
) -> CompressPlan:
    """Plan `compress`, with all its refusals that need no logit. Writes nothing."""
    wish = wish_named(encoding)
    check_name(name, "the name of the new capture")
    source = store.teachers[teacher]
    # A transform measures the KL of each row to whatever is decoded; the other encodings count their source's error in.
    if not isinstance(
        source.encoding, (FloatEncoding, ErrorBudget) if isinstance(wish, Transform) else FloatEncoding
    ):
        origin = source.provenance.get(DERIVED)
        instead = origin.get("capture") if isinstance(origin, Mapping) else None
        raise ConfigError(
            f"{store.path}: teachers/{teacher}",
            expected="a capture in float16 or float32"
            + (", or of an error budget" if isinstance(wish, Transform) else ""),
            found=f"a capture that is encoded already ({source.encoding.kind})",
            remedy=f"compress {instead}, which it was made from"
            if instead in store.teachers
            else f"compress {instead}, which it was made from, where it is still there: here it is not"
            if instead
            else "compress a capture that is not",
        )
    if isinstance(wish, TopK):
        wish.arrays(source.shape[2])  # raises for k above the number of classes
    identity = store.identity_of(f"teachers/{name}")
    if identity is None:
        return CompressPlan(source, name, wish, None, False)
    _check_name_is_ours(store, source, name, wish, identity)
    chosen = encoding_described(identity["encoding"], f"teachers/{name}")
    return CompressPlan(source, name, wish, chosen, store.is_whole(f"teachers/{name}"))


def _check_name_is_ours(
    store: Store, source: Capture, name: str, wish: Wish, identity: Mapping[str, Any]
) -> None:
    """Refuse the name of another capture. Raises NameTaken or SpecMismatch."""
    where = f"{store.path}: teachers/{name}"
    origin, encoding = identity.get(DERIVED), identity.get("encoding")
    if not isinstance(origin, Mapping) or not isinstance(encoding, Mapping):
        raise NameTaken(
            where,
            expected=f"a name that is free, or a capture with {DERIVED} in its identity",
            found=f"a capture with {', '.join(sorted(identity)) or 'no keys'}",
            remedy="choose another name",
        )
    remedy, made = "choose another name", "with which it was made"
    if not store.is_sealed(f"teachers/{name}"):
        remedy += f"; to begin it anew, delete {store.path / 'teachers' / name}"
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
    """Return a request in the form of `_asked_of`."""
    if isinstance(wish, ErrorBudget):
        return {"kind": wish.kind, "max_kl": wish.max_kl, "min_temperature": wish.min_temperature}
    if isinstance(wish, SmallestTopK):
        return {"kind": TopK.kind, _SMALLEST: wish.describe()}
    return wish.describe()


def _asked_of(encoding: Mapping[str, Any], origin: Mapping[str, Any]) -> dict[str, Any]:
    """Return the request that an identity was made for."""
    if encoding.get("kind") == ErrorBudget.kind:
        return {key: encoding.get(key) for key in ("kind", "max_kl", "min_temperature")}
    if _SMALLEST in origin:
        return {"kind": encoding.get("kind"), _SMALLEST: origin[_SMALLEST]}
    return dict(encoding)


def _choose(store: Store, plan: CompressPlan, progress: Progress) -> Encoding:
    """Choose the encoding by the rows of the source. Raises ConfigError, or BadLogitsError for rows out of range."""
    source, wish = plan.source, plan.wish
    found = scan(source, wish if isinstance(wish, TopK) else None, progress=progress)
    where = f"{store.path}: teachers/{source.name}"
    chosen: Encoding
    if isinstance(wish, SmallestTopK):
        chosen = fit_top_k(source, wish, progress=progress)
    elif isinstance(wish, ErrorBudget):
        chosen = fit_budget(
            wish.max_kl,
            wish.min_temperature,
            spread=found.spread,
            source_error=rounding_error(source.encoding.kind, found.spread),
            samples=(source.read(rows, view) for view, rows in sample_chunks(source)),
            where=where,
        )
    else:
        chosen = wish
    if found.first_constant is not None:
        log.warning(
            "%s: %s of %s rows have the same logit for all classes, as a dead teacher gives "
            "(first: view %d, row %d); they are kept",
            where,
            f"{found.constant_rows:,}",
            f"{source.num_views * store.num_rows:,}",
            *found.first_constant,
        )
    return chosen


def _write(store: Store, plan: CompressPlan, encoding: Encoding, progress: Progress) -> None:
    """Write the missing blocks of the new capture, and seal it."""
    source = plan.source
    identity = dict(source.part.spec.identity)
    views = identity.pop("views", source.num_views)
    del identity["encoding"]
    origin = _origin(source)
    if isinstance(plan.wish, SmallestTopK):
        origin[_SMALLEST] = plan.wish.describe()
    with store.capture(
        plan.name,
        provenance={**identity, DERIVED: origin},
        views=views,
        encoding=encoding,
        classes=source.classes,
        notes={
            "python": platform.python_version(),
            "numpy": np.__version__,
            "numcodecs": numcodecs.__version__,
        },
        calibration=(lambda: capture_rows(source, encoding)) if isinstance(encoding, Transform) else None,
    ) as capture:

        def write(view: int, rows: range) -> None:
            logits, seen, peak = source.read(rows, view), source.seen(rows, view), source.peak(rows, view)
            capture.write(rows, logits, view, seen=seen, peak=peak)

        missing = [(view, rows) for view in range(views) for rows in capture.missing_blocks(view)]
        done = views * store.num_rows - sum(len(rows) for _, rows in missing)
        over_blocks(f"compress {source.name}", missing, write, progress=progress, done=done)


def row_bytes(capture: Capture) -> float:
    """Return the bytes of all block arrays of a capture on the disk, a row of a view."""
    views, rows, _ = capture.shape
    return capture.part.table.total_bytes() / (views * rows)
