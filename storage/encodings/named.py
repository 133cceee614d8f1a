"""Encodings by the name that a user gives, or by the description in a spec."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from ..checks import check_flags, whole_number
from ..errors import ConfigError, LogitStoreError, UnsupportedFeature
from ..format.constants import ERROR_BUDGET, TOP_K, TRANSFORM
from .encoding import Encoding
from .error_budget import ErrorBudget
from .half import FLOATS
from .top_k import TopK, bad_k
from .transform import CALIBRATION_ROWS, TEMPERATURES, Transform

EXPECTED: Final = (
    "'float16', 'float32', { transform = { max_kl = 1e-3 } } (with temperatures, 1, 2, 4 and 8 unless given), "
    "{ max_kl = 1e-3 } (with min_temperature, 1 unless given) or { top_k = 64 }"
)
"""The names that a user may give."""


def encoding_named(name: object) -> Encoding:
    """Return the encoding of a name, one of `EXPECTED`, or an encoding itself. Raises ConfigError.

    >>> encoding_named("float16").describe()
    {'kind': 'float16'}
    >>> encoding_named({"top_k": 64}).describe()
    {'kind': 'top-k', 'k': 64}
    """
    if isinstance(name, Encoding):
        return name
    if isinstance(name, str) and name in FLOATS:
        return FLOATS[name]
    if isinstance(name, Mapping):
        if set(name) == {"top_k"}:
            return _top_k(name["top_k"])
        if set(name) == {"transform"} and isinstance(name["transform"], Mapping):
            return _transform(name["transform"])
        if "max_kl" in name and set(name) <= {"max_kl", "min_temperature"}:
            return ErrorBudget(
                _number(name["max_kl"], "max_kl"),
                _number(name.get("min_temperature", 1.0), "min_temperature"),
            )
    raise ConfigError("encoding", expected=EXPECTED, found=repr(name)[:80], remedy="choose one of these")


def encoding_described(description: object, where: str) -> Encoding:
    """Return the encoding that a spec describes. Raises UnsupportedFeature for an unknown one."""
    if isinstance(description, Mapping):
        kind = description.get("kind")
        if isinstance(kind, str) and kind in FLOATS:
            return FLOATS[kind]
        try:
            if kind == TRANSFORM:
                encoding: Encoding | None = _transform_described(description)
            else:
                encoding = _top_k(description["k"]) if kind == TOP_K else _budget(description)
        except (KeyError, LogitStoreError, TypeError, ValueError, OverflowError):
            encoding = None
        if encoding is not None and dict(description).items() >= encoding.describe().items():
            return encoding
    raise UnsupportedFeature(
        where,
        expected="one of the encodings of this version",
        found=f"the encoding {description!r}"[:120],
        remedy="open this capture with a newer logitstore",
    )


def _budget(description: Mapping[str, Any]) -> Encoding | None:
    if description["kind"] != ERROR_BUDGET:
        return None
    numbers = [description[key] for key in ("max_kl", "min_temperature", "source_error", "step")]
    shift, dtype = description["shift"], description["dtype"]
    whole = isinstance(shift, int) and not isinstance(shift, bool) and 0 <= shift < 16
    if not whole or dtype not in ("uint8", "uint16") or not all(type(n) in (int, float) for n in numbers):
        return None
    max_kl, min_temperature, source_error, _ = map(float, numbers)
    return ErrorBudget(max_kl, min_temperature, source_error, dtype, shift)


_TRANSFORM_KEYS: Final = ("max_kl", "temperatures", "rows", "seed", "peak")


def _transform(given: Mapping[str, Any]) -> Transform:
    """Return the transform encoding of a user's table. Raises ConfigError."""
    wrong = [str(key) for key in given if key not in _TRANSFORM_KEYS]
    if wrong or "max_kl" not in given:
        raise ConfigError(
            "encoding: transform",
            expected=f"a table of max_kl and, optionally, {', '.join(_TRANSFORM_KEYS[1:])}",
            found=", ".join(wrong) or "no max_kl",
            remedy="write { transform = { max_kl = 1e-2 } }",
        )
    temperatures = given.get("temperatures", TEMPERATURES)
    if isinstance(temperatures, str | Mapping) or not isinstance(temperatures, Sequence):
        raise ConfigError(
            "encoding: temperatures",
            expected="a list",
            found=repr(temperatures)[:40],
            remedy="write [1, 2, 4, 8]",
        )
    keeps_peak = given.get("peak", False)
    check_flags(peak=keeps_peak)
    return Transform(
        _number(given["max_kl"], "max_kl"),
        tuple(_number(t, "temperatures") for t in temperatures),
        whole_number("encoding: rows", given.get("rows", CALIBRATION_ROWS), 2, 1 << 20),
        whole_number("encoding: seed", given.get("seed", 0), 0),
        keeps_peak,
    )


def _transform_described(description: Mapping[str, Any]) -> Encoding:
    calibration = description["calibration"]
    table = {key: description[key] for key in ("max_kl", "temperatures", "peak")}
    return _transform({**table, "rows": calibration["rows"], "seed": calibration["seed"]})


def _top_k(k: object) -> Encoding:
    if isinstance(k, bool) or not isinstance(k, int):
        raise bad_k(k, "an integer of at least 1")
    return TopK(k)


def _number(value: object, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ConfigError(
            f"encoding: {name}",
            expected="a positive number",
            found=repr(value)[:40],
            remedy=f"correct {name}",
        )
    return float(value)
