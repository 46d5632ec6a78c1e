"""What a host says of itself, its domains and their jobs: plain values, numbers named."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal
from uuid import UUID

from innkeeper.states import PowerState

STATE_RUNNING, STATE_BLOCKED, STATE_PAUSED = 1, 2, 3
STATE_SHUTDOWN, STATE_SHUTOFF, STATE_CRASHED, STATE_PMSUSPENDED = 4, 5, 6, 7

PAUSED_USER, PAUSED_MIGRATION, PAUSED_STARTING_UP, PAUSED_POSTCOPY_FAILED = 1, 2, 11, 13
PAUSED_IO_ERROR, PAUSED_POSTCOPY = 5, 12
RUNNING_MIGRATED, RUNNING_MIGRATION_CANCELED = 2, 6
RUNNING_POSTCOPY, RUNNING_POSTCOPY_FAILED = 10, 11
SHUTOFF_CRASHED, SHUTOFF_MIGRATED = 3, 4

_POWER = {
    0: PowerState.NOSTATE,
    STATE_RUNNING: PowerState.RUNNING,
    STATE_BLOCKED: PowerState.RUNNING,
    STATE_PAUSED: PowerState.PAUSED,
    # Still executing: a guest may refuse or take minutes to shut down.
    STATE_SHUTDOWN: PowerState.RUNNING,
    STATE_SHUTOFF: PowerState.SHUTDOWN,
    STATE_CRASHED: PowerState.CRASHED,
    STATE_PMSUSPENDED: PowerState.SUSPENDED,
}


def power_state(state: int, reason: int) -> PowerState:
    """Return the power state for libvirt's ``virDomainState`` and its reason."""
    if state == STATE_SHUTOFF and reason == SHUTOFF_CRASHED:
        return PowerState.CRASHED
    return _POWER.get(state, PowerState.NOSTATE)


@dataclass(frozen=True, kw_only=True)
class DomainView:
    """A domain as its host sees it now.

    Args:
        instance_id: the domain's UUID, which is the guest's id.
        name: the domain's name.
        state: ``virDomainState``.
        reason: its reason; tells, for instance, "arrived by migration" from "resumed after one".
        power_state: the state in Innkeeper's words.
        is_persistent: whether its definition outlives its run.
        epoch: from our metadata; None for a domain that is not ours.
        operation_id: the operation that wrote the metadata.
        has_job: whether a job (a migration, a save) runs on it; None when it was not asked.
    """

    instance_id: UUID
    name: str
    state: int
    reason: int
    power_state: PowerState
    is_persistent: bool
    epoch: int | None
    operation_id: UUID | None
    has_job: bool | None = None

    @property
    def is_active(self) -> bool:
        """True while a QEMU process stands behind the domain."""
        return self.state not in (0, STATE_SHUTOFF, STATE_CRASHED)

    @property
    def has_arrived(self) -> bool:
        """True when a migration brought it here whole, and left its start to us.

        Until then libvirt calls its pause a migration's, and forgets the domain when it breaks off.
        """
        return (
            self.state == STATE_PAUSED
            and self.reason == PAUSED_USER
            and self.is_persistent
            and not self.has_job
        )

    @property
    def is_in_post_copy(self) -> bool:
        """True while one half of the guest's memory is here and the other elsewhere.

        Neither half may be ended, and the source's never be resumed.
        """
        if self.state == STATE_PAUSED:
            return self.reason in (PAUSED_POSTCOPY, PAUSED_POSTCOPY_FAILED)
        return self.state == STATE_RUNNING and self.reason in (
            RUNNING_POSTCOPY,
            RUNNING_POSTCOPY_FAILED,
        )

    @property
    def has_broken_post_copy(self) -> bool:
        """True when the connection broke on the way; it can be taken up again."""
        return (self.state, self.reason) in (
            (STATE_PAUSED, PAUSED_POSTCOPY_FAILED),
            (STATE_RUNNING, RUNNING_POSTCOPY_FAILED),
        )

    @property
    def waits_for_disk(self) -> bool:
        """True while QEMU holds the guest because a disk's bytes cannot be had."""
        return self.state == STATE_PAUSED and self.reason == PAUSED_IO_ERROR


@dataclass(frozen=True, kw_only=True)
class MachineFacts:
    """What a host can give a guest of one machine type.

    Args:
        cpu_models: the named CPU models that it can run.
        video_models: the graphics cards.
    """

    cpu_models: tuple[str, ...]
    video_models: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class HostFacts:
    """A hypervisor's own description.

    Args:
        host_uuid: libvirt's host UUID; must differ between hosts, or they refuse to migrate.
        hostname: as libvirt spells it.
        libvirt_version: "9.0.0".
        qemu_version: "7.2.22".
        hypervisor: libvirt's driver, "QEMU".
        arch: "x86_64".
        emulator: path of the QEMU binary libvirt chose.
        domain_types: those offered for the architecture, e.g. ("kvm", "qemu").
        machine_types: alias → versioned name, e.g. {"pc": "pc-i440fx-7.2"}.
        machines: versioned name → most vCPUs, of every machine type that it offers.
        cpu_model: the host CPU's model as libvirt names it.
        vcpus: number of host CPUs.
        memory_mib: memory of the host in MiB.
    """

    host_uuid: UUID
    hostname: str
    libvirt_version: str
    qemu_version: str
    hypervisor: str
    arch: str
    emulator: str
    domain_types: tuple[str, ...]
    machine_types: Mapping[str, str]
    machines: Mapping[str, int]
    cpu_model: str | None
    vcpus: int
    memory_mib: int

    def machine(self, alias: str = "pc") -> str:
        """Return the versioned machine type of an alias; a versioned name is returned as it is."""
        return self.machine_types.get(alias, alias)


