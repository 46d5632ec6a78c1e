"""What goes wrong with Redis, Postgres, and the messages between everybody."""

from __future__ import annotations

import shutil
import signal
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError
from sqlalchemy import create_engine, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.pool import NullPool

from lab.handle import Lab
from tests.chaos.faults.fault import MissedError, StageLike
from tests.chaos.faults.process_faults import kill_if_running, start_at_last

APPEND_ONLY_DIRECTORY = "appendonlydir"
ANSWER_TIMEOUT_S = 5.0
TERMINATE_OTHERS = text(
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
    " WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
)


def connect_redis(lab: Lab, database: int = 0) -> redis.Redis:
    """Return a client of the lab's true Redis."""
    return redis.Redis.from_url(
        lab.description.endpoints.redis_url(database),
        socket_timeout=ANSWER_TIMEOUT_S,
        socket_connect_timeout=ANSWER_TIMEOUT_S,
    )


@dataclass(frozen=True)
class RedisKilledAndEmptied:
    """SIGKILL, and everything that was on its disk is gone; down until mended."""

    name: str = "redis_killed_and_emptied"
    lasts_s: float = 1.0

    def strike(self, stage: StageLike) -> None:
        """Kill it and remove its files."""
        kill_if_running(stage.lab, "redis")
        shutil.rmtree(stage.lab.layout.redis / APPEND_ONLY_DIRECTORY, ignore_errors=True)

    def mend(self, stage: StageLike) -> None:
        """Start it."""
        start_at_last(stage, "redis")


@dataclass(frozen=True)
class RedisFlushed:
    """Everything in it is gone, and it lives on."""

    name: str = "redis_flushed"
    lasts_s: float = 0.0

    def strike(self, stage: StageLike) -> None:
        """FLUSHALL; one that does not run has nothing to lose."""
        with connect_redis(stage.lab) as client:
            try:
                # A frozen one does it when it wakes up.
                with suppress(RedisTimeoutError):
                    client.flushall()
            except RedisConnectionError as exc:
                raise MissedError("redis does not run") from exc

    def mend(self, stage: StageLike) -> None:
        """Do nothing: nobody gets the messages back."""


@dataclass(frozen=True)
class RedisRefusesWrites:
    """It is full: reads are answered, writes refused."""

    name: str = "redis_refuses_writes"
    lasts_s: float = 3.0

    def strike(self, stage: StageLike) -> None:
        """Leave it one byte."""
        try:
            _limit_memory(stage.lab, 1)
        except RedisConnectionError as exc:
            raise MissedError("redis does not run") from exc

    def mend(self, stage: StageLike) -> None:
        """Take the limit away; a restart would have done so too."""
        start_at_last(stage, "redis")
        _limit_memory(stage.lab, 0)


def _limit_memory(lab: Lab, limit_bytes: int) -> None:
    with connect_redis(lab) as client:
        client.config_set("maxmemory-policy", "noeviction")
        client.config_set("maxmemory", limit_bytes)


@dataclass(frozen=True)
class PostgresRestarted:
    """A fast restart, as an upgrade does it: transactions are cut short, no crash recovery."""

    name: str = "postgres_restarted"
    lasts_s: float = 0.0

    def strike(self, stage: StageLike) -> None:
        """Stop it with SIGINT and start it."""
        kill_if_running(stage.lab, "postgres", signal.SIGINT)
        start_at_last(stage, "postgres")

    def mend(self, stage: StageLike) -> None:
        """Start it if it does not run."""
        start_at_last(stage, "postgres")


@dataclass(frozen=True)
class PostgresConnectionsTerminated:
    """Every client's connection is ended by the server, in whatever transaction it is."""

    name: str = "postgres_connections_terminated"
    lasts_s: float = 0.0

    def strike(self, stage: StageLike) -> None:
        """End all connections but the one that says so."""
        engine = create_engine(stage.lab.description.endpoints.database_url, poolclass=NullPool)
        try:
            with engine.connect() as connection:
                connection.execute(TERMINATE_OTHERS)
        except OperationalError as exc:
            raise MissedError("postgres does not run") from exc

    def mend(self, stage: StageLike) -> None:
        """Start Postgres if it does not run; clients connect again by themselves."""
        start_at_last(stage, "postgres")


@dataclass(frozen=True)
class MessagesBent:
    """Messages are lost, doubled or late, by the stage's bent Redis.

    Args:
        name: ``messages_doubled`` …
        bend: name and value of the one of `Bends`.
        straight: its value when nothing is bent.
    """

    name: str
    bend: tuple[str, Any]
    straight: Any = 0.0
    lasts_s: float = 5.0

    def strike(self, stage: StageLike) -> None:
        """Bend."""
        if stage.redis is None:
            raise MissedError("no bent Redis on this stage")
        field, value = self.bend
        stage.redis.bend(**{field: value})

    def mend(self, stage: StageLike) -> None:
        """Bend no more, and deliver what is late."""
        if stage.redis is not None:
            stage.redis.bend(**{self.bend[0]: self.straight})
            # While Redis is down it takes nothing; what is late then goes on by itself.
            if stage.lab.role("redis")["running"]:
                stage.redis.deliver_late()


def messages_doubled() -> MessagesBent:
    """Return: every message comes twice."""
    return MessagesBent("messages_doubled", ("double", 1.0))


def messages_dropped() -> MessagesBent:
    """Return: every fifth message is lost, but none that a client has sent."""
    return MessagesBent("messages_dropped", ("drop", 0.2))


def messages_delayed() -> MessagesBent:
    """Return: half of the messages come late and out of order."""
    return MessagesBent("messages_delayed", ("delay", (0.5, 0.1, 3.0)), straight=None)
