"""What a step is given: its operation, its guest, the host's parts, and the outside's wishes."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from uuid import UUID

import structlog

from innkeeper.errors import Cancelled, DeadlineExceeded, HostUnsuitable, LeaseLost
from innkeeper.migration_types import MigrationDefaults
from innkeeper.remote_source import RemoteSource
from models import ledger
from models.image_place import ImagePlace
from models.instance import Instance
from models.ledger import ClaimedStep
from models.operation import Operation
from models.operations import commit_unless_cancelled, write_progress
from models.session import Database
from tasks.crashpoints import crash_point
from tasks.fencing_hook import FencingHook
from tasks.guest_abi import GuestDefaults
from tasks.image_policy import CacheLimits
from tasks.keyring import Keyring
from tasks.leases import HeldLease
from tasks.tls_rule import TlsRule
from virt.hypervisor import Hypervisor
from virt.image_scrub import Scrubber
from virt.images import ImageCache
from virt.rehearsal import Rehearsal
from virt.tls_certificates import CertificatePlaces

PROGRESS_INTERVAL_S = 0.5


@dataclass(frozen=True, slots=True)
class Pool:
    """A storage pool of a host.

    Args:
        name: as guests name it.
        path: directory that holds ``instances/`` and ``images/``.
        shared: whether other hosts see the same directory; a probe proves it at each migration.
        trusted_coherent: the operator vouches that the shared file system keeps caches coherent,
            which libvirt cannot tell for file systems that it does not know.
    """

    name: str
    path: Path
    shared: bool
    trusted_coherent: bool
    images: ImageCache

    def place_on(self, host: str) -> ImagePlace:
        """Which image cache this is, in the records."""
        return ImagePlace(host, self.name, self.shared)

    def instance_dir(self, instance_id: UUID) -> Path:
        """Directory of a guest's files."""
        return self.path / "instances" / str(instance_id)


@dataclass(frozen=True, slots=True)
class RemotePolicy:
    """How this host treats images that guests read from servers.

    Args:
        sources: prefixes of the addresses that guests may boot from; empty for none.
        hydration_mib_s: cap on fetching such an image meanwhile; 0 for none.
        hydration_delay_s: how long a guest has the source for itself before that begins.
    """

    sources: tuple[RemoteSource, ...] = ()
    hydration_mib_s: int = 0
    hydration_delay_s: float = 0.0


@dataclass(frozen=True, slots=True)
class HostServices:
    """The parts of one hypervisor that its steps use.

    Args:
        migration_address: under which other hosts reach this one's libvirt and QEMU.
        listen_address: where QEMU awaits incoming guests; None for what qemu.conf says.
        tls_rule: whether migrations are encrypted.
        certificates: where libvirt's and QEMU's are.
        image_limits: what each pool's image cache may take.
        scrubber: hashes cached images, slowly.
        scrub_interval_s: how often each of them.
        scrub_slice_s: how long at a time.
        rehearsal: listens where QEMU will, for others to try the way.
    """

    name: str
    hypervisor: Hypervisor
    pools: Mapping[str, Pool]
    lock_dir: Path
    console_dir: Path
    migration_address: str
    domain_type: Literal["qemu", "kvm"]
    guest_defaults: GuestDefaults
    listen_address: str | None = None
    tls_rule: TlsRule = TlsRule.ALLOWED
    certificates: CertificatePlaces = field(default_factory=CertificatePlaces)
    remote: RemotePolicy = field(default_factory=RemotePolicy)
    image_limits: CacheLimits = field(default_factory=CacheLimits)
    scrubber: Scrubber = field(default_factory=lambda: Scrubber(0))
    scrub_interval_s: float = 604_800.0
    scrub_slice_s: float = 10.0
    rehearsal: Rehearsal = field(default_factory=Rehearsal)

    def console_path(self, instance_id: UUID) -> Path:
        """Where the guest's serial console is logged."""
        return self.console_dir / f"{instance_id}.log"


