"""Which guests of a dead host can run elsewhere, and where: looked at, refused, taken."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any
from uuid import UUID

from sqlalchemy import update
from sqlalchemy.orm import Session

from innkeeper.errors import HostUnsuitable, InnkeeperError, StateConflict
from innkeeper.states import InstanceState
from models.children import child_id
from models.claims import list_host_snapshots
from models.fencing import Resident, require_absent
from models.instance import Instance
from models.operation import Operation
from models.operations import NewOperation, append_steps, insert_operation, take_instance
from tasks.choosing import choose_and_claim, demand_of
from tasks.placement import Demand, rank

KIND = "evacuate_instance"
GUEST_S = 600.0
# A guest of unknown place may run on the other host of its migration; one that is being made has
# nothing yet that could be moved.
EVACUABLE = frozenset(
    {InstanceState.ACTIVE, InstanceState.PAUSED, InstanceState.STOPPED, InstanceState.ERROR}
)


def find_refusal(guest: Resident, *, host: str, pools: Mapping[str, Any]) -> InnkeeperError | None:
    """Return why a guest has to stay on its dead host; None when nothing speaks against a move.

    Args:
        guest: the guest.
        host: the dead host.
        pools: what its row says of its pools.
    """
    if guest.state not in EVACUABLE:
        hint = (
            "Nobody knows whether it runs, and where: see the operation that left it so."
            if guest.state == InstanceState.UNKNOWN
            else "Delete it, and make it anew."
        )
        return StateConflict(
            f"Instance {guest.name} is {guest.state}; it is left on {host}.",
            {"expected": sorted(EVACUABLE), "actual": guest.state, "hint": hint},
        )
    return next(
        filter(None, (_refuse_pool(guest, host, name, pools) for name in guest.pools)), None
    )


def _refuse_pool(
    guest: Resident, host: str, name: str, pools: Mapping[str, Any]
) -> HostUnsuitable | None:
    pool = pools.get(name) or {}
    if not pool.get("shared"):
        whose = "The disks" if len(guest.pools) == 1 else "Disks"
        return HostUnsuitable(
            f"{whose} of {guest.name} are in pool {name!r} of {host}, which no other host "
            "sees; it is left there.",
            {
                "host": host,
                "pool": name,
                "hint": f"Bring {host} back, or restore the guest from a backup under a new name.",
            },
        )
    if not pool.get("id"):
        return HostUnsuitable(
            f"Host {host} has never told which directory its pool {name!r} is, so that "
            f"nothing proves that another one is the same; {guest.name} is left there.",
            {"host": host, "pool": name, "hint": f"Bring {host} back once."},
        )
    return None


def identify_pools(guest: Resident, pools: Mapping[str, Any]) -> dict[str, str]:
    """Return which directories a guest's pools are, by name; find_refusal has passed them."""
    return {name: pools[name]["id"] for name in guest.pools}


def begin_move(
    session: Session,
    parent: Operation,
    guest: Resident,
    *,
    fencing_id: UUID,
    pool_ids: dict[str, str],
) -> UUID:
    """Take a guest for its move: write the operation, choose a host, claim there.

    Args:
        session: an open transaction; nothing is left of it after an exception.
        parent: the evacuation.
        guest: the guest.
        fencing_id: the proof that its host is dead.
        pool_ids: which directories its disks are in, by pool.

    Returns:
        The operation to ring.

    Raises:
        Busy, StateConflict, NoHostFits, HostReturned: nothing was written.
    """
    # Not at the head: the catalogue knows this module by its workflow.
    from tasks.evacuate_instance import EVACUATE_INSTANCE

    src = str(parent.src_host)
    require_absent(session, fencing_id, src)
    new = NewOperation(
        id=child_id(parent.id, guest.instance_id),
        kind=KIND,
        params={"fencing_id": str(fencing_id), "pool_ids": pool_ids},
        request_digest=str(parent.id),
        deadline_s=GUEST_S,
        requested_by=parent.requested_by,
        reason=parent.reason,
        src_host=src,
        parent_id=parent.id,
    )
    insert_operation(session, new, [])
    instance = take_instance(session, guest.instance_id, new, allowed=EVACUABLE)
    dst, refusals = choose_and_claim(
        session,
        instance=instance,
        operation_id=new.id,
        demand=_demand_of(session, instance, pool_ids),
        wanted=None,
        ignored=frozenset({src}),
    )
    session.execute(
        update(Operation)
        .where(Operation.id == new.id)
        .values(dst_host=dst, refusals=[refusal.to_wire() for refusal in refusals])
    )
    plan = EVACUATE_INSTANCE.plan(src=src, dst=dst)
    append_steps(session, new.id, plan, first_position=0)
    return new.id


def foresee(
    session: Session, guest: Resident, *, host: str, pools: Mapping[str, Any]
) -> dict[str, Any]:
    """Return what an evacuation would do with a guest, as ``EvacuationGuest`` has it."""
    told = {"instance_id": str(guest.instance_id), "name": guest.name, "state": guest.state}
    refusal = find_refusal(guest, host=host, pools=pools)
    if refusal is not None:
        return {**told, "action": "leave", "code": refusal.code, "message": refusal.message}
    instance = session.get_one(Instance, guest.instance_id)
    names, refusals = rank(
        list_host_snapshots(session),
        _demand_of(session, instance, identify_pools(guest, pools)),
        wanted=None,
        ignored=frozenset({host}),
    )
    if not names:
        why = " ".join(each.message for each in refusals if each.host != host)
        return {
            **told,
            "action": "leave",
            "code": "no_host_fits",
            "message": f"No host fits. {why}".strip(),
        }
    action = "start" if guest.state == InstanceState.ACTIVE else "define"
    busy = f"It is held by a {guest.verb}, which is ended first." if guest.verb else None
    return {**told, "action": action, "dst": names[0], "message": busy}


def _demand_of(session: Session, instance: Instance, pool_ids: Mapping[str, str]) -> Demand:
    # The others of an affinity group are on the dead host as well.
    demand = demand_of(session, instance, may_split_group=True)
    return replace(demand, pool_ids=pool_ids)
