"""The host of a drain: named, there, and opened again afterwards."""

from typing import Any

from pydantic import TypeAdapter, ValidationError
from sqlalchemy.orm import Session

from innkeeper.errors import Conflict, HostUnsuitable, InvalidRequest, NotFound
from innkeeper.messages import HostName
from models.advisory import lock
from models.claims import list_host_snapshots
from models.drains import find_live_drain
from models.host import Host
from models.hosts import enable_host

_NAME: TypeAdapter[str] = TypeAdapter(HostName)


def get_host_by_name(session: Session, fields: dict[str, Any]) -> Host:
    """Get the host that a request names.

    Raises:
        InvalidRequest: it names none.
        NotFound: there is none of that name.
    """
    try:
        name = _NAME.validate_python(fields.get("host"))
    except ValidationError:
        raise InvalidRequest(
            "The request names no host.",
            {"problems": [{"path": "host", "message": "the name of a host is needed"}]},
        ) from None
    host = session.get(Host, name)
    if host is None:
        raise NotFound(f"There is no host {name!r}.", {"what": "host", "name": name})
    return host


def refuse_silent(session: Session, name: str) -> None:
    """Refuse a host that cannot send its guests away.

    Raises:
        HostUnsuitable: its worker has not been heard of lately.
    """
    host = next(each for each in list_host_snapshots(session) if each.name == name)
    if not host.is_up:
        raise HostUnsuitable(
            f"{name} is down: its worker's heartbeat is old, and only it can send its guests away.",
            {
                "host": name,
                "hint": "Start its worker and libvirtd. If the machine is dead: "
                f"innkeeper evacuate {name}.",
            },
        )


def open_host(session: Session, name: str, *, kind: str) -> Host:
    """Let a host have guests again.

    Args:
        session: an open transaction.
        name: the host.
        kind: whose disabling is lifted: ``operator`` lifts any, ``drain`` a drain's.

    Raises:
        NotFound: there is no such host.
        Conflict: it is being drained.
    """
    lock(session, f"drain:{name}")
    running = find_live_drain(session, name)
    if running is not None:
        raise Conflict(
            f"{name} is being drained.",
            {
                "host": name,
                "operation_id": str(running),
                "hint": f"Wait for the drain, or cancel it first: innkeeper cancel {running}.",
            },
        )
    return enable_host(session, name, kind=kind)
