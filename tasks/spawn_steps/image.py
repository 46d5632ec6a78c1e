"""The image: brought into the cache of the guest's pool."""

from sqlalchemy import func, update
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.orm import Session

from innkeeper.addresses import show_address
from innkeeper.types import InstanceSpec
from models.image import CachedImage, Image
from models.instance import Instance
from tasks.context import StepContext
from tasks.direct_boot import fetch_direct_boot
from tasks.spawn_steps.remote_image import find_remote_image
from tasks.workflow import Done

GIB = 1024**3


def fetch_image(context: StepContext) -> Done:
    """Bring the image, and the kernel that the host is to load, into the pool's cache.

    Queue: host.<dst>; seconds to minutes for a new image, milliseconds for a cached one.
    Idempotency: the cache is addressed by digest; one fetch at a time per digest and pool.
    Undo: none; a cached image is nobody's in particular and ages by itself.
    On crash: a partial download is continued.
    Retries: fetch_failed, with back-off; never a wrong digest or an unsafe image.
    """
    spec = InstanceSpec.model_validate(context.instance.spec)
    limit_bytes = spec.disk_gib * GIB or None
    kernel, record_kernel = fetch_direct_boot(context, {})
    if spec.delivery == "instant":
        remote = find_remote_image(context, spec)
        if remote is not None:
            return Done({**remote, "direct_boot": kernel}, record_kernel)

    def show(done_bytes: int, total_bytes: int | None) -> None:
        fraction = done_bytes / total_bytes if total_bytes else 0.0
        context.progress(
            fraction,
            f"fetching {done_bytes / 2**20:.0f} MiB",
            done_bytes=done_bytes,
            total_bytes=total_bytes,
        )

    image = context.pool.images.ensure(
        spec.image,
        spec.sha256,
        spec.image_format,
        sha512=spec.sha512,
        max_virtual_size_bytes=limit_bytes,
        on_progress=show,
        check=context.checkpoint,
    )
    context.midway()
    host, instance = context.host.name, context.instance

    def commit(session: Session) -> None:
        record_kernel(session)
        session.execute(
            upsert(Image)
            .values(
                sha256=image.digest,
                sha512=spec.sha512,
                format=image.format,
                size_bytes=image.size_bytes,
                virtual_size_bytes=image.virtual_size_bytes,
                source=show_address(spec.image),
            )
            .on_conflict_do_nothing()
        )
        session.execute(
            upsert(CachedImage)
            .values(host=host, pool=instance.pool, sha256=image.digest, path=str(image.path))
            .on_conflict_do_update(
                index_elements=["host", "pool", "sha256"],
                set_={"last_used_at": func.clock_timestamp(), "path": str(image.path)},
            )
        )
        session.execute(
            update(Instance).where(Instance.id == instance.id).values(image_sha256=image.digest)
        )

    return Done(
        {
            "path": str(image.path),
            "sha256": image.digest,
            "format": image.format,
            "virtual_size_bytes": image.virtual_size_bytes,
            "fetched": image.was_fetched,
            "direct_boot": kernel,
        },
        commit,
    )
