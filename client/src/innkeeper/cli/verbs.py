"""The commands that change a guest: each sends one request and, unless told not to, waits."""

from typing import Annotated, Any

import typer

from innkeeper.cli.checks import conclude_check
from innkeeper.cli.follow import conclude
from innkeeper.cli.options import (
    InstanceArgument,
    JsonOption,
    KeyOption,
    NoWaitOption,
    ReasonOption,
    TimeoutOption,
)
from innkeeper.cli.spawn import spawn
from innkeeper.client import Innkeeper
from innkeeper.states import Handover, Storage


def migrate(
    name: InstanceArgument,
    to: Annotated[
        str | None, typer.Option(metavar="HOST", help="The destination. Default: the best one.")
    ] = None,
    storage: Annotated[
        Storage | None, typer.Option(help="How the disks go along. Default: auto.")
    ] = None,
    handover: Annotated[
        Handover | None,
        typer.Option(help="Who starts the guest on the destination. Default: safe."),
    ] = None,
    max_downtime_ms: Annotated[
        int | None, typer.Option(help="The longest pause at the switch-over. Default: 300.")
    ] = None,
    deadline_s: Annotated[
        float | None, typer.Option(help="Abort when it takes longer. Default: 3600.")
    ] = None,
    bandwidth_mib_s: Annotated[
        int | None, typer.Option(help="A cap for the link; 0 for none. Default: 0.")
    ] = None,
    tls: Annotated[
        bool | None,
        typer.Option(
            "--tls/--no-tls",
            help="Encrypt memory and disks on their way, or not. Default: as the hosts are set.",
        ),
    ] = None,
    on_timeout: Annotated[
        str | None,
        typer.Option(
            metavar="abort|pause|post_copy",
            help="What becomes of it at the deadline. Default: abort.",
        ),
    ] = None,
    auto_converge: Annotated[
        bool | None,
        typer.Option(
            "--auto-converge/--no-auto-converge",
            help="Whether QEMU may slow the guest so that it gets across. Default: it may.",
        ),
    ] = None,
    post_copy: Annotated[
        bool | None,
        typer.Option(
            "--post-copy/--no-post-copy",
            help="Whether the guest may go on before all its memory is there. Default: not.",
        ),
    ] = None,
    parallel_connections: Annotated[
        int | None, typer.Option(help="Connections that carry memory side by side. Default: 1.")
    ] = None,
    split_group: Annotated[
        bool,
        typer.Option(
            "--split-group", help="Leave the others of an affinity group; they are to follow."
        ),
    ] = False,
    check: Annotated[
        bool,
        typer.Option("--check", help="Only check whether it could go, and show every check."),
    ] = False,
    reason: ReasonOption = None,
    idempotency_key: KeyOption = None,
    timeout_s: TimeoutOption = None,
    no_wait: NoWaitOption = False,
    as_json: JsonOption = False,
) -> None:
    """Move a running guest to another host without stopping it."""
    fields = _given(
        dst=to,
        storage=storage,
        handover=handover,
        max_downtime_ms=max_downtime_ms,
        deadline_s=deadline_s,
        bandwidth_mib_s=bandwidth_mib_s,
        tls=tls,
        on_timeout=on_timeout,
        auto_converge=auto_converge,
        post_copy=post_copy,
        parallel_connections=parallel_connections,
        may_split_group=split_group or None,
    )
    with Innkeeper() as inn:
        if check:
            asked = inn.check_migration(name, fields, reason=reason)
            conclude_check(asked, timeout_s=timeout_s, as_json=as_json)
            return
        operation = inn.migrate(name, fields, reason=reason, idempotency_key=idempotency_key)
        conclude(operation, no_wait=no_wait, timeout_s=timeout_s, as_json=as_json)


def start(
    name: InstanceArgument,
    reason: ReasonOption = None,
    idempotency_key: KeyOption = None,
    timeout_s: TimeoutOption = None,
    no_wait: NoWaitOption = False,
    as_json: JsonOption = False,
) -> None:
    """Start a stopped guest."""
    with Innkeeper() as inn:
        operation = inn.start(name, reason=reason, idempotency_key=idempotency_key)
        conclude(operation, no_wait=no_wait, timeout_s=timeout_s, as_json=as_json)


