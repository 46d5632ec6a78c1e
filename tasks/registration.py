"""Makes Celery tasks of workflows, requests, queries and chores; names are fixed strings."""

import inspect
from collections.abc import Callable
from typing import Any
from uuid import UUID

import structlog
from celery import Celery, Task
from celery.exceptions import Ignore
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from innkeeper.contract import (
    HOST_DRAIN,
    HOST_EVACUATE,
    HOST_EVACUATION_PLAN,
    IMAGE_PREWARM,
    SYSTEM_PUBLIC_KEY,
)
from innkeeper.errors import InnkeeperError, InternalError, InvalidRequest, NotFound
from models.refusal import find_refusal, record_refusal
from tasks.catalogue import WORKFLOWS
from tasks.crashpoints import crash_point
from tasks.engine import Engine, Verdict
from tasks.evacuation_plan import plan_evacuation
from tasks.guest_data import refuse_unreadable
from tasks.own_queue import OwnQueue, StepTask
from tasks.queries import QUERIES, Answer
from tasks.requests import ACCEPT, Accept, Envelope, find_repeated
from tasks.runner import run_step
from tasks.workflow import StepSpec, Workflow, task_name

log = structlog.get_logger(__name__)

REQUEST_NOTES = """
    Queue: control; a few milliseconds.
    Idempotency: the task id is the operation's id; a second delivery rings the first's bell, and
        is refused where the first was.
    Undo: none; what was not accepted was not written.
    On crash: the sweeper rings for every operation that was written.
    Retries: none; the caller sends again, with the same id or idempotency key.
"""

SUBJECTS = {kind: f"innkeeper.instance.{kind}" for kind in ACCEPT} | {
    "prewarm": IMAGE_PREWARM,
    "evacuate": HOST_EVACUATE,
    "drain": HOST_DRAIN,
}


def register_tasks(
    app: Celery, engine: Callable[[], Engine], own_queue: OwnQueue | None = None
) -> None:
    """Register every task of this release.

    Args:
        app: the Celery application.
        engine: returns this process's engine; asked when a task runs, so that programs that only
            publish or look need none.
        own_queue: the worker's way to itself; None for programs that are no worker.
    """
    way = own_queue or OwnQueue()
    for workflow in WORKFLOWS:
        for step in workflow.steps:
            _register_step(app, engine, workflow, step, way)
    for kind in ACCEPT:
        _register_request(app, engine, kind)
    for name, query in QUERIES.items():
        _register_query(app, engine, name, query)
    _register_evacuation_plan(app, engine)
    _register_public_key(app, engine)


def _register_step(
    app: Celery,
    engine: Callable[[], Engine],
    workflow: Workflow,
    step: StepSpec,
    own_queue: OwnQueue,
) -> None:
    def run(self: StepTask, operation_id: str, position: int, **_: Any) -> None:
        parts = engine()
        verdict = run_step(
            parts, UUID(operation_id), position, goes_on_here=self.goes_on_here(position + 1)
        )
        if verdict is Verdict.IGNORE:
            raise Ignore

    for is_undo in (False, True) if step.undo is not None else (False,):
        body = step.undo if is_undo else step.do
        task = app.task(
            name=task_name(workflow.kind, step.name, is_undo=is_undo),
            base=StepTask,
            bind=True,
            own_queue=own_queue,
            ignore_result=True,
            shared=False,
        )(_copy(run, name=step.name, doc=inspect.getdoc(body)))
        task.__doc__ = inspect.getdoc(step.do)


