"""Whether an image is what it claims to be and refers to nothing outside itself.

Three judges who must agree: our own look at a qcow2 header and oslo.utils' inspectors, which read
the bytes as they stream past and run no code of QEMU, and qemu-img in a cage afterwards; one of
them alone can be fooled (CVE-2024-40767).
"""

from pathlib import Path
from typing import Any, Protocol

from innkeeper.errors import (
    BackingFile,
    ExternalDataFile,
    FormatMismatch,
    ImageTooLarge,
    MalformedImage,
    NotAnImage,
    TruncatedImage,
    UnsafeImage,
)
from virt.cage import Cage
from virt.image_magic import name_first_bytes
from virt.qcow2_header import HEADER_BYTES, Qcow2Header, parse_header
from virt.qemu_img import ImageFormat, qemu_img_check, qemu_img_info

RULES_VERSION = 2
"""Raised when these checks get stricter: cached images are judged again."""

# A disk with a partition table is still a raw file.
_ALLOWED = {"qcow2": frozenset({"qcow2"}), "raw": frozenset({"raw", "gpt"})}

# Formats that are recognised by their first bytes.
_HEADERS = ("qcow2", "qed", "vdi", "vhdx", "vmdk", "luks")

_MAGIC_BYTES = 512
_BEGINNING_BYTES = 1 << 20
_SECTOR_BYTES = 512


class Judge(Protocol):
    """Looks at bytes on their way to the disk, and objects as early as it can."""

    @property
    def virtual_size_bytes(self) -> int:
        """The disk's size; 0 where there is no disk."""

    def expect(self, total_bytes: int) -> None:
        """Be told how many bytes will come."""

    def feed(self, chunk: bytes) -> None:
        """Look at the next bytes."""

    def finish(self) -> None:
        """Judge at the end."""


class BlobJudge:
    """Takes anything: what comes is opened by no program that reads images."""

    virtual_size_bytes = 0

    def expect(self, total_bytes: int) -> None:
        """See Judge."""

    def feed(self, chunk: bytes) -> None:
        """See Judge."""

    def finish(self) -> None:
        """See Judge."""


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
        self._format: ImageFormat = image_format
        self._max_bytes = max_virtual_size_bytes
        self._seen_bytes = 0
        self._first = bytearray()
        self._header: Qcow2Header | None = None
        self._total_bytes: int | None = None
        self._fed = _Fed()
        # Only here: every worker would take a while longer to start.
        from oslo_utils.imageutils import format_inspector

        # The wrapper's verdict stands only when the last inspector has seen enough, which may be
        # the end of the stream; the early ones speak as soon as their own header is complete.
        self._wrapper = format_inspector.InspectWrapper(self._fed)
        self._early = {name: format_inspector.get_inspector(name)() for name in _HEADERS}

    @property
    def virtual_size_bytes(self) -> int:
        """The disk's size by these judges, once they have seen enough."""
        return self._header.virtual_size_bytes if self._header else self._seen_bytes

    def expect(self, total_bytes: int) -> None:
        """Be told how many bytes will come; raises what ``feed`` raises."""
        self._total_bytes = total_bytes
        if self._format == "raw":
            refuse_larger(total_bytes, self._max_bytes)

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
        if len(self._first) < _MAGIC_BYTES:
            self._first += chunk[: _MAGIC_BYTES - len(self._first)]
            if len(self._first) == _MAGIC_BYTES:
                self._judge_first_bytes()
        self._fed.chunk = chunk
        self._wrapper.read(len(chunk))
        for name in list(self._early):
            self._look_early(name, chunk)

    def finish(self) -> None:
        """Judge at the end of the image; raises what ``feed`` raises."""
        from oslo_utils.imageutils import format_inspector

        if len(self._first) < _MAGIC_BYTES:
            self._judge_first_bytes()
        if self._header is not None:
            self._header.require_within(self._seen_bytes)
        self._wrapper.close()
        try:
            inspector = self._wrapper.format
        except format_inspector.ImageFormatError as error:
            raise self._mismatch(str(error)) from error
        self._judge(inspector)

    def _judge_first_bytes(self) -> None:
        first = bytes(self._first)
        kind, name = name_first_bytes(first)
        if self._format == "raw":
            if kind == "disk":
                raise self._mismatch(name)
            if kind in ("packed", "page") or not first:
                raise self._not_an_image(name)
            return
        if kind != "disk":
            raise self._not_an_image(name)
        if name != self._format:
            raise self._mismatch(name)
        self._header = parse_header(first[:HEADER_BYTES])
        refuse_larger(self._header.virtual_size_bytes, self._max_bytes)
        if self._total_bytes is not None:
            self._header.require_within(self._total_bytes)

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
        if found == "qcow2" and int(inspector.virtual_size) != self.virtual_size_bytes:
            raise self._mismatch("a qcow2 whose size is read in two ways")

    def _mismatch(self, found: str) -> FormatMismatch:
        return FormatMismatch(
            f"The image was declared to be {self._format} and is not: {found}.",
            {"expected": self._format, "actual": found},
        )

    def _not_an_image(self, found: str) -> NotAnImage:
        return NotAnImage(
            f"The image was declared to be {self._format} and is no image: {found}.",
            {"expected": self._format, "actual": found},
        )


def inspect_beginning(path: Path, image_format: ImageFormat) -> None:
    """Let the judges of the stream look at a file that passed them under older rules.

    Raises:
        FormatMismatch: another format.
        UnsafeImage: today's rules refuse it.
    """
    judge = StreamJudge(image_format)
    judge.expect(path.stat().st_size)
    with path.open("rb") as file:
        judge.feed(file.read(_BEGINNING_BYTES))


def inspect_file(
    path: Path, image_format: ImageFormat, *, cage: Cage, judged_bytes: int | None = None
) -> int:
    """Let qemu-img judge a whole file.

    Args:
        path: the file.
        image_format: what it must be.
        cage: where qemu-img runs.
        judged_bytes: the disk's size by the other judges, who must agree; None to take any.

    Returns:
        The disk's size in bytes.

    Raises:
        FormatMismatch: it cannot be opened as that format, or the judges disagree.
        UnsafeImage: a backing file, an external data file, tables that contradict each other.
    """
    info = qemu_img_info(path, image_format, cage=cage)
    size_bytes = info.virtual_size_bytes
    if info.backing_path is not None:
        raise BackingFile(
            "The image is refused because it rests on another file.",
            {"reason": "qemu-img sees a backing file"},
        )
    if info.data_file is not None:
        raise ExternalDataFile(
            "The image is refused because its data are in another file.",
            {"reason": "qemu-img sees an external data file"},
        )
    # QEMU counts whole sectors.
    whole = None if judged_bytes is None else -(-judged_bytes // _SECTOR_BYTES) * _SECTOR_BYTES
    if info.format != image_format or whole not in (None, size_bytes):
        raise FormatMismatch(
            f"The image is {image_format} with {judged_bytes} bytes to the one judge,"
            f" {info.format} with {size_bytes} bytes to the other.",
            {"expected": image_format, "actual": info.format},
        )
    if image_format == "qcow2":
        _require_sound(path, cage)
    return size_bytes


def _require_sound(path: Path, cage: Cage) -> None:
    found = qemu_img_check(path, cage=cage)
    if found is None:
        return
    kind = TruncatedImage if "end of the file" in found else MalformedImage
    raise kind(f"The image is refused because its tables are wrong: {found}.", {"reason": found})


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
