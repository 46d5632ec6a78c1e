"""The disks that a guest finds where it goes: the same sizes over the same base, otherwise empty.

Libvirt copies into them whatever the guest's own files hold: of an overlay its own blocks, of a
disk without a base all that is not a hole. What is there before must show the same bytes wherever
nothing is copied: the base, or zeroes.
"""

from collections.abc import Sequence

from innkeeper.types import InstanceSpec
from models.disk import Disk
from tasks.config_drive import FILE, rebuild_drive, write_drive
from tasks.context import StepContext
from tasks.copied_pools import list_copied_disks, list_copied_pools
from tasks.direct_boot import fetch_direct_boot
from tasks.guest_pools import pool_of
from tasks.image_holding import Origin, hold_image, record_held
from tasks.landing import claim_landing
from tasks.workflow import Done
from virt.storage.backend import BaseImage, Watch
from virt.storage.choosing import get_backend


def make_landing_disks(context: StepContext) -> Done:
    """Make those of the guest's disks that are copied, after fetching what they are made of.

    Returns:
        The names of the files, and what records the copies of what was fetched.
    """
    instance = context.instance
    pools, disks = list_copied_pools(context), list_copied_disks(context)
    moves_home = instance.pool in {pool.name for pool in pools}
    base = _fetch_base(context, disks)
    record_kernel = None
    if moves_home:
        _, record_kernel = fetch_direct_boot(context, disks[0].facts)
    directories = {pool.name: claim_landing(context, pool) for pool in pools}
    watch = Watch(check=context.checkpoint)
    for disk in disks:
        backend = get_backend(disk.format, directories[pool_of(instance, disk)])
        if base is not None and disk.backing_sha256 is not None:
            backend.create_root(disk.file, base=base, size_bytes=disk.size_bytes, watch=watch)
            continue
        backend.create_empty(
            disk.file,
            size_bytes=disk.size_bytes,
            preallocation=disk.facts.get("preallocation", "off"),
            watch=watch,
        )
    made = [disk.file for disk in disks]
    # Libvirt copies no read-only disk: the config drive is built anew, to the same bytes.
    drive = rebuild_drive(context) if moves_home else None
    if drive is not None:
        write_drive(directories[instance.pool] / FILE, drive.image)
        made.append(FILE)
    return Done({"made": made}, record_kernel)


def _fetch_base(context: StepContext, disks: Sequence[Disk]) -> BaseImage | None:
    digests = {disk.backing_sha256 for disk in disks} - {None}
    if not digests:
        return None
    spec = InstanceSpec.model_validate(context.instance.spec)
    origin = Origin(url=spec.image, sha256=digests.pop())
    image = hold_image(
        context,
        context.pool,
        origin,
        spec.image_format,
        on_progress=lambda done, total: context.progress(
            done / total if total else 0.0, f"fetching the base, {done / 2**20:.0f} MiB"
        ),
    )
    place = context.pool.place_on(context.host.name)
    context.database.run(lambda session: record_held(session, place, image, origin))
    return BaseImage(path=image.path, format=image.format)
