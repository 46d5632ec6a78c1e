"""Owed steps on a real Postgres: who may claim them, in which order, and what is overdue."""

from uuid import UUID

import pytest
from sqlalchemy import text
from sqlalchemy.orm import Session

from innkeeper.errors import LeaseLost
from innkeeper.states import OperationState, StepState
from models import debts, ledger, operations, sweep
from models.operation import Operation
from models.session import Database
from tests.models.rows import add_host, add_instance, add_operation


@pytest.fixture
def operation_id(database: Database) -> UUID:
    with database.transaction() as session:
        add_host(session, "hv-a")
        return add_operation(session, add_instance(session, "vm-1", host="hv-a"), deadline_s=-30)


def states(session: Session, operation_id: UUID) -> list[StepState | None]:
    return [ledger.find_step_state(session, operation_id, position) for position in range(3)]


def finish_first_begin_second(database: Database, operation_id: UUID) -> ledger.StepKey:
    with database.transaction() as session:
        first = ledger.claim_step(session, operation_id, 0, owner="n#1")
        assert first is not None
        ledger.complete_step(session, first.key, {})
    with database.transaction() as session:
        second = ledger.claim_step(session, operation_id, 1, owner="n#1")
        assert second is not None
        return second.key


def end_owing(session: Session, operation_id: UUID) -> None:
    operations.end_operation(session, operation_id, OperationState.FAILED, error={"code": "x"})
    debts.owe(session, operation_id)


def test_only_what_is_late_beyond_its_grace_is_overdue(
    database: Database, operation_id: UUID
) -> None:
    with database.transaction() as session:
        add_operation(session, add_instance(session, "vm-2", host="hv-a"), deadline_s=-10)
        add_operation(session, add_instance(session, "vm-3", host="hv-a"))
        found = debts.list_overdue(session, grace_s=20)
    assert [overdue.operation_id for overdue in found] == [operation_id]


def test_a_ghost_loses_the_step_that_is_sent_back(database: Database, operation_id: UUID) -> None:
    ghost = finish_first_begin_second(database, operation_id)
    with database.transaction() as session:
        debts.turn_all_back(session, operation_id, frozenset({"one", "two"}))
        assert states(session, operation_id) == [
            StepState.UNDO,
            StepState.UNDO,
            StepState.SKIPPED,
        ]
        assert ledger.renew_leases(session, [ghost], owner="n#1") == []
    with pytest.raises(LeaseLost), database.transaction() as session:
        ledger.complete_step(session, ghost, {})


def test_a_begun_step_without_an_undo_is_marked_as_cut_short(
    database: Database, operation_id: UUID
) -> None:
    finish_first_begin_second(database, operation_id)
    with database.transaction() as session:
        debts.turn_all_back(session, operation_id, frozenset())
        failures = session.execute(
            text("SELECT state, failures FROM steps WHERE operation_id = :o ORDER BY position"),
            {"o": operation_id},
        ).all()
    assert [tuple(row) for row in failures] == [("done", 0), ("skipped", 1), ("skipped", 0)]


def test_owed_steps_are_rung_and_claimed_backwards_after_the_end(
    database: Database, operation_id: UUID
) -> None:
    finish_first_begin_second(database, operation_id)
    with database.transaction() as session:
        debts.turn_all_back(session, operation_id, frozenset({"one", "two"}))
        operations.end_operation(session, operation_id, OperationState.FAILED, error={"code": "x"})
    with database.transaction() as session:
        assert ledger.claim_step(session, operation_id, 1, owner="n#2") is None, "not owed"
        assert sweep.take_due_bells(session, grace_s=1) == []
        debts.owe(session, operation_id)
    with database.transaction() as session:
        rung = sweep.take_due_bells(session, grace_s=1)
        assert [(bell.position, bell.is_undo) for bell in rung] == [(1, True)]
        assert ledger.claim_step(session, operation_id, 0, owner="n#2") is None
        undo = ledger.claim_step(session, operation_id, 1, owner="n#2")
        assert undo is not None
        assert undo.is_undo


def test_owed_steps_go_forward_too(database: Database, operation_id: UUID) -> None:
    finish_first_begin_second(database, operation_id)
    with database.transaction() as session:
        debts.release_running(session, operation_id)
        end_owing(session, operation_id)
    with database.transaction() as session:
        again = ledger.claim_step(session, operation_id, 1, owner="n#2")
        assert again is not None
        assert (again.is_undo, again.was_begun_before) == (False, True)
        assert session.get_one(Operation, operation_id).state is OperationState.FAILED


def test_an_owed_way_back_that_rolls_forward_stays_ended(
    database: Database, operation_id: UUID
) -> None:
    finish_first_begin_second(database, operation_id)
    with database.transaction() as session:
        debts.turn_all_back(session, operation_id, frozenset({"one", "two"}))
        end_owing(session, operation_id)
    with database.transaction() as session:
        undo = ledger.claim_step(session, operation_id, 1, owner="n#2")
        assert undo is not None
        ledger.complete_step(session, undo.key, {"late": True})
        operations.turn_forward(session, operation_id, 1)
    with database.transaction() as session:
        assert states(session, operation_id) == [StepState.DONE, StepState.DONE, StepState.QUEUED]
        assert session.get_one(Operation, operation_id).state is OperationState.FAILED
        assert ledger.claim_step(session, operation_id, 2, owner="n#2") is not None


def test_a_look_that_must_be_renewed_goes_before_the_step_that_asked(
    database: Database, operation_id: UUID
) -> None:
    key = finish_first_begin_second(database, operation_id)
    with database.transaction() as session:
        ledger.requeue_step(session, key, after_s=0, waiting_for="the other host")
        ledger.reopen_step(session, operation_id, name="one", after_s=0)
    with database.transaction() as session:
        assert ledger.claim_step(session, operation_id, 1, owner="n#1") is None
        first = ledger.claim_step(session, operation_id, 0, owner="n#1")
        assert first is not None
        assert first.was_begun_before
