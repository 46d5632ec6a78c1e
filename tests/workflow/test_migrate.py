"""Live migration between real hypervisors, and what holds when a part of it dies."""

import threading
from typing import Any

import pytest

from innkeeper import Innkeeper
from innkeeper.errors import Busy, InnkeeperError, PrecheckFailed
from innkeeper.operation import Operation
from innkeeper.types import StepView
from lab.handle import Lab
from models.session import Database
from tests.chaos.virsh import virsh
from tests.crash_directory import CrashDirectory
from tests.waiting import PATIENCE_S, wait_until
from tests.workflow.conftest import domains_on, files_of, remove

pytestmark = pytest.mark.lab


def assert_only_on(lab: Lab, name: str, host: str) -> None:
    for other in lab.hosts:
        state = domains_on(lab, other).get(name)
        assert state == ("running" if other == host else None), f"{other}: {state}"


def spawn_on(client: Innkeeper, name: str, host: str, fields: dict[str, Any]) -> dict[str, Any]:
    return client.spawn(name=name, host=host, **fields).wait(120)


@pytest.mark.parametrize(("pool", "storage"), [("local", "block"), ("shared", "shared")])
def test_a_guest_moves_there_and_back(
    client: Innkeeper, lab: Lab, name: str, boot_guest: dict[str, Any], pool: str, storage: str
) -> None:
    a, b = lab.hosts[:2]
    claimed_mib = {host.name: host.memory_claimed_mib for host in client.hosts()}
    instance = spawn_on(client, name, a, {**boot_guest, "pool": pool})
    moved = client.migrate(name, dst=b).wait(120)
    assert (moved["host"], moved["storage"], moved["handover"]) == (b, storage, "safe")
    assert moved["total_ms"] > 0
    assert moved["downtime_ms"] > 0
    assert (moved["forecast"]["disk_bytes"] > 0) == (storage == "block")
    assert_only_on(lab, name, b)
    if pool == "local":
        assert files_of(lab, a, instance["id"]) == []
    back = client.migrate(name).wait(120)
    assert back["host"] == a
    assert_only_on(lab, name, a)
    hosts = {h.name: h for h in client.hosts()}
    assert hosts[b].memory_claimed_mib == claimed_mib[b]


def test_all_failed_checks_are_told_at_once_and_nothing_changes(
    client: Innkeeper, lab: Lab, name: str, boot_guest: dict[str, Any]
) -> None:
    a, b = lab.hosts[:2]
    instance = spawn_on(client, name, a, boot_guest)
    lab.cut(a, b)
    with pytest.raises(PrecheckFailed) as caught:
        client.migrate(name, dst=b, storage="shared").wait(120)
    assert {f["check"] for f in caught.value.details["failures"]} == {"storage", "reachable"}
    assert all(f["hint"] for f in caught.value.details["failures"])
    assert_only_on(lab, name, a)
    assert files_of(lab, b, instance["id"]) == []
    view = client.instance(name)
    assert (view.host, view.state, view.operation_id) == (a, "active", None)


def test_the_same_host_is_refused(
    client: Innkeeper, lab: Lab, name: str, boot_guest: dict[str, Any]
) -> None:
    spawn_on(client, name, lab.hosts[0], boot_guest)
    with pytest.raises(PrecheckFailed, match="already"):
        client.migrate(name, dst=lab.hosts[0]).wait(60)


def begin_slow_migration(client: Innkeeper, lab: Lab, name: str, src: str, dst: str) -> Operation:
    """Start a migration that takes its time until `hurry`, and return when memory flows."""
    operation = client.migrate(name, dst=dst, bandwidth_mib_s=2)
    wait_until(
        lambda: (
            lab.exec(src, ["virsh", "domjobinfo", name], check=False).stdout.count("Memory") > 0
        ),
        what="libvirt's job runs",
    )
    return operation


def migrate_step(operation: Operation) -> StepView:
    return next(step for step in operation.view().steps if step.name == "migrate")


def hurry(lab: Lab, name: str, src: str) -> None:
    """Let a slow migration end now."""
    lab.exec(src, ["virsh", "migrate-setspeed", name, "1000"], check=False)


def test_the_source_worker_dies_in_mid_migration_and_the_job_is_adopted(
    client: Innkeeper, lab: Lab, name: str, linux_guest: dict[str, Any]
) -> None:
    a, b = lab.hosts[:2]
    spawn_on(client, name, a, linux_guest)
    operation = begin_slow_migration(client, lab, name, a, b)
    lab.kill(f"worker:{a}")
    lab.start(f"worker:{a}")
    wait_until(lambda: migrate_step(operation).attempt == 2, what="the job is adopted")
    hurry(lab, name, a)
    assert operation.wait(120)["host"] == b
    assert_only_on(lab, name, b)
    step = migrate_step(operation)
    assert step.attempt == 2
    assert any("adopted" in line["text"] for line in step.log)


