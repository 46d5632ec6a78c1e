"""Shell commands inside the lab's Linux guest, through its agent."""

import base64
import json
import subprocess
from typing import Any

from lab.handle import Lab
from tests.waiting import wait_until


def run_in_guest(lab: Lab, host: str, name: str, script: str) -> str:
    """Run a shell script inside a guest and return what it wrote.

    Args:
        lab: the lab.
        host: where the guest is.
        name: the guest's domain.
        script: for ``/bin/sh -ec``; it must succeed.
    """
    arguments = {"path": "/bin/sh", "arg": ["-ec", script], "capture-output": True}
    pid = _ask(lab, host, name, "guest-exec", arguments)["pid"]
    told: dict[str, Any] = {}

    def has_ended() -> bool:
        told.update(_ask(lab, host, name, "guest-exec-status", {"pid": pid}))
        return bool(told["exited"])

    wait_until(has_ended, what=f"{script!r} ends in {name}")
    out = base64.b64decode(told.get("out-data", "")).decode()
    said = base64.b64decode(told.get("err-data", "")).decode()
    assert told.get("exitcode") == 0, f"{script!r} ended with {told}: {out}{said}"
    return out


def is_agent_up(lab: Lab, host: str, name: str) -> bool:
    """Return whether the guest's agent answers."""
    ping = ["virsh", "qemu-agent-command", name, '{"execute": "guest-ping"}']
    return lab.exec(host, ping, check=False).returncode == 0


def _ask(lab: Lab, host: str, name: str, command: str, arguments: dict[str, Any]) -> dict[str, Any]:
    text = json.dumps({"execute": command, "arguments": arguments})
    done = subprocess.run(
        lab.host_command(host, ["virsh", "qemu-agent-command", name, text]),
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)["return"]
    return answer
