"""The environment variables a lab hands to people, tests and workers."""

from __future__ import annotations

import json
import os
from pathlib import Path

from lab.description import Description
from lab.layout import GLUSTER_MOUNT, SHARED_MOUNT, Layout, variable_suffix
from lab.network import Subnet

_POOLS = {
    "local": {"path": "/var/lib/innkeeper"},
    "shared": {"path": SHARED_MOUNT, "shared": True, "trusted_coherent": True},
}
# Libvirt knows this file system by its type: nobody has to vouch for it.
_GLUSTER_POOL = {"gluster": {"path": GLUSTER_MOUNT, "shared": True}}
_INHERITED = ("PATH", "HOME", "LANG", "LC_ALL", "TERM", "TZ")


def for_callers(lab: Description) -> dict[str, str]:
    """Return what `lab env` prints."""
    env = {
        "INNKEEPER_DATABASE_URL": lab.endpoints.database_url,
        "INNKEEPER_BROKER_URL": lab.endpoints.redis_url(0),
        "INNKEEPER_RESULT_URL": lab.endpoints.redis_url(1),
        "INNKEEPER_LAB_DIR": lab.directory,
        "INNKEEPER_LAB_HOSTS": ",".join(host.name for host in lab.hosts),
        "INNKEEPER_LAB_IMAGE": f"file://{lab.images.guest}",
        "INNKEEPER_LAB_IMAGE_SHA256": lab.images.guest_sha256,
        "INNKEEPER_LAB_BOOT_IMAGE": f"file://{lab.images.boot}",
        "INNKEEPER_LAB_BOOT_IMAGE_SHA256": lab.images.boot_sha256,
        "INNKEEPER_LAB_KERNEL": f"file://{lab.images.kernel}",
        "INNKEEPER_LAB_RAMDISK": f"file://{lab.images.ramdisk}",
        "INNKEEPER_FLOWER_URL": lab.endpoints.flower_url,
    }
    for host in lab.hosts:
        env[f"INNKEEPER_LAB_LIBVIRT_{variable_suffix(host.name)}"] = host.libvirt_uri
    return env


def for_process(lab: Description, layout: Layout, role: str) -> dict[str, str]:
    """Return the whole environment of a control, beat, flower or migrate process."""
    env = {name: os.environ[name] for name in _INHERITED if name in os.environ}
    env |= for_callers(lab)
    env["INNKEEPER_SECRET_KEY_FILE"] = str(layout.secret_keys)
    env["INNKEEPER_READY_FILE"] = str(layout.ready_file(role))
    env["PYTHONUNBUFFERED"] = "1"
    return env | lab.extra_env


def for_host(lab: Description, name: str) -> dict[str, str]:
    """Return the settings of a host's worker beyond those of every process."""
    services = Subnet(lab.subnet).services_address
    return {
        "INNKEEPER_HOST_NAME": name,
        "INNKEEPER_LIBVIRT_URI": "qemu:///system",
        "INNKEEPER_MIGRATION_ADDRESS": lab.host(name).address,
        "INNKEEPER_POOLS": json.dumps(_POOLS | (_GLUSTER_POOL if lab.gluster else {})),
        "INNKEEPER_DOMAIN_TYPE": "qemu",
        "INNKEEPER_ALLOWED_FILE_ROOTS": str(Path(lab.images.directory)),
        # What the lab's own address serves may be booted from at once.
        "INNKEEPER_INSTANT_BOOT_SOURCES": f"http://{services} nbd://{services}",
        "INNKEEPER_RESERVED_MEMORY_MIB": "256",
        "INNKEEPER_CPU_OVERCOMMIT": "16",
        "INNKEEPER_MEMORY_OVERCOMMIT": "2.0",
    }
