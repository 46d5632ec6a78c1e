"""Who holds a cached image, on a real Postgres."""

import threading
from collections.abc import Callable
from uuid import UUID

import pytest
from sqlalchemy import func, text, update
from sqlalchemy.orm import Session

from innkeeper.states import InstanceState, OperationState
from models import debts, ledger, operations
from models.cached_images import Found, list_peers, mark_rotten, record_copy
from models.disk import Disk
from models.host import Host
from models.image_leases import list_holders, lock_image, take_leases
from models.image_place import ImagePlace
from models.instance import Instance
from models.operation import Operation
from models.session import Database
from tests.models.rows import add_host, add_instance, add_operation
from tests.waiting import PATIENCE_S, wait_until

A, B = "a" * 64, "b" * 64
HERE = ImagePlace("hv-a", "local", is_shared=False)
THERE = ImagePlace("hv-b", "local", is_shared=False)
SHARED = ImagePlace("hv-b", "local", is_shared=True)


@pytest.fixture(autouse=True)
def two_hosts(database: Database) -> None:
    with database.transaction() as session:
        for name, place in (("hv-a", HERE), ("hv-b", THERE)):
            add_host(session, name)
            for digest in (A, B):
                found = Found(digest, "qcow2", f"/images/{digest}.qcow2", 10, 20)
                record_copy(session, place, found, source="http://x/y", is_fresh=True)


def set_instance(session: Session, instance_id: UUID, **values: object) -> None:
    session.execute(update(Instance).where(Instance.id == instance_id).values(**values))


def begin_operation(session: Session) -> ledger.ClaimedStep:
    """Claim the first step of an operation of a guest on hv-a."""
    operation_id = add_operation(session, add_instance(session, "vm-1", host="hv-a"), host="hv-a")
    claimed = ledger.claim_step(session, operation_id, 0, owner="n#1")
    assert claimed is not None
    return claimed


def add_disk(
    session: Session, instance_id: UUID, backing: str | None, remote_url: str | None = None
) -> None:
    session.add(
        Disk(
            instance_id=instance_id,
            target="vda",
            kind="root",
            file="root.qcow2",
            format="qcow2",
            bus="virtio",
            size_bytes=1,
            backing_sha256=backing,
            remote_url=remote_url,
        )
    )
    session.flush()


Mark = Callable[[Session, UUID], None]


@pytest.mark.parametrize(
    ("mark", "held"),
    [
        (lambda s, i: None, False),
        (lambda s, i: set_instance(s, i, image_sha256=A), True),
        (lambda s, i: set_instance(s, i, spec={"sha256": A}), True),
        (lambda s, i: set_instance(s, i, domain_xml=f"<source file='/images/{A}.qcow2'/>"), True),
        (lambda s, i: set_instance(s, i, spec={"direct_boot": {"kernel_sha256": A}}), True),
        (lambda s, i: add_disk(s, i, A), True),
        (lambda s, i: set_instance(s, i, domain_xml=f"<x>{A}0</x>"), False),
    ],
    ids=["nothing", "image", "spec", "domain", "kernel", "disk", "longer word"],
)
def test_a_guest_holds_what_its_record_names(database: Database, mark: Mark, held: bool) -> None:
    with database.transaction() as session:
        instance_id = add_instance(session, "vm-1", host="hv-a")
        mark(session, instance_id)
        session.flush()
        assert list_holders(session, HERE) == ({A: ["vm-1"]} if held else {})
        assert list_holders(session, THERE) == {}
        assert list_holders(session, SHARED) == ({A: ["vm-1"]} if held else {})
        set_instance(
            session, instance_id, state=InstanceState.DELETED, deleted_at=func.clock_timestamp()
        )
        assert list_holders(session, SHARED) == {}


def test_a_copied_disk_holds_nothing(database: Database) -> None:
    with database.transaction() as session:
        instance_id = add_instance(session, "vm-1", host="hv-a")
        set_instance(session, instance_id, image_sha256=A, spec={"sha256": A})
        add_disk(session, instance_id, None)
        assert list_holders(session, HERE) == {}


