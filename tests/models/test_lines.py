"""Standing in line on a real Postgres: order, tickets, calls, and who is passed over."""

from uuid import UUID, uuid4

import pytest
from sqlalchemy import text

from innkeeper.states import InstanceState
from models import ledger
from models.host import Host
from models.ledger import ClaimedStep
from models.operation import Operation
from models.operations import NewOperation, PlannedStep, insert_operation, take_instance
from models.session import Database
from tasks.admission import LIMIT_MIGRATIONS
from tests.models.rows import add_host, add_instance


@pytest.fixture
def hosts(database: Database) -> None:
    with database.transaction() as session:
        for name in ("hv-a", "hv-b", "hv-c", "hv-d"):
            add_host(session, name)


def add_migration(database: Database, src: str, dst: str) -> UUID:
    new = NewOperation(
        id=uuid4(),
        kind="live_migrate",
        params={},
        request_digest="x",
        deadline_s=60,
        src_host=src,
        dst_host=dst,
    )
    with database.transaction() as session:
        instance_id = add_instance(session, f"vm-{new.id.hex[:6]}", host=src)
        insert_operation(session, new, [PlannedStep("migrate", src)])
        take_instance(session, instance_id, new, allowed=frozenset(InstanceState))
    return new.id


def ask(database: Database, operation_id: UUID) -> ClaimedStep | str:
    """Claim the step as a worker does; return why it was declined."""
    with database.transaction() as session:
        step = ledger.claim_step(session, operation_id, 0, owner="n#1")
        assert step is not None
        why = LIMIT_MIGRATIONS.ask(session, session.get_one(Operation, operation_id))
        if why is None:
            return step
        ledger.decline_step(session, step.key, after_s=0, waiting_for=why)
        return why


def leave(database: Database, operation_id: UUID, step: ClaimedStep) -> list[UUID]:
    with database.transaction() as session:
        ledger.complete_step(session, step.key, {})
    with database.transaction() as session:
        return LIMIT_MIGRATIONS.call(session, session.get_one(Operation, operation_id))


def waits_for(database: Database, operation_id: UUID) -> str:
    with database.transaction() as session:
        return str(
            session.execute(
                text("SELECT waiting_for FROM steps WHERE operation_id = :o"), {"o": operation_id}
            ).scalar_one()
        )


def test_the_order_of_a_line_is_kept_however_often_one_asks(
    database: Database, hosts: None
) -> None:
    first, second, third = (add_migration(database, "hv-a", dst) for dst in ("hv-b",) * 3)
    inside = ask(database, first)
    assert isinstance(inside, ClaimedStep)
    assert ask(database, second) == (
        "its turn, 1st in line for hv-a → hv-b: 1 migration under way between them"
    )
    for _ in range(3):
        assert "2nd in line" in str(ask(database, third))
    assert "1st in line" in str(ask(database, second))
    assert leave(database, first, inside) == [second]
    assert "1st in line" in waits_for(database, third)
    assert "1st in line" in str(ask(database, third)), "the second is called, and goes before it"
    second_inside = ask(database, second)
    assert isinstance(second_inside, ClaimedStep)
    assert (second_inside.key.attempt, second_inside.was_begun_before) == (1, False)


def test_a_source_sends_one_at_a_time_and_a_destination_takes_two(
    database: Database, hosts: None
) -> None:
    to_b, to_c = add_migration(database, "hv-a", "hv-b"), add_migration(database, "hv-a", "hv-c")
    assert isinstance(ask(database, to_b), ClaimedStep)
    assert str(ask(database, to_c)).endswith("1 migration leaving hv-a")
    with database.transaction() as session:
        session.get_one(Host, "hv-a").max_migrations_out = 2
    assert isinstance(ask(database, to_c), ClaimedStep)
    assert isinstance(ask(database, add_migration(database, "hv-c", "hv-b")), ClaimedStep)
    late = ask(database, add_migration(database, "hv-d", "hv-b"))
    assert str(late).endswith("2 migrations arriving at hv-b")


def test_who_is_cancelled_late_or_on_a_silent_host_holds_nobody_up(
    database: Database, hosts: None
) -> None:
    inside = [add_migration(database, src, "hv-d") for src in ("hv-a", "hv-b")]
    steps = [ask(database, each) for each in inside]
    waiting = [add_migration(database, "hv-c", "hv-d") for _ in range(3)]
    assert all("destination" not in str(ask(database, each)) for each in waiting)
    with database.transaction() as session:
        session.get_one(Operation, waiting[0]).cancel_requested = True
        session.execute(
            text("UPDATE operations SET deadline_at = now() - interval '1 s' WHERE id = :o"),
            {"o": waiting[1]},
        )
    assert isinstance(steps[0], ClaimedStep)
    assert leave(database, inside[0], steps[0]) == [waiting[2]]
    with database.transaction() as session:
        session.execute(text("UPDATE hosts SET heartbeat_at = NULL WHERE name = 'hv-c'"))
    from_a = add_migration(database, "hv-a", "hv-d")
    assert isinstance(ask(database, from_a), ClaimedStep), "hv-c cannot use its place"
