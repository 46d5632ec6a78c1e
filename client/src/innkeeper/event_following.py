"""Follows events: fast by the stream in Redis, whole by what the control worker still knows.

The stream is a copy that may be cut, emptied or late. Ids have no gaps, so a follower that knows
id n sees from the next entry whether something is missing, and asks for that.
"""

import time
from collections.abc import Callable, Iterator

from innkeeper.errors import BrokerUnavailable, EventsLost, ServiceError
from innkeeper.event_types import EVENT_FIELD, EventPage, EventView
from innkeeper.transport import StreamReader, Transport, pauses

LONGEST_BLOCK_S = 1.0
# In case that the stream is silent because it is not written, or that of another fleet.
ASK_WHEN_SILENT_S = 30.0
BATCH = 500

ReadPage = Callable[[int | None, int], EventPage]


class EventFollower:
    """One walk along the events.

    Args:
        transport: reads the stream.
        read_page: asks the control worker: after which id, how many at most.
        stream: the stream's key.
        after: the last id that is known; None to begin with what happens from now on.
        patience_s: how long Redis or the control worker may be away before that is an error.
    """

    def __init__(
        self,
        transport: Transport,
        read_page: ReadPage,
        *,
        stream: str,
        after: int | None,
        patience_s: float,
    ) -> None:
        self._transport = transport
        self._read_page = read_page
        self._stream = stream
        self._last = after
        self._patience_s = patience_s
        self._asked_at = 0.0
        self._give_up_at = 0.0

    def follow(self) -> Iterator[EventView]:
        """Yield every event once, in order, without end.

        Raises:
            EventsLost: some that come next are no longer kept.
            BrokerUnavailable: Redis was away for longer than the patience.
            ServiceError: no control worker answered for as long.
        """
        waits = pauses(0.1, 2.0, growth=2.0)
        self._give_up_at = time.monotonic() + self._patience_s
        while True:
            try:
                with self._transport.reading(self._stream) as reader:
                    for event in self._read(reader):
                        waits = pauses(0.1, 2.0, growth=2.0)
                        yield event
            except EventsLost:
                raise
            except (BrokerUnavailable, ServiceError):
                if time.monotonic() >= self._give_up_at:
                    raise
                time.sleep(next(waits))

    def _read(self, reader: StreamReader) -> Iterator[EventView]:
        # A blocking read must end before the socket's time-out.
        block_s = min(LONGEST_BLOCK_S, self._transport.timeout_s / 3)
        # The stream may have been emptied, or be that of a restored database, while it was away.
        yield from self._ask()
        while True:
            entries = reader.read_after(self._known, block_s=block_s, limit=BATCH)
            self._give_up_at = time.monotonic() + self._patience_s
            for entry in entries:
                yield from self._take(EventView.model_validate_json(entry[EVENT_FIELD]))
            if entries:
                self._asked_at = time.monotonic()
            elif time.monotonic() - self._asked_at > ASK_WHEN_SILENT_S:
                yield from self._ask()

    @property
    def _known(self) -> int:
        return self._last or 0

    def _take(self, event: EventView) -> Iterator[EventView]:
        """Yield an entry of the stream, after what is missing before it; nothing if it is known."""
        if event.id > self._known + 1:
            yield from self._ask(until=event.id - 1)
        if event.id == self._known + 1:
            self._last = event.id
            yield event

    def _ask(self, until: int | None = None) -> Iterator[EventView]:
        """Yield what the control worker knows behind the last known event.

        Args:
            until: the last id that is wanted; None for all.
        """
        while True:
            page = self._read_page(self._last, 0 if self._last is None else BATCH)
            self._asked_at = time.monotonic()
            self._give_up_at = self._asked_at + self._patience_s
            if self._last is None:
                self._last = page.newest
                return
            self._refuse_gap(page)
            for event in page.events:
                self._last = event.id
                yield event
            if not page.events or self._known >= min(until or page.newest, page.newest):
                return

    def _refuse_gap(self, page: EventPage) -> None:
        if page.oldest <= self._known + 1 and self._known <= page.newest:
            return
        what = (
            f"Events {self._known + 1} to {page.oldest - 1} are no longer kept"
            if page.oldest > self._known + 1
            else f"Event {self._known} is not known here: the newest one is {page.newest}"
        )
        raise EventsLost(
            f"{what}.",
            {"after": self._known, "oldest": page.oldest, "newest": page.newest},
        )
