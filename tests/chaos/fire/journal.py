"""What happened when, told to whoever watches and kept for whoever asks why afterwards."""

import sys
import threading
import time
from pathlib import Path
from typing import TextIO


class Journal:
    """Lines with their time, from any thread.

    Args:
        stream: is told every line at once; None for nobody.
    """

    def __init__(self, stream: TextIO | None = sys.stderr) -> None:
        self._stream = stream
        self._began_at = time.time()
        self._lines: list[tuple[float, str]] = []
        self._guard = threading.Lock()

    def say(self, text: str) -> None:
        """Note a line."""
        at = time.time()
        with self._guard:
            self._lines.append((at, text))
            if self._stream is not None:
                print(self._format(at, text), file=self._stream, flush=True)

    def between(self, since: float, until: float) -> list[str]:
        """Return the lines of a span of time, by `time.time`."""
        with self._guard:
            return [self._format(at, text) for at, text in self._lines if since <= at <= until]

    def save(self, path: Path) -> None:
        """Write all lines to a file."""
        path.write_text("\n".join(self.between(0.0, float("inf"))) + "\n")

    def _format(self, at: float, text: str) -> str:
        clock = time.strftime("%H:%M:%S", time.gmtime(at)) + f".{int(at % 1 * 1000):03}"
        return f"{clock} {at - self._began_at:7.2f} s  {text}"
