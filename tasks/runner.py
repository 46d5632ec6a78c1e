"""Runs one step: claim, lock, act, record. The only place where the engine's promises are kept.

bell → claim (one UPDATE) ─ nothing matched ─→ done already? pass the bell on : ignore
         │
         ├ the guest's file lock on this host, then the epoch again under it
         ├ do / undo                       (probe, act, verify; intents written before effects)
         └ record outcome + commit in one transaction, matched on the attempt
               ├ last step   → the operation ends, its outcome is published
               ├ retryable   → queued again with a back-off, undone after too many failures
               └ failed      → the operation turns back
"""

import uuid
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from enum import Enum, auto
from uuid import UUID

import structlog
from sqlalchemy import select
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from innkeeper.errors import (
    AttemptsExhausted,
    Cancelled,
    HypervisorUnavailable,
    InnkeeperError,
    InternalError,
    LeaseLost,
    OutcomeUnknown,
)
from innkeeper.states import StepState
from models import debts, ledger, operations
from models.instance import Instance
from models.ledger import ClaimedStep
from models.operation import Operation, Step
from models.session import Database
from tasks import endings
from tasks.bells import Bells
from tasks.context import HostServices, StepContext, name_boundary
from tasks.crashpoints import crash_point
from tasks.leases import LeaseKeeper
from tasks.retry import backoff_s
from tasks.workflow import Done, RollForward, StepSpec, Workflow, Workflows
from virt.guest_lock import guest_lock

log = structlog.get_logger(__name__)


class Verdict(Enum):
    """What the Celery task does next: return, so that the next link is rung, or fall silent."""

    PASS_ON = auto()
    IGNORE = auto()


class Moot(Exception):
    """What an ended operation still owed has been overtaken: there is nothing to do for it."""


OWED_RETRY_S = 30.0


@dataclass(frozen=True, slots=True)
class Engine:
    """What running a step needs; built once per process by the composition root.

    Args:
        database: where the ledger is.
        workflows: what this release can do.
        leases: keeps the claimed steps.
        bells: rings for the next ones.
        services: the hypervisor's parts; None for control.
        look_again: has a guest's power state read once more, after an operation on it has failed:
            what its domain did meanwhile was the operation's business.
    """

    database: Database
    workflows: Workflows
    leases: LeaseKeeper
    bells: Bells
    services: HostServices | None
    look_again: Callable[[UUID], None] = lambda _instance_id: None


@dataclass(frozen=True, slots=True)
class _Claim:
    step: ClaimedStep
    operation: Operation
    instance: Instance | None
    details: dict[str, dict[str, object]]
    workflow: Workflow
    spec: StepSpec

    @property
    def where(self) -> str:
        return name_boundary(self.operation.kind, self.step)


def run_step(engine: Engine, operation_id: UUID, position: int) -> Verdict:
    """Run one step of an operation, or find that there is nothing to do.

    Args:
        engine: this process's parts.
        operation_id: the operation.
        position: the step's place in its ledger.
    """
    claim = engine.database.run(lambda session: _claim(session, engine, operation_id, position))
    if isinstance(claim, Verdict):
        return claim
    crash_point(claim.where, "claimed")
    with structlog.contextvars.bound_contextvars(
        operation=str(operation_id),
        instance=str(claim.operation.instance_id),
        host=claim.step.host,
        step=claim.step.name,
        attempt=claim.step.key.attempt,
    ):
        return _run_claimed(engine, claim)


def _claim(session: Session, engine: Engine, operation_id: UUID, position: int) -> _Claim | Verdict:
    step = ledger.claim_step(
        session,
        operation_id,
        position,
        owner=engine.leases.owner,
        lease_s=engine.leases.lease_s,
    )
    if step is None:
        state = ledger.find_step_state(session, operation_id, position)
        is_over = state in (StepState.DONE, StepState.UNDONE, StepState.FAILED)
        return Verdict.PASS_ON if is_over else Verdict.IGNORE
    operation, instance = session.execute(
        select(Operation, Instance)
        .outerjoin(Instance, Instance.id == Operation.instance_id)
        .where(Operation.id == operation_id)
    ).one()
    workflow = engine.workflows[operation.kind]
    spec = workflow.get_step(step.name)
    if step.host is not None and (engine.services is None or engine.services.name != step.host):
        # A message on the wrong queue; the right worker is rung again by the sweeper.
        ledger.requeue_step(session, step.key, after_s=0)
        return Verdict.IGNORE
    if operation.state.is_final:
        holder = debts.find_holder(session, operation_id)
        if holder is not None:
            ledger.requeue_step(
                session, step.key, after_s=5, waiting_for=f"the guest's {holder} to end"
            )
            return Verdict.IGNORE
    if spec.admit is not None and not step.is_undo and not step.was_begun_before:
        waiting_for = spec.admit(session, operation)
        if waiting_for is not None:
            ledger.requeue_step(session, step.key, after_s=0.5, waiting_for=waiting_for)
            return Verdict.IGNORE
    details = _read_details(session, operation_id) if position > 0 else {}
    crash_point(name_boundary(operation.kind, step), "claiming")
    return _Claim(step, operation, instance, details, workflow, spec)


