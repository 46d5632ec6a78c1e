"""The ledger's moves on a real Postgres: who owns a step, and who no longer does."""

import threading
from uuid import UUID

import pytest
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from innkeeper.errors import Busy, LeaseLost, StateConflict
from innkeeper.states import InstanceState, OperationState, StepState
from models import ledger, operations, sweep
from models.operation import Operation
from models.operations import NewOperation, insert_operation, take_instance, turn_back
from models.session import Database
from tests.models.rows import add_host, add_instance, add_operation, new_operation


@pytest.fixture
def operation_id(database: Database) -> UUID:
    with database.transaction() as session:
        add_host(session, "hv-a")
        instance_id = add_instance(session, "vm-1", host="hv-a")
        return add_operation(session, instance_id)


def claim(database: Database, operation_id: UUID, position: int, owner: str = "n#1") -> object:
    with database.transaction() as session:
        return ledger.claim_step(session, operation_id, position, owner=owner)


def must_claim(
    database: Database, operation_id: UUID, position: int, owner: str = "n#1"
) -> ledger.ClaimedStep:
    step = claim(database, operation_id, position, owner)
    assert isinstance(step, ledger.ClaimedStep)
    return step


def complete(database: Database, key: ledger.StepKey) -> None:
    with database.transaction() as session:
        ledger.complete_step(session, key, {"done_by": key.owner})


def state_of(database: Database, operation_id: UUID, position: int) -> StepState | None:
    with database.transaction() as session:
        return ledger.find_step_state(session, operation_id, position)


def test_steps_are_claimed_in_order_only(database: Database, operation_id: UUID) -> None:
    assert claim(database, operation_id, 1) is None
    first = must_claim(database, operation_id, 0)
    assert claim(database, operation_id, 0) is None
    complete(database, first.key)
    assert must_claim(database, operation_id, 1).name == "two"


