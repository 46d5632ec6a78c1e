"""Calls those who wait for what an operation has just done: left a door, or ended."""

from collections.abc import Sequence
from uuid import UUID

from sqlalchemy.orm import Session

from models.children import wake_whole
from models.lines import does_somebody_wait
from models.operation import Operation
from models.session import Database
from tasks.bells import Bells
from tasks.workflow import Door


def call_waiting(
    database: Database,
    bells: Bells,
    operation: Operation,
    *,
    doors: Sequence[Door],
    has_ended: bool,
) -> None:
    """Ring for those who stand in line at a door, and for the whole that an operation is a part of.

    A call that is lost costs seconds: who waits looks again by himself.

    Args:
        database: where the lines are.
        bells: to ring.
        operation: who has moved.
        doors: those that it has left.
        has_ended: whether it has come to its end.
    """
    is_awaited = has_ended and operation.parent_id is not None
    has_left = bool(doors) and database.run_one(does_somebody_wait)
    if not has_left and not is_awaited:
        return

    def find(session: Session) -> list[UUID]:
        called = [each for door in doors for each in door.call(session, operation)]
        return called + (wake_whole(session, operation.id) if is_awaited else [])

    for operation_id in database.run(find):
        bells.ring(operation_id)
