"""Accepts requests: validate, then in one transaction write the operation and take the guest."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy import insert, select, text, update
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.orm import Session

from innkeeper.drain_types import DrainPolicy
from innkeeper.errors import (
    AlreadyExists,
    Busy,
    Conflict,
    InvalidRequest,
    NotFound,
    PrecheckFailed,
    StateConflict,
)
from innkeeper.evacuation_types import EvacuationSpec
from innkeeper.image_types import PrewarmSpec
from innkeeper.sealing import without_sealing
from innkeeper.states import LIVE_OPERATION_STATES, InstanceState
from innkeeper.types import (
    InstanceSpec,
    MigrationDefaults,
    MigrationPolicy,
    RebootPolicy,
    Request,
    StopPolicy,
    parse_request,
)
from models.advisory import lock
from models.drains import find_live_drain
from models.fencing import list_residents
from models.host import Host
from models.hosts import disable_host
from models.instance import Instance
from models.known_image import find_known_image
from models.operation import Migration, Operation, OperationAlias
from models.operations import (
    NewOperation,
    append_steps,
    get_instance_by_reference,
    insert_operation,
    operation_row,
    place_new_instance,
    take_instance,
)
from models.server_groups import join_group
from tasks.catalogue import WORKFLOWS
from tasks.check_migration import DEADLINE_S as CHECK_DEADLINE_S
from tasks.check_migration import MIGRATABLE, end_checked, plan_check
from tasks.choosing import choose_and_claim, demand_of
from tasks.disk_plan import plan_disks, size_gib
from tasks.drain_hosts import get_host_by_name, refuse_silent
from tasks.failed_check import failure
from tasks.guest_domain import refuse_impossible
from tasks.migration_choice import plan_candidates
from tasks.migration_policy import ResolvedPolicy, resolve
from tasks.placement import Refusal
from tasks.prewarm import choose_hosts
from tasks.tls_rule import TlsRule, decide_tls

SPAWN_MARGIN_S = 1800.0
MIGRATE_MARGIN_S = 180.0
VERB_MARGIN_S = 120.0
HYDRATE_MARGIN_S = 4 * 3600.0
EVACUATE_MARGIN_S = 4200.0
EVACUATE_PER_GUEST_S = 60.0
PREWARM_MARGIN_S = 600.0
PREWARM_PER_HOST_S = 1800.0


@dataclass(frozen=True, slots=True)
class Envelope:
    """What comes with every request beside its own fields.

    Args:
        operation_id: the task's id, which the operation gets.
        idempotency_key: the caller's own name for the request.
        requested_by: who asks.
        reason: why.
        tls_rule: the setting by which a migration's wish for TLS is judged.
        call: tells one call with a key from the next one with the same key.
        parent_id: the operation that asks for this one as a part of itself.
        migration_defaults: what this worker's settings say of migrations.
    """

    operation_id: UUID
    idempotency_key: str | None = None
    requested_by: str | None = None
    reason: str | None = None
    call: str = ""
    tls_rule: TlsRule = TlsRule.ALLOWED
    parent_id: UUID | None = None
    migration_defaults: MigrationDefaults = field(default_factory=MigrationDefaults)


Accept = Callable[[Session, Envelope, dict[str, Any]], UUID | None]
"""Takes a request on; returns the operation that it is already, where there is one."""


def digest_request(kind: str, fields: dict[str, Any]) -> str:
    """Return a digest by which a repeated idempotency key is told from a misused one.

    Sealed texts count as equal: the same secret sealed again is another text.
    """
    canonical = json.dumps([kind, without_sealing(fields)], sort_keys=True, default=str)
    return hashlib.sha256(canonical.encode()).hexdigest()


# The comparison with no key at all is never true.
_KNOWN = text(
    "SELECT id, kind, request_digest FROM operations WHERE id = :id OR idempotency_key = :key"
)


def find_repeated(
    session: Session, envelope: Envelope, kind: str, fields: dict[str, Any]
) -> UUID | None:
    """Find the operation that this very request has become already.

    Returns:
        The operation to ring or to answer from again; None for a new request.

    Raises:
        Conflict: the idempotency key, or the task id, belongs to another request.
    """
    # Two deliveries of one request at the same moment must not both find nothing.
    for name in filter(None, (str(envelope.operation_id), envelope.idempotency_key)):
        lock(session, f"request:{name}")
    known = session.execute(
        _KNOWN, {"id": envelope.operation_id, "key": envelope.idempotency_key}
    ).first()
    if known is None:
        return None
    if known.request_digest != digest_request(kind, fields):
        raise Conflict(
            "The idempotency key was used for another request.",
            {
                "operation_id": str(known.id),
                "kind": known.kind,
                "hint": "Use a fresh key for a new request.",
            },
        )
    if known.id != envelope.operation_id:
        _make_alias(session, envelope.operation_id, known.id)
    found: UUID = known.id
    return found


def _make_alias(session: Session, task_id: UUID, operation_id: UUID) -> None:
    """Have whoever waits for a task told of an operation's end."""
    session.execute(
        upsert(OperationAlias)
        .values(task_id=task_id, operation_id=operation_id)
        .on_conflict_do_nothing()
    )


