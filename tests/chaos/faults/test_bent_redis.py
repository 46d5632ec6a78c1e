"""The bent Redis is a true Redis, but for the messages that it bends."""

import json
import os
import socket
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import redis
from celery import Celery
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError

from tests.chaos.faults.bent_redis import DROPPED_KEY, BentRedis
from tests.waiting import wait_until

MIB = 1 << 20
STEP = json.dumps({"headers": {"task": "innkeeper.spawn.fetch_image"}})
REQUEST = json.dumps({"headers": {"task": "innkeeper.instance.spawn"}})
QUERY = json.dumps({"headers": {"task": "innkeeper.operation.show"}})


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start_redis(port: int, directory: str) -> subprocess.Popen[bytes]:
    server = subprocess.Popen(
        ["redis-server", "--port", str(port), "--save", "", "--dir", directory],
        stdout=subprocess.DEVNULL,
    )
    with redis.Redis(port=port) as client:
        for _ in range(200):
            try:
                client.ping()
            except RedisConnectionError:
                time.sleep(0.02)
            else:
                return server
    raise RuntimeError("redis-server does not answer")


@pytest.fixture(scope="module")
def true_port() -> Iterator[int]:
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="innkeeper-redis-") as directory:
        server = start_redis(port, directory)
        yield port
        server.kill()
        server.wait()


@pytest.fixture
def true(true_port: int) -> Iterator[redis.Redis]:
    with redis.Redis(port=true_port) as client:
        client.flushall()
        yield client


@pytest.fixture
def bent(true: redis.Redis, true_port: int) -> Iterator[BentRedis]:
    with BentRedis("127.0.0.1", true_port, listen_address="127.0.0.1", seed=1) as proxy:
        yield proxy


@pytest.fixture
def seen(bent: BentRedis) -> Iterator[redis.Redis]:
    """A client of the bent Redis."""
    with redis.Redis.from_url(bent.url(0)) as client:
        yield client


def test_it_is_transparent(bent: BentRedis, seen: Any, true: redis.Redis) -> None:
    blob = os.urandom(MIB) + b"\r\n*1\r\n$4\r\nPING\r\n"
    assert seen.set("blob", blob)
    assert seen.get("blob") == blob
    with seen.pipeline() as pipe:
        answers = pipe.lpush("control", b"a").lpush("host.hv-a\x06\x163", blob).llen("control")
        assert answers.execute() == [1, 1, 1]
    with seen.pipeline(transaction=False) as pipe:
        for number in range(500):
            pipe.rpush("numbers", number)
        assert pipe.execute() == list(range(1, 501))
    assert true.rpop("host.hv-a\x06\x163") == blob
    with pytest.raises(ResponseError, match="wrong number"):
        seen.execute_command("LPUSH", "control")
    with redis.Redis.from_url(bent.url(1)) as other:
        other.set("where", "one")
    assert seen.get("where") is None
    assert bent.counts.seen == 3
    assert bent.counts.dropped + bent.counts.doubled + bent.counts.delayed == 0


def test_blocking_and_subscribed_clients_are_woken(bent: BentRedis, seen: Any) -> None:
    with redis.Redis.from_url(bent.url(0)) as sender, seen.pubsub() as subscribed:
        threading.Timer(0.1, sender.lpush, ("host.hv-a", b"bell")).start()
        assert seen.brpop(["control", "host.hv-a"], timeout=3) == (b"host.hv-a", b"bell")
        assert seen.brpop(["control"], timeout=1) is None
        subscribed.psubscribe("/0.celery*")
        assert subscribed.get_message(timeout=5)["type"] == "psubscribe"
        sender.publish("/0.celeryev", b"\0\xff" * 1000)
        assert subscribed.get_message(timeout=5)["data"] == b"\0\xff" * 1000


def test_commands_may_come_in_pieces(bent: BentRedis) -> None:
    with socket.create_connection((bent.address, bent.port)) as raw:
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in b"PING\r\n*3\r\n$5\r\nLPUSH\r\n$7\r\ncontrol\r\n$2\r\n\r\n\r\nPING\r\n":
            raw.send(bytes([byte]))
        raw.settimeout(5)
        answer = b""
        while answer.count(b"\n") < 3:
            answer += raw.recv(100)
        assert answer == b"+PONG\r\n:1\r\n+PONG\r\n"
        raw.sendall(b"*1\r\nnonsense\r\n")
        assert b"Protocol error" in raw.recv(1000)


