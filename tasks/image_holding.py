"""Brings an image into a host's cache for a step, and keeps it there as long as it is needed."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from sqlalchemy.orm import Session

from innkeeper.addresses import show_address
from innkeeper.errors import FetchFailed, HostUnsuitable
from models.cached_images import Found, list_peers, record_copy
from models.image_leases import take_leases
from models.image_place import ImagePlace
from tasks.context import Pool, StepContext
from tasks.image_eviction import make_room
from virt.image_fetch import StoredFormat
from virt.image_files import is_there
from virt.images import CachedBlob, CachedImage
from virt.qemu_img import ImageFormat

MOST_PEERS = 3
MOST_TRIES = 5
_FULL = frozenset({"ENOSPC", "EDQUOT"})

T = TypeVar("T", CachedImage, CachedBlob)
OnProgress = Callable[[int, int | None], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Where an image comes from, and how it is known.

    Args:
        url: its address.
        sha256: its digest; None to take what comes.
        sha512: the same by SHA-512; both may be given.
    """

    url: str
    sha256: str | None
    sha512: str | None = None


def hold_image(
    context: StepContext,
    pool: Pool,
    origin: Origin,
    image_format: ImageFormat,
    *,
    max_virtual_size_bytes: int | None = None,
    on_progress: OnProgress,
    check: Callable[[], None] | None = None,
) -> CachedImage:
    """Have an image in a pool's cache, and hold it until the operation has ended.

    The lease is written before the cache is looked into, or, where only the fetch tells the digest,
    right after it; that the file is there is made sure of afterwards, so that a removal that came
    first only costs another fetch.

    Args:
        context: the step; its operation holds the image.
        pool: whose cache.
        origin: the image.
        image_format: what it must be.
        max_virtual_size_bytes: its disk may not be larger; None for no limit.
        on_progress: told (bytes done, bytes in all or None).
        check: called often, may raise to stop; the step's own by default.

    Raises:
        HostUnsuitable: the pool is full of what is needed.
        ImageError: it cannot be had, see ``ImageCache.ensure``.
        LeaseLost, Cancelled, DeadlineExceeded: the step is to stop.
    """

    def bring(peers: Sequence[str], show: OnProgress) -> CachedImage:
        return pool.images.ensure(
            origin.url,
            origin.sha256,
            image_format,
            sha512=origin.sha512,
            peers=peers,
            max_virtual_size_bytes=max_virtual_size_bytes,
            on_progress=show,
            check=check or context.checkpoint,
        )

    return _hold(context, pool, origin, image_format, bring, on_progress)


def hold_blob(
    context: StepContext,
    pool: Pool,
    origin: Origin,
    *,
    max_bytes: int | None = None,
    on_progress: OnProgress,
) -> CachedBlob:
    """Have a kernel, a RAM disk or the like in a pool's cache; see ``hold_image``.

    Args:
        context: the step; its operation holds it.
        pool: whose cache.
        origin: the file.
        max_bytes: it may not be larger; None for the cache's own limit.
        on_progress: told (bytes done, bytes in all or None).

    Raises:
        HostUnsuitable, ImageError, LeaseLost, Cancelled, DeadlineExceeded.
    """

    def bring(peers: Sequence[str], show: OnProgress) -> CachedBlob:
        return pool.images.ensure_blob(
            origin.url,
            origin.sha256,
            sha512=origin.sha512,
            peers=peers,
            max_bytes=max_bytes,
            on_progress=show,
            check=context.checkpoint,
        )

    return _hold(context, pool, origin, "blob", bring, on_progress)


def record_held(
    session: Session, place: ImagePlace, held: CachedImage | CachedBlob, origin: Origin
) -> None:
    """Write that a cache has an image and that it has just been used."""
    record_copy(
        session,
        place,
        describe(held),
        sha512=origin.sha512,
        source=show_address(origin.url),
        is_fresh=held.was_fetched,
    )


def describe(held: CachedImage | CachedBlob) -> Found:
    """Return what is in a cache as its row says it."""
    if isinstance(held, CachedBlob):
        return Found(held.digest, "blob", str(held.path), held.size_bytes, 0)
    return Found(held.digest, held.format, str(held.path), held.size_bytes, held.virtual_size_bytes)


def _hold(
    context: StepContext,
    pool: Pool,
    origin: Origin,
    stored_format: StoredFormat,
    bring: Callable[[Sequence[str], OnProgress], T],
    on_progress: OnProgress,
) -> T:
    for _ in range(MOST_TRIES):
        peers: list[str] = []
        if origin.sha256 is not None:
            _lease(context, pool, origin.sha256)
            if not pool.images.path_for(origin.sha256, stored_format).exists():
                peers = _list_peers(context, origin.sha256)
        held = _bring_into_room(context, pool, partial(bring, peers), on_progress)
        if origin.sha256 is None:
            _lease(context, pool, held.digest)
        if is_there(pool.images, held.path, held.digest, check=context.checkpoint):
            return held
    raise FetchFailed(
        f"The image was removed from the cache of pool {pool.name} as often as it was fetched.",
        {"pool": pool.name, "host": context.host.name},
    )


def _list_peers(context: StepContext, sha256: str) -> list[str]:
    host = context.host.name
    return context.database.run(
        lambda session: list_peers(session, sha256=sha256, host=host, limit=MOST_PEERS)
    )


def _lease(context: StepContext, pool: Pool, sha256: str) -> None:
    held = {*context.step.undo.get("images_held", ())}
    if sha256 in held:
        return
    place = pool.place_on(context.host.name)
    intents = context.database.run_one(
        lambda connection: take_leases(connection, place, context.step.key, [*held, sha256])
    )
    context.step.undo.update(intents)


def _bring_into_room(
    context: StepContext,
    pool: Pool,
    bring: Callable[[OnProgress], T],
    on_progress: OnProgress,
) -> T:
    """Bring it, and once more after making room when the disk is full."""
    total_bytes: int | None = None

    def show(done: int, total: int | None) -> None:
        nonlocal total_bytes
        total_bytes = total
        on_progress(done, total)

    try:
        return bring(show)
    except HostUnsuitable as error:
        if error.details.get("reason") not in _FULL:
            raise
        removed = make_room(
            context.database,
            context.host.name,
            pool,
            context.host.image_limits,
            wanted_bytes=total_bytes,
        )
        context.note(f"pool {pool.name} is full: {len(removed)} unused images were removed")
        if not removed:
            raise
    return bring(show)
