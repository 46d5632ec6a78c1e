"""What a migration's two hosts say, and what follows: one pure table.

From research on libvirt's migration protocol: an error of migrateToURI3 never tells the outcome,
and a lost Finish reply can leave the source running while the destination waits. With a paused
arrival the destination never runs by itself, so the source's own look decides.

    source                      destination           →  what to do
    ────────────────────────────────────────────────────────────────────────────
    left                        paused (arrived)         commit, then resume the destination
    left                        running or off           commit
    left                        absent                   unknown, look again
    off, but did not leave      running                  commit; the source is removed later
    off, but did not leave      paused, arrived whole    commit, then resume the destination
    off, but did not leave      paused, on its way       unknown, look again
    off, but did not leave      absent or off            rolled back: it died on the source
    paused by the migration     running                  commit; the source is removed later
    paused by the migration     paused, absent or off    remove the destination, resume the source
    running                     paused, absent or off    remove the destination; rolled back
    running                     running                  unknown: nothing is done
    in post-copy                off                      commit: it died there, with its memory
    in post-copy                anything else            unknown: each has a part of the memory

A guest has *left* when libvirt itself says that the migration took it: the domain is undefined,
or shut off with the reason «migrated». A source whose libvirtd dies while it lets the guest go is
off and does not know why; that the guest is whole on the other side is told by its libvirtd.
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
    """One host's domain: its power state (None: no such domain), whether a job is active.

    ``has_left`` and ``is_in_post_copy`` are only ever true of a source, ``has_arrived`` of a
    destination.
    """

    power_state: PowerState | None
    has_job: bool = False
    has_left: bool = False
    has_arrived: bool = False
    is_in_post_copy: bool = False

    @property
    def is_off(self) -> bool:
        """True when nothing of the guest executes or could execute on by itself there."""
        return self.power_state in (None, PowerState.SHUTDOWN, PowerState.CRASHED)

    def to_wire(self) -> dict[str, object]:
        """Return the ledger's form."""
        return {
            "power_state": self.power_state,
            "has_job": self.has_job,
            "has_left": self.has_left,
            "has_arrived": self.has_arrived,
            "is_in_post_copy": self.is_in_post_copy,
        }

    @classmethod
    def from_wire(cls, wire: dict[str, object]) -> "Look":
        """Rebuild from the ledger's form."""
        state = wire.get("power_state")
        power_state = None if state is None else PowerState(str(state))
        return cls(
            power_state,
            bool(wire.get("has_job")),
            bool(wire.get("has_left")),
            bool(wire.get("has_arrived")),
            bool(wire.get("is_in_post_copy")),
        )


def decide(src: Look, dst: Look) -> Verdict:
    """Decide a migration by what both hosts show; no job may be active any more."""
    if src.is_in_post_copy:
        died = dst.power_state in (PowerState.SHUTDOWN, PowerState.CRASHED)
        return Verdict.COMMIT if died else Verdict.UNKNOWN
    if src.has_job or dst.has_job:
        return Verdict.UNKNOWN
    if src.has_left:
        return Verdict.UNKNOWN if dst.power_state is None else Verdict.COMMIT
    if src.power_state == PowerState.RUNNING:
        return Verdict.UNKNOWN if dst.power_state == PowerState.RUNNING else Verdict.ROLL_BACK
    if dst.power_state == PowerState.RUNNING:
        return Verdict.COMMIT
    if src.is_off and dst.power_state == PowerState.PAUSED:
        return Verdict.COMMIT if dst.has_arrived else Verdict.UNKNOWN
    return Verdict.ROLL_BACK