def test_the_control_worker_dies_in_mid_migration(
    client: Innkeeper, lab: Lab, name: str, linux_guest: dict[str, Any]
) -> None:
    a, b = lab.hosts[:2]
    spawn_on(client, name, a, linux_guest)
    operation = begin_slow_migration(client, lab, name, a, b)
    lab.kill("control")
    lab.start("control")
    hurry(lab, name, a)
    assert operation.wait(120)["host"] == b
    assert_only_on(lab, name, b)


def test_a_cancelled_migration_leaves_the_guest_on_its_source(
    client: Innkeeper, lab: Lab, name: str, linux_guest: dict[str, Any]
) -> None:
    a, b = lab.hosts[:2]
    instance = spawn_on(client, name, a, linux_guest)
    operation = begin_slow_migration(client, lab, name, a, b)
    operation.cancel()
    with pytest.raises(InnkeeperError) as caught:
        operation.wait(120)
    assert caught.value.code == "cancelled"
    assert caught.value.effect == "rolled_back"
    assert_only_on(lab, name, a)
    assert files_of(lab, b, instance["id"]) == []


def test_a_guest_that_is_being_moved_is_busy(
    client: Innkeeper, lab: Lab, name: str, linux_guest: dict[str, Any]
) -> None:
    a, b = lab.hosts[:2]
    spawn_on(client, name, a, linux_guest)
    operation = begin_slow_migration(client, lab, name, a, b)
    with pytest.raises(Busy) as caught:
        client.stop(name).wait(60)
    assert caught.value.details == {
        **caught.value.details,
        "operation_id": str(operation.id),
        "verb": "live_migrate",
    }
    hurry(lab, name, a)
    assert operation.wait(120)["host"] == b


def test_redis_is_emptied_in_mid_migration(
    client: Innkeeper, lab: Lab, name: str, linux_guest: dict[str, Any]
) -> None:
    a, b = lab.hosts[:2]
    spawn_on(client, name, a, linux_guest)
    operation = begin_slow_migration(client, lab, name, a, b)
    import redis

    redis.Redis.from_url(lab.env()["INNKEEPER_BROKER_URL"]).flushall()
    hurry(lab, name, a)
    assert operation.wait(120)["host"] == b
    assert_only_on(lab, name, b)


@pytest.mark.parametrize(
    ("step", "moment"),
    [
        ("migrate", "claimed"),
        ("migrate", "acted"),
        ("migrate", "recorded"),
    ],
)
def test_the_source_worker_is_killed_at_a_boundary(
    client: Innkeeper,
    lab: Lab,
    name: str,
    boot_guest: dict[str, Any],
    records: Database,
    crash: CrashDirectory,
    step: str,
    moment: str,
) -> None:
    a, b = lab.hosts[:2]
    spawn_on(client, name, a, boot_guest)
    point = f"live_migrate.{step}:{moment}"
    crash.arm_kill(point)
    operation = client.migrate(name, dst=b)
    assert crash.wait_struck(point)
    wait_until(lambda: not lab.role(f"worker:{a}")["running"], what="the worker kills itself")
    lab.start(f"worker:{a}")
    assert operation.wait(120)["host"] == b
    assert_only_on(lab, name, b)


