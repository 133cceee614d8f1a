"""Errors of the libraries that read and write objects, as errors of ours.

`typed` gives an error of a read; `failure_of` says what the answer to a conditional PUT leaves open.
"""

import re
import sys
from dataclasses import dataclass
from typing import Final

from ..errors import StorageError, StorageRefused, TransientIOError

TIMEOUT_S: Final = 600.0
"""Seconds to wait for one answer, however much of it has come; the libraries give up, after retries, far earlier."""
TO_READ: Final = "permission to read the object"
"""What is expected where the server refuses a request for want of a right."""
_MISSING: Final = (FileNotFoundError, NotADirectoryError, IsADirectoryError)
_CODE: Final = re.compile(r"<Code>\s*([\w.-]{1,64})\s*</Code>|\"code\"\s*:\s*\"?([\w.-]{1,64})")
_MESSAGE: Final = re.compile(r"<Message>([^<]{1,120})")
_RETRIED: Final = frozenset({408, 425, 429})
"""HTTP statuses from 400 to 499 after which the same request may succeed."""


_IMDS: Final = "http://169.254.169.254"
"""The address at which a cloud's machines ask for their keys: obstore's last resort."""
_PROVIDER: Final = "credential provider: "
"""Text before the error of a provider of keys, in obstore's message."""


class RangeIgnored(Exception):
    """An answer that is longer than the range that was requested."""


class ListingFailed(Exception):
    """A listing that did not end within its limits."""


def typed(error: Exception, where: str) -> Exception:
    """Return the error of `errors` for one of a store's library; FileNotFoundError for a missing object."""
    if is_missing(error):
        return FileNotFoundError(where)
    cause = cause_of(error)
    status, found = status_of(cause), summary_of(cause)
    kind: type[StorageError] = StorageRefused
    if isinstance(cause, ListingFailed):
        expected, found = "a listing that ends", str(cause)
        remedy = "check the URL, or copy the store to a local disk"
    elif isinstance(cause, (RangeIgnored, *obstore_errors("NotSupportedError"))):
        expected = "the requested range of bytes (HTTP range requests)"
        found = "another range, or the whole object"
        remedy = "use a server that supports range requests, or copy the store to a local disk"
    elif _IMDS in str(cause):
        expected, found = (
            "keys in the environment, a profile of AWS, or of this machine's role",
            "none of them",
        )
        remedy = "set AWS_PROFILE, run `aws configure` or `aws sso login`; for a public bucket set AWS_SKIP_SIGNATURE=true"
    elif (lead := str(cause).partition("\n")[0].partition(_PROVIDER)[2]) and is_refused(error):
        expected, found = "keys, by the profile of AWS", " ".join(lead.split())[:200]
        remedy = "run `aws sso login`, or check the profile"
    elif is_refused(error):
        expected = TO_READ
        remedy = "check the credentials; a bucket that may not be listed answers so for a missing object, too"
    elif "builder error" in found:
        expected, found = "an https:// endpoint, or leave to use http://", "an http:// endpoint without it"
        remedy = "set AWS_ALLOW_HTTP=true, or pass storage_options={'allow_http': True}, if nobody listens in between"
    elif status is not None and 400 <= status < 500 and status not in _RETRIED:
        expected, remedy = "HTTP status 200, or 404 for a missing object", "check the URL"
    elif isinstance(cause, MemoryError):
        expected, found = "an answer that fits into memory", "a longer one"
        remedy = "check the URL, or copy the store to a local disk"
    elif isinstance(cause, TimeoutError):
        kind, expected, found = TransientIOError, f"a whole answer within {TIMEOUT_S:.0f} s", "no end of it"
        remedy = "run the same command again; if it fails again, check the network and the URL"
    else:
        kind, expected = TransientIOError, "an answer of the server"
        remedy = "run the same command again; if it fails again, check the network and the URL"
    return kind(where, expected=expected, found=found, remedy=remedy)


@dataclass(frozen=True)
class Failure:
    """An answer to a conditional PUT that is no success: the object may be stored, or not."""

    found: str
    """The answer, in one line."""
    cause: Exception | None
    """The library's error, unless it may show what no message shows."""


class Taken(Failure):
    """The name is taken: by another's object, or by this one, if an earlier answer was lost; or there was a conflict."""


@dataclass(frozen=True)
class Refused(Failure):
    """The request was refused, and would be again."""

    status: int | None
    """HTTP status."""


def failure_of(error: Exception) -> Failure:
    """Return what an error of obstore's tells of a conditional PUT."""
    found, status = summary_of(error), status_of(error)
    if isinstance(error, obstore_errors("AlreadyExistsError", "PreconditionError")):
        return Taken("a name that is taken", error)
    if isinstance(error, TimeoutError):
        return Failure("no answer in time", error)
    refusals = obstore_errors("PermissionDeniedError", "UnauthenticatedError", "NotSupportedError")
    if isinstance(error, (FileNotFoundError, *refusals)):
        return Refused(found, error, status)
    if status == 501 or (status is not None and 400 <= status < 500 and status not in _RETRIED):
        return Refused(found, error, status)
    return Failure(found, error)


def is_missing(error: BaseException) -> bool:
    """Return whether an error means that the object does not exist."""
    cause = cause_of(error)
    if isinstance(cause, _MISSING) or status_of(cause) in (404, 410):
        return True
    # obstore's class for a key below a local file is GenericError; only its message differs from a failed disk's.
    return isinstance(cause, obstore_errors("GenericError")) and "Not a directory" in str(cause)


def is_refused(error: BaseException) -> bool:
    """Return whether an error means that an object must not be read."""
    cause = cause_of(error)
    kinds: tuple[type[BaseException], ...] = (
        PermissionError,
        *obstore_errors("PermissionDeniedError", "UnauthenticatedError"),
    )
    return status_of(cause) in (401, 403) or isinstance(cause, kinds)


def cause_of(error: BaseException) -> BaseException:
    """Return the error behind a FileNotFoundError, which fsspec raises for any failure of a web server."""
    return error.__cause__ if isinstance(error, _MISSING) and error.__cause__ else error


def status_of(error: BaseException) -> int | None:
    """Return the HTTP status of a server's answer, or None if there was no answer."""
    for name in ("status", "code"):  # aiohttp, botocore
        if isinstance(value := getattr(error, name, None), int):
            return value
    answer = getattr(getattr(error, "response", None), "status_code", None)  # huggingface_hub
    if isinstance(answer, int):
        return answer
    if not isinstance(error, obstore_errors("GenericError")):
        return None
    # obstore has no attribute for the status, and no class for one other than 401, 403 and 404: only this message.
    digits = str(error).partition("status code: ")[2][:3]
    return int(digits) if digits.isdecimal() else None


def summary_of(error: BaseException) -> str:
    """Return an error's message in one line of at most 200 characters; of obstore's, the part after the request.

    Of an answer in XML or JSON, the server's own code and message.
    """
    whole = str(error)
    text = " ".join(whole.partition("\n")[0].split()).rpartition(" - ")[2].partition("<")[0].partition("{")[0]
    code, message = _CODE.search(whole), _MESSAGE.search(whole)
    said = ": ".join(found[1] for found in (code, message) if found)
    text = (text or type(error).__name__).rstrip(": ")
    return " ".join(f"{text} ({said})".split() if said else text.split())[:200]


def obstore_errors(*names: str) -> tuple[type[Exception], ...]:
    """Return obstore's exception classes of these names; none unless obstore, an extra, was imported."""
    exceptions = sys.modules.get("obstore.exceptions")
    return tuple(getattr(exceptions, name) for name in names) if exceptions else ()
