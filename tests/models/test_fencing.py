"""Fencing on a real Postgres: what proves a copy stale, and who comes first, return or move."""

from uuid import UUID

import pytest
from sqlalchemy import text
from sqlalchemy.orm import Session

from innkeeper.errors import HostReturned, StateConflict
from models.fencing import (
    Evacuation,
    finish_return,
    get_vitals,
    list_stale_copies,
    list_unexpected,
    note_return,
    record_fencing,
    require_absent,
)
from models.host import Host
from models.hosts import Heartbeat, beat_heart, enable_host
from models.operations import insert_operation
from models.session import Database
from tests.models.rows import add_host, add_instance, new_operation


def fence(session: Session, host: str) -> UUID:
    new = new_operation("evacuate")
    insert_operation(session, new, [])
    record_fencing(
        session,
        operation_id=new.id,
        host=host,
        proof="override",
        hook=None,
        output=None,
        requested_by="mira",
        reason="pulled the plug",
    )
    return new.id


def evacuate(session: Session, name: str, fencing_id: UUID, *, epoch: int = 5) -> UUID:
    """Write a guest that was taken from hv-a to hv-b."""
    instance_id = add_instance(session, name, host="hv-b")
    session.execute(
        text("UPDATE instances SET epoch = :e, domain_epoch = :e WHERE id = :id"),
        {"e": epoch, "id": instance_id},
    )
    new = new_operation("evacuate_instance")
    insert_operation(session, new, [])
    session.add(
        Evacuation(
            operation_id=new.id,
            fencing_id=fencing_id,
            instance_id=instance_id,
            src_host="hv-a",
            dst_host="hv-b",
            domain_epoch=epoch,
        )
    )
    session.flush()
    return instance_id


@pytest.fixture
def fencing_id(database: Database) -> UUID:
    with database.transaction() as session:
        add_host(session, "hv-a")
        add_host(session, "hv-b")
        return fence(session, "hv-a")


def test_a_fenced_host_is_closed_and_not_heard(database: Database, fencing_id: UUID) -> None:
    with database.transaction() as session:
        host = session.get_one(Host, "hv-a")
        host.worker_id = "w#1"
        assert (host.is_enabled, host.disabled_by) == (False, "mira")
        assert host.disabled_reason == "fenced: pulled the plug"
        session.flush()
        assert beat_heart(session, "hv-a", "w#1") is Heartbeat.FENCED
        assert beat_heart(session, "hv-a", "w#2") is Heartbeat.REPLACED
        with pytest.raises(StateConflict):
            enable_host(session, "hv-a", kind="operator")
        assert get_vitals(session, "hv-a").fencing_id == fencing_id
        assert note_return(session, "hv-a")
        assert get_vitals(session, "hv-a").fencing_id is None
        finish_return(session, "hv-a")
        assert beat_heart(session, "hv-a", "w#1") is Heartbeat.OURS
        assert not note_return(session, "hv-a")
        assert not session.get_one(Host, "hv-a", populate_existing=True).is_enabled
        enable_host(session, "hv-a", kind="operator")


def test_nothing_is_taken_from_a_host_that_is_back(database: Database, fencing_id: UUID) -> None:
    with database.transaction() as session:
        require_absent(session, fencing_id, "hv-a")
        note_return(session, "hv-a")
        with pytest.raises(HostReturned):
            require_absent(session, fencing_id, "hv-a")


def test_only_a_record_and_an_older_epoch_prove_a_copy_stale(
    database: Database, fencing_id: UUID
) -> None:
    with database.transaction() as session:
        stale, same, back = (evacuate(session, n, fencing_id) for n in ("stale", "same", "back"))
        unrecorded = add_instance(session, "unrecorded", host="hv-b")
        session.execute(
            text("UPDATE instances SET epoch = 5, domain_epoch = 5 WHERE id = :id"),
            {"id": unrecorded},
        )
        session.execute(text("UPDATE instances SET host = 'hv-a' WHERE id = :id"), {"id": back})
        note_return(session, "hv-a")
        domains = {stale: 4, same: 5, back: 4, unrecorded: 4, UUID(int=7): 1}
        found = list_stale_copies(session, "hv-a", domains)
        assert [(copy.instance_id, copy.domain_epoch) for copy in found] == [(stale, 4)]
        assert list_stale_copies(session, "hv-b", domains) == []
        unexpected = list_unexpected(session, "hv-a", list(domains.items()))
        names = {(each["name"], each["host"]) for each in unexpected}
        assert ("unrecorded", "hv-b") in names
        assert (None, None) in names
        finish_return(session, "hv-a")
        # The next time that it is fenced, an old record proves nothing.
        fence(session, "hv-a")
        note_return(session, "hv-a")
        assert list_stale_copies(session, "hv-a", domains) == []
