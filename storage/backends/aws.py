"""The configuration of the AWS command line, for obstore, which reads the environment alone.

| setting | where it is found, first to last |
| --- | --- |
| profile | option `profile`, AWS_PROFILE, AWS_DEFAULT_PROFILE, `default` |
| keys | options, environment (unless the option names a profile), the profile; else obstore: web identity, container, machine |
| region | options, AWS_REGION, AWS_DEFAULT_REGION, `region` of the profile |
| endpoint | options, AWS_ENDPOINT_URL_S3, AWS_ENDPOINT_URL, `services` of the profile, its `endpoint_url` |

The files are AWS_CONFIG_FILE (`~/.aws/config`) and AWS_SHARED_CREDENTIALS_FILE (`~/.aws/credentials`). Keys that stand in them
are used as they are. A profile that leads to keys (single sign-on, a role, a process) is followed by botocore, if it is
installed.
"""

import configparser
import importlib
import importlib.util
import os
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

from ..errors import ConfigError

_LEADS: Final = (
    "credential_process",
    "login_session",
    "role_arn",
    "sso_account_id",
    "sso_session",
    "sso_start_url",
    "web_identity_token_file",
)
"""Settings of a profile that lead to keys."""
_OF_S3FS: Final = {"anon": "skip_signature", "key": "access_key_id", "secret": "secret_access_key"}
"""Options of s3fs, by their names in obstore."""
_LIFETIME: Final = timedelta(minutes=10)
"""Time after which keys are asked for again: botocore renews those that have less left."""


def with_configuration(options: Mapping[str, Any]) -> tuple[dict[str, Any], "Keys | StaticKeys | None"]:
    """Return options of obstore, with those of the profile, and a provider of keys, if the profile leads to some.

    options: names of obstore, or of s3fs. Raises ConfigError for a profile that is not there, or that needs botocore.
    """
    given = _of_obstore(options)
    named = given.pop("profile", None)
    plain = {key.lower().removeprefix("aws_") for key in given}
    has_keys = bool(plain & {"access_key_id", "skip_signature", "token"})
    profile = named or os.environ.get("AWS_PROFILE") or os.environ.get("AWS_DEFAULT_PROFILE")
    settings = _settings(profile or "default")
    if settings is None:
        if profile is not None and not has_keys:
            raise _no_profile(profile)
        return given, None
    if not plain & {"region", "default_region"} and not _is_set("AWS_REGION", "AWS_DEFAULT_REGION"):
        given |= {"region": settings["region"]} if "region" in settings else {}
    if not plain & {"endpoint", "endpoint_url", "endpoint_url_s3"} and (found := _endpoint(settings)):
        given["endpoint"] = found
    if has_keys or (named is None and _is_set("AWS_ACCESS_KEY_ID", "AWS_SKIP_SIGNATURE")):
        return given, None
    if "aws_access_key_id" in settings and "role_arn" not in settings:
        return given, StaticKeys(settings)
    leads = [key for key in _LEADS if key in settings]
    return given, Keys(profile or "default", leads[0]) if leads else None


