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

_READ_MAX_BYTES = 256 * 1024
_BACKLOG_MAX_BYTES = 1024 * 1024
_LINE_MAX_BYTES = 4096


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
    """Follows what a guest writes to its console from an offset on.

    Args:
        path: the console's file.
        offset_bytes: where this boot began, as ``size_bytes`` gave before the start.
    """

    def __init__(self, path: Path | str, offset_bytes: int = 0) -> None:
        self._path = path
        self._offset_bytes = offset_bytes
        self._read_to = offset_bytes
        self._unfinished = b""

    def has_output(self) -> bool:
        """Return whether there is anything after the offset."""
        return self._size_bytes() > self._offset_bytes

    def read_lines(self) -> list[bytes]:
        """Return the lines that have come since the last call, the unfinished one at their end.

        At most a quarter of a MiB is read; of a guest that writes faster than it is read, the
        older output is passed over.
        """
        size = self._size_bytes()
        if size <= self._read_to:
            return []
        if size - self._read_to > _BACKLOG_MAX_BYTES:
            self._read_to, self._unfinished = size - _READ_MAX_BYTES, b""
        try:
            with Path(self._path).open("rb") as file:
                file.seek(self._read_to)
                data = file.read(_READ_MAX_BYTES)
        except OSError:
            return []
        self._read_to += len(data)
        lines = (self._unfinished + data).replace(b"\r", b"\n").split(b"\n")
        self._unfinished = lines[-1][-_LINE_MAX_BYTES:]
        return [line[-_LINE_MAX_BYTES:] for line in lines if line]

    def _size_bytes(self) -> int:
        size = size_bytes(self._path)
        if size < self._offset_bytes or size < self._read_to:
            # Rotated or truncated since: all of it is new.
            self._offset_bytes = self._read_to = 0
            self._unfinished = b""
        return size
