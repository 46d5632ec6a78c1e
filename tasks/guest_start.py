"""A guest's start: with network cards it runs only once its ports and filters are verified."""

from typing import Any

from innkeeper.errors import NetworkNotReady
from innkeeper.states import PowerState
from tasks.context import StepContext
from virt.domain_reading import list_bridges
from virt.network import wait_for_network
from virt.views import DomainView

OFF = (PowerState.SHUTDOWN, PowerState.CRASHED)
_MARK = "is_starting"


def has_network(context: StepContext) -> bool:
    """Return whether the guest has network cards on bridges."""
    return bool(list_bridges(context.instance.domain_xml or ""))


def start_verified(context: StepContext) -> dict[str, Any]:
    """Start the guest's domain; one that is active already is verified, and runs afterwards.

    Without network cards this is libvirt's start and nothing else.

    Returns:
        Facts for the ledger.

    Raises:
        NetworkNotReady: ports or filters did not come about; the guest is left paused.
        StartFailed: libvirt or QEMU refused.
    """
    hypervisor, instance_id = context.host.hypervisor, context.instance.id
    if not has_network(context):
        context.midway()
        hypervisor.ensure_started(instance_id)
        return {}
    hypervisor.ensure_started(instance_id, paused=True)
    context.midway()
    ports = wait_for_network(
        hypervisor,
        instance_id,
        on_wait=lambda missing: context.progress(0.5, f"waiting for the network: {missing}"),
        check=context.checkpoint,
    )
    # A ghost that waited here must not let a guest run that is another's by now.
    context.checkpoint()
    hypervisor.ensure_resumed(instance_id)
    return {"ports": [port.name for port in ports]}


def start_again(context: StepContext, view: DomainView) -> dict[str, Any]:
    """Start a guest that was off, and put it off again when its network fails.

    A domain that is active is left alone, unless an earlier attempt at this very step has left it
    paused in the middle of its start.

    Args:
        context: of a step whose guest is settled on this host.
        view: the guest's domain as it is now.
    """
    if view.power_state not in OFF and not is_half_started(context, view):
        context.midway()
        return {}
    if has_network(context):
        context.intend(**{_MARK: True})
    try:
        return start_verified(context)
    except NetworkNotReady:
        context.host.hypervisor.ensure_destroyed(context.instance.id)
        raise


def is_half_started(context: StepContext, view: DomainView) -> bool:
    """Return whether an earlier attempt at this step left the guest started and not yet running."""
    return bool(context.step.undo.get(_MARK)) and view.power_state is PowerState.PAUSED
