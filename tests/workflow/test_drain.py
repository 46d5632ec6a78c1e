"""A host is emptied by an operation over operations."""

from collections.abc import Callable, Iterator
from typing import Any
from uuid import UUID

import pytest
import redis
from sqlalchemy import text

from innkeeper import Innkeeper
from innkeeper.cli.app import run
from innkeeper.errors import Cancelled, Conflict, HostUnsuitable, NoHostFits, NotFound
from lab.handle import Lab
from models.session import Database
from tests.crash_directory import CrashDirectory
from tests.waiting import PATIENCE_S, wait_until
from tests.workflow.conftest import domains_on, remove, revive

pytestmark = pytest.mark.lab

GUESTS = 10
Terminal = Callable[..., str]


@pytest.fixture(scope="module")
def names(client: Innkeeper, lab: Lab) -> Iterator[list[str]]:
    """Ten guests on the first host; the first two are of an affinity group."""
    env = lab.env()
    fields: dict[str, Any] = {
        "image": env["INNKEEPER_LAB_BOOT_IMAGE"],
        "sha256": env["INNKEEPER_LAB_BOOT_IMAGE_SHA256"],
        "memory_mib": 64,
        "host": lab.hosts[0],
    }
    names = [f"d-{number}" for number in range(GUESTS)]
    group = {"name": "d-pair", "policy": "affinity"}
    spawned = [
        client.spawn(name=name, **fields, **({"group": group} if number < 2 else {}))
        for number, name in enumerate(names)
    ]
    for operation in spawned:
        operation.wait(2 * PATIENCE_S)
    yield names
    revive(lab)
    for name in names:
        remove(client, name)


