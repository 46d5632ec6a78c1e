"""Registration, heartbeat and switching on and off of hosts."""

from dataclasses import asdict, dataclass
from enum import Enum, auto
from typing import Any
from uuid import UUID

from sqlalchemy import func, select, text, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from innkeeper.errors import FencingError, NotFound, StateConflict
from models.host import Host

_RANK = {"auto": 0, "drain": 1, "operator": 2}


@dataclass(frozen=True, slots=True)
class HostRegistration:
    """What a worker says of its host at start."""

    name: str
    uuid: UUID
    worker_id: str
    boot_id: str
    libvirt_version: str
    qemu_version: str
    hypervisor_type: str
    cpu_model: str
    facts: dict[str, Any]
    migration_address: str
    pools: dict[str, Any]
    vcpus_total: int
    memory_total_mib: int
    disk_total_gib: int
    reserved_vcpus: int
    reserved_memory_mib: int
    reserved_disk_gib: int
    cpu_overcommit: float
    memory_overcommit: float
    disk_overcommit: float
    max_migrations_out: int = 1
    max_migrations_in: int = 2
    max_migrations_per_link: int = 1


def register_host(session: Session, registration: HostRegistration) -> None:
    """Write a host's row at the start of its worker.

    Raises:
        FencingError: the name belongs to another host uuid, or the uuid to another name: a
            renamed host, a copied state directory or the wrong database. Nothing is changed.
    """
    claimants = session.execute(
        select(Host.name, Host.uuid)
        .where((Host.name == registration.name) | (Host.uuid == registration.uuid))
        .with_for_update()
    ).all()
    for name, uuid in claimants:
        if name != registration.name or uuid != registration.uuid:
            raise FencingError(
                f"Host {registration.name} has the identity {registration.uuid}, but the database "
                f"knows {name} as {uuid}.",
                {
                    "host": registration.name,
                    "hint": "Is this the right database, or was the host renamed or its state "
                    "directory copied? Mend the identity file; nothing was touched.",
                },
            )
    values = asdict(registration)
    session.execute(
        insert(Host)
        .values(**values, heartbeat_at=func.clock_timestamp())
        .on_conflict_do_update(
            index_elements=["name"],
            set_={**values, "heartbeat_at": func.clock_timestamp(), "down_since": None},
        )
    )


class Heartbeat(Enum):
    """What a worker learns when it says that it lives.

    ours: it is the host's worker; replaced: another process has registered since; fenced: the
    host was taken for dead, and is not heard until it has cleaned up.
    """

    OURS = auto()
    REPLACED = auto()
    FENCED = auto()


def beat_heart(session: Session, name: str, worker_id: str) -> Heartbeat:
    """Write that the host's worker lives, unless the host was fenced."""
    touched = session.execute(
        update(Host)
        .where(Host.name == name, Host.worker_id == worker_id, Host.fenced_at.is_(None))
        .values(heartbeat_at=func.clock_timestamp(), down_since=None)
        .returning(Host.name)
    ).scalar_one_or_none()
    if touched is not None:
        return Heartbeat.OURS
    is_fenced = session.scalar(
        select(Host.fenced_at.is_not(None)).where(Host.name == name, Host.worker_id == worker_id)
    )
    return Heartbeat.FENCED if is_fenced else Heartbeat.REPLACED


def note_silent_hosts(session: Session, *, up_s: float) -> list[str]:
    """Write since when hosts are down; their next heartbeat lifts that.

    Args:
        session: an open transaction.
        up_s: how old the heartbeat of a host that is up may be.

    Returns:
        The hosts that were not noted before.
    """
    rows = session.execute(
        text(
            "UPDATE hosts SET down_since = clock_timestamp() WHERE down_since IS NULL "
            "AND heartbeat_at <= clock_timestamp() - make_interval(secs => :up_s) RETURNING name"
        ),
        {"up_s": up_s},
    )
    return [row.name for row in rows]


def disable_host(
    session: Session, name: str, *, kind: str, disabled_by: str | None, reason: str
) -> Host:
    """Stop placing guests on a host.

    Args:
        session: an open transaction.
        name: the host.
        kind: ``operator``, ``drain`` or ``auto``; none replaces what stands before it.
        disabled_by: who, for the record.
        reason: why, for the record.

    Raises:
        NotFound: there is no such host.
    """
    host = _get_locked(session, name)
    if host.disabled_kind is None or _RANK[kind] >= _RANK[host.disabled_kind]:
        host.is_enabled = False
        host.disabled_kind, host.disabled_by, host.disabled_reason = kind, disabled_by, reason
    session.flush()
    return host


def enable_host(session: Session, name: str, *, kind: str) -> Host:
    """Allow placing again; only an operator lifts what another kind has disabled.

    Raises:
        NotFound: there is no such host.
        StateConflict: an operator enables a host that was fenced and has not come back clean.
    """
    host = _get_locked(session, name)
    if kind == "operator" and host.fenced_at is not None:
        raise StateConflict(
            f"Host {name} was fenced and has not come back since.",
            {
                "host": name,
                "expected": ["clean"],
                "actual": "fenced",
                "hint": "Start its worker: it removes what was moved away, then enable the host.",
            },
        )
    if kind in ("operator", host.disabled_kind):
        host.is_enabled = True
        host.disabled_kind = host.disabled_by = host.disabled_reason = None
    session.flush()
    return host


def _get_locked(session: Session, name: str) -> Host:
    host = session.get(Host, name, with_for_update=True)
    if host is None:
        raise NotFound(f"There is no host {name!r}.", {"what": "host", "name": name})
    return host


def list_hosts_to_sync(session: Session, *, up_s: float) -> list[str]:
    """Return the hosts whose workers are alive."""
    rows = session.execute(
        text(
            "SELECT name FROM hosts "
            "WHERE heartbeat_at > clock_timestamp() - make_interval(secs => :up_s) ORDER BY name"
        ),
        {"up_s": up_s},
    )
    return [row.name for row in rows]
