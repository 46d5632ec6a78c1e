"""A failure tells what failed, where, in which step, what is left and what to do; it is true."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from innkeeper import Innkeeper
from innkeeper.errors import InnkeeperError, catalogue
from innkeeper.operation import Operation
from lab.handle import Lab
from models.session import Database
from tests.chaos.checker.ledger_look import connect
from tests.crash_directory import CrashDirectory
from tests.waiting import wait_until
from tests.workflow.conftest import assert_nothing_left, domains_on, files_of
from tests.workflow.test_migrate import begin_slow_migration, spawn_on

pytestmark = pytest.mark.lab

Told = tuple[str, str | None, str | None, str]


def told(operation: Operation, timeout_s: float = 60) -> Told:
    """Return code, step, host and effect of the failure, checked against the operation's row."""
    with pytest.raises(InnkeeperError) as caught:
        operation.wait(timeout_s)
    error = caught.value
    recorded = operation.view().error or {}
    for key in ("code", "step", "host", "effect", "hint", "message"):
        assert error.to_wire()[key] == recorded[key], key
    assert error.hint == (error.details.get("hint") or catalogue()[error.code].default_hint)
    assert error.hint
    return error.code, error.step, error.host, str(error.effect)


@contextmanager
def shortened(lab: Lab, operation: Operation, *, left_s: float) -> Iterator[None]:
    """Let an operation's deadline come soon; nobody can ask for less than two minutes."""
    with connect(lab.env()["INNKEEPER_DATABASE_URL"]) as connection:
        connection.execute(
            "UPDATE operations SET deadline_at = clock_timestamp() + make_interval(secs => %s)"
            " WHERE id = %s",
            (left_s, operation.id),
        )
        yield


def assert_untouched(lab: Lab, client: Innkeeper, name: str, host: str, instance_id: str) -> None:
    """The guest runs on its host as before, alone, and its record says so."""
    for other in lab.hosts:
        expected = "running" if other == host else None
        assert domains_on(lab, other).get(name) == expected, other
        if other != host:
            assert files_of(lab, other, instance_id) == []
    view = client.instance(name)
    assert (view.host, view.state, view.operation_id) == (host, "active", None)


SPAWN_STEPS = (
    "fetch_image",
    "create_disks",
    "render_xml",
    "define_domain",
    "start_domain",
    "wait_boot",
)


@pytest.mark.parametrize("step", SPAWN_STEPS)
def test_a_spawn_cancelled_in_each_phase(
    client: Innkeeper,
    lab: Lab,
    name: str,
    boot_guest: dict[str, Any],
    records: Database,
    crash: CrashDirectory,
    step: str,
) -> None:
    host = lab.hosts[0]
    point = f"spawn.{step}:claimed"
    crash.arm_hold(point)
    operation = client.spawn(name=name, host=host, wait="agent", **boot_guest)
    with crash.held(point):
        operation.cancel()
    code, _, _, effect = told(operation)
    # The step that was held is done; the cancel is seen by the next, or in its own waits. A step
    # that sees it at its claim has made nothing; nor has the first, which only fills the cache.
    assert code == "cancelled"
    assert effect == ("not_started" if step == "fetch_image" else "rolled_back")
    assert_nothing_left(lab, records, str(operation.view().instance_id))


MIGRATION_STEPS = ("check_destination", "check_source", "prepare_destination", "migrate")


@pytest.mark.parametrize("step", MIGRATION_STEPS)
def test_a_migration_cancelled_in_each_phase(
    client: Innkeeper,
    lab: Lab,
    name: str,
    boot_guest: dict[str, Any],
    records: Database,
    crash: CrashDirectory,
    step: str,
) -> None:
    a, b = lab.hosts[:2]
    instance = spawn_on(client, name, a, boot_guest)
    point = f"live_migrate.{step}:claimed"
    crash.arm_hold(point)
    operation = client.migrate(name, dst=b, bandwidth_mib_s=1)
    with crash.held(point):
        operation.cancel()
    code, _, _, effect = told(operation)
    assert (code, effect) == ("cancelled", "rolled_back")
    assert_untouched(lab, client, name, a, instance["id"])


def test_qemu_dies_while_the_guest_is_moved(
    client: Innkeeper, lab: Lab, name: str, linux_guest: dict[str, Any]
) -> None:
    a, b = lab.hosts[:2]
    instance = spawn_on(client, name, a, linux_guest)
    operation = begin_slow_migration(client, lab, name, a, b)
    lab.kill(f"qemu:{a}:{name}")
    assert told(operation) == ("guest_died", "migrate", a, "rolled_back")
    assert domains_on(lab, a)[name] == "shut off"
    assert name not in domains_on(lab, b)
    assert files_of(lab, b, instance["id"]) == []
    wait_until(lambda: client.instance(name).state == "stopped", what="the record")


