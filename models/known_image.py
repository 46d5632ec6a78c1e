"""What is known of an image before anybody has fetched it for a guest."""

from dataclasses import dataclass

from sqlalchemy import text
from sqlalchemy.orm import Session


@dataclass(frozen=True, slots=True)
class KnownImage:
    """An image as the catalogue has it.

    Args:
        virtual_size_bytes: its disk as a guest sees it; 0 for one that no host has seen.
        hosts: those that have it in the cache of the pool in question.
    """

    virtual_size_bytes: int = 0
    hosts: frozenset[str] = frozenset()


_KNOWN = """
    SELECT i.virtual_size_bytes,
           ARRAY(SELECT c.host FROM cached_images c
                  WHERE c.sha256 = i.sha256 AND c.pool = :pool AND c.state = 'ready')
      FROM images i
"""
_BY_SHA256 = text(f"{_KNOWN} WHERE i.sha256 = :digest")
_BY_SHA512 = text(f"{_KNOWN} WHERE i.sha512 = :digest LIMIT 1")


def find_known_image(
    session: Session, *, sha256: str | None, sha512: str | None, pool: str
) -> KnownImage:
    """Return what is known of an image.

    Args:
        session: an open transaction.
        sha256: its digest; None where only the other is known.
        sha512: its other digest; None for an image of which nothing was promised.
        pool: whose caches are asked.
    """
    if sha256 is None and sha512 is None:
        return KnownImage()
    found = session.execute(
        _BY_SHA512 if sha256 is None else _BY_SHA256, {"digest": sha256 or sha512, "pool": pool}
    ).one_or_none()
    return KnownImage() if found is None else KnownImage(found[0], frozenset(found[1]))
