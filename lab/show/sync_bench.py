"""How long the power-state sync of one host takes, and how many statements it sends."""

from __future__ import annotations

import time
from typing import Any
from uuid import UUID, uuid4

import libvirt
from sqlalchemy import event, insert

from innkeeper.states import InstanceState
from lab.handle import Lab
from models.schema import Instance
from models.session import Database
from tasks.power_sync import sync_host
from virt.hypervisor import Hypervisor

_XML = """
<domain type='qemu'><name>sync-{id}</name><uuid>{id}</uuid><memory unit='MiB'>16</memory>
<metadata><innkeeper:guest xmlns:innkeeper='https://innkeeper.dev/xmlns/1' epoch='0'
operation='{id}'/></metadata><os><type arch='x86_64' machine='pc-i440fx-7.2'>hvm</type></os>
</domain>
"""
WARM_UPS = 1
ROUNDS = 5


def measure_power_sync(lab: Lab, domains: int) -> dict[str, Any]:
    """Define guests that are off, with records, and synchronise them a few times."""
    host = lab.hosts[0]
    ids = [uuid4() for _ in range(domains)]
    conn = libvirt.open(lab.libvirt_uri(host))
    for instance_id in ids:
        conn.defineXML(_XML.format(id=instance_id))
    database = Database(lab.env()["INNKEEPER_DATABASE_URL"])
    _insert_records(database, host, ids)
    hypervisor = Hypervisor(lab.libvirt_uri(host), name=host)
    hypervisor.start()
    if not hypervisor.wait_connected(10):
        raise RuntimeError(f"libvirt of {host} does not answer")
    statements: list[str] = []
    event.listen(
        database.engine,
        "before_cursor_execute",
        lambda _c, _cur, statement, *_: statements.append(statement),
    )
    times_ms: list[float] = []
    for _ in range(WARM_UPS + ROUNDS):
        statements.clear()
        started = time.perf_counter()
        sync_host(
            database,
            host=host,
            look=hypervisor.list_domains,
            is_complete=True,
            request_verb=lambda _verb, _instance: None,
        )
        times_ms.append((time.perf_counter() - started) * 1000)
    hypervisor.close()
    database.dispose()
    return {
        "domains": domains,
        "elapsed_ms": round(sorted(times_ms[WARM_UPS:])[ROUNDS // 2], 1),
        "sql_statements": len(statements),
    }


def _insert_records(database: Database, host: str, ids: list[UUID]) -> None:
    rows = [
        {
            "id": instance_id,
            "name": f"sync-{instance_id}",
            "spec": {},
            "host": host,
            "state": InstanceState.STOPPED,
            "pool": "local",
            "vcpus": 1,
            "memory_mib": 16,
            "disk_gib": 0,
        }
        for instance_id in ids
    ]
    with database.transaction() as session:
        session.execute(insert(Instance), rows)
