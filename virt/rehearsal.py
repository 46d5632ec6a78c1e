"""Listens for a moment at one of QEMU's ports, so that the way to it can be tried for real.

Before a migration has begun nobody listens there, and a firewall that turns connections away looks
like that. Who connects is let go again at once.
"""

import socket
import threading
import time
from collections.abc import Iterable

# How late the thread notices that nobody wants it any more, at most.
_LOOK_S = 1.0


class Rehearsal:
    """One listener of a process, for all who want to be tried at the same time.

    Args:
        address: where QEMU listens; None for all addresses of the host.
    """

    def __init__(self, address: str | None = None) -> None:
        self._address = address
        self._lock = threading.Lock()
        self._server: socket.socket | None = None
        self._until_s = 0.0

    def listen(self, ports: Iterable[int], *, for_s: float) -> int | None:
        """Listen from now on; at an end that is asked for twice the later one counts.

        Args:
            ports: that may be taken; the first that is free.
            for_s: seconds from now.

        Returns:
            The port; None when none is free.
        """
        with self._lock:
            self._until_s = max(self._until_s, time.monotonic() + for_s)
            if self._server is None:
                self._server = next(filter(None, map(self._open, ports)), None)
                if self._server is None:
                    return None
                threading.Thread(
                    target=self._serve, args=(self._server,), name="rehearsal", daemon=True
                ).start()
            return int(self._server.getsockname()[1])

    def _open(self, port: int) -> socket.socket | None:
        family = socket.AF_INET6 if ":" in (self._address or "") else socket.AF_INET
        try:
            if self._address is None and socket.has_dualstack_ipv6():
                return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
            return socket.create_server((self._address or "", port), family=family)
        except OSError:
            return None

    def _serve(self, server: socket.socket) -> None:
        while True:
            with self._lock:
                left_s = self._until_s - time.monotonic()
                if left_s <= 0:
                    self._server = None
                    server.close()
                    return
            server.settimeout(min(left_s, _LOOK_S))
            try:
                server.accept()[0].close()
            except TimeoutError:
                continue
            except OSError:
                # Too many open files, or one that is gone already: the others may still come.
                time.sleep(0.05)
