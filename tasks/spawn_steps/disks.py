"""The guest's disks: made, and undone."""

from pathlib import Path

from tasks.context import StepContext
from tasks.instance_files import ensure_instance_dir_removed, is_recorded
from tasks.workflow import Done
from virt import disks

GIB = 1024**3


def create_disks(context: StepContext) -> Done:
    """Make the guest's directory and its root disk, an overlay on the cached image.

    Queue: host.<dst>; about 10 ms.
    Idempotency: an overlay that is there already with the same base and size is kept.
    Undo: removes the directory that the ledger names.
    On crash: begun again; a half-made overlay has another name and is replaced.
    Retries: none of its own.
    """
    image = context.details["fetch_image"]
    root_disk = context.pool.root_disk(context.instance.id)
    size_bytes = max(context.instance.disk_gib * GIB, int(image["virtual_size_bytes"]))
    context.intend(directory=str(root_disk.parent), epoch=context.operation.epoch)
    root_disk.parent.mkdir(parents=True, exist_ok=True)
    context.midway()
    disks.create_overlay(
        root_disk,
        backing_path=Path(image["path"]),
        backing_format=image["format"],
        size_bytes=size_bytes,
    )
    return Done({"root_disk": str(root_disk), "size_bytes": size_bytes})


def remove_disks(context: StepContext) -> None:
    """Undo of create_disks: remove the directory that the ledger says was made."""
    if is_recorded(context.pool, context.instance.id, context.step.undo.get("directory")):
        context.midway()
        ensure_instance_dir_removed(context.pool, context.instance.id)
