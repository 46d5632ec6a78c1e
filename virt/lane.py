"""Several connections for one kind of call, each used by one thread at a time.

Libvirt's connections may be shared by threads, says its manual; but up to 10.3 a client whose
threads wait on one connection at once may crash the process (CVE-2024-4418: one thread wakes
another in ``virNetClientIOEventLoop`` and leaves a watch on its stack behind; seen here on 9.0 when
libvirtd was killed under twelve busy threads). It also keeps each connection far from the number of
requests the server serves per client (5 by default), beyond which it answers no keepalive.
"""

import queue
from collections.abc import Callable, Sequence
from typing import Any, TypeVar
from uuid import UUID

from innkeeper.errors import HypervisorBusy
from virt.connection import CALL_LIMIT_S, Connection
from virt.errors import Meaning

T = TypeVar("T")


class Lane:
    """A few connections; as many calls at once, and the others wait.

    Args:
        connections: open ones.
    """

    def __init__(self, connections: Sequence[Connection]) -> None:
        self._connections = tuple(connections)
        # Last in, first out: few callers keep to few connections.
        self._idle: queue.LifoQueue[Connection] = queue.LifoQueue()
        for connection in self._connections:
            self._idle.put(connection)

    def call(
        self,
        what: str,
        act: Callable[[Any], T],
        *,
        instance_id: UUID | None = None,
        limit_s: float = CALL_LIMIT_S,
    ) -> T:
        """Run one or a few libvirt calls as soon as a connection is idle; see Connection.call.

        Raises:
            HypervisorBusy: none was idle for ``limit_s`` seconds.
        """
        try:
            connection = self._idle.get(timeout=limit_s)
        except queue.Empty:
            host = self._connections[0].host
            raise HypervisorBusy(
                f"Libvirt on {host} has answered none of {len(self._connections)} calls for"
                f" {limit_s:g} s; it was not asked to {what}.",
                {"host": host, "meaning": Meaning.BUSY.value},
            ) from None
        try:
            return connection.call(what, act, instance_id=instance_id, limit_s=limit_s)
        finally:
            self._idle.put(connection)

    def cut(self) -> None:
        """End all calls at once; their connections are lost."""
        for connection in self._connections:
            connection.cut()

    def close(self) -> None:
        """Close the connections; callers that wait are refused."""
        for connection in self._connections:
            connection.close()
