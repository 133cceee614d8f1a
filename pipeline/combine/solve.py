"""The distribution q that agrees best with a generalist and its active specialists.

1. `active_specialists`: those whose set meets the n most likely classes of the generalist. Without any, q is the
   generalist's distribution. Rows are taken together by pattern: by which specialists are active.
2. Classes that lie in the same active sets form a group. Within a group the objective is met exactly by
   q_i ∝ a_i = p^g_i + Σ p^m_i (the sum over the active sets that hold i). Only the masses of the groups are left to find.
3. For one specialist they have a closed form; for more, `group_masses` finds them.

With S the set of a specialist, d its dustbin class (all other classes) and Q its mass under q, the objective is

    KL(p^g, q) + Σ_m KL(p^m, q),   q_d = Q = Σ_{i ∉ S} q_i          ("pq": the paper's)
    KL(q, p^g) + Σ_m KL(q, p^m)                                      ("qp": closed form for one specialist)

Source: Hinton et al. 2015, section 5.4, eq. 5, at temperature 1. All in logarithms: a probability may be 0, and a logit as
small as -1e4 keeps its distance from its neighbours.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from jaxtyping import Bool, Float, Float64, Int64
from numpy.typing import NDArray

from ...storage.errors import BadDataError, ConfigError
from .experts import DUSTBIN, Experts, pieces
from .group_masses import group_masses

DIRECTIONS: Final = ("pq", "qp")
"""Directions of the divergences."""
METHODS: Final = ("fixed_point", "gradient_descent")
"""Methods for rows with several active specialists."""
_TOGETHER: Final = 4096
"""Rows that wait for `group_masses` together."""


def combine_rows(
    logits: Float[np.ndarray, "rows classes"],
    experts: Experts,
    active: Bool[np.ndarray, "rows specialists"],
    specialists: Sequence[NDArray[Any]],
    *,
    direction: str = "pq",
    method: str = "fixed_point",
    out: Float[np.ndarray, "rows classes"] | None = None,
) -> Float[np.ndarray, "rows classes"]:
    """Return ln q of each row.

    logits: of the generalist, in nats, any additive constant per row, finite; float32 or float64, the dtype of
        classes outside all sets. Everything else is float64.
    active: as `active_specialists` returns it.
    specialists: by specialist, its logits for its active rows alone, in order: (active rows, columns), in the order of
        `experts.classes`; the dustbin corrected. -inf is a probability of 0.
    out: receives the result; may be `logits` itself.
    Raises ConfigError for direction "qp" with several active specialists in a row, BadDataError for arrays that do not fit.
    """
    check_settings(direction, method)
    _check_arrays(logits, experts, active, specialists)
    counts = active.sum(axis=1)
    if direction == "qp" and (counts > 1).any():
        row = int(np.argmax(counts > 1))
        raise ConfigError(
            f"direction 'qp': row {row}",
            expected="at most one active specialist a row",
            found=f"{int(counts[row])} active specialists",
            remedy="take disjoint sets and top = 1, or direction 'pq'",
        )
    out = np.empty_like(logits) if out is None else out
    log_p = [log_softmax(np.asarray(one, np.float64)) for one in specialists]
    places = np.cumsum(active, axis=0) - 1  # of a row among the active rows of a specialist
    waiting: list[_Piece] = []
    together = 0
    for slots, rows in _patterns(active):
        if not slots:
            for part in pieces(len(rows), logits.shape[1]):
                out[rows[part]] = log_softmax(logits[rows[part]])
            continue
        sets = _Sets.of(experts, slots)
        for part in pieces(len(rows), logits.shape[1]):
            some = rows[part]
            said = [log_p[one][places[some, one]] for one in slots]
            if method == "gradient_descent" and len(slots) > 1:
                from .reference import gradient_descent

                own = [experts.classes[one] for one in slots]
                out[some] = gradient_descent(log_softmax(logits[some].astype(np.float64)), own, said)
                continue
            piece = _Piece.of(logits[some], some, sets, said, direction)
            if len(slots) == 1:
                piece.write(piece.closed_form(direction), out)
            else:
                waiting.append(piece)
                together += len(some)
        if together >= _TOGETHER:
            _solve(waiting, out)
            waiting, together = [], 0
    _solve(waiting, out)
    return out


def check_settings(direction: str, method: str) -> None:
    """Refuse words that say no way to combine, or a method that would have no effect. Raises ConfigError."""
    for name, value, known in (
        ("direction", direction, DIRECTIONS),
        ("method", method, METHODS),
    ):
        if value not in known:
            raise ConfigError(
                name,
                expected=" or ".join(map(repr, known)),
                found=repr(value),
                remedy=f"leave it out for {known[0]!r}",
            )
    if direction == "qp" and method != METHODS[0]:
        raise ConfigError(
            "method",
            expected=f"{METHODS[0]!r} with direction 'qp', which has a closed form",
            found=repr(method),
            remedy="leave method out, or take direction 'pq'",
        )


def _check_arrays(
    logits: NDArray[Any], experts: Experts, active: NDArray[Any], specialists: Sequence[NDArray[Any]]
) -> None:
    wanted = [(logits.shape[0], experts.num_classes), (logits.shape[0], len(experts.classes))]
    found = [logits.shape, active.shape]
    rows = active.sum(axis=0).tolist() if active.ndim == 2 else []
    wanted += [(asked, len(own)) for asked, own in zip(rows, experts.classes, strict=False)]
    found += [array.shape for array in specialists]
    if wanted != found:
        raise BadDataError(
            "logits, active, specialists",
            expected=f"arrays of shapes {str(wanted)[:160]}",
            found=str(found)[:160],
            remedy="pass each specialist's logits for its active rows, and all classes of the generalist",
        )


def _patterns(
    active: Bool[np.ndarray, "rows specialists"],
) -> Iterator[tuple[list[int], Int64[np.ndarray, "some"]]]:
    """Yield each set of active specialists, with its rows, ascending."""
    # Eight specialists a byte: a sort of few bytes a row.
    kinds, kind = np.unique(np.packbits(active, axis=1), axis=0, return_inverse=True)
    order = np.argsort(kind.reshape(-1), kind="stable")
    ends = np.cumsum(np.bincount(kind.reshape(-1), minlength=len(kinds)))
    for rows in np.split(order, ends[:-1]):
        if len(rows):
            yield np.flatnonzero(active[rows[0]]).tolist(), rows


@dataclass(frozen=True, eq=False)
class _Sets:
    """The classes of some active specialists, group by group. Group 0 lies outside all sets."""

    classes: Int64[np.ndarray, "width"]
    """Classes of all sets together."""
    group: Int64[np.ndarray, "width"]
    """Group of each, ascending from 1."""
    begins: Int64[np.ndarray, "inner"]
    """Where groups 1, 2, … begin in `classes`."""
    columns: list[tuple[NDArray[np.int64], NDArray[np.int64]]]
    """By slot: where its classes are in `classes`, and in which of its columns."""
    dustbins: list[int]
    """By slot: its dustbin column."""
    outside: Float64[np.ndarray, "slots groups"]
    """1 where a group lies in the dustbin of a slot, else 0."""

    @staticmethod
    def of(experts: Experts, slots: list[int]) -> "_Sets":
        """Group the classes of some specialists."""
        members = experts.members[slots]
        classes = np.flatnonzero(members.any(axis=0))
        group = np.zeros(len(classes), np.int64)
        for own in members[:, classes]:
            group = np.unique(2 * group + own, return_inverse=True)[1]
        order = np.argsort(group, kind="stable")
        classes, group = classes[order], 1 + group[order]
        inside = members[:, classes]
        outside = np.ones((len(slots), 1 + group[-1]))
        outside[:, group] = ~inside
        where = [np.flatnonzero(own) for own in inside]
        columns = [(own, experts.columns[one, classes[own]]) for one, own in zip(slots, where, strict=True)]
        dustbins = [int(np.flatnonzero(experts.classes[one] == DUSTBIN)[0]) for one in slots]
        return _Sets(classes, group, np.searchsorted(group, np.unique(group)), columns, dustbins, outside)


@dataclass(frozen=True, eq=False)
class _Piece:
    """Some rows with the same active specialists, and what is known of their q."""

    rows: Int64[np.ndarray, "rows"]
    sets: _Sets
    values: NDArray[Any]
    """(rows, classes): ln of each class's share of the mass outside all sets; undefined for classes of the sets."""
    log_sums: Float64[np.ndarray, "rows width"]
    """ln a of the classes of the sets ("qp": the mean of the logarithms)."""
    log_groups: Float64[np.ndarray, "rows groups"]
    """ln a of each group; -inf of a group without classes."""
    log_dustbins: Float64[np.ndarray, "rows slots"]
    """ln p^m of the dustbin."""

    @staticmethod
    def of(
        values: NDArray[Any],
        rows: NDArray[np.int64],
        sets: _Sets,
        said: list[NDArray[np.float64]],
        direction: str,
    ) -> "_Piece":
        """Look at some rows. values: the generalist's logits, overwritten. said: ln p^m of the same rows, by slot."""
        values -= values.max(axis=1, keepdims=True)
        log_sums = values[:, sets.classes].astype(np.float64)
        values[:, sets.classes] = -np.inf
        base = np.maximum(values.max(axis=1, keepdims=True), np.finfo(values.dtype).min)
        values -= base
        with np.errstate(divide="ignore"):
            log_outside = np.log(np.exp(values).sum(axis=1).astype(np.float64))
        if len(sets.classes) < values.shape[1]:
            values -= log_outside[:, None].astype(values.dtype)
        log_outside += base[:, 0]
        log_total = np.logaddexp(log_outside, _log_sum(log_sums))
        log_sums -= log_total[:, None]
        for one, (where, columns) in zip(said, sets.columns, strict=True):
            if direction == "qp":
                log_sums = (log_sums + one[:, columns]) / 2
            else:
                log_sums[:, where] = _log_add(log_sums[:, where], one[:, columns])
        if len(sets.begins) == 1:
            log_groups = _log_sum(log_sums)[:, None]
        else:
            log_groups = np.logaddexp.reduceat(log_sums, sets.begins, axis=1)
        dustbins = [one[:, column] for one, column in zip(said, sets.dustbins, strict=True)]
        return _Piece(
            rows,
            sets,
            values,
            log_sums,
            np.hstack([(log_outside - log_total)[:, None], log_groups]),
            np.stack(dustbins, axis=1),
        )

    def closed_form(self, direction: str) -> Float64[np.ndarray, "rows groups"]:
        """Return ln of the masses of both groups, for one specialist.

        pq: q_i = (p^g_i + p^m_i)/2 in the set; outside, the mass is the mean of the two dustbins'.
        qp: the same with geometric means, normalised.
        """
        (outside, inside), dustbin = self.log_groups.T, self.log_dustbins[:, 0]
        outside = np.logaddexp(outside, dustbin) if direction == "pq" else (outside + dustbin) / 2
        total = np.logaddexp(outside, inside)
        return np.stack([outside - total, inside - total], axis=1)

    def write(self, log_masses: Float64[np.ndarray, "rows groups"], out: NDArray[Any]) -> None:
        """Put ln q into the rows of `out`. log_masses: ln q of each group."""
        values, sets = self.values, self.sets
        if len(sets.classes) < out.shape[1]:
            values += log_masses[:, :1].astype(out.dtype)
        # Of a group whose a is 0 nothing is shared.
        there = np.isfinite(self.log_groups)
        rise = np.where(there, log_masses - np.where(there, self.log_groups, 0), 0)
        values[:, sets.classes] = self.log_sums + rise[:, sets.group]
        out[self.rows] = values


