"""Profiles of AWS that lead to keys, followed by botocore: a process, a role of another profile, single sign-on."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.bucket_stores import write
from support.buckets import Bucket, serving_bucket

from logitstore.storage.api import open_store
from logitstore.storage.errors import ConfigError, StorageRefused

URL = "s3://bucket/store.zarr"
PROCESS = """import json
print(json.dumps({"Version": 1, "AccessKeyId": "made", "SecretAccessKey": "secret", "SessionToken": "token"}))
"""


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Bucket]:
    """A bucket with a store; profiles that lead there."""
    for name in ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY", "SESSION_TOKEN", "PROFILE", "SKIP_SIGNATURE"):
        monkeypatch.delenv(f"AWS_{name}", raising=False)
    monkeypatch.setenv("AWS_ALLOW_HTTP", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("HOME", str(tmp_path))
    program = tmp_path / "keys.py"
    program.write_text(PROCESS)
    with serving_bucket() as found:
        write(found.store(key="maker"))
        common = f"region = eu-central-1\nendpoint_url = {found.url}\n"
        (tmp_path / "config").write_text(
            f"[default]\n{common}credential_process = {sys.executable} {program}\n"
            f"[profile sso]\n{common}sso_session = s\nsso_account_id = 1\nsso_role_name = r\n"
            "[sso-session s]\nsso_region = us-east-1\nsso_start_url = https://example.com/start\n"
            f"[profile broken]\n{common}credential_process = {sys.executable} {tmp_path / 'absent.py'}\n"
        )
        yield found


def test_keys_of_a_process_open_a_bucket(bucket: Bucket) -> None:
    seen, serve = set(), bucket.serve

    def watching(method: str, path: str, headers: dict[str, str], body: bytes) -> Any:
        seen.add(
            (headers["authorization"].split("Credential=")[1].split("/")[0], headers["x-amz-security-token"])
        )
        return serve(method, path, headers, body)

    bucket.serve = watching
    assert open_store(URL).num_rows == 20
    assert seen == {("made", "token")}


@pytest.mark.parametrize(("profile", "said"), [("sso", "Token"), ("broken", "custom-process")])
def test_a_profile_without_keys_is_one_line_with_its_reason(bucket: Bucket, profile: str, said: str) -> None:
    with pytest.raises(StorageRefused, match=f"{said}.*aws sso login") as caught:
        open_store(URL, storage_options={"profile": profile})
    assert "\n" not in str(caught.value)


def test_a_profile_that_is_not_there_is_named(bucket: Bucket) -> None:
    with pytest.raises(ConfigError, match="found the profiles broken, default, sso"):
        open_store(URL, storage_options={"profile": "other"})
