"""Promises about operations: each ends in time, is done once, and tells its outcome."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

from tests.chaos.checker.ledger_look import OWED, UNFINISHED, Ledger, OperationRow, StepRow
from tests.chaos.checker.look import Look
from tests.chaos.checker.violation import Finding

END_EVENTS = frozenset({"operation.succeeded", "operation.failed", "operation.cancelled"})
BEGUN = frozenset({"running", "done", "failed", "undo", "undoing", "undone"})


def operation_ends(look: Look) -> Iterator[Finding]:
    """Every operation ends, at most 30 s after its deadline, and lets go of its guest."""
    for operation in look.ledger.operations.values():
        what = None
        if operation.is_overdue:
            what = "is still alive more than 30 s after its deadline"
        elif operation.is_live and look.settled:
            what = f"has not ended, it is {operation.state}"
        elif operation.ended_late:
            what = "ended more than 30 s after its deadline"
        if what is not None:
            yield Finding(f"{operation.title} {what}", operation_id=operation.id)
    for guest in look.guests:
        if guest.operation_id is None:
            continue
        holder = look.ledger.operations.get(guest.operation_id)
        if holder is None or not holder.is_live:
            yield Finding(
                f"guest {guest.name} {guest.id} is held by operation {guest.operation_id},"
                " which has ended",
                guest.id,
                guest.operation_id,
            )


def step_done_once(look: Look) -> Iterator[Finding]:
    """The ledger is whole: nothing is half done, and every operation ended exactly once.

    An ended operation has no step that is queued, running, or to be undone. One exception: an
    operation whose error says that its effect is ``unknown`` may still owe undos, which are then
    steps in ``undo`` or ``undoing``; queued and running ones it may not have either.
    """
    ends: dict[object, list[str]] = {}
    for event in look.ledger.events:
        if event.kind in END_EVENTS:
            ends.setdefault(event.operation_id, []).append(event.kind)
    for operation in look.ledger.operations.values():
        steps = look.ledger.steps.get(operation.id, [])
        faults = [fault for step in steps for fault in _find_faults(step)]
        faults += _find_early_starts(steps)
        told = ends.get(operation.id, [])
        wanted = [] if operation.is_live else [f"operation.{operation.state}"]
        if told != wanted:
            faults.append(f"is {operation.state}, and its end was told as {told or 'nothing'}")
        if not operation.is_live:
            allowed = OWED if operation.effect == "unknown" else frozenset[str]()
            faults += [
                f"has ended, and step {step.position} {step.name} is {step.state}"
                for step in steps
                if step.state in UNFINISHED - allowed
            ]
        for fault in faults:
            yield Finding(f"{operation.title} {fault}", operation_id=operation.id)


def _find_faults(step: StepRow) -> Iterator[str]:
    """Yield what cannot be in a step's row however often it was begun and rung."""
    name = f"step {step.position} {step.name}"
    if step.state in BEGUN and step.attempt == 0:
        yield f"{name} is {step.state}, but was never begun"
    if (step.attempt > 0) != (step.started_at is not None):
        yield f"{name} has {step.attempt} attempts and began at {step.started_at}"
    if step.failures > step.attempt:
        yield f"{name} has failed {step.failures} times in {step.attempt} attempts"
    if step.position == 0 and step.attempt > 0 and step.rings == 0:
        yield f"{name} was begun without a ring"
    if step.state == "done" and step.finished_at is None:
        yield f"{name} is done, but has no end"


def _find_early_starts(steps: list[StepRow]) -> Iterator[str]:
    """Yield steps that were begun before the one ahead of them was over.

    Only of those begun once: a later attempt keeps the time of the first.
    """
    for before, step in pairwise(steps):
        is_both_done = before.state == "done" and step.state == "done" and step.attempt == 1
        if not is_both_done or before.finished_at is None or step.started_at is None:
            continue
        if step.started_at < before.finished_at:
            yield f"step {step.position} {step.name} began before {before.name} was done"


def outcome_published(look: Look) -> Iterator[Finding]:
    """Whoever holds the task id of an ended operation reads in Redis what Postgres says."""
    for task_id, operation in _list_waiting(look.ledger):
        if operation.is_live:
            continue
        meta = look.outcomes.get(task_id)
        if meta is None:
            if look.settled and not _may_be_lost(look, operation):
                yield _disagree(operation, f"has no outcome in Redis under {task_id}")
            continue
        if operation.state == "succeeded":
            if meta.get("status") != "SUCCESS" or meta.get("result") != operation.result:
                yield _disagree(
                    operation,
                    f"succeeded, but Redis has under {task_id} {meta.get('status')} with another"
                    " result",
                )
            continue
        code = (operation.error or {}).get("code")
        stored = code_of(meta.get("result"))
        if meta.get("status") != "FAILURE" or stored != code:
            yield _disagree(
                operation,
                f"failed with {code}, but Redis has under {task_id} {meta.get('status')} {stored}",
            )


def _list_waiting(ledger: Ledger) -> Iterator[tuple[Any, OperationRow]]:
    yield from ledger.operations.items()
    for task_id, operation_id in ledger.aliases.items():
        yield task_id, ledger.operations[operation_id]


def _may_be_lost(look: Look, operation: OperationRow) -> bool:
    published, lost_until = operation.outcome_published_at, look.outcomes_lost_until
    return published is not None and lost_until is not None and published <= lost_until


def _disagree(operation: OperationRow, what: str) -> Finding:
    return Finding(f"{operation.title} {what}", operation_id=operation.id)


def code_of(stored: object) -> str | None:
    """Return the error's code from what Celery stored: the class ``NotFound`` is ``not_found``."""
    name = stored.get("exc_type") if isinstance(stored, dict) else None
    if not isinstance(name, str):
        return None
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()
