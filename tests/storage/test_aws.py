"""The configuration of the AWS command line: profiles, endpoints and regions lead to a bucket as they do there."""

import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.bucket_stores import write
from support.buckets import Bucket, serving_bucket

from logitstore.storage.api import create_store, open_store
from logitstore.storage.backends import aws, remote
from logitstore.storage.backends.aws import with_configuration
from logitstore.storage.errors import ConfigError, LogitStoreError, StorageRefused

URL = "s3://bucket/store.zarr"


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Bucket]:
    """A bucket with a store, and nothing in the environment that leads there."""
    for name in ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY", "SESSION_TOKEN", "REGION", "DEFAULT_REGION", "PROFILE",
                 "DEFAULT_PROFILE", "ENDPOINT", "ENDPOINT_URL", "ENDPOINT_URL_S3", "SKIP_SIGNATURE"):  # fmt: skip
        monkeypatch.delenv(f"AWS_{name}", raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_ALLOW_HTTP", "true")
    monkeypatch.setattr(remote, "_RETRY", {"max_retries": 0})
    with serving_bucket() as found:
        write(found.store(key="maker"))
        yield found


class Seen:
    """The keys, regions and tokens of the requests that come to a bucket from now on."""

    def __init__(self, bucket: Bucket) -> None:
        self.keys: set[str] = set()
        self.regions: set[str] = set()
        self.tokens: set[str | None] = set()
        serve = bucket.serve

        def watching(method: str, path: str, headers: dict[str, str], body: bytes) -> Any:
            scope = headers.get("authorization", "").partition("Credential=")[2].split("/")
            self.keys.add(scope[0])
            self.regions.add(scope[2] if len(scope) > 2 else "")
            self.tokens.add(headers.get("x-amz-security-token"))
            return serve(method, path, headers, body)

        bucket.serve = watching


def lay(folder: Path, config: str = "", credentials: str = "") -> None:
    """Write the two files of the AWS command line."""
    (folder / "config").write_text(config)
    (folder / "credentials").write_text(credentials)


KEYS = "aws_access_key_id = {0}\naws_secret_access_key = {0}-secret\n"


def test_a_profile_gives_keys_region_and_endpoint(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lay(
        tmp_path,
        f"[default]\nregion = eu-north-1\nendpoint_url = {bucket.url}\n"
        f"[profile dev]\nregion = eu-south-1\nendpoint_url = {bucket.url}\n",
        f"[default]\n{KEYS.format('plain')}\n[dev]\n{KEYS.format('dev')}aws_session_token = token\n",
    )
    for way, wanted in (
        ({}, ("plain", "eu-north-1", None)),
        ({"storage_options": {"profile": "dev"}}, ("dev", "eu-south-1", "token")),
    ):
        seen = Seen(bucket)
        assert open_store(URL, **way).num_rows == 20  # type: ignore[arg-type]
        assert (seen.keys, seen.regions, seen.tokens) == tuple({one} for one in wanted)
    seen = Seen(bucket)
    monkeypatch.setenv("AWS_PROFILE", "dev")
    assert open_store(URL).num_rows == 20
    assert seen.keys == {"dev"}
    made = create_store(
        "s3://bucket/new.zarr",
        num_classes=2,
        digests=np.arange(3, dtype=np.uint64),
        storage_options={"profile": "default"},
    )
    assert seen.keys == {"dev", "plain"} and made.num_rows == 3


def test_the_environment_comes_before_the_profile(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lay(
        tmp_path,
        f"[default]\nregion = r\nendpoint_url = http://127.0.0.1:1\n{KEYS.format('file')}[profile b]\n",
    )
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "mine")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "mine")
    monkeypatch.setenv("AWS_REGION", "here")
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"):
        with monkeypatch.context() as patch:
            patch.setenv(name, bucket.url)
            seen = Seen(bucket)
            assert open_store(URL).num_rows == 20
            assert (seen.keys, seen.regions) == ({"mine"}, {"here"})
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", bucket.url)
    seen = Seen(bucket)
    open_store(URL, storage_options={"region": "there", "profile": "default"})
    assert (seen.keys, seen.regions) == ({"file"}, {"there"})  # a profile that the caller names comes first


def test_an_endpoint_of_the_services_section_comes_first_and_may_be_ignored(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    services = f"[services local]\ns3 =\n  endpoint_url = {bucket.url}\n  max_attempts = 1\nec2 =\n  endpoint_url = x\n"
    lay(
        tmp_path,
        f"[default]\nservices = local\nendpoint_url = http://127.0.0.1:1\n{KEYS.format('a')}\n{services}",
    )
    assert open_store(URL).num_rows == 20
    assert with_configuration({})[0]["endpoint"] == bucket.url
    monkeypatch.setenv("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS", "true")
    assert "endpoint" not in with_configuration({})[0]


def test_options_of_s3fs_are_understood(bucket: Bucket, tmp_path: Path) -> None:
    seen = Seen(bucket)
    options = {
        "key": "k",
        "secret": "long-secret",
        "client_kwargs": {"endpoint_url": bucket.url, "region_name": "r"},
    }
    assert open_store(URL, storage_options=options).num_rows == 20
    assert (seen.keys, seen.regions) == ({"k"}, {"r"})
    seen = Seen(bucket)
    assert open_store(URL, storage_options={"anon": True, "endpoint_url": bucket.url}).num_rows == 20
    assert seen.keys == {""}


def test_a_profile_that_is_not_there_is_named_with_those_that_are(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lay(tmp_path, "[default]\n[profile dev]\n[services x]\n[sso-session y]\n", "[prod]\n")
    monkeypatch.setenv("AWS_PROFILE", "stage")
    with pytest.raises(
        ConfigError, match=r"the profile 'stage' of AWS.*found the profiles default, dev, prod;"
    ):
        open_store(URL)
    assert with_configuration({"anon": True}) == ({"skip_signature": True}, None)


def test_a_damaged_file_is_named_without_its_lines(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lay(tmp_path, credentials="aws_secret_access_key = hidden\n[default]\n")
    with pytest.raises(ConfigError, match=r"credentials: expected a configuration.*line 1") as caught:
        open_store(URL)
    assert "hidden" not in str(caught.value)


SSO = "[default]\nsso_session = s\nsso_account_id = 1\nsso_role_name = r\nregion = x\n[sso-session s]\n"


def test_a_profile_of_single_sign_on_names_the_library_that_follows_it(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lay(tmp_path, SSO)
    monkeypatch.setattr(aws.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"expected botocore, which follows sso_.*pip install botocore"):
        open_store(URL)


def test_the_error_of_a_provider_of_keys_is_one_line(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lay(tmp_path, f"{SSO}")

    class Session:
        def __init__(self, profile: str) -> None:
            assert profile == "default"

        def get_credentials(self) -> Any:
            raise RuntimeError("Token has expired and refresh failed")

    monkeypatch.setattr(aws.importlib.util, "find_spec", lambda name: True)
    module = types.ModuleType("botocore.session")
    module.Session = Session  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "botocore", types.ModuleType("botocore"))
    monkeypatch.setitem(sys.modules, "botocore.session", module)
    seen = Seen(bucket)
    with pytest.raises(
        StorageRefused, match="Token has expired and refresh failed; run `aws sso login`"
    ) as caught:
        open_store(URL, storage_options={"endpoint": bucket.url})
    assert "\n" not in str(caught.value) and not seen.keys


def test_no_keys_anywhere_are_named_as_such(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", bucket.url)
    with pytest.raises(LogitStoreError, match=r"expected keys in the environment.*AWS_SKIP_SIGNATURE=true"):
        open_store(URL, storage_options={"timeout": "1s", "connect_timeout": "1s"})


def test_keys_of_a_profile_are_not_mixed_with_a_token_of_the_environment(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lay(tmp_path, f"[profile dev]\nregion = r\nendpoint_url = {bucket.url}\n{KEYS.format('dev')}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "mine")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "mine")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "a token of mine")
    seen = Seen(bucket)
    assert open_store(URL, storage_options={"profile": "dev"}).num_rows == 20
    assert (seen.keys, seen.tokens) == ({"dev"}, {None})


@pytest.mark.parametrize("status", [403, 501])
def test_an_error_of_a_write_shows_nothing_of_the_options(bucket: Bucket, status: int) -> None:
    secret = "a-very-secret-token"
    body = f"<Error><Code>Refused</Code><Message>bad {secret}</Message></Error>".encode()
    serve = bucket.serve
    bucket.serve = lambda method, *rest: (status, {}, body) if method == "PUT" else serve(method, *rest)
    options = {
        "key": "k",
        "secret": "long-secret",
        "session_token": secret,
        "endpoint": bucket.url,
        "region": "r",
    }
    with pytest.raises(LogitStoreError, match="bad …") as caught:
        create_store("s3://bucket/new.zarr", num_classes=2, digests=np.arange(3, dtype=np.uint64),
                     storage_options=options)  # fmt: skip
    assert secret not in str(caught.value) and caught.value.__cause__ is None


def test_an_error_of_a_url_that_cannot_be_opened_shows_nothing_of_the_options(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = "a-very-secret-token"

    def fails(*_: Any) -> None:
        raise ValueError(f"no such key: {secret}")

    monkeypatch.setattr(remote, "_open_store", fails)
    with pytest.raises(ConfigError, match="no such key: …") as caught:
        open_store(URL, storage_options={"session_token": secret})
    assert secret not in str(caught.value) and caught.value.__cause__ is None
