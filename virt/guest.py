"""One domain: every call libvirt has for it, with all flags in one place.

Each function gets libvirt's connection object and is run through ``Connection.call``, which bounds
it and translates libvirtError. Domains are looked up by UUID each time: a domain object stays
valid after its domain is gone, and names may be reused.
"""

import json
import time
from collections.abc import Mapping
from typing import Any
from uuid import UUID

import libvirt
import libvirt_qemu

from virt.domain_xml import METADATA_URI, metadata_of
from virt.views import (
    CpuComparison,
    DomainView,
    JobStats,
    job_stats,
    power_state,
)

AGENT_REPLY_MAX_CHARS = 1 << 20
DIRTY_RATE_GRACE_S = 2.0
DIRTY_RATE_LOOK_S = 0.05

_UNDEFINE_ALL = (
    libvirt.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE
    | libvirt.VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA
    | libvirt.VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA
    # The guest's UEFI variables lie among its own files and go with them, or stay with them: on
    # shared storage they belong to the guest that runs elsewhere.
    | libvirt.VIR_DOMAIN_UNDEFINE_KEEP_NVRAM
)
_RUNS = (libvirt.VIR_DOMAIN_RUNNING, libvirt.VIR_DOMAIN_BLOCKED)


def lookup(conn: Any, instance_id: UUID) -> Any:
    """Return libvirt's domain object."""
    return conn.lookupByUUID(instance_id.bytes)


def find_view(conn: Any, instance_id: UUID) -> DomainView | None:
    """Return the domain as it is now; None when the host has none."""
    try:
        domain = lookup(conn, instance_id)
        state, reason = domain.state()
        return _view(domain, state, reason, bool(domain.isPersistent()), _has_job(domain))
    except libvirt.libvirtError as error:
        if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
            return None
        raise


def list_views(conn: Any) -> list[DomainView]:
    """Return all domains from one snapshot that waits for no domain's job."""
    persistent = {
        domain.UUID() for domain in conn.listAllDomains(libvirt.VIR_CONNECT_LIST_DOMAINS_PERSISTENT)
    }
    rows = conn.getAllDomainStats(
        libvirt.VIR_DOMAIN_STATS_STATE, libvirt.VIR_CONNECT_GET_ALL_DOMAINS_STATS_NOWAIT
    )
    views = []
    for domain, stats in rows:
        state, reason = stats.get("state.state", 0), stats.get("state.reason", 0)
        try:
            views.append(_view(domain, state, reason, domain.UUID() in persistent, None))
        except libvirt.libvirtError as error:
            # Only a domain that went meanwhile may be missing: a list cut short by a lost
            # connection would read as guests that are gone.
            if error.get_error_code() != libvirt.VIR_ERR_NO_DOMAIN:
                raise
    return views


def _view(
    domain: Any, state: int, reason: int, is_persistent: bool, has_job: bool | None
) -> DomainView:
    epoch, operation_id = _metadata(domain) or (None, None)
    return DomainView(
        instance_id=UUID(bytes=domain.UUID()),
        name=domain.name(),
        state=state,
        reason=reason,
        power_state=power_state(state, reason),
        is_persistent=is_persistent,
        epoch=epoch,
        operation_id=operation_id,
        has_job=has_job,
    )


def _metadata(domain: Any) -> tuple[int, UUID] | None:
    try:
        return metadata_of(domain.metadata(libvirt.VIR_DOMAIN_METADATA_ELEMENT, METADATA_URI))
    except libvirt.libvirtError as error:
        if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN_METADATA:
            return None
        raise


def _has_job(domain: Any) -> bool:
    try:
        return bool(domain.jobInfo()[0] != libvirt.VIR_DOMAIN_JOB_NONE)
    except libvirt.libvirtError as error:
        # An incoming migration has a job whose figures only the source knows.
        if error.get_error_code() == libvirt.VIR_ERR_OPERATION_UNSUPPORTED:
            return True
        if error.get_error_code() == libvirt.VIR_ERR_OPERATION_INVALID:
            return False
        raise


def define(conn: Any, xml: str, *, validate: bool) -> None:
    """Define a persistent domain; ``validate`` checks the XML against libvirt's schema first."""
    conn.defineXMLFlags(xml, libvirt.VIR_DOMAIN_DEFINE_VALIDATE if validate else 0)


