"""The errors of a boot that went wrong, each with the stage reached and the console's tail."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any
from uuid import UUID

from innkeeper.errors import BootLoop, BootTimeout, CloudInitFailed, GuestDied
from innkeeper.states import BootStage
from virt.cloud_init import Verdict
from virt.console import tail


class BootFailures:
    """Makes the errors of one guest's boot.

    Args:
        host: the guest's host.
        instance_id: the guest.
        console_path: its console's file; None for none.
    """

    def __init__(self, host: str, instance_id: UUID, console_path: Path | str | None) -> None:
        self._host = host
        self._instance_id = instance_id
        self._console_path = console_path

    def died(self, stage: BootStage, reason: str) -> GuestDied:
        """Return the error of a guest that has ended."""
        return GuestDied(
            f"The guest ended at the boot stage {stage.value}: {reason}.",
            {"reason": reason, "reached": stage.value, **self._facts()},
        )

    def loops(self, stage: BootStage, resets_s: Sequence[float]) -> BootLoop:
        """Return the error of a guest that resets again and again."""
        within_s = round(resets_s[-1] - resets_s[0], 1)
        return BootLoop(
            f"The guest was reset {len(resets_s)} times within {within_s:g} s and did not get"
            f" beyond the boot stage {stage.value}.",
            {
                "reason": "reset loop",
                "reached": stage.value,
                "resets": len(resets_s),
                "within_s": within_s,
                **self._facts(),
            },
        )

    def cloud_init_failed(self, verdict: Verdict) -> CloudInitFailed:
        """Return the error of a guest whose cloud-init did not end well, or never begins."""
        if verdict.status == "disabled":
            message = "The guest's cloud-init is disabled and will never run."
        else:
            told = "; ".join(verdict.errors) or "it does not say why"
            message = f"The guest's cloud-init failed: {told}."
        return CloudInitFailed(
            message,
            {"status": verdict.status, "errors": list(verdict.errors), **self._facts()},
        )

    def late(
        self, stage: BootStage, wanted: BootStage, limit_s: float, *, obstacle: str | None
    ) -> BootTimeout:
        """Return the error of a guest that is too late.

        Args:
            stage: how far it came.
            wanted: how far it should have come.
            limit_s: in how many seconds.
            obstacle: why its agent could not be asked for more, where that matters.
        """
        facts: dict[str, Any] = {"reached": stage.value, "wanted": wanted.value, **self._facts()}
        if obstacle is not None:
            facts["obstacle"] = obstacle
        return BootTimeout(
            f"The guest has reached the boot stage {stage.value} and not {wanted.value} within"
            f" {limit_s:g} s.",
            facts,
        )

    def _facts(self) -> dict[str, Any]:
        return {
            "console_tail": tail(self._console_path) if self._console_path else "",
            "host": self._host,
            "instance_id": str(self._instance_id),
        }
