"""Guards for kombu's Redis transport, where it fails in ways that end the worker.

* When Redis goes away while messages are unacknowledged, ``Channel._connparams`` of 5.7.0 reads an
  attribute of a connection that is gone and raises AttributeError, which no caller takes for a
  connection error.
* When Redis refuses writes (its memory is full, it is a replica, it loads or saves), the note that
  a message was taken fails with an answer of the server, which nobody takes for one either.

In both cases the worker stops consuming and exits. Seen as losses of the connection they let the
consumer reconnect, again and again until Redis takes it.

Beside that, a channel keeps its client of Redis: kombu makes one for every command, which takes
longer than most commands.
"""

from typing import Any

import kombu
import redis.exceptions
from kombu.transport import redis as transport

GUARDED_VERSION = "5.7.0"
REFUSALS = (
    redis.exceptions.OutOfMemoryError,
    redis.exceptions.ReadOnlyError,
    redis.exceptions.MasterDownError,
    redis.exceptions.ExecAbortError,
)


def guard_redis_transport() -> None:
    """Put the guards in place; safe to call again."""
    _guard_closed_channels()
    _guard_refusals()
    _keep_clients()


def _guard_closed_channels() -> None:
    original = transport.Channel._connparams
    if not _is_to_be_replaced(original):
        return

    def connparams(self: Any, asynchronous: bool = False) -> Any:
        if self.connection is None or self.connection.client is None:
            raise redis.exceptions.ConnectionError("the redis channel is closed")
        return original(self, asynchronous)

    connparams.is_guarded = True  # type: ignore[attr-defined]
    transport.Channel._connparams = connparams


def _keep_clients() -> None:
    original = transport.Channel._create_client
    if not _is_to_be_replaced(original):
        return

    def create_client(self: Any, asynchronous: bool = False) -> Any:
        if asynchronous:
            return original(self, asynchronous)
        kept = self.__dict__.get("_kept_client")
        # A channel that has lost its connection makes itself another pool.
        if kept is None or kept.connection_pool is not self.pool:
            kept = self.__dict__["_kept_client"] = original(self)
        return kept

    create_client.is_guarded = True  # type: ignore[attr-defined]
    transport.Channel._create_client = create_client


def _is_to_be_replaced(original: Any) -> bool:
    return kombu.__version__ == GUARDED_VERSION and not getattr(original, "is_guarded", False)


def _guard_refusals() -> None:
    known = transport.Transport.connection_errors
    transport.Transport.connection_errors = (*known, *(e for e in REFUSALS if e not in known))