def test_messages_are_dropped_but_not_what_clients_send(
    bent: BentRedis, seen: redis.Redis, true: redis.Redis
) -> None:
    bent.bend(drop=0.5)
    for _ in range(200):
        assert seen.lpush("control", STEP) > 0
    dropped = bent.counts.dropped
    assert 60 < dropped < 140
    assert true.llen("control") == 200 - dropped
    assert true.llen(DROPPED_KEY) == dropped
    bent.bend(drop=1.0)
    seen.lpush("host.hv-a", STEP)
    seen.lpush("control", REQUEST, "")
    seen.lpush("control", QUERY)
    seen.lpush("control", "not JSON")
    assert true.llen("control") == 204 - dropped
    assert true.llen("host.hv-a") == 0
    assert (bent.counts.dropped, bent.counts.spared) == (dropped + 1, 3)
    bent.bend(drop_requests=True)
    seen.lpush("control", REQUEST)
    assert true.llen("control") == 204 - dropped
    seen.lpush("results", STEP)
    assert true.llen("results") == 1


def test_messages_are_doubled(bent: BentRedis, seen: Any, true: redis.Redis) -> None:
    bent.bend(double=1.0)
    with seen.pipeline() as pipe:
        assert pipe.lpush("control", REQUEST).get("nothing").execute() == [2, None]
    assert true.lrange("control", 0, -1) == [REQUEST.encode()] * 2
    bent.bend(double=0.0)
    seen.lpush("control", REQUEST)
    assert true.llen("control") == 3
    assert bent.counts.doubled == 1


def test_messages_are_late_and_out_of_order(
    bent: BentRedis, seen: redis.Redis, true: redis.Redis
) -> None:
    bent.bend(delay=(1.0, 0.0, 0.3))
    with redis.Redis.from_url(bent.url(1)) as other:
        for number in range(30):
            assert other.lpush("host.hv-a", number) == 1
    wait_until(lambda: bent.counts.late == 30)
    with redis.Redis(port=true.connection_pool.connection_kwargs["port"], db=1) as first:
        arrived = [int(value) for value in reversed(first.lrange("host.hv-a", 0, -1))]
        assert arrived != list(range(30))
        assert sorted(arrived) == list(range(30))
        assert first.dbsize() == 1
    bent.bend(delay=(1.0, 60.0, 60.0))
    seen.lpush("control", "late")
    true.flushall()
    seen.lpush("control", "later")
    bent.bend(double=1.0)
    seen.lpush("control", "twice")
    assert true.lrange("control", 0, -1) == [b"twice"]
    bent.straighten()
    assert sorted(true.lrange("control", 0, -1)) == [b"later", b"twice", b"twice"]
    assert bent.counts.lost_parked == 1


def test_what_celery_publishes_is_bent(bent: BentRedis, true: redis.Redis) -> None:
    with Celery("test", broker=bent.url(0), set_as_current=False) as app:
        bent.bend(double=1.0)
        app.send_task("innkeeper.spawn.fetch_image", queue="host.hv-a")
        assert true.llen("host.hv-a") == 2
        bent.bend(double=0.0, drop=1.0)
        app.send_task("innkeeper.spawn.fetch_image", queue="host.hv-a")
        app.send_task("innkeeper.instance.spawn", queue="control", priority=3)
        assert true.llen("host.hv-a") == 2
        assert true.llen("control\x06\x163") == 1
        bent.bend(drop=0.0, delay=(1.0, 0.1, 0.1))
        app.send_task("innkeeper.instance.spawn", queue="control")
        assert true.llen("control") == 0
        wait_until(lambda: true.llen("control") == 1)
    counts = bent.counts
    assert (counts.seen, counts.dropped, counts.spared) == (4, 1, 1)


def test_it_is_quick(seen: redis.Redis, true: redis.Redis) -> None:
    def median_s(client: redis.Redis) -> float:
        taken = []
        for _ in range(300):
            began_s = time.perf_counter()
            client.lpush("control", STEP)
            taken.append(time.perf_counter() - began_s)
        return statistics.median(taken)

    added_s = median_s(seen) - median_s(true)
    print(f"{added_s * 1e6:.0f} µs added to a command")
    assert added_s < 0.002


def test_a_redis_that_is_not_there_is_not_there_and_comes_back() -> None:
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="innkeeper-redis-") as directory:
        with (
            BentRedis("127.0.0.1", port, listen_address="127.0.0.1") as bent,
            redis.Redis.from_url(bent.url(0)) as client,
        ):
            for _ in range(2):
                with pytest.raises(RedisConnectionError):
                    client.ping()
                server = start_redis(port, directory)
                try:
                    assert client.ping()
                    bent.bend(delay=(1.0, 0.0, 0.0))
                    client.lpush("control", "x")
                    wait_until(lambda: bent.counts.late > 0)
                finally:
                    server.kill()
                    server.wait()
        assert not [t for t in threading.enumerate() if t.name == "bent-redis"]
        with pytest.raises(OSError, match="refused"):
            socket.create_connection((bent.address, bent.port), timeout=1)
