"""A guest's network on its host: whether it can be there, and whether it is there.

A guest with network cards is started with its CPUs stopped, and runs only once each card's port
leads to its bridge and its filter's rules are in the kernel. Libvirt makes both while it starts a
guest, but for the rules of a card whose address it has to learn: those come a little later.
"""

import time
from collections.abc import Callable
from uuid import UUID

from innkeeper.errors import HostUnsuitable, NetworkNotReady
from virt.domain_reading import GuestPort, list_bridges
from virt.hypervisor import Hypervisor
from virt.links import LinkChanges, find_bridge_problem, find_port_problem
from virt.port_rules import find_rules_problem

NETWORK_READY_S = 20.0
# The kernel tells of links; of filters nobody does. Learned addresses' rules take a tenth or two.
LOOK_AGAIN_S = (0.03, 0.5)


def require_bridges(xml: str, *, host: str) -> None:
    """Make sure that the host has the bridges that a domain's XML names, and that they are up.

    Raises:
        HostUnsuitable: it has not. Details: ``host``, ``missing``.
    """
    problems = [find_bridge_problem(bridge) for bridge in list_bridges(xml)]
    missing = [problem for problem in problems if problem is not None]
    if missing:
        raise HostUnsuitable(
            f"Host {host} cannot give the guest its network: {'; '.join(missing)}.",
            {
                "host": host,
                "missing": missing,
                "hint": "Make the bridge on that host, or name another host or bridge.",
            },
        )


def wait_for_network(
    hypervisor: Hypervisor,
    instance_id: UUID,
    *,
    timeout_s: float = NETWORK_READY_S,
    broken_s: float = NETWORK_READY_S,
    on_wait: Callable[[str], None] = lambda _missing: None,
    check: Callable[[], None] = lambda: None,
) -> tuple[GuestPort, ...]:
    """Wait until all ports of an active guest lead to their bridges, with their rules in force.

    Args:
        hypervisor: the guest's host, in whose network namespace this runs.
        instance_id: the guest.
        timeout_s: seconds from now.
        broken_s: seconds from now, while more is missing than rules that libvirt is making.
        on_wait: told what is missing, each time that something is.
        check: called before each look; may raise to stop the wait.

    Returns:
        The guest's ports.

    Raises:
        NetworkNotReady: the time is over. Details: ``missing``, ``ports``, ``limit_s``, ``host``.
    """
    began_s = time.monotonic()
    pause_s, longest_pause_s = LOOK_AGAIN_S
    with LinkChanges() as changes:
        while True:
            check()
            ports = hypervisor.list_ports(instance_id)
            missing = _list_missing(hypervisor, ports)
            if not missing:
                return ports
            is_broken = any(_find_broken(hypervisor, port) for port in ports)
            limit_s = min(timeout_s, broken_s) if is_broken else timeout_s
            left_s = began_s + limit_s - time.monotonic()
            if left_s <= 0:
                raise _not_ready(hypervisor.name, instance_id, ports, missing, limit_s)
            on_wait("; ".join(missing))
            changes.wait(min(left_s, pause_s))
            pause_s = min(pause_s * 1.5, longest_pause_s)


def find_problem(hypervisor: Hypervisor, port: GuestPort) -> str | None:
    """Return why a port does not lead to its bridge with its rules in force; None if it does."""
    problem = _find_broken(hypervisor, port)
    if problem is None and port.filter_name is not None:
        problem = find_rules_problem(port.name, port.mac)
    return problem


def _find_broken(hypervisor: Hypervisor, port: GuestPort) -> str | None:
    """Return what is wrong with a port that libvirt is not about to put right by itself."""
    problem = find_port_problem(port.name, port.bridge)
    if problem is None and port.filter_name is not None:
        problem = _find_filter_problem(hypervisor, port)
    return problem


def _list_missing(hypervisor: Hypervisor, ports: tuple[GuestPort, ...]) -> list[str]:
    problems = (find_problem(hypervisor, port) for port in ports)
    return [problem for problem in problems if problem is not None]


def _find_filter_problem(hypervisor: Hypervisor, port: GuestPort) -> str | None:
    bound = hypervisor.find_filter_of_port(port.name)
    if bound is None:
        return f"filter {port.filter_name} is not in force on port {port.name}"
    if bound != port.filter_name:
        return f"port {port.name} has the filter {bound}, not {port.filter_name}"
    return None


def _not_ready(
    host: str,
    instance_id: UUID,
    ports: tuple[GuestPort, ...],
    missing: list[str],
    limit_s: float,
) -> NetworkNotReady:
    return NetworkNotReady(
        f"The guest's network on host {host} was not ready within {limit_s:g} s:"
        f" {'; '.join(missing)}.",
        {
            "host": host,
            "instance_id": str(instance_id),
            "missing": missing,
            "ports": [port.name for port in ports],
            "limit_s": limit_s,
        },
    )
