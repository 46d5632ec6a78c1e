"""The boot ladder with real guests."""

import threading
import time
from uuid import uuid4

import pytest

from innkeeper.errors import BootTimeout, Cancelled, GuestDied
from innkeeper.states import BootStage
from tests.virt.conftest import Guest, Host, MakeGuest
from virt.boot import wait_for_boot

pytestmark = pytest.mark.lab


def start(host: Host, guest: Guest) -> None:
    host.hypervisor.define(guest.xml)
    host.hypervisor.ensure_started(guest.id)


def test_linux_climbs_to_its_agent(src: Host, make_guest: MakeGuest) -> None:
    guest = make_guest(linux=True)
    start(src, guest)
    began_s = time.monotonic()
    stages: list[BootStage] = []
    reached = wait_for_boot(
        src.hypervisor,
        guest.id,
        wanted=BootStage.AGENT,
        timeout_s=60,
        console_path=guest.console,
        on_stage=stages.append,
    )
    print(f"agent after {time.monotonic() - began_s:.2f} s")
    assert reached is BootStage.AGENT
    assert stages[0] is BootStage.RUNNING
    assert stages[-1] is BootStage.AGENT
    assert [stage.rung for stage in stages] == sorted({stage.rung for stage in stages})
    assert src.hypervisor.probe_agent_connected(guest.id)
    assert src.hypervisor.agent_ping(guest.id)
    info = src.hypervisor.agent_command(guest.id, {"execute": "guest-info"})
    assert "version" in info["return"]
    # The same question a second time, by a worker that came later and saw no event.
    began_s = time.monotonic()
    assert (
        wait_for_boot(
            src.hypervisor,
            guest.id,
            wanted=BootStage.AGENT,
            timeout_s=10,
            console_path=guest.console,
        )
        is BootStage.AGENT
    )
    assert time.monotonic() - began_s < 1


def test_the_first_bytes_on_the_console(src: Host, make_guest: MakeGuest) -> None:
    guest = make_guest()
    start(src, guest)
    reached = wait_for_boot(
        src.hypervisor,
        guest.id,
        wanted=BootStage.CONSOLE,
        timeout_s=10,
        console_path=guest.console,
    )
    assert reached is BootStage.CONSOLE
    assert guest.tail()


def test_the_deadline_names_the_stage_reached(src: Host, make_guest: MakeGuest) -> None:
    guest = make_guest()
    start(src, guest)
    began_s = time.monotonic()
    with pytest.raises(BootTimeout) as late:
        wait_for_boot(
            src.hypervisor,
            guest.id,
            wanted=BootStage.AGENT,
            timeout_s=1.5,
            console_path=guest.console,
        )
    assert 1.4 < time.monotonic() - began_s < 2
    assert late.value.details["reached"] == "console"
    assert late.value.details["wanted"] == "agent"
    assert late.value.details["console_tail"]
    assert not src.hypervisor.agent_ping(guest.id, timeout_s=1)


def test_a_guest_that_dies_is_told_at_once(src: Host, make_guest: MakeGuest) -> None:
    guest = make_guest()
    start(src, guest)
    threading.Timer(0.7, src.hypervisor.ensure_destroyed, [guest.id]).start()
    began_s = time.monotonic()
    with pytest.raises(GuestDied) as died:
        wait_for_boot(
            src.hypervisor,
            guest.id,
            wanted=BootStage.AGENT,
            timeout_s=30,
            console_path=guest.console,
        )
    assert time.monotonic() - began_s < 1.5
    assert died.value.details["reason"] == "stopped: destroyed"
    with pytest.raises(GuestDied, match="off"):
        wait_for_boot(
            src.hypervisor,
            guest.id,
            wanted=BootStage.RUNNING,
            timeout_s=30,
            console_path=guest.console,
        )
    with pytest.raises(GuestDied, match="no such domain"):
        wait_for_boot(
            src.hypervisor, uuid4(), wanted=BootStage.RUNNING, timeout_s=30, console_path=None
        )


def test_a_paused_guest_is_not_running_until_it_is_resumed(
    src: Host, make_guest: MakeGuest
) -> None:
    guest = make_guest()
    src.hypervisor.define(guest.xml)
    src.hypervisor.ensure_started(guest.id, paused=True)
    began_s = time.monotonic()
    threading.Timer(0.3, src.hypervisor.ensure_resumed, [guest.id]).start()
    wait_for_boot(
        src.hypervisor, guest.id, wanted=BootStage.RUNNING, timeout_s=5, console_path=None
    )
    assert 0.25 < time.monotonic() - began_s < 0.6


def test_the_wait_can_be_stopped(src: Host, make_guest: MakeGuest) -> None:
    guest = make_guest()
    start(src, guest)
    calls = []

    def check() -> None:
        calls.append(1)
        if len(calls) > 3:
            raise Cancelled("Somebody cancelled.")

    with pytest.raises(Cancelled):
        wait_for_boot(
            src.hypervisor,
            guest.id,
            wanted=BootStage.AGENT,
            timeout_s=30,
            console_path=guest.console,
            check=check,
        )
