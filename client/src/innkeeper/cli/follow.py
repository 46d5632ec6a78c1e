"""Waiting for an operation in front of somebody: a bar on a terminal, plain lines elsewhere."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol
from uuid import UUID

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TaskProgressColumn,
    TextColumn,
)
from rich.text import Text

from innkeeper.cli.screen import duration, print_json, stderr, stdout
from innkeeper.errors import InnkeeperError
from innkeeper.operation import Operation
from innkeeper.states import OperationState, StepState
from innkeeper.types import OperationView, PartView, StepView

_SETTLED = {StepState.DONE, StepState.FAILED, StepState.UNDONE}
_SPOKEN = {StepState.RUNNING, StepState.UNDOING} | _SETTLED


class Detached(Exception):
    """Somebody stopped waiting; the operation goes on."""

    def __init__(self, operation_id: UUID) -> None:
        super().__init__(str(operation_id))
        self.operation_id = operation_id

    def explain(self) -> None:
        """Say on stderr how to watch or to cancel it."""
        console = stderr()
        console.print("\nNo longer waiting; the operation goes on.")
        console.print(f"  innkeeper watch {self.operation_id}")
        console.print(f"  innkeeper cancel {self.operation_id}")


class _Display(Protocol):
    def show(self, view: OperationView) -> None: ...


def conclude(
    operation: Operation, *, no_wait: bool, timeout_s: float | None, as_json: bool
) -> None:
    """See a request to its end, as the caller wished, and print how it ended.

    Raises:
        Detached: on Ctrl-C.
        InnkeeperError: the operation's own error, with its id among the details.
    """
    if no_wait:
        if as_json:
            print_json({"operation_id": str(operation.id)})
        else:
            stdout().print(str(operation.id))
        return
    began = time.monotonic()
    result = follow(operation, timeout_s=timeout_s, silent=as_json)
    elapsed_ms = (time.monotonic() - began) * 1000
    if as_json:
        print_json({"operation_id": str(operation.id), "state": "succeeded", "result": result})
    else:
        stdout().print(f"{summary(result)} ({duration(elapsed_ms)})", soft_wrap=True)


def follow(operation: Operation, *, timeout_s: float | None, silent: bool) -> dict[str, Any]:
    """Wait for an operation and show what it does.

    Returns:
        Its result.

    Raises:
        Detached: on Ctrl-C.
        InnkeeperError: the operation's own error, with its id among the details.
    """
    try:
        if silent:
            return operation.wait(timeout_s)
        with _display(stderr()) as display:
            for view in operation.watch(timeout_s):
                display.show(view)
        return operation.result()
    except KeyboardInterrupt:
        raise Detached(operation.id) from None
    except InnkeeperError as error:
        raise error.with_details(operation_id=str(operation.id)) from None


def summary(result: dict[str, Any]) -> str:
    """Return one sentence on what an operation brought about."""
    name = result.get("name") or result.get("instance_name")
    if name and result.get("downtime_ms") is not None and result.get("dst"):
        return (
            f"{name} moved from {result.get('src')} to {result['dst']}"
            f" with {duration(result['downtime_ms'])} of downtime"
        )
    if "drained_host" in result:
        left = f", {result['not_moved']} that run could not be moved" if result["not_moved"] else ""
        stay = f", {result['stay']} stay" if result["stay"] else ""
        return f"{result['moved']} guests have left {result['drained_host']}{left}{stay}"
    if "proof" in result and "guests" in result:
        return (
            f"{result['moved']} guests of {result['host']} are elsewhere now,"
            f" {result['failed']} have failed, {result['left']} were left"
        )
    if name and result.get("state"):
        place = f" on {result['host']}" if result.get("host") else ""
        return f"{name} is {result['state']}{place}"
    if "existing" in result and "hosts" in result:
        return (
            f"the image was brought to {result['cached']} hosts, {result['existing']} had it,"
            f" {result['errors']} do not have it"
        )
    return "Done"


def news(before: OperationView | None, after: OperationView) -> list[tuple[StepView, str]]:
    """Return what has happened to the steps between two views, in the ledger's order.

    Args:
        before: the view shown last.
        after: the view to be shown.

    Returns:
        Each step that moved, with a sentence on it.
    """
    known = {step.position: step for step in before.steps} if before else {}
    told = []
    for step in after.steps:
        old = known.get(step.position)
        moved = old is None or (old.state, old.attempt) != (step.state, step.attempt)
        waits = step.waiting_for is not None and (
            old is None or old.waiting_for != step.waiting_for
        )
        if moved and step.state in _SPOKEN:
            told.append((step, _sentence(step)))
        elif waits:
            told.append((step, f"{_titled(step)}: waits for {step.waiting_for}"))
    return told


def part_news(before: OperationView | None, after: OperationView) -> list[tuple[PartView, str]]:
    """Return the parts that have ended between two views, each with a sentence on it."""
    known = {part.operation_id: part.state for part in before.parts} if before else {}
    told = []
    for part in after.parts:
        if not part.state.is_final or known.get(part.operation_id) == part.state:
            continue
        text = f"{_part_title(part)}: {part.state.value}"
        if part.started_at and part.finished_at:
            took = part.finished_at - part.started_at
            text += f" in {duration(took.total_seconds() * 1000)}"
        if part.error and part.error.get("message"):
            text += f": {part.error['message']}"
        told.append((part, text))
    return told


def _part_title(part: PartView) -> str:
    to = f" to {part.dst_host}" if part.dst_host else ""
    return f"{part.kind} of {part.instance_name}{to}"


def _subject(view: OperationView) -> str:
    return f"{view.kind} of {view.instance_name}" if view.instance_name else view.kind


def _titled(step: StepView) -> str:
    return f"{step.name} on {step.host}" if step.host else step.name


def _sentence(step: StepView) -> str:
    text = f"{_titled(step)}: {step.state}"
    if step.state in _SETTLED and step.elapsed_ms is not None:
        text += f" in {duration(step.elapsed_ms)}"
    if step.attempt > 1:
        text += f" (attempt {step.attempt})"
    if step.error and step.error.get("message"):
        text += f": {step.error['message']}"
    return text


class _Lines:
    """A line for everything that happens."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._last: OperationView | None = None

    def show(self, view: OperationView) -> None:
        if self._last is None:
            self._console.print(f"operation {view.id}: {_subject(view)}")
        for _, sentence in [*part_news(self._last, view), *news(self._last, view)]:
            self._console.print(f"{time.strftime('%H:%M:%S')} {sentence}", soft_wrap=True)
        self._last = view


