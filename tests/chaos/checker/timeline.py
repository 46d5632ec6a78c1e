"""An operation's story as short lines of text, from its rows."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from uuid import UUID

from tests.chaos.checker.ledger_look import Ledger, OperationRow, StepRow, read_ledger
from tests.chaos.checker.violation import Finding

OPERATIONS_TOLD = 2
LONGEST_LINE = 160


def tell(ledger: Ledger, finding: Finding) -> list[str]:
    """Return the story of the operation that a finding is about, or of its guest's last ones."""
    if finding.operation_id is not None:
        operation = ledger.operations.get(finding.operation_id)
        operations = [operation] if operation is not None else []
    elif finding.instance_id is not None:
        operations = ledger.by_guest.get(finding.instance_id, [])[-OPERATIONS_TOLD:]
    else:
        operations = []
    lines = list(_tell_guest(ledger, finding.instance_id))
    for operation in operations:
        lines += _tell_operation(ledger, operation)
    return [line[:LONGEST_LINE] for line in lines]


def tell_operation(database_url: str, operation_id: UUID) -> list[str]:
    """Return the whole story of one operation."""
    ledger = read_ledger(database_url)
    operation = ledger.operations.get(operation_id)
    if operation is None:
        return [f"operation {operation_id} has no row"]
    return list(_tell_operation(ledger, operation))


def _tell_guest(ledger: Ledger, instance_id: UUID | None) -> Iterator[str]:
    guest = ledger.guests.get(instance_id) if instance_id is not None else None
    if guest is not None:
        yield (
            f"guest {guest.name} {guest.id}: {guest.state}/{guest.power_state} on {guest.host},"
            f" epoch {guest.epoch}, domain epoch {guest.domain_epoch}, held by"
            f" {guest.operation_id}"
        )


def _tell_operation(ledger: Ledger, operation: OperationRow) -> Iterator[str]:
    yield (
        f"{operation.title} {operation.state} {operation.src_host or ''}→{operation.dst_host or ''}"
        f" accepted {operation.created_at:%H:%M:%S.%f}"
        f"{' committed' if operation.is_committed else ''}"
        f"{' cancel requested' if operation.cancel_requested else ''},"
        f" ended {_since(operation, operation.finished_at)},"
        f" published {_since(operation, operation.outcome_published_at)}"
    )
    if operation.error is not None:
        error = operation.error
        yield f"  {error.get('code')} ({error.get('effect')}): {error.get('message')}"
    for step in ledger.steps.get(operation.id, []):
        yield (
            f"  {step.position} {step.name} on {step.host or 'control'}: {step.state},"
            f" attempt {step.attempt}, {step.failures} failures, {step.rings} rings,"
            f" {_since(operation, step.started_at)} … {_since(operation, step.finished_at)}"
        )
        yield from _tell_hold(operation, step)
        if step.error is not None:
            yield f"      {step.error.get('code')}: {step.error.get('message')}"
        for line in step.log:
            yield f"      {line.get('at')} attempt {line.get('attempt')}: {line.get('text')}"
    for event in ledger.events:
        if event.operation_id == operation.id:
            yield f"  event {event.kind} at {_since(operation, event.at)}"


def _tell_hold(operation: OperationRow, step: StepRow) -> Iterator[str]:
    """Tell who has a step in hand, and what it has noted; nothing of one that is done."""
    told = {
        "rung": step.rung_at and _since(operation, step.rung_at),
        "owner": step.owner,
        "lease until": step.lease_expires_at and _since(operation, step.lease_expires_at),
        "waiting for": step.waiting_for,
        "detail": step.detail,
        "undo": step.undo,
    }
    if shown := ", ".join(f"{name} {value}" for name, value in told.items() if value):
        yield f"      {shown}"


def _since(operation: OperationRow, moment: datetime | None) -> str:
    if moment is None:
        return "–"
    return f"{(moment - operation.created_at).total_seconds():+.3f} s"
