"""Which disks a guest has: written when they are made, read by whoever makes them elsewhere."""

from collections.abc import Iterable
from typing import Any
from uuid import UUID

from sqlalchemy import Table, bindparam, delete, insert, select
from sqlalchemy.orm import Session

from models.base import Base
from models.disk import Disk
from models.ledger import Speaker

# These travel with the guest; a config drive is made anew where it goes.
WRITTEN_KINDS = ("root", "ephemeral", "swap", "data")
CONFIG_DRIVE = "config_drive"

_DISKS: Table = Base.metadata.tables["disks"]


def replace_disks(session: Session, instance_id: UUID, rows: Iterable[dict[str, Any]]) -> None:
    """Write which disks a guest has, whatever an earlier attempt has written of them.

    Args:
        session: an open transaction.
        instance_id: the guest.
        rows: columns of models.disk.Disk, without the guest; root, ephemeral, swap, data only.
    """
    # By the table and not by the mapper, which has no part in it and takes its time.
    connection = session.connection()
    connection.execute(
        delete(_DISKS).where(_DISKS.c.instance_id == instance_id, _DISKS.c.kind.in_(WRITTEN_KINDS))
    )
    connection.execute(insert(_DISKS), [{"instance_id": instance_id, **row} for row in rows])


_WRITTEN = (
    select(_DISKS)
    .where(_DISKS.c.instance_id == bindparam("instance_id"), _DISKS.c.kind.in_(WRITTEN_KINDS))
    .order_by(_DISKS.c.kind != "root", _DISKS.c.target)
)


def list_disks(session: Speaker, instance_id: UUID) -> list[Disk]:
    """Return the disks that a guest writes to, the root disk first; for looking at only."""
    rows = session.execute(_WRITTEN, {"instance_id": instance_id})
    return [Disk(**row) for row in rows.mappings()]


def replace_drive(session: Session, instance_id: UUID, row: dict[str, Any]) -> None:
    """Write which config drive a guest has, whatever an earlier attempt has written of it.

    Args:
        session: an open transaction.
        instance_id: the guest.
        row: columns of models.disk.Disk, without the guest and the kind.
    """
    session.execute(delete(Disk).where(Disk.instance_id == instance_id, Disk.kind == CONFIG_DRIVE))
    session.execute(insert(Disk).values(instance_id=instance_id, kind=CONFIG_DRIVE, **row))


def find_drive(session: Session, instance_id: UUID) -> Disk | None:
    """Return the row of a guest's config drive; None when it has none."""
    return session.scalars(
        select(Disk).where(Disk.instance_id == instance_id, Disk.kind == CONFIG_DRIVE)
    ).one_or_none()


def forget_disks(session: Session, instance_id: UUID) -> None:
    """Remove all rows of a guest that is gone: they would lease its images for ever."""
    session.execute(delete(Disk).where(Disk.instance_id == instance_id))
