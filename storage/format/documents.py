"""JSON documents of a store, written in one canonical spelling and read within limits."""

import json
import re
from hashlib import sha256
from typing import Any

from ..errors import ConfigError, LimitExceeded, ManifestInvalid, NotAStoreError
from .constants import FORMAT_VERSION, MAX_JSON_BYTES, MAX_JSON_DEPTH

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_RESTORE = "run `logitstore verify` and restore the file from a copy"
DISTRUST = "do not use this store: logitstore writes none like it"


def check_name(name: str, where: str) -> str:
    """Return `name` if it may name a capture or a clustering. Raises ConfigError.

    >>> check_name("wide-0", "teacher")
    'wide-0'
    """
    if not _NAME.fullmatch(name):
        raise ConfigError(
            where,
            expected="a name of 1 to 64 of a-z, 0-9, '.', '_' and '-', the first a letter or a digit",
            found=repr(name),
            remedy="choose another name",
        )
    return name


def sha256_hex(data: bytes | memoryview) -> str:
    """Digest bytes by sha256, as 64 lower-case hexadecimal digits."""
    return sha256(data).hexdigest()


def canonical_json(value: object) -> bytes:
    """Spell a JSON value canonically: sorted keys, no white space, shortest floats, a line feed.

    Numeric keys become text before they are sorted.

    >>> canonical_json({"b": 1, "a": [1.5, None]})
    b'{"a":[1.5,null],"b":1}\\n'
    """
    return _spell(_with_text_keys(value))


def json_digest(value: object) -> str:
    """Digest a JSON value in its canonical spelling, "sha256:…".

    >>> json_digest({"b": 1, "a": 2}) == json_digest({"a": 2, "b": 1})
    True
    """
    return f"sha256:{sha256_hex(canonical_json(value))}"


def _spell(value: object) -> bytes:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode() + b"\n"


def _with_text_keys(value: Any) -> Any:
    """Replace keys by their JSON text, in which 10 sorts before 9. Raises ValueError if two become equal."""
    # Most values are integers, checksums of chunks among them: for those no call.
    if isinstance(value, list | tuple):
        return [item if type(item) is int else _with_text_keys(item) for item in value]
    if not isinstance(value, dict):
        return value
    if all(type(key) is str for key in value):
        return {
            key: item if type(item) in (int, str) else _with_text_keys(item) for key, item in value.items()
        }
    keys = [key if isinstance(key, str) else next(iter(json.loads(json.dumps({key: 0})))) for key in value]
    if len(set(keys)) != len(keys):
        raise ValueError("two keys with the same spelling")
    return dict(zip(keys, map(_with_text_keys, value.values()), strict=True))


def parse_json(data: bytes, where: str) -> dict[str, Any]:
    """Parse a canonically spelled JSON object.

    Raises ManifestInvalid for anything else (another spelling of the same object, a repeated key, NaN and numbers
    beyond float64 included), LimitExceeded if it is larger or deeper than the limits of readers.
    """
    if len(data) > MAX_JSON_BYTES:
        raise beyond(where, MAX_JSON_BYTES, "bytes of JSON", f"{len(data)} bytes")
    try:
        value = json.loads(data)
        if _is_deeper(value, MAX_JSON_DEPTH):
            raise RecursionError
        canonical = _spell(value) == data
    except RecursionError:
        raise beyond(where, MAX_JSON_DEPTH, "levels of JSON", f"{MAX_JSON_DEPTH + 1} or more") from None
    except ValueError as error:
        raise _not_ours(where, f"{len(data)} bytes that do not parse ({type(error).__name__})") from None
    if not canonical:
        raise _not_ours(where, f"{len(data)} bytes of JSON that are not spelled canonically")
    if not isinstance(value, dict):
        raise _not_ours(where, f"a JSON {type(value).__name__}")
    return value


def _not_ours(where: str, found: str) -> ManifestInvalid:
    return ManifestInvalid(
        where, expected="a JSON object as logitstore writes it", found=found, remedy=_RESTORE
    )


def _is_deeper(value: object, levels: int) -> bool:
    """Return whether lists and objects are nested deeper than so many levels."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return inner is not None and (
        levels == 0 or any(_is_deeper(item, levels - 1) for item in inner if type(item) is not int)
    )


def beyond(where: str, most: int, what: str, found: object) -> LimitExceeded:
    """Make the error of a size above a limit of readers.

    >>> print(beyond("seal.json", 32, "arrays", 40))
    seal.json: expected at most 32 arrays, found 40; do not use this store: logitstore writes none like it
    """
    return LimitExceeded(where, expected=f"at most {most} {what}", found=str(found)[:80], remedy=DISTRUST)


def invalid(where: str, expected: str, found: object) -> ManifestInvalid:
    """Make the error of metadata that state something impossible."""
    return ManifestInvalid(where, expected=expected, found=str(found)[:120], remedy=_RESTORE)


def check_version(version: object, where: str) -> None:
    """Refuse another major version of the format. Raises NotAStoreError."""
    major = FORMAT_VERSION.partition(".")[0]
    if not isinstance(version, str) or version.partition(".")[0] != major:
        raise NotAStoreError(
            where,
            expected=f"format version {major}.x",
            found=f"format version {version!r}",
            remedy="open it with the version of logitstore that wrote it",
        )


def integer(value: object, minimum: int, where: str, key: str, maximum: int | None = None) -> int:
    """Return `value` if it is an integer in a range. Raises ManifestInvalid, LimitExceeded above `maximum`."""
    if not isinstance(value, int) or isinstance(value, bool) or value < minimum:
        raise invalid(f"{where}: {key}", f"an integer of at least {minimum}", shorten(value))
    if maximum is not None and value > maximum:
        raise beyond(f"{where}: {key}", maximum, "for a reader", shorten(value))
    return value


def table(value: object, where: str, key: str) -> dict[str, Any]:
    """Return `value` if it is a JSON object. Raises ManifestInvalid."""
    if not isinstance(value, dict):
        raise invalid(f"{where}: {key}", "a JSON object", shorten(value))
    return value


def texts(value: object, where: str, key: str) -> list[str]:
    """Return `value` if it is a list of strings. Raises ManifestInvalid."""
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise invalid(f"{where}: {key}", "a list of strings", shorten(value))
    return value


def shorten(value: object, most: int = 80) -> str:
    """Shorten `repr(value)`: a number in a store may have thousands of digits.

    >>> shorten(10**5000), shorten("row")
    ('an integer of 16610 bits', "'row'")
    """
    if isinstance(value, int) and value.bit_length() > 1024:
        return f"an integer of {value.bit_length()} bits"  # Python refuses to spell it
    return repr(value)[:most]


def parse_spec(data: bytes, where: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Parse a part's `spec.json` into `identity` and `notes`. Raises ManifestInvalid or LimitExceeded."""
    value = parse_json(data, where)
    return tuple(table(value.get(key, {}), where, key) for key in ("identity", "notes"))  # type: ignore[return-value]