def test_a_guest_that_reads_from_its_source_holds_the_copy_that_is_made_for_it(
    database: Database,
) -> None:
    with database.transaction() as session:
        instance_id = add_instance(session, "vm-1", host="hv-a")
        set_instance(session, instance_id, spec={"sha256": A})
        add_disk(session, instance_id, None, remote_url="http://x/y")
        assert list_holders(session, HERE) == {A: ["vm-1"]}


def test_a_guest_in_another_pool_holds_nothing_here(database: Database) -> None:
    with database.transaction() as session:
        instance_id = add_instance(session, "vm-1", host="hv-a")
        set_instance(session, instance_id, image_sha256=A, pool="other")
        assert list_holders(session, HERE) == {}


def test_a_guest_on_its_way_holds_its_image_on_both_sides(database: Database) -> None:
    with database.transaction() as session:
        instance_id = add_instance(session, "vm-1", host="hv-a")
        set_instance(session, instance_id, image_sha256=A)
        operation_id = add_operation(session, instance_id)
        session.execute(
            update(Operation)
            .where(Operation.id == operation_id)
            .values(src_host="hv-a", dst_host="hv-b")
        )
        assert list_holders(session, THERE) == {A: ["vm-1"]}
        operations.end_operation(session, operation_id, OperationState.SUCCEEDED, result={})
        assert list_holders(session, THERE) == {}
        debts.owe(session, operation_id)
        assert list_holders(session, THERE) == {A: ["vm-1"]}


def test_a_step_holds_what_it_intends_until_its_operation_has_ended(database: Database) -> None:
    with database.transaction() as session:
        claimed = begin_operation(session)
        operation_id = claimed.key.operation_id
        take_leases(session, HERE, claimed.key, [A])
        take_leases(session, HERE, claimed.key, [A, B])
        holder = [f"stop {operation_id}"]
        assert list_holders(session, HERE) == {A: holder, B: holder}
        assert list_holders(session, THERE) == {}
        ledger.complete_step(session, claimed.key, {})
        assert set(list_holders(session, HERE)) == {A, B}
        operations.end_operation(session, operation_id, OperationState.SUCCEEDED, result={})
        assert list_holders(session, HERE) == {}


def test_a_lease_is_not_taken_while_another_looks_whether_there_is_one(database: Database) -> None:
    with database.transaction() as session:
        claimed = begin_operation(session)
    taker = threading.Thread(
        target=lambda: database.run_one(
            lambda connection: take_leases(connection, HERE, claimed.key, [A, B])
        )
    )
    with database.transaction() as session:
        lock_image(session, HERE, B)
        taker.start()
        wait_until(lambda: _count_waiting(session) == 1, what="the taker waits")
        assert list_holders(session, HERE) == {}
    taker.join(PATIENCE_S)
    with database.transaction() as session:
        assert set(list_holders(session, HERE)) == {A, B}


def _count_waiting(session: Session) -> int:
    waiting = text("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted")
    return int(session.execute(waiting).scalar_one())


def test_peers_are_living_hosts_with_a_sound_copy(database: Database) -> None:
    url = f"http://hv-b:9/images/{A}.qcow2"

    def peers(session: Session) -> list[str]:
        return list_peers(session, sha256=A, host="hv-a", limit=3)

    with database.transaction() as session:
        assert peers(session) == []
        session.execute(update(Host).values(facts={"image_peer_url": "http://hv-b:9"}))
        assert peers(session) == [url]
        assert list_peers(session, sha256=A, host="hv-b", limit=0) == []
        mark_rotten(session, THERE, A)
        assert peers(session) == []
        found = Found(A, "qcow2", f"/images/{A}.qcow2", 10, 20)
        record_copy(session, THERE, found, source="", is_fresh=False)
        assert peers(session) == [], "one that was found and not fetched is as rotten as before"
        record_copy(session, THERE, found, source="", is_fresh=True)
        assert peers(session) == [url]
        session.execute(update(Host).values(heartbeat_at=func.now() - func.make_interval(0, 0, 1)))
        assert peers(session) == []
