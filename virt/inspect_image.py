"""Whether an image is what it claims to be and refers to nothing outside itself.

Two judges who must agree: oslo.utils' inspectors, which read the bytes as they stream past and run
no code of QEMU, and qemu-img in a cage afterwards; one of them alone can be fooled
(CVE-2024-40767).
"""

from pathlib import Path
from typing import Any

from innkeeper.errors import FormatMismatch, ImageTooLarge, UnsafeImage
from virt.qemu_img import ImageFormat, QemuImgInfo, qemu_img_info

RULES_VERSION = 1
"""Raised when these checks get stricter: cached images are judged again."""

# A disk with a partition table is still a raw file.
_ALLOWED = {"qcow2": frozenset({"qcow2"}), "raw": frozenset({"raw", "gpt"})}

# Formats that are recognised by their first bytes.
_HEADERS = ("qcow2", "qed", "vdi", "vhdx", "vmdk", "luks")


class _Fed:
    """A stream of one chunk at a time, for an inspector that wants to read."""

    def __init__(self) -> None:
        self.chunk = b""

    def read(self, _size: int) -> bytes:
        return self.chunk


class StreamJudge:
    """Looks at an image's bytes on their way to the disk and objects as early as it can.

    Args:
        image_format: what the image claims to be.
        max_virtual_size_bytes: the disk's size; None for no limit.
    """

    def __init__(
        self, image_format: ImageFormat, max_virtual_size_bytes: int | None = None
    ) -> None:
        self._format = image_format
        self._max_bytes = max_virtual_size_bytes
        self._seen_bytes = 0
        self._fed = _Fed()
        # Only here: every worker would take a while longer to start.
        from oslo_utils.imageutils import format_inspector

        # The wrapper's verdict stands only when the last inspector has seen enough, which may be
        # the end of the stream; the early ones speak as soon as their own header is complete.
        self._wrapper = format_inspector.InspectWrapper(self._fed)
        self._early = {name: format_inspector.get_inspector(name)() for name in _HEADERS}

    def feed(self, chunk: bytes) -> None:
        """Look at the next bytes.

        Raises:
            FormatMismatch: another format, or several at once.
            UnsafeImage: a backing file, an external data file, unknown features.
            ImageTooLarge: a larger disk than allowed.
        """
        self._seen_bytes += len(chunk)
        if self._format == "raw":
            refuse_larger(self._seen_bytes, self._max_bytes)
        self._fed.chunk = chunk
        self._wrapper.read(len(chunk))
        for name in list(self._early):
            self._look_early(name, chunk)

    def finish(self) -> None:
        """Judge at the end of the image; raises what ``feed`` raises."""
        from oslo_utils.imageutils import format_inspector

        self._wrapper.close()
        try:
            inspector = self._wrapper.format
        except format_inspector.ImageFormatError as error:
            raise self._mismatch(str(error)) from error
        self._judge(inspector)

    def _look_early(self, name: str, chunk: bytes) -> None:
        inspector = self._early[name]
        try:
            inspector.eat_chunk(chunk)
            is_complete, matches = inspector.complete, inspector.format_match
        except Exception:
            # Parsers raise anything at all on bytes that are not theirs.
            is_complete, matches = True, False
        if name != self._format:
            if matches:
                raise self._mismatch(name)
        elif is_complete:
            if not matches:
                raise self._mismatch("something else")
            self._judge(inspector)
        if is_complete:
            del self._early[name]

    def _judge(self, inspector: Any) -> None:
        from oslo_utils.imageutils import format_inspector

        found = str(inspector)
        if inspector is None or found not in _ALLOWED[self._format]:
            raise self._mismatch(found)
        try:
            inspector.safety_check()
        except format_inspector.SafetyCheckFailed as error:
            reasons = "; ".join(f"{name}: {why}" for name, why in error.failures.items())
            raise UnsafeImage(
                f"The image is refused because it is unsafe to use: {reasons}.",
                {"reason": reasons},
            ) from error
        if found == "qcow2":
            refuse_larger(int(inspector.virtual_size), self._max_bytes)

    def _mismatch(self, found: str) -> FormatMismatch:
        return FormatMismatch(
            f"The image was declared to be {self._format} and is not: {found}.",
            {"expected": self._format, "actual": found},
        )


def inspect_file(path: Path, image_format: ImageFormat) -> QemuImgInfo:
    """Let qemu-img judge a whole file.

    Raises:
        FormatMismatch: it cannot be opened as that format.
        UnsafeImage: a backing file or an external data file.
    """
    info = qemu_img_info(path, image_format)
    outside = info.backing_path or info.data_file
    if outside is not None:
        raise UnsafeImage(
            "The image is refused because it refers to a file outside itself.",
            {"reason": f"refers to {outside}"},
        )
    return info


def refuse_larger(virtual_size_bytes: int, max_bytes: int | None) -> None:
    """Refuse an image whose disk would not fit.

    Raises:
        ImageTooLarge: it would not.
    """
    if max_bytes is not None and virtual_size_bytes > max_bytes:
        raise ImageTooLarge(
            f"The image's disk has {virtual_size_bytes} bytes; the guest's disk may have"
            f" {max_bytes} bytes.",
            {"virtual_size_bytes": virtual_size_bytes, "disk_size_bytes": max_bytes},
        )
