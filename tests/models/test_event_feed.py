"""Events: told by the database wherever a state moves, placed without gaps, relayed in order."""

import threading
import uuid
from collections.abc import Iterator
from uuid import UUID

import pytest
import redis
from redis.exceptions import ResponseError
from sqlalchemy import text
from sqlalchemy.event import listen
from sqlalchemy.orm import Session

from innkeeper.event_types import EVENT_FIELD, EventView
from innkeeper.states import OperationState
from models import event_feed, hosts, ledger, operations
from models.queries import record_event
from models.session import Database
from tasks.notifications import EventRelay, find_last_entry
from tests.models.rows import add_host, add_instance, add_operation


def place(database: Database, owner: str = "a") -> int:
    """Give positions as the relay does; returns how many."""

    def work(session: Session) -> int:
        assert event_feed.hold_relay(session, owner=owner, lease_s=60) is not None
        return event_feed.place_events(session)

    return database.run(work)


def told(database: Database) -> list[EventView]:
    """Every event, in order, after placing what is new."""
    place(database)
    with database.transaction() as session:
        return event_feed.list_events_after(session, 0, limit=10_000)


def kinds(database: Database, *, subject: str) -> list[str]:
    return [event.kind for event in told(database) if event.kind.startswith(f"{subject}.")]


def execute(database: Database, statement: str, **values: object) -> None:
    with database.transaction() as session:
        session.execute(text(statement), values)


@pytest.fixture
def operation_id(database: Database) -> UUID:
    with database.transaction() as session:
        add_host(session, "hv-a")
        instance_id = add_instance(session, "vm-1", host="hv-a")
        return add_operation(session, instance_id)


def do_step(database: Database, operation_id: UUID, position: int) -> None:
    with database.transaction() as session:
        claimed = ledger.claim_step(session, operation_id, position, owner="n#1")
        assert claimed is not None
        ledger.complete_step(session, claimed.key, {})


def test_an_operation_is_told_from_its_request_to_its_end(
    database: Database, operation_id: UUID
) -> None:
    for position in range(3):
        do_step(database, operation_id, position)
    with database.transaction() as session:
        operations.end_operation(session, operation_id, OperationState.SUCCEEDED, result={})
    events = [event for event in told(database) if event.operation == operation_id]
    assert [(e.kind, e.data.get("step")) for e in events] == [
        ("operation.queued", None),
        ("step.started", "one"),
        ("operation.running", None),
        ("step.done", "one"),
        *(("step.started", "two"), ("step.done", "two")),
        *(("step.started", "three"), ("step.done", "three")),
        ("operation.succeeded", None),
    ]
    assert {e.instance_name for e in events[1:]} == {"vm-1"}
    assert events[2].data == {"kind": "stop", "from": "queued", "to": "running"}


def test_a_failed_operation_tells_why_and_how_it_was_undone(
    database: Database, operation_id: UUID
) -> None:
    do_step(database, operation_id, 0)
    error = {"code": "start_failed", "message": "No.", "effect": "rolled_back", "details": {}}
    with database.transaction() as session:
        claimed = ledger.claim_step(session, operation_id, 1, owner="n#1")
        assert claimed is not None
        ledger.fail_step(session, claimed.key, error)
        operations.turn_back(session, operation_id, error=error, undoable=frozenset({"one"}))
    with database.transaction() as session:
        undone = ledger.claim_step(session, operation_id, 0, owner="n#1")
        assert undone is not None
        ledger.complete_undo(session, undone.key)
        operations.end_operation(session, operation_id, OperationState.FAILED, error=error)
    events = told(database)[-6:]
    assert [(e.kind, e.data.get("code")) for e in events] == [
        ("step.started", None),
        ("step.failed", "start_failed"),
        ("operation.undoing", "start_failed"),
        ("step.undoing", None),
        ("step.undone", None),
        ("operation.failed", "start_failed"),
    ]
    assert (events[-1].data["message"], events[-1].data["effect"]) == ("No.", "rolled_back")


