"""A Redis that refuses, is silent, or comes back: every call ends, in seconds and typed."""

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import control_stub
import pytest
import redis
from private_redis import PrivateRedis, free_port

from innkeeper import BrokerUnavailable, Innkeeper, ServiceError, WaitTimeout, contract, operation
from tests.waiting import PATIENCE_S, quickest

CALLS: dict[str, Callable[[Innkeeper], Any]] = {
    "request": lambda inn: inn.start("vm-1"),
    "query": lambda inn: inn.instances(),
    "result": lambda inn: inn.operation(uuid4()).result(),
    "cancel": lambda inn: inn.operation(uuid4()).cancel(),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())
def test_a_refused_connection_is_said_at_once(call: Callable[[Innkeeper], Any]) -> None:
    address = f"redis://:secret@127.0.0.1:{free_port()}/0"

    def ask() -> float:
        began = time.monotonic()
        with (
            Innkeeper(address, address) as inn,
            pytest.raises(BrokerUnavailable, match="refused") as caught,
        ):
            call(inn)
        elapsed_s = time.monotonic() - began
        assert "secret" not in str(caught.value.to_wire())
        return elapsed_s

    assert quickest(ask, limit_s=2) < 2


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())
def test_a_silent_redis_is_given_up_after_the_time_out(
    black_hole: str, call: Callable[[Innkeeper], Any]
) -> None:
    def ask() -> float:
        began = time.monotonic()
        with (
            Innkeeper(black_hole, black_hole, timeout_s=1) as inn,
            pytest.raises(BrokerUnavailable),
        ):
            call(inn)
        return time.monotonic() - began

    assert quickest(ask, limit_s=4) < 4


def test_a_refused_request_tells_the_id_it_would_have_had(black_hole: str) -> None:
    with (
        Innkeeper(black_hole, black_hole, timeout_s=0.5) as inn,
        pytest.raises(BrokerUnavailable) as caught,
    ):
        inn.start("vm-1", idempotency_key="k")

    expected = contract.operation_id_for("k", contract.INSTANCE_START, {"instance": "vm-1"})
    assert caught.value.details["operation_id"] == str(expected)


def test_without_a_control_worker_a_question_ends_and_says_so(tmp_path: Path) -> None:
    server = PrivateRedis(tmp_path)
    server.start()
    try:
        with (
            Innkeeper(server.broker_url, server.result_url, timeout_s=0.5) as inn,
            pytest.raises(ServiceError, match="No control worker answered") as caught,
        ):
            inn.instances()
    finally:
        server.stop()

    assert type(caught.value) is ServiceError


def test_a_wait_outlives_an_emptied_redis_and_sends_the_request_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(operation, "_ARRIVAL_S", 0.5)
    server = PrivateRedis(tmp_path)
    server.start()
    try:
        inn = Innkeeper(server.broker_url, server.result_url, timeout_s=1)
        spawned = inn.spawn(name="vm-1", image="/noble.qcow2")
        server.stop()
        with pytest.raises(WaitTimeout, match="refused"):
            spawned.wait(timeout_s=0.5)

        server.start()
        # A process of its own: two Celery workers in one stop each other.
        worker = subprocess.Popen(
            [sys.executable, control_stub.__file__, server.broker_url, server.result_url]
        )
        try:
            # No message of the first sending is left, so only a second one can bring the result.
            assert spawned.wait(timeout_s=PATIENCE_S)["name"] == "vm-1"
            # The pooled connections of before the restart do no harm.
            inn.start("vm-1").wait(timeout_s=PATIENCE_S)
        finally:
            worker.kill()
            worker.wait()
    finally:
        server.stop()


def test_a_wait_without_limit_ends_when_nothing_answers_for_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(operation, "OUTAGE_LIMIT_S", 0.5)
    address = f"redis://127.0.0.1:{free_port()}/0"
    inn = Innkeeper(address, address)

    with pytest.raises(BrokerUnavailable):
        inn.operation(uuid4()).wait()
    with pytest.raises(BrokerUnavailable):
        list(inn.operation(uuid4()).watch())


def test_answers_that_were_read_do_not_stay_in_redis(
    inn: Innkeeper, private_redis: PrivateRedis
) -> None:
    with redis.Redis(port=private_redis.port, db=1) as results:

        def answers_stay() -> bool:
            before = results.dbsize()
            inn.instances()
            inn.hosts()
            return results.dbsize() != before

        # The outcome of an earlier test's operation may be stored in between, but not thrice.
        assert not all(answers_stay() for _ in range(3))


def test_a_redis_that_is_full_is_said_every_time(tmp_path: Path) -> None:
    """The pooled channel that the refusal has closed must not surface as an AttributeError."""
    private_redis = PrivateRedis(tmp_path)
    private_redis.start()
    try:
        refuse_and_recover(private_redis)
    finally:
        private_redis.stop()


def refuse_and_recover(private_redis: PrivateRedis) -> None:
    with redis.Redis.from_url(private_redis.broker_url) as admin:
        admin.config_set("maxmemory-policy", "noeviction")
        admin.config_set("maxmemory", "1")
    with Innkeeper(private_redis.broker_url, private_redis.result_url, timeout_s=2) as inn:
        for _ in range(20):
            with pytest.raises(BrokerUnavailable):
                inn.start("vm-1")
        with redis.Redis.from_url(private_redis.broker_url) as admin:
            admin.config_set("maxmemory", "0")
        assert inn.start("vm-1").id is not None
