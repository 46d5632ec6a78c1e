"""Guests with several disks: seen from inside, moved with what is on them, gone with the guest."""

from typing import Any

import pytest
from sqlalchemy import text

from innkeeper import Innkeeper
from innkeeper.errors import BootTimeout, DigestMismatch, InvalidRequest
from lab.guest.disk import COMMAND_LINE
from lab.handle import Lab
from models.session import Database
from tests.waiting import wait_until
from tests.workflow.conftest import assert_nothing_left, files_of
from tests.workflow.guest_shell import is_agent_up, run_in_guest

pytestmark = pytest.mark.lab

SECTORS_PER_MIB = 2048

DISKS = [
    {"kind": "ephemeral", "size_mib": 40, "filesystem": "ext4", "label": "scratch"},
    {"kind": "swap", "size_mib": 24, "label": "pages", "format": "raw", "serial": "my-swap"},
    {"kind": "data", "size_mib": 32, "format": "raw"},
    {"kind": "data", "size_mib": 33, "filesystem": "vfat", "label": "DATA"},
]
LOOK = """
for disk in vda vdb vdc vdd vde; do
    echo $disk $(cat /sys/block/$disk/size) $(cat /sys/block/$disk/serial)
done
for label in scratch pages DATA; do echo $label $(findfs LABEL=$label); done
"""


def rows_of(records: Database, instance_id: str) -> list[dict[str, Any]]:
    with records.transaction() as session:
        rows = session.execute(
            text("SELECT * FROM disks WHERE instance_id = :i ORDER BY target"), {"i": instance_id}
        )
        return [dict(row) for row in rows.mappings()]


def test_every_disk_is_seen_inside_and_moves_with_what_is_on_it(
    client: Innkeeper, lab: Lab, records: Database, name: str, linux_guest: dict[str, Any]
) -> None:
    src, dst = lab.hosts
    # Until its init has ended, the guest itself opens one disk after the other.
    fields = {**linux_guest, "disk_gib": 1, "disks": DISKS, "wait": "cloud_init"}
    guest = client.spawn(name=name, host=src, **fields).wait(120)
    assert guest["disk_gib"] == 2
    seen = {line.split()[0]: line for line in run_in_guest(lab, src, name, LOOK).splitlines()}
    assert seen == {
        "vda": f"vda {1024 * SECTORS_PER_MIB} vda",
        "vdb": f"vdb {40 * SECTORS_PER_MIB} vdb",
        "vdc": f"vdc {24 * SECTORS_PER_MIB} my-swap",
        "vdd": f"vdd {32 * SECTORS_PER_MIB} vdd",
        "vde": f"vde {33 * SECTORS_PER_MIB} vde",
        "scratch": "scratch /dev/vdb",
        "pages": "pages /dev/vdc",
        "DATA": "DATA /dev/vde",
    }
    written = run_in_guest(
        lab,
        src,
        name,
        "mkdir -p /scratch; mount -t ext4 /dev/vdb /scratch; swapon /dev/vdc;"
        "dd if=/dev/urandom of=/scratch/file bs=64k count=64 2>/dev/null;"
        "dd if=/dev/urandom of=/dev/vdd bs=1M seek=30 count=2 2>/dev/null;"
        "echo kept | dd of=/dev/vda bs=512 seek=2000000 2>/dev/null; sync; cat /proc/swaps;"
        "md5sum /scratch/file /dev/vdd",
    )
    assert "/dev/vdc" in written
    rows = rows_of(records, guest["id"])
    assert [row["backing_sha256"] for row in rows] == [linux_guest["sha256"], *[None] * 4]

    moved = client.migrate(name, dst=dst).wait(180)
    assert (moved["host"], moved["storage"]) == (dst, "block")
    again = run_in_guest(
        lab,
        dst,
        name,
        "echo 3 >/proc/sys/vm/drop_caches; cat /proc/swaps;"
        "md5sum /scratch/file /dev/vdd; dd if=/dev/vda bs=512 skip=2000000 count=1 2>/dev/null",
    )
    assert written.splitlines()[-2:] == again.splitlines()[2:4]
    assert again.splitlines()[4].startswith("kept")
    assert files_of(lab, src, guest["id"]) == []
    names = [path.rsplit("/", 1)[-1] for path in files_of(lab, dst, guest["id"])]
    disks = {"root.qcow2", "vdb.qcow2", "vdc.raw", "vdd.raw", "vde.qcow2"}
    assert disks <= set(names)
    assert rows_of(records, guest["id"]) == rows

    client.delete(name).wait(60)
    assert_nothing_left(lab, records, guest["id"])
    assert rows_of(records, guest["id"]) == []


