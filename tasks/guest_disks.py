"""A guest's disks as their rows have them, and what its domain says of them."""

from collections.abc import Iterable

from sqlalchemy.orm import Session

from innkeeper.remote_source import parse_remote_source
from innkeeper.types import InstanceSpec
from models.disk import Disk
from models.disks import find_drive, list_disks
from models.image import Image
from models.instance import Instance
from tasks.context import HostServices, Pool, StepContext, get_pool
from tasks.guest_data import wants_drive
from tasks.guest_pools import pool_of
from virt.domain_spec import RemoteSource
from virt.domain_xml import CdromSpec, DiskSpec

GIB = 1024**3
READAHEAD_BYTES = 256 * 1024
SOURCE_TIMEOUT_S = 6


def get_guest_disks(context: StepContext) -> list[Disk]:
    """Return the disks that the guest writes to, the root disk first."""
    instance, database = context.instance, context.database
    return database.run_one(lambda connection: list_disks(connection, instance.id)) or database.run(
        lambda session: _disks_of_release_0_1(session, instance)
    )


def get_config_drives(context: StepContext) -> tuple[CdromSpec, ...]:
    """Return the CD-ROMs that tell the guest who it is: one, or none."""
    instance = context.instance
    if not wants_drive(instance.spec):
        return ()
    drive = context.database.run(lambda session: find_drive(session, instance.id))
    if drive is None:
        return ()
    path = context.pool.instance_dir(instance.id) / drive.file
    return (CdromSpec(target=drive.target, path=str(path), bus=drive.bus),)


def describe_disks(
    services: HostServices, instance: Instance, disks: Iterable[Disk]
) -> tuple[DiskSpec, ...]:
    """Return what stands in the domain for each disk.

    Args:
        services: the host's parts; only its pools are used.
        instance: the guest's row.
        disks: the rows of its disks.

    Raises:
        HostUnsuitable: the host has no pool of such a name.
    """
    return tuple(
        _describe_disk(get_pool(services, pool_of(instance, disk)), instance, disk)
        for disk in disks
    )


def _describe_disk(pool: Pool, instance: Instance, disk: Disk) -> DiskSpec:
    """Return what stands in the domain for a disk; its backing file is one of its pool's images."""
    return DiskSpec(
        target=disk.target,
        path=str(pool.instance_dir(instance.id) / disk.file),
        format=disk.format,
        backing_path=None
        if disk.backing_sha256 is None
        else str(pool.images.path_for(disk.backing_sha256, disk.backing_format or "qcow2")),
        backing_format=disk.backing_format or "qcow2",
        bus=disk.bus,
        serial=disk.serial,
        remote_backing=describe_remote_backing(disk.remote_url),
        # A server that is away is no broken disk: QEMU holds the guest until it is back. A
        # write may fail as a read does, where it fills up a part of what lies below.
        error_policy="stop" if disk.remote_url else None,
        rerror_policy="stop" if disk.remote_url else None,
    )


def describe_remote_backing(url: str | None) -> RemoteSource | None:
    """Describe the server that an instantly booted guest's disk stands on; None for none."""
    if url is None:
        return None
    source = parse_remote_source(url)
    is_nbd = source.scheme == "nbd"
    return RemoteSource(
        protocol=source.scheme,
        name=source.path.removeprefix("/"),
        host=source.host,
        port=source.port,
        readahead_bytes=None if is_nbd else READAHEAD_BYTES,
        timeout_s=None if is_nbd else SOURCE_TIMEOUT_S,
    )


def _disks_of_release_0_1(session: Session, instance: Instance) -> list[Disk]:
    """A worker of the previous release writes no rows; its guests have one overlay each."""
    if instance.image_sha256 is None:
        return []
    spec = InstanceSpec.model_validate(instance.spec)
    image = session.get_one(Image, instance.image_sha256)
    root = Disk(
        instance_id=instance.id,
        target="vda",
        kind="root",
        file="root.qcow2",
        format="qcow2",
        bus="virtio",
        size_bytes=max(spec.disk_gib * GIB, image.virtual_size_bytes),
        backing_sha256=image.sha256,
        backing_format=spec.image_format,
        facts={},
    )
    return [root]
