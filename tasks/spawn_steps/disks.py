"""The guest's disks: made, written down, and undone."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sqlalchemy.orm import Session

from innkeeper.errors import HostUnsuitable
from innkeeper.types import InstanceSpec
from models.disk_claims import find_claimed_gib, fit_disk_claim
from models.disks import replace_disks
from tasks.context import StepContext, get_pool
from tasks.disk_plan import PlannedDisk, name_together, plan_disks, size_gib
from tasks.guest_pools import get_guest_pools
from tasks.instance_files import ensure_instance_dir_removed, list_recorded
from tasks.spawn_steps.remote_image import create_instant_disk
from tasks.workflow import Done
from virt.storage.backend import BaseImage, Made, Watch
from virt.storage.choosing import get_backend


def create_disks(context: StepContext) -> Done:
    """Make the guest's disks, each in its pool: the root disk of the image, the others empty.

    Queue: host.<dst>; about 10 ms for an overlay, as long as a copy takes for a raw root disk.
    Idempotency: a disk that is there already with the same base and size is kept.
    Undo: removes the directories that the ledger names.
    On crash: begun again; a half-made disk has another name and is replaced.
    Retries: none of its own; a full pool sends the guest to another host.
    """
    image = context.details["fetch_image"]
    spec = InstanceSpec.model_validate(context.instance.spec)
    planned = plan_disks(spec, image_bytes=int(image["virtual_size_bytes"]))
    _claim(context, size_gib(planned))
    instance_id = context.instance.id
    directories = {pool.name: pool.instance_dir(instance_id) for pool in get_guest_pools(context)}
    context.intend(
        directories=[str(directory) for directory in directories.values()],
        epoch=context.operation.epoch,
    )
    for directory in directories.values():
        directory.mkdir(parents=True, exist_ok=True)
    base = BaseImage(path=Path(image["path"]), format=image["format"])
    remote_url = image.get("remote_url")
    made: dict[str, Made] = {}
    if remote_url is not None:
        root = create_instant_disk(directories[planned[0].pool], planned[0], remote_url)
        made[root.target] = Made.OVERLAY
        planned = (root, *planned[1:])
    for disk in planned:
        if disk is planned[-1]:
            context.midway()
        if disk.target not in made:
            is_root = disk.kind == "root"
            made[disk.target] = make_disk(context, disk, planned, base if is_root else None)
    rows = [_row(disk, image, made[disk.target], spec.preallocation) for disk in planned]

    def commit(session: Session) -> None:
        replace_disks(session, instance_id, rows)

    return Done({"disks": {target: how.value for target, how in made.items()}}, commit)


def make_disk(
    context: StepContext,
    disk: PlannedDisk,
    planned: Sequence[PlannedDisk],
    base: BaseImage | None,
) -> Made:
    """Make one disk of a plan, and show how far that is."""
    spec = InstanceSpec.model_validate(context.instance.spec)
    pool = get_pool(context.host, disk.pool)
    backend = get_backend(disk.format, pool.instance_dir(context.instance.id))
    number = planned.index(disk)

    def show(done_bytes: int, total_bytes: int) -> None:
        part = done_bytes / total_bytes if total_bytes else 1.0
        context.progress(
            (number + part) / len(planned),
            f"making {disk.target}, {done_bytes >> 20} of {total_bytes >> 20} MiB",
            done_bytes=done_bytes,
            total_bytes=total_bytes,
        )

    watch = Watch(on_progress=show, check=context.checkpoint)
    if base is not None:
        return backend.create_root(
            disk.file,
            base=base,
            size_bytes=disk.size_bytes,
            preallocation=spec.preallocation,
            watch=watch,
        )
    return backend.create_empty(
        disk.file,
        size_bytes=disk.size_bytes,
        content=disk.content,
        label=disk.label,
        preallocation=spec.preallocation,
        watch=watch,
    )


def _claim(context: StepContext, disk_gib: Mapping[str, int]) -> None:
    """Claim what the disks take, where the request did not say it: the image's own size.

    Raises:
        HostUnsuitable: the host has no room for it.
    """
    host, instance = context.host.name, context.instance
    # Mostly it is right as it is, and one look tells.
    claimed_gib = context.database.run_one(
        lambda connection: find_claimed_gib(connection, host=host, instance_id=instance.id)
    )
    if claimed_gib == disk_gib:
        return
    too_full = context.database.run(
        lambda session: fit_disk_claim(
            session, host=host, instance_id=instance.id, disk_gib=disk_gib
        )
    )
    if too_full is not None:
        pools, free_gib = too_full
        wanted_gib = sum(disk_gib[pool] for pool in pools)
        raise HostUnsuitable(
            f"{host} has {free_gib:.0f} GiB of disk free in {name_together(pools)}; the disks of "
            f"{instance.name} there take {wanted_gib} GiB with the image's own size.",
            {"host": host, "hint": "Ask for disk_gib, or use a smaller image."},
        )


def _row(
    disk: PlannedDisk, image: dict[str, Any], made: Made, preallocation: str
) -> dict[str, Any]:
    is_overlay = disk.kind == "root" and disk.format == "qcow2"
    remote_url = image.get("remote_url") if is_overlay else None
    return {
        "target": disk.target,
        "kind": disk.kind,
        "file": disk.file,
        "pool": disk.pool,
        "format": disk.format,
        "bus": disk.bus,
        "size_bytes": disk.size_bytes,
        "serial": disk.serial,
        "backing_sha256": image["sha256"] if is_overlay and remote_url is None else None,
        "backing_format": image["format"] if is_overlay else None,
        "remote_url": remote_url,
        "facts": {
            "content": disk.content,
            "label": disk.label,
            "made": made.value,
            "preallocation": preallocation,
            **(image.get("direct_boot", {}) if disk.kind == "root" else {}),
        },
    }


def remove_disks(context: StepContext) -> None:
    """Undo of create_disks: remove the directories that the ledger says were made."""
    instance_id = context.instance.id
    made = list_recorded(get_guest_pools(context), instance_id, context.step.undo)
    for number, pool in enumerate(made):
        if number == 0:
            context.midway()
        ensure_instance_dir_removed(pool, instance_id)
