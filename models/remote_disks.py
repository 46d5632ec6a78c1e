"""Disks that still read from their image's source: until they are hydrated, or given up."""

import json
from dataclasses import asdict, dataclass
from typing import Any
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.orm import Session

from innkeeper.states import InstanceState


@dataclass(frozen=True, kw_only=True)
class RemoteDisk:
    """A root disk below which a server stands.

    Args:
        instance_id: the guest.
        name: the guest's name.
        target: the disk's name in the domain.
        pool: the guest's pool.
        url: the source.
        sha256: digest that the image must have; None when only ``sha512`` was given.
        sha512: the same.
        known_sha256: the SHA-256 of that very image, once it has been seen anywhere.
        state: the guest's.
        is_held: whether an operation has the guest.
        domain_epoch: of the domain that may run.
        epoch: of the record.
        source_lost: ``pause`` or ``fail``.
        age_s: seconds since the disk was made, by the database's clock.
        condemned: the error that forbids to use the image; None for none.
        fault: code of the guest's fault; None for none.
    """

    instance_id: UUID
    name: str
    target: str
    pool: str
    url: str
    sha256: str | None
    sha512: str | None
    known_sha256: str | None
    state: InstanceState
    is_held: bool
    domain_epoch: int
    epoch: int
    source_lost: str
    age_s: float
    condemned: dict[str, Any] | None
    fault: str | None

    def wanted_on(self, host: str) -> "Wanted":
        """Return the image that it needs on a host."""
        return Wanted(
            host=host, pool=self.pool, url=self.url, sha256=self.sha256, sha512=self.sha512
        )


_SELECT = """
    SELECT i.id AS instance_id, i.name, d.target, i.pool, d.remote_url AS url,
           i.spec->>'sha256' AS sha256, i.spec->>'sha512' AS sha512, i.state,
           COALESCE(i.spec->>'sha256', (SELECT m.sha256 FROM images m
                     WHERE m.sha512 = i.spec->>'sha512' LIMIT 1)) AS known_sha256,
           i.operation_id IS NOT NULL AS is_held, i.domain_epoch, i.epoch,
           COALESCE(i.spec->>'source_lost', 'pause') AS source_lost,
           EXTRACT(EPOCH FROM clock_timestamp() - d.created_at)::float AS age_s,
           d.facts->'condemned' AS condemned, i.fault->>'code' AS fault
      FROM disks d JOIN instances i ON i.id = d.instance_id
     WHERE d.remote_url IS NOT NULL
"""


def list_remote_disks(session: Session, host: str) -> list[RemoteDisk]:
    """Return the disks of a host's guests that are to be hydrated."""
    rows = session.execute(
        text(
            _SELECT + " AND i.host = :host AND i.state IN ('active', 'paused', 'stopped')"
            " ORDER BY d.created_at"
        ),
        {"host": host},
    )
    return [_disk(row) for row in rows]


def find_remote_disk(session: Session, instance_id: UUID) -> RemoteDisk | None:
    """Return a guest's disk that still reads from its source; None when none does."""
    row = session.execute(text(_SELECT + " AND i.id = :id"), {"id": instance_id}).one_or_none()
    return None if row is None else _disk(row)


def list_hosts_with_remote_disks(session: Session) -> list[str]:
    """Return the hosts that have something to hydrate."""
    rows = session.execute(
        text(
            "SELECT DISTINCT i.host FROM disks d JOIN instances i ON i.id = d.instance_id "
            "WHERE d.remote_url IS NOT NULL AND i.host IS NOT NULL "
            "AND i.state IN ('active', 'paused', 'stopped')"
        )
    )
    return [row.host for row in rows]


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """An image that guests of a host read from its source, and its promised digest."""

    host: str
    pool: str
    url: str
    sha256: str | None
    sha512: str | None

    def to_params(self) -> dict[str, Any]:
        """Return the statements' parameters."""
        return asdict(self)


def is_still_needed(session: Session, wanted: Wanted) -> bool:
    """Tell whether any living guest of a pool still reads an image from its source."""
    return bool(
        session.execute(
            text(
                "SELECT EXISTS (SELECT 1 FROM disks d JOIN instances i ON i.id = d.instance_id "
                "WHERE i.host = :host AND i.pool = :pool AND d.remote_url = :url "
                "AND i.spec->>'sha256' IS NOT DISTINCT FROM CAST(:sha256 AS text) "
                "AND i.spec->>'sha512' IS NOT DISTINCT FROM CAST(:sha512 AS text) "
                "AND i.state NOT IN ('deleted', 'error'))"
            ),
            wanted.to_params(),
        ).scalar_one()
    )


def condemn(session: Session, wanted: Wanted, error: dict[str, Any]) -> list[UUID]:
    """Write that a source's bytes are not the image that was promised to these guests."""
    rows = session.execute(
        text(
            """
            UPDATE disks d SET facts = d.facts || jsonb_build_object('condemned', e.error),
                   updated_at = clock_timestamp()
              FROM instances i, (SELECT CAST(:error AS jsonb) AS error) e
             WHERE i.id = d.instance_id AND i.state <> 'deleted'
               AND i.host = :host AND i.pool = :pool AND d.remote_url = :url
               AND i.spec->>'sha256' IS NOT DISTINCT FROM CAST(:sha256 AS text)
               AND i.spec->>'sha512' IS NOT DISTINCT FROM CAST(:sha512 AS text)
            RETURNING d.instance_id
            """
        ),
        {**wanted.to_params(), "error": json.dumps(error)},
    )
    return [row.instance_id for row in rows]


def lease_base(session: Session, instance_id: UUID, sha256: str) -> None:
    """Write that a disk is about to stand on a cached image, which is kept from now on."""
    session.execute(
        text(
            "UPDATE disks SET backing_sha256 = :digest, updated_at = clock_timestamp() "
            "WHERE instance_id = :id AND remote_url IS NOT NULL"
        ),
        {"digest": sha256, "id": instance_id},
    )


def mark_hydrated(session: Session, instance_id: UUID, *, file: str) -> None:
    """Write that a disk reads from its source no more; a second time changes nothing."""
    session.execute(
        text(
            "UPDATE disks SET remote_url = NULL, file = :file, hydrated_at = clock_timestamp(), "
            "updated_at = clock_timestamp() "
            "WHERE instance_id = :id AND remote_url IS NOT NULL"
        ),
        {"file": file, "id": instance_id},
    )


def find_prefetch(session: Session, wanted: Wanted) -> dict[str, Any] | None:
    """Return the progress of the operation that brings an image meanwhile; None for none."""
    row = session.execute(
        text(
            "SELECT progress FROM operations WHERE kind = 'prefetch' AND dst_host = :host "
            "AND state IN ('queued', 'running', 'undoing') "
            "AND params->>'url' = :url AND params->>'pool' = :pool "
            "AND params->>'sha256' IS NOT DISTINCT FROM CAST(:sha256 AS text) "
            "AND params->>'sha512' IS NOT DISTINCT FROM CAST(:sha512 AS text) LIMIT 1"
        ),
        wanted.to_params(),
    ).one_or_none()
    return None if row is None else dict(row.progress)


def _disk(row: Any) -> RemoteDisk:
    fields = dict(row._mapping)
    return RemoteDisk(**{**fields, "state": InstanceState(fields["state"])})
