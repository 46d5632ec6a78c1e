"""Brings events from Postgres into Redis' stream: in order, without a gap, at least once.

An entry's id is the event's position, so Redis itself refuses what it has already: a relay that
died before it could write how far it had come, or one that was paused while another went on,
repeats entries that are not taken a second time.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import structlog
from redis import Redis
from redis.exceptions import ResponseError
from sqlalchemy.orm import Session

from innkeeper.event_types import EVENT_FIELD, EventView
from models import event_feed
from models.event_feed import RelayState
from models.session import Database
from tasks.crashpoints import crash_point

log = structlog.get_logger(__name__)

LEASE_S = 12.0
BATCH = 500
FORGET_BATCH = 5000
FORGET_EVERY_S = 600.0
# How Redis words that an entry is there; it has no code of its own.
IS_THERE = "equal or smaller"
NO_STREAM = "no such key"


@dataclass(frozen=True, slots=True)
class Round:
    """What one round of the relay did, and whether the next one should come soon.

    Args:
        is_mine: whether this process is the relay.
        published: how many events Redis was given.
        is_busy: whether more events are about to come.
    """

    is_mine: bool
    published: int
    is_busy: bool


class EventRelay:
    """One process's part in the relay, of which one at a time does the work.

    Args:
        database: where the events are.
        stream: the stream's key in Redis.
        length: about how many entries it keeps.
        max_age_s: events older than this are removed from the database; 0 for never.
        owner: this process.
    """

    def __init__(
        self, database: Database, *, stream: str, length: int, max_age_s: float, owner: str
    ) -> None:
        self._database = database
        self._stream = stream
        self._length = length
        self._max_age_s = max_age_s
        self._owner = owner
        self._forget_at = 0.0
        self._taken = 0

    def relay(self, redis: Redis) -> Round:
        """Publish what is new, and again what Redis has lost.

        One statement when there is nothing.

        Args:
            redis: where the stream is.

        Raises:
            RedisError: Redis is away, or full; what it has not taken comes in a later round.
            SQLAlchemyError: Postgres is away.
        """
        state = self._database.run(self._hold)
        if state is None:
            return Round(is_mine=False, published=0, is_busy=False)
        after = self._find_last(redis, state)
        published = 0
        while after < state.position:
            batch = self._database.run(self._read_after(after))
            crash_point("events", "relaying")
            if not batch:
                # Aged away before Redis came back; those who follow learn of it as a gap.
                break
            self._add(redis, batch)
            crash_point("events", "relayed")
            after, published = batch[-1].id, published + len(batch)
            # Written down by the next look, which is soon and writes anyway.
            self._taken = after
        self._forget_old()
        return Round(is_mine=True, published=published, is_busy=state.is_busy or published > 0)

    def release(self) -> None:
        """Leave the relay to another process at once."""
        self._database.run(lambda s: event_feed.release_relay(s, owner=self._owner))

    def _forget_old(self) -> None:
        """Remove what is too old, a bounded piece now and then."""
        if not self._max_age_s or time.monotonic() < self._forget_at:
            return
        removed = self._database.run(
            lambda s: event_feed.forget_events(s, older_than_s=self._max_age_s, limit=FORGET_BATCH)
        )
        if removed < FORGET_BATCH:
            self._forget_at = time.monotonic() + FORGET_EVERY_S
        if removed:
            log.info("old events removed", events=removed)

    def _hold(self, session: Session) -> RelayState | None:
        state = event_feed.hold_relay(
            session, owner=self._owner, lease_s=LEASE_S, published=self._taken
        )
        if state is None or not state.has_new:
            return state
        placed = event_feed.place_events(session)
        return RelayState(state.position + placed, False, state.is_busy)

    def _find_last(self, redis: Redis, state: RelayState) -> int:
        """Return the position after which Redis needs events."""
        last = find_last_entry(redis, self._stream)
        if last > state.position:
            # The database is an older one that was restored; its next events have these ids too.
            log.warning("the stream is ahead of the database, beginning it anew", last=last)
            redis.delete(self._stream)
            last = self._taken = 0
        # Redis is asked, not the record of what it once took: it may have lost that since. What the
        # stream would not keep is not sent.
        return max(last, state.position - self._length)

    def _read_after(self, after: int) -> Callable[[Session], list[EventView]]:
        return lambda session: event_feed.list_events_after(session, after, limit=BATCH)

    def _add(self, redis: Redis, batch: list[EventView]) -> None:
        # In MULTI, a Redis that is full refuses all of them: no later one is there before these.
        with redis.pipeline(transaction=True) as pipe:
            for event in batch:
                pipe.xadd(
                    self._stream,
                    {EVENT_FIELD: event.model_dump_json()},
                    id=f"{event.id}-0",
                    maxlen=self._length,
                    approximate=True,
                )
            for answer in pipe.execute(raise_on_error=False):
                if isinstance(answer, Exception) and IS_THERE not in str(answer):
                    raise answer


def find_last_entry(redis: Redis, stream: str) -> int:
    """Return the id of the last event that was ever added to a stream; 0 when there is none."""
    try:
        facts: dict[str, Any] = redis.xinfo_stream(stream)
    except ResponseError as error:
        if NO_STREAM in str(error):
            return 0
        raise
    found = facts["last-generated-id"]
    text = found.decode() if isinstance(found, bytes) else str(found)
    return int(text.partition("-")[0])
