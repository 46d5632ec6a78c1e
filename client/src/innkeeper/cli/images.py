"""The commands on the hosts' image caches."""

from typing import Annotated, Any

import typer

from innkeeper.cli.follow import conclude
from innkeeper.cli.options import (
    JsonOption,
    KeyOption,
    NoWaitOption,
    ReasonOption,
    TimeoutOption,
)
from innkeeper.cli.screen import ago, print_json, print_table
from innkeeper.client import Innkeeper
from innkeeper.image_types import CachedImageView

_GIB_BYTES = 2**30
_MIB_BYTES = 2**20
_DIGEST_SHOWN = 12


def list_images(
    host: Annotated[
        str | None, typer.Option(metavar="HOST", help="Only this host's. Default: all.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """List the images in the hosts' caches, those used last first."""
    with Innkeeper() as inn:
        views = inn.images(host)
    if as_json:
        print_json([each.model_dump(mode="json") for each in views])
        return
    print_table(
        ("HOST", "POOL", "SHA-256", "FORMAT", "STATE", "SIZE", "GUESTS", "USED", "CHECKED", "FROM"),
        (_row(each) for each in views),
        empty="No image is cached. The first spawn brings one, or innkeeper image prewarm.",
    )


def prewarm(
    image: Annotated[
        str, typer.Argument(metavar="IMAGE", help="URL or path of the image.", show_default=False)
    ],
    sha256: Annotated[
        str | None, typer.Option(metavar="HEX", help="The digest the image file must have.")
    ] = None,
    image_format: Annotated[
        str | None, typer.Option("--format", help="qcow2 or raw. Default: qcow2.")
    ] = None,
    host: Annotated[
        list[str] | None,
        typer.Option(metavar="HOST", help="A host; may be repeated. Default: all enabled."),
    ] = None,
    pool: Annotated[str | None, typer.Option(help="The pool. Default: local.")] = None,
    reason: ReasonOption = None,
    idempotency_key: KeyOption = None,
    timeout_s: TimeoutOption = None,
    no_wait: NoWaitOption = False,
    as_json: JsonOption = False,
) -> None:
    """Bring an image into the caches of hosts before a guest needs it."""
    fields: dict[str, Any] = {"sha256": sha256, "format": image_format, "pool": pool}
    given = {name: value for name, value in fields.items() if value is not None}
    with Innkeeper() as inn:
        operation = inn.prewarm(
            image, hosts=host or None, reason=reason, idempotency_key=idempotency_key, **given
        )
        conclude(operation, no_wait=no_wait, timeout_s=timeout_s, as_json=as_json)
        if no_wait or as_json:
            return
        print_table(
            ("HOST", "OUTCOME", "WHY"),
            (
                (each.get("host"), each.get("outcome"), each.get("message"))
                for each in operation.result().get("hosts", [])
            ),
            empty="",
        )


def register(app: typer.Typer) -> None:
    """Add these commands to the command line."""
    group = typer.Typer(
        help="Look at the hosts' image caches, and fill them.", no_args_is_help=True
    )
    for name, command, example in (
        ("list", list_images, "innkeeper image list --host hv-a"),
        ("prewarm", prewarm, "innkeeper image prewarm https://img.example/noble.qcow2 --host hv-a"),
    ):
        group.command(name, epilog=f"Example: {example}")(command)
    app.add_typer(group, name="image", rich_help_panel="Look around")


def _row(view: CachedImageView) -> tuple[Any, ...]:
    return (
        view.host,
        view.pool,
        view.sha256[:_DIGEST_SHOWN],
        view.format,
        view.state,
        _size(view.size_bytes),
        view.guests,
        f"{ago(view.last_used_at)} ago",
        f"{ago(view.verified_at)} ago" if view.verified_at else "never",
        view.source,
    )


def _size(size_bytes: int) -> str:
    if size_bytes >= _GIB_BYTES:
        return f"{size_bytes / _GIB_BYTES:.1f} GiB"
    return f"{size_bytes / _MIB_BYTES:.1f} MiB"
