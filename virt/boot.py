"""The boot ladder: defined → running → console → agent, climbed with the events as they come.

"Running" only means that QEMU executes. The first bytes on the console say that firmware or kernel
lives, the agent's answer that the system is up. A guest that ends while it boots is reported at
once, not at the deadline.
"""

import time
from collections.abc import Callable
from pathlib import Path
from uuid import UUID

from innkeeper.errors import BootTimeout, GuestDied, HypervisorUnavailable
from innkeeper.states import BootStage, PowerState
from virt.console import ConsoleWatch, tail
from virt.events import GuestEvent
from virt.hypervisor import Hypervisor
from virt.watch import GuestWatch

CONSOLE_POLL_S = 0.05
LOOK_AGAIN_S = 2.0
PING_TIMEOUT_S = 5


def wait_for_boot(
    hypervisor: Hypervisor,
    instance_id: UUID,
    *,
    wanted: BootStage,
    timeout_s: float,
    console_path: Path | str | None,
    console_offset: int = 0,
    on_stage: Callable[[BootStage], None] = lambda _stage: None,
    check: Callable[[], None] = lambda: None,
) -> BootStage:
    """Wait until a started guest has reached a stage.

    Args:
        hypervisor: the guest's host.
        instance_id: the guest.
        wanted: the stage to reach.
        timeout_s: seconds from now.
        console_path: the console's file; None for a guest without one.
        console_offset: size of that file in bytes before the guest was started.
        on_stage: told of each stage it sees reached, once and upwards; a guest that is silent on
            its console goes from running to agent.
        check: called at least every five seconds; may raise to stop the wait.

    Returns:
        The highest stage reached, at least ``wanted``.

    Raises:
        GuestDied: the guest has ended. Details: ``reason``, ``console_tail``.
        BootTimeout: the time is over. Details: ``reached``, ``wanted``, ``console_tail``.
    """
    with hypervisor.watch(instance_id) as watch:
        return _Climb(
            hypervisor,
            instance_id,
            watch,
            wanted,
            timeout_s,
            console_path,
            console_offset,
            on_stage,
        ).run(check)


class _Climb:
    def __init__(
        self,
        hypervisor: Hypervisor,
        instance_id: UUID,
        watch: GuestWatch,
        wanted: BootStage,
        timeout_s: float,
        console_path: Path | str | None,
        console_offset: int,
        on_stage: Callable[[BootStage], None],
    ) -> None:
        self._hypervisor = hypervisor
        self._instance_id = instance_id
        self._watch = watch
        self._wanted = wanted
        self._limit_s = timeout_s
        self._end_s = time.monotonic() + timeout_s
        self._console_path = console_path
        self._console = ConsoleWatch(console_path, console_offset) if console_path else None
        self._on_stage = on_stage
        self._stage = BootStage.DEFINED
        self._channel_is_open = False
        self._look_at_s = 0.0

    def run(self, check: Callable[[], None]) -> BootStage:
        while True:
            check()
            if time.monotonic() >= self._look_at_s:
                self._look()
            if self._console is not None and self._console.has_output():
                self._reach(BootStage.CONSOLE)
            if self._channel_is_open and self._needs(BootStage.AGENT):
                self._ping()
            if not self._needs(self._wanted):
                return self._stage
            self._wait()

    def _needs(self, stage: BootStage) -> bool:
        return self._stage.rung < stage.rung

    def _reach(self, stage: BootStage) -> None:
        if not self._needs(stage):
            return
        if stage.rung > BootStage.RUNNING.rung and self._needs(BootStage.RUNNING):
            # Old output of a console without an offset is no sign of life.
            return
        if stage is BootStage.AGENT and self._console is None:
            self._stage = BootStage.CONSOLE
        self._stage = stage
        self._on_stage(stage)

    def _look(self) -> None:
        """Read the state itself: events are hints, and may have come before the watch."""
        self._look_at_s = time.monotonic() + LOOK_AGAIN_S
        try:
            view = self._hypervisor.find_domain(self._instance_id)
            if view is None:
                raise self._died("the host has no such domain")
            if not view.is_active:
                raise self._died(f"the domain is off (reason {view.reason})")
            if view.power_state is PowerState.RUNNING:
                self._reach(BootStage.RUNNING)
            if self._wanted is BootStage.AGENT and not self._channel_is_open:
                self._channel_is_open = self._hypervisor.probe_agent_connected(self._instance_id)
        except HypervisorUnavailable:
            # The guest does not depend on libvirtd; the deadline decides.
            return

    def _ping(self) -> None:
        left_s = int(max(1, min(PING_TIMEOUT_S, self._end_s - time.monotonic())))
        try:
            if self._hypervisor.agent_ping(self._instance_id, timeout_s=left_s):
                self._reach(BootStage.AGENT)
            else:
                self._channel_is_open = False
        except HypervisorUnavailable:
            self._channel_is_open = False

    def _wait(self) -> None:
        now_s = time.monotonic()
        if now_s >= self._end_s:
            raise self._late()
        is_listening = self._console is not None and self._needs(BootStage.CONSOLE)
        pause_s = CONSOLE_POLL_S if is_listening else LOOK_AGAIN_S
        event = self._watch.wait(min(pause_s, self._end_s - now_s))
        if event is not None:
            self._take(event)

    def _take(self, event: GuestEvent) -> None:
        if event.is_end and event.detail != "migrated":
            # A hint only: a reset by the host's user may have started it again already.
            self._look_at_s = 0.0
            if not self._is_active():
                raise self._died(f"{event.kind}: {event.detail}")
        elif event.kind in ("started", "resumed", "connection_restored"):
            self._look_at_s = 0.0
        elif event.kind == "agent_connected":
            self._channel_is_open = True
        elif event.kind == "agent_disconnected":
            self._channel_is_open = False

    def _is_active(self) -> bool:
        try:
            view = self._hypervisor.find_domain(self._instance_id)
        except HypervisorUnavailable:
            return True
        return view is not None and view.is_active

    def _died(self, reason: str) -> GuestDied:
        return GuestDied(
            f"The guest ended at the boot stage {self._stage.value}: {reason}.",
            {"reason": reason, "reached": self._stage.value, **self._facts()},
        )

    def _late(self) -> BootTimeout:
        return BootTimeout(
            f"The guest has reached the boot stage {self._stage.value} and not"
            f" {self._wanted.value} within {self._limit_s:g} s.",
            {"reached": self._stage.value, "wanted": self._wanted.value, **self._facts()},
        )

    def _facts(self) -> dict[str, str]:
        text = tail(self._console_path) if self._console_path else ""
        return {
            "console_tail": text,
            "host": self._hypervisor.name,
            "instance_id": str(self._instance_id),
        }