@pytest.fixture
def terminal(
    lab: Lab, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Terminal:
    """Runs the command line; returns what it prints, on both streams."""
    for variable in ("INNKEEPER_BROKER_URL", "INNKEEPER_RESULT_URL"):
        monkeypatch.setenv(variable, lab.env()[variable])

    def call(*arguments: str) -> str:
        code = run(arguments)
        told = capsys.readouterr()
        assert code == 0, told
        return told.out + told.err

    return call


@pytest.fixture(autouse=True)
def opened(client: Innkeeper, lab: Lab) -> Iterator[None]:
    """End every drain that a failed test has left, and open the hosts."""
    yield
    revive(lab)
    for view in client.operations(active=True):
        if view.kind == "drain":
            client.operation(view.id).cancel()

    def is_open() -> bool:
        try:
            return all(client.undrain(host).is_enabled for host in lab.hosts[:2])
        except Conflict:
            return False

    wait_until(is_open, timeout_s=2 * PATIENCE_S, what="the hosts take guests again")


def places(client: Innkeeper, names: list[str]) -> dict[str, str | None]:
    return {view.name: view.host for view in client.instances() if view.name in names}


def outcomes(result: dict[str, Any], names: list[str]) -> dict[str, str]:
    return {g["instance"]: g["outcome"] for g in result["guests"] if g["instance"] in names}


def test_ten_guests_leave_but_those_whose_group_forbids_it_and_control_may_die(
    client: Innkeeper,
    lab: Lab,
    names: list[str],
    crash: CrashDirectory,
    terminal: Terminal,
) -> None:
    a, b = lab.hosts[:2]
    client.stop(names[9], force=True).wait(PATIENCE_S)
    plan = {each.instance: each for each in client.plan_drain(a).guests}
    assert [plan[name].action for name in names] == ["refuse"] * 2 + ["move"] * 7 + ["stay"]
    assert {plan[name].dst for name in names[2:9]} == {b}
    assert "group" in {refusal["code"] for refusal in plan[names[0]].refusals}
    assert client.hosts()[0].is_enabled, "a plan changes nothing"

    crash.arm_kill("drain.move_guests:inside")
    operation = client.drain(a, concurrency=3, reason="new memory")
    assert crash.wait_struck("drain.move_guests:inside")
    wait_until(lambda: not lab.role("control")["running"], what="control has killed itself")
    lab.start("control")
    wait_until(lambda: bool(operation.view().parts), what="the drain goes on")
    again = client.drain(a)
    assert next(again.watch(PATIENCE_S)).id == operation.id, "a host is drained once at a time"
    redis.Redis.from_url(lab.env()["INNKEEPER_BROKER_URL"]).flushall()
    with pytest.raises(Conflict, match="being drained"):
        client.undrain(a)
    with pytest.raises(NoHostFits, match="is drained: new memory"):
        client.spawn(name="d-late", image="/none", host=a).wait(PATIENCE_S)

    result = operation.wait(3 * PATIENCE_S)
    assert again.wait(PATIENCE_S) == result
    told = outcomes(result, names)
    assert [told[name] for name in names] == ["refused"] * 2 + ["moved"] * 7 + ["stays"]
    assert not result["is_empty_of_running"]
    moved = [g for g in result["guests"] if g["outcome"] == "moved"]
    assert all(g["dst"] == b and g["total_ms"] and g["downtime_ms"] for g in moved)
    assert places(client, names) == {n: b if n in names[2:9] else a for n in names}
    assert {domains_on(lab, b)[name] for name in names[2:9]} == {"running"}
    view = operation.view()
    assert len({part.operation_id for part in view.parts}) == len(view.parts)
    assert view.progress.fraction == 1

    story = terminal("explain", str(operation.id))
    print(story)
    assert all(f"live_migrate of {name}" in story for name in names[2:9])

    # What is left goes when it may: the group one by one, and the stopped guest stays.
    last = client.drain(a, migration={"may_split_group": True}).wait(3 * PATIENCE_S)
    assert [outcomes(last, names)[n] for n in (*names[:2], names[9])] == ["moved"] * 2 + ["stays"]
    assert last["is_empty_of_running"]
    host = client.undrain(a)
    assert host.is_enabled


def test_a_guest_that_was_on_its_way_is_waited_for_and_moved(
    client: Innkeeper, lab: Lab, name: str, boot_guest: dict[str, Any], crash: CrashDirectory
) -> None:
    a, b = lab.hosts[:2]
    crash.arm_hold("spawn.create_disks:acting")
    spawn = client.spawn(name=name, host=a, **boot_guest)
    with crash.held("spawn.create_disks:acting"):
        operation = client.drain(a)
        text = f"{name} (held by spawn) to be free"
        assert any(
            step.waiting_for is not None and text in step.waiting_for
            for view in operation.watch(PATIENCE_S)
            for step in view.steps
        )
    assert spawn.wait(2 * PATIENCE_S)["host"] == a
    told = {g["instance"]: g["outcome"] for g in operation.wait(2 * PATIENCE_S)["guests"]}
    assert told[name] == "moved"
    assert client.instance(name).host == b


def test_a_cancelled_drain_takes_back_what_is_under_way_and_begins_nothing_more(
    client: Innkeeper, lab: Lab, names: list[str], crash: CrashDirectory
) -> None:
    b = lab.hosts[1]
    here = [name for name, host in places(client, names).items() if host == b]
    assert len(here) >= 7
    crash.arm_hold("live_migrate.migrate:acting")
    operation = client.drain(b)
    with crash.held("live_migrate.migrate:acting"):
        waiting = next(
            view
            for view in operation.watch(PATIENCE_S)
            if any("1st in line" in part.text for part in view.parts)
        )
        assert len(waiting.parts) == 2, "one moves, one is next in line"
        operation.cancel()
        wait_until(
            lambda: any(part.state == "cancelled" for part in operation.view().parts),
            what="the one in line is cancelled",
        )
        assert not operation.view().state.is_final, "one is under way still"
    with pytest.raises(Cancelled) as caught:
        operation.wait(2 * PATIENCE_S)
    assert len(operation.view().parts) == 2
    assert all(part.state.is_final for part in operation.view().parts)
    told = {g["instance"]: g["outcome"] for g in caught.value.details["guests"]}
    assert list(told.values()).count("cancelled") >= 1
    left = [name for name, host in places(client, names).items() if host == b]
    assert len(left) >= len(here) - 1
    assert all(domains_on(lab, b)[name] == "running" for name in left)
    assert not {host.name: host for host in client.hosts()}[b].is_enabled, "until undrain"


def test_a_host_without_guests_is_drained_at_once_and_wrong_ones_are_refused(
    client: Innkeeper, records: Database, terminal: Terminal
) -> None:
    with pytest.raises(NotFound, match="no host 'hv-none'"):
        client.drain("hv-none").wait(PATIENCE_S)
    with pytest.raises(NotFound):
        client.plan_drain("hv-none")
    with pytest.raises(NotFound):
        client.undrain("hv-none")
    lone = add_silent_host(records)
    try:
        with pytest.raises(HostUnsuitable, match="is down"):
            client.drain(lone).wait(PATIENCE_S)
        set_heartbeat(records, lone, "clock_timestamp() + interval '1 hour'")
        assert "No guest is on the host" in terminal("drain", lone, "--plan")
        assert find_host(client, lone).is_enabled
        told = terminal("drain", lone, "--reason", "a broken fan")
        assert f"0 guests have left {lone}" in told
        assert find_host(client, lone).disabled_reason == "is drained: a broken fan"
        assert f"{lone} is enabled" in terminal("undrain", lone)
        result = client.drain(lone).wait(PATIENCE_S)
        assert (result["guests"], result["is_empty_of_running"]) == ([], True)
        assert not find_host(client, lone).is_enabled
        client.disable_host(lone, "sold")
        kept = client.undrain(lone)
        assert (kept.is_enabled, kept.disabled_reason) == (False, "sold")
        assert f"{lone} stays disabled by {client.requested_by}: sold" in terminal("undrain", lone)
    finally:
        with records.transaction() as session:
            session.execute(text("UPDATE operations SET src_host = NULL WHERE src_host = 'lone'"))
            session.execute(text("DELETE FROM hosts WHERE name = 'lone'"))


def find_host(client: Innkeeper, name: str) -> Any:
    return next(host for host in client.hosts() if host.name == name)


def add_silent_host(records: Database) -> str:
    with records.transaction() as session:
        session.execute(
            text("INSERT INTO hosts (name, uuid) VALUES ('lone', :id)"), {"id": UUID(int=5)}
        )
    return "lone"


def set_heartbeat(records: Database, name: str, to: str) -> None:
    with records.transaction() as session:
        session.execute(
            text(f"UPDATE hosts SET heartbeat_at = {to} WHERE name = :n"),
            {"n": name},
        )
