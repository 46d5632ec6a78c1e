"""A host dies: proof first, then its guests run elsewhere; what it may do when it returns."""

import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from innkeeper import Innkeeper
from innkeeper.cli.app import run
from innkeeper.errors import (
    Busy,
    Cancelled,
    FencingFailed,
    HostFenced,
    NotFenced,
    NotFound,
    ServiceError,
    StateConflict,
)
from lab.errors import LabError
from lab.handle import Lab
from models.session import Database
from tests.crash_directory import CrashDirectory
from tests.waiting import PATIENCE_S, wait_until
from tests.workflow.conftest import domains_on, files_of, remove, revive

pytestmark = pytest.mark.lab

SpawnGuest = Callable[..., dict[str, Any]]


class Hook:
    """The fencing hook of the lab's control worker: a script that a test writes."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def ends_with(self, code: int) -> None:
        self.path.write_text(f'echo "$1 at $2: fenced"\nexit {code}\n')

    def start_control(self, lab: Lab) -> None:
        """Start control, if it is dead, so that it knows of the hook."""
        command = ["/bin/sh", str(self.path), "{host}", "{address}"]
        lab.start("control", env={"INNKEEPER_FENCING_HOOK": json.dumps(command)})


@pytest.fixture(scope="module")
def hook(lab: Lab) -> Iterator[Hook]:
    """Let control know of a fencing hook; the script is written by the tests."""
    hook = Hook(lab.layout.root / "fence.sh")
    lab.kill("control")
    hook.start_control(lab)
    yield hook
    lab.kill("control")
    lab.start("control")


@pytest.fixture
def spawn(
    client: Innkeeper, lab: Lab, name: str, boot_guest: dict[str, Any]
) -> Iterator[SpawnGuest]:
    """Make guests on the first host; all are deleted afterwards, and the host is opened again."""
    made: list[str] = []

    def make(suffix: str, *, pool: str = "shared") -> dict[str, Any]:
        made.append(f"{name}-{suffix}")
        fields = {**boot_guest, "pool": pool, "host": lab.hosts[0]}
        return client.spawn(name=made[-1], **fields).wait(120)

    yield make
    lab.heal()
    revive(lab)
    reopen(client, lab.hosts[0])
    for each in made:
        remove(client, each)


def reopen(client: Innkeeper, host: str) -> None:
    """Wait until a returned host is clean, and let it take guests."""

    def is_open() -> bool:
        with suppress(StateConflict):
            return client.enable_host(host).is_enabled
        return False

    wait_until(is_open, what=f"{host} is clean and open")


def die(lab: Lab, records: Database, host: str, *, guests: list[str]) -> None:
    """Let a host die: its worker, its libvirtd, its guests; a minute ago, as the records say."""
    for role in (f"worker:{host}", f"libvirtd:{host}", *(f"qemu:{host}:{each}" for each in guests)):
        with suppress(LabError):
            lab.kill(role)
    fall_silent(records, host)


def fall_silent(records: Database, host: str) -> None:
    with records.transaction() as session:
        session.execute(
            text(
                "UPDATE hosts SET heartbeat_at = heartbeat_at - interval '1 minute' "
                "WHERE name = :host"
            ),
            {"host": host},
        )


def host_view(client: Innkeeper, host: str) -> Any:
    return next(each for each in client.hosts() if each.name == host)


def fencings_of(records: Database, host: str) -> list[Any]:
    with records.transaction() as session:
        return list(
            session.execute(
                text("SELECT * FROM fencings WHERE host = :host ORDER BY fenced_at"),
                {"host": host},
            )
        )


def test_without_proof_of_death_nothing_is_done(
    client: Innkeeper, lab: Lab, records: Database
) -> None:
    host = lab.hosts[0]
    known = len(fencings_of(records, host))
    with pytest.raises(NotFenced, match="Nothing proves"):
        client.evacuate(host).wait(60)
    with pytest.raises(NotFenced, match="whatever anybody says"):
        client.evacuate(host, confirmed_dead="I pulled the plug").wait(60)
    view = host_view(client, host)
    assert (view.is_enabled, view.fenced_at) == (True, None)
    assert len(fencings_of(records, host)) == known


def test_a_hook_that_fails_changes_nothing(
    client: Innkeeper, lab: Lab, records: Database, hook: Hook, spawn: SpawnGuest
) -> None:
    host = lab.hosts[0]
    guest = spawn("stays")
    known = len(fencings_of(records, host))
    hook.ends_with(3)
    with pytest.raises(FencingFailed, match="code 3") as caught:
        client.evacuate(host).wait(60)
    address = lab.description.host(host).address
    assert caught.value.details["output"] == f"{host} at {address}: fenced"
    view = host_view(client, host)
    assert (view.is_enabled, view.fenced_at) == (True, None)
    assert len(fencings_of(records, host)) == known
    assert domains_on(lab, host)[guest["name"]] == "running"


def test_the_guests_of_a_dead_host_run_elsewhere(
    client: Innkeeper,
    lab: Lab,
    records: Database,
    hook: Hook,
    spawn: SpawnGuest,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    a, b = lab.hosts[:2]
    active, stopped, local = spawn("active"), spawn("stopped"), spawn("local", pool="local")
    client.stop(stopped["name"], force=True).wait(60)
    die(lab, records, a, guests=[active["name"], local["name"]])
    plan = client.evacuation_plan(a)
    assert plan.proof == "hook"
    told = {guest.name: (guest.action, guest.dst) for guest in plan.guests}
    assert told[active["name"]] == ("start", b)
    assert told[stopped["name"]] == ("define", b)
    assert told[local["name"]] == ("leave", None)
    hook.ends_with(0)
    for variable in ("INNKEEPER_BROKER_URL", "INNKEEPER_RESULT_URL"):
        monkeypatch.setenv(variable, lab.env()[variable])
    assert run(["evacuate", a, "--plan"]) == 0
    assert local["name"] in capsys.readouterr().out
    # One guest stays.
    assert run(["evacuate", a, "--reason", "power supply", "--json"]) == 1
    result = json.loads(capsys.readouterr().out)["result"]
    assert (result["moved"], result["failed"], result["left"]) == (2, 0, 1)
    outcomes = {guest["name"]: guest for guest in result["guests"]}
    assert "no other host sees" in outcomes[local["name"]]["message"]
    moved = client.instance(active["name"])
    assert (moved.host, moved.state) == (b, "active")
    assert moved.epoch > active["epoch"]
    off = client.instance(stopped["name"])
    assert (off.host, off.state) == (b, "stopped")
    stays = client.instance(local["name"])
    assert (stays.host, stays.operation_id) == (a, None)
    on_b = domains_on(lab, b)
    assert (on_b[active["name"]], on_b[stopped["name"]]) == ("running", "shut off")
    assert local["name"] not in on_b
    assert files_of(lab, b, local["id"]) == []
    view = host_view(client, a)
    assert not view.is_enabled
    assert view.disabled_reason == "fenced: power supply"
    fencing = fencings_of(records, a)[-1]
    assert (fencing.proof, fencing.hook, fencing.returned_at) == ("hook", "sh", None)
    assert fencing.output.endswith("fenced")
    with pytest.raises(StateConflict, match="fenced"):
        client.enable_host(a)
    lab.start(f"libvirtd:{a}")
    assert domains_on(lab, a)[active["name"]] == "shut off"
    lab.start(f"worker:{a}")
    wait_until(lambda: host_view(client, a).fenced_at is None, what="the returned host is clean")
    on_a = domains_on(lab, a)
    assert (active["name"] in on_a, stopped["name"] in on_a) == (False, False)
    assert on_a[local["name"]] == "shut off"
    assert not host_view(client, a).is_enabled
    assert files_of(lab, a, active["id"]) != []
    # Its console's log on the dead host went with the stale domain.
    assert not [path for path in files_of(lab, a, active["id"]) if "/consoles/" in path]
    assert domains_on(lab, b)[active["name"]] == "running"
    reopen(client, a)
    assert client.start(local["name"]).wait(60)["host"] == a
    assert client.stop(active["name"], force=True).wait(60)["host"] == b
    assert client.start(stopped["name"]).wait(60)["host"] == b


def test_what_was_under_way_on_a_dead_host_is_ended_or_led_on(
    client: Innkeeper,
    lab: Lab,
    records: Database,
    hook: Hook,
    spawn: SpawnGuest,
    crash: CrashDirectory,
) -> None:
    a, b = lab.hosts[:2]
    leaving, stopping, coming = spawn("leaving", pool="local"), spawn("stopping"), spawn("coming")
    client.migrate(coming["name"], dst=b).wait(120)
    stop = client.stop(stopping["name"], grace_s=600)
    next(view for view in stop.watch(PATIENCE_S) if view.state == "running")
    point = "live_migrate.check_destination:acting"
    crash.arm_hold(point)
    coming_back = client.migrate(coming["name"], dst=a)
    assert crash.wait_held(point)
    point = "live_migrate.migrate:acted"
    crash.arm_kill(point)
    leave = client.migrate(leaving["name"], dst=b)
    assert crash.wait_struck(point)
    assert domains_on(lab, b)[leaving["name"]] == "paused"
    die(lab, records, a, guests=[stopping["name"]])
    crash.clear()
    hook.ends_with(0)
    result = client.evacuate(a).wait(180)
    # The only copy of its disk is where it has gone; its memory is there as well.
    assert leave.wait(60)["host"] == b
    assert domains_on(lab, b)[leaving["name"]] == "running"
    for ended in (stop, coming_back):
        with pytest.raises(HostFenced):
            ended.wait(60)
    assert [(g["name"], g["outcome"]) for g in result["guests"]] == [(stopping["name"], "moved")]
    for guest in (leaving, stopping, coming):
        view = client.instance(guest["name"])
        assert (view.host, view.state, view.operation_id) == (b, "active", None)
    lab.start(f"libvirtd:{a}")
    lab.start(f"worker:{a}")
    reopen(client, a)
    wait_until(
        lambda: not domains_on(lab, a).keys() & {leaving["name"], stopping["name"]},
        what="nothing is left on the returned host",
    )
    wait_until(lambda: files_of(lab, a, leaving["id"]) == [], what="nor any file")


def test_a_fence_that_was_a_lie_leaves_one_copy(
    client: Innkeeper,
    lab: Lab,
    records: Database,
    hook: Hook,
    spawn: SpawnGuest,
    crash: CrashDirectory,
) -> None:
    """The host's guest runs on all the time: its lock on the disk keeps the other from running."""
    a, b = lab.hosts[:2]
    guest, bystander = spawn("doubled"), spawn("bystander", pool="local")
    lab.kill(f"worker:{a}")
    fall_silent(records, a)
    result = client.evacuate(a, confirmed_dead="it must be off, I think").wait(120)
    outcomes = {each["name"]: each for each in result["guests"]}
    assert outcomes[guest["name"]]["code"] == "start_failed"
    assert client.instance(guest["name"]).host == b
    assert client.instance(guest["name"]).state == "stopped"
    fencing = fencings_of(records, a)[-1]
    assert (fencing.proof, fencing.reason) == ("override", "it must be off, I think")
    assert fencing.requested_by == client.requested_by
    assert domains_on(lab, a)[guest["name"]] == "running"
    crash.arm_kill("return:cleaning")
    with pytest.raises(LabError):
        lab.start(f"worker:{a}")
    assert crash.has_struck("return:cleaning")
    assert host_view(client, a).fenced_at is not None
    lab.start(f"worker:{a}")
    wait_until(lambda: host_view(client, a).fenced_at is None, what="the returned host is clean")
    on_a = domains_on(lab, a)
    assert guest["name"] not in on_a
    assert on_a[bystander["name"]] == "running"
    assert files_of(lab, b, guest["id"]) != []
    assert not host_view(client, a).is_enabled
    assert client.start(guest["name"]).wait(60)["host"] == b
    assert domains_on(lab, b)[guest["name"]] == "running"


