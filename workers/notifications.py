"""The threads of the events' relay: one that relays, one that rings when there is news.

LISTEN would need a connection that a transaction-pooling PgBouncer does not give, and NOTIFY lets
one commit at a time through. Instead Postgres tells whoever writes an event in the answer to the
statement itself, and that process rings a bell in Redis.
"""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import structlog
from celery import Celery
from kombu.exceptions import OperationalError
from redis import Redis
from redis.exceptions import RedisError
from sqlalchemy.exc import SQLAlchemyError

from tasks.notifications import EventRelay, Round

log = structlog.get_logger(__name__)

# Without a bell: an idle relay looks this often, a busy one that often.
IDLE_S = 5.0
BUSY_S = 0.5
# The most looks in a second are one divided by this.
GATHER_S = 0.25
# A blocking read must end before the socket's own time-out.
LONGEST_BLOCK_S = 2.0
RETRY_S = 1.0
AWAY = (RedisError, OperationalError, OSError)


def bell_of(stream: str) -> str:
    """Return the key of the list that wakes the relay of a stream."""
    return f"{stream}:bell"


@contextmanager
def _redis_of(app: Celery) -> Iterator[Redis]:
    """Yield a client of the broker, however its URL names it, for one thread."""
    with app.connection_for_write() as connection:
        yield connection.default_channel.client


class EventBell:
    """Wakes the relay soon after a commit, without keeping the one who committed.

    Args:
        app: whose broker has the bell.
        stream: the stream's key.
    """

    def __init__(self, app: Celery, stream: str) -> None:
        self._app = app
        self._key = bell_of(stream)
        self._wanted = threading.Event()
        self._first = threading.Lock()
        self._thread: threading.Thread | None = None

    def ring(self) -> None:
        """Ask for a ring; returns at once."""
        self._wanted.set()
        if self._thread is None:
            with self._first:
                if self._thread is None:
                    self._thread = threading.Thread(
                        target=self._run, name="event-bell", daemon=True
                    )
                    self._thread.start()

    def _run(self) -> None:
        while True:
            try:
                with _redis_of(self._app) as redis:
                    while self._wanted.wait():
                        # Others follow soon, and what an operation does next has precedence.
                        time.sleep(GATHER_S)
                        self._wanted.clear()
                        self._ring_once(redis)
            except AWAY as exc:
                # The relay looks by itself, too.
                log.debug("the events' bell was not rung", error=str(exc))
            except Exception:
                log.exception("defect while ringing for events")
            time.sleep(RETRY_S)

    def _ring_once(self, redis: Redis) -> None:
        with redis.pipeline(transaction=False) as pipe:
            pipe.lpush(self._key, 1)
            pipe.ltrim(self._key, 0, 0)
            pipe.execute()


class RelayThread:
    """The relay of a control worker; of several workers one relays, and the others stand by.

    Args:
        app: whose broker has the stream.
        relay: does the work.
        stream: the stream's key.
    """

    def __init__(self, app: Celery, relay: EventRelay, stream: str) -> None:
        self._app = app
        self._relay = relay
        self._bell = bell_of(stream)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="event-relay", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End, and let another worker relay at once."""
        self._stop.set()
        self._thread.join(LONGEST_BLOCK_S + 1)

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                with _redis_of(self._app) as redis:
                    self._relay_with(redis)
            except AWAY as exc:
                log.warning("events not relayed, Redis is away", error=str(exc))
            except SQLAlchemyError as exc:
                log.warning("events not relayed, Postgres is away", error=type(exc).__name__)
            except Exception:
                log.exception("defect while relaying events")
            self._stop.wait(RETRY_S)
        self._leave()

    def _relay_with(self, redis: Redis) -> None:
        while not self._stop.is_set():
            self._await_news(redis, self._relay.relay(redis))

    def _await_news(self, redis: Redis, last: Round) -> None:
        """Wait for the bell, and for as long as one may go without looking."""
        if not last.is_mine:
            self._stop.wait(IDLE_S)
            return
        if self._stop.wait(GATHER_S):
            return
        give_up_at = time.monotonic() + (BUSY_S if last.is_busy else IDLE_S)
        while not self._stop.is_set():
            left_s = give_up_at - time.monotonic()
            if left_s <= 0:
                return
            if redis.blpop([self._bell], timeout=max(min(left_s, LONGEST_BLOCK_S), 0.01)):
                return

    def _leave(self) -> None:
        try:
            self._relay.release()
        except SQLAlchemyError:
            # Its lease runs out.
            return
