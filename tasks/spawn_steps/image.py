"""The image: brought into the cache of the guest's pool."""

from sqlalchemy.orm import Session

from innkeeper.types import InstanceSpec
from models.instance import write_instance
from tasks.context import StepContext
from tasks.direct_boot import fetch_direct_boot
from tasks.image_holding import Origin, hold_image, record_held
from tasks.spawn_steps.remote_image import find_remote_image
from tasks.workflow import Done

GIB = 1024**3


def fetch_image(context: StepContext) -> Done:
    """Bring the image, and the kernel the host is to load, into the cache, and hold them there.

    Queue: host.<dst>; seconds to minutes for a new image, milliseconds for a cached one.
    Idempotency: the cache is addressed by digest; one fetch at a time per digest and pool.
    Undo: none; a cached image is nobody's in particular and ages by itself once nobody holds it.
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

    origin = Origin(url=spec.image, sha256=spec.sha256, sha512=spec.sha512)
    image = hold_image(
        context,
        context.pool,
        origin,
        spec.image_format,
        max_virtual_size_bytes=limit_bytes,
        on_progress=show,
    )
    context.midway()
    place, instance = context.pool.place_on(context.host.name), context.instance

    def commit(session: Session) -> None:
        record_kernel(session)
        record_held(session, place, image, origin)
        write_instance(session, instance.id, image_sha256=image.digest)

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
