"""The ports that a migration uses, and whether the way to them is open, tried before it begins."""

from datetime import datetime
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from models.host import Host
from models.ledger import database_now
from tasks.migration_checks.move import Move

# QEMU's memory and disk streams arrive at free ports from here to there.
FIRST_MIGRATION_PORT = 49152
LAST_MIGRATION_PORT = 49215

# The source comes after the other candidates, each of which may take some seconds.
LISTEN_S = 30.0


def rehearse(move: Move) -> dict[str, Any]:
    """Listen at one of QEMU's ports for a while, and tell the source where and since when.

    The highest that is free: libvirt hands them out from below. One at which an incoming QEMU
    listens must not be tried, as it takes whoever comes first for its migration.
    """
    downwards = range(LAST_MIGRATION_PORT, FIRST_MIGRATION_PORT - 1, -1)
    since, worker_id = move.database.run(lambda session: _read_worker(session, move.services.name))
    port = move.services.rehearsal.listen(downwards, for_s=LISTEN_S)
    return {"free_port": port, "listens_since": since.isoformat(), "worker_id": worker_id}


def is_rehearsed(move: Move) -> bool:
    """Return whether the destination's worker must be listening still.

    Not after its time, and not when another process has become that host's worker.
    """
    since = move.seen.get("listens_since")
    if since is None:
        # An earlier release did not listen.
        return False
    now, worker_id = move.database.run(lambda session: _read_worker(session, move.dst))
    age_s = (now - datetime.fromisoformat(since)).total_seconds()
    return age_s < LISTEN_S and worker_id == move.seen.get("worker_id")


def _read_worker(session: Session, host: str) -> tuple[datetime, str | None]:
    worker_id = session.scalar(select(Host.worker_id).where(Host.name == host))
    return database_now(session), worker_id
