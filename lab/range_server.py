"""An HTTP server with ranges whose speed is bounded, and which can go away and come back."""

import http.server
import re
import threading
import time
from pathlib import Path
from typing import Self

PIECE_BYTES = 64 * 1024


class RangeServer:
    """Serves one file on one address, at most so fast in all.

    Args:
        path: the file.
        address: where to listen; hosts of a lab reach the services' address.
        port: 0 for a free one.
        mib_s: bound on what all transfers together take; 0 for none.
        has_ranges: whether Range requests are answered, and said to be.
    """

    def __init__(
        self,
        path: Path,
        address: str,
        *,
        port: int = 0,
        mib_s: float = 0.0,
        has_ranges: bool = True,
    ) -> None:
        self.path = path
        self.mib_s = mib_s
        self.has_ranges = has_ranges
        self.sent_bytes = 0
        self.requests: list[tuple[str, str | None]] = []
        self._address = (address, port)
        self._lock = threading.Lock()
        self._free_at = 0.0
        self._server: _Server | None = None

    @property
    def url(self) -> str:
        """Where the file is."""
        host, port = self._address
        return f"http://{host}:{port}/image.raw"

    def start(self) -> None:
        """Serve, on the port of the last time."""
        self._server = _Server(self._address, _Handler)
        self._server.owner = self
        self._address = self._server.server_address[:2]  # type: ignore[assignment]
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def stop(self) -> None:
        """Go away in the middle of everything."""
        if self._server is None:
            return
        server, self._server = self._server, None
        server.is_gone = True
        server.shutdown()
        server.server_close()

    def spend(self, size_bytes: int) -> None:
        """Wait until so many bytes may go."""
        with self._lock:
            self.sent_bytes += size_bytes
            if not self.mib_s:
                return
            now = time.monotonic()
            self._free_at = max(self._free_at, now) + size_bytes / (self.mib_s * 2**20)
            pause_s = self._free_at - now
        if pause_s > 0.005:
            time.sleep(pause_s)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 64
    owner: RangeServer
    is_gone = False

    def handle_error(self, request: object, client_address: object) -> None:
        pass


class _Handler(http.server.BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, *, with_body: bool) -> None:
        owner = self.server.owner
        wanted = self.headers.get("Range")
        owner.requests.append((self.command, wanted))
        size = owner.path.stat().st_size
        first, last = 0, size - 1
        found = re.fullmatch(r"bytes=(\d+)-(\d*)", wanted or "")
        if found and owner.has_ranges:
            first = int(found[1])
            last = min(int(found[2]), last) if found[2] else last
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {first}-{last}/{size}")
        else:
            self.send_response(200)
        if owner.has_ranges:
            self.send_header("Accept-Ranges", "bytes")
        self.send_header("ETag", '"1"')
        self.send_header("Content-Length", str(last - first + 1))
        self.end_headers()
        if with_body:
            self._send(first, last + 1)

    def _send(self, first: int, end: int) -> None:
        with self.server.owner.path.open("rb") as file:
            file.seek(first)
            while first < end and not self.server.is_gone:
                part = file.read(min(PIECE_BYTES, end - first))
                self.server.owner.spend(len(part))
                self.wfile.write(part)
                first += len(part)
        if first < end:
            self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        pass
