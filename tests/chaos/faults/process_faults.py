"""Processes that die, freeze, or are there twice."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from lab import environment
from lab.errors import LabError
from lab.handle import Lab
from lab.layout import REPOSITORY
from tests.chaos.faults.fault import MEND_TIMEOUT_S, MissedError, StageLike
from tests.chaos.patience import wait_until

SWEEP_PAUSE_S = 1


def is_running(lab: Lab, role: str) -> bool:
    """Tell whether a role's process lives."""
    return bool(lab.role(role)["running"])


def kill_if_running(lab: Lab, role: str, number: signal.Signals = signal.SIGKILL) -> None:
    """Signal a role's process; a dead one is no error."""
    if is_running(lab, role):
        # It may have ended since.
        with suppress(LabError):
            lab.kill(role, number)


def start_at_last(stage: StageLike, role: str, timeout_s: float = MEND_TIMEOUT_S) -> None:
    """Start a role, again if what it needs is not back yet.

    Raises:
        TimeoutError: it does not come up; carries what it said last.
    """
    said = ""

    def starts() -> bool:
        nonlocal said
        try:
            stage.start(role)
        except LabError as exc:
            said = str(exc)
            return False
        return True

    try:
        wait_until(starts, timeout_s=timeout_s, what=f"{role} runs")
    except TimeoutError as exc:
        raise TimeoutError(f"{exc}: {said}") from None


@dataclass(frozen=True)
class Killed:
    """SIGKILL; mended by a new process.

    Args:
        role: as the lab calls it: ``worker:hv-a``, ``libvirtd:hv-b``, ``control``, ``beat`` …
    """

    role: str
    lasts_s: float = 0.0

    @property
    def name(self) -> str:
        """``worker_killed:hv-a``."""
        return role_fault(self.role, "killed")

    def strike(self, stage: StageLike) -> None:
        """Kill it if it lives."""
        kill_if_running(stage.lab, self.role)

    def mend(self, stage: StageLike) -> None:
        """Start it."""
        start_at_last(stage, self.role)


@dataclass(frozen=True)
class Frozen:
    """SIGSTOP: it holds its locks and connections, and answers nobody; SIGCONT mends.

    A frozen worker keeps the node lock and the guest's file lock, and wakes up with a lease that
    is somebody else's by then, if it was frozen for longer than the lease.

    Args:
        role: as the lab calls it.
        lasts_s: for a worker more than its lease.
        participle: what the fault's name says of the role.
    """

    role: str
    lasts_s: float
    participle: str = "frozen"

    @property
    def name(self) -> str:
        """``worker_frozen:hv-a``."""
        return role_fault(self.role, self.participle)

    def strike(self, stage: StageLike) -> None:
        """Stop it if it lives."""
        kill_if_running(stage.lab, self.role, signal.SIGSTOP)
        wait_until(
            lambda: not is_running(stage.lab, self.role) or self.is_frozen(stage.lab),
            timeout_s=MEND_TIMEOUT_S,
            what=f"{self.role} is stopped",
        )

    def mend(self, stage: StageLike) -> None:
        """Let it go on; if it has died meanwhile, start it."""
        kill_if_running(stage.lab, self.role, signal.SIGCONT)
        wait_until(
            lambda: not self.is_frozen(stage.lab),
            timeout_s=MEND_TIMEOUT_S,
            what=f"{self.role} goes on",
        )
        start_at_last(stage, self.role)

    def is_frozen(self, lab: Lab) -> bool:
        """Tell whether the kernel has stopped it."""
        role = lab.role(self.role)
        if not role["running"]:
            return False
        try:
            stat = Path(f"/proc/{role['pid']}/stat").read_text()
        except OSError:
            return False
        # The state follows the command, which may hold blanks and brackets.
        return stat.rpartition(")")[2].split()[0] == "T"


@dataclass(frozen=True)
class QemuKilled:
    """SIGKILL of a guest's QEMU: the guest has crashed. Nothing mends that but Innkeeper.

    Args:
        host: where it runs.
        domain: which; by default the first that runs there.
    """

    host: str
    domain: str | None = None
    lasts_s: float = 0.0

    @property
    def name(self) -> str:
        """``qemu_killed:hv-a``, with ``:DOMAIN`` when it is a certain one."""
        return ":".join(["qemu_killed", self.host, *([self.domain] if self.domain else [])])

    def strike(self, stage: StageLike) -> None:
        """Kill it.

        Raises:
            MissedError: no such guest runs there.
        """
        domains = [self.domain] if self.domain else self._list_domains(stage.lab)
        for domain in domains:
            with suppress(LabError):
                stage.lab.kill(f"qemu:{self.host}:{domain}")
                return
        raise MissedError(f"no QEMU of {self.domain or 'any guest'} on {self.host}")

    def mend(self, stage: StageLike) -> None:
        """Do nothing."""

    def _list_domains(self, lab: Lab) -> list[str]:
        files = lab.layout.domain_pid_file(self.host, "*")
        return sorted(file.stem for file in files.parent.glob(files.name))


@dataclass(frozen=True)
class Doubled:
    """A second process beside a role's own, which is allowed to be there.

    Args:
        name: ``two_beats``, ``two_sweepers``.
        argv: what to run.
    """

    name: str
    argv: tuple[str, ...]
    lasts_s: float = 3.0
    _extra: list[subprocess.Popen[bytes]] = field(
        default_factory=list, init=False, repr=False, compare=False
    )

    def strike(self, stage: StageLike) -> None:
        """Start it, in the lab's PID namespace: it ends with the lab at the latest."""
        if self.pids:
            return
        lab = stage.lab
        holder = lab.description.hosts[0].holder_pid
        # nsenter stays as the parent; when it is killed, so is what it started.
        command = ["nsenter", f"--target={holder}", "--pid", "--", "setpriv", "--pdeathsig=KILL"]
        with lab.layout.log(self.name).open("ab") as log:
            extra = subprocess.Popen(
                [*command, *self.argv],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=REPOSITORY,
                env=environment.for_process(lab.description, lab.layout, self.name)
                | bent_environment(stage),
                start_new_session=True,
            )
        self._extra.append(extra)

    def mend(self, stage: StageLike) -> None:
        """Kill it and its children."""
        while self._extra:
            extra = self._extra.pop()
            with suppress(ProcessLookupError):
                os.killpg(extra.pid, signal.SIGKILL)
            extra.wait(10)

    @property
    def pids(self) -> tuple[int, ...]:
        """What runs now."""
        return tuple(extra.pid for extra in self._extra if extra.poll() is None)


def two_beats() -> Doubled:
    """Return a second beat, which asks for all chores once more."""
    return Doubled("two_beats", (sys.executable, "-m", "workers", "beat"))


def two_sweepers() -> Doubled:
    """Return a process that sweeps again and again, with no message from anybody."""
    script = f"while :; do {sys.executable} -m workers sweep; sleep {SWEEP_PAUSE_S}; done"
    return Doubled("two_sweepers", ("sh", "-c", script), lasts_s=5.0)


def bent_environment(stage: StageLike) -> dict[str, str]:
    """Return the variables that lead a process's messages through the stage's bent Redis."""
    return {} if stage.redis is None else {"INNKEEPER_BROKER_URL": stage.redis.url(0)}


def role_fault(role: str, participle: str) -> str:
    """Return the name of a fault of a role: ``worker:hv-a`` → ``worker_killed:hv-a``."""
    kind, colon, host = role.partition(":")
    return f"{kind}_{participle}{colon}{host}"