def _of_obstore(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options with obstore's names in the place of s3fs's.

    >>> _of_obstore({"anon": True, "client_kwargs": {"region_name": "eu-central-1"}})
    {'skip_signature': True, 'region': 'eu-central-1'}
    """
    given = {_OF_S3FS.get(key, key): value for key, value in options.items() if key != "client_kwargs"}
    client = options.get("client_kwargs")
    for name, ours in (("region_name", "region"), ("endpoint_url", "endpoint")):
        if isinstance(client, Mapping) and name in client:
            given[ours] = client[name]
    return given


def _is_set(*names: str) -> bool:
    return any(os.environ.get(name) for name in names)


def _files() -> tuple[Path, Path]:
    """Return the paths of the configuration and of the credentials."""
    config = os.environ.get("AWS_CONFIG_FILE") or "~/.aws/config"
    keys = os.environ.get("AWS_SHARED_CREDENTIALS_FILE") or "~/.aws/credentials"
    return Path(config).expanduser(), Path(keys).expanduser()


def _parsed(path: Path) -> configparser.RawConfigParser:
    """Read a file of the AWS command line; an empty one if there is none. Raises ConfigError."""
    found = configparser.RawConfigParser(default_section="\0")
    try:
        found.read_string(path.read_text("utf-8"), str(path))
    except FileNotFoundError:
        pass
    except (OSError, UnicodeError, configparser.Error) as error:
        # The text of a parser's error holds lines of the file, which may be keys.
        line = getattr(error, "lineno", None)
        raise ConfigError(
            str(path),
            expected="a configuration of the AWS command line",
            found=error.strerror
            if isinstance(error, OSError) and error.strerror
            else f"an error in line {line}",
            remedy="correct the file, or name another one in AWS_CONFIG_FILE or AWS_SHARED_CREDENTIALS_FILE",
        ) from None
    return found


def _settings(profile: str) -> dict[str, str] | None:
    """Return the settings of a profile, those of its `services` as `s3.…`; None if there is no such profile."""
    config, keys = map(_parsed, _files())
    found: dict[str, str] = {}
    sections = [(config, f"profile {profile}"), (keys, profile)]
    if profile == "default":
        sections.insert(0, (config, "default"))
    there = [(file, name) for file, name in sections if file.has_section(name)]
    for file, name in there:
        found |= dict(file.items(name))
    if (services := found.get("services")) and config.has_section(f"services {services}"):
        nested = config.get(f"services {services}", "s3", fallback="")
        found |= {f"s3.{key.strip()}": value.strip() for key, _, value in _lines(nested)}
    return found if there else None


def _lines(nested: str) -> list[tuple[str, str, str]]:
    """Return the settings of a nested table, which a plain parser takes for one value of several lines."""
    return [line.partition("=") for line in nested.splitlines() if "=" in line]


def _endpoint(settings: Mapping[str, str]) -> str | None:
    """Return the endpoint that a profile names, unless the environment has one or forbids it."""
    ignored = os.environ.get("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS", "").lower() == "true"
    ignored = ignored or settings.get("ignore_configured_endpoint_urls", "").lower() == "true"
    if ignored or _is_set("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"):
        return None
    return settings.get("s3.endpoint_url") or settings.get("endpoint_url")


def _no_profile(profile: str) -> ConfigError:
    config, keys = map(_parsed, _files())
    names = {name.removeprefix("profile ") for name in config.sections()} | set(keys.sections())
    known = sorted(name for name in names if not name.startswith(("services ", "sso-session ")))
    return ConfigError(
        f"the profile {profile!r} of AWS"[:120],
        expected=f"a profile of {_files()[0]}",
        found=f"the profiles {', '.join(known)}"[:200] if known else "no profile",
        remedy="correct AWS_PROFILE, or run `aws configure`",
    )


class StaticKeys:
    """A provider of the keys of a profile, with its own token or none: obstore would add that of the environment."""

    def __init__(self, settings: Mapping[str, str]) -> None:
        self._keys = {
            "access_key_id": settings["aws_access_key_id"],
            "secret_access_key": settings.get("aws_secret_access_key", ""),
            "token": settings.get("aws_session_token"),
            "expires_at": None,
        }

    def __call__(self) -> dict[str, Any]:
        """Return the keys, which do not end as far as the profile tells."""
        return dict(self._keys)


class Keys:
    """A provider of keys for obstore, which follows a profile as the AWS command line does: by botocore."""

    def __init__(self, profile: str, leads: str) -> None:
        """Name the profile. leads: the setting that leads to keys. Raises ConfigError without botocore."""
        if importlib.util.find_spec("botocore") is None:
            raise ConfigError(
                f"the profile {profile!r} of AWS"[:120],
                expected=f"botocore, which follows {leads}",
                found="no such library",
                remedy="pip install botocore, or set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
            )
        self._profile = profile
        self._keys: Any = None

    def __call__(self) -> dict[str, Any]:
        """Return keys, renewed if they end soon. Raises the errors of botocore."""
        if self._keys is None:
            session: Any = importlib.import_module("botocore.session")
            self._keys = session.Session(profile=self._profile).get_credentials()
        if self._keys is None:
            raise LookupError(f"the profile {self._profile!r} leads to no keys")
        frozen = self._keys.get_frozen_credentials()
        return {
            "access_key_id": frozen.access_key,
            "secret_access_key": frozen.secret_key,
            "token": frozen.token,
            "expires_at": datetime.now(UTC) + _LIFETIME,
        }
