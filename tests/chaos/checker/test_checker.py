"""The checker stays silent about a sound system, and names each promise that is really broken."""

import json
import re
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from innkeeper import Innkeeper
from innkeeper.errors import PrecheckFailed, catalogue
from lab.handle import Lab
from tests.chaos.checker.checker import Checker, Violation, format_violations
from tests.chaos.checker.consoles import ConsoleWatch
from tests.chaos.checker.operation_invariants import code_of
from tests.chaos.checker.sabotage import Find, file, names, outcome, sql, state_dir
from tests.waiting import wait_until

pytestmark = pytest.mark.lab


def test_a_sound_system_has_no_violations(
    client: Innkeeper, lab: Lab, find: Find, name: str, boot_guest: dict[str, Any]
) -> None:
    a, b = lab.hosts[:2]
    with ConsoleWatch(lab) as consoles:
        instance = client.spawn(name=name, host=a, **boot_guest).wait(60)
        time.sleep(1.2)
        client.migrate(name, dst=b).wait(60)
        time.sleep(1.2)
        client.migrate(name, dst=a).wait(60)
        assert find(settled=False) == []
        client.reboot(name, kind="hard").wait(60)
        time.sleep(1.2)
        client.stop(name, force=True).wait(60)
        found = find(patience_s=15)
        assert not found, format_violations(found)
        client.start(name).wait(60)
        time.sleep(1.2)
        with pytest.raises(PrecheckFailed):
            client.migrate(name, dst=b, storage="shared").wait(60)
        found = find(patience_s=15)
        assert not found, format_violations(found)
        client.delete(name).wait(60)
        found = [*find(patience_s=15), *consoles.violations()]
        assert not found, format_violations(found)
        beats = consoles.beats[instance["id"]]
        assert {beat.host for beat in beats} == {a, b}
        assert sum(beat.counter == 0 for beat in beats) >= 2


def test_a_second_copy_that_runs(lab: Lab, find: Find, moved_guest: dict[str, Any]) -> None:
    src, other = moved_guest["dst"], moved_guest["src"]
    xml = lab.exec(src, ["virsh", "dumpxml", moved_guest["id"]]).stdout
    xml = re.sub(r"<(disk|serial|console) .*?</\1>", "", xml, flags=re.DOTALL)
    copy = lab.layout.host(other) / "run" / "copy.xml"
    copy.write_text(xml)
    lab.exec(other, ["virsh", "define", "/run/copy.xml"])
    try:
        lab.exec(other, ["virsh", "start", moved_guest["id"]])
        found = find()
        assert names(found) == {"runs_once"}
        assert any(f"running on {other} and {src}" in violation.what for violation in found)
        assert any("live_migrate" in line for line in found[0].timeline)
        lab.exec(other, ["virsh", "destroy", moved_guest["id"]])
        assert names(find()) == {"nothing_orphaned"}
    finally:
        lab.exec(other, ["virsh", "undefine", moved_guest["id"]])
        copy.unlink()
    assert find() == []


def test_a_domain_of_another_epoch(lab: Lab, find: Find, moved_guest: dict[str, Any]) -> None:
    change = "UPDATE instances SET domain_epoch = domain_epoch {} 1 WHERE id = %s"
    with sql(lab, change.format("-"), change.format("+"), moved_guest["id"]):
        assert names(find()) == {"runs_once"}


def test_heartbeats_of_two_copies(lab: Lab, moved_guest: dict[str, Any]) -> None:
    here, other = (
        state_dir(lab, host) / "consoles" / f"{moved_guest['id']}.log"
        for host in (moved_guest["dst"], moved_guest["src"])
    )
    with ConsoleWatch(lab) as consoles:
        wait_until(
            lambda: len(consoles.beats.get(moved_guest["id"], [])) >= 2, what="two heartbeats"
        )
        last = consoles.beats[moved_guest["id"]][-1].counter
        assert consoles.violations() == []
        with file(other):
            other.write_text(f"hb {last}\r\n")
            time.sleep(0.5)
            with other.open("a") as console:
                console.write(f"hb {last + 1}\r\nhb {last + 2}")
            time.sleep(0.5)
        found = consoles.violations()
        assert names(found) == {"runs_once"}
        assert "of one boot on" in found[0].what
        assert found[0].timeline
        assert here.exists()


def test_a_guest_that_is_held_by_the_dead(
    lab: Lab, find: Find, moved_guest: dict[str, Any]
) -> None:
    with sql(
        lab,
        "UPDATE instances SET operation_id = %s WHERE id = %s",
        "UPDATE instances SET operation_id = NULL WHERE operation_id = %s",
        moved_guest["operation_id"],
        moved_guest["id"],
    ):
        assert names(find()) == {"operation_ends"}


def test_an_operation_that_ended_late(lab: Lab, find: Find, moved_guest: dict[str, Any]) -> None:
    change = "UPDATE operations SET deadline_at = deadline_at {} interval '1 day' WHERE id = %s"
    with sql(lab, change.format("-"), change.format("+"), moved_guest["operation_id"]):
        assert names(find()) == {"operation_ends"}


def test_an_operation_that_has_not_ended(lab: Lab, find: Find) -> None:
    with sql(
        lab,
        "INSERT INTO operations (id, kind, request_digest, deadline_at)"
        " VALUES (%s, 'stop', '', now() + interval '1 hour')",
        "DELETE FROM operations WHERE id = %s",
        uuid.uuid4(),
    ):
        assert names(find()) == {"operation_ends"}
        assert find(settled=False) == []


