"""Proofs that a host is dead, what was taken away from it, and how it is received back.

A host that was fenced is left alone until its own worker says that it is back. That it has said so
is written before it is heard: from then on no guest is taken away from it any more, and what was
taken before is removed there before anything else.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import CheckConstraint, ForeignKey, func, select, text, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Mapped, Session, mapped_column

from innkeeper.errors import HostReturned, NotFound
from models.base import Base, Timestamps
from models.host import Host


class Fencing(Base):
    """One proof that a host is dead; its key is the operation that asked for it."""

    __tablename__ = "fencings"
    __table_args__ = (CheckConstraint("proof IN ('hook', 'override')", name="proof"),)

    operation_id: Mapped[UUID] = mapped_column(ForeignKey("operations.id"), primary_key=True)
    host: Mapped[str] = mapped_column(ForeignKey("hosts.name"), index=True)
    proof: Mapped[str]
    hook: Mapped[str | None]
    output: Mapped[str | None]
    requested_by: Mapped[str | None]
    reason: Mapped[str | None]
    fenced_at: Mapped[datetime]
    returned_at: Mapped[datetime | None]
    cleaned_at: Mapped[datetime | None]


class Evacuation(Timestamps, Base):
    """A guest that was taken away from a fenced host; a copy of it there is stale."""

    __tablename__ = "evacuations"

    operation_id: Mapped[UUID] = mapped_column(ForeignKey("operations.id"), primary_key=True)
    fencing_id: Mapped[UUID] = mapped_column(ForeignKey("fencings.operation_id"), index=True)
    instance_id: Mapped[UUID] = mapped_column(ForeignKey("instances.id"), index=True)
    src_host: Mapped[str] = mapped_column(ForeignKey("hosts.name"), index=True)
    dst_host: Mapped[str] = mapped_column(ForeignKey("hosts.name"))
    domain_epoch: Mapped[int]
    cleaned_at: Mapped[datetime | None]


@dataclass(frozen=True, slots=True)
class Vitals:
    """What the records know of a host's being alive.

    Args:
        address: where other hosts reach it.
        heard_s: seconds since its worker was last heard of; None for never.
        fencing_id: the fencing that holds; None when there is none or the host has come back.
        fenced_s: seconds since that fencing.
        heard_before_s: how long before that fencing the worker was last heard of.
    """

    address: str
    heard_s: float | None
    fencing_id: UUID | None
    fenced_s: float | None
    heard_before_s: float | None


def get_vitals(session: Session, host: str) -> Vitals:
    """Read whether a host was heard of, and whether it is fenced.

    Raises:
        NotFound: there is no such host.
    """
    row = session.execute(
        text(
            """
            SELECT COALESCE(h.migration_address, '') AS address,
                   EXTRACT(EPOCH FROM clock_timestamp() - h.heartbeat_at)::float AS heard_s,
                   f.operation_id,
                   EXTRACT(EPOCH FROM clock_timestamp() - f.fenced_at)::float AS fenced_s,
                   EXTRACT(EPOCH FROM f.fenced_at - h.heartbeat_at)::float AS heard_before_s
              FROM hosts h
              LEFT JOIN LATERAL (SELECT * FROM fencings
                                  WHERE host = h.name AND returned_at IS NULL
                                  ORDER BY fenced_at DESC LIMIT 1) f ON true
             WHERE h.name = :host
            """
        ),
        {"host": host},
    ).one_or_none()
    if row is None:
        raise NotFound(f"There is no host {host!r}.", {"what": "host", "name": host})
    return Vitals(*row)


def record_fencing(
    session: Session,
    *,
    operation_id: UUID,
    host: str,
    proof: str,
    hook: str | None,
    output: str | None,
    requested_by: str | None,
    reason: str | None,
) -> None:
    """Write that a host is dead and how that is known; it takes no guests from now on.

    Args:
        session: an open transaction.
        operation_id: the operation that asked.
        host: the dead one.
        proof: ``hook`` or ``override``.
        hook: the command that switched it off.
        output: the end of what the command said.
        requested_by: who asked.
        reason: why; of an override, the operator's own words.
    """
    row = session.get_one(Host, host, with_for_update=True, populate_existing=True)
    now = func.clock_timestamp()
    session.execute(
        insert(Fencing)
        .values(
            operation_id=operation_id,
            host=host,
            proof=proof,
            hook=hook,
            output=output,
            requested_by=requested_by,
            reason=reason,
            fenced_at=now,
        )
        .on_conflict_do_nothing()
    )
    row.fenced_at = now
    row.is_enabled = False
    row.disabled_kind, row.disabled_by = "operator", requested_by
    row.disabled_reason = f"fenced: {reason}" if reason else "fenced"
    session.flush()


def require_absent(session: Session, fencing_id: UUID, host: str) -> None:
    """Hold the host's row and make sure that it has not come back since it was fenced.

    Raises:
        HostReturned: it has; what is still its own stays its own.
    """
    session.execute(select(Host.name).where(Host.name == host).with_for_update())
    returned_at = session.execute(
        select(Fencing.returned_at).where(Fencing.operation_id == fencing_id)
    ).scalar_one()
    if returned_at is not None:
        raise HostReturned(
            f"Host {host} has come back since it was fenced: its guests that were not moved "
            "before stay there.",
            {"src": host},
        )


def note_return(session: Session, host: str) -> bool:
    """Write that a fenced host's worker is back, before it is heard in anything else.

    Returns:
        Whether it has to clean up before it may act.
    """
    session.execute(select(Host.name).where(Host.name == host).with_for_update())
    session.execute(
        update(Fencing)
        .where(Fencing.host == host, Fencing.returned_at.is_(None))
        .values(returned_at=func.clock_timestamp())
    )
    is_fenced = session.scalar(select(Host.fenced_at.is_not(None)).where(Host.name == host))
    return bool(is_fenced)


@dataclass(frozen=True, slots=True)
class StaleCopy:
    """A domain on a host that has lost its guest by an evacuation."""

    instance_id: UUID
    name: str
    domain_epoch: int
    record_epoch: int
    host: str | None


def list_stale_copies(session: Session, host: str, domains: Mapping[UUID, int]) -> list[StaleCopy]:
    """Return those of a host's domains that an evacuation has proved stale.

    Args:
        session: an open transaction.
        host: the returned host.
        domains: the epoch in each domain's metadata.
    """
    rows = session.execute(
        text(
            """
            SELECT DISTINCT i.id, i.name, i.domain_epoch, i.host
              FROM evacuations e
              JOIN fencings f ON f.operation_id = e.fencing_id
              JOIN instances i ON i.id = e.instance_id
             WHERE e.src_host = :host AND f.cleaned_at IS NULL AND i.id = ANY(CAST(:ids AS uuid[]))
               AND (i.host IS DISTINCT FROM :host OR i.state = 'deleted')
            """
        ),
        {"host": host, "ids": list(domains)},
    )
    return [
        StaleCopy(row.id, row.name, domains[row.id], row.domain_epoch, row.host)
        for row in rows
        if domains[row.id] < row.domain_epoch
    ]


def record_cleaned(session: Session, host: str, instance_id: UUID) -> None:
    """Write that a stale copy is gone."""
    session.execute(
        update(Evacuation)
        .where(
            Evacuation.src_host == host,
            Evacuation.instance_id == instance_id,
            Evacuation.cleaned_at.is_(None),
        )
        .values(cleaned_at=func.clock_timestamp())
    )


def finish_return(session: Session, host: str) -> None:
    """Write that a returned host holds no stale copy; it may act, and takes no guests yet."""
    session.execute(
        update(Fencing)
        .where(Fencing.host == host, Fencing.returned_at.is_not(None), Fencing.cleaned_at.is_(None))
        .values(cleaned_at=func.clock_timestamp())
    )
    session.execute(
        update(Evacuation)
        .where(Evacuation.src_host == host, Evacuation.cleaned_at.is_(None))
        .values(cleaned_at=func.clock_timestamp())
    )
    session.execute(update(Host).where(Host.name == host).values(fenced_at=None))


@dataclass(frozen=True, slots=True)
class Resident:
    """A guest whose record has it on a host; ``pools`` are those of its disks, its own first."""

    instance_id: UUID
    name: str
    state: str
    pools: list[str]
    verb: str | None


def list_residents(session: Session, host: str) -> list[Resident]:
    """Return the guests of a host by name, each with what is being done to it."""
    rows = session.execute(
        text(
            """
            SELECT i.id, i.name, i.state,
                   i.pool::text || ARRAY(SELECT DISTINCT d.pool::text FROM disks d
                                          WHERE d.instance_id = i.id AND d.pool <> i.pool
                                          ORDER BY 1),
                   o.kind
              FROM instances i LEFT JOIN operations o ON o.id = i.operation_id
             WHERE i.host = :host AND i.state <> 'deleted' ORDER BY i.name
            """
        ),
        {"host": host},
    )
    return [Resident(*row) for row in rows]


def list_unexpected(
    session: Session, host: str, domains: Sequence[tuple[UUID, int]]
) -> list[dict[str, Any]]:
    """Return those of a host's domains that no record places there.

    Args:
        session: an open transaction.
        host: the host.
        domains: UUID and epoch of each domain that bears our metadata.
    """
    rows = session.execute(
        text(
            """
            SELECT d.id::text AS instance_id, d.epoch AS domain_epoch, i.name, i.host,
                   i.domain_epoch AS record_epoch
              FROM unnest(CAST(:ids AS uuid[]), CAST(:epochs AS bigint[])) AS d (id, epoch)
              LEFT JOIN instances i ON i.id = d.id
             WHERE i.id IS NULL
                OR (i.operation_id IS NULL
                    AND (i.host IS DISTINCT FROM :host OR i.domain_epoch <> d.epoch))
            """
        ),
        {
            "host": host,
            "ids": [instance_id for instance_id, _ in domains],
            "epochs": [epoch for _, epoch in domains],
        },
    )
    return [dict(row._mapping) for row in rows]
