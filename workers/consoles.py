"""Keeps the consoles of a host's guests within their shares of the disk, every few seconds."""

import threading
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from uuid import UUID

import structlog
from sqlalchemy.exc import SQLAlchemyError

from innkeeper.guest_parts import Hardware
from virt.console_cap import cap_console, disk_bytes

log = structlog.get_logger(__name__)

LOOK_S = 5.0
MIB = 1024 * 1024
SMALLEST_SHARE_MIB = 1
DEFAULT_SHARE_MIB = Hardware().console_log_mib

FindLimits = Callable[[Collection[UUID]], Mapping[UUID, int | None]]


class ConsoleKeeper:
    """Looks at all consoles of a host, and cuts those that have grown too large.

    Args:
        directory: where the consoles are, each named after its guest.
        find_limits: returns guests' shares in MiB, None for the usual one.
    """

    def __init__(self, directory: Path, find_limits: FindLimits) -> None:
        self._directory = directory
        self._find_limits = find_limits
        self._limits_mib: dict[UUID, int] = {}

    def run(self, stop: threading.Event) -> None:
        """Look every few seconds until told to stop."""
        while not stop.wait(LOOK_S):
            try:
                self.look()
            except OSError:
                log.exception("consoles not looked at")

    def look(self) -> int:
        """Look once; returns the bytes that were given back."""
        grown = {
            instance_id: path
            for path in self._directory.glob("*.log")
            if disk_bytes(path) > SMALLEST_SHARE_MIB * MIB
            and (instance_id := _read_id(path)) is not None
        }
        self._learn(grown)
        return sum(self._cut(instance_id, path) for instance_id, path in grown.items())

    def _learn(self, grown: Collection[UUID]) -> None:
        # Only what has grown is remembered, and asked for once.
        self._limits_mib = {k: v for k, v in self._limits_mib.items() if k in grown}
        unknown = [instance_id for instance_id in grown if instance_id not in self._limits_mib]
        if not unknown:
            return
        try:
            found = self._find_limits(unknown)
        except SQLAlchemyError as exc:
            # A disk fills also while Postgres is away: the usual share is right for nearly all.
            log.warning("shares of consoles not read", error=str(exc))
            return
        for instance_id in unknown:
            self._limits_mib[instance_id] = found.get(instance_id) or DEFAULT_SHARE_MIB

    def _cut(self, instance_id: UUID, path: Path) -> int:
        share_mib = self._limits_mib.get(instance_id, DEFAULT_SHARE_MIB)
        try:
            freed_bytes = cap_console(path, max_bytes=share_mib * MIB)
        except OSError as exc:
            log.warning("console not cut", instance_id=str(instance_id), error=str(exc))
            return 0
        if freed_bytes:
            log.info("console cut", instance_id=str(instance_id), freed_bytes=freed_bytes)
        return freed_bytes


def _read_id(path: Path) -> UUID | None:
    try:
        return UUID(path.stem)
    except ValueError:
        return None