@dataclass(frozen=True, kw_only=True)
class CpuComparison:
    """Whether a host can run a guest's CPU.

    Args:
        is_compatible: the answer.
        verdict: libvirt's; ``not_asked`` when the guest's XML demands no particular CPU.
        detail: the missing features, or why nothing was asked.
    """

    is_compatible: bool
    verdict: Literal["identical", "superset", "incompatible", "not_asked"]
    detail: str = ""


JobKind = Literal["none", "bounded", "unbounded", "completed", "failed", "cancelled"]
_JOB_KINDS: tuple[JobKind, ...] = (
    "none",
    "bounded",
    "unbounded",
    "completed",
    "failed",
    "cancelled",
)
Phase = Literal["starting", "disks", "memory", "postcopy", "done"]


@dataclass(frozen=True, kw_only=True)
class JobStats:
    """Figures of a migration, running or finished. Times in ms, sizes in bytes, rates in bytes/s.

    Args:
        kind: libvirt's job type.
        phase: what is being copied.
        time_elapsed_ms: since the job began; for a finished one its whole time.
        downtime_ms: the expected one while it runs, the real one when it is finished.
        memory_dirty_bytes_s: how fast the guest writes its memory.
        memory_iteration: passes over the memory so far.
        throttle_percent: how much of its CPU time the guest loses to auto-converge.
    """

    kind: JobKind
    phase: Phase
    time_elapsed_ms: int = 0
    downtime_ms: int | None = None
    setup_ms: int | None = None
    memory_total_bytes: int = 0
    memory_processed_bytes: int = 0
    memory_remaining_bytes: int = 0
    memory_bytes_s: int = 0
    memory_dirty_bytes_s: int = 0
    memory_iteration: int = 0
    disk_total_bytes: int = 0
    disk_processed_bytes: int = 0
    disk_remaining_bytes: int = 0
    disk_bytes_s: int = 0
    throttle_percent: int = 0

    @property
    def total_ms(self) -> int | None:
        """The whole time of a finished job; None while it runs."""
        return self.time_elapsed_ms if self.kind == "completed" else None

    def to_json(self) -> dict[str, Any]:
        """Return the figures as JSON, ``total_ms`` included."""
        return {**vars(self), "total_ms": self.total_ms}


def job_stats(params: Mapping[str, Any], *, kind: int | None = None) -> JobStats:
    """Return a job's figures from libvirt's typed parameters.

    Args:
        params: of ``virDomainGetJobStats`` or of the job-completed event.
        kind: ``virDomainJobType``; None to take ``type`` from the parameters, 3 for an event's.
    """
    number = int(params.get("type", 3) if kind is None else kind)
    name: JobKind = _JOB_KINDS[number] if 0 <= number < len(_JOB_KINDS) else "none"

    def figure(key: str) -> int:
        return int(params.get(key, 0))

    def maybe(key: str) -> int | None:
        return int(params[key]) if key in params else None

    page_bytes = figure("memory_page_size") or 4096
    return JobStats(
        kind=name,
        phase=_phase(name, params),
        time_elapsed_ms=figure("time_elapsed"),
        downtime_ms=maybe("downtime"),
        setup_ms=maybe("setup_time"),
        memory_total_bytes=figure("memory_total"),
        memory_processed_bytes=figure("memory_processed"),
        memory_remaining_bytes=figure("memory_remaining"),
        memory_bytes_s=figure("memory_bps"),
        memory_dirty_bytes_s=figure("memory_dirty_rate") * page_bytes,
        memory_iteration=figure("memory_iteration"),
        disk_total_bytes=figure("disk_total"),
        disk_processed_bytes=figure("disk_processed"),
        disk_remaining_bytes=figure("disk_remaining"),
        disk_bytes_s=figure("disk_bps"),
        throttle_percent=figure("auto_converge_throttle"),
    )


def _phase(kind: JobKind, params: Mapping[str, Any]) -> Phase:
    if kind in ("completed", "failed", "cancelled"):
        return "done"
    if params.get("memory_postcopy_requests"):
        return "postcopy"
    if params.get("memory_total"):
        return "memory"
    # Libvirt copies disks first and shows no memory figures meanwhile.
    return "disks" if params.get("disk_total") else "starting"
