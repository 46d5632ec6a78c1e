"""One host's libvirt as the tasks see it; what virt offers for guests is a method here."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar
from uuid import UUID

from innkeeper.errors import (
    AgentUnresponsive,
    DefineRejected,
    DomainNotFound,
    HypervisorBusy,
    HypervisorRefused,
    StartFailed,
    StartInterrupted,
)
from virt import block_copy, guest, migration_blockers
from virt.capabilities import read_facts, read_machine_facts
from virt.domain_reading import GuestPort, shape_of
from virt.domain_reading import list_ports as ports_in_xml
from virt.domain_xml import CpuDemand, cpu_demand
from virt.domain_xml import is_agent_connected as agent_is_in_xml
from virt.events import GuestEvent
from virt.migration import MigrationJob, MigrationRequest
from virt.migration_blockers import Blockers
from virt.migration_needs import SecretNeed
from virt.remote_xml import DiskLook, look_at_disk
from virt.session import Session
from virt.views import CpuComparison, DomainView, HostFacts, JobStats, MachineFacts
from virt.watch import EventHub, GuestWatch

T = TypeVar("T")

WORK_LIMIT_S = 120.0
ALL_CELLS = -1
# Whichever end of QEMU libvirt sees first: no listener behind the monitor's socket, no process to
# put into its cgroup, an end of file. A QEMU that gives up has said why, and it would follow.
_ENDED_WITHOUT_A_WORD = re.compile(
    r"failed to connect to monitor socket\b|monitor socket did not show up\b"
    r"|Unable to (?:read from|write to) monitor\b"
    r"|(?:qemu unexpectedly closed the monitor|process exited while connecting to monitor"
    r"|End of file from qemu monitor|: No such process)$"
)


class Hypervisor:
    """One host's libvirt, shared by all threads of its worker.

    Every method may raise HypervisorUnavailable (the connection is or was lost; the outcome of a
    call under way is unknown), HypervisorBusy (not begun) and HypervisorRefused (for good);
    DomainNotFound where the domain must exist.

    Args:
        uri: libvirt's, e.g. "qemu:///system".
        name: the host's name in Innkeeper.
        domain_type: "qemu" or "kvm"; a device file does not prove that KVM works, so it is said.
        keepalive_interval_s: seconds between probes; dead after interval × (count + 1).
        keepalive_count: probes that may stay unanswered.
        on_event: called with every guest's events, one at a time, in a thread of its own.
        on_connected: called after callbacks are registered, with every (re)connect: take the
            snapshot there and no event is missed. Until it returns, watchers are not told.
        on_lost: called once for each lost connection, with the reason.
    """

    def __init__(
        self,
        uri: str,
        *,
        name: str,
        domain_type: str = "qemu",
        keepalive_interval_s: int = 5,
        keepalive_count: int = 3,
        on_event: Callable[[GuestEvent], None] | None = None,
        on_connected: Callable[[], None] | None = None,
        on_lost: Callable[[str], None] | None = None,
    ) -> None:
        self.name = name
        self.domain_type = domain_type
        self._hub = EventHub(name, on_event)
        self._facts: tuple[int, HostFacts] | None = None
        self._machine_facts: dict[tuple[int, str], MachineFacts] = {}
        self._valid_shapes: set[str] = set()
        self._session = Session(
            uri,
            name=name,
            hub=self._hub,
            keepalive_interval_s=keepalive_interval_s,
            keepalive_count=keepalive_count,
            on_connected=on_connected,
            on_lost=on_lost,
        )

    def start(self) -> None:
        """Connect in the background and stay connected; returns at once.

        Raises:
            InternalError: the process was forked from one that used libvirt.
        """
        self._session.start()

    def close(self) -> None:
        """Give the connections up; bounded in time. Running migrations go on in libvirtd."""
        self._session.close()
        self._hub.close()

    @property
    def is_connected(self) -> bool:
        """True while libvirtd is connected."""
        return self._session.is_connected

    def wait_connected(self, timeout_s: float) -> bool:
        """Wait at most ``timeout_s`` seconds for the connection; return whether it is there."""
        return self._session.wait_connected(timeout_s)

    # Host

    def get_facts(self) -> HostFacts:
        """Return what the host says about itself; asked once per connection."""
        generation = self._session.generation
        if self._facts is None or self._facts[0] != generation:
            facts = self._session.work("read the host's capabilities").call(
                "read the host's capabilities", self._read_facts
            )
            self._facts = (generation, facts)
        return self._facts[1]

    def _read_facts(self, conn: Any) -> HostFacts:
        return read_facts(
            conn.getCapabilities(),
            hostname=conn.getHostname(),
            libvirt_version=conn.getLibVersion(),
            qemu_version=conn.getVersion(),
            hypervisor=conn.getType(),
            node_info=conn.getInfo(),
            memory_kib=int(conn.getMemoryStats(ALL_CELLS)["total"]),
            domain_type=self.domain_type,
        )

    def get_machine_facts(self, machine: str) -> MachineFacts:
        """Return what the host can give a guest of a machine type; asked once per connection.

        Args:
            machine: a versioned machine type that the host offers.
        """
        key = (self._session.generation, machine)
        if key not in self._machine_facts:
            arch = self.get_facts().arch
            self._machine_facts[key] = self._work(
                "read what a machine type can have",
                lambda conn: read_machine_facts(
                    conn.getDomainCapabilities(None, arch, machine, self.domain_type)
                ),
            )
        return self._machine_facts[key]

    def compare_cpu(self, guest_cpu: str | CpuDemand) -> CpuComparison:
        """Ask this host, as a destination, whether it can run a guest's CPU.

        Args:
            guest_cpu: the guest's XML, best its source's migratable one; or what that demands.
        """
        demand = guest_cpu if isinstance(guest_cpu, CpuDemand) else cpu_demand(guest_cpu)
        if demand.cpu_xml is None:
            return CpuComparison(
                is_compatible=True, verdict="not_asked", detail="the guest names no CPU model"
            )
        cpu_xml = demand.cpu_xml
        return self._control(
            "compare a guest's CPU with the host's",
            lambda conn: guest.compare_cpu(
                conn,
                emulator=None,
                arch=demand.arch,
                virttype=demand.domain_type,
                cpu_xml=cpu_xml,
            ),
        )

    def probe_available_mib(self) -> int:
        """Return how much memory the host could give a new guest now, in MiB."""
        return self._control("read the host's free memory", migration_blockers.read_available_mib)

    def has_filter(self, name: str) -> bool:
        """Return whether the host has an nwfilter of that name."""
        return self._control(
            "look for a network filter", lambda conn: migration_blockers.has_filter(conn, name)
        )

    def has_secret(self, need: SecretNeed) -> bool:
        """Return whether libvirt on the host has a secret."""
        return self._control(
            "look for a secret", lambda conn: migration_blockers.has_secret(conn, need)
        )

    # Looking

    def find_uuid_of_name(self, name: str) -> UUID | None:
        """Return the UUID of the domain that has a name; None when the name is free."""
        return self._control(
            "look for a domain's name",
            lambda conn: migration_blockers.find_uuid_of_name(conn, name),
        )

    def find_blockers(self, instance_id: UUID, targets: Sequence[str]) -> Blockers:
        """Return what keeps a running guest on this host.

        Args:
            instance_id: the guest.
            targets: its disks.
        """
        return self._control(
            "look for what keeps the guest here",
            lambda conn: migration_blockers.find_blockers(conn, instance_id, targets),
            instance_id,
        )

    def find_domain(self, instance_id: UUID) -> DomainView | None:
        """Return the guest's domain as it is now; None when the host has none."""
        return self._control(
            "look at the domain", lambda conn: guest.find_view(conn, instance_id), instance_id
        )

    def get_domain(self, instance_id: UUID) -> DomainView:
        """Return the guest's domain as it is now.

        Raises:
            DomainNotFound: the host has none.
        """
        view = self.find_domain(instance_id)
        if view is None:
            raise DomainNotFound(
                f"{self.name} has no domain of the guest {instance_id}.",
                {"host": self.name, "instance_id": str(instance_id)},
            )
        return view

    def list_domains(self) -> list[DomainView]:
        """Return all domains of the host, those without our metadata too (epoch None)."""
        return self._control("list the domains", guest.list_views)

    def dump_xml(
        self,
        instance_id: UUID,
        *,
        migratable: bool = False,
        inactive: bool = False,
        secure: bool | None = None,
    ) -> str:
        """Return the domain's XML.

        Args:
            instance_id: the guest.
            migratable: the form a destination must be given.
            inactive: the definition for the next start rather than the running state.
            secure: with passwords; None for only where a migration needs them.
        """
        return self._control(
            "read the domain's XML",
            lambda conn: guest.dump_xml(
                conn,
                instance_id,
                migratable=migratable,
                inactive=inactive,
                secure=migratable if secure is None else secure,
            ),
            instance_id,
        )

    def watch(self, instance_id: UUID) -> GuestWatch:
        """Return a watch, registered already: an event after this call is not missed."""
        return self._hub.watch(instance_id)

    # Power

    def define(self, xml: str) -> None:
        """Define a domain persistently; defining the same again is fine.

        Libvirt reads its whole schema anew for every validation, which takes longer than all else
        here; XML of a shape that has been found valid before is not validated again.

        Raises:
            DefineRejected: libvirt refused the XML.
        """
        try:
            shape = shape_of(xml)
        except ValueError as error:
            raise DefineRejected(f"The domain's XML is not well-formed: {error}.") from None
        try:
            self._work(
                "define the domain",
                lambda conn: guest.define(conn, xml, validate=shape not in self._valid_shapes),
            )
        except HypervisorRefused as error:
            raise DefineRejected(error.message, error.details) from error
        self._valid_shapes.add(shape)

    def ensure_started(self, instance_id: UUID, *, paused: bool = False) -> None:
        """Start the guest unless it is active already (an active paused one stays paused).

        Args:
            instance_id: the guest.
            paused: start it with its CPUs stopped.

        Raises:
            StartFailed: libvirt or QEMU refused.
            StartInterrupted: QEMU was killed while it started.
        """
        try:
            self._work(
                "start the domain",
                lambda conn: guest.ensure_started(conn, instance_id, paused=paused),
                instance_id,
            )
        except HypervisorRefused as error:
            # A QEMU that gives up says why, and libvirt puts it behind a colon.
            said = str(error.details.get("libvirt_message", ""))
            was_killed = _ENDED_WITHOUT_A_WORD.search(said)
            kind = StartInterrupted if was_killed else StartFailed
            raise kind(error.message, error.details) from error

    def ensure_resumed(self, instance_id: UUID) -> None:
        """Let the guest's CPUs run; running ones are fine."""
        self._control(
            "resume the domain", lambda conn: guest.ensure_resumed(conn, instance_id), instance_id
        )

    def ensure_suspended(self, instance_id: UUID) -> None:
        """Stop the guest's CPUs; stopped ones are fine."""
        self._control(
            "pause the domain", lambda conn: guest.ensure_suspended(conn, instance_id), instance_id
        )

    def shutdown(self, instance_id: UUID) -> None:
        """Press the guest's power button; whether it obeys, its events tell."""
        self._work(
            "shut the guest down", lambda conn: guest.shutdown(conn, instance_id), instance_id
        )

    def reboot(self, instance_id: UUID) -> None:
        """Ask the guest by ACPI to restart; whether it obeys, it shows."""
        self._work("reboot the guest", lambda conn: guest.reboot(conn, instance_id), instance_id)

    def reset(self, instance_id: UUID) -> None:
        """Press the guest's reset button."""
        self._work("reset the guest", lambda conn: guest.reset(conn, instance_id), instance_id)

    def ensure_destroyed(self, instance_id: UUID) -> None:
        """End the guest's QEMU; one that is off, or not there, is fine."""
        self._work(
            "end the domain", lambda conn: guest.ensure_destroyed(conn, instance_id), instance_id
        )

    def ensure_undefined(self, instance_id: UUID) -> None:
        """Remove the domain with its saved state, snapshots' and checkpoints' metadata.

        Its UEFI variables stay: they are among the guest's files. A domain that is not there, or
        is transient, is fine. A running one becomes transient.
        """
        self._work(
            "undefine the domain",
            lambda conn: guest.ensure_undefined(conn, instance_id),
            instance_id,
        )

    # Network

    def list_ports(self, instance_id: UUID) -> tuple[GuestPort, ...]:
        """Return the host's ends of an active guest's network cards."""
        return ports_in_xml(self.dump_xml(instance_id))

    def find_filter_of_port(self, port: str) -> str | None:
        """Return the nwfilter that is in force on a port; None when none is.

        Libvirt keeps a binding only once its rules have been made.
        """
        return self._control(
            "look at a port's filter", lambda conn: guest.find_filter_of_port(conn, port)
        )

    # Disks

    def look_at_disk(self, instance_id: UUID, target: str) -> DiskLook:
        """Return where a guest's disk is: of a running guest now, of another at its next start.

        Raises:
            HypervisorRefused: the domain has no such disk.
        """
        is_active = self.get_domain(instance_id).is_active
        xml = self.dump_xml(instance_id, inactive=not is_active)
        try:
            return look_at_disk(xml, target)
        except ValueError as error:
            raise HypervisorRefused(
                f"The disk of {instance_id} cannot be read from its domain: {error}.",
                {"host": self.name, "instance_id": str(instance_id)},
            ) from None

    def start_disk_copy(
        self, instance_id: UUID, target: str, disk_xml: str, *, bandwidth_bytes_s: int = 0
    ) -> None:
        """Begin to copy the top layer of a running guest's disk.

        Args:
            instance_id: the guest.
            target: the guest's device.
            disk_xml: an existing file over a backing file of its own.
            bandwidth_bytes_s: cap; 0 for none.
        """
        self._work(
            "copy the disk",
            lambda conn: block_copy.start(conn, instance_id, target, disk_xml, bandwidth_bytes_s),
            instance_id,
        )

    def find_disk_copy(self, instance_id: UUID, target: str) -> tuple[int, int] | None:
        """Return (bytes done, bytes in all) of a disk's copy; None when there is none."""
        return self._control(
            "read the copy's figures",
            lambda conn: block_copy.find_progress(conn, instance_id, target),
            instance_id,
        )

    def pivot_disk(self, instance_id: UUID, target: str) -> None:
        """Let a guest go on with the ready copy of its disk."""
        self._work(
            "change over to the copy of the disk",
            lambda conn: block_copy.pivot(conn, instance_id, target),
            instance_id,
        )

    def abort_disk_copy(self, instance_id: UUID, target: str) -> None:
        """End the copying of a disk; no copy is fine."""
        self._work(
            "end the copying of the disk",
            lambda conn: block_copy.abort(conn, instance_id, target),
            instance_id,
        )

    # Guest agent

    def agent_ping(self, instance_id: UUID, *, timeout_s: int = 5) -> bool:
        """Return whether the guest's agent answers within ``timeout_s`` whole seconds."""
        try:
            self.agent_command(instance_id, {"execute": "guest-ping"}, timeout_s=timeout_s)
        except (AgentUnresponsive, HypervisorBusy):
            return False
        return True

    def agent_command(
        self, instance_id: UUID, command: Mapping[str, Any], *, timeout_s: int = 5
    ) -> dict[str, Any]:
        """Run a command of qemu-guest-agent.

        Args:
            instance_id: the guest.
            command: e.g. ``{"execute": "guest-info"}``.
            timeout_s: whole seconds.

        Returns:
            Its answer, which the guest may have made up.

        Raises:
            AgentUnresponsive: no agent, or no answer in time.
        """
        try:
            what = "ask the guest's agent"
            return self._session.agent(what).call(
                what,
                lambda conn: guest.agent_command(conn, instance_id, command, timeout_s),
                instance_id=instance_id,
            )
        except HypervisorRefused as error:
            # No channel, not running, or a reply that is none: for the caller all the same.
            raise AgentUnresponsive(error.message, error.details) from error

    def probe_agent_connected(self, instance_id: UUID) -> bool:
        """Return whether the guest has opened its agent's channel."""
        return agent_is_in_xml(self.dump_xml(instance_id))

    # Migration

    def migrate(self, instance_id: UUID, request: MigrationRequest) -> MigrationJob:
        """Start a migration from this host in a thread and on a connection of its own."""
        return MigrationJob(
            instance_id,
            request,
            host=self.name,
            hub=self._hub,
            open_connection=self._session.open_own,
        )

    def find_migration_job(self, instance_id: UUID) -> JobStats | None:
        """Return the running outgoing migration's figures, whoever started it; None for none."""
        return self._control(
            "read the job's figures",
            lambda conn: guest.find_running_job(conn, instance_id),
            instance_id,
        )

    def get_completed_stats(self, instance_id: UUID) -> JobStats | None:
        """Return the last finished job's figures and keep them; None when this side has none.

        After a migration the destination has them; the source's domain is gone.
        """
        return self._control(
            "read the finished job's figures",
            lambda conn: guest.find_completed_job(conn, instance_id),
            instance_id,
        )

    def measure_dirty_rate(self, instance_id: UUID, seconds: int = 1) -> int | None:
        """Measure how fast the guest writes its memory, in bytes/s; None when nobody can tell.

        Args:
            instance_id: the guest, running.
            seconds: how long to measure, 1…60.
        """
        return self._work(
            "measure the dirty rate",
            lambda conn: guest.measure_dirty_rate(conn, instance_id, seconds),
            instance_id,
        )

    def abort_job(self, instance_id: UUID) -> None:
        """Ask for the end of the guest's migration; no job is fine. It ends a moment later."""
        self._control("abort the job", lambda conn: guest.abort_job(conn, instance_id), instance_id)

    def set_max_downtime(self, instance_id: UUID, downtime_ms: int) -> None:
        """Set the pause QEMU may plan for at the switch-over, in milliseconds."""
        self._control(
            "set the longest downtime",
            lambda conn: guest.set_max_downtime(conn, instance_id, downtime_ms),
            instance_id,
        )

    def set_bandwidth(self, instance_id: UUID, mib_s: int, *, post_copy: bool = False) -> None:
        """Set a running migration's cap in MiB/s; that of its post-copy is another one."""
        self._control(
            "set the migration's bandwidth",
            lambda conn: guest.set_bandwidth(conn, instance_id, mib_s, post_copy=post_copy),
            instance_id,
        )

    def start_post_copy(self, instance_id: UUID) -> None:
        """Let a migrating guest go on at the destination now; its memory follows.

        Only a migration that was begun with ``post_copy`` can. There is no way back.
        """
        self._control(
            "start post-copy", lambda conn: guest.start_post_copy(conn, instance_id), instance_id
        )

    def _control(self, what: str, act: Callable[[Any], T], instance_id: UUID | None = None) -> T:
        return self._session.control(what).call(what, act, instance_id=instance_id)

    def _work(self, what: str, act: Callable[[Any], T], instance_id: UUID | None = None) -> T:
        return self._session.work(what).call(
            what, act, instance_id=instance_id, limit_s=WORK_LIMIT_S
        )


__all__ = ["Hypervisor", "MigrationJob", "MigrationRequest"]
