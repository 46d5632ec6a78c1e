"""Finds cached images whose bytes have changed, and brings them anew."""

import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import structlog
from sqlalchemy.orm import Session

from innkeeper.errors import Busy, FetchFailed, InnkeeperError
from models.cached_images import Copy, list_peers, mark_rotten, mark_verified
from models.image_leases import list_holders
from models.queries import record_event
from models.session import Database
from tasks.context import Pool
from virt.image_files import ImageFile, condemn, digest_lock
from virt.image_scrub import Pace, Scrubber

log = structlog.get_logger(__name__)

LOCK_S = 5.0
LONGEST_HEALING_S = 600.0
MOST_PEERS = 3
ROTTEN = (
    "The file's bytes are not those of its digest any more. Nothing new uses it. Guests that hold "
    "it may read wrong data until it is healed and they are started again."
)
HEALED = (
    "The file has been fetched anew. Guests that were running meanwhile read the old file until "
    "they are stopped and started."
)


def choose_due(copies: Sequence[Copy], *, interval_s: float) -> list[str]:
    """Return the digests of the copies that are to be hashed, the longest unverified first."""
    due = [
        copy
        for copy in copies
        if copy.state == "ready" and (copy.unverified_s is None or copy.unverified_s >= interval_s)
    ]
    never_s = float("inf")
    due.sort(key=lambda copy: -(never_s if copy.unverified_s is None else copy.unverified_s))
    return [copy.sha256 for copy in due]


def scrub(
    database: Database,
    host: str,
    pool: Pool,
    scrubber: Scrubber,
    pace: Pace,
    files: Sequence[ImageFile],
) -> tuple[int, list[str]]:
    """Hash files for as long as the slice goes.

    Args:
        database: where the rows are.
        host: this host.
        pool: the files' pool.
        scrubber: remembers a file that is not done.
        pace: the slice.
        files: what is due, in order.

    Returns:
        How many were hashed to their end, and the digests of those that are rotten.
    """
    done, rotten = 0, []
    for file in files:
        try:
            read = scrubber.read_on(file.path, pace)
        except FileNotFoundError:
            continue
        except OSError as error:
            # A disk that cannot read it back has lost it as well as one that reads it wrong.
            log.error("cached image cannot be read", path=str(file.path), error=str(error))
            read = ("", file.path.stat().st_ino)
        if read is None:
            break
        digest, inode = read
        done += 1
        if digest == file.digest:
            database.run(partial(mark_verified, place=pool.place_on(host), sha256=file.digest))
        elif condemn_file(database, host, pool, file, inode=inode):
            rotten.append(file.digest)
    return done, rotten


def condemn_file(
    database: Database, host: str, pool: Pool, file: ImageFile, *, inode: int | None = None
) -> bool:
    """Take a rotten file out of use; False when it is not there, or not the one that was read.

    Args:
        database: where the rows are.
        host: this host.
        pool: the file's pool.
        file: the file.
        inode: the one that was read; None for whichever is there.
    """

    def mark(session: Session) -> None:
        if not mark_rotten(session, pool.place_on(host), file.digest):
            return
        record_event(
            session, "image.rotten", host=host, data=_describe(session, host, pool, file, ROTTEN)
        )

    try:
        with digest_lock(pool.images, file.digest, timeout_s=LOCK_S):
            if not _is_same(file.path, inode):
                return False
            # The row first: what is condemned and not told of would be healed unseen.
            database.run(mark)
            condemn(file.path)
    except Busy:
        return False
    log.error("cached image is rotten", pool=pool.name, sha256=file.digest)
    return True


def note_missing(database: Database, host: str, pool: Pool, file: ImageFile) -> None:
    """Record that a file which guests need is gone; it is brought anew like a rotten one."""

    def mark(session: Session) -> None:
        if mark_rotten(session, pool.place_on(host), file.digest):
            why = "The file is gone, and guests need it."
            record_event(
                session, "image.missing", host=host, data=_describe(session, host, pool, file, why)
            )

    database.run(mark)


def heal(database: Database, host: str, pool: Pool, file: ImageFile, source: str) -> bool:
    """Fetch a rotten or missing image anew, from its source or from another host.

    Args:
        database: where the rows are.
        host: this host.
        pool: the image's pool.
        file: what is to be replaced.
        source: where the image came from; empty when nobody knows.

    Returns:
        Whether the cache has the right bytes now.
    """
    peers = database.run(
        lambda session: list_peers(session, sha256=file.digest, host=host, limit=MOST_PEERS)
    )
    give_up_at = time.monotonic() + LONGEST_HEALING_S

    def check() -> None:
        if time.monotonic() > give_up_at:
            raise FetchFailed(
                f"The image was not healed within {LONGEST_HEALING_S:.0f} s.",
                {"sha256": file.digest},
            )

    sources = [source, *peers] if _is_usable(source) else peers
    if not sources:
        return False
    url, *others = sources
    try:
        if file.format == "blob":
            was_fetched = pool.images.ensure_blob(
                url, file.digest, peers=others, check=check
            ).was_fetched
        else:
            was_fetched = pool.images.ensure(
                url, file.digest, file.format, peers=others, check=check
            ).was_fetched
    except InnkeeperError as error:
        log.warning("image not healed", sha256=file.digest, code=error.code)
        return False
    if was_fetched:
        database.run(partial(_record_healed, host=host, pool=pool, file=file))
    return True


def _is_usable(source: str) -> bool:
    """Tell whether an address is whole; of a signed one the records have but a part."""
    return bool(source) and "<redacted>" not in source and "***@" not in source


def _record_healed(session: Session, *, host: str, pool: Pool, file: ImageFile) -> None:
    mark_verified(session, pool.place_on(host), file.digest)
    record_event(
        session, "image.healed", host=host, data=_describe(session, host, pool, file, HEALED)
    )


def _describe(
    session: Session, host: str, pool: Pool, file: ImageFile, meaning: str
) -> dict[str, object]:
    holders = list_holders(session, pool.place_on(host))
    return {
        "pool": pool.name,
        "sha256": file.digest,
        "held_by": holders.get(file.digest, []),
        "meaning": meaning,
    }


def _is_same(path: Path, inode: int | None) -> bool:
    try:
        return inode in (None, path.stat().st_ino)
    except FileNotFoundError:
        return False