def test_a_step_that_waits_its_turn_tells_it_once(database: Database, operation_id: UUID) -> None:
    for waiting_for in ("a place", "a place", None):
        with database.transaction() as session:
            claimed = ledger.claim_step(session, operation_id, 0, owner="n#1")
            assert claimed is not None
            if waiting_for is None:
                ledger.complete_step(session, claimed.key, {})
            else:
                ledger.requeue_step(session, claimed.key, after_s=0, waiting_for=waiting_for)
    assert kinds(database, subject="step") == ["step.started", "step.waiting", "step.done"]


def test_a_step_that_is_taken_over_or_tried_again_tells_it(
    database: Database, operation_id: UUID
) -> None:
    with database.transaction() as session:
        ledger.claim_step(session, operation_id, 0, owner="n#1", lease_s=0)
    with database.transaction() as session:
        claimed = ledger.claim_step(session, operation_id, 0, owner="n#2")
        assert claimed is not None
        ledger.requeue_step(session, claimed.key, after_s=0, error={"code": "busy"})
    do_step(database, operation_id, 0)
    events = [event for event in told(database) if event.kind.startswith("step.")]
    assert [(e.kind, e.data["attempt"]) for e in events] == [
        ("step.started", 1),
        ("step.adopted", 2),
        ("step.retried", 2),
        ("step.started", 3),
        ("step.done", 3),
    ]


def test_whatever_statement_moves_a_guest_it_is_told(database: Database) -> None:
    with database.transaction() as session:
        for host in ("hv-a", "hv-b"):
            add_host(session, host)
        add_instance(session, "vm-1", host="hv-a")
    execute(database, "UPDATE instances SET state = 'paused', power_state = 'paused'")
    execute(database, "UPDATE instances SET host = 'hv-b'")
    execute(database, "UPDATE instances SET power_observed_at = now(), epoch = epoch + 1")
    events = [event for event in told(database) if event.kind.startswith("instance.")]
    assert [(e.kind, e.host, e.data.get("from"), e.data["to"]) for e in events] == [
        ("instance.active", "hv-a", None, "active"),
        ("instance.paused", "hv-a", "active", "paused"),
        ("instance.power", "hv-a", "nostate", "paused"),
        ("instance.moved", "hv-b", "hv-a", "hv-b"),
    ]


def test_a_hosts_life_is_told_and_its_heartbeat_is_not(database: Database) -> None:
    with database.transaction() as session:
        add_host(session, "hv-a")
        worker_id = "w#1"
        session.execute(text("UPDATE hosts SET worker_id = :w"), {"w": worker_id})

    def beat(session: Session) -> None:
        assert hosts.beat_heart(session, "hv-a", worker_id)

    def note(session: Session) -> list[str]:
        return hosts.note_silent_hosts(session, up_s=20)

    for _ in range(3):
        database.run(beat)
        assert database.run(note) == []
    execute(database, "UPDATE hosts SET heartbeat_at = now() - interval '1 minute'")
    assert (database.run(note), database.run(note)) == (["hv-a"], [])
    database.run(beat)
    with database.transaction() as session:
        for reason in ("new memory", "new memory", "new disks"):
            hosts.disable_host(session, "hv-a", kind="operator", disabled_by="ann", reason=reason)
        hosts.enable_host(session, "hv-a", kind="operator")
    events = told(database)
    assert [(e.kind, e.host, e.data.get("reason")) for e in events] == [
        ("host.up", "hv-a", None),
        ("host.down", "hv-a", None),
        ("host.up", "hv-a", None),
        ("host.disabled", "hv-a", "new memory"),
        ("host.disabled", "hv-a", "new disks"),
        ("host.enabled", "hv-a", None),
    ]


