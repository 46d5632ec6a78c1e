"""Proof of death: the two steps that an evacuation begins with, and what they go by."""

import time
from dataclasses import dataclass
from enum import StrEnum
from functools import partial

from sqlalchemy.orm import Session

from innkeeper.errors import FencingFailed, NotFenced
from models.claims import HOST_IS_UP_S
from models.fencing import Vitals, get_vitals, record_fencing
from tasks.context import StepContext
from tasks.fencing_hook import fill_in, run_hook
from tasks.workflow import Done

# A worker that lives beats every 5 s, and answers a fencing at the next beat.
SILENCE_S = 12.0
LOOK_AGAIN_S = 0.5


class Proof(StrEnum):
    """How it can be known that a host is dead."""

    FENCED = "fenced"
    HOOK = "hook"
    OVERRIDE = "override"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class Judgement:
    """What proves a host's death, and why nothing less does."""

    proof: Proof
    message: str


def judge(vitals: Vitals, *, host: str, has_hook: bool, is_confirmed: bool) -> Judgement:
    """Decide what proof of death there is.

    An operator's word never counts for a host that was heard of a moment ago: a wrong one is how
    a guest comes to run twice.

    Args:
        vitals: what the records know.
        host: for the message.
        has_hook: whether a fencing hook is configured.
        is_confirmed: whether an operator vouches that the host is off.
    """
    if vitals.fencing_id is not None:
        return Judgement(Proof.FENCED, f"{host} was fenced {vitals.fenced_s:.0f} s ago.")
    is_silent = vitals.heard_s is None or vitals.heard_s > HOST_IS_UP_S
    if is_confirmed and is_silent:
        return Judgement(Proof.OVERRIDE, f"{host} is silent, and an operator says it is off.")
    if has_hook:
        return Judgement(Proof.HOOK, f"The fencing hook has to switch {host} off.")
    heard = "never" if vitals.heard_s is None else f"{vitals.heard_s:.0f} s ago"
    if is_confirmed:
        return Judgement(
            Proof.NONE,
            f"Host {host} was heard of {heard}, so it is not dead, whatever anybody says, and "
            "there is no fencing hook to switch it off.",
        )
    return Judgement(
        Proof.NONE,
        f"Nothing proves that host {host} is dead: its worker was heard of {heard}, there is no "
        "fencing hook, and nobody vouches for it.",
    )


def fence_host(context: StepContext) -> Done:
    """Make sure that the host is off, and close it: by the fencing hook, or by an operator's word.

    Queue: control; milliseconds, or as long as the fencing hook takes.
    Idempotency: a host that is fenced and has not come back is not fenced again.
    Undo: none; a host that is off stays closed until it has come back.
    On crash: the hook is run again; it must end well for a host that is off already.
    Retries: none; a hook that has failed is a person's business.
    """
    operation = context.operation
    host = str(operation.src_host)
    vitals = context.database.run(partial(get_vitals, host=host))
    words = operation.params["spec"].get("confirmed_dead")
    hook = context.fencing_hook
    judgement = judge(vitals, host=host, has_hook=hook is not None, is_confirmed=words is not None)
    context.note(judgement.message)
    if judgement.proof is Proof.FENCED:
        return Done({"fencing_id": str(vitals.fencing_id), "proof": judgement.proof})
    if judgement.proof is Proof.NONE:
        raise NotFenced(judgement.message, {"host": host, "heard_s": vitals.heard_s})
    output = None
    if judgement.proof is Proof.HOOK and hook is not None:
        argv = fill_in(hook, host=host, address=vitals.address)
        context.progress(0.0, f"{hook.name} switches {host} off")
        output = run_hook(hook, argv, host=host, check=context.assert_owned)
    context.midway()

    def commit(session: Session) -> None:
        record_fencing(
            session,
            operation_id=operation.id,
            host=host,
            proof=judgement.proof,
            hook=hook.name if hook is not None and judgement.proof is Proof.HOOK else None,
            output=output,
            requested_by=operation.requested_by,
            reason=words or operation.reason,
        )

    return Done({"fencing_id": str(operation.id), "proof": judgement.proof}, commit)


def confirm_silence(context: StepContext) -> Done:
    """Give a worker that lives in spite of the fencing the time to say so.

    Queue: control; milliseconds for a host that was silent before, else 12 s.
    Idempotency: only looks.
    Undo: none.
    On crash: looks again.
    Retries: none.
    """
    host = str(context.operation.src_host)
    fencing_id = context.details["fence_host"]["fencing_id"]
    while True:
        vitals = context.database.run(partial(get_vitals, host=host))
        if str(vitals.fencing_id) != fencing_id:
            raise FencingFailed(
                f"Host {host} lives: its worker has answered since it was fenced.",
                {"host": host, "hint": "The fencing hook does not switch this host off."},
            )
        waited_s = vitals.fenced_s or 0.0
        was_silent = vitals.heard_before_s is None or vitals.heard_before_s > HOST_IS_UP_S
        if was_silent or waited_s >= SILENCE_S:
            context.midway()
            return Done({"waited_s": round(waited_s, 1)})
        context.progress(waited_s / SILENCE_S, f"waiting whether {host} is heard of again")
        context.checkpoint()
        time.sleep(LOOK_AGAIN_S)
