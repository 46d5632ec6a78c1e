"""Removes cached images that nobody holds, however a spawn may race with it.

A spawn writes its lease and then makes sure, under the digest's file lock, that the file is there.
A removal takes the file lock first, then asks for leases and moves the file away in one
transaction. So whichever comes first, the other sees it; see docs/design/image-cache.md.
"""

import shutil
from collections.abc import Sequence
from dataclasses import replace

import structlog
from sqlalchemy.orm import Session

from innkeeper.errors import Busy
from models.cached_images import Copy, forget_copy, list_copies
from models.image_leases import list_holders, lock_image
from models.queries import record_event
from models.session import Database
from tasks.context import Pool
from tasks.image_policy import CacheLimits, Candidate, choose_evictions
from virt.image_files import ImageFile, digest_lock, discard_aside, list_files, set_aside

log = structlog.get_logger(__name__)


def evict(database: Database, host: str, pool: Pool, file: ImageFile, why: str) -> bool:
    """Remove an image, unless somebody holds it by now or is at work on it.

    Args:
        database: where the leases are.
        host: this host.
        pool: the cache's pool.
        file: what to remove.
        why: for the event.
    """
    place = pool.place_on(host)

    def take_away(session: Session) -> bool:
        lock_image(session, place, file.digest)
        if file.digest in list_holders(session, place):
            return False
        # Within the transaction: whoever is next to hold the lock finds no file.
        set_aside(pool.images, file.path)
        forget_copy(session, place, file.digest)
        record_event(
            session,
            "image.evicted",
            host=host,
            data={
                "pool": pool.name,
                "sha256": file.digest,
                "size_bytes": file.allocated_bytes,
                "why": why,
            },
        )
        return True

    try:
        with digest_lock(pool.images, file.digest):
            is_gone = database.run(take_away)
    except Busy:
        return False
    if is_gone:
        log.info("image evicted", pool=pool.name, sha256=file.digest, why=why)
    discard_aside(pool.images)
    return is_gone


def enforce(database: Database, host: str, pool: Pool, limits: CacheLimits) -> list[str]:
    """Bring a pool's cache within its limits.

    Returns:
        The digests that were removed.
    """
    files = {file.digest: file for file in list_files(pool.images)}
    place = pool.place_on(host)
    copies, holders = database.run(
        lambda session: (list_copies(session, place), list_holders(session, place))
    )
    chosen = choose_evictions(
        _candidates(copies, files, frozenset(holders)),
        limits,
        free_bytes=shutil.disk_usage(pool.images.root).free,
    )
    return [
        eviction.sha256
        for eviction in chosen
        if evict(database, host, pool, files[eviction.sha256], eviction.why)
    ]


def make_room(
    database: Database, host: str, pool: Pool, limits: CacheLimits, *, wanted_bytes: int | None
) -> list[str]:
    """Remove what nobody holds, however young, because the disk is full.

    Args:
        database: where the leases are.
        host: this host.
        pool: the pool that is full.
        limits: the cache's own.
        wanted_bytes: what is to find room; None when nobody knows: then all goes.

    Returns:
        The digests that were removed.
    """
    discard_aside(pool.images)
    floor_bytes = 2**63 if wanted_bytes is None else wanted_bytes + limits.min_free_bytes
    urgent = replace(limits, min_age_s=0.0, max_bytes=0, min_free_bytes=floor_bytes)
    return enforce(database, host, pool, urgent)


def _candidates(
    copies: Sequence[Copy], files: dict[str, ImageFile], held: frozenset[str]
) -> list[Candidate]:
    # What has no row yet is adopted first, and what has no file takes no room.
    return [
        Candidate(copy.sha256, files[copy.sha256].allocated_bytes, copy.idle_s, copy.sha256 in held)
        for copy in copies
        if copy.sha256 in files
    ]
