"""How much slow work a host takes on at once; asked in the transaction of a step's claim."""

from sqlalchemy import text
from sqlalchemy.orm import Session

from models.advisory import lock
from models.operation import Operation

BUILDS_PER_HOST = 8
MIGRATIONS_PER_SRC = 1
MIGRATIONS_PER_DST = 2


def limit_builds(session: Session, operation: Operation) -> str | None:
    """Refuse for now when the host builds as many guests as it should."""
    # «Count, then go on» is one act for all who ask about the same host.
    lock(session, f"builds:{operation.dst_host}")
    building = session.execute(
        text(
            """
            SELECT count(*) FROM operations o
             WHERE o.kind = 'spawn' AND o.state = 'running' AND o.dst_host = :host AND o.id <> :id
               AND EXISTS (SELECT 1 FROM steps s WHERE s.operation_id = o.id
                              AND s.name = 'fetch_image' AND s.state = 'running')
            """
        ),
        {"host": operation.dst_host, "id": operation.id},
    ).scalar_one()
    if building < BUILDS_PER_HOST:
        return None
    return f"{operation.dst_host} fetches for {building} guests already"


def limit_migrations(session: Session, operation: Operation) -> str | None:
    """Refuse for now when the source or the destination is busy with other migrations.

    One at a time leaves a source: a second only slows both down.
    """
    for host in sorted(filter(None, (operation.src_host, operation.dst_host))):
        lock(session, f"migrations:{host}")
    leaving, arriving = session.execute(
        text(
            """
            SELECT count(*) FILTER (WHERE o.src_host = :src),
                   count(*) FILTER (WHERE o.dst_host = :dst)
              FROM operations o JOIN steps s ON s.operation_id = o.id
             WHERE o.kind = 'live_migrate' AND o.state = 'running' AND o.id <> :id
               AND s.name = 'migrate' AND s.state = 'running'
            """
        ),
        {"src": operation.src_host, "dst": operation.dst_host, "id": operation.id},
    ).one()
    if leaving >= MIGRATIONS_PER_SRC:
        return f"{leaving} migration leaving {operation.src_host}"
    if arriving >= MIGRATIONS_PER_DST:
        return f"{arriving} migrations arriving at {operation.dst_host}"
    return None
