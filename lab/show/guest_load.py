"""A Linux guest that rewrites its memory at a given speed, through its agent."""

from __future__ import annotations

import json
import time
from typing import Any

from lab.handle import Lab

_SETTLE_S = 2.0
_PATIENCE_S = 60.0


class GuestLoad:
    """The program /bin/dirty inside a guest of the lab.

    Args:
        lab: where the guest runs.
        name: its domain's name.
    """

    def __init__(self, lab: Lab, name: str) -> None:
        self._lab = lab
        self._name = name

    def start(self, host: str, *, rate_mib_s: int, size_mib: int) -> None:
        """Begin to rewrite, until the guest ends; returns when it goes on steadily.

        Args:
            host: where the guest is now.
            rate_mib_s: how fast; 0 for nothing at all.
            size_mib: how much memory, over and over.
        """
        if not rate_mib_s:
            return
        pid = self._run(host, "/bin/dirty", str(rate_mib_s), str(size_mib))
        time.sleep(_SETTLE_S)
        if self._ask(host, "guest-exec-status", pid=pid)["exited"]:
            raise RuntimeError(f"the load of {self._name} has ended by itself")

    def await_agent(self, host: str) -> None:
        """Wait until the guest's agent answers."""
        give_up_at = time.monotonic() + _PATIENCE_S
        command = ["virsh", "qemu-agent-command", self._name, '{"execute": "guest-ping"}']
        while self._lab.exec(host, command, check=False).returncode:
            if time.monotonic() > give_up_at:
                raise RuntimeError(f"the agent of {self._name} does not answer")
            time.sleep(0.2)

    def _run(self, host: str, path: str, *arguments: str) -> int:
        return int(self._ask(host, "guest-exec", path=path, arg=list(arguments))["pid"])

    def _ask(self, host: str, verb: str, **arguments: Any) -> dict[str, Any]:
        command = json.dumps({"execute": verb, "arguments": arguments})
        done = self._lab.exec(host, ["virsh", "qemu-agent-command", self._name, command])
        answer: dict[str, Any] = json.loads(done.stdout)["return"]
        return answer
