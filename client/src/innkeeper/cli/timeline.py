"""An operation's story as text: what was done where, how long it took, and what went wrong."""

from collections.abc import Iterator
from datetime import datetime
from typing import Any

from rich.table import Table
from rich.text import Text

from innkeeper.cli.screen import cell, duration, error_lines, stdout
from innkeeper.errors import from_wire
from innkeeper.types import OperationView, StepView

_NOTE_TEXT_KEYS = ("text", "message", "event", "note")
_NOTE_FRAME_KEYS = ("at", "level", "serial")


def print_timeline(view: OperationView) -> None:
    """Print the whole story on stdout."""
    console = stdout()
    console.print(Text.assemble((headline(view), "bold"), " is ", cell(view.state.value)))
    for line in _circumstances(view):
        console.print(line, soft_wrap=True)
    for line in refusal_lines(view):
        console.print(line, soft_wrap=True)
    for line in policy_lines(view):
        console.print(line, soft_wrap=True)
    if view.steps:
        console.print()
        console.print(_steps_table(view))
    if view.parts:
        console.print()
        console.print(_parts_table(view))
    notes = [note for step in view.steps for note in step_notes(step)]
    if notes:
        console.print()
        for note in notes:
            console.print(note, soft_wrap=True)
    if view.error:
        console.print()
        for text in error_lines(from_wire(view.error)):
            console.print(text, soft_wrap=True)


def headline(view: OperationView) -> str:
    """Name the operation: what, of which guest, from where to where."""
    guest = view.instance_name or view.instance_id
    text = f"{view.kind} of {guest}" if guest else view.kind
    if view.src_host:
        text += f" from {view.src_host}"
    if view.dst_host:
        text += f" to {view.dst_host}"
    return text


def refusal_lines(view: OperationView) -> Iterator[str]:
    """Yield why each host that was not taken was not."""
    for refusal in view.refusals:
        yield f"not on {refusal.get('host')}: {refusal.get('message')} [{refusal.get('code')}]"


def policy_lines(view: OperationView) -> Iterator[str]:
    """Yield what of a migration's policy is not its default, and where it came from."""
    if view.migration is None:
        return
    for name, told in view.migration.policy.items():
        if told.get("from") != "default":
            yield f"{name} is {told.get('value')} by {told.get('from')}"


def step_notes(step: StepView) -> Iterator[str]:
    """Yield what a step's log tells: recoveries, waits, decisions."""
    for entry in step.log:
        text = next((str(entry[key]) for key in _NOTE_TEXT_KEYS if entry.get(key)), "")
        rest = {
            key: value
            for key, value in entry.items()
            if key not in _NOTE_TEXT_KEYS and key not in _NOTE_FRAME_KEYS
        }
        facts = " ".join(f"{key}={value}" for key, value in rest.items())
        at = _clock(entry.get("at"))
        yield " ".join(filter(None, [at, f"{step.name}:", text, facts]))
    if step.waiting_since and step.started_at:
        waited = _milliseconds(step.waiting_since, step.started_at)
        yield f"{_clock(step.waiting_since)} {step.name}: stood in line for {waited}"
    if step.waiting_for:
        yield f"{step.name}: waits for {step.waiting_for}"


def _circumstances(view: OperationView) -> Iterator[str]:
    yield f"operation {view.id}"
    if view.requested_by:
        yield f"asked by {view.requested_by}" + (f": {view.reason}" if view.reason else "")
    times = f"created {view.created_at:%Y-%m-%d %H:%M:%S}"
    if view.started_at:
        times += f", begun {_milliseconds(view.created_at, view.started_at)} later"
    if view.finished_at:
        times += f", ended after {_milliseconds(view.created_at, view.finished_at)}"
    elif view.deadline_at:
        times += f", deadline {view.deadline_at:%H:%M:%S}"
    yield times
    if view.owes_since:
        yield (
            f"ended while a host was away; the unfinished steps are owed since "
            f"{view.owes_since:%Y-%m-%d %H:%M:%S} and are made up for when it is back"
        )
    if view.cancel_requested:
        yield "somebody asked for it to be cancelled"
    if not view.state.is_final:
        yield f"{view.progress.fraction:.0%} {view.progress.text}".rstrip()


def _steps_table(view: OperationView) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("STEP", "HOST", "ATTEMPT", "BEGUN", "TOOK", "OUTCOME", "ERROR"):
        table.add_column(column, overflow="fold")
    for step in view.steps:
        # The operation's own error is told in full below the table.
        error = step.error["message"] if step.error and step.error != view.error else None
        table.add_row(
            *map(
                cell,
                (
                    step.name,
                    step.host or "control",
                    step.attempt or None,
                    _clock(step.started_at),
                    duration(step.elapsed_ms),
                    step.state,
                    error,
                ),
            )
        )
    return table


def _parts_table(view: OperationView) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("PART", "TO", "BEGUN", "ENDED", "TOOK", "OUTCOME", "OPERATION", "WHY"):
        table.add_column(column, overflow="fold")
    for part in view.parts:
        took = None
        if part.started_at and part.finished_at:
            took = _milliseconds(part.started_at, part.finished_at)
        table.add_row(
            *map(
                cell,
                (
                    f"{part.kind} of {part.instance_name}",
                    part.dst_host,
                    _clock(part.started_at),
                    _clock(part.finished_at),
                    took,
                    part.state.value,
                    part.operation_id,
                    part.error["message"] if part.error else part.text or None,
                ),
            )
        )
    return table


def _clock(moment: Any) -> str | None:
    # A step's log is free JSON, where times are text.
    if isinstance(moment, str):
        try:
            moment = datetime.fromisoformat(moment)
        except ValueError:
            return str(moment)
    if not isinstance(moment, datetime):
        return None
    return f"{moment:%H:%M:%S}.{moment.microsecond // 1000:03d}"


def _milliseconds(begin: datetime, end: datetime) -> str | None:
    return duration((end - begin).total_seconds() * 1000)
