"""Runs the matrix on several labs side by side and reports what held."""

import json
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from lab.layout import REPOSITORY
from tests.chaos.matrix.case_result import INVARIANTS, CaseResult
from tests.chaos.matrix.cases import Case, all_cases
from tests.chaos.matrix.lane import run_lane
from tests.chaos.matrix.report import print_summary, summarise

LANE_ENDS_S = 90.0


def choose(only: Sequence[str], shard: str, repeat: int) -> list[Case]:
    """Return the cases that are to be run.

    Args:
        only: substrings of ids; a case is chosen when it has one of them, all when there are none.
        shard: ``I/N``, every N-th case from the I-th on.
        repeat: how often all of them.
    """
    chosen = [case for case in all_cases() if not only or any(word in case.id for word in only)]
    index, count = (int(number) for number in shard.split("/"))
    return (chosen * repeat)[index - 1 :: count]


def run_matrix(cases: Sequence[Case], labs: int, *, as_json: bool) -> int:
    """Run cases, show progress and print the report.

    Args:
        cases: in the order in which they run.
        labs: how many labs.
        as_json: print one JSON object on stdout instead of a table.

    Returns:
        The exit code: 1 when anything did not hold.
    """
    console = Console(stderr=True)
    started = time.monotonic()
    results: list[CaseResult] = []
    with _progress(console) as progress:
        bar = progress.add_task("", total=len(cases), not_held=0)
        for result in _run_lanes(cases, labs):
            results.append(result)
            not_held = sum(not one.held for one in results)
            progress.update(bar, advance=result.label != INVARIANTS, not_held=not_held)
            if not result.held:
                console.print(f"[red]not held[/red] {result.case}: {result.why}", highlight=False)
    report = summarise(results, elapsed_s=time.monotonic() - started)
    if as_json:
        sys.stdout.write(json.dumps(report, indent=2) + "\n")
    else:
        print_summary(results, report, Console())
    # A lane that ended early has left cases out.
    return 0 if report["held"] == len(cases) and not report["violations"] else 1


def run_lane_to_stdout(cases: Sequence[Case]) -> None:
    """Run cases on one lab and print each result as a line of JSON."""

    def emit(result: CaseResult) -> None:
        sys.stdout.write(json.dumps(result.to_json(), default=str) + "\n")
        sys.stdout.flush()

    run_lane(cases, emit)


def _progress(console: Console) -> Progress:
    return Progress(
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[not_held]} not held"),
        TimeElapsedColumn(),
        console=console,
    )


def _run_lanes(cases: Sequence[Case], labs: int) -> Iterator[CaseResult]:
    """Run every lane in a process of its own, and yield results as they come."""
    lines: queue.Queue[str | None] = queue.Queue()
    lanes = [_start_lane([case.id for case in cases[lane::labs]]) for lane in range(labs)]
    for lane in lanes:
        threading.Thread(target=_pass_on, args=(lane, lines), daemon=True).start()
    running = len(lanes)
    try:
        while running:
            line = lines.get()
            if line is None:
                running -= 1
            else:
                yield CaseResult(**json.loads(line))
    finally:
        for lane in lanes:
            _end(lane)


def _start_lane(ids: Sequence[str]) -> subprocess.Popen[str]:
    lane = subprocess.Popen(
        ["setpriv", "--pdeathsig", "INT", sys.executable, "-m", "tests.chaos", "--lane"],
        cwd=REPOSITORY,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        # The terminal's Ctrl-C is for the parent, which then ends its lanes once.
        start_new_session=True,
    )
    assert lane.stdin is not None
    lane.stdin.write(json.dumps(list(ids)))
    lane.stdin.close()
    return lane


def _pass_on(lane: subprocess.Popen[str], lines: "queue.Queue[str | None]") -> None:
    assert lane.stdout is not None
    for line in lane.stdout:
        lines.put(line)
    lines.put(None)


def _end(lane: subprocess.Popen[str]) -> None:
    if lane.poll() is None:
        lane.send_signal(signal.SIGINT)
    try:
        lane.wait(LANE_ENDS_S)
    except subprocess.TimeoutExpired:
        # Its lab ends with its owner.
        lane.kill()
        lane.wait()
