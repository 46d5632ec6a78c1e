"""Guests with disks in two pools of which the hosts share one: made, moved, broken off, gone."""

from dataclasses import dataclass
from typing import Any

import pytest
from sqlalchemy import text

from innkeeper import Innkeeper
from innkeeper.errors import BootTimeout, Cancelled, PrecheckFailed
from lab.handle import Lab
from lab.layout import HOST_MOUNTS, SHARED_MOUNT
from models.session import Database
from tests.crash_directory import CrashDirectory
from tests.waiting import wait_until
from tests.workflow.conftest import assert_nothing_left, domains_on, files_of

pytestmark = pytest.mark.lab

MARK = "kept"
BEHIND_THE_BOOT_SECTOR = 4096
POOLS = [("local", "shared"), ("shared", "local")]


@dataclass(frozen=True)
class Guest:
    """A guest with its root disk in one pool and a raw disk in another."""

    lab: Lab
    id: str
    own: str

    def path(self, pool: str) -> str:
        """Return the disk's file in a pool, as the hosts see it."""
        base = SHARED_MOUNT if pool == "shared" else HOST_MOUNTS["innkeeper"]
        file = "root.qcow2" if pool == self.own else "vdb.raw"
        return f"{base}/instances/{self.id}/{file}"

    def local_files(self, host: str) -> list[str]:
        """Return what a host has of the guest in its own pool."""
        return [path for path in files_of(self.lab, host, self.id) if SHARED_MOUNT not in path]

    def inode(self, host: str, pool: str) -> str:
        """Return the number of the disk's file in a pool."""
        return self.lab.exec(host, ["stat", "-c", "%i", self.path(pool)]).stdout.strip()

    def mark_data(self, host: str) -> None:
        """Write something onto the data disk, behind the guest's back: it never uses it."""
        pool = "local" if self.own == "shared" else "shared"
        script = (
            f"printf {MARK} | dd of={self.path(pool)} bs=1 seek={BEHIND_THE_BOOT_SECTOR} "
            "conv=notrunc,fsync status=none"
        )
        self.lab.exec(host, ["sh", "-c", script])

    def read_data(self, host: str) -> str:
        """Return what stands on the data disk where something was written."""
        pool = "local" if self.own == "shared" else "shared"
        command = f"tail -c +{BEHIND_THE_BOOT_SECTOR + 1} {self.path(pool)} | head -c {len(MARK)}"
        return self.lab.exec(host, ["sh", "-c", command]).stdout


def spawn_mixed(
    client: Innkeeper, lab: Lab, name: str, host: str, boot_guest: dict[str, Any], own: str
) -> Guest:
    other = "local" if own == "shared" else "shared"
    disks = [{"size_mib": 8, "format": "raw", "pool": other}]
    made = client.spawn(name=name, host=host, **boot_guest, pool=own, disks=disks).wait(120)
    return Guest(lab, made["id"], own)


def assert_runs_only_on(lab: Lab, name: str, host: str) -> None:
    for other in lab.hosts:
        state = domains_on(lab, other).get(name)
        assert state == ("running" if other == host else None), f"{other}: {state}"


@pytest.mark.parametrize(("own", "other"), POOLS)
def test_only_what_is_not_shared_is_copied(
    client: Innkeeper,
    lab: Lab,
    records: Database,
    name: str,
    boot_guest: dict[str, Any],
    own: str,
    other: str,
) -> None:
    a, b = lab.hosts[:2]
    guest = spawn_mixed(client, lab, name, a, boot_guest, own)
    disks = client.instance(name).disks
    assert [(disk.target, disk.pool) for disk in disks] == [("vda", own), ("vdb", other)]
    with records.transaction() as session:
        claim = session.execute(
            text("SELECT pool, disk_gib, elsewhere_gib FROM claims WHERE instance_id = :i"),
            {"i": guest.id},
        ).one()
    assert tuple(claim) == (own, 1, {other: 1})
    guest.mark_data(a)
    shared_inode = guest.inode(a, "shared")
    for src, dst in ((a, b), (b, a)):
        moved = client.migrate(name, dst=dst).wait(120)
        assert (moved["host"], moved["storage"], moved["handover"]) == (dst, "mixed", "safe")
        assert "probe in pool shared" in moved["storage_reason"]
        assert "in pool local" in moved["storage_reason"]
        # All of one disk, and nothing of the other, which is there for both.
        assert 0 < moved["forecast"]["disk_bytes"] < 2**20
        assert_runs_only_on(lab, name, dst)
        assert guest.local_files(src) == []
        assert guest.path("local") in guest.local_files(dst)
        assert guest.inode(dst, "shared") == shared_inode
        assert guest.read_data(dst) == MARK
    client.reboot(name, kind="hard").wait(60)
    assert_runs_only_on(lab, name, a)
    client.delete(name).wait(60)
    assert_nothing_left(lab, records, guest.id)


