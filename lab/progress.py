"""News from a supervisor that is coming up to the `lab up` that waits for it.

One JSON line each on a pipe: ``{"said": …}``, then ``{"ready": true}`` or ``{"failed": …}``. A pipe
that ends without either means that the supervisor died.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from typing import Any

from lab.errors import LabError


class Progress:
    """The writing end."""

    def __init__(self, fd: int) -> None:
        os.set_inheritable(fd, False)
        self._fd: int | None = fd

    def say(self, text: str) -> None:
        """Report something done or begun."""
        self._write({"said": text})

    def ready(self) -> None:
        """Report success; nothing may follow."""
        self._write({"ready": True})
        self._close()

    def failed(self, reason: str) -> None:
        """Report failure, unless the end has been reported already; nothing may follow."""
        self._write({"failed": reason})
        self._close()

    def _close(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def _write(self, message: dict[str, Any]) -> None:
        if self._fd is None:
            # The number belongs to another file by now.
            return
        try:
            os.write(self._fd, json.dumps(message).encode() + b"\n")
        except BrokenPipeError:
            # Whoever waited has left; the lab itself need not care.
            return


def follow(fd: int, show: Callable[[str], None]) -> None:
    """Show a lab's progress until it is ready.

    Raises:
        LabError: it failed or died.
    """
    for message in _messages(fd):
        if "failed" in message:
            raise LabError(message["failed"])
        if "ready" in message:
            return
        show(message["said"])
    raise LabError("the lab's supervisor died while it was coming up")


def _messages(fd: int) -> Iterator[dict[str, Any]]:
    with open(fd, encoding="utf-8") as stream:
        for line in stream:
            yield json.loads(line)
