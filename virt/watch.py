"""Who waits for which guest's events on one host.

The event loop's thread hands an event to every watch of its guest, which is one put into a queue
each, and to the host's own listener through a thread of its own, so that a listener may block
(a database, say) without delaying keepalive.
"""

import queue
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from types import TracebackType
from typing import Self
from uuid import UUID

import structlog

from virt.events import GuestEvent

log = structlog.get_logger(__name__)


class GuestWatch:
    """The events of one guest from the moment the watch was made until it is closed."""

    def __init__(
        self,
        instance_id: UUID,
        close: Callable[["GuestWatch"], None],
        wake: threading.Event | None = None,
    ) -> None:
        self.instance_id = instance_id
        self._close = close
        self._wake = wake
        self._events: queue.SimpleQueue[GuestEvent] = queue.SimpleQueue()

    def put(self, event: GuestEvent) -> None:
        """Add an event; never blocks."""
        self._events.put(event)
        if self._wake is not None:
            self._wake.set()

    def wait(self, timeout_s: float) -> GuestEvent | None:
        """Return the next event, or None after ``timeout_s`` seconds (0 does not wait)."""
        try:
            if timeout_s <= 0:
                return self._events.get_nowait()
            return self._events.get(timeout=timeout_s)
        except queue.Empty:
            return None

    def wait_for(self, wanted: Callable[[GuestEvent], bool], timeout_s: float) -> GuestEvent | None:
        """Return the next event that is wanted, dropping others; None after ``timeout_s``."""
        end = time.monotonic() + timeout_s
        while True:
            event = self.wait(end - time.monotonic())
            if event is None or wanted(event):
                return event

    def close(self) -> None:
        """Stop receiving."""
        self._close(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


class EventHub:
    """Distributes one host's events."""

    def __init__(self, name: str, listener: Callable[[GuestEvent], None] | None) -> None:
        self._lock = threading.Lock()
        self._watches: dict[UUID, list[GuestWatch]] = defaultdict(list)
        self._listener = listener
        self._backlog: queue.SimpleQueue[GuestEvent | None] = queue.SimpleQueue()
        if listener is not None:
            threading.Thread(target=self._listen, name=f"events-of-{name}", daemon=True).start()

    def watch(self, instance_id: UUID, wake: threading.Event | None = None) -> GuestWatch:
        """Return a watch that is registered already.

        Args:
            instance_id: the guest.
            wake: set with every event.
        """
        watch = GuestWatch(instance_id, self._remove, wake)
        with self._lock:
            self._watches[instance_id].append(watch)
        return watch

    def publish(self, event: GuestEvent) -> None:
        """Hand an event to its guest's watches and to the listener; never blocks."""
        with self._lock:
            if event.kind == "connection_restored":
                watches = [watch for some in self._watches.values() for watch in some]
            else:
                watches = list(self._watches.get(event.instance_id, ()))
        for watch in watches:
            watch.put(event)
        if self._listener is not None and event.kind != "connection_restored":
            self._backlog.put(event)

    def close(self) -> None:
        """End the listener's thread."""
        self._backlog.put(None)

    def _remove(self, watch: GuestWatch) -> None:
        with self._lock:
            watches = self._watches.get(watch.instance_id, [])
            if watch in watches:
                watches.remove(watch)
            if not watches:
                self._watches.pop(watch.instance_id, None)

    def _listen(self) -> None:
        assert self._listener is not None
        while (event := self._backlog.get()) is not None:
            try:
                self._listener(event)
            except Exception:
                log.exception("the listener of guest events failed", kind=event.kind)
