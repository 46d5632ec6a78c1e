"""A host whose clock is wrong by hours."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests.chaos.faults.fault import StageLike
from tests.chaos.faults.process_faults import bent_environment, kill_if_running, start_at_last

SOURCE = Path(__file__).with_name("skewed_clock.c")
VARIABLE = "SKEWED_CLOCK_S"


@dataclass(frozen=True)
class ClockSkewed:
    """The clock of a host's worker is wrong.

    No namespace has a CLOCK_REALTIME of its own, so the kernel cannot show one host another time.
    The worker is killed and started again with a preloaded library (skewed_clock.c) that covers the
    worker's own process and the programs that it starts: all they read off the wall clock, and so
    the stamps in its messages and logs. It does not cover the host's libvirtd and its QEMUs, nor
    the times of files, which stay the kernel's, as if another machine had stamped them.
    CLOCK_MONOTONIC, by which time-outs are measured, is left alone, as a wrong clock leaves it.

    Args:
        host: whose worker.
        skew_s: how far ahead; negative for behind.
    """

    host: str
    skew_s: int
    lasts_s: float = 5.0

    @property
    def name(self) -> str:
        """``clock_skewed:hv-a:+7200s``."""
        return f"clock_skewed:{self.host}:{self.skew_s:+d}s"

    def strike(self, stage: StageLike) -> None:
        """Kill the worker and start it with the wrong clock."""
        if self.is_skewed(stage):
            return
        kill_if_running(stage.lab, self._role)
        variables = {"LD_PRELOAD": str(_build(stage.lab.layout.root)), VARIABLE: str(self.skew_s)}
        stage.lab.start(self._role, env=bent_environment(stage) | variables)

    def mend(self, stage: StageLike) -> None:
        """Kill the worker if its clock is wrong, and start it with the right one."""
        if self.is_skewed(stage):
            kill_if_running(stage.lab, self._role)
        start_at_last(stage, self._role)

    def is_skewed(self, stage: StageLike) -> bool:
        """Tell whether the running worker has this fault's clock."""
        role = stage.lab.role(self._role)
        if not role["running"]:
            return False
        try:
            variables = Path(f"/proc/{role['pid']}/environ").read_bytes().split(b"\0")
        except OSError:
            return False
        return f"{VARIABLE}={self.skew_s}".encode() in variables

    @property
    def _role(self) -> str:
        return f"worker:{self.host}"


def _build(directory: Path) -> Path:
    """Compile the library where every host sees it."""
    library = directory / "skewed_clock.so"
    if not library.exists():
        draft = directory / "skewed_clock.draft"
        subprocess.run(["gcc", "-shared", "-fPIC", "-O2", "-o", draft, SOURCE], check=True)
        draft.rename(library)
    return library
