"""An S3 server in this process whose answers can be damaged on the way."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import boto3
import pytest
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

BUCKET = "rows"


class Store:
    """moto's S3, behind something that counts downloads and damages some of them.

    Attributes:
        damages: How many more downloads of a key are to be damaged.
        downloads: Downloads of each key so far.
    """

    def __init__(self) -> None:
        self._app = DomainDispatcherApplication(create_backend_app)
        self.damages: Counter[str] = Counter()
        self.downloads: Counter[str] = Counter()

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        key = environ["PATH_INFO"].removeprefix(f"/{BUCKET}/")
        download = environ["REQUEST_METHOD"] == "GET" and key.endswith((".mds", ".zstd"))

        def start(status: str, headers: list[tuple[str, str]], *rest: Any) -> Any:
            # A store that says nothing of checksums, as many do: the client would notice by itself.
            kept = [(k, v) for k, v in headers if "checksum" not in k.lower()]
            return start_response(status, kept, *rest)

        answer = self._app(environ, start)
        if not download:
            return answer
        body = b"".join(answer)
        self.downloads[key] += 1
        if self.damages[key] > 0:
            self.damages[key] -= 1
            body = body[:-1] + bytes([body[-1] ^ 1])
        return [body]

    def upload(self, folder: Path, name: str) -> str:
        """Uploads a folder; returns its URL."""
        client = boto3.client("s3")
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                client.upload_file(str(file), BUCKET, f"{name}/{file.relative_to(folder)}")
        return f"s3://{BUCKET}/{name}"


@contextmanager
def serving() -> Iterator[Store]:
    """Starts the server, points boto and streaming to it, and makes a bucket."""
    store = Store()
    server = make_server("127.0.0.1", 0, store, threaded=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    url = f"http://127.0.0.1:{server.server_port}"
    with pytest.MonkeyPatch.context() as patch:
        for name in ("S3_ENDPOINT_URL", "AWS_ENDPOINT_URL"):
            patch.setenv(name, url)
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "test")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        boto3.client("s3").create_bucket(Bucket=BUCKET)
        try:
            yield store
        finally:
            server.shutdown()
            thread.join()
            server.server_close()
