"""A kernel that the host loads: fetched into the pool's cache, named in the domain, found again.

The digests stand in the facts of the guest's root disk, because a spec need not name them.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from sqlalchemy import func
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.orm import Session

from innkeeper.addresses import show_address
from innkeeper.types import InstanceSpec
from models.disk import Disk
from models.image import CachedImage, Image
from tasks.context import Pool, StepContext
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
        blob = context.pool.images.ensure_blob(
            address,
            known.get(name) or sha256,
            max_bytes=MAX_BYTES,
            on_progress=_show(context, name.removesuffix("_sha256")),
            check=context.checkpoint,
        )
        digests[name] = blob.digest
        records.append(_record(context, blob.digest, blob.path, blob.size_bytes, address))

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


def _record(context: StepContext, sha256: str, path: Path, size_bytes: int, address: str) -> Record:
    host, pool = context.host.name, context.instance.pool

    def record(session: Session) -> None:
        image = upsert(Image).values(
            sha256=sha256,
            format="blob",
            size_bytes=size_bytes,
            virtual_size_bytes=0,
            source=show_address(address),
        )
        session.execute(image.on_conflict_do_nothing())
        used = {"last_used_at": func.clock_timestamp(), "path": str(path), "size_bytes": size_bytes}
        copy = upsert(CachedImage).values(host=host, pool=pool, sha256=sha256, **used)
        session.execute(
            copy.on_conflict_do_update(index_elements=["host", "pool", "sha256"], set_=used)
        )

    return record
