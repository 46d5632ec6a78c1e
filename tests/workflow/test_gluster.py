"""Live migration on real shared storage: GlusterFS, with locks that cross from host to host."""

import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from innkeeper import Innkeeper
from innkeeper.errors import HypervisorError, MigrationError, PrecheckFailed
from lab.handle import Lab
from lab.layout import GLUSTER_MOUNT
from models.session import Database
from tests.chaos.checker.consoles import ConsoleWatch
from tests.chaos.faults.network_faults import FinishReplyLost
from tests.chaos.virsh import define_namesake, undefine_namesake
from tests.crash_directory import VARIABLE, CrashDirectory
from tests.waiting import wait_until
from tests.workflow.conftest import domains_on
from tests.workflow.test_migrate import assert_only_on, spawn_on

pytestmark = pytest.mark.lab


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with tempfile.TemporaryDirectory(prefix="innkeeper-gl-", dir="/var/tmp") as directory:
        os.chmod(directory, 0o755)
        env = {VARIABLE: str(Path(directory) / "crash"), "INNKEEPER_HYDRATION_DELAY_S": "3600"}
        with Lab.up(
            Path(directory), hosts=2, workers=True, gluster=True, owner_pid=os.getpid(), env=env
        ) as running:
            yield running


@pytest.fixture(scope="module")
def crash(lab: Lab) -> CrashDirectory:
    return CrashDirectory(lab.layout.root / "crash")


@pytest.fixture(scope="module")
def client(lab: Lab) -> Iterator[Innkeeper]:
    env = lab.env()
    with Innkeeper(env["INNKEEPER_BROKER_URL"], env["INNKEEPER_RESULT_URL"]) as client:
        yield client


@pytest.fixture(scope="module")
def records(lab: Lab) -> Iterator[Database]:
    database = Database(lab.env()["INNKEEPER_DATABASE_URL"], application_name="tests")
    yield database
    database.dispose()


@pytest.fixture
def gluster_guest(boot_guest: dict[str, Any]) -> dict[str, Any]:
    return {**boot_guest, "pool": "gluster"}


@pytest.fixture
def runs_once(lab: Lab) -> Iterator[None]:
    """Fail when a console shows that the guest ran twice."""
    with ConsoleWatch(lab) as watch:
        yield
        assert watch.violations() == []


def inode_on(lab: Lab, host: str, instance_id: str) -> str:
    disk = f"{GLUSTER_MOUNT}/instances/{instance_id}/root.qcow2"
    return lab.exec(host, ["stat", "-c", "%i", disk]).stdout.strip()


def marks_on(lab: Lab, host: str) -> list[str]:
    """Return the files by which operations probe and claim, wherever they were left."""
    roots = [GLUSTER_MOUNT, "/var/lib/innkeeper", "/srv/innkeeper-shared"]
    argv = ["find", *roots, "-maxdepth", "2", "-name", ".innkeeper-*-????????-*"]
    return lab.exec(host, argv).stdout.split()


def failed_checks(error: PrecheckFailed) -> list[str]:
    return [failure["check"] for failure in error.details["failures"]]


def test_a_guest_moves_safely_and_fast_and_its_disk_stays(
    client: Innkeeper, lab: Lab, name: str, gluster_guest: dict[str, Any], runs_once: None
) -> None:
    a, b = lab.hosts[:2]
    instance = spawn_on(client, name, a, gluster_guest)
    inode = inode_on(lab, a, instance["id"])
    operation = client.migrate(name, dst=b)
    moved = operation.wait(120)
    assert (moved["storage"], moved["handover"]) == ("shared", "safe")
    reason = f"shared: {a} and {b} read each other's probe in pool gluster (fuse.glusterfs)"
    assert moved["storage_reason"] == reason
    assert reason in [line["text"] for step in operation.view().steps for line in step.log]
    assert_only_on(lab, name, b)
    back = client.migrate(name, dst=a, handover="fast", storage="shared").wait(120)
    assert (back["storage"], back["handover"]) == ("shared", "fast")
    assert_only_on(lab, name, a)
    assert {inode_on(lab, host, instance["id"]) for host in (a, b)} == {inode}
    assert [mark for host in (a, b) for mark in marks_on(lab, host)] == []


