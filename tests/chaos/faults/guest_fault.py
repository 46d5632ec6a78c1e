"""A certain guest's QEMU dies, wherever it runs."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass

from tests.chaos.faults.fault import MissedError, StageLike
from tests.chaos.faults.process_faults import QemuKilled


@dataclass(frozen=True)
class GuestKilled:
    """SIGKILL of a guest's QEMU on the first host that has one.

    While the guest is moved two hosts have one; which of them dies is then a matter of their order.

    Args:
        guest: its name.
        hosts: where to look, in this order.
    """

    guest: str
    hosts: tuple[str, ...]
    lasts_s: float = 0.0

    @property
    def name(self) -> str:
        """``qemu_killed:GUEST``."""
        return f"qemu_killed:{self.guest}"

    def strike(self, stage: StageLike) -> None:
        """Kill it.

        Raises:
            MissedError: it runs nowhere.
        """
        for host in self.hosts:
            with suppress(MissedError):
                QemuKilled(host, self.guest).strike(stage)
                return
        raise MissedError(f"{self.guest} runs nowhere")

    def mend(self, stage: StageLike) -> None:
        """Do nothing: it is Innkeeper's to notice."""
