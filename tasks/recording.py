"""Records what came of a claimed step, each in one transaction that matches on the attempt."""

from contextlib import ExitStack

import structlog
from sqlalchemy.orm import Session

from innkeeper.errors import HypervisorUnavailable, InnkeeperError, LeaseLost, OutcomeUnknown
from models import ledger, operations
from models.ledger import Rung
from models.operation import Operation
from models.remaining import Outcome
from tasks import endings
from tasks.calling import call_waiting
from tasks.claiming import try_claim
from tasks.crashpoints import crash_point
from tasks.engine import Claim, Engine, Verdict
from tasks.hands import hold
from tasks.retry import backoff_s
from tasks.workflow import Done, Parked, RollForward

log = structlog.get_logger(__name__)

OWED_RETRY_S = 30.0


def record_done(
    engine: Engine, claim: Claim, done: Done, *, lock: ExitStack | None = None
) -> Verdict:
    """Record a step as done, with its own commit; the last one ends the operation.

    Args:
        engine: this process's parts.
        claim: the step.
        done: what it did.
        lock: the guest's, to be handed on where the next step is this process's; None where its
            message is not.
    """
    keeps = lock is not None and not done.rings_anew

    def record(session: Session) -> tuple[bool, Outcome | None, Claim | None]:
        following, is_last = ledger.complete_and_ring(session, claim.step.key, done.detail)
        if done.commit is not None:
            done.commit(session)
            # What a step commits may plan others.
            is_last = is_last and not operations.has_unfinished(session, claim.operation.id)
        outcome = endings.end_done(session, claim.workflow, claim.operation.id) if is_last else None
        ahead = _claim_ahead(session, engine, claim, following) if keeps and following else None
        crash_point(claim.where, "recording")
        return is_last, outcome, ahead

    has_ended, outcome, ahead = engine.database.run(record)
    if ahead is not None and lock is not None:
        _keep_in_hand(engine, ahead, lock)
    crash_point(claim.where, "recorded")
    if outcome is not None:
        engine.bells.publish([outcome])
    elif has_ended:
        engine.bells.publish_outcome(claim.operation.id)
    log.info("step done", **done.detail)
    call_waiting(
        engine.database,
        engine.bells,
        claim.operation,
        doors=claim.workflow.find_doors_left(claim.spec.name),
        has_ended=has_ended,
    )
    if done.rings_anew:
        engine.bells.ring(claim.operation.id)
        # The chain that rang this step leads to a host that has nothing to do with it any more.
        return Verdict.IGNORE
    return Verdict.PASS_ON


def _claim_ahead(session: Session, engine: Engine, claim: Claim, following: Rung) -> Claim | None:
    """Claim the next step with this one's record, where it needs no more than that."""
    has_door = claim.workflow.get_step(following.name).admit is not None
    if has_door or following.host != claim.step.host or claim.operation.state.is_final:
        return None
    session.flush()
    ahead = try_claim(session, engine, claim.operation.id, following.position)
    return ahead if isinstance(ahead, Claim) else None


def _keep_in_hand(engine: Engine, ahead: Claim, lock: ExitStack) -> None:
    is_same = ahead.instance is None or ahead.instance.epoch == ahead.operation.epoch
    engine.own_queue.hands.keep(hold(engine.leases, ahead, lock.pop_all() if is_same else None))


def record_parked(engine: Engine, claim: Claim, pause: Parked) -> Verdict:
    """Give a step back until something has happened, or its time has come to look again."""

    def record(session: Session) -> bool:
        ledger.requeue_step(
            session, claim.step.key, after_s=pause.after_s, waiting_for=pause.waiting_for
        )
        if pause.still is None or pause.still(session):
            return False
        ledger.hasten_step(session, claim.operation.id, claim.step.key.position)
        return True

    if engine.database.run(record):
        engine.bells.ring(claim.operation.id)
    return Verdict.IGNORE


def record_undone(engine: Engine, claim: Claim) -> Verdict:
    """Record that what a step made is gone; the last one ends the operation or plans it anew."""

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


def record_roll_forward(engine: Engine, claim: Claim, turn: RollForward) -> Verdict:
    """Record that an undo came too late, and turn the operation forward again."""
    key = claim.step.key

    def record(session: Session) -> endings.Turn:
        ledger.complete_step(session, key, turn.detail)
        return endings.roll_forward(session, claim.operation.id, key.position, turn)

    _follow(engine, claim, engine.database.run(record))
    # The chain that rang this undo leads backwards; the fresh one leads forward.
    return Verdict.IGNORE


def record_moot(engine: Engine, claim: Claim, why: str) -> Verdict:
    """Record that an owed step has nothing to do any more."""

    def note(session: Session) -> None:
        ledger.append_log(session, claim.step.key, f"not needed any more: {why}")

    engine.database.run(note)
    if claim.step.is_undo:
        return record_undone(engine, claim)
    return record_done(engine, claim, Done())


def record_failure(engine: Engine, claim: Claim, error: InnkeeperError) -> Verdict:
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


def _look_again(session: Session, claim: Claim, error: OutcomeUnknown) -> None:
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


def _follow(engine: Engine, claim: Claim, turn: endings.Turn) -> None:
    if turn is endings.Turn.WAIT:
        return
    if turn is endings.Turn.ENDED:
        engine.bells.publish_outcome(claim.operation.id)
        if claim.operation.instance_id is not None:
            engine.look_again(claim.operation.instance_id)
    else:
        engine.bells.ring(claim.operation.id)
    call_waiting(
        engine.database,
        engine.bells,
        claim.operation,
        doors=claim.workflow.doors,
        has_ended=turn is endings.Turn.ENDED,
    )
