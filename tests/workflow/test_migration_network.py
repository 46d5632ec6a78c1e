"""A migrating guest's network: checked before, verified on arrival, announced, taken away after."""

import json
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import text

from innkeeper import Innkeeper
from innkeeper.errors import InnkeeperError
from lab.handle import Lab
from models.session import Database
from tests.crash_directory import CrashDirectory
from tests.waiting import wait_until
from tests.wire import Answers, pinged
from tests.workflow.conftest import domains_on
from tests.workflow.test_network_start import bindings_on, port_of, ports_on

pytestmark = pytest.mark.lab

# The lab's Linux takes the end of its card's address for that of its own.
MAC, INSIDE, OUTSIDE = "52:54:00:12:07:02", "169.254.7.2", "169.254.7.1/16"
# What the guest's switches and the guest itself may take beyond the measured downtime.
AFTERWARDS_MS = 1000


@pytest.fixture(scope="module")
def outside(lab: Lab) -> Iterator[int]:
    """A place on the guests' network that is on no host: the switch, by a process in it."""
    pid = lab.description.switch_pid

    def ip(*words: str) -> None:
        command = ["nsenter", f"--target={pid}", "--net", "ip", "addr", *words, "dev", "guest"]
        subprocess.run(command, check=True)

    ip("add", OUTSIDE)
    yield pid
    ip("del", OUTSIDE)


@pytest.fixture
def addressed(linux_guest: dict[str, Any]) -> dict[str, Any]:
    card = {"bridge": "br0", "mac": MAC, "addresses": [f"{INSIDE}/16"]}
    return {**linux_guest, "network_cards": [card]}


def learned_at(outside: int, mac: str) -> str:
    """At which port the guests' switch has seen a card last."""
    show = ["nsenter", f"--target={outside}", "--net", "bridge", "-j", "fdb", "show"]
    entries = json.loads(subprocess.run(show, capture_output=True, check=True).stdout)
    found = [e["ifname"] for e in entries if e["mac"] == mac and e.get("master") == "guest"]
    return str(found[0]) if found else ""


def wait_for_answers(answers_from: Any, outside: int, mac: str) -> None:
    def answers() -> bool:
        with pinged(outside, INSIDE, mac) as answers:
            subprocess.run(["sleep", "0.3"], check=True)
        return len(answers.answered) > 3

    wait_until(answers, what=f"{answers_from} answers from outside")


def tell(moved: dict[str, Any], seen: Answers) -> float:
    gap_ms = seen.longest_gap_ms
    figures = ", ".join(
        f"{key} {moved[key]:.0f}" for key in ("downtime_ms", "handover_ms", "standstill_ms")
    )
    print(f"no answer for {gap_ms:.0f} ms; {figures}")
    return gap_ms


def test_the_address_answers_again_within_a_second_of_the_downtime(
    client: Innkeeper,
    lab: Lab,
    crash: CrashDirectory,
    name: str,
    addressed: dict[str, Any],
    outside: int,
) -> None:
    a, b = lab.hosts[:2]
    client.spawn(name=name, host=a, **addressed).wait(120)
    port, mac = port_of(lab, a, name)
    wait_for_answers(name, outside, mac)
    assert learned_at(outside, mac) == f"{a}-guest"

    with pinged(outside, INSIDE, mac) as seen:
        moved = client.migrate(name, dst=b).wait(120)
        wait_for_answers(name, outside, mac)
    gap_ms = tell(moved, seen)
    assert gap_ms <= moved["standstill_ms"] + AFTERWARDS_MS
    assert "rarp" in seen.announced_at(f"{b}-guest")
    assert learned_at(outside, mac) == f"{b}-guest"
    assert port not in bindings_on(lab, a)
    assert f"{port}:" not in ports_on(lab, a)

    # The hand-over takes so long that QEMU's own announcements are over.
    point = "live_migrate.settle_destination:inside"
    crash.arm_hold(point)
    with pinged(outside, INSIDE, mac) as seen:
        operation = client.migrate(name, dst=a)
        assert crash.wait_held(point)
        subprocess.run(["sleep", "2.5"], check=True)
        crash.release(point)
        moved = operation.wait(120)
        wait_for_answers(name, outside, mac)
    gap_ms = tell(moved, seen)
    assert moved["handover_ms"] > 2500
    assert gap_ms <= moved["standstill_ms"] + AFTERWARDS_MS
    assert learned_at(outside, mac) == f"{a}-guest"


def test_a_port_without_its_filter_is_down_when_the_guest_runs(
    client: Innkeeper,
    lab: Lab,
    crash: CrashDirectory,
    records: Database,
    name: str,
    boot_guest: dict[str, Any],
) -> None:
    """After the source has let go nothing leads back; the guest runs, and can spoof nobody."""
    a, b = lab.hosts[:2]
    client.spawn(name=name, host=a, bridge="br0", **boot_guest).wait(120)
    point = "live_migrate.migrate:inside"
    crash.arm_hold(point)
    operation = client.migrate(name, dst=b)
    with crash.held(point):
        wait_until(lambda: name in domains_on(lab, b), what="libvirt prepares the guest's place")
        wait_until(lambda: name not in domains_on(lab, a), what="libvirt lets the guest go")
        port, _ = port_of(lab, b, name)
        assert domains_on(lab, b)[name] == "paused"
        lab.exec(b, ["virsh", "nwfilter-binding-delete", port])
    assert operation.wait(120)["host"] == b
    assert domains_on(lab, b)[name] == "running"
    assert "state DOWN" in lab.exec(b, ["ip", "-o", "link", "show", port]).stdout
    with records.transaction() as session:
        (told,) = session.scalars(
            text(
                "SELECT data FROM events"
                " WHERE kind = 'instance.network_cut_off' AND operation_id = :o"
            ),
            {"o": operation.id},
        )
    assert told == {"ports": {port: f"filter clean-traffic is not in force on port {port}"}}


def test_a_guest_that_stays_is_announced_on_its_source_again(
    client: Innkeeper,
    lab: Lab,
    crash: CrashDirectory,
    name: str,
    boot_guest: dict[str, Any],
    outside: int,
) -> None:
    """The destination may have announced it before the migration came to nothing."""
    a, b = lab.hosts[:2]
    card = {"bridge": "br0", "mac": MAC}
    client.spawn(name=name, host=a, network_cards=[card], **boot_guest).wait(120)
    wrong = ["bridge", "fdb", "replace", MAC, "dev", f"{b}-guest", "master", "dynamic"]
    subprocess.run(["nsenter", f"--target={outside}", "--net", *wrong], check=True)
    assert learned_at(outside, MAC) == f"{b}-guest"
    # The boot sector never sends anything by itself.
    operation = client.migrate(name, dst=b, bandwidth_mib_s=1)
    wait_until(
        lambda: lab.exec(a, ["virsh", "domjobinfo", name], check=False).stdout.count("Memory") > 0,
        what="libvirt's job runs",
    )
    operation.cancel()
    with pytest.raises(InnkeeperError):
        operation.wait(120)
    assert domains_on(lab, a)[name] == "running"
    assert name not in domains_on(lab, b)
    assert bindings_on(lab, b) == []
    assert learned_at(outside, MAC) == f"{a}-guest"