class _Bar:
    """A bar for the whole; above it, every step that has ended."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._task = progress.add_task("sent", total=1.0, note="")
        self._last: OperationView | None = None
        self._parts: dict[UUID, TaskID] = {}

    def show(self, view: OperationView) -> None:
        for part, sentence in part_news(self._last, view):
            good = part.state is OperationState.SUCCEEDED
            mark = Text("✓ ", style="green") if good else Text("✗ ", style="red")
            self._progress.console.print(mark.append(sentence, style="default"))
        self._show_parts(view.parts)
        for step, sentence in news(self._last, view):
            if step.state in _SETTLED:
                good = step.state == StepState.DONE
                mark = Text("✓ ", style="green") if good else Text("✗ ", style="red")
                self._progress.console.print(mark.append(sentence, style="default"))
        self._last = view
        running = [step for step in view.steps if step.state in {"running", "undoing"}]
        waiting = next((step for step in view.steps if step.waiting_for), None)
        note = view.progress.text
        if not note and waiting is not None:
            note = f"waits for {waiting.waiting_for}"
        self._progress.update(
            self._task,
            completed=view.progress.fraction,
            description=_titled(running[0]) if running else view.state.value,
            note=note,
        )

    def _show_parts(self, parts: list[PartView]) -> None:
        """Keep a bar for each part under way."""
        for part in parts:
            bar = self._parts.get(part.operation_id)
            if part.state.is_final:
                if bar is not None:
                    self._progress.remove_task(self._parts.pop(part.operation_id))
                continue
            if bar is None:
                bar = self._progress.add_task("", total=1.0, note="")
                self._parts[part.operation_id] = bar
            self._progress.update(
                bar, completed=part.fraction, description=_part_title(part), note=part.text
            )


@contextmanager
def _display(console: Console) -> Iterator[_Display]:
    if not console.is_terminal:
        yield _Lines(console)
        return
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[note]}", style="dim", markup=False),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        yield _Bar(progress)
