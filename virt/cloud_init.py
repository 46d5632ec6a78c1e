"""What cloud-init in a guest says of itself, asked through the guest's agent.

The answers come from inside the guest: they are bounded and cleaned, and none is believed to be
there. A guest whose agent may not run programs, or that has no cloud-init, tells nothing.
"""

import base64
import binascii
import json
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal
from uuid import UUID

from innkeeper.errors import AgentUnresponsive, DomainNotFound, HypervisorBusy
from virt.console import clean
from virt.hypervisor import Hypervisor

ERRORS_MAX = 10
_ERROR_MAX_CHARS = 300
_OUTPUT_MAX_CHARS = 256 * 1024
_ASK_AGAIN_S = 0.5
_BEGIN_AGAIN_S = 2.0

# Older releases know no --format; they print «status: done».
_WAYS: tuple[tuple[str, ...], ...] = (
    ("status", "--wait", "--format", "json"),
    ("status", "--wait", "--long"),
)


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """How cloud-init has ended.

    Args:
        status: ``disabled`` is one that will never run.
        errors: what it tells of its failure, cleaned and capped.
    """

    status: Literal["done", "error", "disabled"]
    errors: tuple[str, ...] = ()


def read_verdict(output: str) -> Verdict | None:
    """Return what the output of ``cloud-init status`` says; None when it says nothing final.

    Args:
        output: of any of its formats; dots of its waiting may stand before it.
    """
    facts = _read_json(output) or _read_text(output)
    status = str(facts.get("status", ""))
    told = facts.get("errors")
    lines = told if isinstance(told, list) else [told] if told else []
    if status == "error" and not lines and facts.get("detail"):
        lines = [facts["detail"]]
    errors = tuple(
        clean(str(line).encode("utf-8", "replace")).replace("\n", " ").strip()[:_ERROR_MAX_CHARS]
        for line in lines[:ERRORS_MAX]
    )
    match status:
        case "done" | "degraded":
            return Verdict(status="done", errors=errors)
        case "error":
            return Verdict(status="error", errors=errors)
        case "disabled":
            return Verdict(status="disabled", errors=errors)
    return None


def _read_json(output: str) -> Mapping[str, Any]:
    try:
        facts = json.loads(output[output.index("{") :])
    except (ValueError, RecursionError):
        return {}
    return facts if isinstance(facts, dict) else {}


def _read_text(output: str) -> Mapping[str, Any]:
    status = re.search(r"^\.*status: *(\w+)", output, re.MULTILINE)
    detail = re.search(r"^detail:\s*(.+)", output, re.MULTILINE)
    return {
        "status": status[1] if status else "",
        "detail": detail[1] if detail else None,
    }


class CloudInitInquiry:
    """Asks a guest's cloud-init how it has ended; one short call at a time.

    Args:
        hypervisor: the guest's host.
        instance_id: the guest.
    """

    def __init__(self, hypervisor: Hypervisor, instance_id: UUID) -> None:
        self._hypervisor = hypervisor
        self._instance_id = instance_id
        self._pid: int | None = None
        self._way = 0
        self._ask_at_s = 0.0
        self.obstacle: str | None = None

    @property
    def can_tell(self) -> bool:
        """False when the last attempt to ask came to nothing."""
        return self.obstacle is None

    def begin_again(self) -> None:
        """Forget the question under way: the guest has restarted."""
        self._pid, self._ask_at_s, self.obstacle = None, 0.0, None

    def wait_s(self) -> float:
        """Return the seconds until it is worth to look."""
        return max(0.0, self._ask_at_s - time.monotonic())

    def look(self, *, timeout_s: int) -> Verdict | None:
        """Ask, or look for the answer; None as long as there is none.

        Args:
            timeout_s: how long the agent may take, in whole seconds.
        """
        if self.wait_s() > 0:
            return None
        try:
            verdict = self._ask(timeout_s)
        except (AgentUnresponsive, HypervisorBusy, DomainNotFound) as exc:
            self._give_up(exc.message)
            return None
        return verdict

    def _ask(self, timeout_s: int) -> Verdict | None:
        if self._pid is None:
            answer = self._run(
                "guest-exec",
                timeout_s,
                path="cloud-init",
                arg=list(_WAYS[self._way]),
                **{"capture-output": True},
            )
            if not isinstance(answer.get("pid"), int):
                self._give_up("the agent gave no process for cloud-init")
                return None
            self._pid = answer["pid"]
        answer = self._run("guest-exec-status", timeout_s, pid=self._pid)
        if not answer.get("exited"):
            self.obstacle, self._ask_at_s = None, time.monotonic() + _ASK_AGAIN_S
            return None
        verdict = read_verdict(_decode(answer.get("out-data")))
        if verdict is None:
            self._way = (self._way + 1) % len(_WAYS)
            self._give_up(f"cloud-init said nothing final: {_decode(answer.get('err-data'))[:200]}")
        return verdict

    def _run(self, command: str, timeout_s: int, **arguments: Any) -> Mapping[str, Any]:
        answer = self._hypervisor.agent_command(
            self._instance_id, {"execute": command, "arguments": arguments}, timeout_s=timeout_s
        )
        returned = answer.get("return")
        return returned if isinstance(returned, dict) else {}

    def _give_up(self, why: str) -> None:
        self._pid, self.obstacle = None, clean(why.encode("utf-8", "replace"))[:_ERROR_MAX_CHARS]
        self._ask_at_s = time.monotonic() + _BEGIN_AGAIN_S


def _decode(data: object) -> str:
    if not isinstance(data, str):
        return ""
    try:
        return base64.b64decode(data[:_OUTPUT_MAX_CHARS]).decode("utf-8", "replace")
    except (binascii.Error, ValueError):
        return ""
