"""The demonstration: a real guest is spawned, moved and powered off between two hypervisors."""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from innkeeper import Innkeeper, InnkeeperError
from innkeeper.cli.follow import Detached, follow
from innkeeper.types import InstanceSpec, MigrationPolicy, OperationView
from lab.handle import Lab

NAME = "demo"
POWER_PATIENCE_S = 30.0


def run(
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object on stdout instead.")
    ] = False,
    keep: Annotated[bool, typer.Option("--keep", help="Leave everything up afterwards.")] = False,
    directory: Annotated[
        Path | None, typer.Option("--dir", help="The lab's directory; a temporary one if not kept.")
    ] = None,
) -> None:
    """Spawn a guest, migrate it live, change its power behind Innkeeper's back; then tidy up.

    Example: scripts/demo --keep
    """
    console = Console(stderr=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        with _directory(directory, keep=keep) as path:
            report = _run_in(path, console, keep=keep, silent=as_json)
    except (KeyboardInterrupt, Detached):
        console.print("Interrupted; everything was taken down.")
        raise typer.Exit(130) from None
    except InnkeeperError as exc:
        report = {"ok": False, "error": exc.to_wire()}
        console.print(f"[red]{exc}[/red]\nHint: {exc.hint}")
    if as_json:
        sys.stdout.write(json.dumps(report) + "\n")
    raise typer.Exit(0 if report["ok"] else 1)


@contextmanager
def _directory(given: Path | None, *, keep: bool) -> Iterator[Path]:
    if given is not None or keep:
        default = os.environ.get("INNKEEPER_LAB_DIR", "/var/tmp/innkeeper-lab")  # noqa: S108
        yield given or Path(default)
        return
    with tempfile.TemporaryDirectory(prefix="innkeeper-demo-", dir="/var/tmp") as made:
        Path(made).chmod(0o755)
        yield Path(made)


def _run_in(path: Path, console: Console, *, keep: bool, silent: bool) -> dict[str, Any]:
    started = time.monotonic()
    with console.status("Bringing up Postgres, Redis, two hypervisors, workers, beat, Flower"):
        lab = Lab.up(
            path,
            hosts=2,
            workers=True,
            flower=True,
            owner_pid=None if keep else os.getpid(),
            show=lambda text: console.log(text) if not silent else None,
        )
    setup_ms = _elapsed_ms(started)
    try:
        report = _show(lab, console, setup_ms=setup_ms, silent=silent)
    except BaseException:
        lab.down()
        raise
    if keep:
        _say_how_to_look_around(lab, console)
    else:
        with console.status("Taking everything down"):
            lab.down()
    return report


def _show(lab: Lab, console: Console, *, setup_ms: float, silent: bool) -> dict[str, Any]:
    env = lab.env()
    client = Innkeeper(
        env["INNKEEPER_BROKER_URL"], env["INNKEEPER_RESULT_URL"], requested_by="demo"
    )
    for old in client.instances():
        if old.name == NAME:
            client.delete(NAME).wait(120)
    console.rule("Spawn: image → disk → XML → define → start → guest agent answers")
    started = time.monotonic()
    spawn = client.spawn(
        InstanceSpec(
            name=NAME,
            image=env["INNKEEPER_LAB_IMAGE"],
            sha256=env["INNKEEPER_LAB_IMAGE_SHA256"],
            memory_mib=256,
            wait="agent",
        )
    )
    spawned = follow(spawn, timeout_s=300, silent=silent)
    spawn_ms = _elapsed_ms(started)
    spawn_view = spawn.view()
    src = spawned["host"]
    dst = next(name for name in lab.hosts if name != src)
    console.rule(f"Live migration: {src} → {dst}")
    migrate = client.migrate(NAME, MigrationPolicy(dst=dst))
    moved = follow(migrate, timeout_s=300, silent=silent)
    console.rule(f"Power off behind Innkeeper's back: virsh destroy on {dst}")
    power = _power_off_behind_the_back(lab, client, dst)
    report = {
        "ok": power is not None,
        "spawn": {
            "operation_id": str(spawn.id),
            "host": src,
            "boot_stage": spawned["boot_stage"],
            "elapsed_ms": spawn_ms,
            "steps": _steps(spawn_view),
        },
        "migration": {
            "operation_id": str(migrate.id),
            **{
                key: moved[key]
                for key in ("src", "dst", "storage", "handover", "total_ms", "downtime_ms")
            },
        },
        "power": {"seen_after_ms": power},
        "flower_url": env["INNKEEPER_FLOWER_URL"],
        "setup_ms": setup_ms,
    }
    client.close()
    if not silent:
        _summarise(console, report)
    return report


def _power_off_behind_the_back(lab: Lab, client: Innkeeper, host: str) -> float | None:
    """Destroy the domain with virsh; return the ms until the record says so, or None."""
    lab.exec(host, ["virsh", "destroy", NAME])
    started = time.monotonic()
    while time.monotonic() - started < POWER_PATIENCE_S:
        view = client.instance(NAME)
        if view.state == "stopped" and view.power_state == "shutdown":
            return _elapsed_ms(started)
        time.sleep(0.02)
    return None


def _steps(view: OperationView) -> list[dict[str, Any]]:
    return [
        {"name": step.name, "host": step.host, "elapsed_ms": step.elapsed_ms} for step in view.steps
    ]


def _elapsed_ms(started: float) -> float:
    return round((time.monotonic() - started) * 1000, 1)


def _summarise(console: Console, report: dict[str, Any]) -> None:
    table = Table("what", "value", title="Summary")
    spawn, migration = report["spawn"], report["migration"]
    table.add_row("setup", f"{report['setup_ms'] / 1000:.1f} s")
    for step in spawn["steps"]:
        table.add_row(f"  spawn: {step['name']} on {step['host']}", f"{step['elapsed_ms']} ms")
    table.add_row("spawn until the agent answers", f"{spawn['elapsed_ms'] / 1000:.2f} s")
    table.add_row(
        f"migration {migration['src']} → {migration['dst']} ({migration['storage']})",
        f"{migration['total_ms']} ms, downtime {migration['downtime_ms']} ms",
    )
    table.add_row("power-off seen in the record after", f"{report['power']['seen_after_ms']} ms")
    console.print(table)


def _say_how_to_look_around(lab: Lab, console: Console) -> None:
    directory = lab.layout.root
    console.print(
        f"\nEverything is still up. Flower: {lab.env()['INNKEEPER_FLOWER_URL']}\n"
        f'  eval "$(scripts/lab env --dir {directory})"\n'
        "  .venv/bin/innkeeper ls\n"
        "  .venv/bin/innkeeper start demo\n"
        "  .venv/bin/innkeeper migrate demo\n"
        "  .venv/bin/innkeeper operations\n"
        f"  scripts/lab down --dir {directory}"
    )


if __name__ == "__main__":
    typer.run(run)
