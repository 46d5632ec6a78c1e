"""The hypervisors as virsh shows and changes them, by none of the product's own code."""

import subprocess

from lab.handle import Lab

TIMEOUT_S = 30


def virsh(lab: Lab, host: str, *arguments: str, stdin: str | None = None) -> str:
    """Run virsh against a host's libvirt from outside the host, and return what it prints.

    Raises:
        subprocess.CalledProcessError: it failed.
    """
    return subprocess.run(
        ["virsh", "-q", "-c", lab.libvirt_uri(host), *arguments],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=True,
    ).stdout


def define_namesake(lab: Lab, host: str, name: str) -> None:
    """Define a domain of a guest's name and another UUID, so that libvirt refuses the guest."""
    xml = (
        f"<domain type='qemu'><name>{name}</name><memory unit='MiB'>16</memory>"
        "<os><type arch='x86_64'>hvm</type></os></domain>"
    )
    virsh(lab, host, "define", "/dev/stdin", stdin=xml)


def undefine_namesake(lab: Lab, host: str, name: str) -> None:
    """Remove what `define_namesake` made."""
    virsh(lab, host, "undefine", name)
