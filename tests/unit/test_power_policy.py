"""The power-state matrix, cell by cell."""

import pytest

from innkeeper.states import InstanceState as State
from innkeeper.states import PowerPolicy as Policy
from innkeeper.states import PowerState as Power
from tasks.power_policy import Decision, Deed, decide

STOPPED = Decision(Deed.SETTLE, State.STOPPED)
ACTIVE = Decision(Deed.SETTLE, State.ACTIVE)
NOTHING, WARN = Decision(Deed.NOTHING), Decision(Deed.WARN)


@pytest.mark.parametrize(
    ("state", "power", "policy", "first_look", "second_look"),
    [
        (State.ACTIVE, Power.RUNNING, Policy.STOP, NOTHING, NOTHING),
        (State.ACTIVE, Power.SHUTDOWN, Policy.STOP, STOPPED, STOPPED),
        (State.ACTIVE, Power.CRASHED, Policy.SYNC, STOPPED, STOPPED),
        (State.ACTIVE, Power.SHUTDOWN, Policy.RESTART, NOTHING, Decision(Deed.START)),
        (State.ACTIVE, Power.CRASHED, Policy.ALERT, WARN, WARN),
        (State.ACTIVE, Power.SUSPENDED, Policy.STOP, WARN, Decision(Deed.STOP)),
        (State.ACTIVE, Power.SUSPENDED, Policy.ALERT, WARN, WARN),
        (State.ACTIVE, Power.PAUSED, Policy.STOP, WARN, WARN),
        (State.ACTIVE, Power.NOSTATE, Policy.STOP, WARN, WARN),
        (State.STOPPED, Power.SHUTDOWN, Policy.STOP, NOTHING, NOTHING),
        (State.STOPPED, Power.RUNNING, Policy.STOP, NOTHING, Decision(Deed.STOP)),
        (State.STOPPED, Power.RUNNING, Policy.SYNC, ACTIVE, ACTIVE),
        (State.STOPPED, Power.PAUSED, Policy.ALERT, WARN, WARN),
        (State.PAUSED, Power.SHUTDOWN, Policy.STOP, STOPPED, STOPPED),
        (State.PAUSED, Power.RUNNING, Policy.STOP, ACTIVE, ACTIVE),
        (State.UNKNOWN, Power.RUNNING, Policy.STOP, ACTIVE, ACTIVE),
        (State.UNKNOWN, Power.SHUTDOWN, Policy.STOP, NOTHING, NOTHING),
    ],
)
def test_the_matrix(
    state: State, power: Power, policy: Policy, first_look: Decision, second_look: Decision
) -> None:
    assert decide(state, power, policy, is_second_look=False) == first_look
    assert decide(state, power, policy, is_second_look=True) == second_look


@pytest.mark.parametrize(
    "state", [State.BUILDING, State.RESCUED, State.RESIZED, State.SUSPENDED, State.ERROR]
)
@pytest.mark.parametrize("power", list(Power))
def test_states_that_are_only_recorded(state: State, power: Power) -> None:
    for policy in Policy:
        assert decide(state, power, policy, is_second_look=True) == NOTHING


def test_nothing_is_done_to_a_guest_at_a_first_look() -> None:
    for state in State:
        for power in Power:
            for policy in Policy:
                decision = decide(state, power, policy, is_second_look=False)
                assert decision.deed not in (Deed.START, Deed.STOP)
