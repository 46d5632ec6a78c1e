"""How the command line talks to a lab's supervisor: one JSON line each way on a unix socket.

Request: ``{"verb": "kill", "arguments": {…}}``. Answer: ``{"result": …}`` or ``{"error": "…"}``.
"""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import struct
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from lab.errors import LabError

Handler = Callable[[str, dict[str, Any]], Awaitable[Any]]

_LINE_LIMIT_BYTES = 4 << 20
_log = logging.getLogger(__name__)


class NotRunningError(LabError):
    """No supervisor answers on the socket."""


def call(path: Path, verb: str, *, timeout_s: float = 120.0, **arguments: Any) -> Any:
    """Ask a supervisor and return its result.

    Raises:
        NotRunningError: nobody listens on the socket.
        LabError: the supervisor refused or failed, or did not answer in time.
    """
    with connect(path) as connection:
        connection.settimeout(timeout_s)
        connection.sendall(json.dumps({"verb": verb, "arguments": arguments}).encode() + b"\n")
        try:
            with connection.makefile("rb") as stream:
                line = stream.readline()
        except TimeoutError:
            raise LabError(
                f"the lab's supervisor did not answer {verb!r} within {timeout_s:g} s;"
                f" see {path.parent}/logs/supervisor.log"
            ) from None
    if not line:
        raise LabError(f"the lab's supervisor ended during {verb!r}; see {path.parent}/logs")
    answer = json.loads(line)
    if "error" in answer:
        raise LabError(answer["error"])
    return answer["result"]


def connect(path: Path) -> socket.socket:
    """Open a connection to a supervisor."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.connect(str(path))
    except (FileNotFoundError, ConnectionRefusedError):
        connection.close()
        raise NotRunningError(
            f"no lab is running in {path.parent}; start one with `scripts/lab up`,"
            " or name its directory with --dir or INNKEEPER_LAB_DIR"
        ) from None
    return connection


def peer_pid(connection: socket.socket) -> int:
    """Return the listening process's number, as seen from this process."""
    size = struct.calcsize("3i")
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
    return int(struct.unpack("3i", credentials)[0])


async def serve(path: Path, handler: Handler) -> asyncio.Server:
    """Answer requests on a unix socket; each connection is served on its own."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            line = await reader.readline()
            if not line:
                return
            reply: dict[str, Any]
            try:
                request = json.loads(line)
                reply = {"result": await handler(request["verb"], request["arguments"])}
            except LabError as error:
                reply = {"error": str(error)}
            except Exception as error:
                _log.exception("request failed: %r", line)
                reply = {"error": f"unexpected in the lab's supervisor: {error!r}"}
            writer.write(json.dumps(reply).encode() + b"\n")
            await writer.drain()
        except ConnectionError:
            _log.info("the caller left before its answer")
        finally:
            writer.close()

    path.unlink(missing_ok=True)
    server = await asyncio.start_unix_server(answer, str(path), limit=_LINE_LIMIT_BYTES)
    path.chmod(0o600)
    return server
