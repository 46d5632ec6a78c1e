"""Hashes cached images slowly, a slice at a time, and remembers between slices where it was."""

import hashlib
import os
import time
from pathlib import Path
from threading import Event
from typing import BinaryIO

CHUNK_BYTES = 1 << 20


class Pace:
    """How much may be read: so many bytes a second, until the time is over.

    Args:
        bytes_per_s: the cap.
        slice_s: how long the slice may take.
        stop: ends it early.
    """

    def __init__(self, bytes_per_s: float, slice_s: float, stop: Event) -> None:
        self._bytes_per_s = bytes_per_s
        self._stop = stop
        self._started = time.monotonic()
        self._end = self._started + slice_s
        self._taken_bytes = 0

    def take(self, size_bytes: int) -> bool:
        """Wait until so many bytes may be read; False when the slice is over."""
        due = self._started + self._taken_bytes / self._bytes_per_s
        self._taken_bytes += size_bytes
        if due >= self._end or self._stop.wait(max(0.0, due - time.monotonic())):
            return False
        return time.monotonic() < self._end


class _Reading:
    """A file on its way through the hash."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file: BinaryIO = path.open("rb", buffering=0)
        self.inode = os.fstat(self.file.fileno()).st_ino
        self._digest = hashlib.sha256()
        self._done_bytes = 0

    def go_on(self, pace: Pace) -> str | None:
        while pace.take(CHUNK_BYTES):
            chunk = self.file.read(CHUNK_BYTES)
            if not chunk:
                return self._digest.hexdigest()
            self._digest.update(chunk)
            # The next scrub is to read the disk, and guests are to keep the cache for themselves.
            os.posix_fadvise(
                self.file.fileno(), self._done_bytes, len(chunk), os.POSIX_FADV_DONTNEED
            )
            self._done_bytes += len(chunk)
        return None


class Scrubber:
    """Hashes one file after another; a file that one slice does not finish is gone on with later.

    Args:
        bytes_per_s: how fast it may read; 0 for not at all.
    """

    def __init__(self, bytes_per_s: float) -> None:
        self.is_on = bytes_per_s > 0
        self.stop = Event()
        self._bytes_per_s = bytes_per_s
        self._reading: _Reading | None = None

    def begin_slice(self, slice_s: float) -> Pace:
        """Return the pace of a slice, which several files may share."""
        return Pace(self._bytes_per_s, slice_s, self.stop)

    def read_on(self, path: Path, pace: Pace) -> tuple[str, int] | None:
        """Read a file, from where the last slice stopped if it is the same file still.

        Returns:
            The SHA-256 of its bytes and the inode that has them; None when the slice is over.

        Raises:
            OSError: it cannot be read.
        """
        reading = self._reading
        if reading is None or reading.path != path or path.stat().st_ino != reading.inode:
            self._forget()
            reading = self._reading = _Reading(path)
        try:
            digest = reading.go_on(pace)
        except OSError:
            self._forget()
            raise
        if digest is None:
            return None
        self._forget()
        return digest, reading.inode

    def _forget(self) -> None:
        if self._reading is not None:
            self._reading.file.close()
            self._reading = None
