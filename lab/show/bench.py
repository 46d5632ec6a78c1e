"""The benchmark: Innkeeper against bare libvirt, the same XML, alternating in the same run.

Only ratios and differences are meant to be read: the machine's own speed cancels out.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import structlog
import typer
from rich.console import Console

from innkeeper import Innkeeper
from lab.handle import Lab
from lab.show.bare import BareMigration, BareSpawn
from lab.show.drain_bench import measure_drain
from lab.show.forecast_bench import measure_forecasts
from lab.show.instant_bench import measure_instant_boot
from lab.show.loaded_bench import Load, measure_loaded_migration
from lab.show.measure import spread
from lab.show.sync_bench import measure_power_sync


def run(
    spawn_pairs: Annotated[int, typer.Option(help="Spawns of each kind.")] = 20,
    migration_pairs: Annotated[int, typer.Option(help="Migrations of each kind.")] = 10,
    domains: Annotated[int, typer.Option(help="Domains of the power-state sync.")] = 100,
    instant_boots: Annotated[
        int, typer.Option(help="Cold spawns of a 1 GiB image over 50 MB/s, by each delivery.")
    ] = 0,
    migrations: Annotated[
        int,
        typer.Option(help="Migrations under memory load: by each hand-over, and by libvirt alone."),
    ] = 0,
    load_mib_s: Annotated[
        int, typer.Option(help="How fast that guest rewrites its memory, MiB/s.")
    ] = 16,
    load_mib: Annotated[int, typer.Option(help="How much of it, MiB.")] = 64,
    link_mib_s: Annotated[
        int, typer.Option(help="What either migration may send, MiB/s; 0 for all the link carries.")
    ] = 32,
    forecasts: Annotated[
        int, typer.Option(help="Migrations under different loads, foretold and achieved.")
    ] = 0,
    drained_guests: Annotated[
        int, typer.Option(help="Guests of a host that is drained, with a timeline.")
    ] = 0,
    as_json: Annotated[
        bool, typer.Option("--json", help="Accepted for symmetry; the report is always JSON.")
    ] = True,
) -> None:
    """Measure spawn, live migration and power-state sync; print one JSON object.

    Example: scripts/bench --spawn-pairs 50

    Example: scripts/bench --spawn-pairs 0 --migration-pairs 0 --domains 0 --migrations 20
    --forecasts 10
    """
    del as_json
    # The report alone goes to stdout.
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    console = Console(stderr=True)
    with (
        tempfile.TemporaryDirectory(prefix="innkeeper-bench-", dir="/var/tmp") as made,
        console.status("Bringing up the lab") as status,
    ):
        Path(made).chmod(0o755)
        with Lab.up(Path(made), hosts=2, workers=True, owner_pid=os.getpid()) as lab:
            env = lab.env()
            client = Innkeeper(env["INNKEEPER_BROKER_URL"], env["INNKEEPER_RESULT_URL"])
            report: dict[str, Any] = {}
            try:
                if spawn_pairs:
                    status.update("Spawning")
                    report["spawn"] = measure_spawn(lab, client, spawn_pairs)
                if migration_pairs:
                    status.update("Migrating")
                    report["migration"] = measure_migration(lab, client, migration_pairs)
                if domains:
                    status.update("Synchronising power states")
                    report["power_sync"] = measure_power_sync(lab, domains)
                if instant_boots:
                    status.update("Booting from afar")
                    report["instant_boot"] = measure_instant_boot(lab, client, instant_boots)
                if migrations:
                    status.update("Migrating under load")
                    report["loaded_migration"] = measure_loaded_migration(
                        lab, client, migrations, Load(load_mib_s, load_mib, link_mib_s)
                    )
                if forecasts:
                    status.update("Foretelling")
                    report["forecast"] = measure_forecasts(lab, client, forecasts, console)
                if drained_guests:
                    status.update("Draining")
                    report["drain"] = measure_drain(
                        lab, client, _boot_guest(lab), drained_guests, console
                    )
            finally:
                # What was measured before something failed is not lost with it.
                sys.stdout.write(json.dumps(report, indent=2) + "\n")
                client.close()


def measure_spawn(lab: Lab, client: Innkeeper, pairs: int) -> dict[str, Any]:
    """Spawn a boot-sector guest from a cached image, and define and start the same XML bare."""
    host = lab.hosts[0]
    fields = _boot_guest(lab)
    client.spawn(name="warm", host=host, **fields).wait(120)
    bare = BareSpawn(lab, host, template="warm")
    bare.run_once("bare-warm")
    ours_ms, bare_ms = [], []
    for number in range(pairs):
        name = f"bench-{number}"
        started = time.perf_counter()
        client.spawn(name=name, host=host, **fields).wait(120)
        ours_ms.append((time.perf_counter() - started) * 1000)
        client.delete(name).wait(120)
        bare_ms.append(bare.run_once(f"bare-{number}"))
    client.delete("warm").wait(120)
    ours, theirs = spread(ours_ms), spread(bare_ms)
    return {
        "pairs": pairs,
        "innkeeper_ms": ours,
        "libvirt_ms": theirs,
        "added_ms_p50": round(ours["p50"] - theirs["p50"], 1),
    }


def measure_migration(lab: Lab, client: Innkeeper, pairs: int) -> dict[str, Any]:
    """Move one guest to and fro, alternating with a twin that bare libvirt moves."""
    a, b = lab.hosts[:2]
    fields = {**_boot_guest(lab), "pool": "shared"}
    client.spawn(name="ours", host=a, **fields).wait(120)
    bare = BareMigration(lab, a, b, template="ours")
    client.migrate("ours", dst=b).wait(120)
    bare.run_once()
    ours_ms, ours_downtime_ms, bare_ms, bare_downtime_ms = [], [], [], []
    at = b
    for _ in range(pairs):
        to = a if at == b else b
        started = time.perf_counter()
        result = client.migrate("ours", dst=to).wait(120)
        ours_ms.append((time.perf_counter() - started) * 1000)
        ours_downtime_ms.append(float(result["downtime_ms"]))
        total_ms, downtime_ms = bare.run_once()
        bare_ms.append(total_ms)
        bare_downtime_ms.append(downtime_ms)
        at = to
    bare.close()
    client.delete("ours").wait(120)
    ours, theirs = spread(ours_ms), spread(bare_ms)
    return {
        "pairs": pairs,
        "innkeeper_ms": ours,
        "libvirt_ms": theirs,
        "total_ratio_p50": round(ours["p50"] / theirs["p50"], 3),
        "innkeeper_downtime_ms": spread(ours_downtime_ms),
        "libvirt_downtime_ms": spread(bare_downtime_ms),
    }


def _boot_guest(lab: Lab) -> dict[str, Any]:
    env = lab.env()
    return {
        "image": env["INNKEEPER_LAB_BOOT_IMAGE"],
        "sha256": env["INNKEEPER_LAB_BOOT_IMAGE_SHA256"],
        "memory_mib": 64,
        "wait": "running",
    }


if __name__ == "__main__":
    typer.run(run)
