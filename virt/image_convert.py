"""An image written anew in another format, in the cage: bounded, whole or not at all."""

import os
import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Literal
from uuid import uuid4

from innkeeper.errors import HostUnsuitable, HypervisorError, ImageError, UnsafeImage
from virt.cage import Cage, Caged, CageTimeout, Limits, get_cage, name_file
from virt.identity import sync_directory
from virt.inspect_image import refuse_larger
from virt.qemu_img import ImageFormat, open_for_cage, qemu_img_info

Preallocation = Literal["off", "metadata", "falloc", "full"]

TIMEOUT_S = 3600.0
# What a format needs beside the disk's own bytes: QEMU's tables are far smaller.
_OVERHEAD_BYTES = 16 << 20
_PERCENT = re.compile(r"\((\d+(?:\.\d+)?)/100%\)")


def convert(
    src: Path,
    src_format: ImageFormat,
    dst: Path,
    dst_format: ImageFormat,
    *,
    max_bytes: int,
    preallocation: Preallocation = "off",
    mode: int = 0o644,
    timeout_s: float = TIMEOUT_S,
    on_progress: Callable[[float], None] = lambda _fraction: None,
    check: Callable[[], None] = lambda: None,
    cage: Cage | None = None,
) -> int:
    """Write an image anew; a file that is there already is replaced when the new one is whole.

    Half-made files of a process that died are removed; the caller sees to it that no other is at
    work on the same path.

    Args:
        src: absolute path of an image that was judged before, and that nobody writes to.
        src_format: given to QEMU, which must never guess it.
        dst: absolute path; its directory exists.
        dst_format: likewise.
        max_bytes: the disk may not be larger, nor, but for its tables, what is written.
        preallocation: how much is claimed from the file system beforehand; metadata is for qcow2.
        mode: of the new file.
        timeout_s: how long it may take.
        on_progress: told the fraction that is done, 0…1.
        check: called several times a second; may raise to stop.
        cage: where qemu-img runs; by default the tightest this host allows.

    Returns:
        The disk's size in bytes.

    Raises:
        ImageTooLarge: the disk exceeds max_bytes.
        UnsafeImage: qemu-img went beyond its limits.
        HostUnsuitable: no space is left.
        HypervisorError: qemu-img failed.
    """
    cage = cage or get_cage()
    info = qemu_img_info(src, src_format, cage=cage)
    refuse_larger(info.virtual_size_bytes, max_bytes)
    for half_made in dst.parent.glob(f".{dst.name}.*.converting"):
        half_made.unlink(missing_ok=True)
    own = dst.with_name(f".{dst.name}.{uuid4().hex}.converting")
    limits = Limits(
        timeout_s=timeout_s,
        cpu_s=max(30, int(timeout_s)),
        written_bytes=max_bytes + _OVERHEAD_BYTES,
    )

    def look_around(said: str) -> None:
        check()
        fraction = _fraction(said)
        if fraction is not None:
            on_progress(fraction)

    with open_for_cage(src) as source:
        target = os.open(own, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            cage.give(target)
            # Out of order and in parallel: a new file has no order to keep.
            argv = ["qemu-img", "convert", "-p", "-W", "-m", "8", "-f", src_format]
            argv += ["-O", dst_format, "-o", f"preallocation={preallocation}"]
            done = cage.run(
                [*argv, name_file(source), name_file(target)],
                files=(source, target),
                limits=limits,
                look_around=look_around,
            )
            _require_success(done, src, dst)
            os.fchown(target, os.geteuid(), os.getegid())
            os.fchmod(target, mode)
            os.fsync(target)
            os.replace(own, dst)
            sync_directory(dst.parent)
        except CageTimeout as error:
            raise UnsafeImage(
                f"Converting the image {src.name} took qemu-img longer than {timeout_s:g} s.",
                {"reason": "timeout", "limit_s": timeout_s},
            ) from error
        finally:
            os.close(target)
            with suppress(FileNotFoundError):
                own.unlink()
    return info.virtual_size_bytes


def _require_success(done: Caged, src: Path, dst: Path) -> None:
    if done.returncode == 0:
        return
    said = done.last_line
    if "No space left on device" in said or "Disk quota exceeded" in said:
        raise HostUnsuitable(
            f"This host has no space left for {dst}.", {"reason": "ENOSPC", "path": str(dst)}
        )
    kind: type[HypervisorError | ImageError] = HypervisorError
    if done.was_killed or "File too large" in said:
        kind = UnsafeImage
    raise kind(f"The image {src.name} could not be converted to {dst}: {said}", {"reason": said})


def _fraction(said: str) -> float | None:
    percents = _PERCENT.findall(said[-200:])
    return float(percents[-1]) / 100 if percents else None
