"""Foretells a drain: which guest would go where as things are, without claiming anything."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from uuid import UUID

from sqlalchemy.orm import Session

from innkeeper.drain_types import DrainPlan, DrainPolicy, PlannedMove
from innkeeper.errors import NotFound
from models.claims import HostSnapshot, list_host_snapshots
from models.drains import GuestOnHost, list_guests
from models.host import Host
from models.instance import Instance
from models.server_groups import GroupStand
from tasks.choosing import demand_of
from tasks.drain_policy import Case, Stand, judge
from tasks.placement import Demand, rank

ACTIONS = {Stand.TO_MOVE: "move", Stand.WAITS: "wait", Stand.STAYS: "stay"}


@dataclass(frozen=True, slots=True)
class Traveller:
    """A guest that is to leave, and what it needs."""

    guest: GuestOnHost
    case: Case
    demand: Demand


def plan_drain(session: Session, host: str, policy: DrainPolicy) -> DrainPlan:
    """Return what a drain would do as things are.

    Raises:
        NotFound: there is no such host.
    """
    row = session.get(Host, host)
    if row is None:
        raise NotFound(f"There is no host {host!r}.", {"what": "host", "name": host})
    guests = list_guests(session, host)
    cases = {case.instance_id: case for case in judge(host, guests, [], {})}
    travellers = [
        Traveller(
            guest,
            cases[guest.id],
            demand_of(
                session,
                session.get_one(Instance, guest.id),
                may_split_group=policy.migration.may_split_group,
                keeps_group=False,
            ),
        )
        for guest in guests
    ]
    return DrainPlan(
        host=host,
        concurrency=policy.concurrency or row.max_migrations_out + 1,
        guests=foretell(host, travellers, list_host_snapshots(session)),
    )


def foretell(
    src: str, travellers: Sequence[Traveller], hosts: Sequence[HostSnapshot]
) -> list[PlannedMove]:
    """Move the guests one after the other on paper.

    Args:
        src: the host that they leave.
        travellers: those that are there, by name.
        hosts: every host as it is.
    """
    stand = {host.name: host for host in hosts}
    moved: dict[UUID, str] = {}
    plan = []
    for each in travellers:
        case = each.case
        move = PlannedMove(
            instance_id=case.instance_id,
            instance=case.name,
            state=each.guest.state,
            action=ACTIONS.get(case.stand, "stay"),
            why=case.why,
        )
        if case.stand is Stand.TO_MOVE:
            demand = replace(each.demand, group=_regroup(src, each, travellers, moved))
            names, refusals = rank(stand.values(), demand, wanted=None, ignored=frozenset({src}))
            if names:
                moved[case.instance_id] = names[0]
                stand[names[0]] = _load(stand[names[0]], demand)
                move = move.model_copy(update={"dst": names[0]})
            else:
                reasons = [each.to_wire() for each in refusals if each.code != "ignored"]
                why = " ".join(reason["message"] for reason in reasons) or "There is no other host."
                move = move.model_copy(update={"action": "refuse", "why": why, "refusals": reasons})
        plan.append(move)
    return plan


def _load(host: HostSnapshot, demand: Demand) -> HostSnapshot:
    """Return a host with one guest more."""
    claimed_gib = Counter(host.disk_claimed_gib_by_pool)
    claimed_gib.update(demand.disk_gib)
    return replace(
        host,
        vcpus_claimed=host.vcpus_claimed + demand.vcpus,
        memory_claimed_mib=host.memory_claimed_mib + demand.memory_mib,
        disk_claimed_gib=host.disk_claimed_gib + sum(demand.disk_gib.values()),
        disk_claimed_gib_by_pool=dict(claimed_gib),
        instances=host.instances + 1,
    )


def _regroup(
    src: str, me: Traveller, travellers: Sequence[Traveller], moved: dict[UUID, str]
) -> GroupStand | None:
    """Return where the others of a guest's group are once those before it have moved."""
    group = me.demand.group
    if group is None:
        return None
    others = dict(group.others)
    for each in travellers:
        is_other = each.demand.group is not None and each.demand.group.name == group.name
        if each is me or not is_other or each.guest.id not in moved:
            continue
        dst = moved[each.guest.id]
        others[src] = others.get(src, 1) - 1
        others[dst] = others.get(dst, 0) + 1
    return replace(group, others={host: count for host, count in others.items() if count > 0})