def _new(
    envelope: Envelope,
    kind: str,
    fields: dict[str, Any],
    params: dict[str, Any],
    *,
    deadline_s: float,
    src_host: str | None = None,
    dst_host: str | None = None,
    refusals: list[dict[str, Any]] | None = None,
) -> NewOperation:
    return NewOperation(
        id=envelope.operation_id,
        kind=kind,
        params=params,
        request_digest=digest_request(kind, fields),
        deadline_s=deadline_s,
        idempotency_key=envelope.idempotency_key,
        requested_by=envelope.requested_by,
        reason=envelope.reason,
        src_host=src_host,
        dst_host=dst_host,
        refusals=refusals or [],
        parent_id=envelope.parent_id,
    )


def accept_spawn(session: Session, envelope: Envelope, fields: dict[str, Any]) -> None:
    """Take on a spawn: write the guest, choose its host, claim there.

    Raises:
        InvalidRequest, AlreadyExists, Conflict, NoHostFits: nothing was written.
    """
    spec = parse_request(InstanceSpec, fields.get("spec"))
    refuse_impossible(spec)
    image = find_known_image(session, sha256=spec.sha256, sha512=spec.sha512, pool=spec.pool)
    disk_gib = size_gib(plan_disks(spec, image_bytes=image.virtual_size_bytes))
    wire = spec.model_dump(mode="json")
    new = _new(envelope, "spawn", fields, {}, deadline_s=SPAWN_MARGIN_S + spec.boot_timeout_s)
    instance = session.scalars(
        upsert(Instance)
        .values(
            id=uuid4(),
            name=spec.name,
            spec=wire,
            state=InstanceState.BUILDING,
            operation_id=new.id,
            epoch=1,
            pool=spec.pool,
            vcpus=spec.vcpus,
            memory_mib=spec.memory_mib,
            disk_gib=sum(disk_gib.values()),
        )
        .on_conflict_do_nothing(
            index_elements=[Instance.name], index_where=text("state <> 'deleted'")
        )
        .returning(Instance)
        .add_cte(operation_row(new).cte("operation"))
    ).one_or_none()
    if instance is None:
        raise AlreadyExists(
            f"There is an instance {spec.name!r} already.", {"what": "instance", "name": spec.name}
        )
    if spec.group is not None:
        join_group(session, instance, name=spec.group.name, policy=spec.group.policy)
    host, refusals = choose_and_claim(
        session,
        instance=instance,
        operation_id=new.id,
        demand=demand_of(session, instance, image=image, disk_gib=disk_gib),
        wanted=spec.host,
        ignored=frozenset(),
    )
    place_new_instance(
        session,
        instance,
        host=host,
        refusals=[refusal.to_wire() for refusal in refusals],
        steps=WORKFLOWS["spawn"].plan(src=None, dst=host, spec=wire),
    )


def _write_choice(session: Session, operation_id: UUID, host: str, refusals: list[Refusal]) -> None:
    """Write which host was chosen, and why not the others."""
    session.execute(
        update(Operation)
        .where(Operation.id == operation_id)
        .values(dst_host=host, refusals=[refusal.to_wire() for refusal in refusals])
    )


