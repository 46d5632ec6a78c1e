"""What is printed where: answers on stdout, everything about the way there on stderr."""

import json
import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from innkeeper.errors import InnkeeperError
from innkeeper.states import Effect

# In a pipe there is no screen to fit, and a name cut short is of no use to the next program.
_PIPE_WIDTH = 400
_CONSOLE_LINES = 12

_EFFECTS = {
    Effect.NOT_STARTED: "nothing was changed",
    Effect.ROLLED_BACK: "what was begun was undone",
    Effect.DONE: "what was asked for was done",
    Effect.UNKNOWN: "not known from here",
}

_STATE_STYLES = {
    "active": "green",
    "running": "cyan",
    "succeeded": "green",
    "done": "green",
    "up": "green",
    "ok": "green",
    "building": "cyan",
    "undoing": "yellow",
    "undone": "yellow",
    "cancelled": "yellow",
    "disabled": "yellow",
    "failed": "red",
    "error": "red",
    "unknown": "red",
    "down": "red",
    "broken": "red",
}


def stdout() -> Console:
    """Return the console for answers."""
    return _console(sys.stdout)


def stderr() -> Console:
    """Return the console for progress and errors."""
    return _console(sys.stderr)


def print_json(document: Any) -> None:
    """Print the one JSON document of a command."""
    sys.stdout.write(json.dumps(document, indent=2, ensure_ascii=False, default=str) + "\n")
    sys.stdout.flush()


def print_table(columns: Sequence[str], rows: Iterable[Sequence[Any]], *, empty: str) -> None:
    """Print rows in columns, or a sentence on stderr where there are none."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(cell(value) for value in row))
    if table.row_count:
        stdout().print(table)
    else:
        stderr().print(empty)


def cell(value: Any) -> Text:
    """Return a value as it stands in a table; states have their colour everywhere."""
    if value is None:
        return Text("-", style="dim")
    text = str(value)
    return Text(text, style=_STATE_STYLES.get(text, ""))


def print_error(error: InnkeeperError, *, as_json: bool) -> None:
    """Print an error: on stdout as JSON, or on stderr for people."""
    if as_json:
        print_json({"error": error.to_wire()})
        return
    console = stderr()
    for line in error_lines(error):
        console.print(line, soft_wrap=True)


def error_lines(error: InnkeeperError) -> list[Text]:
    """Say what failed, each single cause, where the guest is now, and what to try next."""
    lines = [Text.assemble(("Error: ", "bold red"), error.message)]
    causes = [
        *(f"{each.get('host')}: {each.get('message')}" for each in _listed(error, "refusals")),
        *(f"{each.get('check')}: {each.get('message')}" for each in _listed(error, "failures")),
    ]
    lines += [Text(f"  - {cause}") for cause in causes]
    place = [f"host {error.host}"] if error.host else []
    place += [f"step {error.step}"] if error.step else []
    if place:
        lines.append(Text.assemble(("Where: ", "bold"), ", ".join(place)))
    lines.append(Text.assemble(("Effect: ", "bold"), _EFFECTS[error.effect]))
    tail = str(error.details.get("console_tail") or "").rstrip().splitlines()
    if tail:
        lines.append(Text("The console's last lines:", style="bold"))
        lines += [Text(f"  | {line}", style="dim") for line in tail[-_CONSOLE_LINES:]]
    lines.append(Text.assemble(("Try: ", "bold"), error.hint, (f"  [{error.code}]", "dim")))
    return lines


def ago(moment: datetime | None) -> str | None:
    """Return how long ago something was, in the one unit that matters."""
    if moment is None:
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    seconds = max((datetime.now(UTC) - moment).total_seconds(), 0)
    for unit, length_s in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length_s:
            return f"{seconds / length_s:.0f} {unit}"
    return f"{seconds:.0f} s"


def duration(milliseconds: float | None) -> str | None:
    """Return a duration with three significant figures or so."""
    if milliseconds is None:
        return None
    if milliseconds < 1000:
        return f"{milliseconds:.0f} ms"
    if milliseconds < 120_000:
        return f"{milliseconds / 1000:.1f} s"
    return f"{milliseconds / 60_000:.1f} min"


def _listed(error: InnkeeperError, name: str) -> list[dict[str, Any]]:
    found = error.details.get(name)
    return [each for each in found if isinstance(each, dict)] if isinstance(found, list) else []


def _console(stream: Any) -> Console:
    width = None if stream.isatty() else _PIPE_WIDTH
    return Console(file=stream, width=width, highlight=False, markup=False)
