"""The commands that list guests and hosts, and that open and close a host."""

from typing import Annotated, Any

import typer

from innkeeper.cli.options import HostArgument, InstanceArgument, JsonOption
from innkeeper.cli.screen import ago, print_json, print_table, stdout
from innkeeper.client import Innkeeper
from innkeeper.types import CardView, DiskView, HostView, InstanceView


def ls(as_json: JsonOption = False) -> None:
    """List the guests."""
    with Innkeeper() as inn:
        instances = inn.instances()
    if as_json:
        print_json([each.model_dump(mode="json") for each in instances])
        return
    print_table(
        ("NAME", "STATE", "POWER", "HOST", "VCPUS", "MEMORY", "DOING", "UUID"),
        (
            (
                each.name,
                each.state.value,
                each.power_state.value,
                each.host,
                each.vcpus,
                f"{each.memory_mib} MiB",
                each.task,
                each.id,
            )
            for each in instances
        ),
        empty="There are no guests. Make one: innkeeper spawn NAME --image F",
    )


def show(name: InstanceArgument, as_json: JsonOption = False) -> None:
    """Show one guest."""
    with Innkeeper() as inn:
        view = inn.instance(name)
    if as_json:
        print_json(view.model_dump(mode="json"))
    else:
        _print_facts(_instance_facts(view))


def hosts(as_json: JsonOption = False) -> None:
    """List the hosts, with what is in use on them."""
    with Innkeeper() as inn:
        views = inn.hosts()
    if as_json:
        print_json([each.model_dump(mode="json") for each in views])
        return
    print_table(
        ("HOST", "WORKER", "HEARD", "GUESTS", "VCPUS", "MEMORY MiB", "DISK GiB", "QEMU", "NOTE"),
        (
            (
                each.name,
                _worker_state(each),
                ago(each.heartbeat_at),
                each.instances,
                f"{each.vcpus_claimed}/{each.vcpus_total}",
                f"{each.memory_claimed_mib}/{each.memory_total_mib}",
                f"{each.disk_claimed_gib}/{each.disk_total_gib}",
                each.qemu_version,
                _disabled_note(each),
            )
            for each in views
        ),
        empty="There are no hosts. Start a worker on one; it makes itself known.",
    )


def groups(as_json: JsonOption = False) -> None:
    """List the server groups, with where their members are."""
    with Innkeeper() as inn:
        views = inn.groups()
    if as_json:
        print_json([each.model_dump(mode="json") for each in views])
        return
    print_table(
        ("GROUP", "POLICY", "MEMBER", "HOST", "STATE"),
        (
            (each.name, each.policy, member.name, member.host, member.state.value)
            for each in views
            for member in each.members
        ),
        empty="No guest is in a server group.",
    )


def enable(host: HostArgument, as_json: JsonOption = False) -> None:
    """Let a host receive new guests again."""
    with Innkeeper() as inn:
        view = inn.enable_host(host)
    _print_host(view, as_json)


def disable(
    host: HostArgument,
    reason: Annotated[
        str, typer.Option(metavar="TEXT", help="Why; shown wherever the host is refused.")
    ] = "by an operator",
    as_json: JsonOption = False,
) -> None:
    """Keep new guests off a host; those on it stay."""
    with Innkeeper() as inn:
        view = inn.disable_host(host, reason)
    _print_host(view, as_json)


def register(app: typer.Typer) -> None:
    """Add these commands to the command line."""
    panel = "Look around"
    for command, example in (
        (ls, "innkeeper ls --json"),
        (show, "innkeeper show vm-1"),
        (hosts, "innkeeper hosts"),
        (groups, "innkeeper groups"),
        (enable, "innkeeper enable hv-a"),
        (disable, "innkeeper disable hv-a --reason 'new memory on Monday'"),
    ):
        app.command(command.__name__, epilog=f"Example: {example}", rich_help_panel=panel)(command)


def _instance_facts(view: InstanceView) -> list[tuple[str, Any]]:
    observed = ago(view.power_observed_at)
    power = view.power_state.value + (f" (seen {observed} ago)" if observed else "")
    facts: list[tuple[str, Any]] = [
        ("name", view.name),
        ("uuid", view.id),
        ("state", view.state.value),
        ("power state", power),
        ("host", view.host),
        ("server group", view.group),
        ("boot stage", view.boot_stage.value if view.boot_stage else None),
        ("doing", view.task),
        ("waits for", view.waiting_for),
        ("operation", view.operation_id),
        ("vcpus", view.vcpus),
        ("memory", f"{view.memory_mib} MiB"),
        ("machine", _machine(view)),
        ("disk", f"{view.disk_gib} GiB in {_pools(view)}"),
        *((f"disk {disk.target}", _disk(disk, view.pool)) for disk in view.disks),
        *((f"card {index}", _card(card)) for index, card in enumerate(view.network_cards)),
        ("image", view.image),
        ("epoch", view.epoch),
        ("created", f"{ago(view.created_at)} ago"),
        ("updated", f"{ago(view.updated_at)} ago"),
    ]
    return facts + [(f"metadata {key}", value) for key, value in sorted(view.metadata.items())]


def _machine(view: InstanceView) -> str | None:
    if view.machine is None:
        return None
    return ", ".join(filter(None, (view.machine, view.firmware, view.cpu_model)))


def _pools(view: InstanceView) -> str:
    named = (disk.pool for disk in view.disks if disk.pool is not None)
    return " and ".join(dict.fromkeys((view.pool, *named)))


def _disk(disk: DiskView, usual_pool: str) -> str:
    size = f"{disk.size_bytes / 2**20:.0f} MiB"
    pool = f" in {disk.pool}" if disk.pool not in (None, usual_pool) else ""
    remote = ", still read from its source" if disk.is_remote else ""
    return f"{disk.kind}, {size}, {disk.format} on {disk.bus}{pool}{remote}"


def _card(card: CardView) -> str:
    addresses = f", {' '.join(card.addresses)}" if card.addresses else ""
    return f"{card.model} {card.mac or ''} on {card.bridge}{addresses}"


def _print_facts(facts: list[tuple[str, Any]]) -> None:
    print_table(("FACT", "VALUE"), facts, empty="")


def _print_host(view: HostView, as_json: bool) -> None:
    if as_json:
        print_json(view.model_dump(mode="json"))
        return
    note = _disabled_note(view)
    state = "enabled" if view.is_enabled else f"disabled: {note}"
    stdout().print(f"{view.name} is {state}", soft_wrap=True)


def _worker_state(view: HostView) -> str:
    if not view.is_up:
        return "down"
    return "up" if view.is_enabled else "disabled"


def _disabled_note(view: HostView) -> str | None:
    if view.is_enabled:
        return None
    by = f" ({view.disabled_by})" if view.disabled_by else ""
    return f"{view.disabled_reason or 'no reason given'}{by}"
