"""A Redis that loses, doubles and delays messages, and is a true Redis in all else.

It stands between Redis and everybody else. Only the publishing of messages is bent: kombu's
``LPUSH control …`` and ``LPUSH host.NAME …``, alone, pipelined or in a transaction, and the
``RPUSH`` by which a closing consumer gives a message back. Each bent command still gets a valid
answer, because it is carried out, on another key or with one more element.

with BentRedis(address, 6379, listen_address=address) as redis:
    redis.bend(drop=0.2, delay=(0.5, 0.1, 3.0))
    app.conf.broker_url = redis.url(0)
"""

from __future__ import annotations

import asyncio
import json
import random
import re
import threading
from collections.abc import Coroutine
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, Self, TypeVar

from tests.chaos.faults.late_messages import LateMessage, LateMessages
from tests.chaos.faults.redis_commands import Command, encode
from tests.chaos.faults.redis_relay import Relay

Result = TypeVar("Result")
DROPPED_KEY = b"chaos.dropped"
PARKING_PREFIX = b"chaos.parked."
# A message of low priority goes to a key with kombu's separator and the priority behind the name.
QUEUES = re.compile(rb"(control|host\.[^\x06]+)(\x06\x16\d+)?", re.DOTALL)
SENT_BY_CLIENTS = (
    "innkeeper.instance.",
    "innkeeper.operation.",
    "innkeeper.host.",
    "innkeeper.system.",
)


@dataclass(frozen=True, slots=True)
class Bends:
    """What happens to messages.

    Args:
        drop: share of the messages that are lost.
        double: share that arrive twice, the copy late when the message is drawn for delay too.
        delay: share that arrive late, and the bounds of how late in seconds.
        drop_requests: whether what clients send may be lost too. A request that nobody has accepted
            stands nowhere but in Redis, so its loss is the client's to notice.
    """

    drop: float = 0.0
    double: float = 0.0
    delay: tuple[float, float, float] | None = None
    drop_requests: bool = False


@dataclass(slots=True)
class Counts:
    """What has happened so far.

    Args:
        seen: messages published.
        spared: drawn for loss, but a client's own.
        late: delayed messages and copies that have reached their queue.
        lost_parked: delayed messages that Redis itself has lost meanwhile.
    """

    seen: int = 0
    dropped: int = 0
    doubled: int = 0
    delayed: int = 0
    spared: int = 0
    late: int = 0
    lost_parked: int = 0


class BentRedis:
    """A proxy in a thread of this process; all methods may be called from any thread.

    Args:
        upstream_host: address of the true Redis.
        upstream_port: its port.
        listen_address: where to listen, on a port that is free.
        seed: makes the draws repeatable for the same sequence of messages.
    """

    def __init__(
        self,
        upstream_host: str,
        upstream_port: int,
        *,
        listen_address: str,
        seed: int | None = None,
    ) -> None:
        self._random = random.Random(seed)
        self._counts = Counts()
        self._bends = Bends()
        self._changing = threading.Lock()
        self._parked_number = 0
        self._loop = asyncio.new_event_loop()
        self._late = LateMessages((upstream_host, upstream_port))
        self._relay = Relay((upstream_host, upstream_port), self._bend)
        self._thread = threading.Thread(target=self._run, name="bent-redis", daemon=True)
        self._thread.start()
        try:
            self.address, self.port = self._await(self._relay.listen(listen_address))
        except BaseException:
            self._end_loop()
            raise

    @property
    def bends(self) -> Bends:
        """What happens to messages now."""
        return self._bends

    @property
    def counts(self) -> Counts:
        """A copy of what has happened so far."""
        return replace(self._counts, late=self._late.delivered, lost_parked=self._late.lost)

    def url(self, database: int) -> str:
        """Return the URL of one Redis database, seen through here."""
        return f"redis://{self.address}:{self.port}/{database}"

    def bend(self, **changes: Any) -> None:
        """Change some of `Bends`; the others stay, and so do messages that are already late."""
        with self._changing:
            self._bends = replace(self._bends, **changes)

    def straighten(self) -> None:
        """Bend nothing any more, and deliver what is late."""
        with self._changing:
            self._bends = Bends()
        self.deliver_late()

    def deliver_late(self, timeout_s: float = 10.0) -> None:
        """Deliver every late message now; returns when that is done.

        Raises:
            TimeoutError: Redis did not take them in time.
        """
        self._await(self._late.deliver_all(timeout_s))

    def close(self) -> None:
        """End all connections; late messages stay where they are parked."""
        if self._thread.is_alive():
            self._await(self._close())
            self._end_loop()

    def _bend(self, command: Command, database: int) -> bytes:
        if command.word(0).upper() not in (b"LPUSH", b"RPUSH"):
            return command.raw
        key = command.word(1)
        if not QUEUES.fullmatch(key):
            return command.raw
        self._counts.seen += 1
        bends = self._bends
        if bends.drop and self._random.random() < bends.drop:
            if bends.drop_requests or not _is_sent_by_client(command):
                self._counts.dropped += 1
                return _to_key(command, DROPPED_KEY)
            self._counts.spared += 1
        is_doubled = bends.double > 0 and self._random.random() < bends.double
        is_late = bends.delay is not None and self._random.random() < bends.delay[0]
        self._counts.doubled += is_doubled
        self._counts.delayed += is_late
        if is_late and bends.delay is not None:
            late_s = self._random.uniform(*bends.delay[1:])
            if is_doubled:
                copy = LateMessage(database, key, None, tuple(command.words()[2:]))
                self._late.hold(copy, late_s)
                return command.raw
            self._parked_number += 1
            parking = b"%b%d.%d" % (PARKING_PREFIX, self.port, self._parked_number)
            self._late.hold(LateMessage(database, key, parking), late_s)
            return _to_key(command, parking)
        if is_doubled:
            return encode(*command.words(), *command.words()[2:])
        return command.raw

    async def _close(self) -> None:
        await self._late.close()
        await self._relay.close()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()
        self._loop.close()

    def _await(self, work: Coroutine[Any, Any, Result]) -> Result:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def _end_loop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _to_key(command: Command, key: bytes) -> bytes:
    name, _, *values = command.words()
    return encode(name, key, *values)


def _is_sent_by_client(command: Command) -> bool:
    try:
        task = json.loads(command.word(2))["headers"]["task"]
    except (ValueError, KeyError, TypeError):
        # Not a task of ours: losing it would prove nothing.
        return True
    return str(task).startswith(SENT_BY_CLIENTS)
