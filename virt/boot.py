"""The boot ladder: defined → running → console → agent → cloud_init, climbed by events.

"Running" only means that QEMU executes. The first bytes on the console say that firmware or kernel
lives, the agent's answer that the system is up, cloud-init's end that it is as its owner wants it.
A guest that ends, panics or resets in a loop while it boots is reported at once, not at the
deadline.
"""

import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from uuid import UUID

from innkeeper.errors import HypervisorUnavailable
from innkeeper.states import BootStage, PowerState
from virt.boot_failures import BootFailures
from virt.boot_signs import ConsoleSigns, is_boot_loop
from virt.cloud_init import CloudInitInquiry
from virt.console import ConsoleWatch
from virt.events import GuestEvent
from virt.hypervisor import Hypervisor
from virt.watch import GuestWatch

CONSOLE_POLL_S = 0.05
SIGNS_POLL_S = 0.25
LOOK_AGAIN_S = 2.0
PING_TIMEOUT_S = 5
# A panic's own output has no longer pauses; a guest that survives one goes on sooner.
PANIC_SILENCE_S = 1.0
# How long the agent may take to tell how the cloud-init has ended that calls itself finished.
VERDICT_S = 5.0


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
            its console goes from running to agent, one without an agent from console to
            cloud_init.
        check: called at least every five seconds; may raise to stop the wait.

    Returns:
        The highest stage reached, at least ``wanted``.

    Raises:
        GuestDied: the guest has ended, or its kernel panicked and fell silent. Details: ``reason``,
            ``console_tail``.
        BootLoop: it resets again and again. Details: ``resets``, ``console_tail``.
        CloudInitFailed: its cloud-init says so. Details: ``status``, ``errors``, ``console_tail``.
        BootTimeout: the time is over. Details: ``reached``, ``wanted``, ``console_tail``.
    """
    with hypervisor.watch(instance_id) as watch:
        console = ConsoleWatch(console_path, console_offset) if console_path else None
        failures = BootFailures(hypervisor.name, instance_id, console_path)
        climb = _Climb(
            hypervisor, instance_id, watch, wanted, timeout_s, console, failures, on_stage
        )
        return climb.run(check)


class _Climb:
    def __init__(
        self,
        hypervisor: Hypervisor,
        instance_id: UUID,
        watch: GuestWatch,
        wanted: BootStage,
        timeout_s: float,
        console: ConsoleWatch | None,
        failures: BootFailures,
        on_stage: Callable[[BootStage], None],
    ) -> None:
        self._hypervisor = hypervisor
        self._instance_id = instance_id
        self._watch = watch
        self._wanted = wanted
        self._limit_s = timeout_s
        self._end_s = time.monotonic() + timeout_s
        self._console = console
        self._failures = failures
        self._on_stage = on_stage
        self._stage = BootStage.DEFINED
        self._channel_is_open = False
        self._look_at_s = 0.0
        self._signs = ConsoleSigns()
        self._heard_at_s = 0.0
        self._finished_at_s: float | None = None
        self._resets_s: list[float] = []
        self._inquiry = CloudInitInquiry(hypervisor, instance_id)

    def run(self, check: Callable[[], None]) -> BootStage:
        while True:
            check()
            if time.monotonic() >= self._look_at_s:
                self._look()
            self._listen()
            if self._channel_is_open and self._needs(BootStage.AGENT):
                self._ping()
            if self._wanted is BootStage.CLOUD_INIT and self._needs(BootStage.CLOUD_INIT):
                self._follow_cloud_init()
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
        self._stage = stage
        self._on_stage(stage)

    def _look(self) -> None:
        """Read the state itself: events are hints, and may have come before the watch."""
        self._look_at_s = time.monotonic() + LOOK_AGAIN_S
        try:
            view = self._hypervisor.find_domain(self._instance_id)
            if view is None:
                raise self._failures.died(self._stage, "the host has no such domain")
            if not view.is_active:
                raise self._failures.died(self._stage, f"the domain is off (reason {view.reason})")
            if view.power_state is PowerState.RUNNING:
                self._reach(BootStage.RUNNING)
            if self._wants_agent and not self._channel_is_open:
                self._channel_is_open = self._hypervisor.probe_agent_connected(self._instance_id)
        except HypervisorUnavailable:
            # The guest does not depend on libvirtd; the deadline decides.
            return

    @property
    def _wants_agent(self) -> bool:
        return self._wanted.rung >= BootStage.AGENT.rung

    def _listen(self) -> None:
        """Hear what the console says; a panic counts once nothing more has come for a while."""
        if self._console is None:
            return
        if self._needs(BootStage.CONSOLE) and self._console.has_output():
            self._reach(BootStage.CONSOLE)
        if not self._wants_agent:
            return
        if lines := self._console.read_lines():
            self._heard_at_s = time.monotonic()
            self._signs.read(lines)
        panic = self._signs.panic
        if panic is None or time.monotonic() - self._heard_at_s < PANIC_SILENCE_S:
            return
        if self._channel_is_open and self._ping():
            # Somebody only printed those words.
            self._signs.forget_panic()
            return
        raise self._failures.died(self._stage, panic)

    def _ping(self) -> bool:
        answers = False
        with suppress(HypervisorUnavailable):
            answers = self._hypervisor.agent_ping(self._instance_id, timeout_s=self._ask_s())
        if answers:
            self._reach(BootStage.AGENT)
        else:
            self._channel_is_open = False
        return answers

    def _ask_s(self) -> int:
        """Return how long the agent may take, in whole seconds."""
        return int(max(1, min(PING_TIMEOUT_S, self._end_s - time.monotonic())))

    def _follow_cloud_init(self) -> None:
        """Believe the agent, which knows of failures, and the console where there is no agent."""
        if not self._needs(BootStage.AGENT) and self._channel_is_open:
            try:
                verdict = self._inquiry.look(timeout_s=self._ask_s())
            except HypervisorUnavailable:
                verdict = None
            if verdict is not None and verdict.status != "done":
                raise self._failures.cloud_init_failed(verdict)
            if verdict is not None:
                self._reach(BootStage.CLOUD_INIT)
        if not self._signs.is_finished:
            return
        now_s = time.monotonic()
        self._finished_at_s = self._finished_at_s or now_s
        is_patient = self._channel_is_open and self._inquiry.can_tell
        if not is_patient or now_s - self._finished_at_s > VERDICT_S:
            self._reach(BootStage.CLOUD_INIT)

    def _wait(self) -> None:
        now_s = time.monotonic()
        if now_s >= self._end_s:
            raise self._failures.late(
                self._stage, self._wanted, self._limit_s, obstacle=self._inquiry.obstacle
            )
        event = self._watch.wait(min(self._pause_s(), self._end_s - now_s))
        if event is not None:
            self._take(event)

    def _pause_s(self) -> float:
        pause_s = LOOK_AGAIN_S
        if self._console is not None:
            pause_s = CONSOLE_POLL_S if self._needs(BootStage.CONSOLE) else SIGNS_POLL_S
        if self._wanted is BootStage.CLOUD_INIT and self._channel_is_open:
            pause_s = min(pause_s, self._inquiry.wait_s())
        return pause_s

    def _take(self, event: GuestEvent) -> None:
        if event.is_end and event.detail != "migrated":
            # A hint only: a reset by the host's user may have started it again already.
            self._look_at_s = 0.0
            if not self._is_active():
                raise self._failures.died(self._stage, f"{event.kind}: {event.detail}")
        elif event.kind == "rebooted":
            self._take_reset(event)
        elif event.kind in ("started", "resumed", "connection_restored"):
            self._look_at_s = 0.0
        elif event.kind == "agent_connected":
            self._channel_is_open = True
        elif event.kind == "agent_disconnected":
            self._channel_is_open = False

    def _take_reset(self, event: GuestEvent) -> None:
        self._signs.forget_panic()
        self._inquiry.begin_again()
        self._resets_s.append(event.monotonic_s)
        if is_boot_loop(self._resets_s):
            raise self._failures.loops(self._stage, self._resets_s)

    def _is_active(self) -> bool:
        try:
            view = self._hypervisor.find_domain(self._instance_id)
        except HypervisorUnavailable:
            return True
        return view is not None and view.is_active
