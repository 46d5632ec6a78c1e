"""What became of a case."""

from dataclasses import asdict, dataclass, field
from typing import Any

INVARIANTS = "invariants"
"""Label of what the checker of all promises has found between two cases."""


class NotHeld(Exception):
    """A promise was broken, or the point was never reached; the message says what and where."""


@dataclass(frozen=True)
class CaseResult:
    """One case that was run.

    Args:
        case: its id.
        label: the kind of operation.
        moment: which boundary of a step.
        plot: what else was the matter.
        held: whether everything was as promised.
        why: what was not; empty when held.
        kills: processes killed.
        recovery_ms: from the death until the operation had moved on; None when nobody died.
        elapsed_ms: the whole case.
        timeline: the operation's story, when it did not hold.
    """

    case: str
    label: str
    moment: str
    plot: str
    held: bool
    why: str
    kills: int
    recovery_ms: float | None
    elapsed_ms: float
    timeline: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form."""
        return asdict(self)
