"""Prefetch: bring the image of instantly booted guests while they run; nobody is held meanwhile."""

import time
from typing import Any

from sqlalchemy.orm import Session

from innkeeper.errors import FetchFailed, ImageError, SourceLost, from_wire
from models.operation import Operation
from models.queries import record_event
from models.remote_disks import Wanted, condemn, is_still_needed
from tasks.base_image import fetch_base, record_base
from tasks.context import StepContext, get_pool
from tasks.workflow import Done, On, StepSpec, Workflow

LOOK_EVERY_S = 5.0
# A source may be away for a long time, and each look at it counts as a failure.
MOST_FAILURES = 100_000


class _NotNeeded(Exception):
    """No guest reads from the source any more."""


def fetch_for_guests(context: StepContext) -> Done:
    """Bring the image into the cache, as long as a guest still needs it.

    Queue: host.<dst>; as long as the transfer takes, within the host's hydration_mib_s.
    Idempotency: the cache is addressed by digest; one fetch at a time per digest and pool.
    Undo: none; a cached image is nobody's in particular and ages by itself.
    On crash: a partial download is continued where the source can.
    Retries: fetch_failed, with back-off, until the deadline; never bytes that were not promised.
    """
    wanted = _wanted(context.operation)
    pool = get_pool(context.host, wanted.pool)
    next_look_s = 0.0

    def check() -> None:
        nonlocal next_look_s
        context.checkpoint()
        if time.monotonic() < next_look_s:
            return
        next_look_s = time.monotonic() + LOOK_EVERY_S
        if not context.database.run(lambda session: is_still_needed(session, wanted)):
            raise _NotNeeded

    try:
        check()
        context.midway()
        image = fetch_base(context, pool, wanted, check=check)
    except _NotNeeded:
        return Done({"is_needed": False})
    return Done(
        {"is_needed": True, "sha256": image.digest, "path": str(image.path)},
        lambda session: record_base(session, image, wanted),
    )


def _wanted(operation: Operation) -> Wanted:
    params = operation.params
    return Wanted(
        host=str(operation.dst_host),
        pool=params["pool"],
        url=params["url"],
        sha256=params["sha256"],
        sha512=params["sha512"],
    )


def _succeed(session: Session, operation: Operation) -> dict[str, Any]:
    del session
    return {"url": operation.params["url"], "host": operation.dst_host}


def is_condemning(error: dict[str, Any] | None) -> bool:
    """Tell whether an error says that a source's bytes must not be used, now or later."""
    found = from_wire(error or {})
    return isinstance(found, ImageError) and not isinstance(found, FetchFailed | SourceLost)


def _fail(session: Session, operation: Operation) -> None:
    """Condemn what was read from the source, if it was not the promised image."""
    error = operation.error or {}
    if not is_condemning(error):
        return
    for instance_id in condemn(session, _wanted(operation), error):
        record_event(
            session,
            "instance.image_condemned",
            instance_id=instance_id,
            operation_id=operation.id,
            host=operation.dst_host,
            data={"code": error.get("code")},
        )


PREFETCH = Workflow(
    kind="prefetch",
    steps=(
        StepSpec(
            "fetch_for_guests",
            On.DST,
            fetch_for_guests,
            is_harmless=True,
            max_failures=MOST_FAILURES,
        ),
    ),
    on_success=_succeed,
    on_failure=_fail,
)