def test_a_host_that_is_back_keeps_what_was_not_taken_yet(
    client: Innkeeper,
    lab: Lab,
    records: Database,
    hook: Hook,
    spawn: SpawnGuest,
    crash: CrashDirectory,
) -> None:
    a, b = lab.hosts[:2]
    guest = spawn("kept")
    lab.kill(f"worker:{a}")
    fall_silent(records, a)
    point = "evacuate_instance.define_elsewhere:acting"
    crash.arm_hold(point)
    operation = client.evacuate(a, confirmed_dead="it was dark in there")
    with crash.held(point):
        lab.start(f"worker:{a}")
        wait_until(lambda: host_view(client, a).fenced_at is None, what="the host is back")
    result = operation.wait(120)
    assert [each["code"] for each in result["guests"]] == ["host_returned"]
    view = client.instance(guest["name"])
    assert (view.host, view.state, view.operation_id) == (a, "active", None)
    assert domains_on(lab, a)[guest["name"]] == "running"
    assert guest["name"] not in domains_on(lab, b)


def test_a_hook_that_lies_about_a_living_host_is_found_out(
    client: Innkeeper, lab: Lab, hook: Hook, spawn: SpawnGuest, crash: CrashDirectory
) -> None:
    a = lab.hosts[0]
    guest = spawn("alive")
    hook.ends_with(0)
    crash.arm_hold("return:cleaning")
    with pytest.raises(FencingFailed, match="lives"):
        client.evacuate(a).wait(90)
    with crash.held("return:cleaning"):
        # It does nothing before it is clean.
        stop = client.stop(guest["name"], force=True)
        waits = next(v for v in stop.watch(PATIENCE_S) if any(s.waiting_for for s in v.steps))
        assert "fenced" in str(waits.steps[0].waiting_for)
        assert client.instance(guest["name"]).host == a
        assert domains_on(lab, a)[guest["name"]] == "running"
    wait_until(lambda: host_view(client, a).fenced_at is None, what="the host is heard again")
    reopen(client, a)
    assert stop.wait(60)["state"] == "stopped"