def accept_live_migrate(session: Session, envelope: Envelope, fields: dict[str, Any]) -> None:
    """Take on a live migration: choose the destination and claim there.

    Raises:
        InvalidRequest, NotFound, Busy, StateConflict, PrecheckFailed, NoHostFits: nothing was
            written.
    """
    asked = parse_request(MigrationPolicy, fields.get("policy") or {})
    instance = get_instance_by_reference(session, _reference(fields))
    resolved = _resolve(asked, instance, envelope)
    policy = resolved.policy
    decide_tls(envelope.tls_rule, policy.tls)
    src = instance.host
    if src is None:
        raise StateConflict(
            f"Instance {instance.name} is not on any host.",
            {"expected": sorted(MIGRATABLE), "actual": instance.state.value},
        )
    if policy.dst == src:
        problem = failure(
            "same_host", f"It is on {src} already.", "Name another host, or leave the choice."
        )
        raise PrecheckFailed(
            f"Instance {instance.name} cannot move to {src}: {problem['message']}",
            {"failures": [problem]},
        )
    if policy.dst is not None and session.get(Host, policy.dst) is None:
        raise NotFound(f"There is no host {policy.dst!r}.", {"what": "host", "name": policy.dst})
    new = _new(
        envelope,
        "live_migrate",
        fields,
        resolved.to_params(),
        deadline_s=policy.deadline_s + MIGRATE_MARGIN_S,
        src_host=src,
    )
    insert_operation(session, new, [])
    instance = take_instance(session, instance.id, new, allowed=MIGRATABLE)
    demand = demand_of(session, instance, may_split_group=policy.may_split_group)
    dst, refusals = choose_and_claim(
        session,
        instance=instance,
        operation_id=new.id,
        demand=demand,
        wanted=policy.dst,
        ignored=frozenset({src}),
    )
    _write_choice(session, new.id, dst, refusals)
    session.execute(
        insert(Migration).values(
            operation_id=new.id,
            instance_id=instance.id,
            src_host=src,
            dst_host=dst,
            handover=policy.handover.value,
        )
    )
    plan = WORKFLOWS["live_migrate"].plan(src=src, dst=dst)
    if policy.dst is None:
        plan = plan_candidates(session, plan, src=src, dst=dst, demand=demand)
    append_steps(session, new.id, plan, first_position=0)


def _resolve(asked: MigrationPolicy, instance: Instance, envelope: Envelope) -> ResolvedPolicy:
    return resolve(
        asked,
        instance=MigrationDefaults.model_validate(instance.spec.get("migration") or {}),
        settings=envelope.migration_defaults,
    )


def accept_check_migration(session: Session, envelope: Envelope, fields: dict[str, Any]) -> None:
    """Take on the checks of a live migration: nothing is taken, claimed or moved.

    Raises:
        NotFound, StateConflict: nothing was written.
    """
    asked = parse_request(MigrationPolicy, fields.get("policy") or {})
    instance = get_instance_by_reference(session, _reference(fields))
    policy = _resolve(asked, instance, envelope).policy
    decide_tls(envelope.tls_rule, policy.tls)
    if instance.host is None:
        raise StateConflict(
            f"Instance {instance.name} is not on any host.",
            {"expected": sorted(MIGRATABLE), "actual": instance.state.value},
        )
    if policy.dst is not None and session.get(Host, policy.dst) is None:
        raise NotFound(f"There is no host {policy.dst!r}.", {"what": "host", "name": policy.dst})
    plan, params = plan_check(session, instance, policy)
    new = _new(
        envelope,
        "check_migration",
        fields,
        params,
        deadline_s=CHECK_DEADLINE_S,
        src_host=instance.host,
        dst_host=policy.dst,
    )
    insert_operation(session, new, plan)
    if not plan:
        end_checked(session, new.id)


def _accept_verb(
    kind: str, allowed: frozenset[InstanceState], policy_type: type[Request] | None, base_s: float
) -> Accept:
    """Return the acceptance of a verb that runs on the guest's own host."""

    def accept(session: Session, envelope: Envelope, fields: dict[str, Any]) -> None:
        policy: dict[str, Any] = {}
        grace_s = 0.0
        if policy_type is not None:
            parsed = parse_request(policy_type, fields.get("policy") or {})
            policy = parsed.model_dump(mode="json")
            grace_s = float(policy.get("grace_s", 0.0))
        instance = get_instance_by_reference(session, _reference(fields))
        new = _new(
            envelope,
            kind,
            fields,
            {"policy": policy},
            deadline_s=base_s + grace_s,
            dst_host=instance.host,
        )
        plan = WORKFLOWS[kind].plan(src=None, dst=instance.host)
        insert_operation(session, new, plan)
        taken = take_instance(session, instance.id, new, allowed=allowed)
        if taken.host is None:
            raise StateConflict(
                f"Instance {taken.name} is not on any host.",
                {"expected": sorted(allowed), "actual": taken.state.value},
            )

    return accept


def accept_prewarm(session: Session, envelope: Envelope, fields: dict[str, Any]) -> None:
    """Take on a pre-warm: one step for each host that can be asked.

    Raises:
        InvalidRequest, NotFound, NoHostFits: nothing was written.
    """
    spec = parse_request(PrewarmSpec, fields.get("spec"))
    plan, refusals = choose_hosts(session, spec)
    new = _new(
        envelope,
        "prewarm",
        fields,
        {"spec": spec.model_dump(mode="json")},
        deadline_s=PREWARM_MARGIN_S + PREWARM_PER_HOST_S * len(plan),
        refusals=[refusal.to_wire() for refusal in refusals],
    )
    insert_operation(session, new, plan)


