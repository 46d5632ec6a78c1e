"""Which disks a guest gets, under which names; pure functions of its spec."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from string import ascii_lowercase
from typing import Literal

from innkeeper.errors import InvalidRequest
from innkeeper.guest_parts import DiskBus, DiskFormat
from innkeeper.types import InstanceSpec

GIB = 1024**3
MIB = 1024**2

DiskKind = Literal["root", "ephemeral", "swap", "data"]
Content = Literal["none", "ext4", "vfat", "swap"]

_PREFIX: dict[DiskBus, str] = {"virtio": "vd", "scsi": "sd", "sata": "sd", "ide": "hd"}
# An IDE controller has four places; one is kept for a CD drive.
MOST_ON_IDE = 3


@dataclass(frozen=True, slots=True)
class PlannedDisk:
    """A disk that a guest shall have.

    Args:
        target: its name in the domain, such as ``vda``; the guest may count otherwise.
        kind: ``root`` comes first, and there is one.
        file: its name within the guest's directory; the same on every host.
        format: of the file.
        bus: how the guest sees it.
        size_bytes: as the guest sees it; 0 for a root disk whose image is not known yet.
        serial: what the guest reads as its serial number; unique within the guest.
        content: what is on it when the guest first sees it.
        label: of the file system or the swap space; None for none.
        pool: the storage pool that it is in; the root disk's is the guest's own.
    """

    target: str
    kind: DiskKind
    file: str
    format: DiskFormat
    bus: DiskBus
    size_bytes: int
    serial: str
    content: Content = "none"
    label: str | None = None
    pool: str = "local"


def plan_disks(spec: InstanceSpec, *, image_bytes: int = 0) -> tuple[PlannedDisk, ...]:
    """Return all disks of a guest, the root disk first, the others in the order of the spec.

    Args:
        spec: the guest that is wanted.
        image_bytes: the virtual size of its image; 0 while it is not known.

    Raises:
        InvalidRequest: a bus has no place for so many, or two disks have one serial number.
    """
    targets = name_targets([spec.hardware.root_bus, *(disk.bus for disk in spec.disks)])
    root = PlannedDisk(
        target=targets[0],
        kind="root",
        file=f"root.{spec.root_format}",
        format=spec.root_format,
        bus=spec.hardware.root_bus,
        size_bytes=max(spec.disk_gib * GIB, image_bytes),
        serial=targets[0],
        pool=spec.pool,
    )
    extra = (
        PlannedDisk(
            target=target,
            kind=disk.kind,
            file=f"{target}.{disk.format}",
            format=disk.format,
            bus=disk.bus,
            size_bytes=disk.size_mib * MIB,
            serial=disk.serial or target,
            content="swap" if disk.kind == "swap" else disk.filesystem,
            label=disk.label,
            pool=disk.pool or spec.pool,
        )
        for target, disk in zip(targets[1:], spec.disks, strict=True)
    )
    planned = (root, *extra)
    _refuse_equal_serials(planned)
    return planned


def name_targets(buses: list[DiskBus]) -> list[str]:
    """Return a device name for each bus; SCSI and SATA disks are counted together, as Linux does.

    Raises:
        InvalidRequest: more disks than an IDE controller has places for.
    """
    if buses.count("ide") > MOST_ON_IDE:
        raise _invalid(
            f"{buses.count('ide')} disks are on the IDE bus, which takes {MOST_ON_IDE} beside a "
            "CD drive"
        )
    seen: Counter[str] = Counter()
    targets = []
    for bus in buses:
        prefix = _PREFIX[bus]
        targets.append(prefix + ascii_lowercase[seen[prefix]])
        seen[prefix] += 1
    return targets


def size_gib(disks: Iterable[PlannedDisk]) -> dict[str, int]:
    """Return the GiB that disks take at most in each pool, rounded up."""
    return add_up_gib((disk.pool, disk.size_bytes) for disk in disks)


def add_up_gib(sizes: Iterable[tuple[str, int]]) -> dict[str, int]:
    """Return the GiB that disks take at most in each pool, rounded up once for each.

    Args:
        sizes: for each disk its pool and its bytes as the guest sees it.
    """
    in_pool_bytes: Counter[str] = Counter()
    for pool, size_bytes in sizes:
        in_pool_bytes[pool] += size_bytes
    return {pool: -(-total_bytes // GIB) for pool, total_bytes in in_pool_bytes.items()}


def name_together(pools: Sequence[str]) -> str:
    """Return pools on one file system in words."""
    if len(pools) == 1:
        return f"pool {pools[0]!r}"
    return f"pools {' and '.join(map(repr, pools))}, which share a file system"


def _refuse_equal_serials(disks: tuple[PlannedDisk, ...]) -> None:
    serials = Counter(disk.serial for disk in disks)
    for serial, times in serials.items():
        if times > 1:
            names = " and ".join(disk.target for disk in disks if disk.serial == serial)
            raise _invalid(f"{names} have the same serial number {serial!r}")


def _invalid(problem: str) -> InvalidRequest:
    return InvalidRequest(
        f"The guest cannot have these disks: {problem}.",
        {"problems": [{"path": "spec.disks", "message": problem}]},
    )
