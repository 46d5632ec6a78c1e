"""Guests with network cards: paused until their ports and filters are there, then let run."""

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from sqlalchemy import text

from innkeeper import Innkeeper, Operation
from innkeeper.errors import GuestDied, HostUnsuitable, NetworkNotReady
from lab.handle import Lab
from models.session import Database
from tests.crash_directory import CrashDirectory
from tests.waiting import PATIENCE_S, quickest, wait_until
from tests.workflow.conftest import assert_nothing_left, domains_on, remove

pytestmark = pytest.mark.lab

BINDING = """<filterbinding><owner><name>{name}</name><uuid>{uuid}</uuid></owner>
<portdev name='{port}'/><mac address='{mac}'/><filterref filter='clean-traffic'/></filterbinding>"""


@pytest.fixture
def carded(boot_guest: dict[str, Any]) -> dict[str, Any]:
    return {**boot_guest, "bridge": "br0"}


def port_of(lab: Lab, host: str, name: str) -> tuple[str, str]:
    """Return the tap device of a guest's only card, and its MAC address."""
    lines = lab.exec(host, ["virsh", "-q", "domiflist", name]).stdout.split("\n")
    fields = lines[0].split()
    return fields[0], fields[4]


def ports_on(lab: Lab, host: str, bridge: str = "br0") -> str:
    return lab.exec(host, ["ip", "-o", "link", "show", "master", bridge]).stdout


def bindings_on(lab: Lab, host: str) -> list[str]:
    return lab.exec(host, ["virsh", "-q", "nwfilter-binding-list"]).stdout.split()


@contextmanager
def started_and_held(
    crash: CrashDirectory, point: str, operation: Operation, lab: Lab, name: str
) -> Iterator[tuple[str, str, str]]:
    """Hold a step whose guest is started; yield its host, port and MAC address."""
    with crash.held(point):
        host = operation.view().dst_host
        assert host is not None
        assert domains_on(lab, host)[name] == "paused"
        yield host, *port_of(lab, host, name)


def wait_for_word(operation: Operation, word: str) -> None:
    wait_until(lambda: word in operation.view().progress.text, what=f"the progress says {word!r}")


def test_a_card_is_on_its_bridge_with_its_filter(
    client: Innkeeper, lab: Lab, name: str, carded: dict[str, Any]
) -> None:
    operation = client.spawn(name=name, **carded)
    host = operation.wait(120)["host"]
    port, mac = port_of(lab, host, name)
    assert domains_on(lab, host)[name] == "running"
    assert f"{port}:" in ports_on(lab, host)
    assert port in bindings_on(lab, host)
    assert port in lab.exec(host, ["ebtables", "-t", "nat", "-L", "PREROUTING"]).stdout
    assert mac.startswith("52:")
    step = next(step for step in operation.view().steps if step.name == "start_domain")
    assert step.state == "done"


@pytest.mark.parametrize("lost", ["port", "filter"])
def test_what_comes_late_is_waited_for(
    client: Innkeeper, lab: Lab, crash: CrashDirectory, name: str, carded: dict[str, Any], lost: str
) -> None:
    point = "spawn.start_domain:inside"
    crash.arm_hold(point)
    operation = client.spawn(name=name, **carded)
    with started_and_held(crash, point, operation, lab, name) as (host, port, mac):
        if lost == "port":
            lab.exec(host, ["ip", "link", "set", port, "nomaster"])
        else:
            lab.exec(host, ["virsh", "nwfilter-binding-delete", port])
    wait_for_word(operation, "on no bridge" if lost == "port" else "not in force")
    assert domains_on(lab, host)[name] == "paused"
    if lost == "port":
        lab.exec(host, ["ip", "link", "set", port, "master", "br0"])
    else:
        uuid = operation.view().instance_id
        xml = BINDING.format(name=name, uuid=uuid, port=port, mac=mac)
        file = f"/run/{port}.xml"
        lab.exec(host, ["sh", "-c", f'echo "$1" > {file}', "sh", xml])
        lab.exec(host, ["virsh", "nwfilter-binding-create", file])
    assert operation.wait(60)["state"] == "active"
    assert domains_on(lab, host)[name] == "running"


def test_what_never_comes_is_undone(
    client: Innkeeper,
    lab: Lab,
    records: Database,
    crash: CrashDirectory,
    name: str,
    carded: dict[str, Any],
) -> None:
    point = "spawn.start_domain:inside"
    crash.arm_hold(point)
    operation = client.spawn(name=name, **{**carded, "host": lab.hosts[0]})
    with started_and_held(crash, point, operation, lab, name) as (host, port, _):
        lab.exec(host, ["ip", "link", "set", port, "nomaster"])
    with pytest.raises(NetworkNotReady, match="on no bridge") as caught:
        operation.wait(120)
    assert caught.value.effect == "rolled_back"
    assert caught.value.host == host
    assert caught.value.details["ports"] == [port]
    assert port not in bindings_on(lab, host)
    assert_nothing_left(lab, records, str(operation.view().instance_id))


