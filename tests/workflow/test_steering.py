"""A hand on a migration: its policy is changed, it is told to end, it is cancelled in any phase."""

import json
from collections.abc import Iterator

import pytest

from innkeeper import Innkeeper
from innkeeper.errors import Cancelled, InvalidRequest, NotFound, StateConflict
from innkeeper.operation import Operation
from innkeeper.types import MigrationView, OperationView
from lab.handle import Lab
from tests.chaos.virsh import virsh
from tests.crash_directory import CrashDirectory
from tests.waiting import wait_until
from tests.workflow.conftest import domains_on, files_of, remove

pytestmark = pytest.mark.lab

SLOW_MIB_S = 2


@pytest.fixture(scope="module")
def busy(client: Innkeeper, lab: Lab) -> Iterator[str]:
    """A guest that rewrites its memory faster than the slow link carries; its migration never ends.

    It is never where it was after a test that moves it.
    """
    env = lab.env()
    chosen = "t-steered"
    client.spawn(
        name=chosen,
        host=lab.hosts[0],
        image=env["INNKEEPER_LAB_IMAGE"],
        sha256=env["INNKEEPER_LAB_IMAGE_SHA256"],
        memory_mib=256,
        wait="agent",
        migration={"auto_converge": False},
    ).wait(180)
    command = {"execute": "guest-exec", "arguments": {"path": "/bin/dirty", "arg": ["30", "20"]}}
    virsh(lab, lab.hosts[0], "qemu-agent-command", chosen, json.dumps(command))
    yield chosen
    lab.heal()
    remove(client, chosen)


@pytest.fixture(scope="module")
def idle(client: Innkeeper, lab: Lab) -> Iterator[str]:
    """A small guest on the first host, with a disk that takes its time over a slow link."""
    env = lab.env()
    chosen = "t-idle"
    client.spawn(
        name=chosen,
        host=lab.hosts[0],
        image=env["INNKEEPER_LAB_BOOT_IMAGE"],
        sha256=env["INNKEEPER_LAB_BOOT_IMAGE_SHA256"],
        memory_mib=64,
        disks=[{"size_mib": 32, "format": "raw"}],
    ).wait(120)
    yield chosen
    remove(client, chosen)


def place_of(client: Innkeeper, lab: Lab, name: str) -> tuple[str, str]:
    """Where a guest is, and the other host."""
    here = client.instance(name).host
    assert here is not None
    return here, next(host for host in lab.hosts if host != here)


def facts_of(view: OperationView) -> MigrationView:
    assert view.migration is not None
    return view.migration


def wait_for_phase(operation: Operation, phase: str) -> None:
    def has_come() -> bool:
        try:
            view = operation.view()
        except NotFound:
            return False
        assert not view.state.is_final, view.error
        return facts_of(view).phase == phase

    wait_until(has_come, what=f"phase {phase}")


def assert_back_where_it_was(client: Innkeeper, lab: Lab, operation: Operation, name: str) -> None:
    here, there = place_of(client, lab, name)
    with pytest.raises(Cancelled):
        operation.wait(120)
    view = client.instance(name)
    assert (view.host, view.state, view.operation_id) == (here, "active", None)
    assert domains_on(lab, here)[name] == "running"
    assert name not in domains_on(lab, there)
    assert files_of(lab, there, str(view.id)) == []
    assert facts_of(operation.view()).outcome == "cancelled"