def _copy(function: Callable[..., Any], *, name: str, doc: str | None) -> Callable[..., Any]:
    """Give each task a function object of its own, for Celery's registry and for tracebacks."""

    def body(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    body.__name__, body.__doc__ = name, doc
    return body


def _register_request(app: Celery, engine: Callable[[], Engine], kind: str) -> None:
    accept = ACCEPT[kind]

    def receive(
        self: Task,
        idempotency_key: str | None = None,
        requested_by: str | None = None,
        reason: str | None = None,
        call: str = "",
        **fields: Any,
    ) -> None:
        parts = engine()
        task_id = UUID(self.request.id)
        envelope = Envelope(
            task_id,
            idempotency_key,
            requested_by,
            reason,
            call,
            tls_rule=parts.tls_rule,
            migration_defaults=parts.migration_defaults,
        )

        def opened_and_accepted(
            session: Session, envelope: Envelope, fields: dict[str, Any]
        ) -> UUID | None:
            refuse_unreadable(parts.keyring, fields)
            return accept(session, envelope, fields)

        def work(session: Session) -> tuple[UUID | InnkeeperError, bool]:
            known = find_repeated(session, envelope, kind, fields) or find_refusal(
                session, task_id, call
            )
            answer = known or _accept_or_refuse(session, opened_and_accepted, envelope, fields)
            crash_point(f"request.{kind}", "accepting")
            return answer, known is None and answer == task_id

        try:
            answer, is_new = parts.database.run(work)
        except InnkeeperError as exc:
            _refuse(app, task_id, exc)
        except SQLAlchemyError:
            log.exception("request not accepted", task=str(task_id))
            _refuse(app, task_id, InternalError("The request could not be written; send it again."))
        except (TypeError, ValueError) as exc:
            _refuse(app, task_id, InvalidRequest(f"The request is malformed: {exc}."))
        else:
            if isinstance(answer, InnkeeperError):
                _refuse(app, task_id, answer)
                return
            crash_point(f"request.{kind}", "accepted")
            has_steps = parts.bells.ring(answer)
            # One that was known may have ended, and this call's task id may be new to it.
            if not (has_steps and is_new):
                parts.bells.publish_outcome(answer)

    summary = (inspect.getdoc(accept) or f"Take on a {kind}.").splitlines()[0]
    receive.__doc__ = f"{summary}\n{REQUEST_NOTES}"
    receive.__name__ = kind
    app.task(
        name=SUBJECTS[kind],
        bind=True,
        ignore_result=True,
        shared=False,
        throws=(InnkeeperError,),
    )(receive)


def _accept_or_refuse(
    session: Session, accept: Accept, envelope: Envelope, fields: dict[str, Any]
) -> UUID | InnkeeperError:
    """Take a request on, or write down in the same transaction that it was refused.

    The caller is told of a refusal and goes on; a copy of the message that comes later, when the
    guest is free again, must not do what nobody waits for any more.
    """
    try:
        with session.begin_nested():
            known = accept(session, envelope, fields)
    except InvalidRequest:
        # It will never be anything else.
        raise
    except InnkeeperError as exc:
        # By it the caller knows the answer to this call from the one to an earlier one.
        error = exc.with_details(call=envelope.call) if envelope.call else exc
        record_refusal(session, envelope.operation_id, envelope.call, error)
        return error
    return known or envelope.operation_id


def _refuse(app: Celery, task_id: UUID, error: InnkeeperError) -> None:
    """Give the caller the typed error under the task's id, and Flower a failed task."""
    app.backend.store_result(str(task_id), error, "FAILURE")
    raise error


def _register_query(
    app: Celery, engine: Callable[[], Engine], name: str, query: Callable[..., Answer]
) -> None:
    def answer(**fields: Any) -> Answer:
        try:
            inspect.signature(query).bind(None, **fields)
        except TypeError as exc:
            raise InvalidRequest(f"{name}: {exc}.") from None
        return engine().database.run(lambda session: query(session, **fields))

    answer.__name__, answer.__doc__ = query.__name__, inspect.getdoc(query)
    # Every look of every client would drown the operations in Flower.
    app.task(
        name=name, ignore_result=False, shared=False, send_events=False, throws=(InnkeeperError,)
    )(answer)


def _register_evacuation_plan(app: Celery, engine: Callable[[], Engine]) -> None:
    def evacuation_plan(session: Session, *, host: str) -> Answer:
        """Return what an evacuation of a host would do.

        Queue: control; milliseconds.
        Idempotency: only reads.
        Undo: none.
        On crash: ask again.
        Retries: none.
        """
        plan = plan_evacuation(session, host, has_hook=engine().fencing_hook is not None)
        return plan.model_dump(mode="json")

    _register_query(app, engine, HOST_EVACUATION_PLAN, evacuation_plan)


def _register_public_key(app: Celery, engine: Callable[[], Engine]) -> None:
    def public_key(**_: Any) -> dict[str, str]:
        """Return the public key to which callers seal secrets.

        Queue: control; a millisecond.
        Idempotency: only reads.
        Undo: none.
        On crash: ask again.
        Retries: none.
        """
        key = engine().keyring.public_key
        if key is None:
            raise NotFound(
                "The control worker has no key for secrets.",
                {
                    "what": "public key",
                    "name": "",
                    "hint": "Set secret_key_file; make one: python -m workers new-secret-key FILE.",
                },
            )
        return {"public_key": key}

    app.task(
        name=SYSTEM_PUBLIC_KEY,
        ignore_result=False,
        shared=False,
        send_events=False,
        throws=(InnkeeperError,),
    )(public_key)