def test_a_raw_root_disk_is_a_copy_that_boots_and_moves(
    client: Innkeeper, lab: Lab, records: Database, name: str, linux_guest: dict[str, Any]
) -> None:
    src, dst = lab.hosts
    wanted = {"root_format": "raw", "preallocation": "full", "disks": [{"size_mib": 8}]}
    operation = client.spawn(name=name, **linux_guest, **wanted, host=src)
    guest = operation.wait(180)
    rows = rows_of(records, guest["id"])
    assert [row["file"] for row in rows] == ["root.raw", "vdb.qcow2"]
    assert [row["backing_sha256"] for row in rows] == [None, None]
    assert rows[0]["facts"]["made"] == "conversion"
    look = "echo kept | dd of=/dev/vda bs=512 seek=99 2>/dev/null; sync; md5sum /dev/vda"
    written = run_in_guest(lab, src, name, look)
    moved = client.migrate(name, dst=dst).wait(180)
    assert moved["host"] == dst
    check = "echo 3 >/proc/sys/vm/drop_caches; md5sum /dev/vda"
    assert run_in_guest(lab, dst, name, check) == written
    assert files_of(lab, src, guest["id"]) == []


def test_a_kernel_that_the_host_loads_boots_and_moves(
    client: Innkeeper,
    lab: Lab,
    records: Database,
    name: str,
    boot_guest: dict[str, Any],
    linux_guest: dict[str, Any],
) -> None:
    src, dst = lab.hosts
    env = lab.env()
    kernel = {
        "kernel": env["INNKEEPER_LAB_KERNEL"],
        "ramdisk": env["INNKEEPER_LAB_RAMDISK"],
        "command_line": f"{COMMAND_LINE} innkeeper.mark=direct",
    }
    # The boot sector on its disk would say something, but never boot an agent.
    fields = {**boot_guest, "memory_mib": 256, "wait": "agent", "direct_boot": kernel}
    guest = client.spawn(name=name, **fields, host=src).wait(180)
    assert "innkeeper.mark=direct" in run_in_guest(lab, src, name, "cat /proc/cmdline")
    facts = rows_of(records, guest["id"])[0]["facts"]
    with records.transaction() as session:
        cached = session.execute(
            text(
                "SELECT count(*) FROM cached_images JOIN images USING (sha256)"
                " WHERE host = :h AND format = 'blob' AND sha256 IN (:k, :r)"
            ),
            {"h": src, "k": facts["kernel_sha256"], "r": facts["ramdisk_sha256"]},
        ).scalar_one()
    assert cached == 2
    assert client.migrate(name, dst=dst).wait(180)["host"] == dst
    blob = f"/var/lib/innkeeper/images/{facts['kernel_sha256']}.blob"
    lab.exec(dst, ["test", "-f", blob])
    # It starts again from there.
    client.reboot(name, kind="hard").wait(60)
    wait_until(
        lambda: is_agent_up(lab, dst, name), what="the guest boots again by the kernel of its host"
    )
    assert "innkeeper.mark=direct" in run_in_guest(lab, dst, name, "cat /proc/cmdline")


def test_a_kernel_of_another_digest_is_refused(
    client: Innkeeper, lab: Lab, records: Database, name: str, boot_guest: dict[str, Any]
) -> None:
    kernel = {"kernel": lab.env()["INNKEEPER_LAB_KERNEL"], "kernel_sha256": "0" * 64}
    operation = client.spawn(name=name, **boot_guest, direct_boot=kernel)
    with pytest.raises(DigestMismatch):
        operation.wait(60)
    assert_nothing_left(lab, records, str(operation.view().instance_id))


def test_a_claim_counts_every_disk_and_learns_the_size_of_an_image(
    client: Innkeeper, lab: Lab, records: Database, name: str, boot_guest: dict[str, Any]
) -> None:
    unknown = {**boot_guest, "sha256": None}
    guest = client.spawn(name=name, **unknown, disks=[{"size_mib": 3 * 1024}]).wait(60)
    with records.transaction() as session:
        claimed = session.execute(
            text("SELECT disk_gib FROM claims WHERE instance_id = :i"), {"i": guest["id"]}
        ).scalar_one()
    # The boot sector's own disk is far less than a GiB, and the sum is rounded up.
    assert claimed == guest["disk_gib"] == 4


@pytest.mark.parametrize(
    "fields",
    [
        {"disks": [{"size_mib": 1, "serial": "same"}, {"size_mib": 1, "serial": "same"}]},
        {"disks": [{"size_mib": 1, "bus": "ide"}] * 4},
        {"preallocation": "full"},
    ],
)
def test_disks_that_cannot_be_are_refused_at_once(
    client: Innkeeper, name: str, boot_guest: dict[str, Any], fields: dict[str, Any]
) -> None:
    with pytest.raises(InvalidRequest):
        client.spawn(name=name, **boot_guest, **fields).wait(60)


def test_a_spawn_that_fails_late_takes_its_disks_along(
    client: Innkeeper, lab: Lab, records: Database, name: str, boot_guest: dict[str, Any]
) -> None:
    operation = client.spawn(
        name=name, **boot_guest, disks=DISKS, wait="agent", boot_timeout_s=1, host=lab.hosts[0]
    )
    with pytest.raises(BootTimeout):
        operation.wait(60)
    instance_id = str(operation.view().instance_id)
    assert_nothing_left(lab, records, instance_id)
    assert rows_of(records, instance_id) == []
