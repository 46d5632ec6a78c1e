"""The boot ladder with real guests."""

import threading
import time
from collections.abc import Callable
from uuid import uuid4

import pytest

from innkeeper.errors import BootTimeout, Cancelled, GuestDied
from innkeeper.states import BootStage
from tests.virt.conftest import Guest, Host, MakeGuest
from tests.waiting import PATIENCE_S, quickest, wait_until
from virt.boot import wait_for_boot

pytestmark = pytest.mark.lab


class Later:
    """Something done by another thread while this one waits."""

    def __init__(self, act: Callable[[], None], after_s: float = 0.0) -> None:
        self._act = act
        self._after_s = after_s
        self._begun_s: float | None = None
        self._done_s = 0.0
        self._thread = threading.Thread(target=self._run, daemon=True)

    def begin(self) -> None:
        self._thread.start()

    @property
    def is_begun(self) -> bool:
        return self._begun_s is not None

    def seconds_since(self) -> float:
        """Return how long ago it was done, counted to the moment of the question."""
        now_s = time.monotonic()
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive()
        return now_s - self._done_s

    def _run(self) -> None:
        time.sleep(self._after_s)
        self._begun_s = time.monotonic()
        self._act()
        self._done_s = time.monotonic()


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
        timeout_s=2 * PATIENCE_S,
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

    def ask_again() -> float:
        """Ask as a worker that came later and saw no event."""
        began_s = time.monotonic()
        again = wait_for_boot(
            src.hypervisor,
            guest.id,
            wanted=BootStage.AGENT,
            timeout_s=PATIENCE_S,
            console_path=guest.console,
        )
        assert again is BootStage.AGENT
        return time.monotonic() - began_s

    assert quickest(ask_again, limit_s=1) < 1


def test_the_first_bytes_on_the_console(src: Host, make_guest: MakeGuest) -> None:
    guest = make_guest()
    start(src, guest)
    reached = wait_for_boot(
        src.hypervisor,
        guest.id,
        wanted=BootStage.CONSOLE,
        timeout_s=PATIENCE_S,
        console_path=guest.console,
    )
    assert reached is BootStage.CONSOLE
    assert guest.tail()


def test_the_deadline_names_the_stage_reached(src: Host, make_guest: MakeGuest) -> None:
    guest = make_guest()
    start(src, guest)
    wait_until(lambda: bool(guest.tail()), what="the guest speaks")

    def wait_in_vain() -> float:
        began_s = time.monotonic()
        with pytest.raises(BootTimeout) as late:
            wait_for_boot(
                src.hypervisor,
                guest.id,
                wanted=BootStage.AGENT,
                timeout_s=1.5,
                console_path=guest.console,
            )
        elapsed_s = time.monotonic() - began_s
        assert elapsed_s > 1.4
        assert late.value.details["reached"] == "console"
        assert late.value.details["wanted"] == "agent"
        assert late.value.details["console_tail"]
        return elapsed_s

    assert quickest(wait_in_vain, limit_s=2) < 2
    assert not src.hypervisor.agent_ping(guest.id, timeout_s=1)


def test_a_guest_that_dies_is_told_at_once(src: Host, make_guest: MakeGuest) -> None:
    guest = make_guest()

    def destroy_on_the_way() -> float:
        start(src, guest)
        # By then the events of its start are over, which would make the wait look for itself.
        destroy = Later(lambda: src.hypervisor.ensure_destroyed(guest.id), after_s=0.5)
        with pytest.raises(GuestDied) as died:
            wait_for_boot(
                src.hypervisor,
                guest.id,
                wanted=BootStage.AGENT,
                timeout_s=PATIENCE_S,
                console_path=guest.console,
                on_stage=lambda stage: destroy.begin() if stage is BootStage.CONSOLE else None,
            )
        assert died.value.details["reason"] == "stopped: destroyed"
        return destroy.seconds_since()

    assert quickest(destroy_on_the_way, limit_s=1) < 1
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

    def resume_on_the_way() -> float:
        src.hypervisor.ensure_suspended(guest.id)
        resume = Later(lambda: src.hypervisor.ensure_resumed(guest.id), after_s=0.3)
        resume.begin()
        wait_for_boot(
            src.hypervisor,
            guest.id,
            wanted=BootStage.RUNNING,
            timeout_s=PATIENCE_S,
            console_path=None,
        )
        assert resume.is_begun, "the guest was taken for running while it was paused"
        return resume.seconds_since()

    assert quickest(resume_on_the_way, limit_s=0.5) < 0.5


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
