"""An HTTP server that breaks off, stalls and redirects where told to."""

import hashlib
import http.server
import time


class Server(http.server.ThreadingHTTPServer):
    """Serves bytes by path, and breaks off, stalls or redirects where told to."""

    daemon_threads = True

    def __init__(self, address: str = "127.0.0.1") -> None:
        super().__init__((address, 0), Handler)
        self.files: dict[str, bytes] = {}
        self.redirects: dict[str, str] = {}
        self.break_after: list[int] = []
        self.pause_s = 0.0
        self.part_bytes = 64 * 1024
        self.says_length = True
        self.more_length = 0
        self.answers: dict[str, tuple[int, bytes]] = {}
        self.headers: dict[str, str] = {}
        self.drips: set[str] = set()
        self.requests: list[tuple[str, str | None]] = []
        self.sent_bytes = 0

    def url(self, path: str) -> str:
        return f"http://{self.server_address[0]}:{self.server_address[1]}{path}"

    def handle_error(self, request: object, client_address: object) -> None:
        pass


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        server = self.server
        wanted = self.headers.get("Range")
        server.requests.append((self.path, wanted))
        if self.path in server.redirects:
            self.send_response(302)
            self.send_header("Location", server.redirects[self.path])
            self.end_headers()
            return
        path = self.path.partition("?")[0]
        if path in server.answers:
            status, body = server.answers[path]
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
            return
        if path not in server.files:
            self.send_error(404)
            return
        data = server.files[path]
        tag = f'"{hashlib.md5(data).hexdigest()}"'
        if self.headers.get("If-None-Match") == tag:
            self.send_response(304)
            self.end_headers()
            return
        start = 0
        if wanted and self.headers.get("If-Range") == tag:
            start = int(wanted.removeprefix("bytes=").rstrip("-"))
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        else:
            self.send_response(200)
        self.send_header("ETag", tag)
        for name, value in server.headers.items():
            self.send_header(name, value)
        if server.says_length:
            self.send_header("Content-Length", str(len(data) - start + server.more_length))
        self.end_headers()
        if path in server.drips:
            self._drip(data)
            return
        end = server.break_after.pop(0) if server.break_after else len(data)
        for offset in range(start, end, server.part_bytes):
            part = data[offset : min(offset + server.part_bytes, end)]
            self.wfile.write(part)
            server.sent_bytes += len(part)
            time.sleep(server.pause_s)
        if end < len(data):
            self.connection.close()

    def _drip(self, data: bytes) -> None:
        for byte in data:
            self.wfile.write(bytes([byte]))
            self.wfile.flush()
            self.server.sent_bytes += 1
            time.sleep(0.02)

    def log_message(self, format: str, *args: object) -> None:
        pass