def test_what_is_rolled_back_is_not_told(database: Database) -> None:
    with database.transaction() as session:
        add_host(session, "hv-a")
        session.rollback()
    assert told(database) == []


def test_what_commits_late_comes_later_and_is_not_skipped(database: Database) -> None:
    """Its row has a smaller id than those that were placed, and published, before it."""
    with database.transaction() as late:
        record_event(late, "test.late")
        late.flush()
        with database.transaction() as session:
            record_event(session, "test.early")
        assert [(e.id, e.kind) for e in told(database)] == [(1, "test.early")]
    assert [(e.id, e.kind) for e in told(database)] == [(1, "test.early"), (2, "test.late")]


def test_writing_an_event_waits_for_nobody_who_holds_what_it_is_about(
    database: Database, operation_id: UUID
) -> None:
    with database.transaction() as holder:
        holder.execute(text("SELECT 1 FROM operations FOR UPDATE"))
        holder.execute(text("SELECT 1 FROM instances FOR UPDATE"))
        with database.transaction() as session:
            session.execute(text("SET LOCAL lock_timeout = '2s'"))
            session.execute(
                text(
                    "UPDATE steps SET state = 'running', attempt = 1, owner = 'n#1', "
                    "lease_expires_at = now() WHERE position = 0"
                )
            )


def test_two_relays_at_once_leave_no_gap_and_no_double(database: Database) -> None:
    with database.transaction() as session:
        add_host(session, "hv-a")
    count, stop = 300, threading.Event()

    def write(number: int) -> None:
        for each in range(count):
            with database.transaction() as session:
                record_event(session, "test.written", data={"writer": number, "each": each})

    def relay(owner: str) -> None:
        def work(session: Session) -> None:
            # A relay whose lease has run out while it was paused: it works on all the same.
            event_feed.hold_relay(session, owner=owner, lease_s=0)
            event_feed.place_events(session)

        while not stop.is_set():
            database.run(work)

    writers = [threading.Thread(target=write, args=(number,)) for number in range(3)]
    relays = [threading.Thread(target=relay, args=(owner,)) for owner in "ab"]
    for thread in (*writers, *relays):
        thread.start()
    for thread in writers:
        thread.join()
    stop.set()
    for thread in relays:
        thread.join()
    events = told(database)
    assert [event.id for event in events] == list(range(1, 3 * count + 2))
    for number in range(3):
        mine = [e.data["each"] for e in events if e.data.get("writer") == number]
        assert mine == list(range(count))


def test_old_events_are_forgotten_from_the_front(database: Database) -> None:
    for _ in range(5):
        with database.transaction() as session:
            record_event(session, "test.written")
    place(database)
    execute(database, "UPDATE events SET at = now() - interval '1 day' WHERE position = 2")

    def forget(session: Session) -> int:
        return event_feed.forget_events(session, older_than_s=3600)

    assert database.run(forget) == 0, "nothing goes that has not been published"
    database.run(lambda s: event_feed.hold_relay(s, owner="a", lease_s=60, published=5))
    assert database.run(forget) == 2
    with database.transaction() as session:
        page = event_feed.read_page(session, after=0, limit=10)
        assert ([e.id for e in page.events], page.oldest, page.newest) == ([3, 4, 5], 3, 5)
        assert [e.id for e in event_feed.read_page(session, after=None, limit=2).events] == [4, 5]
    execute(database, "DELETE FROM events")
    with database.transaction() as session:
        page = event_feed.read_page(session, after=5, limit=10)
    assert (page.events, page.oldest, page.newest) == ([], 6, 5)


def test_only_a_commit_with_news_rings(database: Database, fresh_url: str) -> None:
    rung: list[bool] = []
    writer = Database(fresh_url, on_news=lambda: rung.append(True))
    with writer.transaction() as session:
        add_host(session, "hv-a")
        assert not rung, "who is woken before the commit finds nothing"
    assert rung == [True]
    with writer.transaction() as session:
        session.execute(text("UPDATE hosts SET heartbeat_at = now()"))
    assert rung == [True]
    writer.run_one(lambda session: session.execute(text("UPDATE hosts SET fenced_at = now()")))
    assert rung == [True, True]
    writer.dispose()