def test_what_is_shared_is_never_copied_and_never_removed(
    client: Innkeeper,
    lab: Lab,
    name: str,
    gluster_guest: dict[str, Any],
    crash: CrashDirectory,
    runs_once: None,
) -> None:
    a, b = lab.hosts[:2]
    instance = spawn_on(client, name, a, gluster_guest)
    inode = inode_on(lab, a, instance["id"])
    with pytest.raises(PrecheckFailed, match="onto itself") as refused:
        client.migrate(name, dst=b, storage="block").wait(120)
    assert failed_checks(refused.value) == ["storage"]
    crash.arm_hold("live_migrate.migrate:acting")
    operation = client.migrate(name, dst=b)
    with crash.held("live_migrate.migrate:acting"):
        # After the checks: libvirt itself refuses the guest.
        define_namesake(lab, b, name)
    try:
        with pytest.raises((MigrationError, HypervisorError)) as failed:
            operation.wait(120)
    finally:
        undefine_namesake(lab, b, name)
    assert failed.value.effect == "rolled_back"
    assert inode_on(lab, b, instance["id"]) == inode
    assert_only_on(lab, name, a)
    assert [mark for host in (a, b) for mark in marks_on(lab, host)] == []


def test_a_pool_that_is_shared_one_way_only_is_refused(
    client: Innkeeper,
    lab: Lab,
    name: str,
    gluster_guest: dict[str, Any],
    crash: CrashDirectory,
) -> None:
    a, b = lab.hosts[:2]
    spawn_on(client, name, a, gluster_guest)
    point = "live_migrate.prepare_destination:acting"
    crash.arm_hold(point)
    operation = client.migrate(name, dst=b)
    with crash.held(point):
        answer = f"{GLUSTER_MOUNT}/.innkeeper-probe-{operation.id}.answer"
        lab.exec(a, ["rm", answer])
    with pytest.raises(PrecheckFailed, match="not the other way round") as refused:
        operation.wait(120)
    assert refused.value.effect == "rolled_back"
    assert_only_on(lab, name, a)


def test_a_lock_that_the_source_does_not_see_protects_nothing(
    client: Innkeeper,
    lab: Lab,
    name: str,
    gluster_guest: dict[str, Any],
    crash: CrashDirectory,
) -> None:
    a, b = lab.hosts[:2]
    spawn_on(client, name, a, gluster_guest)
    point = "live_migrate.check_source:acting"
    crash.arm_hold(point)
    operation = client.migrate(name, dst=b, handover="fast")
    with crash.held(point):
        # With the process that held it the lock is gone.
        lab.kill(f"worker:{b}")
        lab.start(f"worker:{b}")
    with pytest.raises(PrecheckFailed, match="does not see the lock") as refused:
        operation.wait(120)
    assert failed_checks(refused.value) == ["handover"]
    assert_only_on(lab, name, a)


def test_the_finish_reply_is_lost_after_a_fast_handover(
    client: Innkeeper, lab: Lab, name: str, gluster_guest: dict[str, Any], runs_once: None
) -> None:
    """The lock keeps the source from going on; libvirt leaves it paused for ever."""
    a, b = lab.hosts[:2]
    spawn_on(client, name, a, gluster_guest)
    fault = FinishReplyLost(a, b, patience_s=60)
    stage = SimpleNamespace(lab=lab)
    operation = client.migrate(name, dst=b, handover="fast")
    fault.strike(stage)  # type: ignore[arg-type]
    try:
        began = time.monotonic()
        wait_until(lambda: domains_on(lab, b).get(name) == "running", what="the guest runs there")
        moved = operation.wait(120)
        print(f"settled {time.monotonic() - began:.1f} s after the loss")
    finally:
        fault.mend(stage)  # type: ignore[arg-type]
    assert moved["host"] == b
    assert_only_on(lab, name, b)
