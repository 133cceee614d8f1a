"""Encodings by the name that a user gives, or by the description in a spec."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from ..errors import ConfigError, LogitStoreError, UnsupportedFeature
from ..format.constants import ERROR_BUDGET, TOP_K, TRANSFORM
from .encoding import Encoding
from .error_budget import ErrorBudget
from .half import FLOATS
from .top_k import TopK, bad_k
from .transform import CALIBRATION_ROWS, Transform
from .transform import TEMPERATURES as TRANSFORM_TEMPERATURES

EXPECTED: Final = (
    "'float16', 'float32', { max_kl = 1e-3 } (with min_temperature, 1 unless given), { top_k = 64 } or "
    "{ transform = { max_kl = 1e-2 } } (with temperatures, rows, seed and peak)"
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


def _transform(options: Mapping[str, Any]) -> Transform:
    """Return the transform encoding of a user's table."""
    known = ("max_kl", "temperatures", "rows", "seed", "peak")
    if "max_kl" not in options or not set(options) <= set(known):
        raise ConfigError(
            "encoding: transform",
            expected="max_kl, and perhaps temperatures, rows, seed and peak",
            found=", ".join(map(str, options))[:80] or "nothing",
            remedy="write { transform = { max_kl = 1e-2 } }",
        )
    temperatures = options.get("temperatures", TRANSFORM_TEMPERATURES)
    if not isinstance(temperatures, Sequence) or isinstance(temperatures, str):
        raise _wrong("temperatures", temperatures, "a list of numbers")
    whole = {"rows": options.get("rows", CALIBRATION_ROWS), "seed": options.get("seed", 0)}
    for key, value in whole.items():
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << 63:
            raise _wrong(key, value, "an integer from 0")
    if not isinstance(peak := options.get("peak", False), bool):
        raise _wrong("peak", peak, "true or false")
    numbers = tuple(_number(value, "temperatures") for value in temperatures)
    return Transform(_number(options["max_kl"], "max_kl"), numbers, whole["rows"], whole["seed"], peak)


def _transform_described(description: Mapping[str, Any]) -> Transform:
    options = {key: description[key] for key in ("max_kl", "temperatures", "peak")}
    calibration = description["calibration"]
    return _transform({**options, "rows": calibration["rows"], "seed": calibration["seed"]})


def _top_k(k: object) -> Encoding:
    if isinstance(k, bool) or not isinstance(k, int):
        raise bad_k(k, "an integer of at least 1")
    return TopK(k)


def _number(value: object, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _wrong(name, value, "a positive number")
    return float(value)


def _wrong(name: str, value: object, expected: str) -> ConfigError:
    return ConfigError(
        f"encoding: {name}", expected=expected, found=repr(value)[:40], remedy=f"correct {name}"
    )