def test_what_contradicts_the_pools_is_refused(
    client: Innkeeper, lab: Lab, name: str, boot_guest: dict[str, Any]
) -> None:
    a, b = lab.hosts[:2]
    guest = spawn_mixed(client, lab, name, a, boot_guest, "shared")
    for policy, check, said in (
        ({"storage": "shared"}, "storage", "Pool local is not shared"),
        ({"storage": "block"}, "storage", "Pool shared is shared"),
        ({"handover": "fast"}, "handover", "Pool local is not shared"),
        ({"post_copy": True}, "handover", "Pool local is not shared"),
    ):
        with pytest.raises(PrecheckFailed) as refused:
            client.migrate(name, dst=b, **policy).wait(60)
        (failure,) = refused.value.details["failures"]
        assert failure["check"] == check
        assert said in failure["message"]
    assert guest.local_files(b) == []
    assert client.migrate(name, dst=b, storage="mixed").wait(120)["host"] == b


def test_a_kill_leaves_nothing_of_what_is_copied_and_all_of_what_is_shared(
    client: Innkeeper,
    lab: Lab,
    records: Database,
    name: str,
    boot_guest: dict[str, Any],
    crash: CrashDirectory,
) -> None:
    a, b = lab.hosts[:2]
    guest = spawn_mixed(client, lab, name, a, boot_guest, "shared")
    guest.mark_data(a)
    shared = [path for path in files_of(lab, a, guest.id) if SHARED_MOUNT in path]

    def kill(point: str, host: str) -> None:
        assert crash.wait_struck(point)
        wait_until(lambda: not lab.role(f"worker:{host}")["running"], what="the worker is dead")

    made = "live_migrate.prepare_destination:acted"
    crash.arm_kill(made)
    operation = client.migrate(name, dst=b)
    kill(made, b)
    assert guest.path("local") in guest.local_files(b)
    operation.cancel()
    lab.start(f"worker:{b}")
    with pytest.raises(Cancelled):
        operation.wait(120)
    assert guest.local_files(b) == []
    assert [path for path in files_of(lab, a, guest.id) if SHARED_MOUNT in path] == shared
    assert_runs_only_on(lab, name, a)

    cleaned = "live_migrate.finish_source:inside"
    crash.arm_kill(cleaned)
    operation = client.migrate(name, dst=b)
    kill(cleaned, a)
    lab.start(f"worker:{a}")
    assert operation.wait(120)["host"] == b
    wait_until(lambda: guest.local_files(a) == [], what="the source is clean")
    assert [path for path in files_of(lab, b, guest.id) if SHARED_MOUNT in path] == shared
    assert guest.read_data(b) == MARK
    assert_runs_only_on(lab, name, b)

    gone = "delete.remove_files:inside"
    crash.arm_kill(gone)
    operation = client.delete(name)
    kill(gone, b)
    lab.start(f"worker:{b}")
    operation.wait(120)
    assert_nothing_left(lab, records, guest.id)


@pytest.mark.parametrize("own", ["local", "shared"])
def test_a_spawn_that_fails_late_takes_its_disks_out_of_every_pool(
    client: Innkeeper, lab: Lab, records: Database, name: str, boot_guest: dict[str, Any], own: str
) -> None:
    other = "local" if own == "shared" else "shared"
    disks = [{"size_mib": 8, "pool": other}]
    operation = client.spawn(
        name=name, **boot_guest, pool=own, disks=disks, wait="agent", boot_timeout_s=1
    )
    with pytest.raises(BootTimeout):
        operation.wait(60)
    assert_nothing_left(lab, records, str(operation.view().instance_id))
