"""The drain of a host: when each of its guests left, and for how long it stood still."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from rich.console import Console
from rich.table import Table

from innkeeper import Innkeeper
from innkeeper.operation import Operation
from lab.handle import Lab


def measure_drain(
    lab: Lab, client: Innkeeper, fields: dict[str, Any], guests: int, console: Console
) -> dict[str, Any]:
    """Spawn guests on one host, drain it, and tell the time at which each one moved.

    Args:
        lab: two hosts.
        client: of the lab.
        fields: of the guests' specs.
        guests: how many.
        console: where the table goes.
    """
    host = lab.hosts[0]
    names = [f"drained-{number}" for number in range(guests)]
    for spawning in [client.spawn(name=name, host=host, **fields) for name in names]:
        spawning.wait(240)
    operation = client.drain(host)
    result = operation.wait(1800)
    rows = _timeline(client, operation)
    client.undrain(host)
    for deleting in [client.delete(name) for name in names]:
        deleting.wait(120)
    _print(rows, console)
    return {
        "guests": guests,
        "moved": result["moved"],
        "total_s": _seconds(operation.view().started_at, operation.view().finished_at),
        "timeline": rows,
    }


def _timeline(client: Innkeeper, operation: Operation) -> list[dict[str, Any]]:
    began = operation.view().started_at
    rows = []
    for part in operation.view().parts:
        moved = client.operation(part.operation_id).result()
        rows.append(
            {
                "guest": part.instance_name,
                "to": part.dst_host,
                "begun_s": _seconds(began, part.started_at),
                "ended_s": _seconds(began, part.finished_at),
                "downtime_ms": moved["downtime_ms"],
            }
        )
    return sorted(rows, key=lambda row: float(str(row["ended_s"])))


def _seconds(start: datetime | None, end: datetime | None) -> float | None:
    return None if start is None or end is None else round((end - start).total_seconds(), 1)


def _print(rows: list[dict[str, Any]], console: Console) -> None:
    table = Table("GUEST", "TO", "BEGUN", "ENDED", "DOWNTIME", box=None)
    for row in rows:
        table.add_row(
            str(row["guest"]),
            str(row["to"]),
            f"{row['begun_s']} s",
            f"{row['ended_s']} s",
            f"{row['downtime_ms']} ms",
        )
    console.print(table)
