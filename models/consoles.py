"""What the records say of guests' serial consoles."""

from collections.abc import Collection
from uuid import UUID

from sqlalchemy import select
from sqlalchemy.orm import Session

from models.instance import Instance


def list_console_limits(session: Session, instance_ids: Collection[UUID]) -> dict[UUID, int | None]:
    """Return how many MiB of its console each guest may keep on its host.

    Args:
        session: a transaction.
        instance_ids: the guests asked for.

    Returns:
        By guest; None where its spec does not say. Guests without a record are left out.
    """
    limit = Instance.spec["hardware"]["console_log_mib"].as_integer()
    rows = session.execute(select(Instance.id, limit).where(Instance.id.in_(instance_ids)))
    return {instance_id: limit_mib for instance_id, limit_mib in rows}