@dataclass
class StepContext:
    """One attempt at one step.

    Args:
        force_complete_by: who wants the operation to end now, as of the last progress.
        ring: rings for an operation that the step has written; a bell that is lost is rung again
            by the sweeper.
        fencing_hook: switches hosts off; None where that is done by hand.
        migration_defaults: what this worker's settings say of migrations, for steps that ask for
            some.
    """

    database: Database
    operation: Operation
    step: ClaimedStep
    details: Mapping[str, dict[str, Any]]
    lease: HeldLease
    services: HostServices | None
    _instance: Instance | None
    keyring: Keyring = field(default_factory=Keyring)
    ring: Callable[[UUID], object] = lambda _operation_id: None
    fencing_hook: FencingHook | None = None
    migration_defaults: MigrationDefaults = field(default_factory=MigrationDefaults)
    _written_at: float = field(default=0.0)
    force_complete_by: str | None = None
    log: Any = field(default_factory=lambda: structlog.get_logger("step"))

    @property
    def instance(self) -> Instance:
        """The guest, as its row was when the step was claimed."""
        if self._instance is None:
            raise RuntimeError(f"operation {self.operation.id} has no instance")
        return self._instance

    @property
    def is_owed(self) -> bool:
        """True when the operation has ended without this step, and it is made up for now."""
        return self.operation.state.is_final

    @property
    def host(self) -> HostServices:
        """The host's parts; only steps on a host's queue may ask."""
        if self.services is None:
            raise RuntimeError(f"step {self.step.name} was planned for a host, but runs on control")
        return self.services

    @property
    def pool(self) -> Pool:
        """The pool of the guest's root disk on this host.

        Raises:
            HostUnsuitable: this host has no pool of that name.
        """
        return get_pool(self.host, self.instance.pool)

    def checkpoint(self) -> None:
        """Stop here if the step is lost, cancelled or late; call it in every loop.

        Raises:
            LeaseLost, Cancelled, DeadlineExceeded.
        """
        self.assert_owned()
        if self.step.is_undo or self.operation.is_committed or self.is_owed:
            return
        if self.lease.cancel_requested:
            raise Cancelled(f"The {self.operation.kind} operation was cancelled.")
        if self.lease.is_past_deadline:
            raise DeadlineExceeded(
                f"The {self.operation.kind} operation did not end before its deadline.",
                {"deadline_at": str(self.operation.deadline_at)},
            )

    def assert_owned(self) -> None:
        """Stop here if another worker owns the step now.

        Raises:
            LeaseLost.
        """
        if self.lease.lost.is_set():
            raise LeaseLost(f"The lease of step {self.step.name} was lost.")

    def progress(self, fraction: float, text: str, **figures: Any) -> None:
        """Show how far the step is; cheap to call often.

        Args:
            fraction: 0…1 of this step.
            text: one line for people.
            figures: numbers with their unit in the name.
        """
        now = time.monotonic()
        if now - self._written_at < PROGRESS_INTERVAL_S:
            return
        self._written_at = now
        payload = {
            "step": self.step.name,
            "fraction": round(fraction, 4),
            "text": text,
            "figures": figures,
        }
        wishes = self.database.run_one(
            lambda session: write_progress(session, self.operation.id, payload)
        )
        self.operation.params = wishes.params
        self.force_complete_by = wishes.force_complete_by
        self.lease.tell(
            cancel_requested=wishes.cancel_requested, is_past_deadline=wishes.is_past_deadline
        )
        self.checkpoint()

    def go_through(self) -> None:
        """Pass the point of no return: from here neither a cancel nor the deadline stops the step.

        What is half done and cannot be undone must be finished, also by a later attempt.

        Raises:
            Cancelled: somebody has asked for it before.
            LeaseLost: the step is another worker's.
        """
        if self.operation.is_committed:
            return
        is_cancelled = self.database.run(
            lambda session: commit_unless_cancelled(session, self.step.key)
        )
        if is_cancelled:
            raise Cancelled(f"The {self.operation.kind} operation was cancelled.")
        self.operation.is_committed = True

    def midway(self) -> None:
        """Mark a point in the middle of the step's effect, where tests let the process die."""
        crash_point(name_boundary(self.operation.kind, self.step), "inside")

    def intend(self, **undo: Any) -> None:
        """Write to the ledger what is about to be made, so that undo finds it after any crash."""
        self.database.run_one(lambda session: ledger.record_intent(session, self.step.key, undo))
        self.step.undo.update(undo)

    def note(self, message: str) -> None:
        """Add a line to the step's story."""
        self.log.info("note", text=message)
        self.database.run_one(lambda session: ledger.append_log(session, self.step.key, message))


def name_boundary(kind: str, step: ClaimedStep) -> str:
    """Return where a step stands in the list of crash points: its task's name, shortened."""
    return f"{kind}.{step.name}" + (".undo" if step.is_undo else "")


def get_pool(services: HostServices, name: str) -> Pool:
    """Get a pool of a host.

    Raises:
        HostUnsuitable: the host has none of that name.
    """
    pool = services.pools.get(name)
    if pool is None:
        raise HostUnsuitable(
            f"Host {services.name} has no storage pool {name!r}.",
            {"host": services.name, "pools": sorted(services.pools)},
        )
    return pool
