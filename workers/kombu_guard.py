"""A guard for kombu 5.7.0, whose Redis channel fails in a way that ends the worker.

When Redis goes away while messages are unacknowledged, ``Channel._connparams`` reads an attribute
of a connection that is gone and raises AttributeError, which no caller takes for a connection
error: the worker stops consuming and exits. Raising redis' own ConnectionError instead lets the
consumer reconnect as it does for every other loss.
"""

from typing import Any

import kombu
import redis.exceptions
from kombu.transport import redis as transport

GUARDED_VERSION = "5.7.0"


def guard_redis_channel() -> None:
    """Put the guard in place for the one version that needs it; safe to call again."""
    original = transport.Channel._connparams
    if kombu.__version__ != GUARDED_VERSION or getattr(original, "is_guarded", False):
        return

    def connparams(self: Any, asynchronous: bool = False) -> Any:
        if self.connection is None or self.connection.client is None:
            raise redis.exceptions.ConnectionError("the redis channel is closed")
        return original(self, asynchronous)

    connparams.is_guarded = True  # type: ignore[attr-defined]
    transport.Channel._connparams = connparams
