"""Guests that write their memory faster than the link carries it, on a real, slow link."""

import json
from typing import Any

import pytest
from sqlalchemy import text

from innkeeper import Innkeeper
from innkeeper.errors import MigrationTimeout
from innkeeper.operation import Operation
from lab.handle import Lab
from models.session import Database
from tests.chaos.virsh import virsh
from tests.waiting import wait_until
from tests.workflow.conftest import domains_on

pytestmark = pytest.mark.lab

MIB = 2**20
LINK_MIB_S = 5
DIRTY_MIB_S, DIRTY_MIB = 30, 20


@pytest.fixture
def busy_guest(client: Innkeeper, lab: Lab, name: str, linux_guest: dict[str, Any]) -> str:
    """A guest on the first host that rewrites its memory ten times as fast as the link carries."""
    client.spawn(name=name, host=lab.hosts[0], **linux_guest).wait(180)
    command = {
        "execute": "guest-exec",
        "arguments": {"path": "/bin/dirty", "arg": [str(DIRTY_MIB_S), str(DIRTY_MIB)]},
    }
    virsh(lab, lab.hosts[0], "qemu-agent-command", name, json.dumps(command))
    return name


def facts_of(records: Database, operation: Operation) -> dict[str, Any]:
    query = text("SELECT forecast, decisions FROM migrations WHERE operation_id = :id")
    return records.run(
        lambda session: dict(session.execute(query, {"id": operation.id}).mappings().one())
    )


def test_a_guest_that_does_not_converge_is_left_where_it_is(
    client: Innkeeper, lab: Lab, records: Database, busy_guest: str
) -> None:
    a, b = lab.hosts[:2]
    operation = client.migrate(
        busy_guest,
        dst=b,
        bandwidth_mib_s=LINK_MIB_S,
        max_downtime_ms=600,
        deadline_s=45,
        auto_converge=False,
    )

    with pytest.raises(MigrationTimeout, match="the link carries"):
        operation.wait(180)

    told = facts_of(records, operation)
    assert not told["forecast"]["will_converge"]
    assert told["forecast"]["dirty_bytes_s"] > LINK_MIB_S * MIB
    # A guest that has just booted has not touched all that it was given.
    touched_mib = told["forecast"]["memory_bytes"] / MIB
    assert DIRTY_MIB < touched_mib < client.instance(busy_guest).memory_mib
    acts = [decision["act"] for decision in told["decisions"]]
    assert acts[0] == "raise_downtime"
    assert acts[-1] == "abort"
    view = client.instance(busy_guest)
    assert (view.host, view.state) == (a, "active")
    wait_until(lambda: domains_on(lab, a)[busy_guest] == "running", what="it runs on")
    assert busy_guest not in domains_on(lab, b)


def test_or_is_paused_so_that_the_rest_crosses(
    client: Innkeeper, lab: Lab, records: Database, busy_guest: str
) -> None:
    a, b = lab.hosts[:2]
    operation = client.migrate(
        busy_guest,
        dst=b,
        bandwidth_mib_s=LINK_MIB_S,
        deadline_s=15,
        auto_converge=False,
        on_timeout="pause",
    )
    fractions = [view.progress.fraction for view in operation.watch(240)]

    moved = operation.result()

    assert fractions == sorted(fractions)
    assert moved["host"] == b
    assert not moved["forecast"]["will_converge"]
    assert facts_of(records, operation)["decisions"][-1]["act"] == "pause"
    assert domains_on(lab, b)[busy_guest] == "running"
    assert busy_guest not in domains_on(lab, a)
