"""The guest's domain: described, defined, started, and undone."""

from sqlalchemy.orm import Session

from innkeeper.errors import StaleDomain
from innkeeper.types import InstanceSpec
from models.instance import write_instance
from tasks.context import StepContext
from tasks.direct_boot import describe_kernel
from tasks.guest_abi import freeze, require_offered
from tasks.guest_disks import get_config_drives, get_guest_disks
from tasks.guest_domain import describe_domain
from tasks.guest_start import start_verified
from tasks.workflow import Done
from virt.domain_xml import digest_xml, render_domain
from virt.network import require_bridges


def render_xml(context: StepContext) -> Done:
    """Decide what the spec leaves open, freeze it, render the domain's XML and store both.

    Queue: host.<dst>; a few milliseconds.
    Idempotency: the same rows on the same host give the same bytes.
    Undo: none; the row is the guest's own.
    On crash: rendered again.
    Retries: none; a host that lacks the machine type or the CPU model is left for another.
    """
    host, instance = context.host, context.instance
    spec = InstanceSpec.model_validate(instance.spec)
    # Nothing has booted yet: what another host may have frozen before it failed does not count.
    aliases = host.hypervisor.get_facts().machine_types
    abi = freeze(instance.id, spec, host.guest_defaults, aliases)
    require_offered(host.hypervisor, spec, abi)
    disks = get_guest_disks(context)
    domain = describe_domain(
        host,
        instance,
        operation=context.operation,
        abi=abi,
        disks=disks,
        cdroms=get_config_drives(context),
        kernel=describe_kernel(context.pool, spec, disks[0]),
    )
    context.midway()
    xml = render_domain(domain)
    instance_id, epoch, digest = context.instance.id, context.operation.epoch, digest_xml(xml)

    def commit(session: Session) -> None:
        write_instance(
            session,
            instance_id,
            domain_xml=xml,
            domain_xml_sha256=digest,
            domain_epoch=epoch,
            guest_abi=abi.model_dump(mode="json"),
        )

    return Done({"sha256": digest, "machine": domain.machine}, commit)


def define_domain(context: StepContext) -> Done:
    """Define the stored XML in libvirt, on a host that has the bridges it names.

    Queue: host.<dst>; a few milliseconds.
    Idempotency: defining the same XML again changes nothing.
    Undo: destroys and undefines the domain, if it is this operation's.
    On crash: begun again.
    Retries: while libvirt is out of reach.
    """
    view = context.host.hypervisor.find_domain(context.instance.id)
    if view is not None and view.epoch != context.operation.epoch:
        raise StaleDomain(
            f"Host {context.host.name} has a domain of this guest from epoch {view.epoch}.",
            {"domain_epoch": view.epoch, "record_epoch": context.operation.epoch},
        )
    require_bridges(context.instance.domain_xml or "", host=context.host.name)
    context.intend(domain=str(context.instance.id), epoch=context.operation.epoch)
    context.host.console_dir.mkdir(parents=True, exist_ok=True)
    context.midway()
    context.host.hypervisor.define(context.instance.domain_xml or "")
    return Done({"adopted": view is not None})


def remove_domain(context: StepContext) -> None:
    """Undo of define_domain: only a domain of this very operation is destroyed and undefined."""
    hypervisor = context.host.hypervisor
    view = hypervisor.find_domain(context.instance.id)
    if view is not None and view.epoch == context.operation.epoch:
        hypervisor.ensure_destroyed(context.instance.id)
        context.midway()
        hypervisor.ensure_undefined(context.instance.id)
    context.host.console_path(context.instance.id).unlink(missing_ok=True)


def start_domain(context: StepContext) -> Done:
    """Start the domain; with network cards paused, until its ports and filters are verified.

    Queue: host.<dst>; about a quarter of a second, at most 20 s for a network that is late.
    Idempotency: a domain that is active already is verified again and let run.
    Undo: by define_domain's.
    On crash: begun again; libvirt finishes a start whose caller died, and a guest that was left
        paused is verified and let run.
    Retries: while libvirt is out of reach; a failure of the host's own goes to the next host.
    """
    return Done(start_verified(context))
