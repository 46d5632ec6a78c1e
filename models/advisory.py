"""Postgres' advisory locks: one act at a time, for as long as a transaction lasts."""

from sqlalchemy import text
from sqlalchemy.orm import Session


def key_of(name: str) -> str:
    """Return the SQL of a lock's key; whoever takes a lock in a statement of his own uses it, too.

    Args:
        name: the SQL expression of the lock's name.
    """
    return f"hashtextextended({name}, 0)"


_LOCK = text(f"SELECT pg_advisory_xact_lock({key_of(':name')})")
_TRY_LOCK = text(f"SELECT pg_try_advisory_xact_lock({key_of(':name')})")


def lock(session: Session, name: str) -> None:
    """Take an advisory lock for this transaction, waiting for whoever has it."""
    session.execute(_LOCK, {"name": name})


def try_lock(session: Session, name: str) -> bool:
    """Take an advisory lock for this transaction; False when another has it."""
    return bool(session.execute(_TRY_LOCK, {"name": name}).scalar_one())
