"""What libvirt tells about a guest by itself, in Innkeeper's words.

Events are hints: they may be lost with the connection and their order is not the logical one
(``create`` tells *resumed* before *started*). Whoever acts on one reads the state again.
The numbers are libvirt's ABI (``virDomainEventType`` and its details).
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal
from uuid import UUID

from innkeeper.states import PowerState

EventKind = Literal[
    "defined",
    "undefined",
    "started",
    "suspended",
    "resumed",
    "stopped",
    "shutdown",
    "pmsuspended",
    "crashed",
    "rebooted",
    "agent_connected",
    "agent_disconnected",
    "job_completed",
    "migration_iteration",
    "block_job",
    "connection_restored",
]

EVENT_LIFECYCLE = 0
EVENT_REBOOT = 1
EVENT_BLOCK_JOB = 16
EVENT_AGENT_LIFECYCLE = 18
EVENT_MIGRATION_ITERATION = 20
EVENT_JOB_COMPLETED = 21

_KINDS: tuple[EventKind, ...] = (
    "defined",
    "undefined",
    "started",
    "suspended",
    "resumed",
    "stopped",
    "shutdown",
    "pmsuspended",
    "crashed",
)

_DETAILS: dict[EventKind, tuple[str, ...]] = {
    "defined": ("added", "updated", "renamed", "from_snapshot"),
    "undefined": ("removed", "renamed"),
    "started": ("booted", "migrated", "restored", "from_snapshot", "wakeup"),
    "suspended": (
        "paused",
        "migrated",
        "io_error",
        "watchdog",
        "restored",
        "from_snapshot",
        "api_error",
        "postcopy",
        "postcopy_failed",
    ),
    "resumed": ("unpaused", "migrated", "from_snapshot", "postcopy", "postcopy_failed"),
    "stopped": (
        "shutdown",
        "destroyed",
        "crashed",
        "migrated",
        "saved",
        "failed",
        "from_snapshot",
    ),
    "shutdown": ("finished", "by_guest", "by_host"),
    "pmsuspended": ("memory", "disk"),
    "crashed": ("panicked", "crashloaded"),
}

_POWER: dict[tuple[EventKind, str], PowerState | None] = {
    # At its switch-over a guest is paused or ended here and lives elsewhere: this host may not say.
    ("suspended", "migrated"): None,
    ("stopped", "migrated"): None,
    ("started", "migrated"): None,
    ("stopped", "crashed"): PowerState.CRASHED,
    # What libvirt tells of a QEMU that ended without a word, a killed one for instance.
    ("stopped", "failed"): PowerState.CRASHED,
}

_POWER_BY_KIND: dict[EventKind, PowerState] = {
    "started": PowerState.RUNNING,
    "resumed": PowerState.RUNNING,
    "suspended": PowerState.PAUSED,
    "stopped": PowerState.SHUTDOWN,
    "pmsuspended": PowerState.SUSPENDED,
    "crashed": PowerState.CRASHED,
}


@dataclass(frozen=True, kw_only=True)
class GuestEvent:
    """Something that happened to a guest on this host.

    Args:
        instance_id: the guest; the nil UUID for ``connection_restored``, which concerns all.
        kind: what happened.
        detail: libvirt's detail in a word, e.g. "guest shut down" is ``stopped``/``shutdown``.
        event_code: libvirt's event number, 0 where there is none.
        detail_code: libvirt's detail number.
        power_state: what this says of the guest's power; None where it does not say.
        params: figures that came with it: job statistics, or ``iteration``.
        name: the domain's name.
        at: wall clock, UTC.
        monotonic_s: the same moment on this process's monotonic clock.
    """

    instance_id: UUID
    kind: EventKind
    detail: str = ""
    event_code: int = 0
    detail_code: int = 0
    power_state: PowerState | None = None
    params: Mapping[str, Any] = field(default_factory=dict)
    name: str = ""
    at: datetime = field(default_factory=lambda: datetime.now(UTC))
    monotonic_s: float = field(default_factory=time.monotonic)

    @property
    def is_end(self) -> bool:
        """True when the guest no longer runs on this host."""
        return self.kind in ("stopped", "crashed")


def lifecycle_event(
    instance_id: UUID, event_code: int, detail_code: int, *, name: str = ""
) -> GuestEvent | None:
    """Return a lifecycle event in our words.

    Args:
        instance_id: the domain's UUID.
        event_code: ``virDomainEventType``.
        detail_code: the detail enumeration of that type.
        name: the domain's name.

    Returns:
        None for an event this release does not know.
    """
    if not 0 <= event_code < len(_KINDS):
        return None
    kind = _KINDS[event_code]
    words = _DETAILS[kind]
    detail = words[detail_code] if 0 <= detail_code < len(words) else f"detail_{detail_code}"
    power = _POWER.get((kind, detail), _POWER_BY_KIND.get(kind))
    return GuestEvent(
        instance_id=instance_id,
        kind=kind,
        detail=detail,
        event_code=event_code,
        detail_code=detail_code,
        power_state=power,
        name=name,
    )


def reboot_event(instance_id: UUID, *, name: str = "") -> GuestEvent:
    """Return the event for a guest that was reset, by itself or from outside; it goes on here."""
    return GuestEvent(instance_id=instance_id, kind="rebooted", name=name)


def agent_event(instance_id: UUID, state: int, reason: int, *, name: str = "") -> GuestEvent:
    """Return the event for a guest agent that came or went (1 connected, 2 disconnected)."""
    reasons = ("unknown", "domain_started", "channel")
    return GuestEvent(
        instance_id=instance_id,
        kind="agent_connected" if state == 1 else "agent_disconnected",
        detail=reasons[reason] if 0 <= reason < len(reasons) else f"reason_{reason}",
        event_code=state,
        detail_code=reason,
        name=name,
    )


def iteration_event(instance_id: UUID, iteration: int, *, name: str = "") -> GuestEvent:
    """Return the event for a migration's next pass over the guest's memory."""
    return GuestEvent(
        instance_id=instance_id,
        kind="migration_iteration",
        detail_code=iteration,
        params={"iteration": iteration},
        name=name,
    )


def job_event(instance_id: UUID, params: Mapping[str, Any], *, name: str = "") -> GuestEvent:
    """Return the event for a finished job with its final figures."""
    return GuestEvent(instance_id=instance_id, kind="job_completed", params=dict(params), name=name)


def block_job_event(
    instance_id: UUID, target: str, kind: int, status: int, *, name: str = ""
) -> GuestEvent:
    """Return the event for a copy of a disk that became ready, or ended."""
    words = ("completed", "failed", "cancelled", "ready")
    return GuestEvent(
        instance_id=instance_id,
        kind="block_job",
        detail=words[status] if 0 <= status < len(words) else f"status_{status}",
        event_code=kind,
        detail_code=status,
        params={"target": target},
        name=name,
    )


def restored_event() -> GuestEvent:
    """Return the event that tells every watcher to look again: events may have been missed."""
    return GuestEvent(instance_id=UUID(int=0), kind="connection_restored")
