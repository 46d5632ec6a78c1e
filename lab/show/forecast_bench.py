"""Forecasts of migrations beside what came true."""

from __future__ import annotations

import statistics
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from innkeeper import Innkeeper, InnkeeperError
from lab.handle import Lab
from lab.show.guest_load import GuestLoad
from lab.show.loaded_bench import linux_guest

_NAME = "foretold"
_DEADLINE_S = 90.0
_PATIENCE_S = 600.0


@dataclass(frozen=True)
class Trial:
    """A load and a link: how fast the guest rewrites how much, and what the link may carry."""

    rate_mib_s: int
    size_mib: int
    link_mib_s: int


# Slow links, on which a forecast is worth measuring for; the last three write faster than they
# carry, or nearly.
TRIALS = (
    Trial(0, 0, 6),
    Trial(1, 32, 6),
    Trial(2, 32, 6),
    Trial(4, 64, 6),
    Trial(1, 16, 4),
    Trial(2, 64, 4),
    Trial(1, 32, 5),
    Trial(4, 64, 4),
    Trial(8, 48, 4),
    Trial(15, 64, 6),
)


def measure_forecasts(lab: Lab, client: Innkeeper, count: int, console: Console) -> dict[str, Any]:
    """Migrate guests under different loads; compare what was foretold with what was.

    QEMU may not throttle the guest, since the forecast is of pre-copy alone. At the deadline the
    guest is paused, so that every migration ends.

    Args:
        lab: two hosts.
        client: of the lab.
        count: how many of the trials, from the first; more than there are begin anew.
        console: where the table goes.
    """
    src, dst = lab.hosts[:2]
    rows: list[dict[str, Any]] = []
    failed: list[dict[str, Any]] = []
    for number in range(count):
        trial = TRIALS[number % len(TRIALS)]
        # A guest of its own for each: just after a migration its agent may not answer libvirt.
        client.spawn(name=_NAME, host=src, **linux_guest(lab)).wait(240)
        GuestLoad(lab, _NAME).start(src, rate_mib_s=trial.rate_mib_s, size_mib=trial.size_mib)
        try:
            result = client.migrate(
                _NAME,
                dst=dst,
                bandwidth_mib_s=trial.link_mib_s,
                auto_converge=False,
                deadline_s=_DEADLINE_S,
                on_timeout="pause",
            ).wait(_PATIENCE_S)
            rows.append(_row(trial, result))
        except InnkeeperError as error:
            # One that failed must not cost the figures of the others.
            failed.append({"trial": asdict(trial), "code": error.code, "message": error.message})
        client.delete(_NAME).wait(120)
    _print(rows, console)
    errors = [row["total_error"] for row in rows if row["foretold"]["will_converge"]]
    return {
        "trials": rows,
        "failed": failed,
        "verdicts_right": sum(row["verdict_right"] for row in rows),
        "verdicts": len(rows),
        "total_error_p50": round(statistics.median(errors), 3) if errors else None,
    }


def _row(trial: Trial, result: dict[str, Any]) -> dict[str, Any]:
    told, total_s = result["forecast"], float(result["total_ms"]) / 1000
    converged = total_s < _DEADLINE_S
    return {
        "trial": asdict(trial),
        "foretold": {
            "will_converge": told["will_converge"],
            "total_s": round(told["total_s"], 1),
            "downtime_ms": round(told["downtime_ms"], 1),
            "link_mib_s": round(told["link_bytes_s"] / 2**20, 1),
            "dirty_mib_s": None
            if told["dirty_bytes_s"] is None
            else round(told["dirty_bytes_s"] / 2**20, 1),
        },
        "came_true": {
            "converged": converged,
            "total_s": round(total_s, 1),
            "downtime_ms": result["downtime_ms"],
            "handover_ms": result["handover_ms"],
        },
        "verdict_right": told["will_converge"] == converged,
        "total_error": round((told["total_s"] - total_s) / total_s, 3),
    }


def _print(rows: list[dict[str, Any]], console: Console) -> None:
    table = Table("WRITES", "LINK", "MEASURED", "CONVERGES", "TOTAL", "DOWNTIME", box=None)
    for row in rows:
        trial, told, true = row["trial"], row["foretold"], row["came_true"]
        measured = told["dirty_mib_s"]
        table.add_row(
            f"{trial['rate_mib_s']} MiB/s of {trial['size_mib']} MiB",
            f"{trial['link_mib_s']} MiB/s",
            "-" if measured is None else f"{measured} MiB/s",
            f"{_yes(told['will_converge'])} → {_yes(true['converged'])}",
            f"{told['total_s']} → {true['total_s']} s",
            f"{told['downtime_ms']} → {true['downtime_ms']} ms",
        )
    console.print("foretold → came true")
    console.print(table)


def _yes(truth: bool) -> str:
    return "yes" if truth else "no"
