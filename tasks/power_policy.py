"""What to do when a guest's power state departs from its record: the matrix, as a pure function."""

from dataclasses import dataclass
from enum import StrEnum

from innkeeper.states import InstanceState, PowerPolicy, PowerState


class Deed(StrEnum):
    """What follows from a look."""

    NOTHING = "nothing"
    SETTLE = "settle"
    START = "start"
    STOP = "stop"
    WARN = "warn"


@dataclass(frozen=True, slots=True)
class Decision:
    """A deed, and for SETTLE the state to write."""

    deed: Deed
    state: InstanceState | None = None


OFF = frozenset({PowerState.SHUTDOWN, PowerState.CRASHED})
ALIVE = frozenset({PowerState.RUNNING, PowerState.PAUSED, PowerState.SUSPENDED})
NOTHING = Decision(Deed.NOTHING)
WARN = Decision(Deed.WARN)


def decide(
    state: InstanceState, power_state: PowerState, policy: PowerPolicy, *, is_second_look: bool
) -> Decision:
    """Decide for one guest.

    Args:
        state: what the record says the guest is.
        power_state: what the hypervisor says its domain does.
        policy: the guest's own wish.
        is_second_look: the same was seen before, so that an effect on the guest is allowed;
            writing down that a guest is off needs no second look.
    """
    if state == InstanceState.ACTIVE:
        return _decide_active(power_state, policy, is_second_look=is_second_look)
    if state == InstanceState.STOPPED and power_state in ALIVE:
        return _decide_stopped(policy, is_second_look=is_second_look)
    if state == InstanceState.PAUSED and power_state in OFF:
        return Decision(Deed.SETTLE, InstanceState.STOPPED)
    if state == InstanceState.PAUSED and power_state == PowerState.RUNNING:
        return Decision(Deed.SETTLE, InstanceState.ACTIVE)
    if state == InstanceState.UNKNOWN and power_state == PowerState.RUNNING:
        return Decision(Deed.SETTLE, InstanceState.ACTIVE)
    return NOTHING


def _decide_active(
    power_state: PowerState, policy: PowerPolicy, *, is_second_look: bool
) -> Decision:
    if power_state in OFF:
        if policy == PowerPolicy.ALERT:
            return WARN
        if policy == PowerPolicy.RESTART:
            return Decision(Deed.START) if is_second_look else NOTHING
        return Decision(Deed.SETTLE, InstanceState.STOPPED)
    if power_state == PowerState.SUSPENDED:
        if policy in (PowerPolicy.SYNC, PowerPolicy.STOP) and is_second_look:
            return Decision(Deed.STOP)
        return WARN
    if power_state in (PowerState.PAUSED, PowerState.NOSTATE):
        return WARN
    return NOTHING


def _decide_stopped(policy: PowerPolicy, *, is_second_look: bool) -> Decision:
    if policy in (PowerPolicy.SYNC, PowerPolicy.RESTART):
        return Decision(Deed.SETTLE, InstanceState.ACTIVE)
    if policy == PowerPolicy.ALERT:
        return WARN
    return Decision(Deed.STOP) if is_second_look else NOTHING
