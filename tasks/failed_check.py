"""The form of a failed check, as it stands in errors, tables and the ledger."""

from typing import Any

Failure = dict[str, Any]


def failure(check: str, message: str, hint: str) -> Failure:
    """Return one failed check in its wire form."""
    return {"check": check, "code": f"check_{check}", "message": message, "hint": hint}
