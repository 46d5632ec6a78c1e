"""libvirt's own configuration on a lab host."""

from __future__ import annotations

import shutil
import uuid
from pathlib import Path

_LIBVIRTD_CONF = """\
host_uuid = "{host_uuid}"
listen_tls = 1
listen_tcp = 1
listen_addr = "{address}"
tcp_port = "16509"
tls_port = "16514"
# Who has no certificate of the lab's authority is refused; see /etc/pki.
tls_no_verify_certificate = 0
auth_tls = "none"
# Nobody but this lab reaches the address: it exists in the lab's own network namespaces.
auth_tcp = "none"
auth_unix_rw = "none"
auth_unix_ro = "none"
unix_sock_rw_perms = "0700"
max_clients = 5000
max_workers = 60
prio_workers = 10
max_client_requests = 20
keepalive_interval = 5
keepalive_count = 3
log_outputs = "3:stderr"
"""

_QEMU_CONF = """\
user = "root"
group = "root"
# Two libvirtd share one kernel and one directory: neither may relabel or chown the other's files.
dynamic_ownership = 0
remember_owner = 0
security_driver = "none"
# A cgroup is named after domain id and name: equal ones of two hosts would meet in one hierarchy.
cgroup_controllers = []
namespaces = []
# No virtlogd here.
stdio_handler = "file"
migration_address = "{address}"
migrate_tls_x509_cert_dir = "/etc/pki/qemu"
migrate_tls_x509_verify = 1
keepalive_interval = 5
keepalive_count = 3
"""

_STATE_DIRECTORIES = ("boot", "images", "qemu")


def host_uuid(lab: Path, host: str) -> uuid.UUID:
    """Return the host's UUID, the same at every start.

    No two hosts may share one: libvirt takes them for the same host and refuses to migrate.
    """
    return uuid.uuid5(uuid.NAMESPACE_URL, f"innkeeper-lab:{lab}:{host}")


def write_configuration(directory: Path, identity: uuid.UUID, address: str) -> None:
    """Fill a host's /etc/libvirt.

    Only the distribution's network filters are copied: a machine's own /etc/libvirt may define
    guests, and a second libvirtd that knew them would run them twice.
    """
    (directory / "libvirtd.conf").write_text(
        _LIBVIRTD_CONF.format(host_uuid=identity, address=address)
    )
    (directory / "qemu.conf").write_text(_QEMU_CONF.format(address=address))
    filters = directory / "nwfilter"
    if not filters.exists():
        shutil.copytree("/etc/libvirt/nwfilter", filters)


def create_state_directories(directory: Path) -> None:
    """Make the skeleton of a host's /var/lib/libvirt."""
    for name in _STATE_DIRECTORIES:
        (directory / name).mkdir(parents=True, exist_ok=True)
