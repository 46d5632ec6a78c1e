"""Postgres' advisory locks: one act at a time, for as long as a transaction lasts."""

from sqlalchemy import text
from sqlalchemy.orm import Session

_LOCK = text("SELECT pg_advisory_xact_lock(hashtextextended(:name, 0))")


def lock(session: Session, name: str) -> None:
    """Take an advisory lock for this transaction, waiting for whoever has it."""
    session.execute(_LOCK, {"name": name})


def try_lock(session: Session, name: str) -> bool:
    """Take an advisory lock for this transaction; False when another has it."""
    return bool(
        session.execute(
            text("SELECT pg_try_advisory_xact_lock(hashtextextended(:name, 0))"), {"name": name}
        ).scalar_one()
    )
