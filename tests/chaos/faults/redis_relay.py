"""Carries bytes between Redis clients and a Redis, and lets every whole command be replaced."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress

from tests.chaos.faults.redis_commands import Command, CommandReader, NotRedisError

Bend = Callable[[Command, int], bytes]
"""Takes a command and the number of the database it is for; returns the bytes to send instead."""


class Relay:
    """Listens, and gives every client a connection of its own to the Redis behind.

    Args:
        upstream: address and port of the Redis behind.
        bend: is shown every command.
    """

    def __init__(self, upstream: tuple[str, int], bend: Bend) -> None:
        self.upstream = upstream
        self.bend = bend
        self.clients: set[Client] = set()
        self._server: asyncio.Server | None = None

    async def listen(self, address: str) -> tuple[str, int]:
        """Take connections on a free port; returns where."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: Client(self), address, 0)
        host, port = self._server.sockets[0].getsockname()[:2]
        return host, port

    async def close(self) -> None:
        """Take no more connections and end those that are."""
        if self._server is not None:
            self._server.close()
        connecting = [client.connecting for client in self.clients if client.connecting]
        for client in list(self.clients):
            client.abort()
        await asyncio.gather(*connecting, return_exceptions=True)
        # One turn of the loop, in which the aborted sockets are closed.
        await asyncio.sleep(0)


class Client(asyncio.Protocol):
    """The client's end of a connection: reads commands."""

    def __init__(self, relay: Relay) -> None:
        self.connecting: asyncio.Task[None] | None = None
        self.transport: asyncio.Transport
        self._relay = relay
        self._reader: CommandReader | None = CommandReader()
        self._database = 0
        self._upstream: asyncio.Transport | None = None
        self._early: list[bytes] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self._relay.clients.add(self)
        # Nothing can be passed on before there is somebody to pass it to.
        transport.pause_reading()
        self.connecting = asyncio.get_running_loop().create_task(self._connect())

    async def _connect(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            upstream, _ = await loop.create_connection(
                lambda: Upstream(self), *self._relay.upstream
            )
        except OSError:
            # To the client this is a Redis that is not there.
            self.transport.abort()
            return
        if self.transport.is_closing():
            upstream.abort()
            return
        self._upstream = upstream
        for data in self._early:
            self.data_received(data)
        self.transport.resume_reading()

    def data_received(self, data: bytes) -> None:
        if self._upstream is None:
            # The first releases of Python 3.11 do not heed a pause asked for in connection_made.
            self._early.append(data)
            return
        if self._reader is None:
            self._upstream.write(data)
            return
        out: list[bytes] = []
        try:
            for command in self._reader.feed(data):
                out.append(self._relay.bend(command, self._database))
                if command.word(0).upper() == b"SELECT":
                    self._database = int(command.word(1))
        except NotRedisError:
            # Redis itself shall say what it thinks of that.
            out.append(self._reader.rest)
            self._reader = None
        self._upstream.write(b"".join(out))

    def eof_received(self) -> None:
        # Closes the transport, and `connection_lost` closes the other side.
        return None

    def connection_lost(self, exc: Exception | None) -> None:
        self._relay.clients.discard(self)
        if self._upstream is not None:
            self._upstream.close()

    def pause_writing(self) -> None:
        if self._upstream is not None:
            self._upstream.pause_reading()

    def resume_writing(self) -> None:
        if self._upstream is not None and not self._upstream.is_closing():
            self._upstream.resume_reading()

    def abort(self) -> None:
        """End both connections at once."""
        if self.connecting is not None:
            self.connecting.cancel()
        self.transport.abort()
        if self._upstream is not None:
            self._upstream.abort()


class Upstream(asyncio.Protocol):
    """The end of a connection that faces Redis: passes answers on as they come."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def data_received(self, data: bytes) -> None:
        self._client.transport.write(data)

    def eof_received(self) -> None:
        return None

    def connection_lost(self, exc: Exception | None) -> None:
        # What Redis said before it left is still delivered.
        self._client.transport.close()

    def pause_writing(self) -> None:
        self._client.transport.pause_reading()

    def resume_writing(self) -> None:
        with suppress(RuntimeError):
            if not self._client.transport.is_closing():
                self._client.transport.resume_reading()
