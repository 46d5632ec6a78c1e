"""Arms the crash points of running processes; see tasks/crashpoints.py for the other half."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

VARIABLE = "INNKEEPER_CRASH_DIR"


class CrashDirectory:
    """The directory that processes look into at every crash point.

    Args:
        path: what their ``INNKEEPER_CRASH_DIR`` says.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir(exist_ok=True)

    def arm_kill(self, point: str) -> None:
        """Let the next process that passes the point kill itself."""
        self._arm(point, "kill")

    def arm_hold(self, point: str) -> None:
        """Let the next process that passes the point wait there until `release`."""
        self._arm(point, "hold")

    def arm_fail(self, point: str) -> None:
        """Let the next process that passes the point find the disk full."""
        self._arm(point, "fail")

    def disarm(self, point: str) -> None:
        """Let everybody pass the point again."""
        (self.path / point).unlink(missing_ok=True)

    def has_struck(self, point: str) -> bool:
        """True once a process has died at the point."""
        return (self.path / f"{point}.struck").exists()

    def is_held(self, point: str) -> bool:
        """True while a process waits at the point."""
        return (self.path / f"{point}.held").exists()

    def release(self, point: str) -> None:
        """Let the process that waits at the point go on."""
        (self.path / f"{point}.held").unlink(missing_ok=True)

    def wait_struck(self, point: str, *, timeout_s: float = 60) -> bool:
        """Wait until a process has died at the point; False when none came by in time."""
        return _wait(lambda: self.has_struck(point), timeout_s)

    def wait_held(self, point: str, *, timeout_s: float = 60) -> bool:
        """Wait until a process waits at the point; False when none came by in time."""
        return _wait(lambda: self.is_held(point), timeout_s)

    @contextmanager
    def held(self, point: str, *, timeout_s: float = 60) -> Iterator[None]:
        """Wait for the process that comes to an armed point, and let it go on afterwards.

        Raises:
            TimeoutError: none came by.
        """
        if not self.wait_held(point, timeout_s=timeout_s):
            raise TimeoutError(f"no process came to {point} within {timeout_s} s")
        try:
            yield
        finally:
            self.release(point)

    def clear(self) -> None:
        """Disarm everything and let everybody go on."""
        for file in self.path.iterdir():
            file.unlink(missing_ok=True)

    def _arm(self, point: str, wish: str) -> None:
        (self.path / f"{point}.struck").unlink(missing_ok=True)
        # In one motion: a process must not find the file before it has its content.
        draft = self.path / f".draft-{time.monotonic_ns()}"
        draft.write_text(wish)
        draft.rename(self.path / point)


def _wait(truth: Callable[[], bool], timeout_s: float) -> bool:
    give_up_at = time.monotonic() + timeout_s
    while not truth():
        if time.monotonic() > give_up_at:
            return False
        time.sleep(0.01)
    return True
