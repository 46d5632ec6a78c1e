"""Another host for an operation whose chosen one has failed by itself."""

from typing import Any

from sqlalchemy.orm import Session

from innkeeper.errors import NoHostFits
from models.claims import release_claim
from models.instance import Instance
from models.operation import Operation
from tasks.blame import is_fault_of_host, list_tried
from tasks.choosing import choose_and_claim, demand_of
from tasks.placement import Refusal

MOST_HOSTS_TRIED = 3


def choose_next_host(
    session: Session,
    operation: Operation,
    *,
    is_pinned: bool,
    leaves: str | None = None,
    may_split_group: bool = False,
) -> str | None:
    """Choose another host and claim there, after everything was undone on the last one.

    The last one's claim is given back; its failure, and why others were not taken, stay with the
    operation.

    Args:
        session: an open transaction.
        operation: it holds the guest, and its error says why its ``dst_host`` failed.
        is_pinned: whether the caller named the host: then no other will do.
        leaves: a host that the guest is to leave.
        may_split_group: see ``MigrationPolicy``.

    Returns:
        The host, which is written into the operation; None when it ends with its error.
    """
    failed = operation.dst_host
    if failed is None or is_pinned or not is_fault_of_host(operation.error, failed):
        return None
    operation.refusals = [*operation.refusals, _failure(failed, operation.error or {})]
    tried = list_tried(operation.refusals)
    if len(tried) >= MOST_HOSTS_TRIED:
        return None
    instance = session.get_one(Instance, operation.instance_id, populate_existing=True)
    release_claim(session, host=failed, instance_id=instance.id)
    try:
        host, refusals = choose_and_claim(
            session,
            instance=instance,
            operation_id=operation.id,
            demand=demand_of(session, instance, may_split_group=may_split_group),
            wanted=None,
            ignored=tried | ({leaves} if leaves else frozenset()),
        )
    except NoHostFits as none_left:
        _keep(operation, none_left.details["refusals"])
        return None
    _keep(operation, [refusal.to_wire() for refusal in refusals])
    operation.dst_host = host
    return host


def _failure(host: str, error: dict[str, Any]) -> dict[str, Any]:
    return Refusal(host, str(error["code"]), str(error.get("message", ""))).to_wire()


def _keep(operation: Operation, refusals: list[dict[str, Any]]) -> None:
    """Add refusals that are new; a host that was tried stands there with its failure already."""
    known = {(each["host"], each["code"]) for each in operation.refusals}
    operation.refusals = [
        *operation.refusals,
        *(
            each
            for each in refusals
            if each["code"] != "ignored" and (each["host"], each["code"]) not in known
        ),
    ]
