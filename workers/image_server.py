"""Serves this host's cached images to other hosts, read-only.

Who can reach the port and knows a digest can read that image: docs/design/image-cache.md.
"""

import os
import re
import socket
import threading
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import structlog

log = structlog.get_logger(__name__)

FindImage = Callable[[str], Path | None]

# A peer that takes nothing for so long has gone away.
IDLE_S = 30.0
_PATH = re.compile(r"/images/([0-9a-f]{64}\.[a-z0-9]{1,8})")
_RANGE = re.compile(r"bytes=([0-9]{1,18})-([0-9]{0,18})")


class ImageServer:
    """Answers ``GET`` and ``HEAD`` of ``/images/SHA256.FORMAT`` and of nothing else.

    Args:
        address: to listen on, a name or an IP address of this host.
        port: TCP; 0 for any free one.
        connections: how many files are sent at once; others are told to try elsewhere.
        find_image: returns the sound file of a cache that has exactly this name, or None.
    """

    def __init__(self, address: str, port: int, *, connections: int, find_image: FindImage) -> None:
        family, _, _, _, endpoint = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM)[0]
        self._address = address
        slots = threading.BoundedSemaphore(connections)
        self._server = _Server(family, endpoint[:2], find_image, slots)
        self._thread = threading.Thread(
            target=self._server.serve_forever, name="image-server", daemon=True
        )

    @property
    def port(self) -> int:
        """The port it listens on."""
        return int(self._server.server_address[1])

    @property
    def url(self) -> str:
        """What stands before ``/images/`` in its addresses."""
        host = f"[{self._address}]" if ":" in self._address else self._address
        return f"http://{host}:{self.port}"

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    def close(self) -> None:
        """Stop listening; what is being sent is broken off when the process ends."""
        if self._thread.is_alive():
            self._server.shutdown()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(
        self,
        family: int,
        endpoint: tuple[Any, ...],
        find_image: FindImage,
        slots: threading.BoundedSemaphore,
    ) -> None:
        self.address_family = family
        self.find_image = find_image
        self.slots = slots
        super().__init__((str(endpoint[0]), int(endpoint[1])), _Handler)

    def server_bind(self) -> None:
        # HTTPServer's own asks the resolver for this host's name, which may take long.
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]

    def handle_error(
        self,
        request: object,  # noqa: ARG002 (the base class names it)
        client_address: object,
    ) -> None:
        log.info("image not sent to its end", peer=str(client_address))


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    timeout = IDLE_S
    protocol_version = "HTTP/1.1"
    server_version = "innkeeper"
    sys_version = ""

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def log_message(self, format: str, *args: object) -> None:
        log.debug("image server", peer=self.client_address[0], said=format % args)

    def _answer(self, *, with_body: bool) -> None:
        # One request for each connection: an idle peer must not hold a thread.
        self.close_connection = True
        match = _PATH.fullmatch(self.path)
        path = self.server.find_image(match[1]) if match is not None else None
        if match is None or path is None:
            self._refuse(HTTPStatus.NOT_FOUND)
            return
        if not self.server.slots.acquire(blocking=False):
            self._refuse(HTTPStatus.SERVICE_UNAVAILABLE)
            return
        try:
            self._send_file(path, f'"{match[1]}"', with_body=with_body)
        finally:
            self.server.slots.release()

    def _send_file(self, path: Path, tag: str, *, with_body: bool) -> None:
        try:
            number = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            self._refuse(HTTPStatus.NOT_FOUND)
            return
        with os.fdopen(number, "rb") as file:
            size_bytes = os.fstat(number).st_size
            wanted = self._range(size_bytes, tag)
            if wanted is None:
                self._refuse(
                    HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE,
                    {"Content-Range": f"bytes */{size_bytes}"},
                )
                return
            first, end = wanted
            is_part = end - first < size_bytes
            self.send_response(HTTPStatus.PARTIAL_CONTENT if is_part else HTTPStatus.OK)
            self.send_header("Content-Type", "application/octet-stream")
            self.send_header("Content-Length", str(end - first))
            self.send_header("Accept-Ranges", "bytes")
            self.send_header("ETag", tag)
            self.send_header("Connection", "close")
            if is_part:
                self.send_header("Content-Range", f"bytes {first}-{end - 1}/{size_bytes}")
            self.end_headers()
            if with_body and end > first:
                self.connection.sendfile(file, first, end - first)

    def _range(self, size_bytes: int, tag: str) -> tuple[int, int] | None:
        """Return the first byte and the one after the last; None when there are no such bytes."""
        said = self.headers.get("Range")
        match = _RANGE.fullmatch(said) if said is not None else None
        if match is None or self.headers.get("If-Range", tag) != tag:
            # Of other forms the whole is a right answer too.
            return 0, size_bytes
        first = int(match[1])
        end = min(int(match[2]) + 1, size_bytes) if match[2] else size_bytes
        return (first, end) if first < end else None

    def _refuse(self, status: HTTPStatus, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", "0")
        self.send_header("Connection", "close")
        self.end_headers()
