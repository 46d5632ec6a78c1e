"""Spawn on real hypervisors: what works, what is refused, and what is left after a failure."""

from typing import Any

import pytest
from celery import Celery
from celery.result import AsyncResult

from innkeeper import Innkeeper
from innkeeper.errors import (
    AlreadyExists,
    BootTimeout,
    Cancelled,
    Conflict,
    DigestMismatch,
    FetchFailed,
    InvalidRequest,
    NoHostFits,
)
from lab.handle import Lab
from models.session import Database
from tests.workflow.conftest import assert_nothing_left, domains_on, files_of

pytestmark = pytest.mark.lab


def test_a_guest_boots_until_its_agent_answers(
    client: Innkeeper, lab: Lab, name: str, linux_guest: dict[str, Any]
) -> None:
    operation = client.spawn(name=name, **linux_guest)
    result = operation.wait(120)
    assert result["state"] == "active"
    assert result["boot_stage"] == "agent"
    assert domains_on(lab, result["host"])[name] == "running"
    view = operation.view()
    assert [step.state for step in view.steps] == ["done"] * 6
    assert view.progress.fraction == 1.0


def test_a_plain_celery_program_gets_the_instance(
    lab: Lab, name: str, boot_guest: dict[str, Any]
) -> None:
    env = lab.env()
    app = Celery(broker=env["INNKEEPER_BROKER_URL"], backend=env["INNKEEPER_RESULT_URL"])
    result = app.send_task(
        "innkeeper.instance.spawn",
        kwargs={"spec": {"name": name, "wait": "running", **boot_guest}},
        queue="control",
    )
    assert result.get(timeout=120)["name"] == name
    with pytest.raises(AlreadyExists, match=name):
        app.send_task(
            "innkeeper.instance.spawn",
            kwargs={"spec": {"name": name, **boot_guest}},
            queue="control",
        ).get(timeout=60)


def test_a_repeated_key_is_one_guest_and_a_misused_key_is_refused(
    client: Innkeeper, lab: Lab, name: str, boot_guest: dict[str, Any]
) -> None:
    first = client.spawn(name=name, idempotency_key=f"k-{name}", **boot_guest)
    again = client.spawn(name=name, idempotency_key=f"k-{name}", **boot_guest)
    assert first.id == again.id
    assert first.wait(120)["id"] == again.wait(120)["id"]
    env = lab.env()
    app = Celery(broker=env["INNKEEPER_BROKER_URL"], backend=env["INNKEEPER_RESULT_URL"])
    plain = app.send_task(
        "innkeeper.instance.spawn",
        kwargs={"spec": {"name": "other", **boot_guest}, "idempotency_key": f"k-{name}"},
        queue="control",
    )
    with pytest.raises(Conflict):
        AsyncResult(plain.id, app=app).get(timeout=60)


def test_a_wrong_digest_is_refused_and_leaves_nothing(
    client: Innkeeper, lab: Lab, records: Database, name: str, boot_guest: dict[str, Any]
) -> None:
    operation = client.spawn(name=name, **{**boot_guest, "sha256": "0" * 64})
    with pytest.raises(DigestMismatch) as caught:
        operation.wait(120)
    assert caught.value.step == "fetch_image"
    assert caught.value.host in lab.hosts
    assert_nothing_left(lab, records, str(operation.view().instance_id))


def test_a_missing_image_fails_with_its_address_in_the_message(
    client: Innkeeper, name: str, lab: Lab, boot_guest: dict[str, Any]
) -> None:
    missing = boot_guest["image"].replace("boot-", "missing-")
    with pytest.raises(FetchFailed, match="missing-"):
        client.spawn(name=name, image=missing, memory_mib=64).wait(120)


def test_a_late_guest_is_undone_and_its_stage_is_named(
    client: Innkeeper, lab: Lab, records: Database, name: str, boot_guest: dict[str, Any]
) -> None:
    # Long enough for its first words also on a busy machine: that stage is to be named.
    operation = client.spawn(name=name, wait="agent", boot_timeout_s=8, **boot_guest)
    with pytest.raises(BootTimeout) as caught:
        operation.wait(120)
    assert caught.value.details["wanted"] == "agent"
    assert caught.value.details["reached"] == "console"
    assert caught.value.effect == "rolled_back"
    assert_nothing_left(lab, records, str(operation.view().instance_id))


def test_a_cancelled_spawn_leaves_nothing_and_frees_its_name(
    client: Innkeeper, lab: Lab, records: Database, name: str, boot_guest: dict[str, Any]
) -> None:
    operation = client.spawn(name=name, wait="agent", boot_timeout_s=120, **boot_guest)
    next(view for view in operation.watch(60) if view.progress.step == "wait_boot")
    operation.cancel()
    with pytest.raises(Cancelled):
        operation.wait(60)
    assert_nothing_left(lab, records, str(operation.view().instance_id))
    client.spawn(name=name, **boot_guest).wait(120)


def test_bad_requests_are_refused_at_once_and_all_together(lab: Lab, client: Innkeeper) -> None:
    with pytest.raises(InvalidRequest) as caught:
        client.spawn(name="Bad Name", image="", vcpus=0)
    assert {p["path"] for p in caught.value.details["problems"]} >= {"name", "image", "vcpus"}
    env = lab.env()
    app = Celery(broker=env["INNKEEPER_BROKER_URL"], backend=env["INNKEEPER_RESULT_URL"])
    with pytest.raises(InvalidRequest):
        app.send_task(
            "innkeeper.instance.spawn", kwargs={"spec": {"nmae": "x"}}, queue="control"
        ).get(timeout=60)


def test_a_guest_too_large_for_every_host_is_told_why(
    client: Innkeeper, boot_guest: dict[str, Any], lab: Lab
) -> None:
    with pytest.raises(NoHostFits) as caught:
        client.spawn(name="giant", **{**boot_guest, "memory_mib": 4_000_000}).wait(60)
    assert {r["host"] for r in caught.value.details["refusals"]} == set(lab.hosts)
    assert {r["code"] for r in caught.value.details["refusals"]} == {"memory"}


def test_delete_leaves_nothing(
    client: Innkeeper, lab: Lab, records: Database, name: str, boot_guest: dict[str, Any]
) -> None:
    instance = client.spawn(name=name, **boot_guest).wait(120)
    assert files_of(lab, instance["host"], instance["id"]) != []
    client.delete(name).wait(120)
    assert_nothing_left(lab, records, instance["id"])
