"""Who holds cached images: every guest and every operation whose rows name a digest.

There is no table of leases that could depart from the truth. A guest holds what its disks, its
domain's XML and its direct boot name, and one without rows of disks, or that reads from its source
still, the image that it is to have; an operation that has not ended, or owes steps, holds what its
steps have intended or found, and what its guest names. A digest is a word of 64 hexadecimal digits
wherever it stands, so that nothing that a domain may open is forgotten; what looks like one and is
none holds nothing that exists.

An operation writes its intent **before** it looks into the cache, and a removal looks at the rows
and moves the file away under the same advisory lock: one of the two comes first, and the other
sees it.
"""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from sqlalchemy import text
from sqlalchemy.orm import Session

from models.advisory import lock
from models.image_place import ImagePlace
from models.ledger import Speaker, StepKey, record_intent

_HOLDERS = text(
    r"""
    WITH held AS (
        SELECT o.id, o.kind, o.instance_id, o.src_host, o.dst_host
          FROM operations o
         WHERE o.state IN ('queued', 'running', 'undoing') OR o.owes_since IS NOT NULL
    ), named AS (
        SELECT i.name AS holder,
               concat_ws(' ', i.spec #>> '{direct_boot}', i.domain_xml,
                         lies.on_images,
                         CASE WHEN lies.count = 0 OR lies.reads_source
                              THEN concat_ws(' ', i.spec ->> 'sha256', i.image_sha256) END
               ) AS words
          FROM instances i
         CROSS JOIN LATERAL (
               SELECT count(*),
                      string_agg(concat_ws(' ', d.backing_sha256, d.facts::text), ' ') AS on_images,
                      bool_or(d.remote_url IS NOT NULL) AS reads_source
                 FROM disks d WHERE d.instance_id = i.id) lies
         WHERE i.state <> 'deleted' AND i.pool = :pool
           AND (:is_shared OR i.host = :host
                OR i.id IN (SELECT h.instance_id FROM held h
                             WHERE :host IN (h.src_host, h.dst_host)))
        UNION ALL
        SELECT held.kind || ' ' || held.id, concat_ws(' ', s.undo::text, s.detail::text)
          FROM held JOIN steps s ON s.operation_id = held.id
         WHERE :is_shared OR s.host = :host
    )
    SELECT DISTINCT found[1] AS sha256, named.holder
      FROM named, regexp_matches(named.words, '\m[0-9a-f]{64}\M', 'g') AS found
     ORDER BY 1, 2
    """
)


def list_holders(session: Session, place: ImagePlace) -> dict[str, list[str]]:
    """Return the leased digests of a cache, each with the guests and operations that hold it.

    Of a shared one, what guests and operations of any host name holds.
    """
    rows = session.execute(_HOLDERS, asdict(place))
    holders: dict[str, list[str]] = {}
    for row in rows:
        holders.setdefault(row.sha256, []).append(row.holder)
    return holders


def lock_image(session: Session, place: ImagePlace, sha256: str) -> None:
    """Be the only one who takes or breaks a lease on an image, until the transaction ends."""
    lock(session, _name_lock(place, sha256))


def _name_lock(place: ImagePlace, sha256: str) -> str:
    return f"image:{'' if place.is_shared else place.host}:{place.pool}:{sha256}"


def take_leases(
    session: Speaker, place: ImagePlace, key: StepKey, digests: Sequence[str]
) -> dict[str, Any]:
    """Let a step hold images from now until its operation has ended and owes nothing.

    One statement, which has all the locks before it writes.

    Args:
        session: a transaction, or a connection for which this one statement is one.
        place: the cache.
        key: the step, which must still be the caller's.
        digests: all that the step holds; they need not be in the cache.

    Returns:
        What was written into the step's intents.

    Raises:
        LeaseLost: the step is another worker's.
    """
    intents = {"images_held": sorted(digests)}
    names = [_name_lock(place, sha256) for sha256 in sorted(digests)]
    record_intent(session, key, intents, locks=names)
    return intents
