"""One live migration, as libvirt does it: a thread with its own connection inside migrateToURI3.

The source's libvirtd owns the job: it goes on when this process dies. An error of the call does
not say where the guest is; whoever reads ``MigrationJob.error`` looks at both hosts before acting.
"""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import libvirt
import structlog

from innkeeper.errors import InnkeeperError, OutcomeUnknown
from virt.connection import Connection, fault_of
from virt.errors import translate_migration
from virt.guest import lookup
from virt.views import JobStats, job_stats
from virt.watch import EventHub, GuestWatch

log = structlog.get_logger(__name__)

STATS_GRACE_S = 1.0


@dataclass(frozen=True, kw_only=True)
class MigrationRequest:
    """How libvirt shall migrate a guest.

    Args:
        dst_uri: the destination's libvirtd as the source's libvirtd reaches it:
            "qemu+tcp://host/system".
        migrate_uri: where the memory goes: "tcp://address"; None for the destination's host name.
        dst_xml: the running guest's XML on the destination.
        persistent_xml: its definition there; without one libvirt stores the source's.
        migrate_disks: guest devices to copy; empty when all are shared.
        is_incremental: copy only the top layer; the destination has the same backing files and an
            overlay made before.
        is_paused_arrival: the guest arrives paused, and we resume it: libvirt itself may
            otherwise run it on both hosts when its last reply is lost.
        bandwidth_mib_s: cap; 0 for none.
        auto_converge: QEMU may throttle the guest until the migration ends.
        is_unsafe: the caller knows the disks to be shared, where libvirt does not.
        max_downtime_ms: the pause QEMU may plan for; None for QEMU's own (300 ms).
        disks_uri: where disks go; None to choose as for the memory.
        listen_address: where the destination's QEMU listens; None for what its qemu.conf says.
        tls_name: QEMU's TLS for memory and disks, with a destination whose certificate bears this
            name or address; None for plaintext.
        post_copy: the guest may be started on the destination before all its memory is there;
            excludes a paused arrival.
        is_resumed_post_copy: a post-copy that broke off is taken up again, on a new connection.
        parallel_connections: TCP connections that carry the memory side by side.
    """

    dst_uri: str
    migrate_uri: str | None = None
    dst_xml: str
    persistent_xml: str
    migrate_disks: tuple[str, ...] = ()
    is_incremental: bool = True
    is_paused_arrival: bool = True
    bandwidth_mib_s: int = 0
    auto_converge: bool = False
    is_unsafe: bool = False
    max_downtime_ms: int | None = None
    disks_uri: str | None = None
    listen_address: str | None = None
    tls_name: str | None = None
    post_copy: bool = False
    is_resumed_post_copy: bool = False
    parallel_connections: int = 1


def migration_flags(request: MigrationRequest) -> int:
    """Return libvirt's flags for a request."""
    flags = (
        libvirt.VIR_MIGRATE_LIVE
        | libvirt.VIR_MIGRATE_PEER2PEER
        | libvirt.VIR_MIGRATE_PERSIST_DEST
        | libvirt.VIR_MIGRATE_UNDEFINE_SOURCE
        | libvirt.VIR_MIGRATE_ABORT_ON_ERROR
    )
    if request.migrate_disks:
        # Without a list libvirt would copy every writable disk, shared ones onto themselves.
        flags |= (
            libvirt.VIR_MIGRATE_NON_SHARED_INC
            if request.is_incremental
            else libvirt.VIR_MIGRATE_NON_SHARED_DISK
        )
    if request.is_paused_arrival:
        flags |= libvirt.VIR_MIGRATE_PAUSED
    if request.auto_converge:
        flags |= libvirt.VIR_MIGRATE_AUTO_CONVERGE
    if request.is_unsafe:
        flags |= libvirt.VIR_MIGRATE_UNSAFE
    if request.tls_name is not None:
        flags |= libvirt.VIR_MIGRATE_TLS
    if request.post_copy:
        flags |= libvirt.VIR_MIGRATE_POSTCOPY
    if request.is_resumed_post_copy:
        flags |= libvirt.VIR_MIGRATE_POSTCOPY_RESUME
    if request.parallel_connections > 1:
        flags |= libvirt.VIR_MIGRATE_PARALLEL
    return int(flags)


