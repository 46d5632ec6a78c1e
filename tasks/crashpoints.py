"""Lets a test kill the process at a named boundary; costs one comparison otherwise.

``INNKEEPER_CRASH_AT`` names one boundary as ``<where>:<moment>``, for example
``spawn.define_domain:acted``. The process then kills itself with SIGKILL, the first time only if
``INNKEEPER_CRASH_ONCE`` names a file that does not exist yet.
"""

import os
import signal
from pathlib import Path

_WANTED = os.environ.get("INNKEEPER_CRASH_AT")
_ONCE = os.environ.get("INNKEEPER_CRASH_ONCE")


def crash_point(where: str, moment: str) -> None:
    """Die here if a test asked for it."""
    if _WANTED is None or f"{where}:{moment}" != _WANTED:
        return
    if _ONCE is not None:
        try:
            Path(_ONCE).touch(exist_ok=False)
        except FileExistsError:
            return
    os.kill(os.getpid(), signal.SIGKILL)