def _solve(waiting: list[_Piece], out: NDArray[Any]) -> None:
    """Write rows with several active specialists, all rows with equally many of them at once."""
    for slots in {piece.sets.outside.shape[0] for piece in waiting}:
        some = [piece for piece in waiting if piece.sets.outside.shape[0] == slots]
        widths = [piece.sets.outside.shape[1] for piece in some]
        rows = np.cumsum([len(piece.rows) for piece in some])
        log_sums = np.full((rows[-1], max(widths)), -np.inf)  # a group without classes where a row has fewer
        outside = np.zeros((rows[-1], slots, max(widths)))
        parts = [slice(end - len(piece.rows), end) for end, piece in zip(rows.tolist(), some, strict=True)]
        for piece, part, width in zip(some, parts, widths, strict=True):
            log_sums[part, :width] = piece.log_groups
            outside[part, :, :width] = piece.sets.outside
        solved = group_masses(log_sums, outside, np.concatenate([piece.log_dustbins for piece in some]))
        for piece, part, width in zip(some, parts, widths, strict=True):
            piece.write(solved[part, :width], out)


def log_softmax(logits: Float[np.ndarray, "rows classes"]) -> Float[np.ndarray, "rows classes"]:
    """Return ln softmax of each row, in the dtype of the logits; -inf stays -inf."""
    values = logits - logits.max(axis=1, keepdims=True) if logits.size else logits.copy()
    values -= np.log(np.exp(values).sum(axis=1, keepdims=True))
    return np.asarray(values)


def _log_add(left: NDArray[np.float64], right: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return ln(exp(left) + exp(right)), left finite; four times as fast as `np.logaddexp`."""
    high = np.maximum(left, right)
    return np.asarray(np.log(1 + np.exp(np.minimum(left, right) - high)) + high)


def _log_sum(values: Float64[np.ndarray, "rows columns"]) -> Float64[np.ndarray, "rows"]:
    """Return ln Σ exp of each row."""
    base = values.max(axis=1)
    return np.asarray(np.log(np.exp(values - base[:, None]).sum(axis=1)) + base)
