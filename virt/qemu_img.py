"""Calls of qemu-img: those that look at an image run in a cage, and the format is always given.

A qemu-img that guesses the format of a file a guest has written can be made to read or write any
file of the host (CVE-2024-32498, CVE-2024-4467, CVE-2026-24708).
"""

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from innkeeper.errors import FormatMismatch, HypervisorError, UnsafeImage
from virt.cage import Cage, Caged, CageTimeout, Limits, get_cage, name_file

ImageFormat = Literal["qcow2", "raw"]

TIMEOUT_S = 60.0
_LOOKING = Limits(timeout_s=TIMEOUT_S, cpu_s=30)


@dataclass(frozen=True, kw_only=True)
class QemuImgInfo:
    """What qemu-img says of a file.

    Args:
        format: the format it was opened as.
        virtual_size_bytes: the disk's size as a guest sees it.
        actual_size_bytes: what it takes on the host.
        backing_path: the file below it as its header names it; None for none.
        backing_format: that file's format as its header names it.
        data_file: an external data file; None for none.
    """

    format: str
    virtual_size_bytes: int
    actual_size_bytes: int
    backing_path: str | None
    backing_format: str | None
    data_file: str | None


def qemu_img_info(
    path: Path, image_format: ImageFormat, *, is_in_use: bool = False, cage: Cage | None = None
) -> QemuImgInfo:
    """Return what qemu-img says of a file.

    Args:
        path: absolute path.
        image_format: the format to open it as.
        is_in_use: whether a guest may be writing to it; the answer may then be torn.
        cage: where it runs; by default the tightest this host allows.

    Raises:
        FormatMismatch: it is not of that format.
        UnsafeImage: qemu-img took too much memory or time, or was killed.
        FileNotFoundError: there is no such file.
    """
    shared = ["-U"] if is_in_use else []
    argv = ["info", *shared, "--output=json", "-f", image_format]
    done = _look(argv, path, cage or get_cage())
    if done.returncode != 0:
        raise FormatMismatch(
            f"The image {path.name} cannot be opened as {image_format}: {done.last_line}",
            {"expected": image_format, "actual": "unreadable"},
        )
    said: dict[str, Any] = json.loads(done.stdout)
    specific = said.get("format-specific") or {}
    data = specific.get("data") or {}
    return QemuImgInfo(
        format=str(said["format"]),
        virtual_size_bytes=int(said["virtual-size"]),
        actual_size_bytes=int(said.get("actual-size", 0)),
        backing_path=said.get("full-backing-filename") or said.get("backing-filename"),
        backing_format=said.get("backing-filename-format"),
        data_file=data.get("data-file"),
    )


def qemu_img_check(path: Path, *, cage: Cage | None = None) -> str | None:
    """Return the first thing that is wrong with a qcow2 file's tables; None when they are sound.

    Args:
        path: absolute path of a file that nobody writes to.
        cage: where qemu-img runs.

    Raises:
        UnsafeImage: qemu-img took too much memory or time, or was killed.
    """
    done = _look(["check", "--output=json", "-f", "qcow2"], path, cage or get_cage())
    # 3 is for clusters that nothing uses: they cost space and nothing else.
    if done.returncode in (0, 3):
        return None
    said = (done.stderr or done.stdout).strip().splitlines()
    return said[0].removeprefix("ERROR: ")[:300] if said else f"it ended with {done.returncode}"


def qemu_img(argv: list[str], *, what: str, timeout_s: float = TIMEOUT_S) -> None:
    """Run a qemu-img that writes what we describe; it reads nothing that a stranger made.

    Raises:
        HypervisorError: it failed, or took longer.
    """
    try:
        done = subprocess.run(
            ["qemu-img", *argv],
            capture_output=True,
            text=True,
            timeout=timeout_s,
            env={"LC_ALL": "C", "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
            stdin=subprocess.DEVNULL,
        )
    except subprocess.TimeoutExpired as error:
        raise HypervisorError(f"qemu-img did not {what} within {timeout_s:g} s.", {}) from error
    if done.returncode != 0:
        said = Caged(done.returncode, done.stdout, done.stderr).last_line
        raise HypervisorError(f"qemu-img could not {what}: {said}", {})


@contextmanager
def open_for_cage(path: Path) -> Iterator[int]:
    """Open a file for reading by a program in the cage.

    Raises:
        FileNotFoundError: there is none.
    """
    if not path.is_absolute():
        raise ValueError(f"{path} is not an absolute path")
    number = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        yield number
    finally:
        os.close(number)


def _look(argv: list[str], path: Path, cage: Cage) -> Caged:
    with open_for_cage(path) as number:
        try:
            done = cage.run(
                ["qemu-img", *argv, name_file(number)], files=(number,), limits=_LOOKING
            )
        except CageTimeout as error:
            raise UnsafeImage(
                f"Looking at the image {path.name} took qemu-img longer than {TIMEOUT_S:g} s.",
                {"reason": "timeout"},
            ) from error
    if done.was_killed:
        raise UnsafeImage(
            f"Looking at the image {path.name} took qemu-img beyond its limits.",
            {"reason": f"qemu-img ended with {done.returncode}"},
        )
    # People know the file by its name.
    return replace(done, stderr=done.stderr.replace(name_file(number), path.name))