def test_a_running_migration_follows_its_new_policy_and_ends_when_it_is_told_to(
    client: Innkeeper, lab: Lab, busy: str
) -> None:
    here, there = place_of(client, lab, busy)
    operation = client.migrate(busy, dst=there, bandwidth_mib_s=SLOW_MIB_S)
    wait_for_phase(operation, "memory")
    before = facts_of(operation.view()).policy
    assert before["bandwidth_mib_s"] == {"value": SLOW_MIB_S, "from": "request"}
    assert before["auto_converge"] == {"value": False, "from": "instance"}
    with pytest.raises(InvalidRequest, match="post_copy must be allowed"):
        client.migrate_set(busy, on_timeout="post_copy")

    client.migrate_set(busy, bandwidth_mib_s=9, max_downtime_ms=700, deadline_s=1800)

    wait_until(
        lambda: any(d["act"] == "set" for d in facts_of(operation.view()).decisions),
        what="the host has been told",
    )
    assert virsh(lab, here, "migrate-getspeed", busy).strip() == "9"
    assert virsh(lab, here, "migrate-getmaxdowntime", busy).strip() == "700"
    told = facts_of(operation.view())
    assert told.policy["bandwidth_mib_s"]["value"] == 9
    assert told.policy["bandwidth_mib_s"]["from"].startswith("migrate-set by")

    client.migrate_force_complete(str(operation.id))

    assert operation.wait(120)["host"] == there
    told = facts_of(operation.view())
    assert told.force_complete_requested
    assert [d["act"] for d in told.decisions if d["act"] in ("set", "pause")] == ["set", "pause"]
    assert told.stats["memory_iteration"] > 0
    assert domains_on(lab, there)[busy] == "running"
    assert busy not in domains_on(lab, here)
    for late in (client.migrate_force_complete, lambda t: client.migrate_set(t, deadline_s=60)):
        with pytest.raises(StateConflict):
            late(str(operation.id))
        with pytest.raises(NotFound):
            late(busy)


def test_a_waiting_migration_takes_changes_and_a_cancel_but_has_nothing_to_complete(
    client: Innkeeper, lab: Lab, busy: str, idle: str
) -> None:
    here, there = place_of(client, lab, idle)
    if place_of(client, lab, busy)[0] != here:
        client.migrate(busy, dst=here, on_timeout="pause", deadline_s=5).wait(120)
    first = client.migrate(busy, dst=there, bandwidth_mib_s=SLOW_MIB_S)
    wait_for_phase(first, "memory")
    waiting = client.migrate(idle, dst=there)
    next(view for view in waiting.watch(120) if any(step.waiting_for for step in view.steps))

    changed = client.migrate_set(idle, bandwidth_mib_s=50)
    assert facts_of(changed).policy["bandwidth_mib_s"]["value"] == 50
    with pytest.raises(StateConflict, match="copies nothing yet"):
        client.migrate_force_complete(idle)
    waiting.cancel()

    assert_back_where_it_was(client, lab, waiting, idle)
    first.cancel()
    assert_back_where_it_was(client, lab, first, busy)


@pytest.mark.parametrize("step", ["check_destination", "check_source", "prepare_destination"])
def test_a_cancel_before_anything_is_copied(
    client: Innkeeper, lab: Lab, crash: CrashDirectory, idle: str, step: str
) -> None:
    _, there = place_of(client, lab, idle)
    point = f"live_migrate.{step}:inside"
    crash.arm_hold(point)
    operation = client.migrate(idle, dst=there)
    with crash.held(point):
        with pytest.raises(StateConflict, match="copies nothing yet"):
            client.migrate_force_complete(idle)
        operation.cancel()

    assert_back_where_it_was(client, lab, operation, idle)


def test_a_cancel_while_disks_are_copied(client: Innkeeper, lab: Lab, idle: str) -> None:
    _, there = place_of(client, lab, idle)
    operation = client.migrate(idle, dst=there, bandwidth_mib_s=1)
    wait_for_phase(operation, "disks")
    operation.cancel()

    assert_back_where_it_was(client, lab, operation, idle)


def test_a_cancel_while_it_switches_over_comes_too_late(
    client: Innkeeper, lab: Lab, crash: CrashDirectory, idle: str
) -> None:
    here, there = place_of(client, lab, idle)
    point = "live_migrate.settle_destination:inside"
    crash.arm_hold(point)
    operation = client.migrate(idle, dst=there, parallel_connections=2)
    with crash.held(point):
        assert not operation.cancel().cancel_requested
        with pytest.raises(StateConflict, match="left its source"):
            client.migrate_force_complete(idle)

    assert operation.wait(120)["host"] == there
    assert domains_on(lab, there)[idle] == "running"
    assert idle not in domains_on(lab, here)
