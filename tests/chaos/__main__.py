"""``python -m tests.chaos``: break everything, everywhere, and see what holds."""

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from typing import Annotated, TypeVar

import typer

from lab.layout import REPOSITORY

Case = TypeVar("Case")

cli = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@cli.command()
def run(
    matrix: Annotated[
        bool, typer.Option("--matrix", help="Let a process die at every boundary of every step.")
    ] = False,
    only: Annotated[
        list[str] | None,
        typer.Option(metavar="SUBSTRING", help="Only cases whose id has it; may be repeated."),
    ] = None,
    shard: Annotated[
        str, typer.Option(metavar="I/N", help="Every N-th case from the I-th on.")
    ] = "1/1",
    labs: Annotated[int, typer.Option(min=1, help="Labs side by side.")] = 2,
    repeat: Annotated[int, typer.Option(min=1, help="How often every case.")] = 1,
    show: Annotated[bool, typer.Option("--list", help="Print the cases' ids, run none.")] = False,
    minutes: Annotated[
        float | None, typer.Option(help="Set fire at random for so long, instead of the matrix.")
    ] = None,
    surroundings: Annotated[
        bool,
        typer.Option("--surroundings", help="Break the surroundings in every phase, on one lab."),
    ] = False,
    reconcile: Annotated[
        bool,
        typer.Option("--reconcile", help="Break a migration in every way that libvirt knows."),
    ] = False,
    seed: Annotated[int, typer.Option(help="Of everything that the fire draws.")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
    lane: Annotated[bool, typer.Option("--lane", hidden=True)] = False,
) -> None:
    """Kill processes at every boundary, or set fire at random; exit with 1 if a promise broke.

    \b
    Examples:
      scripts/chaos --matrix
      scripts/chaos --matrix --only spawn --only delete --labs 1
      scripts/chaos --matrix --only "migrate:acted" --repeat 20
      scripts/chaos --matrix --shard 1/4 --json > part-1.json
      scripts/chaos --minutes 10 --seed 7
      scripts/chaos --reconcile
      scripts/chaos --surroundings --only migrate:inside
      scripts/chaos --surroundings --shard 1/6 --json > part-1.json
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        # A shell's background job is born deaf to SIGINT.
        signal.signal(number, signal.default_int_handler)
    if minutes is not None:
        from tests.chaos.fire.fire import run_fire

        raise typer.Exit(run_fire(minutes, seed, as_json))
    if reconcile:
        raise typer.Exit(_run_every_row())
    if surroundings:
        from tests.chaos.surroundings.cases import choose as choose_surroundings
        from tests.chaos.surroundings.cli import run_surroundings

        chosen = _chosen(lambda: choose_surroundings(only or [], shard), shard)
        if show:
            typer.echo("\n".join(case.id for case in chosen))
            return
        raise typer.Exit(run_surroundings(chosen, as_json=as_json))
    from tests.chaos.matrix.cases import all_cases
    from tests.chaos.matrix.cli import choose, run_lane_to_stdout, run_matrix

    if lane:
        by_id = {case.id: case for case in all_cases()}
        run_lane_to_stdout([by_id[name] for name in json.load(sys.stdin)])
        return
    if not matrix and not show:
        raise typer.BadParameter(
            "say what: --matrix, --surroundings, --reconcile, --list or --minutes"
        )
    cases = _chosen(lambda: choose(only or [], shard, repeat), shard)
    if show:
        typer.echo("\n".join(case.id for case in cases))
        return
    raise typer.Exit(run_matrix(cases, min(labs, len(cases)), as_json=as_json))


def _run_every_row() -> int:
    """Run the tests of docs/design/reconcile.md that are not faults of the surroundings."""
    files = ["test_reconcile_table.py", "test_gluster.py"]
    pytest = [sys.executable, "-m", "pytest", *(f"tests/workflow/{file}" for file in files)]
    return subprocess.run(pytest, cwd=REPOSITORY, check=False).returncode


def _chosen(choose: Callable[[], list[Case]], shard: str) -> list[Case]:
    try:
        cases = choose()
    except ValueError:
        raise typer.BadParameter(f"--shard {shard}: write I/N, for example 1/4") from None
    if not cases:
        raise typer.BadParameter("no case has such an id; see them with --list")
    return cases


if __name__ == "__main__":
    cli()
