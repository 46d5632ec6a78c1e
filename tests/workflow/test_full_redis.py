"""A Redis that refuses writes for a while, or has lost all outcomes: nobody notices for long."""

import signal
import time
from typing import Any

import pytest
import redis
from celery import Celery
from sqlalchemy import text

from innkeeper import Innkeeper
from lab.handle import Lab
from models.session import Database
from tests.waiting import wait_until

pytestmark = pytest.mark.lab


def test_workers_outlive_a_redis_that_is_full(
    client: Innkeeper, lab: Lab, name: str, boot_guest: dict[str, Any]
) -> None:
    """Each message that is taken while Redis is full must not take the worker with it."""
    pids = {role["role"]: role["pid"] for role in lab.status()["roles"]}
    workers = ["control", *(f"worker:{host}" for host in lab.hosts)]
    client.spawn(name=name, **boot_guest).wait(60)
    with redis.Redis.from_url(lab.env()["INNKEEPER_BROKER_URL"]) as admin:
        for worker in workers:
            lab.kill(worker, signal.SIGSTOP)
        try:
            # Something waits for everybody, so that everybody takes it while Redis refuses.
            publish_chores(lab)
            admin.config_set("maxmemory", "1")
        finally:
            for worker in workers:
                lab.kill(worker, signal.SIGCONT)
        try:
            time.sleep(6)
        finally:
            admin.config_set("maxmemory", "0")
    assert client.stop(name, force=True).wait(120)["state"] == "stopped"
    assert {role["role"]: role["pid"] for role in lab.status()["roles"]} == pids


def publish_chores(lab: Lab) -> None:
    env = lab.env()
    app = Celery(broker=env["INNKEEPER_BROKER_URL"], set_as_current=False)
    for _ in range(3):
        app.send_task("innkeeper.sweep", queue="control", ignore_result=True)
        for host in lab.hosts:
            app.send_task("innkeeper.power.sync_host", queue=f"host.{host}", ignore_result=True)
    app.close()


def test_outcomes_come_back_after_redis_was_emptied(lab: Lab, records: Database) -> None:
    """Whoever waits with a plain AsyncResult has nothing but what is stored there."""
    with records.transaction() as session:
        ids = session.scalars(
            text(
                "INSERT INTO operations (id, kind, state, request_digest, result, finished_at, "
                "outcome_published_at) SELECT gen_random_uuid(), 'stop', 'succeeded', 'x', '{}', "
                "clock_timestamp() - interval '1 minute', clock_timestamp() "
                "FROM generate_series(1, 1500) RETURNING id"
            )
        ).all()
    keys = [f"celery-task-meta-{operation_id}" for operation_id in ids]
    with redis.Redis.from_url(lab.env()["INNKEEPER_RESULT_URL"]) as results:
        results.flushall()
        took_s = wait_until(
            lambda: results.exists(*keys) == len(keys), what="every outcome is stored again"
        )
    assert took_s < 30
    with records.transaction() as session:
        session.execute(text("DELETE FROM operations WHERE id = ANY(:ids)"), {"ids": list(ids)})
