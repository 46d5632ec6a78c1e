"""What each host has in its image caches, as rows: read, used, found, lost, gone bad."""

from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import delete, func, select, text, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from models.claims import HOST_IS_UP_S
from models.image import CachedImage, Image
from models.image_place import ImagePlace

MOST_LISTED = 1000


@dataclass(frozen=True, slots=True)
class Copy:
    """One copy of an image in a pool of a host.

    Args:
        sha256: digest of the bytes that it should have.
        path: the file on the host.
        state: ``ready`` or ``rotten``.
        size_bytes: of the file.
        idle_s: how long nobody has used it.
        unverified_s: how long ago its bytes were last hashed; None for never.
        source: where the image came from; empty when nobody knows.
    """

    sha256: str
    path: str
    state: str
    size_bytes: int
    idle_s: float
    unverified_s: float | None
    source: str


_COPIES = text(
    """
    SELECT c.sha256, c.path, c.state, c.size_bytes,
           EXTRACT(EPOCH FROM clock_timestamp() - GREATEST(c.last_used_at, (
               SELECT max(o.last_used_at) FROM cached_images o
                WHERE :is_shared AND o.pool = c.pool AND o.sha256 = c.sha256)))::float,
           EXTRACT(EPOCH FROM clock_timestamp() - c.verified_at)::float, i.source
      FROM cached_images c JOIN images i ON i.sha256 = c.sha256
     WHERE c.host = :host AND c.pool = :pool
     ORDER BY c.sha256
    """
)


def list_copies(session: Session, place: ImagePlace) -> list[Copy]:
    """Return the copies in a cache; in a shared one, a use by any host counts."""
    rows = session.execute(_COPIES, asdict(place))
    return [Copy(*row) for row in rows]


@dataclass(frozen=True, slots=True)
class Found:
    """An image in a cache, as the host sees it."""

    sha256: str
    format: str
    path: str
    size_bytes: int
    virtual_size_bytes: int


def record_copy(
    session: Session,
    place: ImagePlace,
    found: Found,
    *,
    source: str,
    is_fresh: bool,
    sha512: str | None = None,
) -> None:
    """Write that a host has an image and has just used it.

    Args:
        session: an open transaction.
        place: the cache.
        found: the image.
        source: where it comes from; empty when nobody knows.
        is_fresh: whether its bytes were hashed on their way here just now; that mends a rotten
            copy, and proves the source.
        sha512: the image's other digest, where it has been compared.
    """
    image = insert(Image).values(
        sha256=found.sha256,
        format=found.format,
        size_bytes=found.size_bytes,
        virtual_size_bytes=found.virtual_size_bytes,
        sha512=sha512,
        source=source,
    )
    known = {
        "source": source if is_fresh and source else Image.source,
        "sha512": Image.sha512 if sha512 is None else sha512,
    }
    image = image.on_conflict_do_update(index_elements=["sha256"], set_=known)
    fresh: dict[str, Any] = (
        {"state": "ready", "verified_at": func.clock_timestamp()} if is_fresh else {}
    )
    used = {
        "path": found.path,
        "size_bytes": found.size_bytes,
        "last_used_at": func.clock_timestamp(),
        **fresh,
    }
    session.execute(
        insert(CachedImage)
        .values(host=place.host, pool=place.pool, sha256=found.sha256, **used)
        .on_conflict_do_update(index_elements=["host", "pool", "sha256"], set_=used)
        .add_cte(image.cte("image"))
    )


def adopt_copy(session: Session, place: ImagePlace, found: Found) -> bool:
    """Write a row for a file that has none; False when there is one by now."""
    session.execute(
        insert(Image)
        .values(
            sha256=found.sha256,
            format=found.format,
            size_bytes=found.size_bytes,
            virtual_size_bytes=found.virtual_size_bytes,
            source="",
        )
        .on_conflict_do_nothing()
    )
    adopted = session.scalar(
        insert(CachedImage)
        .values(
            host=place.host,
            pool=place.pool,
            sha256=found.sha256,
            path=found.path,
            size_bytes=found.size_bytes,
        )
        .on_conflict_do_nothing()
        .returning(CachedImage.sha256)
    )
    return adopted is not None