def test_two_migrations_from_one_source_wait_for_each_other(
    client: Innkeeper, lab: Lab, name: str, linux_guest: dict[str, Any], boot_guest: dict[str, Any]
) -> None:
    a, b = lab.hosts[:2]
    spawn_on(client, name, a, linux_guest)
    second = f"{name}-2"
    spawn_on(client, second, a, boot_guest)
    try:
        first_operation = begin_slow_migration(client, lab, name, a, b)
        waiting = client.migrate(second, dst=b)
        next(v for v in waiting.watch(PATIENCE_S) if any(step.waiting_for for step in v.steps))
        hurry(lab, name, a)
        results: list[dict[str, Any]] = []
        threads = [
            threading.Thread(target=lambda o=o: results.append(o.wait(120)))  # type: ignore[misc]
            for o in (first_operation, waiting)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [r["host"] for r in results] == [b, b]
    finally:
        remove(client, second)


def test_a_cancel_that_comes_after_the_guest_has_left_rolls_forward(
    client: Innkeeper, lab: Lab, name: str, boot_guest: dict[str, Any], crash: CrashDirectory
) -> None:
    """Undoing here would destroy the only copy of the guest."""
    a, b = lab.hosts[:2]
    spawn_on(client, name, a, boot_guest)
    crash.arm_kill("live_migrate.migrate:acted")
    operation = client.migrate(name, dst=b)
    wait_until(lambda: not lab.role(f"worker:{a}")["running"], what="the worker kills itself")
    assert domains_on(lab, b)[name] == "paused"
    assert name not in domains_on(lab, a)
    operation.cancel()
    lab.start(f"worker:{a}")
    assert operation.wait(120)["host"] == b
    assert_only_on(lab, name, b)
    lines = [line["text"] for step in operation.view().steps for line in step.log]
    assert any("going on" in line for line in lines)


def test_qemu_is_killed_on_the_source_in_mid_migration(
    client: Innkeeper, lab: Lab, name: str, linux_guest: dict[str, Any]
) -> None:
    a, b = lab.hosts[:2]
    instance = spawn_on(client, name, a, linux_guest)
    operation = begin_slow_migration(client, lab, name, a, b)
    lab.kill(f"qemu:{a}:{name}")
    with pytest.raises(InnkeeperError) as caught:
        operation.wait(120)
    assert caught.value.effect == "rolled_back"
    assert domains_on(lab, a)[name] == "shut off"
    assert name not in domains_on(lab, b)
    assert files_of(lab, b, instance["id"]) == []
    wait_until(lambda: client.instance(name).state == "stopped", what="the record")


def test_a_fast_handover_without_a_storage_lock_is_refused(
    client: Innkeeper, lab: Lab, name: str, boot_guest: dict[str, Any]
) -> None:
    a, b = lab.hosts[:2]
    spawn_on(client, name, a, boot_guest)
    with pytest.raises(PrecheckFailed) as caught:
        client.migrate(name, dst=b, handover="fast").wait(120)
    assert [f["check"] for f in caught.value.details["failures"]] == ["handover"]


def test_a_fast_handover_on_a_locked_shared_pool(
    client: Innkeeper, lab: Lab, name: str, boot_guest: dict[str, Any]
) -> None:
    a, b = lab.hosts[:2]
    spawn_on(client, name, a, {**boot_guest, "pool": "shared"})
    moved = client.migrate(name, dst=b, handover="fast").wait(120)
    # It ran on at once, so the commit that came after cost it nothing.
    assert (moved["handover"], moved["handover_ms"]) == ("fast", 0)
    assert_only_on(lab, name, b)


def test_files_of_the_guest_on_the_destination_refuse_a_block_migration(
    client: Innkeeper, lab: Lab, name: str, boot_guest: dict[str, Any]
) -> None:
    """What an old overlay holds would shine through wherever the new one is empty."""
    a, b = lab.hosts[:2]
    instance = spawn_on(client, name, a, boot_guest)
    old = f"/var/lib/innkeeper/instances/{instance['id']}/root.qcow2"
    lab.exec(b, ["install", "-D", "/dev/null", old])
    with pytest.raises(PrecheckFailed) as refused:
        client.migrate(name, dst=b).wait(120)
    assert [f["code"] for f in refused.value.details["failures"]] == ["check_disk_exists"]
    assert files_of(lab, b, instance["id"]) == [old.rsplit("/", 1)[0], old]
    lab.exec(b, ["rm", "-r", old.rsplit("/", 1)[0]])
    assert client.migrate(name, dst=b).wait(120)["host"] == b


def test_a_guest_that_arrived_is_kept_when_its_source_forgot_that_it_left(
    client: Innkeeper, lab: Lab, name: str, boot_guest: dict[str, Any], crash: CrashDirectory
) -> None:
    """A libvirtd that dies while it lets a guest go finds it shut off, for no known reason."""
    a, b = lab.hosts[:2]
    spawn_on(client, name, a, boot_guest)
    before = virsh(lab, a, "dumpxml", "--inactive", name)
    crash.arm_hold("live_migrate.migrate:inside")
    operation = client.migrate(name, dst=b)
    assert crash.wait_held("live_migrate.migrate:inside")
    wait_until(lambda: domains_on(lab, a).get(name) is None, what="libvirt lets the guest go")
    virsh(lab, a, "define", "/dev/stdin", stdin=before)
    lab.kill(f"worker:{a}")
    crash.release("live_migrate.migrate:inside")
    lab.start(f"worker:{a}")

    moved = operation.wait(120)

    assert moved["host"] == b
    wait_until(lambda: domains_on(lab, b).get(name) == "running", what="the guest runs")
    assert domains_on(lab, a).get(name) is None
