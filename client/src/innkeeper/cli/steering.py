"""The commands that steer a migration under way."""

from typing import Annotated

import typer

from innkeeper.cli.options import JsonOption
from innkeeper.cli.screen import print_json, stdout
from innkeeper.cli.timeline import headline, policy_lines
from innkeeper.client import Innkeeper
from innkeeper.types import OperationView

MigrationArgument = Annotated[
    str,
    typer.Argument(
        metavar="MIGRATION",
        help="The guest's name or UUID, or the operation's whole id.",
        show_default=False,
    ),
]


def migrate_set(
    migration: MigrationArgument,
    bandwidth_mib_s: Annotated[
        int | None, typer.Option(help="A cap for the link; 0 for none.")
    ] = None,
    max_downtime_ms: Annotated[
        int | None, typer.Option(help="The longest pause at the switch-over.")
    ] = None,
    deadline_s: Annotated[
        float | None, typer.Option(help="The whole migration's time, from its beginning.")
    ] = None,
    on_timeout: Annotated[
        str | None,
        typer.Option(metavar="abort|pause|post_copy", help="What becomes of it at the deadline."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Change a migration that waits or runs; its host follows within a second."""
    fields = {
        "bandwidth_mib_s": bandwidth_mib_s,
        "max_downtime_ms": max_downtime_ms,
        "deadline_s": deadline_s,
        "on_timeout": on_timeout,
    }
    given = {name: value for name, value in fields.items() if value is not None}
    with Innkeeper() as inn:
        view = inn.migrate_set(migration, given)
    _conclude(view, as_json=as_json)
    if not as_json:
        for line in policy_lines(view):
            stdout().print(f"  {line}", soft_wrap=True)


def migrate_force_complete(migration: MigrationArgument, as_json: JsonOption = False) -> None:
    """Have a running migration end now: by post-copy where it is allowed, else by a pause."""
    with Innkeeper() as inn:
        view = inn.migrate_force_complete(migration)
    _conclude(view, as_json=as_json)


def _conclude(view: OperationView, *, as_json: bool) -> None:
    if as_json:
        print_json(view.model_dump(mode="json"))
        return
    stdout().print(f"Asked: {headline(view)} is {view.state.value}")
    stdout().print(f"  innkeeper watch {view.id}")


def register(app: typer.Typer) -> None:
    """Add these commands to the command line."""
    panel = "Follow an operation"
    for name, command, example in (
        ("migrate-set", migrate_set, "innkeeper migrate-set vm-1 --bandwidth-mib-s 400"),
        (
            "migrate-force-complete",
            migrate_force_complete,
            "innkeeper migrate-force-complete vm-1",
        ),
    ):
        app.command(name, epilog=f"Example: {example}", rich_help_panel=panel)(command)