def test_a_guest_that_pauses_though_its_record_says_active(
    lab: Lab, find: Find, moved_guest: dict[str, Any]
) -> None:
    lab.exec(moved_guest["dst"], ["virsh", "suspend", moved_guest["id"]])
    try:
        assert names(find(patience_s=2)) == {"record_is_true"}
    finally:
        lab.exec(moved_guest["dst"], ["virsh", "resume", moved_guest["id"]])
    wait_until(lambda: find() == [], what="the record follows")


def test_a_deleted_guest_that_has_a_file(
    client: Innkeeper, lab: Lab, find: Find, name: str, boot_guest: dict[str, Any]
) -> None:
    instance = client.spawn(name=name, **boot_guest).wait(60)
    client.delete(name).wait(60)
    with file(state_dir(lab, instance["host"]) / "instances" / instance["id"] / "root.qcow2"):
        assert names(find()) == {"record_is_true"}


def test_a_guest_that_is_not_where_its_migration_says(
    lab: Lab, find: Find, moved_guest: dict[str, Any]
) -> None:
    change = "UPDATE operations SET result = jsonb_set(result, '{{dst}}', '\"{}\"') WHERE id = %s"
    with (
        sql(
            lab,
            change.format("hv-x"),
            change.format(moved_guest["dst"]),
            moved_guest["operation_id"],
        ),
        outcome(lab, moved_guest["operation_id"], lambda meta: meta["result"].update(dst="hv-x")),
    ):
        assert names(find()) == {"record_is_true"}


@pytest.fixture
def failed(
    client: Innkeeper, lab: Lab, find: Find, moved_guest: dict[str, Any]
) -> Iterator[uuid.UUID]:
    """A migration that was refused, of which the ledger does not say what it undid."""
    failing = client.migrate(moved_guest["id"], dst=moved_guest["src"], storage="shared")
    with pytest.raises(PrecheckFailed):
        failing.wait(60)
    assert find() == []
    forget = "SET detail = detail || jsonb_build_object('undo', undo), undo = '{}'"
    recall = "SET undo = detail->'undo', detail = detail - 'undo'"
    which = "WHERE operation_id = %s AND undo <> '{}'"
    back = "WHERE operation_id = %s AND detail ? 'undo'"
    with sql(lab, f"UPDATE steps {forget} {which}", f"UPDATE steps {recall} {back}", failing.id):
        yield failing.id
    assert find() == []


def test_an_unknown_effect_though_the_record_is_sure(
    lab: Lab, find: Find, failed: uuid.UUID
) -> None:
    change = 'UPDATE operations SET error = error || \'{{"effect": "{}"}}\' WHERE id = %s'
    with sql(lab, change.format("unknown"), change.format("rolled_back"), failed):
        assert names(find()) == {"record_is_true"}


def test_a_guest_that_is_not_as_it_was_before_the_failure(
    lab: Lab, find: Find, failed: uuid.UUID
) -> None:
    change = "UPDATE operations SET state_before = '{}' WHERE id = %s"
    with sql(lab, change.format("paused"), change.format("active"), failed):
        assert names(find()) == {"record_is_true"}


@pytest.mark.parametrize(
    ("change", "back"),
    [
        ("SET state = 'queued'", "SET state = 'done'"),
        ("SET state = 'undo'", "SET state = 'done'"),
        ("SET attempt = 0", "SET attempt = 1"),
        ("SET failures = 2", "SET failures = 0"),
        (
            "SET started_at = started_at - interval '1 hour'",
            "SET started_at = started_at + interval '1 hour'",
        ),
    ],
)
def test_a_ledger_that_contradicts_itself(
    lab: Lab, find: Find, moved_guest: dict[str, Any], change: str, back: str
) -> None:
    which = "WHERE operation_id = %s AND name = 'prepare_destination'"
    with sql(
        lab,
        f"UPDATE steps {change} {which}",
        f"UPDATE steps {back} {which}",
        moved_guest["operation_id"],
    ):
        assert names(find()) == {"step_done_once"}


def test_an_operation_that_ended_twice(lab: Lab, find: Find, moved_guest: dict[str, Any]) -> None:
    with sql(
        lab,
        "INSERT INTO events (kind, operation_id) VALUES ('operation.failed', %s)",
        "DELETE FROM events WHERE kind = 'operation.failed' AND operation_id = %s",
        moved_guest["operation_id"],
    ):
        assert names(find()) == {"step_done_once"}


@pytest.mark.parametrize(
    "change",
    [
        lambda meta: meta.update(status="FAILURE"),
        lambda meta: meta["result"].update(host="hv-x"),
    ],
    ids=["another status", "another result"],
)
def test_an_outcome_that_is_not_the_records(
    lab: Lab, find: Find, moved_guest: dict[str, Any], change: Callable[[dict[str, Any]], object]
) -> None:
    with outcome(lab, moved_guest["operation_id"], change):
        assert names(find(settled=False)) == {"outcome_published"}


def test_an_outcome_that_is_missing(lab: Lab, find: Find, moved_guest: dict[str, Any]) -> None:
    with outcome(lab, moved_guest["operation_id"], None):
        assert names(find()) == {"outcome_published"}
        assert find(settled=False) == []
        checker = Checker(lab, patience_s=0)
        checker.note_redis_loss()
        assert "outcome_published" not in names(checker.check(settled=True))


def test_every_errors_code_is_read_from_its_stored_class() -> None:
    codes = {code_of({"exc_type": kind.__name__}): code for code, kind in catalogue().items()}
    assert all(read == code for read, code in codes.items())


def test_violations_are_told_in_text_and_in_json() -> None:
    violation = Violation("runs_once", "twice", ["0 migrate on hv-a: done"])
    text = format_violations([violation])
    assert text.startswith("1 violation\n* runs_once: twice\n")
    assert "0 migrate on hv-a" in text
    assert json.loads(json.dumps(violation.to_json()))["what"] == "twice"