def test_one_of_eight_racing_claimers_wins(database: Database, operation_id: UUID) -> None:
    won: list[object] = []
    barrier = threading.Barrier(8)

    def race(number: int) -> None:
        barrier.wait()
        step = claim(database, operation_id, 0, f"n{number}#1")
        if step is not None:
            won.append(step)

    threads = [threading.Thread(target=race, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1


def test_an_expired_lease_is_taken_over_and_its_ghost_is_refused(
    database: Database, operation_id: UUID
) -> None:
    ghost = must_claim(database, operation_id, 0, "ghost#1")
    with database.transaction() as session:
        session.execute(text("UPDATE steps SET lease_expires_at = now() - interval '1 second'"))
    heir = must_claim(database, operation_id, 0, "heir#1")
    assert heir.key.attempt == ghost.key.attempt + 1
    assert heir.was_begun_before
    assert heir.failures == 1
    with pytest.raises(LeaseLost):
        complete(database, ghost.key)
    complete(database, heir.key)


def test_heartbeat_renews_what_is_held_and_tells_of_a_cancel(
    database: Database, operation_id: UUID
) -> None:
    step = must_claim(database, operation_id, 0)
    with database.transaction() as session:
        operations.request_cancel(session, operation_id, requested_by="me")
    with database.transaction() as session:
        held = ledger.renew_leases(session, [step.key], owner="n#1")
    assert [h.cancel_requested for h in held] == [True]
    with database.transaction() as session:
        assert ledger.renew_leases(session, [step.key], owner="other#1") == []


def test_a_predecessors_steps_are_released_but_not_a_neighbours(
    database: Database, operation_id: UUID
) -> None:
    must_claim(database, operation_id, 0, "host-a#old")
    with database.transaction() as session:
        assert ledger.release_predecessors(session, node="host-ab", owner="host-ab#new") == []
        assert ledger.release_predecessors(session, node="host-a", owner="host-a#old") == []
        released = ledger.release_predecessors(session, node="host-a", owner="host-a#new")
    assert released == [(operation_id, 0)]
    must_claim(database, operation_id, 0, "host-a#new")


def test_undo_goes_backwards_and_only_over_what_was_begun(
    database: Database, operation_id: UUID
) -> None:
    for position in (0, 1):
        complete(database, must_claim(database, operation_id, position).key)
    with database.transaction() as session:
        assert turn_back(
            session, operation_id, error={"code": "x"}, undoable=frozenset({"one", "two"})
        )
    assert claim(database, operation_id, 0) is None
    last = must_claim(database, operation_id, 1)
    assert last.is_undo
    with database.transaction() as session:
        ledger.complete_undo(session, last.key)
    assert must_claim(database, operation_id, 0).is_undo
    with database.transaction() as session:
        assert ledger.find_step_state(session, operation_id, 2) is StepState.SKIPPED


def test_a_failed_step_that_intended_nothing_is_not_undone(
    database: Database, operation_id: UUID
) -> None:
    both = frozenset({"one", "two"})
    complete(database, must_claim(database, operation_id, 0).key)
    second = must_claim(database, operation_id, 1)
    with database.transaction() as session:
        ledger.fail_step(session, second.key, {"code": "cancelled"})
        assert turn_back(session, operation_id, error={"code": "x"}, undoable=both, intending=both)
    assert state_of(database, operation_id, 0) == StepState.UNDO
    assert state_of(database, operation_id, 1) == StepState.FAILED


def test_a_failed_step_that_intended_something_is_undone(
    database: Database, operation_id: UUID
) -> None:
    first = must_claim(database, operation_id, 0)
    with database.transaction() as session:
        ledger.record_intent(session, first.key, {"directory": "/x"})
        ledger.fail_step(session, first.key, {"code": "host_unsuitable"})
        one = frozenset({"one"})
        assert turn_back(session, operation_id, error={"code": "x"}, undoable=one, intending=one)
    assert state_of(database, operation_id, 0) == StepState.UNDO


def test_turning_back_leaves_a_running_step_to_its_worker(
    database: Database, operation_id: UUID
) -> None:
    step = must_claim(database, operation_id, 0)
    with database.transaction() as session:
        turn_back(session, operation_id, error={"code": "x"}, undoable=frozenset({"one"}))
    with database.transaction() as session:
        assert session.get_one(Operation, operation_id).state is OperationState.RUNNING
    complete(database, step.key)


def test_two_clients_race_for_one_guest_and_one_wins(database: Database) -> None:
    with database.transaction() as session:
        add_host(session, "hv-a")
        instance_id = add_instance(session, "vm-1", host="hv-a")
    outcomes: list[object] = []
    barrier = threading.Barrier(6)

    def race() -> None:
        new: NewOperation = new_operation()
        barrier.wait()
        try:
            with database.transaction() as session:
                insert_operation(session, new, [operations.PlannedStep("one", "hv-a")])
                outcomes.append(
                    take_instance(
                        session, instance_id, new, allowed=frozenset({InstanceState.ACTIVE})
                    )
                )
        except Busy as exc:
            outcomes.append(exc)

    threads = [threading.Thread(target=race) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(not isinstance(o, Busy) for o in outcomes) == 1
    assert all(o.details["verb"] == "stop" for o in outcomes if isinstance(o, Busy))


def test_a_wrong_state_is_named(database: Database) -> None:
    with database.transaction() as session:
        add_host(session, "hv-a")
        instance_id = add_instance(session, "vm-1", host="hv-a", state=InstanceState.STOPPED)
    new = new_operation("reboot")

    def reboot(session: Session) -> None:
        insert_operation(session, new, [operations.PlannedStep("one", "hv-a")])
        take_instance(session, instance_id, new, allowed=frozenset({InstanceState.ACTIVE}))

    with pytest.raises(StateConflict) as caught:
        database.run(reboot)
    assert caught.value.details == {"expected": ["active"], "actual": "stopped"}
    with database.transaction() as session:
        assert session.get(Operation, new.id) is None


def test_the_database_refuses_a_second_live_operation(
    database: Database, operation_id: UUID
) -> None:
    with pytest.raises(IntegrityError), database.transaction() as session:
        session.execute(
            text(
                "INSERT INTO operations (id, kind, instance_id, request_digest) "
                "SELECT gen_random_uuid(), 'stop', instance_id, 'x' FROM operations"
            )
        )


def test_the_sweeper_rings_once_per_grace(database: Database, operation_id: UUID) -> None:
    def due() -> list[sweep.Bell]:
        with database.transaction() as session:
            return sweep.take_due_bells(session, grace_s=60)

    assert due() == [], "the request's own bell was just rung"
    with database.transaction() as session:
        session.execute(text("UPDATE steps SET rung_at = now() - interval '1 hour'"))
    assert [(b.operation_id, b.position) for b in due()] == [(operation_id, 0)]
    assert due() == []


def test_the_sweeper_leaves_steps_of_hosts_that_are_down(database: Database) -> None:
    with database.transaction() as session:
        add_host(session, "hv-a")
        instance_id = add_instance(session, "vm-1", host="hv-a")
        add_operation(session, instance_id, host="hv-a")
        session.execute(text("UPDATE steps SET rung_at = NULL"))
        session.execute(text("UPDATE hosts SET heartbeat_at = now() - interval '1 hour'"))
    with database.transaction() as session:
        assert sweep.take_due_bells(session, grace_s=1) == []
        session.execute(text("UPDATE hosts SET heartbeat_at = now()"))
    with database.transaction() as session:
        assert len(sweep.take_due_bells(session, grace_s=1)) == 1


def test_strayed_operations_are_found(database: Database) -> None:
    with database.transaction() as session:
        add_host(session, "hv-a")
        late = add_operation(session, add_instance(session, "vm-1", host="hv-a"), deadline_s=-1)
        cancelled = add_operation(session, add_instance(session, "vm-2", host="hv-a"))
        operations.request_cancel(session, cancelled, requested_by="me")
        add_operation(session, add_instance(session, "vm-3", host="hv-a"))
    with database.transaction() as session:
        found = {s.operation_id: s.why for s in sweep.list_strayed(session)}
    assert found == {late: "deadline", cancelled: "cancelled"}


def test_an_operation_rolls_forward_from_an_undo_that_came_too_late(
    database: Database, operation_id: UUID
) -> None:
    for position in (0, 1):
        complete(database, must_claim(database, operation_id, position).key)
    undoable = frozenset({"one", "two"})
    with database.transaction() as session:
        turn_back(session, operation_id, error={"code": "x"}, undoable=undoable)
    undo = must_claim(database, operation_id, 1)
    assert undo.is_undo
    with database.transaction() as session:
        ledger.complete_step(session, undo.key, {"late": True})
        operations.turn_forward(session, operation_id, 1)
    with database.transaction() as session:
        operation = session.get_one(Operation, operation_id)
        assert (operation.state, operation.error) == (OperationState.RUNNING, None)
        states = [ledger.find_step_state(session, operation_id, p) for p in range(3)]
    assert states == [StepState.DONE, StepState.DONE, StepState.QUEUED]
    assert not must_claim(database, operation_id, 2).is_undo
