"""Operations end although a host is away, and what they owe is made up for when it is back."""

from collections.abc import Callable
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import text

from innkeeper import Innkeeper
from innkeeper.errors import InnkeeperError
from innkeeper.operation import Operation
from lab.handle import Lab
from models.session import Database
from tests.crash_directory import CrashDirectory
from tests.workflow.conftest import assert_nothing_left, domains_on, files_of, wait_until

pytestmark = pytest.mark.lab

Spawn = Callable[[str], dict[str, Any]]


@pytest.fixture
def spawn(client: Innkeeper, name: str, boot_guest: dict[str, Any]) -> Spawn:
    return lambda host: client.spawn(name=name, host=host, **boot_guest).wait(120)


def pass_deadline(records: Database, operation: Operation) -> None:
    """Move an operation into the past, beyond its deadline and the time of grace after it."""
    with records.transaction() as session:
        session.execute(
            text(
                "UPDATE operations SET deadline_at = clock_timestamp() - interval '21 seconds', "
                "created_at = created_at - interval '1 hour' WHERE id = :id"
            ),
            {"id": operation.id},
        )


def fail_by_deadline(records: Database, operation: Operation) -> InnkeeperError:
    pass_deadline(records, operation)
    with pytest.raises(InnkeeperError) as caught:
        operation.wait(90)
    assert caught.value.code == "deadline_exceeded"
    return caught.value


def wait_settled(client: Innkeeper, operation_id: UUID) -> None:
    wait_until(
        lambda: client.operation(operation_id).view().owes_since is None,
        timeout_s=90,
        what="what was owed is made up for",
    )


def kill_at(lab: Lab, crash: CrashDirectory, point: str, host: str) -> None:
    assert crash.wait_struck(point), f"nobody came to {point}"
    wait_until(lambda: not lab.role(f"worker:{host}")["running"], what="the worker is dead")


def test_a_spawn_whose_host_is_lost_ends_and_is_cleaned_up_when_it_is_back(
    client: Innkeeper,
    lab: Lab,
    name: str,
    boot_guest: dict[str, Any],
    records: Database,
    crash: CrashDirectory,
) -> None:
    host = lab.hosts[0]
    point = "spawn.wait_boot:claimed"
    crash.arm_kill(point)
    operation = client.spawn(name=name, host=host, wait="console", **boot_guest)
    kill_at(lab, crash, point, host)
    error = fail_by_deadline(records, operation)
    assert error.effect == "unknown"
    instance = client.instance(name)
    assert instance.state == "unknown"
    assert domains_on(lab, host)[name] == "running", "nothing is cleaned up without a look"
    lab.start(f"worker:{host}")
    wait_settled(client, operation.id)
    assert_nothing_left(lab, records, str(instance.id))
    assert client.spawn(name=name, host=host, **boot_guest).wait(60)["state"] == "active"


@pytest.mark.parametrize(
    ("point", "has_left"),
    [("live_migrate.migrate:acting", False), ("live_migrate.migrate:acted", True)],
)
def test_a_migration_whose_source_is_lost_is_settled_when_it_is_back(
    client: Innkeeper,
    lab: Lab,
    name: str,
    records: Database,
    crash: CrashDirectory,
    spawn: Spawn,
    point: str,
    has_left: bool,
) -> None:
    a, b = lab.hosts[:2]
    instance = spawn(a)
    crash.arm_kill(point)
    operation = client.migrate(name, dst=b)
    kill_at(lab, crash, point, a)
    assert fail_by_deadline(records, operation).effect == "unknown"
    assert client.instance(name).state == "unknown"
    with pytest.raises(InnkeeperError, match="unknown"):
        client.delete(name).wait(90)
    lab.start(f"worker:{a}")
    wait_settled(client, operation.id)
    here, there = (b, a) if has_left else (a, b)
    record = client.instance(name)
    assert (record.state, record.host) == ("active", here)
    assert domains_on(lab, here)[name] == "running"
    assert name not in domains_on(lab, there)
    assert files_of(lab, there, instance["id"]) == []


def test_a_committed_move_succeeds_and_its_lost_source_is_cleaned_up_later(
    client: Innkeeper,
    lab: Lab,
    name: str,
    records: Database,
    crash: CrashDirectory,
    spawn: Spawn,
) -> None:
    a, b = lab.hosts[:2]
    instance = spawn(a)
    point = "live_migrate.settle_destination:acting"
    crash.arm_hold(point)
    operation = client.migrate(name, dst=b)
    with crash.held(point):
        lab.kill(f"worker:{a}")
    wait_until(lambda: client.instance(name).host == b, what="the move is committed")
    pass_deadline(records, operation)
    assert operation.wait(90)["host"] == b
    assert operation.view().owes_since is not None
    assert files_of(lab, a, instance["id"]) != []
    lab.start(f"worker:{a}")
    wait_settled(client, operation.id)
    assert files_of(lab, a, instance["id"]) == []
    assert client.migrate(name, dst=a).wait(60)["host"] == a


