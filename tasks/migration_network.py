"""A migrated guest's network: verified when it arrives, and announced.

What is checked before: migration_checks. Why at these moments: docs/design/migration-network.md.
"""

from typing import Any

from sqlalchemy.orm import Session

from innkeeper.errors import InnkeeperError, NetworkNotReady
from models.queries import record_event
from tasks.context import StepContext
from virt.announce import announce
from virt.domain_reading import list_bridges
from virt.links import set_port_down
from virt.network import find_problem, wait_for_network

# The guest stands still meanwhile; libvirt made its ports long before it arrived.
ARRIVAL_S = 2.0
# Of a card whose address it has to learn it may be making the rules still, on a busy host.
RULES_S = 15.0


def secure_arrival(context: StepContext, *, is_running: bool) -> dict[str, Any]:
    """See that an arrived guest's ports are on their bridges with their rules in force.

    It cannot go back any more. A port that is not as it should be is taken down, so that the guest
    may run, and harms nobody.

    Args:
        context: of a step on the destination.
        is_running: the guest was not held back; nothing is waited for, as it can send already.

    Returns:
        Facts for the ledger: the ports, and those taken down with the reason.
    """
    if not list_bridges(context.instance.domain_xml or ""):
        return {}
    hypervisor, instance_id = context.host.hypervisor, context.instance.id
    try:
        ports = wait_for_network(
            hypervisor,
            instance_id,
            timeout_s=0.0 if is_running else RULES_S,
            broken_s=ARRIVAL_S,
            check=context.assert_owned,
        )
    except NetworkNotReady as exc:
        context.note(exc.message)
    else:
        return {"ports": [port.name for port in ports]}
    ports = hypervisor.list_ports(instance_id)
    cut_off = {}
    for port in ports:
        problem = find_problem(hypervisor, port)
        if problem is not None:
            set_port_down(port.name)
            cut_off[port.name] = problem
    if cut_off:
        _tell(context, cut_off)
    return {"ports": [port.name for port in ports], "ports_cut_off": cut_off}


def announce_guest(context: StepContext) -> None:
    """Tell the network that the guest's cards are on this host; best effort."""
    if not list_bridges(context.instance.domain_xml or ""):
        return
    try:
        for port in context.host.hypervisor.list_ports(context.instance.id):
            announce(port.name, port.bridge, port.mac)
    except (OSError, InnkeeperError) as exc:
        context.log.warning("the guest's cards are not announced", error=str(exc))


def _tell(context: StepContext, cut_off: dict[str, str]) -> None:
    operation, host = context.operation, context.host.name

    def write(session: Session) -> None:
        record_event(
            session,
            "instance.network_cut_off",
            instance_id=operation.instance_id,
            operation_id=operation.id,
            host=host,
            data={"ports": cut_off},
        )

    context.database.run(write)
