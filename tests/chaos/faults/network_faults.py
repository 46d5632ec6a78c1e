"""Packets that do not arrive."""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass

import libvirt

from tests.chaos.faults.fault import MissedError, StageLike

LIBVIRT_PORT = 16509
POLL_S = 0.01
SLOW_MIB_S = 1
FAST_MIB_S = 1000


@dataclass(frozen=True)
class NetworkCut:
    """Nothing passes between two hosts, or a host and the services; connections stay open.

    Args:
        a: a host.
        b: a host, or ``services`` (Postgres and Redis).
        lasts_s: how long it should stand; libvirt gives a connection up after 20 s.
    """

    a: str
    b: str
    lasts_s: float = 3.0

    @property
    def name(self) -> str:
        """``network_cut:hv-a:hv-b``."""
        return f"network_cut:{self.a}:{self.b}"

    def strike(self, stage: StageLike) -> None:
        """Drop all packets between the two."""
        stage.lab.cut(self.a, self.b)

    def mend(self, stage: StageLike) -> None:
        """Let packets pass again, also those of other cuts between the two."""
        stage.lab.heal(self.a, self.b)


@dataclass(frozen=True)
class FinishReplyLost:
    """The destination's libvirtd answers the source's no more, from the copy phase on.

    It still hears what it is asked. So Finish is carried out there, and the source never learns of
    it: it goes on with the guest on its own side, 20 s later. This is the fault by which libvirt
    alone ends with two running guests.

    Args:
        src: where the guest is.
        dst: where it goes.
        patience_s: how long `strike` waits for a migration from src to reach its copy phase.
        lasts_s: until the source has given up.
    """

    src: str
    dst: str
    patience_s: float = 20.0
    lasts_s: float = 25.0

    @property
    def name(self) -> str:
        """``finish_reply_lost:hv-a:hv-b``."""
        return f"finish_reply_lost:{self.src}:{self.dst}"

    def strike(self, stage: StageLike) -> None:
        """Wait for a migration, hold it in its copy phase, cut the answers, let it run on.

        Raises:
            MissedError: none came in time, or it was over before the answers were cut.
        """
        give_up_at = time.monotonic() + self.patience_s
        try:
            connection = libvirt.open(stage.lab.libvirt_uri(self.src))
        except libvirt.libvirtError as exc:
            raise MissedError(f"libvirtd of {self.src} does not answer: {exc}") from exc
        try:
            while (domain := _find_copying(connection)) is None:
                if time.monotonic() > give_up_at:
                    raise MissedError(f"no migration from {self.src} within {self.patience_s:g} s")
                time.sleep(POLL_S)
            # A small guest would be gone before the first packet is dropped.
            _set_speed(domain, SLOW_MIB_S)
            stage.lab.cut(self.dst, self.src, one_way=True, port=LIBVIRT_PORT)
            if not _is_copying(domain):
                self.mend(stage)
                raise MissedError("the migration was over too soon")
            # Finish must come before the source takes the silence for a dead connection.
            _set_speed(domain, FAST_MIB_S)
        finally:
            with suppress(libvirt.libvirtError):
                connection.close()

    def mend(self, stage: StageLike) -> None:
        """Let the answers pass again."""
        stage.lab.heal(self.src, self.dst)


def _find_copying(connection: libvirt.virConnect) -> libvirt.virDomain | None:
    try:
        domains = connection.listAllDomains(libvirt.VIR_CONNECT_LIST_DOMAINS_ACTIVE)
    except libvirt.libvirtError:
        return None
    return next((domain for domain in domains if _is_copying(domain)), None)


def _is_copying(domain: libvirt.virDomain) -> bool:
    """Tell whether the guest's memory is on its way; disks go before it."""
    try:
        stats = domain.jobStats()
    except libvirt.libvirtError:
        return False
    is_outgoing = stats.get("operation") == libvirt.VIR_DOMAIN_JOB_OPERATION_MIGRATION_OUT
    return is_outgoing and bool(stats.get("memory_total"))


def _set_speed(domain: libvirt.virDomain, mib_s: int) -> None:
    with suppress(libvirt.libvirtError):
        domain.migrateSetMaxSpeed(mib_s)
