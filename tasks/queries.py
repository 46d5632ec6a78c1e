"""Answers and small commands for services and people; each is one short transaction."""

from collections.abc import Callable
from dataclasses import asdict
from typing import Any
from uuid import UUID

from sqlalchemy.orm import Session

from innkeeper.addresses import show_address
from innkeeper.drain_types import DrainPolicy
from innkeeper.errors import InvalidRequest
from innkeeper.image_types import CachedImageView
from innkeeper.types import parse_request
from models import cached_images, event_feed, hosts, operations, queries, server_groups
from models.queries import find_schema_revision
from tasks.drain_hosts import open_host
from tasks.drain_plan import plan_drain
from tasks.migration_steering import change_migration, force_complete_migration

Answer = dict[str, Any] | list[dict[str, Any]]
MOST_EVENTS = 1000


def parse_operation_id(value: Any) -> UUID:
    """Parse an operation's id.

    Raises:
        InvalidRequest: it is not a UUID.
    """
    try:
        return UUID(str(value))
    except ValueError:
        raise InvalidRequest(
            f"{value!r} is not an operation's id.",
            {"problems": [{"path": "operation_id", "message": "a UUID is needed"}]},
        ) from None


def show_instance(session: Session, *, instance: str) -> Answer:
    """Return one guest.

    Queue: control; a millisecond.
    Idempotency: only reads.
    Undo: none.
    On crash: ask again.
    Retries: none.
    """
    return queries.show_instance(session, instance).model_dump(mode="json")


def list_instances(session: Session) -> Answer:
    """Return the living guests.

    Queue: control; milliseconds.
    Idempotency: only reads.
    Undo: none.
    On crash: ask again.
    Retries: none.
    """
    return [view.model_dump(mode="json") for view in queries.list_instances(session)]


def list_hosts(session: Session) -> Answer:
    """Return the hosts.

    Queue: control; milliseconds.
    Idempotency: only reads.
    Undo: none.
    On crash: ask again.
    Retries: none.
    """
    return [view.model_dump(mode="json") for view in queries.list_hosts(session)]


def list_groups(session: Session) -> Answer:
    """Return the server groups that have members, with where these are.

    Queue: control; milliseconds.
    Idempotency: only reads.
    Undo: none.
    On crash: ask again.
    Retries: none.
    """
    return [view.model_dump(mode="json") for view in server_groups.list_groups(session)]


def show_operation(session: Session, *, operation_id: str) -> Answer:
    """Return one operation with its timeline.

    Queue: control; a millisecond.
    Idempotency: only reads.
    Undo: none.
    On crash: ask again.
    Retries: none.
    """
    return queries.show_operation(session, parse_operation_id(operation_id)).model_dump(mode="json")


def list_operations(
    session: Session, *, active: bool = False, limit: int = 50, instance: str | None = None
) -> Answer:
    """Return operations, newest first.

    Queue: control; milliseconds.
    Idempotency: only reads.
    Undo: none.
    On crash: ask again.
    Retries: none.
    """
    views = queries.list_operations(session, active=active, limit=limit, instance=instance)
    return [view.model_dump(mode="json") for view in views]


def cancel_operation(
    session: Session, *, operation_id: str, requested_by: str | None = None
) -> Answer:
    """Ask an operation to stop; it ends by itself soon after, or was over already.

    Queue: control; a millisecond.
    Idempotency: the wish is a column; wishing twice is wishing once.
    Undo: none.
    On crash: ask again.
    Retries: none.
    """
    operation = operations.request_cancel(
        session, parse_operation_id(operation_id), requested_by=requested_by
    )
    return queries.show_operation(session, operation.id).model_dump(mode="json")


def enable_host(session: Session, *, host: str, requested_by: str | None = None) -> Answer:
    """Allow placing guests on a host again.

    Queue: control; a millisecond.
    Idempotency: enabling twice is enabling once.
    Undo: disable it.
    On crash: ask again.
    Retries: none.
    """
    del requested_by
    open_host(session, host, kind="operator")
    return _host(session, host)


