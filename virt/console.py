"""A guest's serial console as the file libvirt writes: its tail, and its first bytes.

What stands there comes from inside the guest: it is bounded, and control characters are dropped
before it reaches a log or a terminal.
"""

import re
from pathlib import Path

# Escape sequences go as a whole, or their letters stay behind as text.
_SEQUENCES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\-_])")
_CONTROLS = re.compile(
    r"[^\t\n\x20-\x7e\u00a0-\U0010ffff]|[\u200e\u200f\u2028-\u202e\u2066-\u2069]"
)


def clean(data: bytes) -> str:
    """Return console output as text that a terminal cannot be controlled by."""
    text = data.decode("utf-8", "replace").replace("\r\n", "\n").replace("\r", "\n")
    return _CONTROLS.sub("", _SEQUENCES.sub("", text))


def tail(path: Path | str, max_bytes: int = 4096) -> str:
    """Return the end of a console, cleaned.

    Args:
        path: the console's file.
        max_bytes: how much of it to read.

    Returns:
        The text; empty when there is no file.
    """
    try:
        with Path(path).open("rb") as file:
            end = file.seek(0, 2)
            file.seek(max(0, end - max_bytes))
            return clean(file.read(max_bytes))
    except OSError:
        return ""


def size_bytes(path: Path | str) -> int:
    """Return how much a console holds; 0 when there is none. The offset of what comes next."""
    try:
        return Path(path).stat().st_size
    except OSError:
        return 0


class ConsoleWatch:
    """Tells whether a guest has written to its console since an offset.

    Args:
        path: the console's file.
        offset_bytes: where this boot began, as ``size_bytes`` gave before the start.
    """

    def __init__(self, path: Path | str, offset_bytes: int = 0) -> None:
        self._path = path
        self._offset_bytes = offset_bytes

    def has_output(self) -> bool:
        """Return whether there is anything after the offset."""
        size = size_bytes(self._path)
        if size < self._offset_bytes:
            # Rotated or truncated since: all of it is new.
            self._offset_bytes = 0
        return size > self._offset_bytes
