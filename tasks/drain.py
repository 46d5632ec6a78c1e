"""Drain: an operation over operations, that empties a host of the guests that run there.

Each guest's move is an ordinary live migration with the drain as its parent. The drain's own step
asks for the next ones, parks itself, and is rung when one of them ends. It is over when a last look
finds nobody who runs there and was not asked to leave.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

from sqlalchemy import update
from sqlalchemy.orm import Session

from innkeeper.drain_types import DrainPolicy
from innkeeper.errors import Busy, InnkeeperError, NotFound, StateConflict
from models import ledger
from models.children import cancel_children, child_id, count_live_children, list_children
from models.drains import list_guests, record_refused
from models.host import Host
from models.operation import Operation, Step
from tasks.context import StepContext
from tasks.drain_plan import plan_drain
from tasks.drain_policy import (
    Case,
    Stand,
    choose_next,
    count,
    describe_progress,
    describe_wait,
    judge,
    summarize,
)
from tasks.workflow import Done, On, Parked, StepSpec, Workflow

STEP = "move_guests"
# A part that ends rings; this is for guests that other operations hold, and for bells that get
# lost.
LOOK_AGAIN_S = 5.0


def plan_moves(context: StepContext) -> Done:
    """Write down which guest would go where, as things are when the drain begins.

    Queue: control; milliseconds.
    Idempotency: only looks.
    Undo: none.
    On crash: looks again.
    Retries: none; what comes of each guest is decided when its turn comes.
    """
    host, policy = str(context.operation.src_host), read_policy(context.operation)
    plan = context.database.run(lambda session: plan_drain(session, host, policy))
    context.midway()
    return Done({"plan": plan.model_dump(mode="json")})


def move_guests(context: StepContext) -> Done:
    """Ask for the next migrations, and wait for them; done when nobody is left to be moved.

    Queue: control; milliseconds a time, for as long as the migrations take.
    Idempotency: a guest's migration has an id that follows from the drain's and the guest's.
    Undo: has the migrations under way cancelled, if the policy says so, and waits for their end.
    On crash: looks who is there and what was asked for.
    Retries: none; a guest that cannot be moved is told of and holds up nobody else.
    """
    cases = context.database.run(partial(look, context.operation))
    concurrency = find_concurrency(context)
    while going := choose_next(cases, concurrency=concurrency):
        has_asked = [_ask_to_move(context, case) for case in going]
        cases = context.database.run(partial(look, context.operation))
        if not any(has_asked):
            break
    fraction, text = describe_progress(cases)
    context.progress(fraction, text, guests=[[case.name, case.stand.value] for case in cases])
    if not count(cases, Stand.TO_MOVE, Stand.MOVING, Stand.WAITS):
        return Done({"told": text})
    moving = count(cases, Stand.MOVING)
    raise Parked(
        describe_wait(cases),
        after_s=LOOK_AGAIN_S,
        still=lambda session: count_live_children(session, context.operation.id) == moving,
    )


def stop_moving(context: StepContext) -> None:
    """Undo of move_guests: ask for no more, and see those under way to their end."""
    operation, policy = context.operation, read_policy(context.operation)
    if policy.on_cancel == "cancel":
        by = operation.cancel_requested_by or f"drain of {operation.src_host}"
        context.database.run(
            lambda session: cancel_children(session, operation.id, requested_by=by)
        )
    context.midway()
    cases = context.database.run(partial(look, operation))
    moving = count(cases, Stand.MOVING)
    if moving:
        raise Parked(
            describe_wait([case for case in cases if case.stand is Stand.MOVING]),
            after_s=LOOK_AGAIN_S,
            still=lambda session: count_live_children(session, operation.id) == moving,
        )
    context.database.run(lambda session: _tell_in_error(session, context, cases))


def look(operation: Operation, session: Session) -> list[Case]:
    """Return how every guest stands with a drain now."""
    host = str(operation.src_host)
    # The parts first: a guest that leaves in between is seen twice, and not overlooked.
    children = list_children(session, operation.id)
    return judge(host, list_guests(session, host), children, _read_refused(session, operation))


def find_concurrency(context: StepContext) -> int:
    """Return how many guests may be under way at once."""
    wanted = read_policy(context.operation).concurrency
    if wanted is not None:
        return wanted
    return context.database.run(
        lambda session: default_concurrency(session.get_one(Host, str(context.operation.src_host)))
    )


def default_concurrency(host: Host) -> int:
    """Return one more than may leave a host at once: it is prepared while the others move."""
    return host.max_migrations_out + 1


def read_policy(operation: Operation) -> DrainPolicy:
    """Return what was asked for."""
    return DrainPolicy.model_validate(operation.params["policy"])


def _ask_to_move(context: StepContext, case: Case) -> bool:
    """Ask for one guest's migration; True when it was taken on, or refused for good."""
    # Requests know every workflow, so this one cannot know requests from the start.
    from tasks.requests import Envelope, accept_live_migrate

    operation = context.operation
    context.checkpoint()
    part_id = child_id(operation.id, case.instance_id, case.moves)
    attempt = f"/{case.moves}" if case.moves else ""
    envelope = Envelope(
        part_id,
        idempotency_key=f"drain:{operation.id}:{case.instance_id}{attempt}",
        requested_by=operation.requested_by,
        reason=f"drain of {operation.src_host}",
        parent_id=operation.id,
        migration_defaults=context.migration_defaults,
    )
    fields = {
        "instance": str(case.instance_id),
        "policy": operation.params["policy"].get("migration") or {},
    }

    def ask(session: Session) -> bool:
        ledger.assert_owned(session, context.step.key)
        try:
            with session.begin_nested():
                accept_live_migrate(session, envelope, fields)
        except (Busy, StateConflict, NotFound):
            # It has changed since the look: the next one shows what it is now.
            return False
        except InnkeeperError as error:
            refused = {"instance": case.name, "error": error.to_wire()}
            record_refused(
                session, operation.id, context.step.key.position, case.instance_id, refused
            )
            return False
        return True

    was_taken_on = context.database.run(ask)
    context.midway()
    if was_taken_on:
        context.ring(part_id)
    return True


def _read_refused(session: Session, operation: Operation) -> Mapping[str, Mapping[str, Any]]:
    steps = session.query(Step.detail).filter(Step.operation_id == operation.id, Step.name == STEP)
    return next((detail.get("refused") or {} for (detail,) in steps), {})


def _tell_in_error(session: Session, context: StepContext, cases: list[Case]) -> None:
    """Put the guests' lines into the error with which the drain ends."""
    ledger.assert_owned(session, context.step.key)
    operation = session.get_one(Operation, context.operation.id, populate_existing=True)
    error = dict(operation.error or {})
    details = {**(error.get("details") or {}), **summarize(str(operation.src_host), cases)}
    session.execute(
        update(Operation)
        .where(Operation.id == operation.id)
        .values(error={**error, "details": details})
    )


def _succeed(session: Session, operation: Operation) -> dict[str, Any]:
    """Return what became of each guest; that one could not be moved fails nobody else."""
    summary = summarize(str(operation.src_host), look(operation, session))
    return {"operation_id": str(operation.id), **summary}


DRAIN = Workflow(
    kind="drain",
    steps=(
        StepSpec("plan_moves", On.CONTROL, plan_moves, is_harmless=True),
        StepSpec(
            STEP,
            On.CONTROL,
            move_guests,
            undo=stop_moving,
            cleans_up_only=True,
            max_failures=100,
        ),
    ),
    on_success=_succeed,
    on_failure=lambda _session, _operation: None,
)
