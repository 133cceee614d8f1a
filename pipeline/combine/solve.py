"""Which distribution over all classes agrees best with a generalist and its active specialists?

1. `active_specialists`: those whose set of classes meets the n most likely classes of the generalist. Without any, q is
   the generalist's distribution.
2. Classes that lie in the same active sets form a group. The terms of the objective that tell the classes of a group
   apart are met exactly by q_i ∝ a_i = p^g_i + Σ p^m_i (the sum over the active sets that hold i), so that what is left to
   find is the mass of each group: numbers as few as 2 for one active specialist and 8 for three.
3. For one specialist these masses have a closed form; for more, `group_masses` finds them by the fixed point of Hinton's
   objective, stopped on its residual. Everything else is one softmax of the generalist's row, and the columns of the sets.

With S the set of a specialist, d its dustbin class (all other classes) and Q its mass under q, the objective is

    KL(p^g, q) + Σ_m KL(p^m, q),   q_d = Q = Σ_{i ∉ S} q_i          ("pq": as the paper has it)
    KL(q, p^g) + Σ_m KL(q, p^m)                                      ("qp": closed form for one specialist)

Source: Hinton et al. 2015, section 5.4, eq. 5, at temperature 1. All in logarithms: a probability may be 0, and a logit as
small as -1e4 keeps what it says of its neighbours.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from jaxtyping import Bool, Float, Float64, Int64
from numpy.typing import NDArray

from ...storage.errors import BadDataError, ConfigError
from .experts import DUSTBIN, Experts, _pieces, _ranks
from .group_masses import group_masses

DIRECTIONS: Final = ("pq", "qp")
"""Which way the divergences go."""


METHODS: Final = ("fixed_point", "gradient_descent")
"""How q is found where several specialists are active."""


_TABLE: Final = 1 << 24
"""Elements of the tables that say which class is where, for the rows that are worked on together."""


_SLOTS: Final = 5
"""Active specialists up to which the rows of all patterns are solved together, by 2^slots groups."""


_LARGE: Final = 16.0
"""A number of which the last digits of a float32 matter."""


_LEAST: Final = 1e-30
"""A sum of exponentials in float32 below this has lost digits, and is taken anew in float64."""


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
    """ln q of each row, which the generalist and its active specialists agree on best.

    logits: of the generalist, in natural-log units, any additive constant per row, finite; float32 or float64, in which
        everything but the masses of the groups (float64) is computed.
    active: as `active_specialists` gives it.
    specialists: by specialist, its logits for its active rows alone, in order: (active rows, columns), as
        `experts.classes` has them; the dustbin corrected. -inf is a probability of 0.
    out: where the result goes, which may be `logits` itself.
    Raises ConfigError for a direction that has no closed form for the rows, BadDataError for arrays that do not fit.
    """
    check_settings(direction, method)
    counts = active.sum(axis=1)
    _check_arrays(logits, experts, active, specialists)
    if direction == "qp" and (counts > 1).any():
        row = int(np.argmax(counts > 1))
        raise ConfigError(
            f"direction 'qp': row {row}",
            expected="at most one active specialist a row: KL(q, p) has a closed form for no more",
            found=f"{int(counts[row])}",
            remedy="take disjoint sets and top = 1, or direction 'pq'",
        )
    out = np.empty_like(logits) if out is None else out
    asked = _Asked.of(logits.dtype, experts, active, specialists)
    for slots in np.unique(counts).tolist():
        rows = np.flatnonzero(counts == slots)
        if slots == 0:
            _log_softmax(logits, rows, out)
        elif method == "gradient_descent" and slots > 1:
            _by_gradient_descent(logits, asked, rows, slots, out)
        else:
            for batch in _batches(asked, rows, slots):
                _combine_batch(logits, asked, batch, direction, out)
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


@dataclass(frozen=True, eq=False)
class _Asked:
    """What the active specialists say, in one long array."""

    experts: Experts
    active: Bool[np.ndarray, "rows specialists"]
    said: NDArray[Any]
    """ln p^m of every active row of every specialist, one after another; last -inf, for a class that is not of the set."""
    begins: Int64[np.ndarray, "specialists"]
    """Where a specialist's rows begin."""
    widths: Int64[np.ndarray, "specialists"]
    """Its columns."""
    dustbins: Int64[np.ndarray, "specialists"]
    """Its dustbin column."""
    ranks: Int64[np.ndarray, "rows specialists"]
    """Of an active specialist: how many of its active rows come before this one."""

    @staticmethod
    def of(
        dtype: Any, experts: Experts, active: NDArray[Any], specialists: Sequence[NDArray[Any]]
    ) -> "_Asked":
        parts = [log_softmax(np.asarray(array, dtype)).reshape(-1) for array in specialists]
        ends = np.cumsum([0, *(len(part) for part in parts)])
        return _Asked(
            experts,
            active,
            np.concatenate([*parts, np.full(1, -np.inf, dtype)]),
            ends[:-1].astype(np.int64),
            np.array([len(own) for own in experts.classes], np.int64),
            np.array([np.flatnonzero(own == DUSTBIN)[0] for own in experts.classes], np.int64),
            _ranks(active),
        )


