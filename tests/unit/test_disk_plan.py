"""Which disks a guest gets, by table."""

from typing import Any

import pytest
from pydantic import ValidationError

from innkeeper.errors import InvalidRequest
from innkeeper.types import InstanceSpec
from tasks.disk_plan import GIB, MIB, PlannedDisk, plan_disks, size_gib


def spec(**fields: Any) -> InstanceSpec:
    return InstanceSpec.model_validate({"name": "g", "image": "/i", **fields})


@pytest.mark.parametrize(
    ("root", "buses", "targets"),
    [
        ("virtio", [], ["vda"]),
        ("virtio", ["virtio", "virtio"], ["vda", "vdb", "vdc"]),
        ("virtio", ["scsi", "virtio", "scsi"], ["vda", "sda", "vdb", "sdb"]),
        ("scsi", ["sata", "scsi", "virtio"], ["sda", "sdb", "sdc", "vda"]),
        ("ide", ["ide", "ide"], ["hda", "hdb", "hdc"]),
        ("sata", ["ide"], ["sda", "hda"]),
    ],
)
def test_targets_go_by_bus(root: str, buses: list[str], targets: list[str]) -> None:
    disks = [{"size_mib": 1, "bus": bus} for bus in buses]
    planned = plan_disks(spec(hardware={"root_bus": root}, disks=disks))
    assert [disk.target for disk in planned] == targets
    assert [disk.serial for disk in planned] == targets
    assert [disk.bus for disk in planned] == [root, *buses]


def test_a_plan_says_everything() -> None:
    planned = plan_disks(
        spec(
            disk_gib=2,
            root_format="raw",
            disks=[
                {"kind": "ephemeral", "size_mib": 7, "filesystem": "ext4", "label": "scratch"},
                {"kind": "swap", "size_mib": 8, "format": "raw", "serial": "my-swap"},
            ],
        ),
        image_bytes=3 * MIB,
    )
    assert planned == (
        PlannedDisk("vda", "root", "root.raw", "raw", "virtio", 2 * GIB, "vda"),
        PlannedDisk(
            *("vdb", "ephemeral", "vdb.qcow2", "qcow2", "virtio", 7 * MIB, "vdb"),
            *("ext4", "scratch"),
        ),
        PlannedDisk("vdc", "swap", "vdc.raw", "raw", "virtio", 8 * MIB, "my-swap", "swap"),
    )
    assert size_gib(planned) == {"local": 3}


def test_a_disk_is_in_the_pool_that_it_names() -> None:
    disks = [{"size_mib": 1, "pool": "fast"}, {"size_mib": 2}, {"size_mib": 1025, "pool": "fast"}]
    planned = plan_disks(spec(disk_gib=2, pool="slow", disks=disks))
    assert [disk.pool for disk in planned] == ["slow", "fast", "slow", "fast"]
    assert size_gib(planned) == {"slow": 3, "fast": 2}


@pytest.mark.parametrize("pool", ["", "../up", "a/b", "Fast", "x" * 64])
def test_a_pool_is_a_name(pool: str) -> None:
    with pytest.raises(ValidationError, match=r"disks\.0\.pool"):
        spec(disks=[{"size_mib": 1, "pool": pool}])


@pytest.mark.parametrize(
    ("disk_gib", "image_bytes", "size_bytes", "gib"),
    [
        (0, 0, 0, 0),
        (0, MIB, MIB, 1),
        (1, MIB, GIB, 1),
        (1, GIB + 1, GIB + 1, 2),
        (3, 0, 3 * GIB, 3),
    ],
)
def test_the_root_disk_is_never_smaller_than_its_image(
    disk_gib: int, image_bytes: int, size_bytes: int, gib: int
) -> None:
    planned = plan_disks(spec(disk_gib=disk_gib), image_bytes=image_bytes)
    assert planned[0].size_bytes == size_bytes
    assert size_gib(planned) == {"local": gib}


@pytest.mark.parametrize(
    ("disks", "message"),
    [
        ([{"bus": "ide"}] * 4, "takes 3 beside a CD drive"),
        ([{"serial": "same"}, {"serial": "same"}], "vdb and vdc have the same serial number"),
        ([{"serial": "vda"}], "vda and vdb have the same serial number"),
    ],
)
def test_what_no_guest_can_have_is_refused(disks: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        plan_disks(spec(disks=[{"size_mib": 1, **disk} for disk in disks]))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"preallocation": "full"}, "overlay"),
        ({"preallocation": "metadata"}, "overlay"),
        ({"disks": [{"size_mib": 1, "label": "x"}]}, "no file system"),
        ({"disks": [{"size_mib": 1, "kind": "swap", "filesystem": "ext4"}]}, "no file system"),
        ({"disks": [{"size_mib": 1 << 22, "filesystem": "vfat"}]}, "vfat takes at most"),
        ({"disks": [{"size_mib": 1, "filesystem": "ext4", "label": "a b"}]}, "label"),
        ({"disks": [{"size_mib": 1}] * 17}, "disks"),
    ],
)
def test_a_spec_refuses_what_means_nothing(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        spec(**fields)
