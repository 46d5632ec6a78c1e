"""Files written through the guest agent: bounded, whole or not at all, read back afterwards.

The file is made empty under another name, gets its owner and mode, then its bytes, and is put into
its place by one rename: nobody in the guest sees it half, nor a secret with a stranger's right to
read. Programs run in the guest with argument lists, never through a shell.
"""

import base64
import hashlib
import time
from collections.abc import Callable
from pathlib import PurePosixPath
from typing import Any
from uuid import UUID

from innkeeper.errors import AgentUnresponsive, FileInjectionFailed
from virt.guest_file import GuestFile
from virt.hypervisor import Hypervisor

CHUNK_BYTES = 48 * 1024
COMMAND_TIMEOUT_S = 10
LOOK_EVERY_S = 0.05
ERROR_MAX_CHARS = 200
AGENT_ERROR = 1
"""Libvirt's code for a command that the agent answered with an error."""


class AgentFiles:
    """Writes files into one guest.

    Args:
        hypervisor: the host's libvirt.
        instance_id: the guest; its agent must answer.
        limit_s: how long everything may take together.
        check: called between commands; raises when the work is to stop.
    """

    def __init__(
        self,
        hypervisor: Hypervisor,
        instance_id: UUID,
        *,
        limit_s: float,
        check: Callable[[], None],
    ) -> None:
        self._hypervisor = hypervisor
        self._instance_id = instance_id
        self._limit_s = limit_s
        self._give_up_at = time.monotonic() + limit_s
        self._check = check

    def write(self, file: GuestFile) -> None:
        """Write one file; one that is there is replaced, missing directories are made.

        Raises:
            AgentUnresponsive: the agent does not answer, or not in time.
            FileInjectionFailed: the guest does not let it happen, or has other bytes afterwards.
        """
        path = PurePosixPath(file.path)
        own = str(path.with_name(f".{path.name[:200]}.innkeeper"))
        self._run(file, "mkdir", "-p", str(path.parent))
        # What another attempt left there may be a link to somewhere else.
        self._run(file, "rm", "-f", own)
        self._fill(file, own, b"")
        self._run(file, "chmod", "0600", own)
        self._run(file, "chown", file.owner, own)
        self._fill(file, own, file.content)
        self._run(file, "chmod", file.mode, own)
        self._compare(file, own)
        self._run(file, "mv", "-f", own, str(path))

    def _fill(self, file: GuestFile, path: str, content: bytes) -> None:
        handle = self._ask(file, "guest-file-open", path=path, mode="w")
        try:
            for start in range(0, len(content), CHUNK_BYTES):
                chunk = content[start : start + CHUNK_BYTES]
                sent = {"handle": handle, "buf-b64": base64.b64encode(chunk).decode()}
                wrote = self._ask(file, "guest-file-write", **sent)
                if not isinstance(wrote, dict) or wrote.get("count") != len(chunk):
                    raise _failed(file, "the guest took only a part of it")
            if content:
                self._ask(file, "guest-file-flush", handle=handle)
        finally:
            self._ask(file, "guest-file-close", handle=handle)

    def _compare(self, file: GuestFile, path: str) -> None:
        said = self._run(file, "sha256sum", path).split()
        expected = hashlib.sha256(file.content).hexdigest()
        # GNU's sha256sum marks names with a backslash in them by one before the digest.
        if not said or said[0].lstrip("\\") != expected:
            raise _failed(file, "the guest has other bytes than were sent")

    def _run(self, file: GuestFile, program: str, *arguments: str) -> str:
        """Run a program in the guest; return what it printed.

        Raises:
            FileInjectionFailed: it failed, or the agent may not run programs.
        """
        started = self._ask(
            file,
            "guest-exec",
            **{"path": program, "arg": list(arguments), "capture-output": True},
        )
        pid = started.get("pid") if isinstance(started, dict) else None
        if not isinstance(pid, int):
            raise _failed(file, f"the agent did not start {program}")
        while True:
            status = self._ask(file, "guest-exec-status", pid=pid)
            if not isinstance(status, dict):
                raise _failed(file, f"the agent lost {program}")
            if status.get("exited"):
                break
            time.sleep(LOOK_EVERY_S)
        if status.get("exitcode") != 0:
            complaint = _text(status.get("err-data"))[:ERROR_MAX_CHARS].strip()
            raise _failed(file, f"{program} failed in the guest: {complaint or 'no reason given'}")
        return _text(status.get("out-data"))

    def _ask(self, file: GuestFile, command: str, **arguments: Any) -> Any:
        self._check()
        if time.monotonic() > self._give_up_at:
            raise AgentUnresponsive(
                f"The guest agent did not write all files within {self._limit_s:.0f} s.",
                {"path": file.path, "limit_s": self._limit_s},
            )
        try:
            answer = self._hypervisor.agent_command(
                self._instance_id,
                {"execute": command, "arguments": arguments},
                timeout_s=COMMAND_TIMEOUT_S,
            )
        except AgentUnresponsive as error:
            if error.details.get("libvirt_code") == AGENT_ERROR:
                # An answer, though not the wished one.
                raise _failed(file, f"the agent refused {command}") from error
            raise
        return answer.get("return")


def _text(encoded: object) -> str:
    if not isinstance(encoded, str):
        return ""
    try:
        return base64.b64decode(encoded).decode(errors="replace")
    except ValueError:
        return ""


def _failed(file: GuestFile, reason: str) -> FileInjectionFailed:
    return FileInjectionFailed(
        f"The file {file.path} could not be written into the guest: {reason}.",
        {"path": file.path, "reason": reason},
    )
