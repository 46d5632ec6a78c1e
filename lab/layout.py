"""Where a lab keeps its files, and what its hosts are called.

A lab is one directory ``D``::

    D/lab.json            what `env` and `status` need: network, ports, hosts
    D/supervisor.sock     control socket of the one process that owns everything
    D/supervisor.lock     held (flock) as long as the lab lives
    D/logs/ROLE[-HOST].log
    D/postgres, D/redis   data
    D/gluster             GlusterFS: its state and the bricks (only with --gluster)
    D/shared              the directory every host sees as /srv/innkeeper-shared
    D/tls                 the lab's certificate authority
    D/secret-keys         the workers' private keys for sealed secrets
    D/run/ready/          files by which workers say that they are ready
    D/hosts/NAME/         what is private to one host, bind mounted in its namespace
"""

from __future__ import annotations

import os
import string
from dataclasses import dataclass
from pathlib import Path

from lab.errors import LabError

DEFAULT_DIRECTORY = Path("/var/tmp/innkeeper-lab")  # noqa: S108 - only root writes in it
DEFAULT_CACHE = Path("/var/cache/innkeeper-lab")
REPOSITORY = Path(__file__).resolve().parent.parent

UNIX_SOCKET_PATH_MAX = 107
"""Longest path the kernel takes for a unix socket (108 bytes with the final NUL)."""

MAX_HOSTS = 200

HOST_MOUNTS = {
    "etc-libvirt": "/etc/libvirt",
    "etc-pki": "/etc/pki",
    "lib-libvirt": "/var/lib/libvirt",
    "log-libvirt": "/var/log/libvirt",
    "cache-libvirt": "/var/cache/libvirt",
    "innkeeper": "/var/lib/innkeeper",
    # Last: it may hide the sources of the others.
    "run": "/run",
}
"""Directory below ``D/hosts/NAME`` → where that host sees it."""

SHARED_MOUNT = "/srv/innkeeper-shared"

GLUSTER_MOUNT = "/srv/innkeeper-gluster"


def default_directory() -> Path:
    """Return ``$INNKEEPER_LAB_DIR`` or the built-in default."""
    return Path(os.environ.get("INNKEEPER_LAB_DIR", DEFAULT_DIRECTORY))


def cache_directory() -> Path:
    """Return the directory of things worth keeping between labs (images, QEMU capabilities)."""
    return Path(os.environ.get("INNKEEPER_LAB_CACHE", DEFAULT_CACHE))


def host_names(count: int) -> list[str]:
    """Return ``hv-a … hv-z, hv-27, hv-28 …``."""
    letters = string.ascii_lowercase
    return [f"hv-{letters[i]}" if i < len(letters) else f"hv-{i + 1}" for i in range(count)]


def variable_suffix(host: str) -> str:
    """Return the host's name as it stands in environment variables: ``hv-a`` → ``HV_A``."""
    return host.upper().replace("-", "_")


@dataclass(frozen=True)
class Layout:
    """Paths inside one lab's directory."""

    root: Path

    @property
    def description(self) -> Path:
        """Facts about the lab that runs or ran here."""
        return self.root / "lab.json"

    @property
    def control_socket(self) -> Path:
        """The supervisor's socket."""
        return self.root / "supervisor.sock"

    @property
    def lock(self) -> Path:
        """Held while the lab lives; also marks the directory as ours."""
        return self.root / "supervisor.lock"

    @property
    def logs(self) -> Path:
        """All logs."""
        return self.root / "logs"

    @property
    def postgres(self) -> Path:
        """Postgres's data."""
        return self.root / "postgres"

    @property
    def redis(self) -> Path:
        """Redis's append-only file."""
        return self.root / "redis"

    @property
    def shared(self) -> Path:
        """What all hosts see as one shared file system."""
        return self.root / "shared"

    @property
    def gluster(self) -> Path:
        """GlusterFS's state and data."""
        return self.root / "gluster"

    @property
    def tls(self) -> Path:
        """The certificate authority of the hosts."""
        return self.root / "tls"

    @property
    def secret_keys(self) -> Path:
        """The workers' private keys."""
        return self.root / "secret-keys"

    @property
    def ready(self) -> Path:
        """Directory of ready files."""
        return self.root / "run" / "ready"

    def log(self, role: str) -> Path:
        """Return a role's log."""
        return self.logs / f"{role.replace(':', '-')}.log"

    def ready_file(self, role: str) -> Path:
        """Return the file by which a role says that it is ready."""
        return self.ready / role.replace(":", "-")

    def host(self, name: str) -> Path:
        """Return a host's private directory."""
        return self.root / "hosts" / name

    def libvirt_socket(self, host: str) -> Path:
        """Return a host's libvirt socket, as seen from outside the host."""
        return self.host(host) / "run" / "libvirt" / "libvirt-sock"

    def domain_pid_file(self, host: str, domain: str) -> Path:
        """Return libvirt's record of a guest's QEMU."""
        return self.host(host) / "run" / "libvirt" / "qemu" / f"{domain}.pid"

    def check(self) -> None:
        """Refuse a directory in which the lab could not work.

        Raises:
            LabError: the path is too long for unix sockets, or hidden by a host's own mounts.
        """
        longest = f"{self.libvirt_socket('hv-100')}-ro"
        if len(longest) > UNIX_SOCKET_PATH_MAX:
            raise LabError(
                f"the lab's directory {self.root} is too long: the kernel refuses unix socket paths"
                f" over {UNIX_SOCKET_PATH_MAX} bytes, and {longest} has {len(longest)}."
                " Choose a shorter --dir."
            )
        for hidden in [*HOST_MOUNTS.values(), SHARED_MOUNT, GLUSTER_MOUNT]:
            if self.root.is_relative_to(hidden) or REPOSITORY.is_relative_to(hidden):
                raise LabError(
                    f"neither the lab's directory ({self.root}) nor the checkout ({REPOSITORY}) may"
                    f" lie in {hidden}: every host mounts its own directory there and would not see"
                    " them. Choose another --dir, for instance below /var/tmp."
                )
        if self.root.exists() and any(self.root.iterdir()) and not self.lock.exists():
            raise LabError(
                f"{self.root} is not empty and was not made by a lab; its files stay untouched."
                " Choose an empty or new --dir."
            )
