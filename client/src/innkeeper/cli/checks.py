"""What a migration's checks have found, as a table."""

import typer

from innkeeper.cli.follow import follow
from innkeeper.cli.screen import cell, print_json, print_table, stdout
from innkeeper.errors import PrecheckFailed
from innkeeper.operation import Operation
from innkeeper.types import MigrationCheck


def conclude_check(operation: Operation, *, timeout_s: float | None, as_json: bool) -> None:
    """Wait for the checks of a migration, and print what they have found.

    Raises:
        typer.Exit: no destination passes; with the exit code of a migration that is refused.
    """
    result = follow(operation, timeout_s=timeout_s, silent=True)
    found = MigrationCheck.model_validate(result)
    if as_json:
        print_json(result)
    else:
        print_table(
            ("DESTINATION", "CHECK", "LOOKED ON", "OUTCOME", "WHY", "WHAT TO DO"),
            (
                (
                    destination.host,
                    each.check,
                    each.host,
                    "ok" if each.passed else "failed",
                    each.message or None,
                    each.hint or None,
                )
                for destination in found.destinations
                for each in destination.checks
            ),
            empty="There is no other host.",
        )
        for destination in found.destinations:
            failed = sum(not each.passed for each in destination.checks)
            verdict = "ok" if destination.passed else f"{failed} checks failed"
            line = cell(f"{found.instance} from {found.src} to {destination.host}: {verdict}")
            stdout().print(line, soft_wrap=True)
    if not found.can_migrate:
        raise typer.Exit(PrecheckFailed.exit_code)
