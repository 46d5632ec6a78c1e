"""Guests that panic, loop or are killed while they boot: told at once, with their last words."""

import signal
import time
from collections.abc import Callable
from uuid import UUID

import pytest

from innkeeper.errors import BootLoop, BootTimeout, GuestDied
from innkeeper.states import BootStage
from lab.handle import Lab
from tests.virt.boot_sectors import panicking, resetting, saying
from tests.virt.conftest import Guest, Host, MakeGuest
from tests.waiting import PATIENCE_S, quickest, wait_until
from virt.boot import wait_for_boot
from virt.console import size_bytes
from virt.hypervisor import Hypervisor

pytestmark = pytest.mark.lab

SOON_S = 2.0


def start(host: Host, guest: Guest) -> None:
    host.hypervisor.define(guest.xml)
    host.hypervisor.ensure_started(guest.id)


def climb(host: Host, guest: Guest, wanted: BootStage, **arguments: object) -> BootStage:
    return wait_for_boot(
        host.hypervisor,
        guest.id,
        wanted=wanted,
        timeout_s=float(str(arguments.pop("timeout_s", PATIENCE_S))),
        console_path=guest.console,
        **arguments,  # type: ignore[arg-type]
    )


def guest_exec(hypervisor: Hypervisor, instance_id: UUID, script: str) -> None:
    command = {"path": "/bin/sh", "arg": ["-c", script]}
    hypervisor.agent_command(instance_id, {"execute": "guest-exec", "arguments": command})


def test_a_guest_that_tells_of_its_panic(src: Host, make_guest: MakeGuest) -> None:
    def panic() -> float:
        guest = make_guest(sector=panicking("last words\r\n"))
        start(src, guest)
        began_s = time.monotonic()
        with pytest.raises(GuestDied) as died:
            climb(src, guest, BootStage.AGENT)
        assert not isinstance(died.value, BootLoop)
        assert "last words" in died.value.details["console_tail"]
        view = src.hypervisor.get_domain(guest.id)
        assert not view.is_active
        assert any(e.kind == "crashed" and e.detail == "panicked" for e in src.events)
        return time.monotonic() - began_s

    assert quickest(panic, limit_s=SOON_S) < SOON_S


def test_a_guest_that_resets_in_a_loop(src: Host, make_guest: MakeGuest) -> None:
    guest = make_guest(sector=resetting("once more\r\n"))
    start(src, guest)
    began_s = time.monotonic()
    with pytest.raises(BootLoop) as died:
        climb(src, guest, BootStage.AGENT)
    # How long that takes is the guest's own speed: the tenth reset at the latest is enough.
    assert 4 <= died.value.details["resets"] <= 10
    assert time.monotonic() - began_s < PATIENCE_S / 2
    assert died.value.details["reached"] in ("running", "console")
    assert "once more" in died.value.details["console_tail"]


def test_a_linux_that_panics_without_a_device_for_it(src: Host, make_guest: MakeGuest) -> None:
    guest = make_guest(linux=True)
    start(src, guest)
    climb(src, guest, BootStage.AGENT, timeout_s=2 * PATIENCE_S)
    # It stays as it died, and its cloud-init takes for ever, so that the wait is still under way.
    guest_exec(
        src.hypervisor,
        guest.id,
        "echo 0 > /proc/sys/kernel/panic; printf '#!/bin/sh\\nsleep 999\\n' > /bin/cloud-init;"
        " echo 'made slow' > /dev/console; sleep 3; echo c > /proc/sysrq-trigger",
    )
    wait_until(lambda: "made slow" in guest.tail(), what="its cloud-init is slow")
    with pytest.raises(GuestDied) as died:
        # What the console said before belongs to the boot that has succeeded.
        climb(src, guest, BootStage.CLOUD_INIT, console_offset=size_bytes(guest.console))
    assert died.value.details["reason"].startswith("Kernel panic - not syncing")
    assert "Kernel panic" in died.value.details["console_tail"]
    assert died.value.details["reached"] == "agent"


def test_the_words_of_a_panic_alone_are_none(src: Host, make_guest: MakeGuest) -> None:
    """Somebody prints them, and the system goes on."""
    guest = make_guest(linux=True)
    start(src, guest)
    climb(src, guest, BootStage.AGENT, timeout_s=2 * PATIENCE_S)
    script = "sleep 99; echo done"
    guest_exec(
        src.hypervisor,
        guest.id,
        f"printf '#!/bin/sh\\n{script}\\n' > /bin/cloud-init;"
        " echo 'Kernel panic - not syncing: a story' > /dev/console",
    )
    wait_until(lambda: "a story" in guest.tail(), what="the words stand on the console")
    with pytest.raises(BootTimeout):
        climb(src, guest, BootStage.CLOUD_INIT, timeout_s=6)


def test_a_panic_on_the_console_of_a_guest_without_an_agent(
    src: Host, make_guest: MakeGuest
) -> None:
    guest = make_guest(sector=saying("[    1.5] Kernel panic - not syncing: no init found.\r\n"))
    start(src, guest)
    began_s = time.monotonic()
    with pytest.raises(GuestDied, match="no init found"):
        climb(src, guest, BootStage.AGENT)
    assert time.monotonic() - began_s < PATIENCE_S / 2


def test_a_killed_qemu_is_told_at_once(bare_lab: Lab, src: Host, make_guest: MakeGuest) -> None:
    def kill() -> float:
        guest = make_guest()
        start(src, guest)
        killed_at: list[float] = []

        def kill_once(stage: BootStage) -> None:
            if stage is BootStage.CONSOLE:
                bare_lab.kill(f"qemu:hv-a:{guest.spec.name}", signal.SIGKILL)
                killed_at.append(time.monotonic())

        with pytest.raises(GuestDied) as died:
            climb(src, guest, BootStage.AGENT, on_stage=kill_once)
        assert died.value.details["console_tail"]
        return time.monotonic() - killed_at[0]

    assert quickest(kill, limit_s=SOON_S) < SOON_S


def test_a_guest_that_resets_once_or_twice_boots(src: Host, make_guest: MakeGuest) -> None:
    guest = make_guest(linux=True)
    start(src, guest)
    was_up: list[bool] = [False]

    def reset_twice() -> None:
        # As a system that restarts itself when it is half up; was_up ends with where it is now.
        is_up = src.hypervisor.probe_agent_connected(guest.id)
        if is_up == was_up[-1] or was_up.count(True) == 2:
            return
        was_up.append(is_up)
        if is_up:
            src.hypervisor.reset(guest.id)

    check: Callable[[], None] = reset_twice
    assert climb(src, guest, BootStage.AGENT, timeout_s=2 * PATIENCE_S, check=check)
    assert was_up.count(True) == 2
    wait_until(
        lambda: sum(e.kind == "rebooted" for e in src.events) > 1, what="both resets were told of"
    )
