"""A fire's report for people."""

from typing import Any

from rich.console import Console
from rich.table import Table


def print_report(report: dict[str, Any]) -> None:
    """Print a report."""
    console = Console()
    table = Table("seed", "minutes", "requests", "violations", "recovery p50 / p95 / max ms")
    figures = report["recovery_ms"]
    table.add_row(
        str(report["seed"]),
        str(report["minutes"]),
        str(report["operations"]),
        str(len(report["violations"])),
        f"{figures['p50']} / {figures['p95']} / {figures['max']}",
    )
    console.print(table)
    for title in ("outcomes", "kinds", "faults", "crash_points"):
        counts = Table(title, "times")
        for name, times in report[title].items():
            counts.add_row(name, str(times))
        console.print(counts)
    for violation in report["violations"]:
        console.print(f"[bold red]{violation['invariant']}[/]: {violation['what']}", markup=True)
        for line in violation["timeline"]:
            console.print(f"    {line}", markup=False)
