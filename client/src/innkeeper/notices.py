"""A doorbell for those who wait: Redis says when an outcome is stored, so they look at once.

A notice ends a pause and does nothing else; one that is lost costs the rest of the pause. Each
listener has a connection of its own, so only so many of a process's waits listen, and the others
look more often.
"""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from redis import Redis
from redis.exceptions import RedisError

MOST_LISTENERS = 32
# How long a listener goes without a look of its own.
LOOK_ANYWAY_S = 0.5


class Notices:
    """What one wait hears.

    Args:
        redis: where outcomes are stored; None to hear nothing.
        key: the outcome's key, which is also the channel on which Celery publishes it.
    """

    def __init__(self, redis: Redis | None, key: str) -> None:
        self._redis = redis
        self._key = key
        self._channel: Any = None

    def wait(self, pause_s: float, at_most_s: float) -> None:
        """Wait until there is something to look at, or it is time to look anyway.

        Returns at once when it has just begun to listen: what was stored before was not heard.

        Args:
            pause_s: how long to sleep where nothing can be heard.
            at_most_s: the longest time.
        """
        give_up_at = time.monotonic() + min(pause_s, at_most_s)
        if self._redis is not None:
            try:
                self._hear(self._redis, min(LOOK_ANYWAY_S, at_most_s))
            except (RedisError, OSError):
                self.close()
            else:
                return
        time.sleep(max(give_up_at - time.monotonic(), 0))

    def close(self) -> None:
        """Hear nothing any more."""
        self._redis = None
        if self._channel is not None:
            with suppress(RedisError, OSError):
                self._channel.close()
            self._channel = None

    def _hear(self, redis: Redis, limit_s: float) -> None:
        give_up_at = time.monotonic() + limit_s
        if self._channel is None:
            self._channel = redis.pubsub()  # type: ignore[no-untyped-call]
            self._channel.subscribe(self._key)
        while (left_s := give_up_at - time.monotonic()) > 0:
            # Whatever comes is a reason to look: the outcome, or that the channel is open now.
            if self._channel.get_message(timeout=left_s) is not None:
                return


class Listeners:
    """Gives a process's waits their notices."""

    def __init__(self) -> None:
        self._free = threading.Semaphore(MOST_LISTENERS)

    @contextmanager
    def listening(self, redis: Redis, key: str) -> Iterator[Notices]:
        """Yield the notices of one key; silent ones when there are too many listeners.

        Args:
            redis: where outcomes are stored.
            key: the outcome's key.
        """
        has_place = self._free.acquire(blocking=False)
        notices = Notices(redis if has_place else None, key)
        try:
            yield notices
        finally:
            notices.close()
            if has_place:
                self._free.release()
