"""A host dies: proof first, then its guests run elsewhere; what it may do when it returns."""

import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from innkeeper import Innkeeper
from innkeeper.errors import FencingFailed, NotFenced, StateConflict
from lab.errors import LabError
from lab.handle import Lab
from models.session import Database
from tests.waiting import wait_until
from tests.workflow.conftest import domains_on, files_of, remove, revive

pytestmark = pytest.mark.lab

SpawnGuest = Callable[..., dict[str, Any]]


class Hook:
    """The fencing hook of the lab's control worker: a script that a test writes."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def ends_with(self, code: int) -> None:
        self.path.write_text(f'echo "$1 at $2: fenced"\nexit {code}\n')

    def calls(self) -> str:
        return self.path.read_text()


@pytest.fixture(scope="module")
def hook(lab: Lab) -> Iterator[Hook]:
    """Let control know of a fencing hook; the script is written by the tests."""
    path = lab.layout.root / "fence.sh"
    command = ["/bin/sh", str(path), "{host}", "{address}"]
    lab.kill("control")
    lab.start("control", env={"INNKEEPER_FENCING_HOOK": json.dumps(command)})
    yield Hook(path)
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
    client: Innkeeper, lab: Lab, records: Database, hook: Hook, spawn: SpawnGuest
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
    result = client.evacuate(a, reason="power supply").wait(120)
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
    assert domains_on(lab, b)[active["name"]] == "running"
    reopen(client, a)
    assert client.start(local["name"]).wait(60)["host"] == a
    assert client.stop(active["name"], force=True).wait(60)["host"] == b
    assert client.start(stopped["name"]).wait(60)["host"] == b
