"""What a migration's two hosts say, and what follows: one pure table.

From research on libvirt's migration protocol: an error of migrateToURI3 never tells the outcome,
and a lost Finish reply can leave the source running while the destination waits. With a paused
arrival the destination never runs by itself, so the source's own look decides.

    source                      destination           →  what to do
    ────────────────────────────────────────────────────────────────────────────
    gone or shut off            paused (arrived)         commit, then resume the destination
    gone or shut off            running                  commit
    gone or shut off            absent or shut off       the guest died: unknown, look again
    paused by the migration     running                  commit; the source is removed later
    paused by the migration     paused or absent         remove the destination, resume the source
    running                     absent or shut off       rolled back
    running                     paused                   remove the destination; rolled back
    running                     running                  unknown: stop, an operator decides
"""

from dataclasses import dataclass
from enum import StrEnum

from innkeeper.states import PowerState


class Verdict(StrEnum):
    """What follows from the two looks."""

    COMMIT = "commit"
    ROLL_BACK = "roll_back"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Look:
    """One host's domain: its power state (None: no such domain) and whether a job is active."""

    power_state: PowerState | None
    has_job: bool = False

    @property
    def is_off(self) -> bool:
        """True when nothing of the guest executes or could execute on by itself there."""
        return self.power_state in (None, PowerState.SHUTDOWN, PowerState.CRASHED)

    def to_wire(self) -> dict[str, object]:
        """Return the ledger's form."""
        return {"power_state": self.power_state, "has_job": self.has_job}

    @classmethod
    def from_wire(cls, wire: dict[str, object]) -> "Look":
        """Rebuild from the ledger's form."""
        state = wire.get("power_state")
        return cls(None if state is None else PowerState(str(state)), bool(wire.get("has_job")))


def decide(src: Look, dst: Look) -> Verdict:
    """Decide a migration by what both hosts show; no job may be active any more."""
    if src.has_job or dst.has_job:
        return Verdict.UNKNOWN
    if src.is_off:
        return Verdict.UNKNOWN if dst.is_off else Verdict.COMMIT
    if src.power_state == PowerState.PAUSED and dst.power_state == PowerState.RUNNING:
        return Verdict.COMMIT
    if dst.power_state == PowerState.RUNNING:
        return Verdict.UNKNOWN
    return Verdict.ROLL_BACK