def ensure_started(conn: Any, instance_id: UUID, *, paused: bool) -> None:
    """Start a domain unless it is active; an active one is left as it is."""
    domain = lookup(conn, instance_id)
    try:
        domain.createWithFlags(libvirt.VIR_DOMAIN_START_PAUSED if paused else 0)
    except libvirt.libvirtError as error:
        if error.get_error_code() != libvirt.VIR_ERR_OPERATION_INVALID or not domain.isActive():
            raise


def ensure_resumed(conn: Any, instance_id: UUID) -> None:
    """Let a paused domain run; a running one is fine."""
    domain = lookup(conn, instance_id)
    try:
        domain.resume()
    except libvirt.libvirtError:
        if domain.state()[0] not in _RUNS:
            raise


def ensure_suspended(conn: Any, instance_id: UUID) -> None:
    """Pause a running domain; a paused one is fine."""
    domain = lookup(conn, instance_id)
    try:
        domain.suspend()
    except libvirt.libvirtError:
        if domain.state()[0] != libvirt.VIR_DOMAIN_PAUSED:
            raise


def shutdown(conn: Any, instance_id: UUID) -> None:
    """Press the power button."""
    # The agent's way would block for a guest whose agent hangs.
    lookup(conn, instance_id).shutdownFlags(libvirt.VIR_DOMAIN_SHUTDOWN_ACPI_POWER_BTN)


def reboot(conn: Any, instance_id: UUID) -> None:
    """Press the power button with a restart planned."""
    lookup(conn, instance_id).reboot(libvirt.VIR_DOMAIN_REBOOT_ACPI_POWER_BTN)


def reset(conn: Any, instance_id: UUID) -> None:
    """Press the reset button."""
    lookup(conn, instance_id).reset()


def ensure_destroyed(conn: Any, instance_id: UUID) -> None:
    """End a domain's process; a domain that is off or unknown is fine."""
    try:
        lookup(conn, instance_id).destroy()
    except libvirt.libvirtError as error:
        if error.get_error_code() not in (
            libvirt.VIR_ERR_NO_DOMAIN,
            libvirt.VIR_ERR_OPERATION_INVALID,
        ):
            raise


def ensure_undefined(conn: Any, instance_id: UUID) -> None:
    """Remove a domain's definition and what libvirt keeps with it; an unknown one is fine."""
    try:
        domain = lookup(conn, instance_id)
        if domain.isPersistent():
            domain.undefineFlags(_UNDEFINE_ALL)
    except libvirt.libvirtError as error:
        if error.get_error_code() != libvirt.VIR_ERR_NO_DOMAIN:
            raise


def dump_xml(
    conn: Any, instance_id: UUID, *, migratable: bool, inactive: bool, secure: bool
) -> str:
    """Return a domain's XML."""
    flags = 0
    if migratable:
        flags |= libvirt.VIR_DOMAIN_XML_MIGRATABLE
    if inactive:
        flags |= libvirt.VIR_DOMAIN_XML_INACTIVE
    if secure:
        flags |= libvirt.VIR_DOMAIN_XML_SECURE
    return str(lookup(conn, instance_id).XMLDesc(flags))


def find_filter_of_port(conn: Any, port: str) -> str | None:
    """Return the name of the filter that is bound to a port; None when none is."""
    try:
        return str(conn.nwfilterBindingLookupByPortDev(port).filterName())
    except libvirt.libvirtError as error:
        if error.get_error_code() == libvirt.VIR_ERR_NO_NWFILTER_BINDING:
            return None
        raise


def agent_command(
    conn: Any, instance_id: UUID, command: Mapping[str, Any], timeout_s: int
) -> dict[str, Any]:
    """Return the guest agent's answer, which comes from inside the guest: trust nothing in it."""
    text = libvirt_qemu.qemuAgentCommand(
        lookup(conn, instance_id), json.dumps(command), timeout_s, 0
    )
    answer = json.loads(text) if len(text) <= AGENT_REPLY_MAX_CHARS else {}
    return answer if isinstance(answer, dict) else {}


def find_running_job(conn: Any, instance_id: UUID) -> JobStats | None:
    """Return the figures of the domain's outgoing migration; None when there is none."""
    try:
        stats = lookup(conn, instance_id).jobStats()
    except libvirt.libvirtError as error:
        if error.get_error_code() in (
            libvirt.VIR_ERR_NO_DOMAIN,
            libvirt.VIR_ERR_OPERATION_INVALID,
            libvirt.VIR_ERR_OPERATION_UNSUPPORTED,
        ):
            return None
        raise
    job = job_stats(stats)
    return job if job.kind in ("bounded", "unbounded") else None