def migration_params(request: MigrationRequest) -> dict[str, Any]:
    """Return libvirt's typed parameters for a request."""
    params: dict[str, Any] = {
        libvirt.VIR_MIGRATE_PARAM_DEST_XML: request.dst_xml,
        libvirt.VIR_MIGRATE_PARAM_PERSIST_XML: request.persistent_xml,
    }
    if request.migrate_uri:
        params[libvirt.VIR_MIGRATE_PARAM_URI] = request.migrate_uri
    if request.migrate_disks:
        params[libvirt.VIR_MIGRATE_PARAM_MIGRATE_DISKS] = list(request.migrate_disks)
    if request.disks_uri and request.migrate_disks:
        params[libvirt.VIR_MIGRATE_PARAM_DISKS_URI] = request.disks_uri
    if request.listen_address:
        params[libvirt.VIR_MIGRATE_PARAM_LISTEN_ADDRESS] = request.listen_address
    if request.tls_name is not None:
        params[libvirt.VIR_MIGRATE_PARAM_TLS_DESTINATION] = request.tls_name
    if request.bandwidth_mib_s:
        params[libvirt.VIR_MIGRATE_PARAM_BANDWIDTH] = request.bandwidth_mib_s
    # QEMU remembers the broken job's cap; only a resumed one may say that there is none.
    if request.is_resumed_post_copy or (request.post_copy and request.bandwidth_mib_s):
        params[libvirt.VIR_MIGRATE_PARAM_BANDWIDTH_POSTCOPY] = request.bandwidth_mib_s
    if request.parallel_connections > 1:
        params[libvirt.VIR_MIGRATE_PARAM_PARALLEL_CONNECTIONS] = request.parallel_connections
    return params


class MigrationJob:
    """A migration this process started.

    Attributes:
        wake: set with every event of the guest and at the end; clear it before looking.
    """

    def __init__(
        self,
        instance_id: UUID,
        request: MigrationRequest,
        *,
        host: str,
        hub: EventHub,
        open_connection: Callable[[], Connection],
    ) -> None:
        self.instance_id = instance_id
        self.request = request
        self.wake = threading.Event()
        self._host = host
        self._open = open_connection
        self._finished = threading.Event()
        self._error: InnkeeperError | None = None
        self._stats: JobStats | None = None
        self._stopped_at_s: float | None = None
        self._watch: GuestWatch = hub.watch(instance_id, self.wake)
        self._connection: Connection | None = None
        threading.Thread(target=self._run, name=f"migrate-{instance_id}", daemon=True).start()

    def wait(self, timeout_s: float) -> bool:
        """Wait at most ``timeout_s`` seconds for the end; return whether it has come."""
        return self._finished.wait(timeout_s)

    @property
    def is_finished(self) -> bool:
        """True when libvirt's call has returned."""
        return self._finished.is_set()

    @property
    def error(self) -> InnkeeperError | None:
        """What the call ended with; None for success, and while it runs."""
        return self._error

    @property
    def completed_stats(self) -> JobStats | None:
        """The source's final figures; None when its event did not come."""
        return self._stats

    @property
    def stopped_at_s(self) -> float | None:
        """Since when the guest stands still, by the monotonic clock; None when it was not heard."""
        return self._stopped_at_s

    def abandon(self) -> None:
        """Stop waiting inside libvirt: the call ends at once, the migration itself goes on."""
        if self._connection is not None:
            self._connection.cut()

    def _run(self) -> None:
        try:
            self._migrate()
        except InnkeeperError as error:
            self._error = error
        except Exception as error:
            log.exception("a migration's thread failed", instance_id=str(self.instance_id))
            self._error = OutcomeUnknown(
                f"The migration's thread on {self._host} failed: {error}",
                {"host": self._host, "instance_id": str(self.instance_id)},
            )
        finally:
            self._finish()

    def _finish(self) -> None:
        self._watch.close()
        self._finished.set()
        self.wake.set()

    def _migrate(self) -> None:
        connection = self._connection = self._open()
        try:
            self._call(connection.handle)
        except libvirt.libvirtError as error:
            self._error = translate_migration(
                fault_of(error), host=self._host, instance_id=self.instance_id
            )
            # Its frames would keep the domain object, and so the connection, open.
            self._error.__cause__ = error.with_traceback(None)
        finally:
            self._collect_stats()
            self._finish()
            connection.close()

    def _call(self, handle: Any) -> None:
        domain = lookup(handle, self.instance_id)
        if self.request.max_downtime_ms is not None and not self.request.is_resumed_post_copy:
            domain.migrateSetMaxDowntime(self.request.max_downtime_ms, 0)
        domain.migrateToURI3(
            self.request.dst_uri, migration_params(self.request), migration_flags(self.request)
        )

    def _collect_stats(self) -> None:
        # The event travels on another connection than the call's end, a moment before or after.
        end = time.monotonic() + (STATS_GRACE_S if self._error is None else 0)
        while (event := self._watch.wait(end - time.monotonic())) is not None:
            if event.kind == "suspended" and self._stopped_at_s is None:
                self._stopped_at_s = event.monotonic_s
            elif event.kind == "resumed":
                self._stopped_at_s = None
            if event.kind == "job_completed":
                self._stats = job_stats(event.params)
                return
