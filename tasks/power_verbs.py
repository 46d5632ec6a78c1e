"""Start, stop and reboot: one step each, on the guest's host."""

import time
from collections.abc import Callable
from typing import Any

from sqlalchemy import func
from sqlalchemy.orm import Session

from innkeeper.errors import (
    DomainNotFound,
    HypervisorRefused,
    ImageError,
    NetworkNotReady,
    SourceLost,
    StaleDomain,
    StartFailed,
    StopTimeout,
    from_wire,
)
from innkeeper.states import Effect, InstanceState, PowerState
from innkeeper.types import RebootPolicy, StopPolicy
from models.instance import Instance
from models.operation import Operation
from models.queries import view_settled
from tasks.context import StepContext
from tasks.guest_start import OFF, is_half_started, start_again
from tasks.unsettled import keep_state, mark_unknown
from tasks.workflow import Done, On, StepSpec, Workflow
from virt.views import DomainView

FORCED_OFF_S = 30.0


def get_current_domain(context: StepContext) -> DomainView:
    """Get the guest's domain, and make sure that it is the one the record means.

    Raises:
        DomainNotFound: the host has none.
        StaleDomain: it is of another epoch, so the guest has been placed elsewhere since.
    """
    view = context.host.hypervisor.find_domain(context.instance.id)
    if view is None:
        raise DomainNotFound(
            f"Host {context.host.name} has no domain of {context.instance.name}.",
            {"hint": "The domain was removed behind Innkeeper's back; delete the instance."},
        )
    if view.epoch != context.instance.domain_epoch:
        raise StaleDomain(
            f"The domain on {context.host.name} is of epoch {view.epoch}, the record of "
            f"{context.instance.domain_epoch}.",
            {"domain_epoch": view.epoch, "record_epoch": context.instance.domain_epoch},
        )
    return view


def refuse_condemned(context: StepContext) -> None:
    """Refuse to start a guest that was given up because its image is not the promised one.

    Raises:
        ImageError: the very error.
    """
    fault = context.instance.fault or {}
    error = from_wire(fault)
    is_given_up = context.operation.state_before == InstanceState.ERROR
    is_condemned = isinstance(error, ImageError) and not isinstance(error, SourceLost)
    if is_given_up and is_condemned:
        raise error.with_details(effect=Effect.NOT_STARTED)


def start_guest(context: StepContext) -> Done:
    """Start the guest's domain; with network cards paused, until ports and filters are verified.

    Queue: host.<host>; a quarter of a second, at most 20 s for a network that is late.
    Idempotency: a running domain is left alone.
    Undo: none; a guest whose network does not come about is put off again.
    On crash: begun again; what was left paused by this step is verified and let run.
    Retries: while libvirt is out of reach.
    """
    view = get_current_domain(context)
    refuse_condemned(context)
    context.go_through()
    try:
        return Done(start_again(context, view))
    except (StartFailed, NetworkNotReady) as exc:
        raise exc.with_details(effect=Effect.NOT_STARTED) from exc


def stop_guest(context: StepContext) -> Done:
    """Ask the guest by ACPI to shut down, and cut its power after the grace time.

    Queue: host.<host>; as long as the guest takes, at most the grace time and half a minute.
    Idempotency: a guest that is off stays off.
    Undo: none; the state is read from the host when it fails.
    On crash: begun again; a second ACPI press is harmless.
    Retries: while libvirt is out of reach.
    """
    policy = StopPolicy.model_validate(context.operation.params["policy"])
    if get_current_domain(context).power_state in OFF:
        return Done({"how": "already off"})
    if not policy.force and _shut_down_politely(context, policy.grace_s):
        return Done({"how": "acpi"})
    context.go_through()
    context.host.hypervisor.ensure_destroyed(context.instance.id)
    context.midway()
    if get_current_domain(context).power_state not in OFF:
        raise StopTimeout(
            f"{context.instance.name} still runs after its power was cut.",
            {"effect": Effect.NOT_STARTED},
        )
    return Done({"how": "forced"})


def _shut_down_politely(context: StepContext, grace_s: float) -> bool:
    """Press the power button and wait for the end of the guest; True when it is off."""
    hypervisor, instance_id = context.host.hypervisor, context.instance.id
    give_up_at = time.monotonic() + grace_s
    with hypervisor.watch(instance_id) as watch:
        try:
            hypervisor.shutdown(instance_id)
        except HypervisorRefused:
            # A guest that has just gone off by itself has no button any more.
            if get_current_domain(context).power_state not in OFF:
                raise
        while (left_s := give_up_at - time.monotonic()) > 0:
            watch.wait(min(left_s, 1.0))
            context.checkpoint()
            view = hypervisor.find_domain(instance_id)
            if view is None or view.power_state in OFF:
                return True
            context.progress(1 - left_s / grace_s, "waiting for the guest to shut down")
    return False


def reboot_guest(context: StepContext) -> Done:
    """Reboot the guest: soft through ACPI and a fresh start, hard by cutting the power.

    Queue: host.<host>; a soft reboot takes as long as the guest's shutdown.
    Idempotency: both end with a running domain; a repeated one reboots again at worst.
    Undo: none.
    On crash: begun again.
    Retries: while libvirt is out of reach.
    """
    policy = RebootPolicy.model_validate(context.operation.params["policy"])
    view = get_current_domain(context)
    if is_half_started(context, view):
        return Done(start_again(context, view))
    # Off already, when an earlier attempt died after the shutdown and before the start.
    is_off = view.power_state in OFF or (
        policy.kind == "soft" and _shut_down_politely(context, policy.grace_s)
    )
    context.go_through()
    if not is_off:
        context.host.hypervisor.ensure_destroyed(context.instance.id)
    try:
        facts = start_again(context, get_current_domain(context))
    except (StartFailed, NetworkNotReady) as exc:
        raise exc.with_details(effect=Effect.UNKNOWN, hint="The guest is off: start it.") from exc
    return Done({"how": "soft" if is_off else "hard", **facts})


def _settle_as(
    state: InstanceState, power_state: PowerState
) -> Callable[[Session, Operation], dict[str, Any]]:
    def settle(session: Session, operation: Operation) -> dict[str, Any]:
        instance = session.get_one(Instance, operation.instance_id, populate_existing=True)
        instance.state, instance.power_state = state, power_state
        instance.power_observed_at = func.clock_timestamp()
        return view_settled(session, instance, operation)

    return settle


START = Workflow(
    kind="start",
    steps=(StepSpec("start_guest", On.DST, start_guest),),
    on_success=_settle_as(InstanceState.ACTIVE, PowerState.RUNNING),
    on_failure=keep_state,
    on_unknown=mark_unknown,
    may_fail_late=True,
)
STOP = Workflow(
    kind="stop",
    steps=(StepSpec("stop_guest", On.DST, stop_guest),),
    on_success=_settle_as(InstanceState.STOPPED, PowerState.SHUTDOWN),
    on_failure=keep_state,
    on_unknown=mark_unknown,
    may_fail_late=True,
)
REBOOT = Workflow(
    kind="reboot",
    steps=(StepSpec("reboot_guest", On.DST, reboot_guest),),
    on_success=_settle_as(InstanceState.ACTIVE, PowerState.RUNNING),
    on_failure=keep_state,
    on_unknown=mark_unknown,
    may_fail_late=True,
)