def find_completed_job(conn: Any, instance_id: UUID) -> JobStats | None:
    """Return the figures of the domain's last finished job, and leave them for the next reader."""
    flags = libvirt.VIR_DOMAIN_JOB_STATS_COMPLETED | libvirt.VIR_DOMAIN_JOB_STATS_KEEP_COMPLETED
    try:
        stats = lookup(conn, instance_id).jobStats(flags)
    except libvirt.libvirtError as error:
        if error.get_error_code() in (
            libvirt.VIR_ERR_NO_DOMAIN,
            libvirt.VIR_ERR_OPERATION_INVALID,
        ):
            return None
        raise
    job = job_stats(stats)
    return job if job.kind in ("completed", "failed", "cancelled") else None


def measure_dirty_rate(conn: Any, instance_id: UUID, seconds: int) -> int | None:
    """Measure how fast the guest writes its memory, in bytes/s; None when QEMU does not tell.

    QEMU hashes a sample of pages at both ends of the time, so each page counts once. The sample is
    512 pages of each GiB: of a guest of 256 MiB, one page in it stands for 2 MiB. The mode that
    counts every page by a bitmap ends a QEMU 7.2 that runs without KVM.
    """
    domain = lookup(conn, instance_id)
    domain.startDirtyRateCalc(seconds, 0)
    end_s = time.monotonic() + seconds + DIRTY_RATE_GRACE_S
    while time.monotonic() < end_s:
        time.sleep(DIRTY_RATE_LOOK_S)
        stats = conn.domainListGetStats([domain], libvirt.VIR_DOMAIN_STATS_DIRTYRATE)[0][1]
        if stats.get("dirtyrate.calc_status") == libvirt.VIR_DOMAIN_DIRTYRATE_MEASURED:
            return int(stats["dirtyrate.megabytes_per_second"]) << 20
    return None


def abort_job(conn: Any, instance_id: UUID) -> None:
    """Ask for the end of the domain's job; no job is fine."""
    try:
        lookup(conn, instance_id).abortJob()
    except libvirt.libvirtError as error:
        if error.get_error_code() not in (
            libvirt.VIR_ERR_NO_DOMAIN,
            libvirt.VIR_ERR_OPERATION_INVALID,
        ):
            raise


def set_max_downtime(conn: Any, instance_id: UUID, downtime_ms: int) -> None:
    """Set the pause QEMU may plan for at the switch-over."""
    lookup(conn, instance_id).migrateSetMaxDowntime(downtime_ms, 0)


def set_bandwidth(conn: Any, instance_id: UUID, mib_s: int, *, post_copy: bool) -> None:
    """Set the cap of a running migration, before or in its post-copy."""
    flags = libvirt.VIR_DOMAIN_MIGRATE_MAX_SPEED_POSTCOPY if post_copy else 0
    lookup(conn, instance_id).migrateSetMaxSpeed(mib_s, flags)


def start_post_copy(conn: Any, instance_id: UUID) -> None:
    """Let the guest go on at the destination; there is no way back."""
    lookup(conn, instance_id).migrateStartPostCopy(0)


def compare_cpu(
    conn: Any, *, emulator: str | None, arch: str | None, virttype: str, cpu_xml: str
) -> CpuComparison:
    """Compare a guest's CPU with what this host's QEMU can give."""
    try:
        result = conn.compareHypervisorCPU(
            emulator,
            arch,
            None,
            virttype,
            cpu_xml,
            libvirt.VIR_CONNECT_COMPARE_CPU_FAIL_INCOMPATIBLE,
        )
    except libvirt.libvirtError as error:
        if error.get_error_code() != libvirt.VIR_ERR_CPU_INCOMPATIBLE:
            raise
        return CpuComparison(
            is_compatible=False, verdict="incompatible", detail=str(error.get_error_message())
        )
    verdict = {1: "identical", 2: "superset"}.get(result)
    if verdict is None:
        return CpuComparison(is_compatible=False, verdict="incompatible")
    return CpuComparison(is_compatible=True, verdict="identical" if result == 1 else "superset")
