"""The commands about operations: list, explain, watch, cancel."""

from typing import Annotated

import typer

from innkeeper.cli.follow import conclude
from innkeeper.cli.options import JsonOption, OperationArgument, TimeoutOption, find_operation
from innkeeper.cli.screen import ago, print_json, print_table, stdout
from innkeeper.cli.timeline import headline, print_timeline
from innkeeper.client import Innkeeper
from innkeeper.errors import NotFound


def operations(
    active: Annotated[
        bool, typer.Option("--active", help="Only those that have not ended.")
    ] = False,
    instance: Annotated[
        str | None, typer.Option(metavar="NAME", help="Only those of this guest.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="How many at most.")] = 20,
    as_json: JsonOption = False,
) -> None:
    """List operations, the newest first."""
    with Innkeeper() as inn:
        views = inn.operations(active=active, limit=limit, instance=instance)
    if as_json:
        print_json([each.model_dump(mode="json") for each in views])
        return
    print_table(
        ("OPERATION", "WHAT", "STATE", "STEP", "DONE", "ASKED BY", "AGE", "WAITS FOR"),
        (
            (
                each.id,
                headline(each),
                each.state.value,
                None if each.state.is_final else each.progress.step,
                f"{each.progress.fraction:.0%}",
                each.requested_by,
                ago(each.created_at),
                next((step.waiting_for for step in each.steps if step.waiting_for), None),
            )
            for each in views
        ),
        empty="No operation is under way." if active else "There are no operations.",
    )


def explain(operation: OperationArgument, as_json: JsonOption = False) -> None:
    """Tell an operation's story: its steps, hosts, attempts, times, and its error."""
    with Innkeeper() as inn:
        handle = find_operation(inn, operation)
        try:
            view = handle.view()
        except NotFound:
            # Refused at the door: there is no row, but the refusal may still be stored.
            handle.result()
            raise
    if as_json:
        print_json(view.model_dump(mode="json"))
    else:
        print_timeline(view)


def watch(
    operation: OperationArgument, timeout_s: TimeoutOption = None, as_json: JsonOption = False
) -> None:
    """Follow an operation to its end, with its outcome as exit code."""
    with Innkeeper() as inn:
        handle = find_operation(inn, operation)
        conclude(handle, no_wait=False, timeout_s=timeout_s, as_json=as_json)


def cancel(operation: OperationArgument, as_json: JsonOption = False) -> None:
    """Ask for an operation to be stopped and undone; returns at once."""
    with Innkeeper() as inn:
        view = find_operation(inn, operation).cancel()
    if as_json:
        print_json(view.model_dump(mode="json"))
    elif view.state.is_final:
        stdout().print(f"Too late: {headline(view)} is {view.state.value}")
    else:
        stdout().print(f"Asked: {headline(view)} is {view.state.value}")
        stdout().print(f"  innkeeper watch {view.id}")


def register(app: typer.Typer) -> None:
    """Add these commands to the command line."""
    panel = "Follow an operation"
    for command, example in (
        (operations, "innkeeper operations --active"),
        (explain, "innkeeper explain 3f2a"),
        (watch, "innkeeper watch 3f2a"),
        (cancel, "innkeeper cancel 3f2a"),
    ):
        app.command(command.__name__, epilog=f"Example: {example}", rich_help_panel=panel)(command)