def test_the_next_host_is_tried(
    client: Innkeeper,
    lab: Lab,
    records: Database,
    crash: CrashDirectory,
    name: str,
    carded: dict[str, Any],
) -> None:
    point = "spawn.start_domain:inside"
    crash.arm_hold(point)
    operation = client.spawn(name=name, **carded)
    with started_and_held(crash, point, operation, lab, name) as (host, port, _):
        lab.exec(host, ["ip", "link", "set", port, "down"])
    result = operation.wait(120)
    assert result["host"] != host
    assert name not in domains_on(lab, host)
    with records.transaction() as session:
        refusals = session.execute(
            text("SELECT refusals FROM operations WHERE id = :id"), {"id": operation.id}
        ).scalar_one()
    assert [r["code"] for r in refusals if r["host"] == host] == ["network_not_ready"]


def test_a_bridge_that_is_not_there_is_found_before_anything_is_defined(
    client: Innkeeper, lab: Lab, records: Database, name: str, boot_guest: dict[str, Any]
) -> None:
    host = lab.hosts[0]
    operation = client.spawn(name=name, bridge="br-none", host=host, **boot_guest)
    with pytest.raises(HostUnsuitable, match="bridge br-none does not exist") as caught:
        operation.wait(120)
    assert caught.value.step == "define_domain"
    assert_nothing_left(lab, records, str(operation.view().instance_id))


def test_a_bridge_on_the_other_host_only(
    client: Innkeeper, lab: Lab, name: str, boot_guest: dict[str, Any]
) -> None:
    has, has_not = lab.hosts[:2]
    lab.exec(has, ["ip", "link", "add", "br7", "type", "bridge"])
    lab.exec(has, ["ip", "link", "set", "br7", "up"])
    names = [f"{name}-{number}" for number in range(2)]
    try:
        # Of two guests that are placed apart, one comes to the host without the bridge first.
        asked = [client.spawn(name=n, bridge="br7", **boot_guest) for n in names]
        assert [operation.wait(120)["host"] for operation in asked] == [has, has]
    finally:
        for one in names:
            remove(client, one)
        lab.exec(has, ["ip", "link", "del", "br7"])
    assert has_not != has


def test_a_worker_that_dies_in_the_middle_leaves_no_paused_guest(
    client: Innkeeper, lab: Lab, crash: CrashDirectory, name: str, carded: dict[str, Any]
) -> None:
    host = lab.hosts[0]
    crash.arm_kill("spawn.start_domain:inside")
    operation = client.spawn(name=name, **{**carded, "host": host})
    assert crash.wait_struck("spawn.start_domain:inside")
    assert domains_on(lab, host)[name] == "paused"
    lab.start(f"worker:{host}")
    assert operation.wait(120)["state"] == "active"
    assert domains_on(lab, host)[name] == "running"
    for point, ask in (
        ("start.start_guest:inside", lambda: client.start(name)),
        ("reboot.reboot_guest:inside", lambda: client.reboot(name, kind="hard")),
    ):
        if point.startswith("start"):
            client.stop(name, force=True).wait(60)
        crash.arm_kill(point)
        verb = ask()
        assert crash.wait_struck(point)
        assert domains_on(lab, host)[name] == "paused"
        lab.start(f"worker:{host}")
        assert verb.wait(120)["state"] == "active"
        assert domains_on(lab, host)[name] == "running"


def test_a_start_without_its_network_leaves_the_guest_off(
    client: Innkeeper, lab: Lab, crash: CrashDirectory, name: str, carded: dict[str, Any]
) -> None:
    host = client.spawn(name=name, **carded).wait(120)["host"]
    client.stop(name, force=True).wait(60)
    point = "start.start_guest:inside"
    crash.arm_hold(point)
    operation = client.start(name)
    with started_and_held(crash, point, operation, lab, name) as (_, port, _mac):
        lab.exec(host, ["ip", "link", "set", port, "nomaster"])
    with pytest.raises(NetworkNotReady) as caught:
        operation.wait(120)
    assert caught.value.effect == "not_started"
    assert domains_on(lab, host)[name] == "shut off"
    assert client.instance(name).state == "stopped"
    assert client.start(name).wait(60)["state"] == "active"


def test_a_qemu_killed_while_it_boots(
    client: Innkeeper, lab: Lab, records: Database, boot_guest: dict[str, Any], name: str
) -> None:
    def kill() -> float:
        operation = client.spawn(name=name, wait="agent", **boot_guest)
        next(view for view in operation.watch(PATIENCE_S) if view.progress.step == "wait_boot")
        host = operation.view().dst_host
        lab.kill(f"qemu:{host}:{name}", signal.SIGKILL)
        killed_at = time.monotonic()
        with pytest.raises(GuestDied) as died:
            operation.wait(60)
        assert died.value.effect == "rolled_back"
        assert "reached" in died.value.details
        assert_nothing_left(lab, records, str(operation.view().instance_id))
        return time.monotonic() - killed_at

    assert quickest(kill, limit_s=2) < 2


def test_a_guest_whose_cloud_init_ends(
    client: Innkeeper, name: str, linux_guest: dict[str, Any]
) -> None:
    result = client.spawn(name=name, **{**linux_guest, "wait": "cloud_init"}).wait(120)
    assert result["boot_stage"] == "cloud_init"
