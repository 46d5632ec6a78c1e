"""The command that switches a host off: an operator's own, run without a shell."""

import os
import re
import selectors
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from innkeeper.errors import FencingFailed

MOST_OUTPUT_BYTES = 64 * 1024
TAIL_CHARACTERS = 1000
HOST = "{host}"
ADDRESS = "{address}"
# Neither may look like an option, nor hold anything that a careless hook would give to a shell.
_SAFE_HOST = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,252}")
_SAFE_ADDRESS = re.compile(r"[A-Za-z0-9][A-Za-z0-9.:_-]{0,252}")
_UNSHOWABLE = re.compile(r"[^\t\n\x20-\x7e]")


@dataclass(frozen=True, slots=True)
class FencingHook:
    """A command that ends with 0 when, and only when, the host is off.

    It is run anew when the worker dies before its end is recorded: a host that is off already
    must count as success.

    Args:
        command: program and arguments; ``{host}`` and ``{address}`` are put in.
        timeout_s: how long it may take.
    """

    command: tuple[str, ...]
    timeout_s: float

    @property
    def name(self) -> str:
        """What may be shown of it; its arguments may hold passwords."""
        return Path(self.command[0]).name


def check_command(command: Sequence[str]) -> Sequence[str]:
    """Check a command before it is ever needed.

    Raises:
        ValueError: it is not an absolute path, or holds a placeholder that nobody fills.
    """
    if not command:
        return command
    if not Path(command[0]).is_absolute():
        raise ValueError("the first item must be the absolute path of a program")
    for part in command:
        unknown = set(re.findall(r"\{\w*\}", part)) - {HOST, ADDRESS}
        if unknown:
            raise ValueError(f"{unknown.pop()} is neither {HOST} nor {ADDRESS}")
    return command


def fill_in(hook: FencingHook, *, host: str, address: str) -> list[str]:
    """Return the command for one host.

    Raises:
        FencingFailed: its name or its address cannot be handed to a program safely.
    """
    for what, value, pattern, placeholder in (
        ("name", host, _SAFE_HOST, HOST),
        ("address", address, _SAFE_ADDRESS, ADDRESS),
    ):
        is_used = any(placeholder in part for part in hook.command)
        if is_used and not pattern.fullmatch(value):
            raise FencingFailed(
                f"The {what} of host {host!r} cannot be handed to the fencing hook.",
                {"host": host, what: value},
            )
    return [part.replace(HOST, host).replace(ADDRESS, address) for part in hook.command]


def run_hook(
    hook: FencingHook, argv: Sequence[str], *, host: str, check: Callable[[], None]
) -> str:
    """Switch a host off.

    Args:
        hook: the operator's command.
        argv: the same, filled in.
        host: for the messages.
        check: called every now and then; what it raises ends the command.

    Returns:
        The end of what the command said.

    Raises:
        FencingFailed: it did not say that the host is off.
    """
    started = time.monotonic()
    try:
        process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    except OSError as error:
        raise FencingFailed(
            f"The fencing hook {hook.name} cannot be run: {error.strerror}.",
            {"host": host, "hook": hook.name},
        ) from None
    try:
        said, is_over = _listen(process, started + hook.timeout_s, check)
        if not is_over:
            raise FencingFailed(
                f"The fencing hook {hook.name} did not end within {hook.timeout_s:g} s.",
                {"host": host, "hook": hook.name, "output": said},
            )
        code = process.wait()
    finally:
        _end(process)
    if code != 0:
        raise FencingFailed(
            f"The fencing hook {hook.name} ended with code {code}: host {host} may be alive.",
            {"host": host, "hook": hook.name, "exit_code": code, "output": said},
        )
    return said


def _listen(
    process: subprocess.Popen[bytes], until: float, check: Callable[[], None]
) -> tuple[str, bool]:
    """Keep the end of what a process says until it has ended; False when it did not in time."""
    assert process.stdout is not None
    os.set_blocking(process.stdout.fileno(), False)
    kept = b""
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while process.poll() is None:
            check()
            if time.monotonic() > until:
                return _show(kept), False
            if selector.select(0.1):
                said = process.stdout.read(MOST_OUTPUT_BYTES)
                kept = (kept + (said or b""))[-MOST_OUTPUT_BYTES:]
                if said == b"":
                    selector.unregister(process.stdout)
    # What a daemon that it has left behind says later is not waited for.
    return _show(kept + (process.stdout.read(MOST_OUTPUT_BYTES) or b"")), True


def _end(process: subprocess.Popen[bytes]) -> None:
    """Leave no process of the hook's own behind, and no zombie."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    if process.stdout is not None:
        process.stdout.close()


def _show(output: bytes) -> str:
    return _UNSHOWABLE.sub("?", output.decode("utf-8", "replace"))[-TAIL_CHARACTERS:].strip()