def disable_host(
    session: Session, *, host: str, reason: str = "", requested_by: str | None = None
) -> Answer:
    """Stop placing guests on a host; those on it stay.

    Queue: control; a millisecond.
    Idempotency: the last reason stands.
    Undo: enable it.
    On crash: ask again.
    Retries: none.
    """
    hosts.disable_host(session, host, kind="operator", disabled_by=requested_by, reason=reason)
    return _host(session, host)


def plan_host_drain(session: Session, *, host: str, policy: dict[str, Any] | None = None) -> Answer:
    """Return which guest a drain would move where, and which it could not.

    Queue: control; milliseconds.
    Idempotency: only reads.
    Undo: none.
    On crash: ask again.
    Retries: none.
    """
    asked = parse_request(DrainPolicy, policy or {})
    return plan_drain(session, host, asked).model_dump(mode="json")


def undrain_host(session: Session, *, host: str, requested_by: str | None = None) -> Answer:
    """Allow placing guests on a drained host again; an operator's own disable stays.

    Queue: control; a millisecond.
    Idempotency: opening twice is opening once.
    Undo: drain it.
    On crash: ask again.
    Retries: none.
    """
    del requested_by
    open_host(session, host, kind="drain")
    return _host(session, host)


def list_images(session: Session, *, host: str | None = None) -> Answer:
    """Return the images in the hosts' caches, the last used first.

    Queue: control; milliseconds.
    Idempotency: only reads.
    Undo: none.
    On crash: ask again.
    Retries: none.
    """
    return [
        CachedImageView(**{**asdict(each), "source": show_address(each.source) or None}).model_dump(
            mode="json"
        )
        for each in cached_images.list_everywhere(session, host=host)
    ]


def list_events(
    session: Session, *, after: int | None = None, limit: int = 100, instance: str | None = None
) -> Answer:
    """Return events that are kept, in order, with the first and the last id there are.

    Queue: control; milliseconds.
    Idempotency: only reads.
    Undo: none.
    On crash: ask again.
    Retries: none.
    """
    wanted = max(0, min(int(limit), MOST_EVENTS))
    page = event_feed.read_page(session, after=after, limit=wanted, instance=instance)
    return page.model_dump(mode="json")


def _host(session: Session, name: str) -> Answer:
    session.flush()
    view = next(view for view in queries.list_hosts(session) if view.name == name)
    return view.model_dump(mode="json")


def check_system(session: Session) -> Answer:
    """Return what of Innkeeper is reachable from a control worker.

    Queue: control; milliseconds.
    Idempotency: only reads.
    Undo: none.
    On crash: ask again.
    Retries: none.
    """
    revision = find_schema_revision(session)
    parts: list[dict[str, Any]] = [
        {"part": "postgres", "ok": True, "message": f"schema {revision}", "hint": ""}
    ]
    views = queries.list_hosts(session)
    if not views:
        parts.append(
            {
                "part": "hosts",
                "ok": False,
                "message": "No host has registered.",
                "hint": "Start a host worker: python -m workers host --name NAME.",
            }
        )
    parts.extend(
        {
            "part": f"host {view.name}",
            "ok": view.is_up and view.is_enabled,
            "message": "up"
            if view.is_up and view.is_enabled
            else (view.disabled_reason or "its worker's heartbeat is old"),
            "hint": ""
            if view.is_up and view.is_enabled
            else "Start its worker and libvirtd, or enable the host again.",
        }
        for view in views
    )
    return {"parts": parts}


QUERIES: dict[str, Callable[..., Answer]] = {
    "innkeeper.instance.show": show_instance,
    "innkeeper.instance.list": list_instances,
    "innkeeper.host.list": list_hosts,
    "innkeeper.host.enable": enable_host,
    "innkeeper.host.disable": disable_host,
    "innkeeper.host.plan_drain": plan_host_drain,
    "innkeeper.host.undrain": undrain_host,
    "innkeeper.group.list": list_groups,
    "innkeeper.image.list": list_images,
    "innkeeper.event.list": list_events,
    "innkeeper.migration.set": change_migration,
    "innkeeper.migration.force_complete": force_complete_migration,
    "innkeeper.operation.show": show_operation,
    "innkeeper.operation.list": list_operations,
    "innkeeper.operation.cancel": cancel_operation,
    "innkeeper.system.check": check_system,
}