def test_nothing_is_touched_without_a_record(
    client: Innkeeper, lab: Lab, records: Database, hook: Hook, spawn: SpawnGuest
) -> None:
    """Neither a domain with an old epoch, nor one whose guest is unknown, nor another's."""
    a, b = lab.hosts[:2]
    guest = spawn("strayed")
    lab.kill(f"worker:{a}")
    fall_silent(records, a)
    elsewhere = (
        "UPDATE instances SET host = :host, epoch = epoch + 10 * :sign, "
        "domain_epoch = domain_epoch + 10 * :sign WHERE name = :name"
    )
    with records.transaction() as session:
        session.execute(text(elsewhere), {"host": b, "sign": 1, "name": guest["name"]})
    client.evacuate(a, confirmed_dead="seen to be off").wait(60)
    lab.start(f"worker:{a}")
    wait_until(lambda: host_view(client, a).fenced_at is None, what="the returned host is clean")
    assert domains_on(lab, a)[guest["name"]] == "running"

    def is_reported() -> bool:
        with records.transaction() as session:
            found = session.execute(
                text(
                    "SELECT count(*) FROM events WHERE kind = 'domain.unexpected' "
                    "AND data->>'instance_id' = :id"
                ),
                {"id": guest["id"]},
            )
            return bool(found.scalar_one())

    wait_until(is_reported, what="the domain is reported")
    with records.transaction() as session:
        session.execute(text(elsewhere), {"host": a, "sign": -1, "name": guest["name"]})


