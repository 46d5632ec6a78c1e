"""Notices that a migration's link is dead, before QEMU gets stuck on it; see virt.dead_link."""

import time
from collections.abc import Callable

from tasks.context import StepContext
from tasks.migration_checks.move import get_dst_address
from tasks.migration_checks.ports import FIRST_MIGRATION_PORT, LAST_MIGRATION_PORT
from tasks.migration_tls import LIBVIRT_TCP_PORT, LIBVIRT_TLS_PORT, is_encrypted
from virt.dead_link import cut_connections
from virt.reach import probe_tcp
from virt.views import JobStats

# Shorter than libvirt's keepalive, 20 to 30 s, after which QEMU's main loop may stand still.
SILENCE_S = 10.0
_PROBE_TIMEOUT_S = 3.0


class LinkWatch:
    """Looks after a migration's link: silence, then a look across, then the dead connections' end.

    Args:
        probe: asks the destination for a sign of life; returns why there is none, or None.
        cut: ends the connections to it; returns how many there were.
        now: a clock that only goes forward, in seconds.
    """

    def __init__(
        self,
        probe: Callable[[], str | None],
        cut: Callable[[], int],
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._probe = probe
        self._cut = cut
        self._now = now
        self._since_s = now()
        self._moved: tuple[int, ...] = ()

    def see(self, stats: JobStats | None) -> str | None:
        """Take the latest figures; return one sentence when the link was found dead and was cut.

        Args:
            stats: what libvirt says now; None when it does not answer, which is silence too.
        """
        moved = self._moved if stats is None else _moved(stats)
        if moved != self._moved:
            self._moved, self._since_s = moved, self._now()
            return None
        silence_s = self._now() - self._since_s
        if silence_s < SILENCE_S:
            return None
        self._since_s = self._now()
        reason = self._probe()
        if reason is None:
            return None
        count = self._cut()
        if count == 0:
            return None
        return (
            f"Nothing has moved for {silence_s:.0f} s and the destination does not answer"
            f" ({reason}): {count} connections to it were ended, so that the guest is not held up."
        )


def _moved(stats: JobStats) -> tuple[int, ...]:
    return (stats.disk_processed_bytes, stats.memory_processed_bytes, stats.memory_iteration)


def probe_destination(context: StepContext) -> str | None:
    """Return why the destination's libvirtd cannot be reached from here; None when it can."""
    port = LIBVIRT_TLS_PORT if is_encrypted(context) else LIBVIRT_TCP_PORT
    return probe_tcp(get_dst_address(context), port, _PROBE_TIMEOUT_S)


def cut_link(context: StepContext) -> int:
    """End all migrations' connections to the destination; return how many there were."""
    return cut_connections(get_dst_address(context), FIRST_MIGRATION_PORT, LAST_MIGRATION_PORT)
