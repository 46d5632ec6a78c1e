"""Requests put to the database as the control worker puts them, without any message."""

from typing import Any
from uuid import UUID, uuid4

from sqlalchemy import text
from sqlalchemy.orm import Session

from models.session import Database
from tasks.requests import ACCEPT, Envelope, find_repeated


def ask(database: Database, kind: str, *, key: str | None = None, **fields: Any) -> UUID:
    """Accept one request in its own transaction, and return the operation's id."""
    envelope = Envelope(uuid4(), idempotency_key=key)

    def work(session: Session) -> UUID:
        repeated = find_repeated(session, envelope, kind, fields)
        if repeated is None:
            ACCEPT[kind](session, envelope, fields)
        return repeated or envelope.operation_id

    return database.run(work)


def ask_spawn(database: Database, name: str, *, key: str | None = None, **fields: Any) -> UUID:
    """Ask for a guest of the least demands; fields override them."""
    spec = {"name": name, "image": "/images/vm.qcow2", "disk_gib": 1, **fields}
    return ask(database, "spawn", key=key, spec=spec)


def settle(database: Database) -> None:
    """Let every operation have succeeded: its guest is active, and nobody holds it."""
    with database.transaction() as session:
        session.execute(
            text(
                "UPDATE operations SET state = 'succeeded', finished_at = now() "
                "WHERE finished_at IS NULL"
            )
        )
        session.execute(
            text(
                "UPDATE instances SET operation_id = NULL, state = 'active' "
                "WHERE state = 'building'"
            )
        )


def count_rows(database: Database) -> dict[str, int]:
    """Count the rows of every table that a request can write to."""
    tables = ("instances", "operations", "steps", "claims", "events", "server_groups", "migrations")
    with database.transaction() as session:
        return {
            table: session.execute(text(f"SELECT count(*) FROM {table}")).scalar_one()
            for table in tables
        }


def places(database: Database) -> dict[str, str]:
    """Return where the guests are, by name."""
    with database.transaction() as session:
        rows = session.execute(text("SELECT name, host FROM instances WHERE host IS NOT NULL"))
        return {name: host for name, host in rows}
