"""The Linux guest's file system: busybox, the guest agent with its libraries, and our init."""

from __future__ import annotations

import re
import subprocess
import tempfile
from pathlib import Path

from lab.errors import LabError
from lab.guest.cpio import Entry, archive
from lab.guest.kernel import MODULES, Kernel

INIT = Path(__file__).with_name("init")
FLATTEN = Path(__file__).with_name("flatten.awk")
DIRTY_SOURCE = Path(__file__).with_name("dirty.c")
BUSYBOX = Path("/bin/busybox")
AGENT = Path("/usr/sbin/qemu-ga")

_CDROM_MODULES_FROM = MODULES.index("scsi_common")

_SCRIPTS = {
    # What the guest agent calls for guest-shutdown.
    "sbin/shutdown": '#!/bin/sh\ncase " $* " in *" -r "*) exec reboot -f ;; esac\npoweroff -f\n',
    # What busybox acpid calls for the power button.
    "etc/acpi/PWRF/00000080": "#!/bin/sh\npoweroff -f\n",
    "bin/cloud-init": (
        "#!/bin/sh\nwhile [ ! -e /run/cloud-init-done ]; do usleep 100000; done\n"
        'echo \'{"status": "done", "errors": []}\'\n'
    ),
}


def agent_libraries() -> list[Path]:
    """Return the shared libraries the guest agent needs, the loader included."""
    listing = subprocess.run(["ldd", str(AGENT)], capture_output=True, text=True, check=True)
    return [Path(path) for path in re.findall(r"(/\S+) \(0x", listing.stdout)]


def build(kernel: Kernel) -> bytes:
    """Return the initramfs, uncompressed.

    Raises:
        LabError: a program it is made of is missing.
    """
    for program in (BUSYBOX, AGENT):
        if not program.exists():
            raise LabError(f"the guest image needs {program}; run scripts/setup")
    entries = {
        "init": Entry.program(_init()),
        "bin/busybox": Entry.program(BUSYBOX.read_bytes()),
        "bin/sh": Entry.link("busybox"),
        "bin/qemu-ga": Entry.program(AGENT.read_bytes()),
        "bin/dirty": Entry.program(_compile(DIRTY_SOURCE)),
        "flatten.awk": Entry.program(FLATTEN.read_bytes()),
        "etc/passwd": Entry.program(
            b"root:x:0:0:root:/root:/bin/sh\nwww-data:x:33:33:www-data:/:/bin/sh\n"
        ),
        "etc/group": Entry.program(b"root:x:0:\nwww-data:x:33:\n"),
    }
    for path, text in _SCRIPTS.items():
        entries[path] = Entry.program(text.encode())
    for library in agent_libraries():
        entries[str(library).lstrip("/")] = Entry.program(library.read_bytes())
    for name in MODULES:
        file = kernel.find_module(name)
        if file is not None:
            entries[f"modules/{name}.ko"] = Entry.program(file.read_bytes())
    return archive(entries)


def _init() -> bytes:
    early, cdrom = MODULES[:_CDROM_MODULES_FROM], MODULES[_CDROM_MODULES_FROM:]
    script = INIT.read_text()
    script = script.replace("load @MODULES@", f"load {' '.join(early)}")
    return script.replace("@CDROM_MODULES@", " ".join(cdrom)).encode()


def _compile(source: Path) -> bytes:
    with tempfile.TemporaryDirectory() as directory:
        program = Path(directory) / source.stem
        # No build id and no paths: the same compiler gives the same bytes anywhere.
        flags = ["-static", "-O2", "-s", "-Wall", "-Werror", "-Wl,--build-id=none"]
        argv = ["gcc", *flags, "-o", str(program), str(source)]
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise LabError(
                f"{source} does not compile (is gcc installed? run scripts/setup):\n{done.stderr}"
            )
        return program.read_bytes()
