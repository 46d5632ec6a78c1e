"""Real shared storage: a GlusterFS server in namespaces of its own, mounted on every host.

Glusterd keeps its state in `/var/lib/glusterd` and listens on fixed ports, once per machine. In a
mount namespace the directory is the lab's own, in a network namespace the ports are, so labs do not
meet. Servers, bricks and mounts end with the lab's namespaces, however it ends.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from lab.layout import GLUSTER_MOUNT, Layout
from lab.namespaces import Namespaces, hold
from lab.processes import ProcessTable

SERVER = "gluster"
"""Its name on the network; bricks are known by it, so the subnet may change between two runs."""

VOLUME = "pool"

_GLUSTERD_VOL = """\
volume management
    type mgmt/glusterd
    option working-directory /var/lib/glusterd
    option transport-type socket
    option transport.address-family inet
end-volume
"""

_MOUNTS = {"lib": "/var/lib/glusterd", "log": "/var/log/glusterfs", "run": "/run"}

_OPTIONS = {
    "network.ping-timeout": "5",
    # What GlusterFS itself turns off for volumes of virtual machines (its group «virt»).
    "performance.quick-read": "off",
    "performance.read-ahead": "off",
    "performance.io-cache": "off",
    "performance.open-behind": "off",
    "network.remote-dio": "off",
    "performance.strict-o-direct": "on",
}


async def boot(table: ProcessTable, layout: Layout, hosts_file: str) -> Namespaces:
    """Create the server's namespaces."""
    base = layout.gluster
    # Sockets and pid files of a run before would be taken for living processes.
    shutil.rmtree(base / "run", ignore_errors=True)
    for directory in (*_MOUNTS, "brick"):
        (base / directory).mkdir(parents=True, exist_ok=True)
    (base / "glusterd.vol").write_text(_GLUSTERD_VOL)
    (base / "hosts").write_text(hosts_file)
    Path("/var/log/glusterfs").mkdir(exist_ok=True)
    setup = [["hostname", SERVER], ["mount", "--bind", str(base / "hosts"), "/etc/hosts"]]
    setup += [["mount", "--bind", str(base / own), target] for own, target in _MOUNTS.items()]
    return await hold(table, SERVER, ("mount", "net", "uts"), setup=setup)


def server_command(layout: Layout) -> list[str]:
    """Return the command line of glusterd, to be run in its namespaces."""
    vol = str(layout.gluster / "glusterd.vol")
    return ["glusterd", "--no-daemon", f"--volfile={vol}", "--log-level=WARNING"]


def ready_command() -> list[str]:
    """Return a command that succeeds, in the namespaces, when glusterd answers."""
    return ["gluster", "--mode=script", "--timeout=10", "volume", "list"]


async def ensure_volume(table: ProcessTable, layout: Layout, server: Namespaces) -> None:
    """Make the volume when it is new, and start its brick."""

    async def gluster(*words: str) -> str:
        return await table.run(*server.command(["gluster", "--mode=script", "volume", *words]))

    if VOLUME not in (await gluster("list")).split():
        brick = f"{SERVER}:{layout.gluster / 'brick'}"
        # «force»: the brick lies on the machine's root file system.
        await gluster("create", VOLUME, "transport", "tcp", brick, "force")
        await gluster("set", VOLUME, *(word for pair in _OPTIONS.items() for word in pair))
    await gluster("start", VOLUME, "force")


def mount_command(layout: Layout, host: str) -> list[str]:
    """Return the command line of a host's mount, to be run in the host's namespaces."""
    # What a killed client leaves is still mounted, and answers every call with an error.
    tidy = 'umount --lazy "$0" 2>/dev/null; exec "$@"'
    return [
        *("sh", "-c", tidy, GLUSTER_MOUNT),
        "glusterfs",
        "--no-daemon",
        f"--volfile-server={SERVER}",
        f"--volfile-id={VOLUME}",
        f"--log-file={layout.log(f'gluster-client:{host}')}",
        "--log-level=WARNING",
        "--direct-io-mode=enable",
        GLUSTER_MOUNT,
    ]


def mounted_command() -> list[str]:
    """Return a command that succeeds, in the host's namespaces, when the mount answers."""
    # One look at one path: what a killed client left answers with an error, and the bare
    # directory under it lies on another kind of file system.
    look = 'test "$(stat --file-system --format=%T "$0")" = fuseblk'
    return ["sh", "-c", look, GLUSTER_MOUNT]
