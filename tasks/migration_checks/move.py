"""The move that is judged: a guest, two hosts, a policy, and what the source has told so far."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any
from uuid import UUID

from sqlalchemy import select
from sqlalchemy.orm import Session

from innkeeper.errors import HostUnsuitable
from innkeeper.states import InstanceState, PowerState
from innkeeper.types import MigrationPolicy
from models.host import Host
from models.instance import Instance
from models.session import Database
from tasks.context import HostServices, Pool, StepContext, get_pool
from tasks.guest_pools import get_pools
from tasks.keyring import Keyring
from tasks.migration_storage import StorageLook
from tasks.migration_tls import decide_on_source
from virt.domain_reading import CpuDemand
from virt.hypervisor import Hypervisor
from virt.migration_needs import DiskFiles, MigrationNeeds, SecretNeed, read_needs


@dataclass(frozen=True)
class Move:
    """A guest that may go from one host to another.

    Args:
        database: the records.
        services: the parts of the host that looks now.
        keyring: opens what callers have sealed.
        instance: the guest.
        policy: how it is to go.
        src: where it is.
        dst: where it may go.
        operation_id: who asks.
        state_before: the guest's, before anybody took it.
        epoch: of the operation that holds the guest; None when it is only asked about.
        survey: what the source has told, as survey_guest recorded it; empty before that.
        seen: what the destination has told.
        storage: what the source has found out about each pool; empty on the destination.
    """

    database: Database
    services: HostServices
    keyring: Keyring
    instance: Instance
    policy: MigrationPolicy
    src: str
    dst: str
    operation_id: UUID
    state_before: str
    epoch: int | None
    survey: Mapping[str, Any]
    seen: Mapping[str, Any]
    storage: tuple[StorageLook, ...] = ()

    @property
    def hypervisor(self) -> Hypervisor:
        """Libvirt of the host that looks."""
        return self.services.hypervisor

    @property
    def pool(self) -> Pool:
        """The guest's own pool on the host that looks.

        Raises:
            HostUnsuitable: there is none.
        """
        return get_pool(self.services, self.instance.pool)

    @property
    def pools(self) -> tuple[Pool, ...]:
        """All of the guest's pools on the host that looks, its own first.

        Raises:
            HostUnsuitable: one is missing.
        """
        return get_pools(self.services, self.instance)

    @property
    def expected_power(self) -> PowerState:
        """What the record says that the guest does."""
        is_paused = self.state_before == InstanceState.PAUSED
        return PowerState.PAUSED if is_paused else PowerState.RUNNING

    @cached_property
    def needs(self) -> MigrationNeeds:
        """What the guest needs: the running one's where the source has told, else its record's."""
        told = self.survey.get("needs")
        return _from_wire(told) if told else read_needs(self.instance.domain_xml or "<domain/>")

    @cached_property
    def tls(self) -> tuple[bool, list[dict[str, Any]]]:
        """Whether the migration is encrypted, as the source decides, and what forbids it."""
        return decide_on_source(
            self.services,
            self.policy,
            dst=self.dst,
            address=get_address(self.database, self.dst),
            there=self.seen.get("tls") or {},
        )

    @cached_property
    def hosts(self) -> dict[str, Host]:
        """The rows of the two hosts."""

        def read(session: Session) -> dict[str, Host]:
            rows = session.scalars(select(Host).where(Host.name.in_((self.src, self.dst))))
            return {row.name: row for row in rows}

        return self.database.run(read)


def move_of(context: StepContext) -> Move:
    """Return the move of a migration's step."""
    operation = context.operation
    return Move(
        database=context.database,
        services=context.host,
        keyring=context.keyring,
        instance=context.instance,
        policy=MigrationPolicy.model_validate(operation.params["policy"]),
        src=str(operation.src_host),
        dst=str(operation.dst_host),
        operation_id=operation.id,
        state_before=str(operation.state_before),
        epoch=operation.epoch,
        survey=context.details.get("survey_guest") or {},
        seen=context.details.get("check_destination") or {},
    )


def get_dst_address(context: StepContext) -> str:
    """Get the address under which the destination takes migrations, from its row."""
    return get_address(context.database, str(context.operation.dst_host))


def get_address(database: Database, host: str) -> str:
    """Get the address under which a host takes migrations.

    Raises:
        HostUnsuitable: it has registered none.
    """

    def read(session: Session) -> str | None:
        return session.scalar(select(Host.migration_address).where(Host.name == host))

    address = database.run(read)
    if address is None:
        raise HostUnsuitable(
            f"Host {host} has registered no address for migrations.", {"host": host}
        )
    return address


def _from_wire(told: Mapping[str, Any]) -> MigrationNeeds:
    return MigrationNeeds(
        machine=told["machine"],
        firmware_paths=tuple(told["firmware_paths"]),
        cpu=CpuDemand(**told["cpu"]),
        bridges=tuple(told["bridges"]),
        filters=tuple(told["filters"]),
        secrets=tuple(SecretNeed(**each) for each in told["secrets"]),
        disks=tuple(
            DiskFiles(target=each["target"], paths=tuple(each["paths"])) for each in told["disks"]
        ),
        bound_devices=tuple(told["bound_devices"]),
    )
