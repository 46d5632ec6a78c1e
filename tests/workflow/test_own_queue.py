"""Steps that follow each other in one worker: their messages never leave it."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from celery import Celery
from sqlalchemy import text

from innkeeper import Innkeeper
from lab.handle import Lab
from models.session import Database
from tests.crash_directory import CrashDirectory
from tests.waiting import PATIENCE_S, wait_until

pytestmark = pytest.mark.lab

STEPS = ("fetch_image", "create_disks", "render_xml", "define_domain", "start_domain")


@contextmanager
def listening(lab: Lab) -> Iterator[list[dict[str, Any]]]:
    """Collect what Flower is told."""
    heard: list[dict[str, Any]] = []
    app = Celery(broker=lab.env()["INNKEEPER_BROKER_URL"], set_as_current=False)
    with app.connection_for_read() as connection:
        receiver = app.events.Receiver(connection, handlers={"*": heard.append})
        thread = threading.Thread(
            target=lambda: receiver.capture(limit=None, timeout=None, wakeup=False), daemon=True
        )
        thread.start()
        try:
            yield heard
        finally:
            receiver.should_stop = True
    app.close()


def state_of(records: Database, operation_id: object) -> str:
    with records.transaction() as session:
        return str(
            session.execute(
                text("SELECT state FROM operations WHERE id = :id"), {"id": operation_id}
            ).scalar_one()
        )


def test_flower_is_told_of_every_step_as_a_task_of_its_own(
    client: Innkeeper, lab: Lab, name: str, boot_guest: dict[str, Any]
) -> None:
    with listening(lab) as heard:
        spawned = client.spawn(name=name, host=lab.hosts[0], **boot_guest)
        spawned.wait(PATIENCE_S)

        def tasks() -> dict[str, set[str]]:
            told: dict[str, set[str]] = {}
            for event in list(heard):
                if event.get("root_id") == str(spawned.id) and event["type"] == "task-received":
                    told[event["uuid"]] = {event["name"].rpartition(".")[2]}
            for event in list(heard):
                if event.get("uuid") in told:
                    told[event["uuid"]].add(event["type"])
            return told

        whole = {"task-received", "task-started", "task-succeeded"}
        wait_until(
            lambda: all(any(each >= {step, *whole} for each in tasks().values()) for step in STEPS),
            what="every step was received, started and has succeeded",
        )
    assert len(tasks()) == len(STEPS) + 1, "one task for each step, and the request"


def test_nobody_watches_the_boot_of_a_guest_that_only_has_to_run(
    client: Innkeeper, lab: Lab, name: str, boot_guest: dict[str, Any]
) -> None:
    spawned = client.spawn(name=name, host=lab.hosts[0], **boot_guest)
    assert spawned.wait(PATIENCE_S)["boot_stage"] == "running"
    assert tuple(step.name for step in spawned.view().steps) == STEPS


def test_an_operation_goes_on_while_redis_is_away(
    client: Innkeeper,
    lab: Lab,
    records: Database,
    crash: CrashDirectory,
    name: str,
    boot_guest: dict[str, Any],
) -> None:
    crash.arm_hold("spawn.create_disks:acting")
    spawned = client.spawn(name=name, host=lab.hosts[0], **boot_guest)
    with crash.held("spawn.create_disks:acting"):
        lab.kill("redis")
    wait_until(
        lambda: state_of(records, spawned.id) == "succeeded",
        what="the steps that are left are done without Redis",
    )
    lab.start("redis")
    assert spawned.wait(PATIENCE_S)["state"] == "active"


@pytest.mark.parametrize("moment", ["acting", "recorded"])
def test_a_worker_that_is_asked_to_end_leaves_the_rest_to_the_next(
    moment: str,
    client: Innkeeper,
    lab: Lab,
    crash: CrashDirectory,
    name: str,
    boot_guest: dict[str, Any],
) -> None:
    host = lab.hosts[0]
    point = f"spawn.create_disks:{moment}"
    crash.arm_hold(point)
    spawned = client.spawn(name=name, host=host, **boot_guest)
    with crash.held(point):
        lab.kill(f"worker:{host}", signal.SIGTERM)
    wait_until(lambda: not lab.role(f"worker:{host}")["running"], what="the worker has ended")
    lab.start(f"worker:{host}")
    assert spawned.wait(PATIENCE_S)["state"] == "active"
    done = {step.name: step.state for step in spawned.view().steps}
    assert set(done.values()) == {"done"}
