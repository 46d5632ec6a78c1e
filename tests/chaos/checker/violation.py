"""A broken promise, told so that somebody can act on it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any
from uuid import UUID


@dataclass(frozen=True)
class Violation:
    """A promise that was found broken.

    Args:
        invariant: the promise's stable name.
        what: one line without times, so that two looks at one thing say the same.
        timeline: what the ledger tells of it, one line each.
    """

    invariant: str
    what: str
    timeline: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form."""
        return asdict(self)


@dataclass(frozen=True)
class Finding:
    """What an invariant found, and whose timeline explains it."""

    what: str
    instance_id: UUID | None = None
    operation_id: UUID | None = None


def format_violations(violations: Sequence[Violation]) -> str:
    """Return violations as text for an assertion's message."""
    lines = [f"{len(violations)} violations" if len(violations) != 1 else "1 violation"]
    for violation in violations:
        lines.append(f"* {violation.invariant}: {violation.what}")
        lines += [f"      {line}" for line in violation.timeline]
    return "\n".join(lines)