KILLS = (
    "evacuate.fence_host:acted",
    "evacuate.settle_operations:claimed",
    "evacuate.move_guests:inside",
    "evacuate_instance.define_elsewhere:recording",
    "evacuate_instance.start_elsewhere:acted",
)


def test_processes_die_in_every_step(
    client: Innkeeper,
    lab: Lab,
    records: Database,
    hook: Hook,
    spawn: SpawnGuest,
    crash: CrashDirectory,
) -> None:
    a, b = lab.hosts[:2]
    guest = spawn("killed")
    die(lab, records, a, guests=[guest["name"]])
    hook.ends_with(0)
    for point in KILLS:
        crash.arm_kill(point)
    operation = client.evacuate(a)

    def is_over() -> bool:
        hook.start_control(lab)
        lab.start(f"worker:{b}")
        with suppress(ServiceError, NotFound):
            return operation.view().state.is_final
        return False

    wait_until(is_over, timeout_s=3 * PATIENCE_S, what="the evacuation ends")
    assert [point for point in KILLS if not crash.has_struck(point)] == []
    assert operation.wait(60)["moved"] == 1
    assert domains_on(lab, b)[guest["name"]] == "running"
    assert client.instance(guest["name"]).host == b
    moves = [view for view in client.operations(instance=guest["name"]) if view.parent_id]
    assert [(view.kind, view.parent_id) for view in moves] == [("evacuate_instance", operation.id)]
    with records.transaction() as session:
        claims = session.execute(
            text("SELECT host FROM claims WHERE instance_id = :id"), {"id": guest["id"]}
        )
        assert list(claims.scalars()) == [b]


def test_a_cancelled_evacuation_goes_on_when_it_is_asked_for_again(
    client: Innkeeper,
    lab: Lab,
    records: Database,
    hook: Hook,
    spawn: SpawnGuest,
    crash: CrashDirectory,
) -> None:
    a, b = lab.hosts[:2]
    guest = spawn("twice")
    die(lab, records, a, guests=[guest["name"]])
    point = "evacuate_instance.find_files:claimed"
    crash.arm_hold(point)
    operation = client.evacuate(a, confirmed_dead="its rack is on fire")
    assert crash.wait_held(point)
    with pytest.raises(Busy):
        client.evacuate(a).wait(60)
    with crash.held(point):
        operation.cancel()
        with pytest.raises(Cancelled):
            operation.wait(60)
    wait_until(lambda: client.instance(guest["name"]).operation_id is None, what="it is let go")
    assert client.instance(guest["name"]).host == a
    result = client.evacuate(a).wait(120)
    assert (result["proof"], result["moved"]) == ("fenced", 1)
    assert domains_on(lab, b)[guest["name"]] == "running"
    assert len([f for f in fencings_of(records, a) if f.returned_at is None]) == 1