def forget_copy(session: Session, place: ImagePlace, sha256: str) -> None:
    """Remove the row of a copy that is gone; of a shared pool, every host's."""
    gone = delete(CachedImage).where(CachedImage.pool == place.pool, CachedImage.sha256 == sha256)
    session.execute(gone if place.is_shared else gone.where(CachedImage.host == place.host))


def mark_verified(session: Session, place: ImagePlace, sha256: str) -> None:
    """Write that a copy's bytes have just been hashed and are what they should be."""
    session.execute(_one(place, sha256).values(state="ready", verified_at=func.clock_timestamp()))


def mark_rotten(session: Session, place: ImagePlace, sha256: str) -> bool:
    """Write that a copy must not be used any more; False when that was known."""
    marked = session.scalar(
        _one(place, sha256)
        .where(CachedImage.state == "ready")
        .values(state="rotten")
        .returning(CachedImage.sha256)
    )
    return marked is not None


def _one(place: ImagePlace, sha256: str) -> Any:
    return update(CachedImage).where(
        CachedImage.host == place.host,
        CachedImage.pool == place.pool,
        CachedImage.sha256 == sha256,
    )


def list_peers(session: Session, *, sha256: str, host: str, limit: int) -> list[str]:
    """Return addresses of an image in the caches of other living hosts, in random order.

    Args:
        session: an open transaction.
        sha256: the image.
        host: who asks, and is left out.
        limit: how many at most.
    """
    rows = session.execute(
        text(
            """
            SELECT h.facts ->> 'image_peer_url' || '/images/' || c.sha256 || '.'
                   || substring(c.path from '[^.]+$') AS url
              FROM cached_images c JOIN hosts h ON h.name = c.host
             WHERE c.sha256 = :sha256 AND c.state = 'ready' AND c.host <> :host
               AND h.facts ->> 'image_peer_url' <> ''
               AND h.heartbeat_at > clock_timestamp() - make_interval(secs => :up_s)
             GROUP BY h.name, h.facts ->> 'image_peer_url', c.sha256, c.path
             ORDER BY random() LIMIT :limit
            """
        ),
        {"sha256": sha256, "host": host, "limit": limit, "up_s": HOST_IS_UP_S},
    )
    return [row.url for row in rows]


@dataclass(frozen=True, slots=True)
class Listed:
    """A copy as people see it; ``guests`` counts those whose root disk lies on it."""

    host: str
    pool: str
    sha256: str
    format: str
    state: str
    size_bytes: int
    virtual_size_bytes: int
    guests: int
    source: str
    last_used_at: datetime
    verified_at: datetime | None


_LISTED = text(
    """
    SELECT c.host, c.pool, c.sha256, i.format, c.state, c.size_bytes, i.virtual_size_bytes,
           (SELECT count(*) FROM instances g
             WHERE g.host = c.host AND g.pool = c.pool AND g.state <> 'deleted'
               AND (g.image_sha256 = c.sha256 OR EXISTS (
                    SELECT 1 FROM disks d
                     WHERE d.instance_id = g.id AND d.backing_sha256 = c.sha256)))::int,
           i.source, c.last_used_at, c.verified_at
      FROM cached_images c JOIN images i ON i.sha256 = c.sha256
     WHERE CAST(:host AS text) IS NULL OR c.host = :host
     ORDER BY c.host, c.pool, c.last_used_at DESC LIMIT :limit
    """
)


def list_everywhere(session: Session, *, host: str | None) -> list[Listed]:
    """Return all copies, or those of one host; the last used first."""
    rows = session.execute(_LISTED, {"host": host, "limit": MOST_LISTED})
    return [Listed(*row) for row in rows]


def find_source(session: Session, sha256: str) -> str | None:
    """Return where an image came from; None when nobody knows."""
    return session.scalar(select(Image.source).where(Image.sha256 == sha256)) or None