def _read_details(session: Session, operation_id: UUID) -> dict[str, dict[str, object]]:
    """Return what the done steps recorded; of a step that was planned twice, the later."""
    rows = session.execute(
        select(Step.name, Step.detail)
        .where(Step.operation_id == operation_id, Step.state == StepState.DONE)
        .order_by(Step.position)
    )
    return {row.name: row.detail for row in rows}


def _run_claimed(engine: Engine, claim: _Claim) -> Verdict:
    key = claim.step.key
    log.info("step begins", undo=claim.step.is_undo)
    with ExitStack() as stack:
        lease = stack.enter_context(engine.leases.hold(key))
        context = StepContext(
            database=engine.database,
            operation=claim.operation,
            step=claim.step,
            details=claim.details,
            lease=lease,
            services=engine.services if claim.step.host else None,
            _instance=claim.instance,
        )
        try:
            _refuse_if_hopeless(claim)
            if context.services is not None and claim.instance is not None:
                stack.enter_context(
                    guest_lock(
                        context.services.lock_dir,
                        claim.instance.id,
                        timeout_s=60,
                        check=context.assert_owned,
                    )
                )
                _check_epoch(engine.database, claim)
            if claim.step.is_undo:
                crash_point(claim.where, "acting")
                if claim.spec.undo is not None:
                    claim.spec.undo(context)
                crash_point(claim.where, "acted")
                return _record_undone(engine, claim)
            is_stoppable = not (claim.operation.is_committed or context.is_owed)
            if is_stoppable and claim.operation.cancel_requested:
                raise Cancelled(
                    f"The {claim.operation.kind} operation was cancelled.",
                    {"by": claim.operation.cancel_requested_by},
                )
            crash_point(claim.where, "acting")
            done = claim.spec.do(context)
            crash_point(claim.where, "acted")
            return _record_done(engine, claim, done)
        except LeaseLost as exc:
            log.warning("step lost", reason=str(exc))
            return Verdict.IGNORE
        except RollForward as turn:
            return _record_roll_forward(engine, claim, turn)
        except Moot as exc:
            return _record_moot(engine, claim, str(exc))
        except InnkeeperError as exc:
            return _record_failure(engine, claim, exc)
        except DBAPIError:
            # Nothing is known of the ledger now; the lease runs out and the step is begun again.
            log.exception("the database failed during the step")
            return Verdict.IGNORE
        except Exception as exc:
            trace_id = uuid.uuid4().hex[:12]
            log.exception("defect in step", traceback_id=trace_id)
            return _record_failure(
                engine,
                claim,
                InternalError(
                    f"Step {claim.step.name} failed by a defect: {type(exc).__name__}: {exc}",
                    {"exception": type(exc).__name__, "traceback_id": trace_id},
                ),
            )


def _refuse_if_hopeless(claim: _Claim) -> None:
    if claim.step.failures > claim.spec.max_failures and not claim.step.is_undo:
        raise AttemptsExhausted(
            f"Step {claim.step.name} was begun {claim.step.key.attempt} times without an outcome.",
            {"attempts": claim.step.key.attempt},
        )


def _check_epoch(database: Database, claim: _Claim) -> None:
    """Look again under the guest's lock: a ghost that waited for it must not go on.

    Raises:
        LeaseLost: the step or the guest is another's.
        Moot: the guest has gone on, and what is owed here is no longer there to be done.
    """
    seen = database.run(lambda session: ledger.find_placement_if_owned(session, claim.step.key))
    if seen is not None and seen.epoch == claim.operation.epoch:
        return
    if seen is None or not claim.operation.state.is_final or seen.is_held:
        raise LeaseLost(
            "Another worker or another operation has taken the guest since.",
            {"epoch": seen and seen.epoch, "operation_epoch": claim.operation.epoch},
        )
    if not claim.spec.cleans_up_only or seen.host == claim.step.host:
        raise Moot("the guest has been placed anew since")


def _record_done(engine: Engine, claim: _Claim, done: Done) -> Verdict:
    def record(session: Session) -> bool:
        ledger.complete_step(session, claim.step.key, done.detail)
        if done.commit is not None:
            done.commit(session)
        has_ended = endings.advance(
            session, claim.workflow, claim.operation.id, claim.step.key.position
        )
        crash_point(claim.where, "recording")
        return has_ended

    has_ended = engine.database.run(record)
    crash_point(claim.where, "recorded")
    log.info("step done", **done.detail)
    if has_ended:
        engine.bells.publish_outcome(claim.operation.id)
    return Verdict.PASS_ON


