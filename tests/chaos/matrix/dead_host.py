"""A host that dies for a case, is evacuated, and returns when the case is over."""

from typing import Any

import psycopg

from tests.chaos.matrix.case_result import NotHeld
from tests.chaos.patience import comes_true
from tests.chaos.stage import Stage

RETURN_S = 60.0

_FALL_SILENT = "UPDATE hosts SET heartbeat_at = heartbeat_at - interval '1 minute' WHERE name = %s"


def list_roles(host: str) -> frozenset[str]:
    """Return the roles that die with a host."""
    return frozenset({f"worker:{host}", f"libvirtd:{host}"})


def let_die(
    stage: Stage, connection: psycopg.Connection[dict[str, Any]], host: str, guest: str
) -> None:
    """Let a host die with its guest: a minute ago, as the records say."""
    for role in (*sorted(list_roles(host), reverse=True), f"qemu:{host}:{guest}"):
        stage.kill(role)
    connection.execute(_FALL_SILENT, (host,))


def await_return(connection: psycopg.Connection[dict[str, Any]], host: str) -> None:
    """Wait until a host whose roles run again has removed what it has lost.

    Raises:
        NotHeld: it does not.
    """

    def is_clean() -> bool:
        row = connection.execute("SELECT fenced_at FROM hosts WHERE name = %s", (host,)).fetchone()
        return row is not None and row["fenced_at"] is None

    if not comes_true(is_clean, RETURN_S):
        raise NotHeld(f"{host} is back for {RETURN_S:g} s and not clean yet")
