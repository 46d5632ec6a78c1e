"""Guests for the matrix: kept from case to case where that is safe, else made anew."""

import uuid
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import psycopg

from innkeeper.errors import InnkeeperError
from tests.chaos.asking import Ask
from tests.chaos.matrix.cases import DEATHS, FILES, Case
from tests.chaos.matrix.dead_host import await_return
from tests.chaos.stage import Stage
from tests.virt.instant_sources import InstantSources

PREPARE_S = 60.0
# More than one disk, of both formats: a step that makes several can die between two of them.
EXTRA_DISKS = [
    {"kind": "ephemeral", "size_mib": 2, "filesystem": "ext4"},
    {"kind": "swap", "size_mib": 1, "format": "raw"},
]
CARD: dict[str, Any] = {"bridge": "br0"}
"""A card makes a start what it is at its longest: paused, verified, and only then let run."""
VERBS_WITH_FORCE: dict[str, dict[str, Any]] = {
    # A boot sector does not hear the power button.
    "stop": {"force": True},
    "reboot": {"kind": "hard"},
}


@dataclass(frozen=True, slots=True)
class Cast:
    """The guest of a case, and what is asked for it.

    Args:
        ask: the request.
        instance_id: the guest; None when the request is to make it.
        src: where it is.
        dst: where it is to go, or to be made; elsewhere the same as ``src``.
    """

    ask: Ask
    instance_id: UUID | None
    src: str
    dst: str


class Stock:
    """The guests of one stage.

    Args:
        stage: where they live.
        connection: to read their rows.
    """

    def __init__(self, stage: Stage, connection: psycopg.Connection[dict[str, Any]]) -> None:
        self._stage = stage
        self._connection = connection
        self._names: dict[str, str] = {}
        self._sources = InstantSources()

    def prepare(self, case: Case) -> Cast:
        """Return a guest in the state that a case needs.

        Raises:
            InnkeeperError: it could not be had.
        """
        a, b = self._stage.lab.hosts[:2]
        if case.kind == "prewarm":
            guest = self._stage.boot_guest()
            fields = {"image": guest["image"], "sha256": guest["sha256"], "hosts": [a]}
            return Cast(Ask("prewarm", "no-guest", fields), None, a, a)
        self._open_hosts()
        if case.kind == "drain":
            self._bring_to("drain", b)
            return Cast(Ask("drain", "no-guest", {"host": b}), None, b, a)
        if case.kind == "spawn":
            self.forget(self._names.get("spawn"))
            name = self._take_name("spawn")
            fields = {**self._told_guest(case), **CARD, "host": a, "pool": case.pool}
            fields["disks"] = _extra_disks(case)
            return Cast(Ask("spawn", name, fields), None, a, a)
        if case.kind == "hydrate":
            self.forget(self._names.get("hydrate"))
            row = self._boot_from_source(self._take_name("hydrate"), a, case.pool)
            return Cast(Ask("hydrate", row["name"], {}), row["id"], a, a)
        if case.kind in DEATHS:
            return self._prepare_death(case)
        slot = {"live_migrate": case.label, "delete": "delete"}.get(case.kind, "power")
        wanted: dict[str, Any] = {"pool": case.pool}
        if case.kind in ("live_migrate", "delete"):
            wanted["disks"] = _extra_disks(case)
        row = self._ensure(slot, wanted, "stopped" if case.kind == "start" else "active")
        src = row["host"]
        if case.kind in ("live_migrate", "check_migration"):
            dst = b if src == a else a
            return Cast(Ask(case.kind, row["name"], {"dst": dst}), row["id"], src, dst)
        fields = VERBS_WITH_FORCE.get(case.kind, {})
        return Cast(Ask(case.kind, row["name"], fields), row["id"], src, src)

    def _prepare_death(self, case: Case) -> Cast:
        """Leave one guest in the lab, whose host may die: all that are there are evacuated."""
        for slot, name in list(self._names.items()):
            if slot != "evacuate":
                self.forget(name)
        row = self._ensure("evacuate", {"pool": case.pool, "disks": _extra_disks(case)}, "active")
        src = row["host"]
        (dst,) = (host for host in self._stage.lab.hosts[:2] if host != src)
        fields = {"host": src, "confirmed_dead": "the case has killed it"}
        return Cast(Ask("evacuate", row["name"], fields), row["id"], src, dst)

    def _told_guest(self, case: Case) -> dict[str, Any]:
        """Return the fields of a guest that wants every step of its case's plan."""
        if case.label == FILES:
            file = {"path": "/run/told", "content": "", "via": "agent"}
            return {**self._stage.linux_guest(), "data": {"drive": "config-2", "files": [file]}}
        return {**self._stage.boot_guest(), "data": {"drive": "config-2"}, "wait": "console"}

    def forget(self, name: str | None) -> None:
        """Use a guest no more; it is deleted if that is possible."""
        if name is None:
            return
        self._names = {slot: kept for slot, kept in self._names.items() if kept != name}
        with suppress(InnkeeperError):
            self._stage.ensure_deleted(name)

    def clear(self) -> None:
        """Delete all guests."""
        for name in list(self._names.values()):
            self.forget(name)
        self._open_hosts()
        self._sources.stop()

    def _open_hosts(self) -> None:
        """Let every host have guests again that an earlier case has drained, or let die."""
        for host in self._stage.client.hosts():
            if host.is_enabled:
                continue
            if (host.disabled_reason or "").startswith("fenced"):
                await_return(self._connection, host.name)
                self._stage.client.enable_host(host.name)
            else:
                self._stage.client.undrain(host.name)

    def _bring_to(self, slot: str, host: str) -> None:
        """See to it that a guest runs on a host."""
        row = self._ensure(slot, {}, "active")
        if row["host"] != host:
            self._stage.client.migrate(row["name"], dst=host).wait(PREPARE_S)

    def _boot_from_source(self, name: str, host: str, pool: str) -> dict[str, Any]:
        """Make a guest that reads from its image's source."""
        fields = self._sources.offer(self._stage.lab)
        more = {"memory_mib": 64, "host": host, "pool": pool}
        self._stage.client.spawn(name=name, **fields, **more).wait(PREPARE_S)
        return self._get(name)

    def _ensure(self, slot: str, wanted: dict[str, Any], state: str) -> dict[str, Any]:
        row = self._find(self._names.get(slot))
        if row is None:
            name = self._take_name(slot)
            fields = {**self._stage.boot_guest(), "host": self._stage.lab.hosts[0], **wanted}
            fields |= {} if slot.startswith("live_migrate") else CARD
            self._stage.client.spawn(name=name, **fields).wait(PREPARE_S)
            row = self._get(name)
        if row["state"] != state:
            client, name = self._stage.client, row["name"]
            verb = client.start(name) if state == "active" else client.stop(name, force=True)
            verb.wait(PREPARE_S)
            row = self._get(name)
        return row

    def _take_name(self, slot: str) -> str:
        self._names[slot] = name = f"{slot.split('[')[0].replace('_', '-')}-{uuid.uuid4().hex[:8]}"
        return name

    def _get(self, name: str) -> dict[str, Any]:
        row = self._find(name)
        assert row is not None, f"guest {name} has no record after its spawn"
        return row

    def _find(self, name: str | None) -> dict[str, Any] | None:
        return self._connection.execute(
            "SELECT id, name, host, state FROM instances WHERE name = %s AND state <> 'deleted'",
            (name,),
        ).fetchone()


def _extra_disks(case: Case) -> list[dict[str, Any]]:
    *others, last = EXTRA_DISKS
    return [*others, {**last, "pool": case.last_disks_pool}]
