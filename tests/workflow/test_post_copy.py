"""Post-copy on a shared pool: begun, killed, cut, and never undone."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import text

from innkeeper import Innkeeper
from innkeeper.errors import PrecheckFailed, StateConflict
from innkeeper.operation import Operation
from lab.handle import Lab
from models.session import Database
from tests.chaos.virsh import virsh
from tests.waiting import wait_until
from tests.workflow.conftest import domains_on, remove
from tests.workflow.test_steering import facts_of, place_of, wait_for_phase

pytestmark = pytest.mark.lab

SLOW_MIB_S = 2
BUSY = "t-post-copy"


@pytest.fixture(scope="module")
def busy(client: Innkeeper, lab: Lab) -> Iterator[str]:
    """A guest on the shared pool that dirties its memory; it moves with every test."""
    env = lab.env()
    client.spawn(
        name=BUSY,
        host=lab.hosts[0],
        image=env["INNKEEPER_LAB_IMAGE"],
        sha256=env["INNKEEPER_LAB_IMAGE_SHA256"],
        memory_mib=256,
        pool="shared",
        wait="agent",
        migration={"auto_converge": False, "post_copy": True},
    ).wait(180)
    command = {"execute": "guest-exec", "arguments": {"path": "/bin/dirty", "arg": ["30", "40"]}}
    virsh(lab, lab.hosts[0], "qemu-agent-command", BUSY, json.dumps(command))
    yield BUSY
    lab.heal()
    remove(client, BUSY)


def assert_only_on(client: Innkeeper, lab: Lab, host: str, other: str) -> None:
    view = client.instance(BUSY)
    assert (view.host, view.state, view.operation_id) == (host, "active", None)
    assert domains_on(lab, host)[BUSY] == "running"
    wait_until(lambda: BUSY not in domains_on(lab, other), what="the source is clean")
    ping = json.dumps({"execute": "guest-ping"})
    assert "return" in virsh(lab, host, "qemu-agent-command", BUSY, ping)


def events_of(records: Database, operation: Operation) -> list[str]:
    query = text("SELECT kind FROM events WHERE operation_id = :id ORDER BY id")
    return records.run(lambda s: list(s.execute(query, {"id": operation.id}).scalars()))


def test_at_the_deadline_and_then_there_is_no_way_back_though_the_worker_dies(
    client: Innkeeper, lab: Lab, records: Database, busy: str
) -> None:
    here, there = place_of(client, lab, busy)
    operation = client.migrate(
        busy, dst=there, bandwidth_mib_s=SLOW_MIB_S, deadline_s=6, on_timeout="post_copy"
    )
    wait_for_phase(operation, "post_copy")
    with pytest.raises(StateConflict, match="post-copy"):
        operation.cancel()
    with pytest.raises(StateConflict, match="ends by itself"):
        client.migrate_force_complete(busy)
    with pytest.raises(StateConflict, match="only bandwidth_mib_s"):
        client.migrate_set(busy, deadline_s=100)
    lab.kill(f"worker:{here}")
    lab.start(f"worker:{here}")
    wait_until(
        lambda: next(s for s in operation.view().steps if s.name == "migrate").attempt == 2,
        what="the post-copy is adopted",
    )
    client.migrate_set(busy, bandwidth_mib_s=0)

    moved = operation.wait(180)

    assert (moved["host"], moved["handover"]) == (there, "fast")
    view = facts_of(operation.view())
    assert not moved["forecast"]["will_converge"]
    assert [d["act"] for d in view.decisions] == ["post_copy", "set"]
    assert view.policy["handover"] == {"value": "fast", "from": "post_copy"}
    assert "migration.post_copy" in events_of(records, operation)
    assert_only_on(client, lab, there, here)


def test_where_no_lock_protects_the_disk_or_qemu_cannot_it_is_refused(
    client: Innkeeper, lab: Lab, name: str, boot_guest: dict[str, Any]
) -> None:
    a, b = lab.hosts[:2]
    client.spawn(name=name, host=a, **boot_guest).wait(120)
    with pytest.raises(PrecheckFailed) as refused:
        client.migrate(name, dst=b, post_copy=True, parallel_connections=2).wait(120)
    # The lab's QEMU is 7.2, which cannot do both at once.
    assert {f["check"] for f in refused.value.details["failures"]} == {"handover", "parallel"}
    assert domains_on(lab, a)[name] == "running"