def _record_undone(engine: Engine, claim: _Claim) -> Verdict:
    def record(session: Session) -> endings.Turn:
        ledger.complete_undo(session, claim.step.key)
        turn = endings.finish_undo(session, claim.workflow, claim.operation.id)
        crash_point(claim.where, "recording")
        return turn

    turn = engine.database.run(record)
    crash_point(claim.where, "recorded")
    _follow(engine, claim, turn)
    log.info("step undone")
    return Verdict.PASS_ON


def _record_roll_forward(engine: Engine, claim: _Claim, turn: RollForward) -> Verdict:
    key = claim.step.key

    def record(session: Session) -> endings.Turn:
        ledger.complete_step(session, key, turn.detail)
        return endings.roll_forward(session, claim.operation.id, key.position, turn)

    _follow(engine, claim, engine.database.run(record))
    # The chain that rang this undo leads backwards; the fresh one leads forward.
    return Verdict.IGNORE


def _record_moot(engine: Engine, claim: _Claim, why: str) -> Verdict:
    def note(session: Session) -> None:
        ledger.append_log(session, claim.step.key, f"not needed any more: {why}")

    engine.database.run(note)
    if claim.step.is_undo:
        return _record_undone(engine, claim)
    return _record_done(engine, claim, Done())


def _record_failure(engine: Engine, claim: _Claim, error: InnkeeperError) -> Verdict:
    """Try again, pass over a best-effort step, or turn the operation back."""
    error = error.with_details(step=claim.step.name, host=claim.step.host)
    log.warning("step failed", code=error.code, error=error.message)
    is_last_try = claim.step.failures + 1 >= claim.spec.max_failures
    committed = claim.operation.is_committed

    def record(session: Session) -> endings.Turn:
        committed_now = (
            committed
            or session.get_one(Operation, claim.operation.id, populate_existing=True).is_committed
        )
        if isinstance(error, OutcomeUnknown):
            _look_again(session, claim, error)
            if operations.is_past_deadline(session, claim.operation.id):
                return endings.end_unknown(session, claim.workflow, claim.operation.id, error)
            return endings.Turn.WAIT
        has_no_way_back = committed_now and not claim.workflow.may_fail_late
        wants_retry = error.retryable or claim.step.is_undo or has_no_way_back
        if isinstance(error, HypervisorUnavailable) and claim.workflow.waits_for_host:
            ledger.requeue_step(
                session, claim.step.key, after_s=1.0, waiting_for=f"libvirt on {error.host}"
            )
            return endings.Turn.WAIT
        if wants_retry and not is_last_try:
            ledger.requeue_step(
                session,
                claim.step.key,
                after_s=backoff_s(claim.step.failures, error),
                error=error.to_wire(),
            )
            return endings.Turn.WAIT
        if claim.step.is_undo or has_no_way_back:
            # There is no way but this one: it is tried on, also after the operation has ended.
            ledger.requeue_step(
                session, claim.step.key, after_s=OWED_RETRY_S, error=error.to_wire()
            )
            if claim.step.is_undo:
                return endings.end_owing(session, claim.workflow, claim.operation.id)
            return endings.end_early(session, claim.workflow, claim.operation.id, error)
        ledger.fail_step(session, claim.step.key, error.to_wire())
        return endings.turn_back(session, claim.workflow, claim.operation.id, error)

    def record_and_pass(session: Session) -> endings.Turn:
        turn = record(session)
        crash_point(claim.where, "failing")
        return turn

    try:
        turn = engine.database.run(record_and_pass)
    except LeaseLost as exc:
        log.warning("failure not recorded, the step is another's", reason=str(exc))
        return Verdict.IGNORE
    crash_point(claim.where, "failed")
    _follow(engine, claim, turn)
    return Verdict.IGNORE


def _look_again(session: Session, claim: _Claim, error: OutcomeUnknown) -> None:
    """Wait, and then have both hosts looked at, not only this one."""
    after_s = backoff_s(claim.step.failures, error)
    ledger.requeue_step(
        session,
        claim.step.key,
        after_s=after_s,
        waiting_for=f"both hosts to agree: {error.message}",
    )
    if claim.spec.renews is not None:
        ledger.reopen_step(session, claim.operation.id, name=claim.spec.renews, after_s=after_s)


def _follow(engine: Engine, claim: _Claim, turn: endings.Turn) -> None:
    if turn is endings.Turn.ENDED:
        engine.bells.publish_outcome(claim.operation.id)
        if claim.operation.instance_id is not None:
            engine.look_again(claim.operation.instance_id)
    elif turn is endings.Turn.RING:
        engine.bells.ring(claim.operation.id)
