"""Looks into a running guest through its agent."""

import base64
import json
import subprocess
import time
from typing import Any

from lab.handle import Lab
from tests.waiting import PATIENCE_S


def ask_agent(lab: Lab, host: str, name: str, command: str, **arguments: Any) -> Any:
    asked = json.dumps({"execute": command, "arguments": arguments})
    done = subprocess.run(
        lab.host_command(host, ["virsh", "qemu-agent-command", name, asked]),
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)["return"]


def run_inside(lab: Lab, host: str, name: str, *argv: str) -> str:
    """Run a program in the guest; return what it printed, and fail if it failed."""
    arguments = {"path": argv[0], "arg": list(argv[1:]), "capture-output": True}
    pid = ask_agent(lab, host, name, "guest-exec", **arguments)["pid"]
    give_up_at = time.monotonic() + PATIENCE_S
    while True:
        status = ask_agent(lab, host, name, "guest-exec-status", pid=pid)
        if status["exited"]:
            break
        assert time.monotonic() < give_up_at, f"{argv} does not end in the guest"
        time.sleep(0.05)
    printed = base64.b64decode(status.get("out-data", "")).decode()
    assert status["exitcode"] == 0, (argv, printed, base64.b64decode(status.get("err-data", "")))
    return printed


def read_inside(lab: Lab, host: str, name: str, path: str) -> bytes:
    handle = ask_agent(lab, host, name, "guest-file-open", path=path, mode="r")
    content = b""
    while True:
        read = ask_agent(lab, host, name, "guest-file-read", handle=handle, count=65536)
        content += base64.b64decode(read["buf-b64"])
        if read["eof"]:
            break
    ask_agent(lab, host, name, "guest-file-close", handle=handle)
    return content


def describe_inside(lab: Lab, host: str, name: str, path: str) -> str:
    """``owner group mode`` of a file in the guest."""
    return run_inside(lab, host, name, "stat", "-c", "%U %G %a", path).strip()
