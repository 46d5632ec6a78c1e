"""The command that says which part is broken, also when nothing works."""

import typer

from innkeeper.cli.options import JsonOption
from innkeeper.cli.screen import print_json, print_table
from innkeeper.client import Innkeeper
from innkeeper.diagnosis import Part
from innkeeper.errors import InvalidRequest, ServiceError


def doctor(as_json: JsonOption = False) -> None:
    """Try every part of Innkeeper and say what to do about those that do not work."""
    parts = _examine()
    healthy = all(each.ok for each in parts)
    if as_json:
        print_json({"ok": healthy, "parts": [each.model_dump() for each in parts]})
    else:
        print_table(
            ("PART", "STATE", "FOUND", "WHAT TO DO"),
            (
                (each.part, "ok" if each.ok else "broken", each.message, each.hint or None)
                for each in parts
            ),
            empty="",
        )
    if not healthy:
        raise typer.Exit(ServiceError.exit_code)


def register(app: typer.Typer) -> None:
    """Add this command to the command line."""
    app.command("doctor", epilog="Example: innkeeper doctor", rich_help_panel="Look around")(doctor)


def _examine() -> list[Part]:
    try:
        inn = Innkeeper()
    except InvalidRequest as unset:
        return [Part(part="settings", ok=False, message=unset.message, hint=unset.hint)]
    with inn:
        return inn.check()