def stop(
    name: InstanceArgument,
    force: Annotated[bool, typer.Option("--force", help="Cut the power at once.")] = False,
    grace_s: Annotated[
        float | None, typer.Option(help="Cut the power after this many seconds. Default: 60.")
    ] = None,
    reason: ReasonOption = None,
    idempotency_key: KeyOption = None,
    timeout_s: TimeoutOption = None,
    no_wait: NoWaitOption = False,
    as_json: JsonOption = False,
) -> None:
    """Stop a guest: ask it first, cut the power after a while."""
    fields = _given(force=force or None, grace_s=grace_s)
    with Innkeeper() as inn:
        operation = inn.stop(name, fields, reason=reason, idempotency_key=idempotency_key)
        conclude(operation, no_wait=no_wait, timeout_s=timeout_s, as_json=as_json)


def reboot(
    name: InstanceArgument,
    hard: Annotated[bool, typer.Option("--hard", help="Cut the power and start again.")] = False,
    grace_s: Annotated[
        float | None, typer.Option(help="Reboot hard after this many seconds. Default: 60.")
    ] = None,
    reason: ReasonOption = None,
    idempotency_key: KeyOption = None,
    timeout_s: TimeoutOption = None,
    no_wait: NoWaitOption = False,
    as_json: JsonOption = False,
) -> None:
    """Reboot a guest: ask it first, reset it after a while."""
    fields = _given(kind="hard" if hard else None, grace_s=grace_s)
    with Innkeeper() as inn:
        operation = inn.reboot(name, fields, reason=reason, idempotency_key=idempotency_key)
        conclude(operation, no_wait=no_wait, timeout_s=timeout_s, as_json=as_json)


def delete(
    name: InstanceArgument,
    reason: ReasonOption = None,
    idempotency_key: KeyOption = None,
    timeout_s: TimeoutOption = None,
    no_wait: NoWaitOption = False,
    as_json: JsonOption = False,
) -> None:
    """Delete a guest and its disks; there is no question and no way back."""
    with Innkeeper() as inn:
        operation = inn.delete(name, reason=reason, idempotency_key=idempotency_key)
        conclude(operation, no_wait=no_wait, timeout_s=timeout_s, as_json=as_json)


def hydrate(
    name: InstanceArgument,
    reason: ReasonOption = None,
    idempotency_key: KeyOption = None,
    timeout_s: TimeoutOption = None,
    no_wait: NoWaitOption = False,
    as_json: JsonOption = False,
) -> None:
    """Make an instantly booted guest independent of its image's source, now instead of soon."""
    with Innkeeper() as inn:
        operation = inn.hydrate(name, reason=reason, idempotency_key=idempotency_key)
        conclude(operation, no_wait=no_wait, timeout_s=timeout_s, as_json=as_json)


def register(app: typer.Typer) -> None:
    """Add these commands to the command line."""
    panel = "Change a guest"
    for command, example in (
        (spawn, "innkeeper spawn vm-1 --image noble.qcow2 --vcpus 2 --memory-mib 512 --wait agent"),
        (migrate, "innkeeper migrate vm-1 --to hv-b --max-downtime-ms 200"),
        (start, "innkeeper start vm-1"),
        (stop, "innkeeper stop vm-1 --grace-s 20"),
        (reboot, "innkeeper reboot vm-1 --hard"),
        (delete, "innkeeper delete vm-1 --reason 'test is over'"),
        (hydrate, "innkeeper hydrate vm-1"),
    ):
        app.command(command.__name__, epilog=f"Example: {example}", rich_help_panel=panel)(command)


def _given(**fields: Any) -> dict[str, Any]:
    # What was not given is left to the control worker, whose defaults may be newer than ours.
    return {name: value for name, value in fields.items() if value is not None}
