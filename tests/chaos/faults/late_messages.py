"""Messages on their way for longer than usual, and how they reach their queue at last."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import redis.asyncio
from redis.exceptions import RedisError

PUSH_TIMEOUT_S = 2.0
RETRY_S = 0.1


@dataclass(frozen=True, slots=True)
class LateMessage:
    """A message, or the copy of one, that is not in its queue yet.

    Args:
        database: number of the queue's database.
        queue: key of the queue.
        parking: key under which the message waits in Redis; None for a copy, which waits here.
        values: the copy.
    """

    database: int
    queue: bytes
    parking: bytes | None
    values: tuple[bytes, ...] = ()


class LateMessages:
    """Holds messages back and delivers them on connections of its own; lives in one event loop.

    Args:
        upstream: address and port of the true Redis.
    """

    def __init__(self, upstream: tuple[str, int]) -> None:
        self.delivered = 0
        self.lost = 0
        self._upstream = upstream
        self._waiting: dict[asyncio.TimerHandle, LateMessage] = {}
        self._pushing: set[asyncio.Task[None]] = set()
        self._connections: dict[int, redis.asyncio.Redis] = {}

    def hold(self, message: LateMessage, late_s: float) -> None:
        """Deliver a message after a while; later messages may overtake it."""

        def due() -> None:
            del self._waiting[timer]
            self._start_push(message)

        timer = asyncio.get_running_loop().call_later(late_s, due)
        self._waiting[timer] = message

    async def deliver_all(self, timeout_s: float) -> None:
        """Deliver everything now.

        Raises:
            TimeoutError: Redis did not take it in time.
        """
        for timer, message in list(self._waiting.items()):
            timer.cancel()
            del self._waiting[timer]
            self._start_push(message)
        if self._pushing:
            _, undelivered = await asyncio.wait(self._pushing, timeout=timeout_s)
            if undelivered:
                raise TimeoutError(f"{len(undelivered)} late messages not delivered")

    async def close(self) -> None:
        """Deliver nothing more; what is parked stays parked."""
        for timer in self._waiting:
            timer.cancel()
        for task in self._pushing:
            task.cancel()
        await asyncio.gather(*self._pushing, return_exceptions=True)
        for connection in self._connections.values():
            await connection.aclose()

    def _start_push(self, message: LateMessage) -> None:
        task = asyncio.get_running_loop().create_task(self._push(message))
        self._pushing.add(task)
        task.add_done_callback(self._pushing.discard)

    async def _push(self, message: LateMessage) -> None:
        while True:
            try:
                has_arrived = await self._try_push(message)
            except (RedisError, OSError):
                # Redis is down, frozen, full or loading: whatever it is, it is part of the game.
                await asyncio.sleep(RETRY_S)
            else:
                self.delivered += has_arrived
                self.lost += not has_arrived
                return

    async def _try_push(self, message: LateMessage) -> bool:
        connection = self._connection(message.database)
        if message.parking is None:
            await connection.lpush(message.queue, *message.values)
            return True
        parking, queue = message.parking.decode(), message.queue.decode()
        moved = await connection.lmove(parking, queue, "RIGHT", "LEFT")
        return moved is not None

    def _connection(self, database: int) -> redis.asyncio.Redis:
        if database not in self._connections:
            host, port = self._upstream
            self._connections[database] = redis.asyncio.Redis(
                host=host,
                port=port,
                db=database,
                socket_timeout=PUSH_TIMEOUT_S,
                socket_connect_timeout=PUSH_TIMEOUT_S,
            )
        return self._connections[database]