def test_a_guest_dies_while_it_boots(
    client: Innkeeper, lab: Lab, name: str, boot_guest: dict[str, Any], records: Database
) -> None:
    host = lab.hosts[0]
    operation = client.spawn(name=name, host=host, wait="agent", **boot_guest)
    next(view for view in operation.watch(30) if view.progress.step == "wait_boot")
    lab.kill(f"qemu:{host}:{name}")
    assert told(operation) == ("guest_died", "wait_boot", host, "rolled_back")
    assert_nothing_left(lab, records, str(operation.view().instance_id))


def test_a_guest_is_too_late(
    client: Innkeeper, lab: Lab, name: str, boot_guest: dict[str, Any], records: Database
) -> None:
    host = lab.hosts[0]
    operation = client.spawn(name=name, host=host, wait="agent", boot_timeout_s=1, **boot_guest)
    assert told(operation) == ("boot_timeout", "wait_boot", host, "rolled_back")
    assert_nothing_left(lab, records, str(operation.view().instance_id))


def test_an_image_has_another_digest(
    client: Innkeeper, lab: Lab, name: str, boot_guest: dict[str, Any], records: Database
) -> None:
    host = lab.hosts[0]
    operation = client.spawn(name=name, host=host, **{**boot_guest, "sha256": "0" * 64})
    assert told(operation) == ("digest_mismatch", "fetch_image", host, "not_started")
    assert_nothing_left(lab, records, str(operation.view().instance_id))


def test_a_destination_is_refused_by_its_checks(
    client: Innkeeper, lab: Lab, name: str, boot_guest: dict[str, Any]
) -> None:
    a, b = lab.hosts[:2]
    instance = spawn_on(client, name, a, boot_guest)
    operation = client.migrate(name, dst=b, storage="shared")
    # The probe file was made and removed again.
    assert told(operation) == ("precheck_failed", "check_source", a, "rolled_back")
    assert_untouched(lab, client, name, a, instance["id"])


def test_an_insisted_destination_is_without_libvirt(
    client: Innkeeper, lab: Lab, name: str, boot_guest: dict[str, Any]
) -> None:
    a, b = lab.hosts[:2]
    instance = spawn_on(client, name, a, boot_guest)
    lab.kill(f"libvirtd:{b}")
    wait_until(
        lambda: not next(h for h in client.hosts() if h.name == b).is_enabled,
        what="the host disables itself",
    )
    with pytest.raises(InnkeeperError) as caught:
        client.migrate(name, dst=b).wait(30)
    assert (caught.value.code, str(caught.value.effect)) == ("no_host_fits", "not_started")
    refusals = caught.value.details["refusals"]
    assert [(r["host"], r["code"]) for r in refusals if r["host"] == b] == [(b, "host_disabled")]
    lab.start(f"libvirtd:{b}")
    assert_untouched(lab, client, name, a, instance["id"])


def test_libvirt_of_an_insisted_destination_dies_and_stays_dead(
    client: Innkeeper,
    lab: Lab,
    name: str,
    boot_guest: dict[str, Any],
    crash: CrashDirectory,
) -> None:
    a, b = lab.hosts[:2]
    instance = spawn_on(client, name, a, boot_guest)
    crash.arm_hold("live_migrate.prepare_destination:claimed")
    operation = client.migrate(name, dst=b)
    with crash.held("live_migrate.prepare_destination:claimed"):
        lab.kill(f"libvirtd:{b}")
    with shortened(lab, operation, left_s=3):
        code, _, _, effect = told(operation)
    assert (code, effect) in {
        ("deadline_exceeded", "rolled_back"),
        ("hypervisor_unavailable", "rolled_back"),
    }
    lab.start(f"libvirtd:{b}")
    # What only the destination can undo is owed until it is back.
    wait_until(lambda: files_of(lab, b, instance["id"]) == [], timeout_s=30, what="it is undone")
    assert_untouched(lab, client, name, a, instance["id"])


def test_the_source_is_away_until_the_deadline(
    client: Innkeeper,
    lab: Lab,
    name: str,
    boot_guest: dict[str, Any],
    crash: CrashDirectory,
) -> None:
    a, b = lab.hosts[:2]
    instance = spawn_on(client, name, a, boot_guest)
    lab.kill(f"worker:{a}")
    operation = client.migrate(name, dst=b)
    next(operation.watch(30))
    with shortened(lab, operation, left_s=1):
        code, step, host, effect = told(operation)
    assert (code, effect) == ("deadline_exceeded", "not_started")
    assert (step, host) == ("survey_guest", a)
    lab.start(f"worker:{a}")
    assert_untouched(lab, client, name, a, instance["id"])


def test_the_host_of_a_stop_is_away_until_the_deadline(
    client: Innkeeper, lab: Lab, name: str, boot_guest: dict[str, Any]
) -> None:
    a = lab.hosts[0]
    instance = spawn_on(client, name, a, boot_guest)
    lab.kill(f"worker:{a}")
    operation = client.stop(name, force=True)
    next(operation.watch(30))
    with shortened(lab, operation, left_s=1):
        code, step, host, effect = told(operation)
    assert (code, effect) == ("deadline_exceeded", "not_started")
    assert (step, host) == ("stop_guest", a)
    lab.start(f"worker:{a}")
    assert_untouched(lab, client, name, a, instance["id"])
