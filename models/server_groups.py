"""Joining a server group, and where its members are.

Whoever places a member holds the group's row until the transaction ends, so that two members never
decide on the same picture. Locks are taken in the order guest, group, host.
"""

from dataclasses import dataclass, field
from uuid import UUID

from sqlalchemy import select, text
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from innkeeper.errors import Conflict
from innkeeper.types import GroupMember, GroupView
from models.instance import Instance
from models.server_group import ServerGroup


@dataclass(frozen=True, slots=True)
class GroupStand:
    """A group as one member sees it.

    Args:
        name: the group's.
        policy: one of ``affinity``, ``anti_affinity``, ``soft_affinity``, ``soft_anti_affinity``.
        others: how many other members each host has, those on their way to it included.
    """

    name: str
    policy: str
    others: dict[str, int] = field(default_factory=dict)


# A guest under way has a claim on both its hosts; one that nobody knows the place of, too.
_OTHERS = text(
    """
    SELECT host, count(*)::int FROM (
        SELECT id, host FROM instances
         WHERE group_name = :group AND state <> 'deleted' AND host IS NOT NULL
        UNION
        SELECT i.id, c.host FROM claims c JOIN instances i ON i.id = c.instance_id
         WHERE i.group_name = :group AND i.state <> 'deleted'
    ) places WHERE id <> :me GROUP BY host ORDER BY host
    """
)

_HAS_MEMBERS = text(
    "SELECT EXISTS (SELECT 1 FROM instances WHERE group_name = :group AND state <> 'deleted')"
)


def join_group(session: Session, instance: Instance, *, name: str, policy: str) -> None:
    """Make a guest a member; the first living member's policy is the group's.

    Raises:
        Conflict: the group has members, and another policy.
    """
    session.execute(insert(ServerGroup).values(name=name, policy=policy).on_conflict_do_nothing())
    group = _get_locked(session, name)
    if group.policy != policy:
        if session.execute(_HAS_MEMBERS, {"group": name}).scalar_one():
            raise Conflict(
                f"Server group {name!r} has the policy {group.policy}, not {policy}.",
                {
                    "group": name,
                    "policy": group.policy,
                    "requested_policy": policy,
                    "hint": f"Ask for {group.policy}, or choose another group.",
                },
            )
        group.policy = policy
    instance.group_name = name
    session.flush()


def lock_group_stand(
    session: Session, instance: Instance, *, keeps: bool = True
) -> GroupStand | None:
    """Lock the guest's group and read where its other members are; None for a guest without one.

    Nobody else places a member until this transaction ends.

    Args:
        session: an open transaction.
        instance: the guest.
        keeps: False only reads, and locks nothing.
    """
    if instance.group_name is None:
        return None
    if keeps:
        group = _get_locked(session, instance.group_name)
    else:
        group = session.get_one(ServerGroup, instance.group_name)
    return GroupStand(group.name, group.policy, _find_others(session, group.name, instance.id))


def _find_others(session: Session, name: str, me: UUID) -> dict[str, int]:
    rows = session.execute(_OTHERS, {"group": name, "me": me})
    return {host: count for host, count in rows}


def _get_locked(session: Session, name: str) -> ServerGroup:
    # The weaker lock: a new member's foreign key must not wait for it.
    return session.scalars(
        select(ServerGroup)
        .where(ServerGroup.name == name)
        .with_for_update(key_share=True)
        .execution_options(populate_existing=True)
    ).one()


def list_groups(session: Session) -> list[GroupView]:
    """Return the groups that have living members, each with its members, by name."""
    rows = session.execute(
        select(ServerGroup.name, ServerGroup.policy, Instance.name, Instance.host, Instance.state)
        .join(Instance, Instance.group_name == ServerGroup.name)
        .where(Instance.state != "deleted")
        .order_by(ServerGroup.name, Instance.name)
    )
    groups: dict[str, GroupView] = {}
    for name, policy, member, host, state in rows:
        group = groups.setdefault(name, GroupView(name=name, policy=policy))
        group.members.append(GroupMember(name=member, host=host, state=state))
    return list(groups.values())