@dataclass(frozen=True, eq=False)
class _Batch:
    """Rows that have equally many active specialists, and where their classes are."""

    rows: Int64[np.ndarray, "rows"]
    slots: Int64[np.ndarray, "rows slots"]
    """The active specialists of each row, ascending."""
    pattern: Int64[np.ndarray, "rows"]
    """Which of the sets of active specialists below a row has."""
    classes: Int64[np.ndarray, "patterns width"]
    """The classes of all sets together; a pattern with fewer repeats its first."""
    group: Int64[np.ndarray, "patterns width"]
    """Group of each. Group 0 lies outside all sets."""
    repeated: Bool[np.ndarray, "patterns width"] | None
    """Where a class only repeats the first; None where none does."""
    columns: Int64[np.ndarray, "patterns slots width"]
    """Column of the class among those of the specialist; -1 where it is not of its set."""
    outside: Float64[np.ndarray, "slots groups"]
    """1 where a group lies in the dustbin of a slot, else 0."""


def _batches(asked: _Asked, rows: NDArray[np.int64], slots: int) -> Iterator[_Batch]:
    """The rows with so many active specialists, in batches whose tables are not too large."""
    experts = asked.experts
    active = np.nonzero(asked.active[rows])[1].reshape(-1, slots)
    step = max(1, _TABLE // (slots * experts.num_classes))
    if slots > _SLOTS:  # groups of their own for each pattern
        patterns, of_row = np.unique(active, axis=0, return_inverse=True)
        for number in range(len(patterns)):
            mine = np.flatnonzero(of_row.reshape(-1) == number)
            for first in range(0, len(mine), step):
                part = mine[first : first + step]
                yield _batch(experts, rows[part], active[part], compact=True)
        return
    for first in range(0, len(rows), step):
        yield _batch(experts, rows[first : first + step], active[first : first + step], compact=False)


def _batch(experts: Experts, rows: NDArray[np.int64], slots: NDArray[np.int64], *, compact: bool) -> _Batch:
    if slots.shape[1] == 1:
        patterns, pattern = np.unique(slots[:, 0], return_inverse=True)
        patterns = patterns[:, None]
    else:
        patterns, pattern = np.unique(slots, axis=0, return_inverse=True)
    members = experts.members[patterns]
    row, column = np.nonzero(members.any(axis=1))
    counts = np.bincount(row, minlength=len(patterns))
    begins = np.cumsum(counts) - counts
    classes = np.repeat(column[begins][:, None], counts.max(), axis=1)
    place = np.arange(len(row)) - begins[row]
    classes[row, place] = column
    is_in = np.take_along_axis(members, classes[:, None, :], axis=2)
    if compact:
        # All patterns are one. The first group is the outside, whether there is any or not.
        kinds, kind = np.unique(is_in[0].T, axis=0, return_inverse=True)
        group = 1 + kind.reshape(1, -1).astype(np.int64)
        outside = np.concatenate([np.ones((1, slots.shape[1])), 1.0 - kinds]).T.astype(np.float64)
    else:
        bits = np.arange(slots.shape[1])
        group = (is_in << bits[:, None]).sum(axis=1).astype(np.int64)
        outside = (1.0 - (np.arange(2 ** len(bits)) >> bits[:, None] & 1)).astype(np.float64)
    repeated = np.ones(classes.shape, bool)
    repeated[row, place] = False
    columns = np.where(is_in, experts.columns[patterns[:, :, None], classes[:, None, :]], -1)
    return _Batch(
        rows,
        slots,
        pattern.reshape(-1).astype(np.int64),
        classes,
        group,
        repeated if repeated.any() else None,
        columns,
        outside,
    )


def _combine_batch(
    logits: NDArray[Any], asked: _Asked, batch: _Batch, direction: str, out: NDArray[Any]
) -> None:
    """ln q of the rows of a batch, in pieces; where groups are to be solved for, in two passes over the pieces."""
    pieces = list(_pieces(len(batch.rows), logits.shape[1]))
    if batch.slots.shape[1] == 1:
        for piece in pieces:
            looked = _look(logits, asked, batch, piece, direction)
            looked.write(_one_specialist(looked, direction), out)
        return
    found = [_look(logits, asked, batch, piece, direction) for piece in pieces]
    log_masses = np.concatenate([one.log_group_masses() for one in found], axis=1)
    log_dustbins = np.concatenate([one.log_dustbins for one in found], axis=1)
    solved = group_masses(log_masses, batch.outside, log_dustbins)
    rise = _minus(solved, log_masses)
    for piece, one in zip(pieces, found, strict=True):
        one.write(rise[:, piece], out)


@dataclass(frozen=True, eq=False)
class _Looked:
    """A piece of a batch, looked at once."""

    rows: NDArray[np.int64]
    values: NDArray[Any]
    """(rows, classes): the generalist's logits, the largest of each row 0."""
    log_total: NDArray[np.float64]
    """(rows,): what ln p^g is below them."""
    places: NDArray[np.int64]
    """(rows, width): where the classes of the sets are in it, raveled."""
    group: NDArray[np.int64]
    """(rows, width)"""
    repeated: NDArray[np.bool_] | None
    """(rows, width): what says a class twice; None where nothing does."""
    log_sums: NDArray[Any]
    """(rows, width): ln a of the classes of the sets ("qp": the mean of the logarithms)."""
    log_outside: NDArray[np.float64]
    """(rows,): ln of the generalist's mass outside all sets."""
    log_dustbins: NDArray[np.float64]
    """(slots, rows): ln p^m of the dustbin."""
    groups: int

    def log_group_masses(self) -> Float64[np.ndarray, "groups rows"]:
        """ln a of each group; -inf where a group has no class."""
        rows = len(self.group)
        bins = rows * self.groups
        flat = (self.group + self.groups * np.arange(rows)[:, None]).reshape(-1)
        each = np.exp(self.own_log_sums())
        sums = np.bincount(flat, each.reshape(-1), bins).reshape(rows, -1)
        there = np.bincount(flat, minlength=bins).reshape(rows, -1) > 0
        small = np.flatnonzero((there & (sums < _LEAST)).any(axis=1))
        with np.errstate(divide="ignore"):
            masses = np.log(sums)
        for group in range(1, self.groups) if len(small) else ():
            own = np.where(self.group[small] == group, self.own_log_sums()[small], -np.inf).astype(np.float64)
            masses[small, group] = _log_sum(own)
        masses = masses.T.copy()
        masses[0] = self.log_outside
        return masses

    def own_log_sums(self) -> NDArray[Any]:
        """ln a, -inf where a class is repeated, so that it is counted once."""
        return self.log_sums if self.repeated is None else np.where(self.repeated, -np.inf, self.log_sums)

    def write(self, rise: Float64[np.ndarray, "groups rows"], out: NDArray[Any]) -> None:
        """Put ln q into the rows of `out`. rise: what is added to ln a of the classes of a group."""
        values, dtype = self.values, self.values.dtype
        _add(values, rise[0] - self.log_total)
        if len(rise) == 2:  # one set, all of which is of group 1
            special = self.log_sums + rise[1].astype(dtype)[:, None]
        else:
            flat = self.group * len(self.rows) + np.arange(len(self.rows))[:, None]
            special = self.log_sums + rise.astype(dtype).reshape(-1).take(flat)
        values.reshape(-1)[self.places] = special
        out[self.rows] = values


def _look(logits: NDArray[Any], asked: _Asked, batch: _Batch, piece: slice, direction: str) -> _Looked:
    """One pass over the generalist's logits of some rows, and over what their specialists say."""
    rows, slots, pattern = batch.rows[piece], batch.slots[piece], batch.pattern[piece]
    values = _centred(logits, rows)
    powers = np.exp(values)
    # Of one set, all classes are of group 1, and nobody asks.
    group = batch.group[pattern] if slots.shape[1] > 1 else batch.group[:1]
    places = batch.classes[pattern] + logits.shape[1] * np.arange(len(rows))[:, None]
    special = powers.reshape(-1).take(places)
    repeated = None if batch.repeated is None else batch.repeated[pattern]
    if repeated is not None:
        special[repeated] = 0
    powers.reshape(-1)[places] = 0
    outside = powers.sum(axis=1).astype(np.float64)
    log_total = np.log(outside + special.sum(axis=1))
    with np.errstate(divide="ignore"):
        log_outside = np.log(outside)
    small = np.flatnonzero(outside < _LEAST)
    if len(small):
        exact = values[small].astype(np.float64)
        np.put_along_axis(exact, batch.classes[pattern[small]], -np.inf, axis=1)
        log_outside[small] = _log_sum(exact)
    begins = asked.begins[slots] + asked.ranks[rows[:, None], slots] * asked.widths[slots]
    parts = [values.reshape(-1).take(places) - log_total.astype(values.dtype)[:, None]]
    for slot in range(slots.shape[1]):
        columns = batch.columns[pattern, slot]
        where = begins[:, slot, None] + columns
        if slots.shape[1] > 1:
            where[columns < 0] = len(asked.said) - 1
        parts.append(asked.said.take(where))
    log_sums = sum(parts) / len(parts) if direction == "qp" else _log_add(parts)
    dustbins = asked.said.take(begins + asked.dustbins[slots]).astype(np.float64).T
    return _Looked(
        rows,
        values,
        log_total,
        places,
        group,
        repeated,
        np.asarray(log_sums),
        log_outside - log_total,
        dustbins,
        batch.outside.shape[1],
    )


def _one_specialist(looked: _Looked, direction: str) -> Float64[np.ndarray, "groups rows"]:
    """The closed form: what is added to ln p^g outside the set, and to `log_sums` inside it.

    pq: q_i = (p^g_i + p^m_i)/2 in the set; outside, its mass is the mean of the two dustbins', shared as p^g shares it.
    qp: the same with geometric means, normalised.
    """
    log_outside, (log_dustbin,) = looked.log_outside, looked.log_dustbins
    if direction == "pq":
        mass = np.logaddexp(log_outside, log_dustbin) - np.log(2)
        inside = np.full_like(mass, -np.log(2))
    else:
        mass = (log_outside + log_dustbin) / 2
        inside = -np.logaddexp(mass, _log_sum(looked.own_log_sums().astype(np.float64)))
        mass = mass + inside
    return np.stack([_minus(mass, log_outside), inside])


def _by_gradient_descent(
    logits: NDArray[Any], asked: _Asked, rows: NDArray[np.int64], slots: int, out: NDArray[Any]
) -> None:
    """The paper's way, row group by row group: rows of one pattern have the same sets."""
    from .reference import gradient_descent

    experts = asked.experts
    active = np.nonzero(asked.active[rows])[1].reshape(-1, slots)
    patterns, of_row = np.unique(active, axis=0, return_inverse=True)
    for number, pattern in enumerate(patterns):
        mine = rows[of_row.reshape(-1) == number]
        said = []
        for specialist in pattern.tolist():
            width = int(asked.widths[specialist])
            begins = asked.begins[specialist] + asked.ranks[mine, specialist] * width
            said.append(asked.said.take(begins[:, None] + np.arange(width)).astype(np.float64))
        classes = [experts.classes[specialist] for specialist in pattern.tolist()]
        out[mine] = gradient_descent(log_softmax(logits[mine].astype(np.float64)), classes, said)


def log_softmax(logits: Float[np.ndarray, "rows classes"]) -> Float[np.ndarray, "rows classes"]:
    """ln softmax of each row, in the dtype that is given; -inf stays -inf."""
    values = logits - logits.max(axis=1, keepdims=True) if logits.size else logits.copy()
    values -= np.log(np.exp(values).sum(axis=1, keepdims=True))
    return np.asarray(values)


def _log_softmax(logits: NDArray[Any], rows: NDArray[np.int64], out: NDArray[Any]) -> None:
    for piece in _pieces(len(rows), logits.shape[1]):
        values = _centred(logits, rows[piece])
        values -= np.log(np.exp(values).sum(axis=1, keepdims=True))
        out[rows[piece]] = values


def _centred(logits: NDArray[Any], rows: NDArray[np.int64]) -> NDArray[Any]:
    """A copy of some rows, the largest of each 0, as it is already in what a capture gives."""
    values = np.take(logits, rows, axis=0)
    peak = values.max(axis=1, keepdims=True)
    if peak.any():
        values -= peak
    return np.asarray(values)


def _log_add(parts: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """ln Σ exp of arrays, elementwise; -inf where all are."""
    largest = parts[0]
    for part in parts[1:]:
        largest = np.maximum(largest, part)
    base = np.maximum(largest, np.finfo(largest.dtype).min)
    total = np.exp(parts[0] - base)
    for part in parts[1:]:
        total += np.exp(part - base)
    with np.errstate(divide="ignore"):
        return np.asarray(np.log(total) + base)


def _log_sum(values: Float64[np.ndarray, "rows columns"]) -> Float64[np.ndarray, "rows"]:
    """ln Σ exp of each row; -inf of a row of nothing else."""
    base = np.maximum(values.max(axis=1), np.finfo(np.float64).min)
    with np.errstate(divide="ignore"):
        return np.asarray(np.log(np.exp(values - base[:, None]).sum(axis=1)) + base)


def _add(values: NDArray[Any], more: NDArray[np.float64]) -> None:
    """Add a number to each row, of which no digit is lost where it takes away nearly all of a value."""
    high = more.astype(values.dtype)
    values += high[:, None]
    if np.abs(high).max(initial=0) > _LARGE:
        values += (more - high).astype(values.dtype)[:, None]


def _minus(left: NDArray[Any], right: NDArray[Any]) -> NDArray[Any]:
    """left - right, and 0 where right is -inf: of a group without a class nothing is shared."""
    there = np.isfinite(right)
    return np.where(there, left - np.where(there, right, 0), 0)
