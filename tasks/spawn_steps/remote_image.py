"""A guest that boots from its image's source at once: the look at the source, and the disk over it.

What follows once the guest runs is in tasks.hydrate.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

from innkeeper.errors import HostUnsuitable
from innkeeper.remote_source import RemoteSource, parse_remote_source
from innkeeper.types import InstanceSpec
from tasks.context import StepContext
from tasks.disk_plan import PlannedDisk
from virt.remote_overlay import create_remote_overlay
from virt.remote_probe import probe_remote

GIB = 1024**3
INSTANT_FILE = "root.instant.qcow2"


def find_remote_image(context: StepContext, spec: InstanceSpec) -> dict[str, Any] | None:
    """Look at the image where it lies; None when the cache has it, which is better still.

    Raises:
        HostUnsuitable: guests of this host may not boot from there.
        FetchFailed: see probe_remote.
        InvalidRequest: see probe_remote.
        ImageError: see probe_remote.
    """
    if spec.sha256 is not None and context.pool.images.find(spec.sha256, "raw") is not None:
        return None
    source = parse_remote_source(spec.image)
    refuse_unless_allowed(source, context.host.remote.sources, host=context.host.name)
    facts = probe_remote(source, max_virtual_size_bytes=spec.disk_gib * GIB or None)
    context.midway()
    return {
        "path": "",
        "sha256": spec.sha256,
        "format": "raw",
        "virtual_size_bytes": facts.size_bytes,
        "fetched": False,
        "remote_url": source.url,
    }


def refuse_unless_allowed(
    source: RemoteSource, allowed: tuple[RemoteSource, ...], *, host: str
) -> None:
    """Refuse a source that this host's guests may not boot from.

    Raises:
        HostUnsuitable: it lies below none of the allowed prefixes.
    """
    if any(source.is_below(prefix) for prefix in allowed):
        return
    listed = ", ".join(prefix.url for prefix in allowed) or "none at all"
    raise HostUnsuitable(
        f"Guests of {host} may not boot from {source.url} at once; allowed are {listed}.",
        {
            "host": host,
            "hint": "Use delivery: fetch, or have the prefix added to instant_boot_sources.",
        },
    )


def create_instant_disk(directory: Path, root: PlannedDisk, url: str) -> PlannedDisk:
    """Make the root disk over the image's source; return it under the name it has till hydrated."""
    instant = replace(root, file=INSTANT_FILE)
    create_remote_overlay(
        directory / instant.file, source=parse_remote_source(url), size_bytes=instant.size_bytes
    )
    return instant
