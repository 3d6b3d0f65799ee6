"""A registry that serves one image from memory and lies where it is told to.

Its own HTTP server in a thread; speaks just enough of the distribution API for
a pull.  What it serves is true unless a fault is set.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"


def digest(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def tar_of(members: Iterable[tuple[tarfile.TarInfo, bytes]]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for info, data in members:
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


def file(name: str, data: bytes = b"x", **fields: Any) -> tuple[tarfile.TarInfo, bytes]:
    """A member of an archive, written with the name exactly as given."""
    info = tarfile.TarInfo(name)
    for key, value in fields.items():
        setattr(info, key, value)
    return info, data


class LyingRegistry:
    """Serves ``ADDRESS/lies/image:1``.

    :ivar blobs: by digest; to be changed to serve something else under a digest.
    :ivar headers: changes a blob's response headers.
    :ivar send: writes a blob's body; the default writes it as it is.
    :ivar requests: how often each path was asked for.
    :ivar ranges: the ``Range`` headers of requests, by path, in order.
    """

    def __init__(self, layers: list[bytes], diff_ids: list[str] | None = None) -> None:
        self.blobs: dict[str, bytes] = {}
        self.requests: Counter[str] = Counter()
        self.ranges: dict[str, list[str]] = {}
        self.send: Callable[[BaseHTTPRequestHandler, str, bytes], None] = (
            lambda handler, name, body: handler.wfile.write(body) and None
        )
        self.headers: Callable[[str, dict[str, str]], None] = lambda name, headers: None
        self.layers = [self._blob(layer) for layer in layers]
        config = {
            "architecture": "amd64",
            "os": "linux",
            "config": {"Cmd": ["sh"]},
            "rootfs": {
                "type": "layers",
                "diff_ids": diff_ids or [digest(_unpacked(layer)) for layer in layers],
            },
        }
        manifest = {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": self._descriptor(CONFIG, self._blob(json.dumps(config).encode())),
            "layers": [self._descriptor(LAYER, name) for name in self.layers],
        }
        self.manifest = json.dumps(manifest).encode()
        outer = self

        class Requests(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                outer._answer(self)

            do_HEAD = do_GET

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Requests)
        self._server.daemon_threads = True
        self._server.handle_error = lambda *_: None  # type: ignore[method-assign] # they hang up
        self.address = f"127.0.0.1:{self._server.server_address[1]}"
        self.image = f"{self.address}/lies/image:1"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def fetched(self, name: str) -> int:
        """How often a blob was asked for."""
        return self.requests[f"/v2/lies/image/blobs/{name}"]

    def _blob(self, data: bytes) -> str:
        name = digest(data)
        self.blobs[name] = data
        return name

    def _descriptor(self, media_type: str, name: str) -> dict[str, Any]:
        return {"mediaType": media_type, "digest": name, "size": len(self.blobs[name])}

    def _answer(self, request: BaseHTTPRequestHandler) -> None:
        self.requests[request.path] += 1
        kind, _, name = request.path.rpartition("/")
        status, body, headers = 200, b"{}", {"Content-Type": "application/json"}
        if kind.endswith("/manifests"):
            body, headers["Content-Type"] = self.manifest, MANIFEST
        elif kind.endswith("/blobs"):
            if name not in self.blobs:
                status = 404
            else:
                body = self.blobs[name]
                headers["Content-Type"] = "application/octet-stream"
                wanted = request.headers.get("Range")
                if wanted:
                    self.ranges.setdefault(request.path, []).append(wanted)
                if wanted and wanted.startswith("bytes=") and wanted.endswith("-"):
                    first = int(wanted[6:-1])
                    total = len(body)
                    body, status = body[first:], 206
                    headers["Content-Range"] = f"bytes {first}-{total - 1}/{total}"
        headers["Content-Length"] = str(len(body))
        if kind.endswith("/blobs"):
            self.headers(name, headers)
        request.send_response(status)
        for key, value in headers.items():
            request.send_header(key, value)
        request.end_headers()
        if request.command == "HEAD":
            return
        try:
            if kind.endswith("/blobs") and status < 300:
                self.send(request, name, body)
            else:
                request.wfile.write(body)
        except OSError:
            request.close_connection = True


def cut_at(fraction: float) -> Callable[[BaseHTTPRequestHandler, str, bytes], None]:
    """Send only a part of each body, then hang up."""

    def send(request: BaseHTTPRequestHandler, name: str, body: bytes) -> None:
        request.wfile.write(body[: int(len(body) * fraction)])
        request.close_connection = True

    return send


def drip(pause: float, size: int) -> Callable[[BaseHTTPRequestHandler, str, bytes], None]:
    """Send bodies slowly."""

    def send(request: BaseHTTPRequestHandler, name: str, body: bytes) -> None:
        for at in range(0, len(body), size):
            request.wfile.write(body[at : at + size])
            time.sleep(pause)

    return send


def held_at(
    size: int, go_on: threading.Event
) -> Callable[[BaseHTTPRequestHandler, str, bytes], None]:
    """Send *size* bytes of each body, and the rest when *go_on* is set."""

    def send(request: BaseHTTPRequestHandler, name: str, body: bytes) -> None:
        request.wfile.write(body[:size])
        if len(body) > size:
            go_on.wait(60)
            request.wfile.write(body[size:])

    return send


def _unpacked(layer: bytes) -> bytes:
    try:
        return gzip.decompress(layer)
    except (OSError, EOFError):
        return layer
