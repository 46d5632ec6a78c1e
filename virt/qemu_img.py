"""Calls of qemu-img in a cage: limits on memory, CPU, files and time, nothing of the environment.

The format is always given. A qemu-img that guesses the format of a file a guest has written can be
made to read or write any file of the host (CVE-2024-32498, CVE-2024-4467, CVE-2026-24708).
"""

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from innkeeper.errors import FormatMismatch, HypervisorError, UnsafeImage

ImageFormat = Literal["qcow2", "raw"]

_ADDRESS_SPACE_BYTES = 2 << 30
_CPU_S = 30
_OPEN_FILES = 64
_WRITTEN_FILE_BYTES = 1 << 20
TIMEOUT_S = 60.0


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


def qemu_img_info(path: Path, image_format: ImageFormat, *, is_in_use: bool = False) -> QemuImgInfo:
    """Return what qemu-img says of a file.

    Args:
        path: absolute path.
        image_format: the format to open it as.
        is_in_use: whether a guest may be writing to it; the answer may then be torn.

    Raises:
        FormatMismatch: it is not of that format.
        UnsafeImage: qemu-img took too much memory or time, or was killed.
        FileNotFoundError: there is no such file.
    """
    path.stat()
    shared = ["-U"] if is_in_use else []
    argv = ["info", *shared, "--output=json", "-f", image_format, _plain(path)]
    done = _run_caged(argv, path)
    if done.returncode < 0 or done.returncode in (134, 137, 139):
        raise UnsafeImage(
            f"Looking at the image {path.name} took qemu-img beyond its limits.",
            {"reason": f"qemu-img ended with {done.returncode}"},
        )
    if done.returncode != 0:
        raise FormatMismatch(
            f"The image {path.name} cannot be opened as {image_format}: {_last_line(done)}",
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


def qemu_img(argv: list[str], *, what: str, timeout_s: float = TIMEOUT_S) -> None:
    """Run a qemu-img that writes; its limits are the caller's formats and the time.

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
        raise HypervisorError(f"qemu-img could not {what}: {_last_line(done)}", {})


def _run_caged(argv: list[str], path: Path) -> subprocess.CompletedProcess[str]:
    cage = [
        "prlimit",
        f"--as={_ADDRESS_SPACE_BYTES}",
        f"--cpu={_CPU_S}",
        f"--nofile={_OPEN_FILES}",
        f"--fsize={_WRITTEN_FILE_BYTES}",
        "--core=0",
        "--",
    ]
    try:
        return subprocess.run(
            [*cage, "qemu-img", *argv],
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            env={"LC_ALL": "C", "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
            stdin=subprocess.DEVNULL,
        )
    except subprocess.TimeoutExpired as error:
        raise UnsafeImage(
            f"Looking at the image {path.name} took qemu-img longer than {TIMEOUT_S:g} s.",
            {"reason": "timeout"},
        ) from error


def _plain(path: Path) -> str:
    # "json:{…}" and "nbd:…" are addresses to qemu-img; an absolute path never is.
    if not path.is_absolute():
        raise ValueError(f"{path} is not an absolute path")
    return str(path)


def _last_line(done: subprocess.CompletedProcess[str]) -> str:
    lines = (done.stderr or done.stdout or "").strip().splitlines()
    return lines[-1][:500] if lines else f"it ended with {done.returncode}"
