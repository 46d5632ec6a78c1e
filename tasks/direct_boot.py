"""A kernel that the host loads: fetched into the pool's cache, named in the domain, found again.

The digests stand in the facts of the guest's root disk, because a spec need not name them.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from sqlalchemy.orm import Session

from innkeeper.types import InstanceSpec
from models.disk import Disk
from tasks.context import Pool, StepContext
from tasks.image_holding import Origin, hold_blob, record_held
from virt.domain_xml import KernelSpec

MAX_BYTES = 1 << 30
KERNEL, RAMDISK = "kernel_sha256", "ramdisk_sha256"

Record = Callable[[Session], None]


def fetch_direct_boot(
    context: StepContext, known: Mapping[str, Any]
) -> tuple[dict[str, str], Record]:
    """Bring a guest's kernel and RAM disk into the cache of its pool.

    Args:
        context: the step, on the host that is to have them.
        known: digests by name, from an earlier fetch; they go before those of the spec.

    Returns:
        The digests by name, empty for a guest with a boot loader of its own; and what writes them
        into the catalogue of images, in the transaction that records the step.
    """
    spec = InstanceSpec.model_validate(context.instance.spec).direct_boot
    if spec is None:
        return {}, lambda _session: None
    digests: dict[str, str] = {}
    records: list[Record] = []
    wanted = [(KERNEL, spec.kernel, spec.kernel_sha256)]
    if spec.ramdisk is not None:
        wanted.append((RAMDISK, spec.ramdisk, spec.ramdisk_sha256))
    for name, address, sha256 in wanted:
        origin = Origin(url=address, sha256=known.get(name) or sha256)
        blob = hold_blob(
            context,
            context.pool,
            origin,
            max_bytes=MAX_BYTES,
            on_progress=_show(context, name.removesuffix("_sha256")),
        )
        digests[name] = blob.digest
        place = context.pool.place_on(context.host.name)
        records.append(partial(record_held, place=place, held=blob, origin=origin))

    def record(session: Session) -> None:
        for write in records:
            write(session)

    return digests, record


def describe_kernel(pool: Pool, spec: InstanceSpec, root: Disk) -> KernelSpec | None:
    """Return what the domain says of its kernel; None for a guest with a boot loader of its own."""
    if spec.direct_boot is None:
        return None
    ramdisk = root.facts.get(RAMDISK)
    return KernelSpec(
        kernel_path=str(pool.images.path_for(root.facts[KERNEL], "blob")),
        ramdisk_path=None if ramdisk is None else str(pool.images.path_for(ramdisk, "blob")),
        command_line=spec.direct_boot.command_line,
    )


def _show(context: StepContext, what: str) -> Callable[[int, int | None], None]:
    def show(done_bytes: int, total_bytes: int | None) -> None:
        fraction = done_bytes / total_bytes if total_bytes else 0.0
        context.progress(fraction, f"fetching the {what}, {done_bytes / 2**20:.0f} MiB")

    return show
