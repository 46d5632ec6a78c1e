"""The guest's disks: made, written down, and undone."""

from pathlib import Path
from typing import Any

from sqlalchemy.orm import Session

from innkeeper.types import InstanceSpec
from models.disks import replace_disks
from tasks.context import StepContext
from tasks.disk_plan import PlannedDisk, plan_disks
from tasks.instance_files import ensure_instance_dir_removed, is_recorded
from tasks.workflow import Done
from virt import disks


def create_disks(context: StepContext) -> Done:
    """Make the guest's directory and its disks; the root disk is an overlay on the cached image.

    Queue: host.<dst>; about 10 ms.
    Idempotency: a disk that is there already with the same base and size is kept.
    Undo: removes the directory that the ledger names.
    On crash: begun again; a half-made disk has another name and is replaced.
    Retries: none of its own.
    """
    image = context.details["fetch_image"]
    spec = InstanceSpec.model_validate(context.instance.spec)
    planned = plan_disks(spec, image_bytes=int(image["virtual_size_bytes"]))
    directory = context.pool.instance_dir(context.instance.id)
    context.intend(directory=str(directory), epoch=context.operation.epoch)
    directory.mkdir(parents=True, exist_ok=True)
    context.midway()
    disks.create_overlay(
        directory / planned[0].file,
        backing_path=Path(image["path"]),
        backing_format=image["format"],
        size_bytes=planned[0].size_bytes,
    )
    instance_id = context.instance.id
    rows = [_row(disk, image) for disk in planned]

    def commit(session: Session) -> None:
        replace_disks(session, instance_id, rows)

    return Done({"disks": {disk.target: disk.file for disk in planned}}, commit)


def _row(disk: PlannedDisk, image: dict[str, Any]) -> dict[str, Any]:
    is_overlay = disk.kind == "root" and disk.format == "qcow2"
    return {
        "target": disk.target,
        "kind": disk.kind,
        "file": disk.file,
        "format": disk.format,
        "bus": disk.bus,
        "size_bytes": disk.size_bytes,
        "serial": disk.serial,
        "backing_sha256": image["sha256"] if is_overlay else None,
        "backing_format": image["format"] if is_overlay else None,
        "facts": {"content": disk.content, "label": disk.label},
    }


def remove_disks(context: StepContext) -> None:
    """Undo of create_disks: remove the directory that the ledger says was made."""
    if is_recorded(context.pool, context.instance.id, context.step.undo.get("directory")):
        context.midway()
        ensure_instance_dir_removed(context.pool, context.instance.id)
