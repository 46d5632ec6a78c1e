"""A refused request is refused for good: no late copy of its message does it after all."""

from typing import Any
from uuid import UUID, uuid4

import pytest
from celery import Celery
from celery.result import AsyncResult
from sqlalchemy import text

from innkeeper import Innkeeper
from innkeeper.errors import Busy
from lab.handle import Lab
from models.session import Database
from tests.crash_directory import CrashDirectory
from tests.waiting import PATIENCE_S

pytestmark = pytest.mark.lab

HELD = "reboot.reboot_guest:acting"


def count_operations(records: Database, task_id: UUID) -> int:
    query = text("SELECT count(*) FROM operations WHERE id = :id")
    return records.run(lambda session: int(session.execute(query, {"id": task_id}).scalar_one()))


def test_a_late_copy_of_a_refused_request_is_refused_too(
    client: Innkeeper,
    lab: Lab,
    records: Database,
    name: str,
    boot_guest: dict[str, Any],
    crash: CrashDirectory,
) -> None:
    env = lab.env()
    app = Celery(broker=env["INNKEEPER_BROKER_URL"], backend=env["INNKEEPER_RESULT_URL"])
    task_id = uuid4()

    def deliver() -> AsyncResult:
        sent = {"instance": name, "policy": {"force": True}}
        app.send_task("innkeeper.instance.stop", task_id=str(task_id), kwargs=sent, queue="control")
        return AsyncResult(str(task_id), app=app)

    client.spawn(name=name, **boot_guest).wait(120)
    crash.arm_hold(HELD)
    reboot = client.reboot(name, kind="hard")
    assert crash.wait_held(HELD)
    with pytest.raises(Busy):
        deliver().get(timeout=PATIENCE_S)
    crash.release(HELD)
    reboot.wait(60)

    AsyncResult(str(task_id), app=app).forget()
    with pytest.raises(Busy):
        deliver().get(timeout=PATIENCE_S)

    assert client.instance(name).state == "active"
    assert count_operations(records, task_id) == 0


def test_a_new_call_with_the_same_key_is_judged_anew(
    client: Innkeeper, name: str, boot_guest: dict[str, Any], crash: CrashDirectory
) -> None:
    client.spawn(name=name, **boot_guest).wait(120)
    crash.arm_hold(HELD)
    reboot = client.reboot(name, kind="hard")
    assert crash.wait_held(HELD)
    with pytest.raises(Busy):
        client.stop(name, force=True, idempotency_key=f"stop-{name}").wait(60)
    crash.release(HELD)
    reboot.wait(60)

    stopped = client.stop(name, force=True, idempotency_key=f"stop-{name}").wait(60)

    assert stopped["state"] == "stopped"
