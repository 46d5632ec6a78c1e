"""Watches all guests' consoles on all hosts, to see whether a guest ever runs twice."""

from __future__ import annotations

import os
import re
import threading
import time
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from lab.handle import Lab
from tests.chaos.checker.heartbeats import MOST_TOLD, Beat, find_breaks, judge
from tests.chaos.checker.violation import Violation

__all__ = ["Beat", "ConsoleWatch", "judge"]

POLL_S = 0.15
TORN_S = 2.0
"""A line that is not finished in this time was cut by a move; what follows is not its end."""
LINGER_S = 30.0
"""How long a removed console is still read: a copy that was left behind goes on writing to it."""
TIMELINE_BEATS = 12

_HEARTBEAT = re.compile(rb"hb (\d{1,10})(?: [0-9A-Fa-f-]{36})?\r*")


@dataclass
class ConsoleLog:
    """One console file, read as it grows; it may be cut, replaced or removed meanwhile.

    Args:
        host: where it is.
        guest: whose it is.
        file: open for reading, at what has not been read.
        read_at_s: when it was known to hold no more than what has been read.
    """

    host: str
    guest: str
    file: BinaryIO
    read_at_s: float
    grew_at_s: float = 0.0
    _begun: bytes = b""
    _begun_at_s: float = field(default=0.0)

    def read(self, now_s: float) -> list[Beat]:
        """Return the heartbeats that have come since the last time."""
        if os.fstat(self.file.fileno()).st_size < self.file.tell():
            self.file.seek(0)
            self._begun = b""
        data = self.file.read()
        after_s, self.read_at_s = self.read_at_s, now_s
        if not data:
            return []
        self.grew_at_s = now_s
        is_torn = bool(self._begun) and now_s - self._begun_at_s > TORN_S
        *lines, rest = (self._begun + data).split(b"\n")
        if is_torn and lines:
            del lines[0]
        if rest and (lines or not self._begun):
            self._begun_at_s = now_s
        self._begun = rest
        at_s = time.monotonic()
        found = (_HEARTBEAT.fullmatch(line) for line in lines)
        return [Beat(self.host, int(match[1]), after_s, at_s) for match in found if match]


class ConsoleWatch:
    """Remembers every heartbeat of every guest on every host while it is entered.

    What stood on the consoles before is not judged.

    Args:
        lab: whose hosts are watched.
    """

    def __init__(self, lab: Lab) -> None:
        self._directories = {
            host: lab.layout.host(host) / "innkeeper" / "consoles" for host in lab.hosts
        }
        self._logs: dict[tuple[str, str], ConsoleLog] = {}
        self._gone: list[ConsoleLog] = []
        self._beats: dict[str, list[Beat]] = {}
        self._looked_at_s: dict[str, float] = {}
        self._guard = threading.Lock()
        self._stop = threading.Event()
        self._defect: Exception | None = None
        self._thread = threading.Thread(target=self._watch, name="consoles", daemon=True)

    @property
    def beats(self) -> dict[str, list[Beat]]:
        """Every heartbeat seen so far, by guest."""
        with self._guard:
            return {guest: list(beats) for guest, beats in self._beats.items()}

    def violations(self) -> list[Violation]:
        """Return what shows that a guest ran twice."""
        self._poll()
        if self._defect is not None:
            raise self._defect
        return [
            Violation(
                "runs_once",
                f"guest {guest}: {text}",
                [
                    f"hb {beat.counter} on {beat.host}, read at {beat.at_s:.2f} s"
                    for beat in order[-TIMELINE_BEATS:]
                ],
            )
            for guest, beats in sorted(self.beats.items())
            for text, order in islice(find_breaks(beats), MOST_TOLD)
        ]

    def __enter__(self) -> Self:
        self._poll()
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join()
        self._poll()
        with self._guard:
            for log in [*self._logs.values(), *self._gone]:
                log.file.close()
            self._logs.clear()
            self._gone.clear()
            self._directories.clear()

    def _watch(self) -> None:
        try:
            while not self._stop.wait(POLL_S):
                self._poll()
        except Exception as error:
            self._defect = error

    def _poll(self) -> None:
        with self._guard:
            for host, directory in self._directories.items():
                is_first = host not in self._looked_at_s
                now_s = time.monotonic()
                # What was removed or replaced is older than what stands in its place.
                for log in self._gone:
                    if log.host == host:
                        self._read(log, now_s)
                self._open_new(host, directory, at_end=is_first)
                for log in self._logs.values():
                    if log.host == host:
                        self._read(log, now_s)
                self._looked_at_s[host] = now_s
            self._close_silent()

    def _read(self, log: ConsoleLog, now_s: float) -> None:
        self._beats.setdefault(log.guest, []).extend(log.read(now_s))

    def _open_new(self, host: str, directory: Path, *, at_end: bool) -> None:
        found = {path.stem: path for path in directory.glob("*.log")}
        for guest in {guest for other, guest in self._logs if other == host} | set(found):
            log = self._logs.get((host, guest))
            if log is not None and _is_open_at(log, found.get(guest)):
                continue
            now_s = time.monotonic()
            if log is not None:
                log.grew_at_s = now_s
                self._read(log, now_s)
                self._gone.append(self._logs.pop((host, guest)))
            try:
                file = found[guest].open("rb")
            except (KeyError, FileNotFoundError):
                continue
            if at_end:
                file.seek(0, os.SEEK_END)
            looked_at_s = now_s if at_end else self._looked_at_s[host]
            self._logs[host, guest] = ConsoleLog(host, guest, file, looked_at_s)

    def _close_silent(self) -> None:
        now_s = time.monotonic()
        for log in self._gone:
            if now_s - log.grew_at_s > LINGER_S:
                log.file.close()
        self._gone = [log for log in self._gone if not log.file.closed]


def _is_open_at(log: ConsoleLog, path: Path | None) -> bool:
    if path is None:
        return False
    try:
        return os.path.samestat(os.fstat(log.file.fileno()), path.stat())
    except FileNotFoundError:
        return False
