"""File systems and swap space in raw files, made without mounting anything."""

import subprocess
from pathlib import Path

from innkeeper.errors import HypervisorError
from virt.storage.backend import Content
from virt.storage.publishing import explain_full

TIMEOUT_S = 300.0
_MEMORY_BYTES = 2 << 30
_CPU_S = 120
_ENVIRONMENT = {"LC_ALL": "C", "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}

_TOOLS: dict[str, tuple[str, ...]] = {
    # Tables that are zero already need not be written; the guest's kernel fills in the rest.
    "ext4": (
        *("mkfs.ext4", "-q", "-F", "-m", "1"),
        *("-E", "nodiscard,lazy_itable_init=1,lazy_journal_init=1,root_owner=0:0"),
    ),
    "vfat": ("mkfs.vfat",),
    "swap": ("mkswap", "-q"),
}
_LABEL_OPTIONS = {"ext4": "-L", "vfat": "-n", "swap": "-L"}


def format_file(path: Path, content: Content, label: str | None) -> None:
    """Write a file system or swap space into a raw file of the right size.

    Args:
        path: absolute; nobody else uses it.
        content: ``none`` leaves it as it is.
        label: None for none.

    Raises:
        HypervisorError: the tool failed; a file can be too small or too large for it.
        HostUnsuitable: the file system below is full.
    """
    if content == "none":
        return
    argv = [*_TOOLS[content]]
    if label is not None:
        argv += [_LABEL_OPTIONS[content], label]
    cage = [
        *("setpriv", "--no-new-privs", "--pdeathsig=KILL", "--"),
        *("prlimit", f"--as={_MEMORY_BYTES}", f"--cpu={_CPU_S}", "--core=0", "--"),
    ]
    what = f"make {content} in {path.name}"
    try:
        done = subprocess.run(
            [*cage, *argv, str(path)],
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            env=_ENVIRONMENT,
            stdin=subprocess.DEVNULL,
        )
    except subprocess.TimeoutExpired as error:
        raise HypervisorError(f"{argv[0]} did not {what} within {TIMEOUT_S:g} s.", {}) from error
    if done.returncode != 0:
        lines = (done.stderr or done.stdout).strip().splitlines() or ["it said nothing"]
        failure = HypervisorError(f"{argv[0]} could not {what}: {lines[-1][:300]}", {})
        raise explain_full(failure, path)
