"""The command that has a dead host's guests run elsewhere."""

from typing import Annotated, Any

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
from innkeeper.cli.screen import print_json, print_table, stdout
from innkeeper.client import Innkeeper
from innkeeper.evacuation_types import EvacuationPlan

SOME_STAYED = 1


def evacuate(
    host: HostArgument,
    confirmed_dead: Annotated[
        str | None,
        typer.Option(
            "--i-confirm-host-is-dead",
            metavar="TEXT",
            help="You have seen that the host is off: say how. Takes the place of the fencing "
            "hook, for a host that has fallen silent.",
        ),
    ] = None,
    plan: Annotated[
        bool, typer.Option("--plan", help="Only show what would become of each guest.")
    ] = False,
    concurrency: Annotated[
        int | None, typer.Option(help="How many guests are moved at once. Default: 4.")
    ] = None,
    reason: ReasonOption = None,
    idempotency_key: KeyOption = None,
    timeout_s: TimeoutOption = None,
    no_wait: NoWaitOption = False,
    as_json: JsonOption = False,
) -> int:
    """Fence a dead host and have its guests run elsewhere, where their disks can be reached."""
    with Innkeeper() as inn:
        if plan:
            _show_plan(inn.evacuation_plan(host), as_json=as_json)
            return 0
        operation = inn.evacuate(
            host,
            confirmed_dead=confirmed_dead,
            concurrency=concurrency,
            reason=reason,
            idempotency_key=idempotency_key,
        )
        conclude(operation, no_wait=no_wait, timeout_s=timeout_s, as_json=as_json)
        if no_wait:
            return 0
        result = operation.result()
    if not as_json:
        _show_result(result)
    return SOME_STAYED if result.get("failed") or result.get("left") else 0


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    example = "innkeeper evacuate hv-a --plan"
    app.command("evacuate", epilog=f"Example: {example}", rich_help_panel="Look after hosts")(
        evacuate
    )


def _show_plan(plan: EvacuationPlan, *, as_json: bool) -> None:
    if as_json:
        print_json(plan.model_dump(mode="json"))
        return
    stdout().print(f"proof of death: {plan.proof}. {plan.message}", soft_wrap=True)
    print_table(
        ("GUEST", "STATE", "WOULD", "TO", "WHY"),
        ((each.name, each.state, each.action, each.dst, each.message) for each in plan.guests),
        empty=f"There are no guests on {plan.host}.",
    )


def _show_result(result: dict[str, Any]) -> None:
    print_table(
        ("GUEST", "OUTCOME", "HOST", "STATE", "WHY"),
        (
            (
                each.get("name"),
                each.get("outcome"),
                each.get("dst"),
                each.get("state"),
                each.get("message"),
            )
            for each in result.get("guests", [])
        ),
        empty=f"There were no guests on {result.get('host')}.",
    )
