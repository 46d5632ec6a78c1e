"""An upper bound for calls that cannot be interrupted.

A thread inside libvirt's C code hears no signal and no time limit. What does end its call is the
end of its socket, so that is what the watchdog does at the deadline. One thread serves the process.
"""

import heapq
import itertools
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import structlog

log = structlog.get_logger(__name__)


@dataclass(order=True)
class _Entry:
    at_s: float
    number: int
    what: str = field(compare=False)
    action: Callable[[], None] = field(compare=False)
    is_done: bool = field(compare=False, default=False)


class Watchdog:
    """Runs an action when a call is not over in time."""

    def __init__(self) -> None:
        self._entries: list[_Entry] = []
        self._numbers = itertools.count()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    @contextmanager
    def limit(self, limit_s: float, what: str, action: Callable[[], None]) -> Iterator[None]:
        """Run the body; if it is not over after ``limit_s`` seconds, run ``action`` once.

        Args:
            limit_s: seconds.
            what: what is being done, for the log.
            action: must not block; runs in the watchdog's thread.
        """
        entry = _Entry(time.monotonic() + limit_s, next(self._numbers), what, action)
        with self._changed:
            heapq.heappush(self._entries, entry)
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._run, name="libvirt-watchdog", daemon=True
                )
                self._thread.start()
            if self._entries[0] is entry:
                self._changed.notify()
        try:
            yield
        finally:
            with self._changed:
                entry.is_done = True
                self._drop_done()

    def _drop_done(self) -> None:
        while self._entries and self._entries[0].is_done:
            heapq.heappop(self._entries)

    def _run(self) -> None:
        while True:
            self._fire(self._next_due())

    def _next_due(self) -> _Entry:
        with self._changed:
            while True:
                self._drop_done()
                if not self._entries:
                    self._changed.wait()
                    continue
                left_s = self._entries[0].at_s - time.monotonic()
                if left_s <= 0:
                    return heapq.heappop(self._entries)
                self._changed.wait(left_s)

    def _fire(self, entry: _Entry) -> None:
        log.error("call exceeds its limit", what=entry.what)
        try:
            entry.action()
        except Exception:
            log.exception("cutting an overdue call failed", what=entry.what)


watchdog = Watchdog()
"""The process's watchdog."""
