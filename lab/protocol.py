"""How the command line talks to a lab's supervisor: one JSON line each way on a unix socket.

Request: ``{"verb": "kill", "arguments": {…}, "caller": "process 17 (pytest)"}``. Answer:
``{"result": …}`` or ``{"error": "…"}``.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
import struct
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab.errors import LabError


@dataclass(frozen=True)
class Request:
    """One line of a caller.

    Attributes:
        caller: who asks, in words for the log.
    """

    verb: str
    arguments: dict[str, Any]
    caller: str = "somebody"


Handler = Callable[[Request], Awaitable[Any]]

_LINE_LIMIT_BYTES = 4 << 20
_LAST_LINES = 8
_log = logging.getLogger(__name__)


class NotRunningError(LabError):
    """No supervisor answers on the socket."""


class EndedError(LabError):
    """The supervisor ended before it answered."""


def call(path: Path, verb: str, *, timeout_s: float = 180.0, **arguments: Any) -> Any:
    """Ask a supervisor and return its result.

    Raises:
        NotRunningError: nobody listens on the socket.
        EndedError: the supervisor ended meanwhile.
        LabError: the supervisor refused or failed, or did not answer in time.
    """
    request = {"verb": verb, "arguments": arguments, "caller": _this_process()}
    with connect(path) as connection:
        connection.settimeout(timeout_s)
        try:
            connection.sendall(json.dumps(request).encode() + b"\n")
            with connection.makefile("rb") as stream:
                line = stream.readline()
        except ConnectionError:
            line = b""
        except TimeoutError:
            raise LabError(
                f"the lab's supervisor did not answer {verb!r} within {timeout_s:g} s;"
                f" see {path.parent}/logs/supervisor.log"
            ) from None
    if not line:
        raise EndedError(f"the lab's supervisor ended during {verb!r}{_last_words(path)}")
    answer = json.loads(line)
    if "error" in answer:
        raise LabError(answer["error"])
    return answer["result"]


def connect(path: Path) -> socket.socket:
    """Open a connection to a supervisor."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.connect(str(path))
    except (FileNotFoundError, ConnectionRefusedError) as error:
        connection.close()
        # A supervisor that goes down in order removes its socket.
        crashed = isinstance(error, ConnectionRefusedError)
        raise NotRunningError(
            f"no lab is running in {path.parent}; start one with `scripts/lab up`,"
            " or name its directory with --dir or INNKEEPER_LAB_DIR"
            f"{_last_words(path) if crashed else ''}"
        ) from None
    return connection


def peer_pid(connection: socket.socket) -> int:
    """Return the listening process's number, as seen from this process."""
    size = struct.calcsize("3i")
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
    return int(struct.unpack("3i", credentials)[0])


async def serve(path: Path, handler: Handler) -> asyncio.Server:
    """Answer requests on a unix socket; each connection is served on its own.

    Whatever goes wrong with a request is logged and answered; it never ends the server.
    """

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            reply = await _reply(reader, handler)
            if reply is not None:
                writer.write(reply + b"\n")
                await writer.drain()
        except ConnectionError:
            _log.info("the caller left before its answer")
        except Exception:
            _log.exception("a caller could not be answered")
        finally:
            writer.close()

    path.unlink(missing_ok=True)
    server = await asyncio.start_unix_server(answer, str(path), limit=_LINE_LIMIT_BYTES)
    path.chmod(0o600)
    return server


async def _reply(reader: asyncio.StreamReader, handler: Handler) -> bytes | None:
    """Return the answer to a connection's one request; None when it ends without one."""
    line = await _read_line(reader)
    if not line:
        return None
    try:
        return json.dumps({"result": await handler(Request(**json.loads(line)))}).encode()
    except LabError as error:
        return json.dumps({"error": str(error)}).encode()
    except Exception as error:
        _log.exception("request failed: %r", line[:1000])
        message = f"unexpected in the lab's supervisor: {error!r}"
        return json.dumps({"error": message}).encode()


async def _read_line(reader: asyncio.StreamReader) -> bytes:
    """Return the line; of one that is too long only its beginning, which is no request."""
    try:
        return await reader.readuntil()
    except asyncio.IncompleteReadError as ended:
        return ended.partial
    except asyncio.LimitOverrunError:
        return await reader.read(1000)


def _this_process() -> str:
    return f"process {os.getpid()} ({' '.join(sys.argv)[:100]})"


def _last_words(path: Path) -> str:
    """Return the end of the supervisor's log: a test's lab takes the file itself with it."""
    log = path.parent / "logs" / "supervisor.log"
    try:
        lines = log.read_text(errors="replace").splitlines()[-_LAST_LINES:]
    except OSError:
        return f"; see {log.parent}"
    return "\n".join([f". End of {log}:", *(f"  {line}" for line in lines)])
