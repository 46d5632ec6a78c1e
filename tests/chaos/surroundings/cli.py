"""Runs the product of phases and faults, and prints it as a table."""

import json
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict

from rich.console import Console
from rich.table import Table

from tests.chaos.matrix.lane import LAB_IS_LOST
from tests.chaos.stage import set_stage
from tests.chaos.surroundings.cases import (
    SurroundingsCase,
    SurroundingsResult,
    lost,
    run_case,
)

HOSTS = 2
SHOWN = {"held": "✓", "not held": "[bold red]✗[/]", "missed": "·"}


def run_surroundings(cases: Sequence[SurroundingsCase], *, as_json: bool) -> int:
    """Run cases one after the other; a lab that breaks is replaced.

    Args:
        cases: in the order in which they run.
        as_json: print one JSON object instead of a table.

    Returns:
        The exit code: 1 when any did not hold.
    """
    results: list[SurroundingsResult] = []
    console = Console(stderr=True)
    began_at = time.monotonic()
    todo = list(cases)
    while todo:
        with set_stage(hosts=HOSTS, bent=True) as stage:
            for case in list(todo):
                todo.remove(case)
                try:
                    result = run_case(stage, case)
                except LAB_IS_LOST as exc:
                    results.append(lost(case, exc))
                    break
                results.append(result)
                line = f"{len(results)}/{len(cases)} {result.verdict} {case.id} → {result.outcome}"
                told = f"{line} {result.elapsed_ms:.0f} ms {result.why}"
                console.print(told, markup=False, soft_wrap=True)
                for line in result.timeline:
                    console.print(f"    {line}", markup=False, soft_wrap=True)
    report = {
        "cases": len(results),
        "verdicts": dict(Counter(result.verdict for result in results)),
        "elapsed_s": round(time.monotonic() - began_at, 1),
        "not_held": [asdict(result) for result in results if result.verdict == "not held"],
    }
    if as_json:
        sys.stdout.write(json.dumps(report, indent=2, default=str) + "\n")
    else:
        print_table(results, Console())
        Console().print(f"{report['verdicts']} in {report['elapsed_s']} s")
    return 1 if report["not_held"] else 0


def print_table(results: Sequence[SurroundingsResult], console: Console) -> None:
    """Print phases × faults; the faults stand by their numbers, which are told below."""
    faults = list(dict.fromkeys(result.fault for result in results))
    table = Table("phase", *(str(number) for number, _ in enumerate(faults, 1)))
    by_cell = {(result.phase, result.fault): result.verdict for result in results}
    for phase in dict.fromkeys(result.phase for result in results):
        cells = (by_cell.get((phase, fault)) for fault in faults)
        table.add_row(phase, *(SHOWN[cell] if cell else "" for cell in cells))
    console.print(table)
    for number, fault in enumerate(faults, 1):
        console.print(f"{number:>3} {fault}", highlight=False)