def test_a_lost_destination_leaves_the_guest_free_and_is_cleaned_up_later(
    client: Innkeeper,
    lab: Lab,
    name: str,
    records: Database,
    crash: CrashDirectory,
    spawn: Spawn,
) -> None:
    a, b = lab.hosts[:2]
    instance = spawn(a)
    point = "live_migrate.prepare_destination:acted"
    crash.arm_kill(point)
    operation = client.migrate(name, dst=b)
    kill_at(lab, crash, point, b)
    assert fail_by_deadline(records, operation).effect == "rolled_back"
    record = client.instance(name)
    assert (record.state, record.host) == ("active", a)
    # The guest goes on meanwhile, under newer epochs than that of the failed move.
    client.stop(name, force=True).wait(60)
    client.start(name).wait(60)
    assert files_of(lab, b, instance["id"]) != []
    lab.start(f"worker:{b}")
    wait_settled(client, operation.id)
    assert files_of(lab, b, instance["id"]) == []
    assert domains_on(lab, a)[name] == "running"


def test_a_stop_on_a_lost_host_says_whether_it_was_begun(
    client: Innkeeper,
    lab: Lab,
    name: str,
    records: Database,
    crash: CrashDirectory,
    spawn: Spawn,
) -> None:
    host = lab.hosts[0]
    spawn(host)
    lab.kill(f"worker:{host}")
    waiting = client.stop(name, force=True)
    wait_until(
        lambda: [view.id for view in client.operations(active=True)] == [waiting.id],
        what="the stop is accepted",
    )
    assert fail_by_deadline(records, waiting).effect == "not_started"
    assert client.instance(name).state == "active"
    lab.start(f"worker:{host}")
    point = "stop.stop_guest:acted"
    crash.arm_kill(point)
    begun = client.stop(name, force=True)
    kill_at(lab, crash, point, host)
    assert fail_by_deadline(records, begun).effect == "unknown"
    assert client.instance(name).state == "unknown"
    lab.start(f"worker:{host}")
    wait_settled(client, begun.id)
    record = client.instance(name)
    assert (record.state, record.power_state) == ("stopped", "shutdown")


@pytest.mark.parametrize("verb", ["delete", "stop", "reboot", "start"])
def test_a_cancel_comes_too_late_for_what_cannot_be_undone(
    client: Innkeeper, lab: Lab, name: str, crash: CrashDirectory, spawn: Spawn, verb: str
) -> None:
    """Half a delete would be neither the guest nor its absence."""
    host = lab.hosts[0]
    spawn(host)
    if verb == "start":
        client.stop(name, force=True).wait(60)
    step = {"delete": "destroy_domain"}.get(verb, f"{verb}_guest")
    point = f"{verb}.{step}:inside"
    crash.arm_kill(point)
    fields: dict[str, Any] = {"stop": {"force": True}, "reboot": {"kind": "hard"}}.get(verb, {})
    operation = getattr(client, verb)(name, **fields)
    kill_at(lab, crash, point, host)
    operation.cancel()
    lab.start(f"worker:{host}")
    assert operation.wait(60)["state"] == {"delete": "deleted", "stop": "stopped"}.get(
        verb, "active"
    )


def test_a_step_that_always_kills_its_worker_comes_to_an_end(
    client: Innkeeper,
    lab: Lab,
    name: str,
    boot_guest: dict[str, Any],
    records: Database,
    crash: CrashDirectory,
) -> None:
    host = lab.hosts[0]
    point = "spawn.start_domain:inside"
    crash.arm_kill(point)
    operation = client.spawn(name=name, host=host, **boot_guest)
    kill_at(lab, crash, point, host)
    with records.transaction() as session:
        session.execute(
            text("UPDATE steps SET failures = 10 WHERE operation_id = :id AND state = 'running'"),
            {"id": operation.id},
        )
    lab.start(f"worker:{host}")
    with pytest.raises(InnkeeperError) as caught:
        operation.wait(90)
    error = caught.value
    assert (error.code, error.step, error.host) == ("attempts_exhausted", "start_domain", host)
    assert error.effect == "rolled_back"
    assert_nothing_left(lab, records, str(operation.view().instance_id))
