"""Guests."""

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import CheckConstraint, ForeignKey, Index, text, update
from sqlalchemy.orm import Mapped, Session, mapped_column

from innkeeper.states import BootStage, InstanceState, PowerState
from models.base import Base, Timestamps, enum_by_value
from models.server_group import ServerGroup


class Instance(Timestamps, Base):
    """A guest: what is wanted, where it is, what it does, and who holds it.

    ``epoch`` grows whenever an operation takes the guest and fences that operation's ghosts.
    ``domain_epoch`` is the epoch written into the metadata of the one domain that may run.
    """

    __tablename__ = "instances"
    # Who settles a guest tells how it is now, in the same transaction.
    __mapper_args__ = {"eager_defaults": True}  # noqa: RUF012 (as SQLAlchemy declares it)
    __table_args__ = (
        Index(
            "uq_instances_living_name",
            "name",
            unique=True,
            postgresql_where=text("state <> 'deleted'"),
        ),
        Index("ix_instances_host_state", "host", "state"),
        CheckConstraint("epoch >= 0 AND domain_epoch <= epoch", name="epoch_order"),
        CheckConstraint(
            "state NOT IN ('active', 'paused', 'suspended', 'stopped') OR host IS NOT NULL",
            name="placed_when_real",
        ),
        CheckConstraint("(state = 'deleted') = (deleted_at IS NOT NULL)", name="deleted_at"),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True)
    name: Mapped[str]
    spec: Mapped[dict[str, Any]]
    host: Mapped[str | None] = mapped_column(ForeignKey("hosts.name"))
    state: Mapped[InstanceState] = mapped_column(enum_by_value(InstanceState, "state"))
    power_state: Mapped[PowerState] = mapped_column(
        enum_by_value(PowerState, "power_state"), server_default=PowerState.NOSTATE.value
    )
    power_observed_at: Mapped[datetime | None]
    operation_id: Mapped[UUID | None] = mapped_column(
        ForeignKey("operations.id", use_alter=True), index=True
    )
    epoch: Mapped[int] = mapped_column(server_default=text("0"))
    domain_epoch: Mapped[int] = mapped_column(server_default=text("0"))
    domain_xml: Mapped[str | None]
    domain_xml_sha256: Mapped[str | None]
    guest_abi: Mapped[dict[str, Any]] = mapped_column(server_default=text("'{}'"))
    boot_stage: Mapped[BootStage | None] = mapped_column(enum_by_value(BootStage, "boot_stage"))
    group_name: Mapped[str | None] = mapped_column(ForeignKey(ServerGroup.name), index=True)
    image_sha256: Mapped[str | None] = mapped_column(ForeignKey("images.sha256"))
    pool: Mapped[str]
    vcpus: Mapped[int]
    memory_mib: Mapped[int]
    disk_gib: Mapped[int]
    fault: Mapped[dict[str, Any] | None]
    deleted_at: Mapped[datetime | None]


def write_instance(session: Session, instance_id: UUID, **values: Any) -> None:
    """Write columns of a guest's row; what the session knows of the guest stays as it was."""
    table: Any = Instance.__table__
    session.connection().execute(update(table).where(table.c.id == instance_id).values(**values))
