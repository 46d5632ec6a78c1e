"""What a run of the matrix found, for people and for machines."""

from collections.abc import Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lab.show.measure import spread
from tests.chaos.matrix.case_result import INVARIANTS, CaseResult
from tests.chaos.matrix.cases import Plot

SHORT_FIELDS = ("case", "held", "recovery_ms", "elapsed_ms")


def summarise(results: Sequence[CaseResult], *, elapsed_s: float) -> dict[str, Any]:
    """Return the report as JSON."""
    labels = dict.fromkeys(result.label for result in results)
    ran = [result for result in results if result.label != INVARIANTS]
    return {
        "cases": len(ran),
        "held": sum(result.held for result in ran),
        "violations": len(results) - len(ran),
        "kills": sum(result.kills for result in results),
        "elapsed_s": round(elapsed_s, 1),
        "case_ms": _spread([result.elapsed_ms for result in ran]),
        "recovery_ms": {
            "with_restart": _recovery(results, alone=False),
            "without_restart": _recovery(results, alone=True),
        },
        "kinds": {label: _count([r for r in results if r.label == label]) for label in labels},
        "results": [{name: result.to_json()[name] for name in SHORT_FIELDS} for result in results],
        "not_held": [result.to_json() for result in results if not result.held],
    }


def print_summary(results: Sequence[CaseResult], report: dict[str, Any], console: Console) -> None:
    """Print kinds × moments, what did not hold, and the totals."""
    console.print("cases run, or held/run where some have not held", highlight=False)
    console.print(_table(results))
    for result in results:
        if not result.held:
            console.print(f"[red]{result.case}[/red]: {result.why}", highlight=False)
            for line in result.timeline:
                console.print(f"    {line}", highlight=False, markup=False)
    console.print(
        f"{report['cases']} cases, {report['held']} held, {report['violations']} violations "
        f"found by the checker, {report['kills']} processes killed, "
        f"{report['elapsed_s']} s"
    )
    for how, figures in report["recovery_ms"].items():
        if figures["count"]:
            console.print(
                f"recovery {how.replace('_', ' ')}: p50 {figures['p50']:.0f}, "
                f"p95 {figures['p95']:.0f}, max {figures['max']:.0f} ms "
                f"({figures['slowest']})",
                highlight=False,
            )


def _table(results: Sequence[CaseResult]) -> Table:
    """Return moments × kinds, narrow enough for 80 columns."""
    # What the checker has found stands below, promise by promise.
    ran = [result for result in results if result.label != INVARIANTS]
    labels = list(dict.fromkeys(result.label for result in ran))
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("moment", no_wrap=True)
    for label in labels:
        table.add_column(Text(_short(label)), justify="right", overflow="fold")
    for moment in dict.fromkeys(result.moment for result in ran):
        counts = (
            _count([r for r in ran if (r.label, r.moment) == (label, moment)]) for label in labels
        )
        table.add_row(moment, *(_cell(**count) for count in counts))
    return table


def _short(label: str) -> str:
    """Return a kind for a column's head: ``live_migrate[block]`` → ``migrate`` over ``[block]``."""
    return label.removeprefix("live_").replace("[", "\n[")


def _cell(run: int, held: int) -> Text:
    if run == held:
        return Text(str(run) if run else "")
    return Text(f"{held}/{run}", style="red")


def _count(results: Sequence[CaseResult]) -> dict[str, int]:
    return {"run": len(results), "held": sum(result.held for result in results)}


def _recovery(results: Sequence[CaseResult], *, alone: bool) -> dict[str, Any]:
    measured = [
        result
        for result in results
        if result.recovery_ms is not None and (result.plot == Plot.ALONE) == alone
    ]
    if not measured:
        return {"count": 0}
    slowest = max(measured, key=lambda result: result.recovery_ms or 0.0)
    times_ms = [result.recovery_ms for result in measured if result.recovery_ms is not None]
    return {"count": len(measured), **_spread(times_ms), "slowest": slowest.case}


def _spread(times_ms: Sequence[float]) -> dict[str, float]:
    return {**spread(times_ms), "max": max(times_ms)} if times_ms else {}