@pytest.fixture
def broker(services_env: dict[str, str]) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(services_env["INNKEEPER_BROKER_URL"]) as client:
        yield client


@pytest.fixture
def stream(broker: redis.Redis) -> Iterator[str]:
    key = f"test:{uuid.uuid4().hex}"
    yield key
    broker.delete(key)


def make_relay(
    database: Database, stream: str, *, length: int = 1000, owner: str = "a"
) -> EventRelay:
    return EventRelay(database, stream=stream, length=length, max_age_s=0, owner=owner)


def in_stream(broker: redis.Redis, stream: str) -> list[int]:
    entries = broker.xrange(stream)
    events = [EventView.model_validate_json(fields[EVENT_FIELD.encode()]) for _, fields in entries]
    assert [key.decode() for key, _ in entries] == [f"{event.id}-0" for event in events]
    return [event.id for event in events]


def write_events(database: Database, count: int) -> None:
    with database.transaction() as session:
        for _ in range(count):
            record_event(session, "test.written")


def test_a_relay_repeats_nothing_and_another_one_goes_on(
    database: Database, broker: redis.Redis, stream: str
) -> None:
    first, second = make_relay(database, stream), make_relay(database, stream, owner="b")
    write_events(database, 3)
    assert first.relay(broker).published == 3
    assert not second.relay(broker).is_mine
    # As one that died between Redis' answer and its own record of it.
    execute(database, "UPDATE event_relay SET published = 1")
    write_events(database, 1)
    first.release()
    assert second.relay(broker).is_mine
    assert in_stream(broker, stream) == [1, 2, 3, 4]


def test_what_redis_has_lost_is_published_again(
    database: Database, broker: redis.Redis, stream: str
) -> None:
    relay = make_relay(database, stream)
    write_events(database, 4)
    relay.relay(broker)
    broker.delete(stream)
    relay.relay(broker)
    assert in_stream(broker, stream) == [1, 2, 3, 4]


def test_no_more_is_published_than_the_stream_keeps(
    database: Database, broker: redis.Redis, stream: str
) -> None:
    write_events(database, 50)
    make_relay(database, stream, length=20).relay(broker)
    assert in_stream(broker, stream) == list(range(31, 51))


def test_a_stream_of_a_later_life_of_the_database_is_begun_anew(
    database: Database, broker: redis.Redis, stream: str
) -> None:
    """A restored backup gives numbers again that the stream has; Redis would refuse them."""
    broker.xadd(stream, {EVENT_FIELD: "{}"}, id="900-0")
    write_events(database, 2)
    make_relay(database, stream).relay(broker)
    assert in_stream(broker, stream) == [1, 2]


def test_a_full_redis_takes_all_of_a_batch_or_nothing(
    database: Database, broker: redis.Redis, stream: str
) -> None:
    relay = make_relay(database, stream)
    write_events(database, 3)
    broker.config_set("maxmemory", "1")
    try:
        with pytest.raises(ResponseError):
            relay.relay(broker)
    finally:
        broker.config_set("maxmemory", "0")
    assert find_last_entry(broker, stream) == 0
    relay.relay(broker)
    assert in_stream(broker, stream) == [1, 2, 3]


def test_an_idle_relay_costs_one_statement(
    database: Database, broker: redis.Redis, stream: str
) -> None:
    relay = make_relay(database, stream)
    write_events(database, 3)
    relay.relay(broker)
    statements: list[str] = []
    listen(
        database.engine,
        "before_cursor_execute",
        lambda _c, _cursor, statement, *_: statements.append(statement),
    )
    assert relay.relay(broker).published == 0
    assert len(statements) == 1