def accept_evacuate(session: Session, envelope: Envelope, fields: dict[str, Any]) -> None:
    """Take on the evacuation of a host; whether it is dead is found out by its first step.

    Raises:
        InvalidRequest, NotFound, Busy: nothing was written.
    """
    spec = parse_request(EvacuationSpec, fields.get("spec"))
    if spec.confirmed_dead is not None and not envelope.requested_by:
        raise InvalidRequest(
            "Who vouches for a host's death must say who he is.",
            {"problems": [{"path": "requested_by", "message": "a name is needed"}]},
        )
    lock(session, f"evacuate:{spec.host}")
    if session.get(Host, spec.host) is None:
        raise NotFound(f"There is no host {spec.host!r}.", {"what": "host", "name": spec.host})
    other = session.scalars(
        select(Operation.id).where(
            Operation.kind == "evacuate",
            Operation.src_host == spec.host,
            Operation.state.in_(LIVE_OPERATION_STATES),
        )
    ).first()
    if other is not None:
        raise Busy(
            f"Host {spec.host} is being evacuated already.",
            {"operation_id": str(other), "verb": "evacuate"},
        )
    guests = len(list_residents(session, spec.host))
    new = _new(
        envelope,
        "evacuate",
        fields,
        {"spec": spec.model_dump(mode="json")},
        deadline_s=EVACUATE_MARGIN_S + EVACUATE_PER_GUEST_S * guests,
        src_host=spec.host,
    )
    insert_operation(session, new, WORKFLOWS["evacuate"].plan(src=spec.host, dst=None))


def accept_drain(session: Session, envelope: Envelope, fields: dict[str, Any]) -> UUID | None:
    """Take on a drain: no new guest for the host, and a plan for those that are there.

    Returns:
        The drain that empties the host already; None when this one begins.

    Raises:
        InvalidRequest, NotFound, HostUnsuitable: nothing was written.
    """
    policy = parse_request(DrainPolicy, fields.get("policy") or {})
    decide_tls(envelope.tls_rule, policy.migration.tls)
    host = get_host_by_name(session, fields)
    lock(session, f"drain:{host.name}")
    running = find_live_drain(session, host.name)
    if running is not None:
        _make_alias(session, envelope.operation_id, running)
        return running
    refuse_silent(session, host.name)
    new = _new(
        envelope,
        "drain",
        fields,
        {"policy": policy.model_dump(mode="json", exclude_unset=True)},
        deadline_s=policy.deadline_s,
        src_host=host.name,
    )
    insert_operation(session, new, WORKFLOWS["drain"].plan(src=host.name, dst=None))
    disable_host(
        session,
        host.name,
        kind="drain",
        disabled_by=envelope.requested_by,
        reason=f"is drained: {envelope.reason}" if envelope.reason else "is drained",
    )
    return None


def _reference(fields: dict[str, Any]) -> str:
    reference = fields.get("instance")
    if not isinstance(reference, str) or not reference:
        raise InvalidRequest(
            "The request names no instance.",
            {"problems": [{"path": "instance", "message": "a name or a UUID is needed"}]},
        )
    return reference


_S = InstanceState
STARTABLE = frozenset({_S.STOPPED, _S.ERROR})
STOPPABLE = frozenset({_S.ACTIVE, _S.PAUSED, _S.ERROR, _S.STOPPED})
# A guest of unknown place is not touched before both hosts agree.
DELETABLE = frozenset(set(_S) - {_S.DELETED, _S.BUILDING, _S.UNKNOWN})
HYDRATABLE = frozenset({_S.ACTIVE, _S.PAUSED, _S.STOPPED})

ACCEPT: dict[str, Accept] = {
    "spawn": accept_spawn,
    "live_migrate": accept_live_migrate,
    "check_migration": accept_check_migration,
    "start": _accept_verb("start", STARTABLE, None, VERB_MARGIN_S),
    "stop": _accept_verb("stop", STOPPABLE, StopPolicy, VERB_MARGIN_S),
    "reboot": _accept_verb("reboot", frozenset({_S.ACTIVE}), RebootPolicy, VERB_MARGIN_S),
    "delete": _accept_verb("delete", DELETABLE, None, VERB_MARGIN_S),
    "hydrate": _accept_verb("hydrate", HYDRATABLE, None, HYDRATE_MARGIN_S),
    "prewarm": accept_prewarm,
    "evacuate": accept_evacuate,
    "drain": accept_drain,
}
