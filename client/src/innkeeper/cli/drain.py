"""The commands that empty a host, and open it again."""

from typing import Annotated, Any, Literal

import typer

from innkeeper.cli.follow import conclude
from innkeeper.cli.options import (
    HostArgument,
    JsonOption,
    KeyOption,
    NoWaitOption,
    ReasonOption,
    TimeoutOption,
)
from innkeeper.cli.screen import duration, print_json, print_table, stderr, stdout
from innkeeper.client import Innkeeper
from innkeeper.drain_types import DrainPlan
from innkeeper.errors import CapacityError


def drain(
    host: HostArgument,
    plan: Annotated[
        bool,
        typer.Option("--plan", "--dry-run", help="Only show who would go where; change nothing."),
    ] = False,
    concurrency: Annotated[
        int | None,
        typer.Option(help="How many guests are under way at once. Default: one waits in line."),
    ] = None,
    split_group: Annotated[
        bool,
        typer.Option("--split-group", help="Move the guests of affinity groups one by one."),
    ] = False,
    max_downtime_ms: Annotated[
        int | None, typer.Option(help="The longest pause of each guest. Default: 300.")
    ] = None,
    bandwidth_mib_s: Annotated[
        int | None, typer.Option(help="A cap for each migration; 0 for none. Default: 0.")
    ] = None,
    deadline_s: Annotated[
        float | None, typer.Option(help="The whole drain's time. Default: 14400.")
    ] = None,
    on_cancel: Annotated[
        Literal["cancel", "finish"] | None,
        typer.Option(help="What a cancel does to migrations under way. Default: cancel."),
    ] = None,
    reason: ReasonOption = None,
    idempotency_key: KeyOption = None,
    timeout_s: TimeoutOption = None,
    no_wait: NoWaitOption = False,
    as_json: JsonOption = False,
) -> None:
    """Keep new guests off a host and move those that run there away.

    Guests that are off stay. A drain of a host that is being drained follows the running one.
    """
    migration = _given(
        may_split_group=split_group or None,
        max_downtime_ms=max_downtime_ms,
        bandwidth_mib_s=bandwidth_mib_s,
    )
    fields = _given(
        concurrency=concurrency,
        deadline_s=deadline_s,
        on_cancel=on_cancel,
        migration=migration or None,
    )
    with Innkeeper() as inn:
        if plan or not (as_json or no_wait):
            foretold = inn.plan_drain(host, fields)
            if plan and as_json:
                print_json(foretold.model_dump(mode="json"))
            else:
                _print_plan(foretold)
        if plan:
            return
        operation = inn.drain(host, fields, reason=reason, idempotency_key=idempotency_key)
        conclude(operation, no_wait=no_wait, timeout_s=timeout_s, as_json=as_json)
        if no_wait:
            return
        result = operation.result()
        if not as_json:
            print_outcomes(result)
        if not result.get("is_empty_of_running"):
            raise typer.Exit(CapacityError.exit_code)


def undrain(host: HostArgument, as_json: JsonOption = False) -> None:
    """Let a drained host receive guests again; an operator's own disable stays."""
    with Innkeeper() as inn:
        view = inn.undrain(host)
    if as_json:
        print_json(view.model_dump(mode="json"))
    elif view.is_enabled:
        stdout().print(f"{view.name} is enabled")
    else:
        by = f" by {view.disabled_by}" if view.disabled_by else ""
        stdout().print(
            f"{view.name} stays disabled{by}: {view.disabled_reason or 'no reason given'}",
            soft_wrap=True,
        )


def print_outcomes(result: dict[str, Any]) -> None:
    """Print what became of each guest of a drain."""
    print_table(
        ("GUEST", "OUTCOME", "TO", "TOOK", "DOWNTIME", "OPERATION", "WHY"),
        (
            (
                each.get("instance"),
                each.get("outcome"),
                each.get("dst"),
                duration(each.get("total_ms")),
                duration(each.get("downtime_ms")),
                each.get("operation_id"),
                each.get("why"),
            )
            for each in result.get("guests", [])
        ),
        empty="No guest was on the host.",
    )


def register(app: typer.Typer) -> None:
    """Add these commands to the command line."""
    for command, example in (
        (drain, "innkeeper drain hv-a --reason 'new memory on Monday'"),
        (undrain, "innkeeper undrain hv-a"),
    ):
        app.command(
            command.__name__, epilog=f"Example: {example}", rich_help_panel="Change a host"
        )(command)


def _print_plan(plan: DrainPlan) -> None:
    console = stderr()
    console.print(f"drain of {plan.host}, {plan.concurrency} guests under way at once:")
    print_table(
        ("GUEST", "STATE", "PLAN", "TO", "WHY"),
        (
            (each.instance, each.state.value, each.action, each.dst, each.why)
            for each in plan.guests
        ),
        empty="No guest is on the host.",
    )


def _given(**fields: Any) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}
