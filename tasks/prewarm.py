"""Pre-warm: an image is brought into the caches of many hosts, one after the other.

An operation without a guest. Each host is a step; a host that cannot have the image says why and
holds nobody else up, and one that is down is passed over. Each fetches from those before it, if
they serve their caches, so the image's source is asked once.
"""

from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from innkeeper.errors import FencingError, InnkeeperError, Interrupted, NoHostFits, NotFound
from innkeeper.image_types import PrewarmSpec
from innkeeper.states import StepState
from models.claims import HostSnapshot, list_host_snapshots
from models.operation import Operation, Step
from models.operations import PlannedStep
from tasks.context import StepContext, get_pool
from tasks.image_holding import Origin, hold_image, record_held
from tasks.placement import Refusal
from tasks.workflow import Done, On, StepSpec, Workflow

MOST_TRIES = 3
STEP = "warm_cache"


def warm_cache(context: StepContext) -> Done:
    """Bring an image into a host's cache.

    Queue: host.<host>; milliseconds where the image is, seconds to minutes where it is not.
    Idempotency: the cache is addressed by digest; one fetch at a time per digest and pool.
    Undo: none; a cached image is nobody's in particular and ages by itself.
    On crash: a partial download is continued.
    Retries: fetch_failed, with back-off, three times; what fails for good is this host's outcome.
    """
    try:
        return _warm(context)
    except (Interrupted, FencingError):
        raise
    except InnkeeperError as error:
        if error.retryable and context.step.failures + 1 < MOST_TRIES:
            raise
        context.note(f"the image is not cached: {error.message}")
        return Done({"outcome": "error", "code": error.code, "message": error.message})


def _warm(context: StepContext) -> Done:
    spec = PrewarmSpec.model_validate(context.operation.params["spec"])
    pool = get_pool(context.host, spec.pool)
    host = context.host.name

    def show(done_bytes: int, total_bytes: int | None) -> None:
        fraction = done_bytes / total_bytes if total_bytes else 0.0
        context.progress(
            fraction,
            f"{host} fetches {done_bytes / 2**20:.0f} MiB",
            done_bytes=done_bytes,
            total_bytes=total_bytes,
        )

    origin = Origin(url=spec.image, sha256=spec.sha256)
    image = hold_image(context, pool, origin, spec.image_format, on_progress=show)
    context.midway()
    place = pool.place_on(host)
    return Done(
        {
            "outcome": "cached" if image.was_fetched else "existing",
            "sha256": image.digest,
            "size_bytes": image.size_bytes,
        },
        lambda session: record_held(session, place, image, origin),
    )


def choose_hosts(session: Session, spec: PrewarmSpec) -> tuple[list[PlannedStep], list[Refusal]]:
    """Return a step for each host that can be asked, and why not the others.

    Raises:
        NotFound: a named host does not exist.
        NoHostFits: none can be asked.
    """
    hosts = {host.name: host for host in list_host_snapshots(session)}
    names = spec.hosts
    if names is None:
        names = tuple(
            host.name for host in hosts.values() if host.is_enabled and spec.pool in host.pools
        )
    plan, refusals = [], []
    for name in dict.fromkeys(names):
        if name not in hosts:
            raise NotFound(f"There is no host {name!r}.", {"what": "host", "name": name})
        refusal = _refuse(hosts[name], spec.pool)
        if refusal is None:
            plan.append(PlannedStep(STEP, name))
        else:
            refusals.append(refusal)
    if not plan:
        why = " ".join(refusal.message for refusal in refusals) or "There are no hosts."
        raise NoHostFits(
            f"No host can take the image. {why}",
            {"refusals": [refusal.to_wire() for refusal in refusals]},
        )
    return plan, refusals


def _refuse(host: HostSnapshot, pool: str) -> Refusal | None:
    """Refuse a host that cannot be asked now; a disabled one may be, if it is named."""
    if pool not in host.pools:
        return Refusal(host.name, "no_pool", f"{host.name} has no storage pool {pool!r}.")
    if not host.is_up:
        return Refusal(
            host.name, "host_down", f"{host.name} is down: its worker's heartbeat is old."
        )
    return None


def _succeed(session: Session, operation: Operation) -> dict[str, Any]:
    """Return what became of each host; that one has failed fails nobody else."""
    steps = session.scalars(
        select(Step).where(Step.operation_id == operation.id).order_by(Step.position)
    )
    outcomes = [
        *(_outcome(step) for step in steps),
        *({**refusal, "outcome": "error"} for refusal in operation.refusals),
    ]
    counted = [outcome["outcome"] for outcome in outcomes]
    return {
        "operation_id": str(operation.id),
        "pool": operation.params["spec"].get("pool", "local"),
        "sha256": next((o["sha256"] for o in outcomes if o.get("sha256")), None),
        "hosts": outcomes,
        "cached": counted.count("cached"),
        "existing": counted.count("existing"),
        "errors": counted.count("error"),
    }


def _outcome(step: Step) -> dict[str, Any]:
    if step.state == StepState.DONE:
        return {"host": step.host, **step.detail}
    error = step.error or {}
    return {
        "host": step.host,
        "outcome": "error",
        "code": error.get("code"),
        "message": error.get("message"),
    }


PREWARM = Workflow(
    kind="prewarm",
    steps=(StepSpec(STEP, On.DST, warm_cache, is_harmless=True, may_be_passed_over=True),),
    on_success=_succeed,
    on_failure=lambda _session, _operation: None,
)
