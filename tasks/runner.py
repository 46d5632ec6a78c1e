"""Runs one step: claim, lock, act, record. The only place where the engine's promises are kept.

bell → claim (one UPDATE) ─ nothing matched ─→ done already? pass the bell on : ignore
         │
         ├ the guest's file lock on this host, then the epoch again under it; a step that follows
         │  one of this worker's has claim and lock from that: see hands
         ├ do / undo                       (probe, act, verify; intents written before effects)
         └ record outcome + commit in one transaction, matched on the attempt
               ├ last step   → the operation ends, its outcome is published
               ├ retryable   → queued again with a back-off, undone after too many failures
               └ failed      → the operation turns back
"""

import uuid
from uuid import UUID

import structlog
from sqlalchemy.exc import DBAPIError

from innkeeper.errors import (
    AttemptsExhausted,
    Cancelled,
    InnkeeperError,
    InternalError,
    LeaseLost,
)
from models import ledger
from models.session import Database
from tasks.claiming import try_claim
from tasks.context import StepContext
from tasks.crashpoints import crash_point
from tasks.engine import Claim, Engine, Verdict
from tasks.hands import InHand, hold
from tasks.os_faults import find_host_fault
from tasks.recording import (
    record_done,
    record_failure,
    record_moot,
    record_parked,
    record_roll_forward,
    record_undone,
)
from tasks.workflow import Parked, RollForward
from virt.guest_lock import guest_lock

log = structlog.get_logger(__name__)

# Workers die of other things than the step in hand, and several times in a row on a bad day; one
# that dies of it every time must still come to an end.
MOST_LOST_WORKERS = 10


class Moot(Exception):
    """What an ended operation still owed has been overtaken: there is nothing to do for it."""


def run_step(
    engine: Engine, operation_id: UUID, position: int, *, goes_on_here: bool = False
) -> Verdict:
    """Run one step of an operation, or find that there is nothing to do.

    Args:
        engine: this process's parts.
        operation_id: the operation.
        position: the step's place in its ledger.
        goes_on_here: whether the message of the step after it will be this process's, too.
    """
    kept = engine.own_queue.hands.take(operation_id, position)
    claim = (
        engine.database.run(lambda session: try_claim(session, engine, operation_id, position))
        if kept is None
        else kept.claim
    )
    if isinstance(claim, Verdict):
        return claim
    crash_point(claim.where, "claimed")
    held = kept or hold(engine.leases, claim)
    with structlog.contextvars.bound_contextvars(
        operation=str(operation_id),
        instance=str(claim.operation.instance_id),
        host=claim.step.host,
        step=claim.step.name,
        attempt=claim.step.key.attempt,
    ):
        return _run_claimed(engine, held, goes_on_here=goes_on_here)


def _run_claimed(engine: Engine, held: InHand, *, goes_on_here: bool) -> Verdict:
    claim = held.claim
    log.info("step begins", undo=claim.step.is_undo)
    with held.stack, held.lock as lock:
        context = StepContext(
            database=engine.database,
            operation=claim.operation,
            step=claim.step,
            details=claim.details,
            lease=held.lease,
            services=engine.services if claim.step.host else None,
            _instance=claim.instance,
            keyring=engine.keyring,
            ring=engine.bells.ring,
            fencing_hook=engine.fencing_hook,
            migration_defaults=engine.migration_defaults,
        )
        try:
            _refuse_if_hopeless(claim)
            if context.services is not None and claim.instance is not None:
                if not held.has_guest:
                    lock.enter_context(
                        guest_lock(
                            context.services.lock_dir,
                            claim.instance.id,
                            timeout_s=60,
                            check=context.assert_owned,
                        )
                    )
                if not held.needs_no_check:
                    _check_epoch(engine.database, claim)
            if claim.step.is_undo:
                crash_point(claim.where, "acting")
                if claim.spec.undo is not None:
                    claim.spec.undo(context)
                crash_point(claim.where, "acted")
                return record_undone(engine, claim)
            is_stoppable = not (claim.operation.is_committed or context.is_owed)
            if is_stoppable and claim.operation.cancel_requested:
                raise Cancelled(
                    f"The {claim.operation.kind} operation was cancelled.",
                    {"by": claim.operation.cancel_requested_by},
                )
            crash_point(claim.where, "acting")
            done = claim.spec.do(context)
            crash_point(claim.where, "acted")
            return record_done(engine, claim, done, lock=lock if goes_on_here else None)
        except LeaseLost as exc:
            log.warning("step lost", reason=str(exc))
            return Verdict.IGNORE
        except RollForward as turn:
            return record_roll_forward(engine, claim, turn)
        except Moot as exc:
            return record_moot(engine, claim, str(exc))
        except Parked as pause:
            return record_parked(engine, claim, pause)
        except InnkeeperError as exc:
            return record_failure(engine, claim, exc)
        except DBAPIError:
            # Nothing is known of the ledger now; the lease runs out and the step is begun again.
            log.exception("the database failed during the step")
            return Verdict.IGNORE
        except Exception as exc:
            trace_id = uuid.uuid4().hex[:12]
            log.exception("the step raised", traceback_id=trace_id)
            return record_failure(engine, claim, _translate(exc, claim, trace_id))


def _translate(exc: Exception, claim: Claim, trace_id: str) -> InnkeeperError:
    """Return the error of what no step should let out: a broken host's, or a defect's."""
    if isinstance(exc, OSError) and claim.step.host is not None:
        fault = find_host_fault(exc, claim.step.host)
        if fault is not None:
            return fault
    return InternalError(
        f"Step {claim.step.name} failed by a defect: {type(exc).__name__}: {exc}",
        {"exception": type(exc).__name__, "traceback_id": trace_id},
    )


def _refuse_if_hopeless(claim: Claim) -> None:
    most = max(claim.spec.max_failures, MOST_LOST_WORKERS)
    if claim.step.failures > most and not claim.step.is_undo:
        raise AttemptsExhausted(
            f"Step {claim.step.name} was begun {claim.step.key.attempt} times without an outcome.",
            {"attempts": claim.step.key.attempt},
        )


def _check_epoch(database: Database, claim: Claim) -> None:
    """Look again under the guest's lock: a ghost that waited for it must not go on.

    Raises:
        LeaseLost: the step or the guest is another's.
        Moot: the guest has gone on, and what is owed here is no longer there to be done.
    """
    seen = database.run_one(lambda session: ledger.find_placement_if_owned(session, claim.step.key))
    if seen is not None and seen.epoch == claim.operation.epoch:
        return
    if seen is None or not claim.operation.state.is_final or seen.is_held:
        raise LeaseLost(
            "Another worker or another operation has taken the guest since.",
            {"epoch": seen and seen.epoch, "operation_epoch": claim.operation.epoch},
        )
    if not claim.spec.cleans_up_only or seen.host == claim.step.host:
        raise Moot("the guest has been placed anew since")
