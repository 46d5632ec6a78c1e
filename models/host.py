"""Hypervisors, and what of them is spoken for."""

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import CheckConstraint, ForeignKey, UniqueConstraint, text
from sqlalchemy.orm import Mapped, mapped_column

from models.base import Base, Timestamps


class Host(Timestamps, Base):
    """One hypervisor; its worker writes the row at every start and heartbeat."""

    __tablename__ = "hosts"
    __table_args__ = (
        CheckConstraint("disabled_kind IN ('auto', 'operator', 'drain')", name="disabled_kind"),
        CheckConstraint("is_enabled = (disabled_kind IS NULL)", name="enabled_has_no_disabler"),
    )

    name: Mapped[str] = mapped_column(primary_key=True)
    uuid: Mapped[UUID] = mapped_column(unique=True)
    worker_id: Mapped[str | None]
    boot_id: Mapped[str | None]
    libvirt_version: Mapped[str | None]
    qemu_version: Mapped[str | None]
    hypervisor_type: Mapped[str | None]
    cpu_model: Mapped[str | None]
    facts: Mapped[dict[str, Any]] = mapped_column(server_default=text("'{}'"))
    migration_address: Mapped[str | None]
    pools: Mapped[dict[str, Any]] = mapped_column(server_default=text("'{}'"))
    vcpus_total: Mapped[int] = mapped_column(server_default=text("0"))
    memory_total_mib: Mapped[int] = mapped_column(server_default=text("0"))
    disk_total_gib: Mapped[int] = mapped_column(server_default=text("0"))
    reserved_vcpus: Mapped[int] = mapped_column(server_default=text("0"))
    reserved_memory_mib: Mapped[int] = mapped_column(server_default=text("0"))
    reserved_disk_gib: Mapped[int] = mapped_column(server_default=text("0"))
    cpu_overcommit: Mapped[float] = mapped_column(server_default=text("1"))
    memory_overcommit: Mapped[float] = mapped_column(server_default=text("1"))
    disk_overcommit: Mapped[float] = mapped_column(server_default=text("1"))
    max_migrations_out: Mapped[int] = mapped_column(server_default=text("1"))
    max_migrations_in: Mapped[int] = mapped_column(server_default=text("2"))
    max_migrations_per_link: Mapped[int] = mapped_column(server_default=text("1"))
    is_enabled: Mapped[bool] = mapped_column(server_default=text("true"))
    disabled_kind: Mapped[str | None]
    disabled_by: Mapped[str | None]
    disabled_reason: Mapped[str | None]
    heartbeat_at: Mapped[datetime | None]
    down_since: Mapped[datetime | None]
    power_synced_at: Mapped[datetime | None]
    fenced_at: Mapped[datetime | None]


class Claim(Timestamps, Base):
    """CPU, memory and disk of a host that are spoken for by a guest.

    ``pool`` is where ``disk_gib`` is; its default is for workers of a release that did not tell.
    ``elsewhere_gib`` tells by pool what the guest's disks take that are in others.
    """

    __tablename__ = "claims"
    __table_args__ = (
        UniqueConstraint("instance_id", "host"),
        CheckConstraint("vcpus > 0 AND memory_mib > 0 AND disk_gib >= 0", name="positive"),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    host: Mapped[str] = mapped_column(ForeignKey("hosts.name"), index=True)
    instance_id: Mapped[UUID] = mapped_column(ForeignKey("instances.id"), index=True)
    operation_id: Mapped[UUID] = mapped_column(ForeignKey("operations.id"), index=True)
    pool: Mapped[str] = mapped_column(server_default=text("'local'"))
    vcpus: Mapped[int]
    memory_mib: Mapped[int]
    disk_gib: Mapped[int]
    elsewhere_gib: Mapped[dict[str, Any]] = mapped_column(server_default=text("'{}'"))
