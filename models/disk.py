"""Disks of guests: what each host that takes the guest makes anew, or finds."""

from datetime import datetime
from typing import Any, Literal
from uuid import UUID

from sqlalchemy import BigInteger, CheckConstraint, ForeignKey, Index, String, text
from sqlalchemy.orm import Mapped, mapped_column

from models.base import Base, Timestamps


class Disk(Timestamps, Base):
    """One disk of a guest.

    ``file`` is a name within the guest's directory in ``pool``, the same on every host; None is the
    guest's own pool, which workers of an earlier release mean. A disk with a ``backing_sha256``
    leases that image in the cache of the guest's host. ``remote_url`` is the source that a disk of
    an instantly booted guest still reads from; None once it does not.

    ``facts`` of every disk: ``content``, ``label``, ``preallocation``, and ``made``, how it came to
    be. Of the root disk of a guest whose kernel the host loads also ``kernel_sha256`` and
    ``ramdisk_sha256``: like ``backing_sha256`` they lease those files, which the catalogue of
    images has with the format ``blob``.
    """

    __tablename__ = "disks"
    __table_args__ = (
        CheckConstraint(
            "kind IN ('root', 'ephemeral', 'swap', 'data', 'config_drive')", name="kind"
        ),
        CheckConstraint("format IN ('qcow2', 'raw')", name="format"),
        CheckConstraint("size_bytes > 0", name="size"),
        CheckConstraint("position(chr(47) IN file) = 0", name="file_is_a_name"),
        Index("ix_disks_remote", "instance_id", postgresql_where=text("remote_url IS NOT NULL")),
    )

    instance_id: Mapped[UUID] = mapped_column(ForeignKey("instances.id"), primary_key=True)
    target: Mapped[str] = mapped_column(primary_key=True)
    kind: Mapped[str]
    file: Mapped[str]
    pool: Mapped[str | None]
    format: Mapped[Literal["qcow2", "raw"]] = mapped_column(String)
    bus: Mapped[Literal["virtio", "scsi", "sata", "ide"]] = mapped_column(String)
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    serial: Mapped[str | None]
    backing_sha256: Mapped[str | None] = mapped_column(ForeignKey("images.sha256"), index=True)
    backing_format: Mapped[Literal["qcow2", "raw"] | None] = mapped_column(String)
    remote_url: Mapped[str | None]
    hydrated_at: Mapped[datetime | None]
    facts: Mapped[dict[str, Any]] = mapped_column(server_default=text("'{}'"))
