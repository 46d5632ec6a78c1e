"""Where an image's bytes come from: the contract of all sources, and files of this host.

A source delivers from an offset, so that a broken transfer goes on where it stopped; it says when
the object has changed meanwhile.
"""

import os
import stat
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol
from urllib.parse import unquote, urlsplit

from innkeeper.addresses import show_address
from innkeeper.errors import FetchFailed, InvalidRequest, SourceRefused

CHUNK_BYTES = 1 << 20

# What an inspector wants to see of an image before more of it is read.
FIRST_CHUNK_BYTES = 1 << 16


class TransferBroken(Exception):
    """The transfer ended early or could not begin; another try may go on."""


class TransferRefused(Exception):
    """The source will not deliver, however often it is asked.

    Args:
        reason: why.
        status: what a server answered; None where none did.
        hint: the next thing to try.
    """

    def __init__(self, reason: str, *, status: int | None = None, hint: str | None = None) -> None:
        super().__init__(reason)
        self.status = status
        self.hint = hint


@dataclass(frozen=True, kw_only=True)
class Delivery:
    """What a source hands over.

    Args:
        chunks: the bytes, from ``offset`` on, at most CHUNK_BYTES at once; raises TransferBroken.
        offset_bytes: where they begin: the offset asked for, or 0 when the source starts anew.
        total_bytes: the whole object's size; None when it is not told.
        validator: what tells this version of the object from another; empty for nothing.
        is_unchanged: the object is the one of the validator that was passed; there are no bytes.
    """

    chunks: Iterator[bytes]
    offset_bytes: int
    total_bytes: int | None
    validator: str
    is_unchanged: bool = False


class ImageSource(Protocol):
    """What delivers an image's bytes."""

    can_resume: bool

    def open(
        self, offset_bytes: int, *, resume: str, known: str
    ) -> AbstractContextManager[Delivery]:
        """Return a context manager that gives a Delivery.

        Args:
            offset_bytes: how much is there already.
            resume: validator of what is there; the source starts anew when it has changed.
            known: validator of a version we have whole; "" to deliver whatever there is.
        """
        ...


class FileSource:
    """A regular file below one of the allowed roots, links resolved.

    Raises:
        InvalidRequest: it lies outside all of them.
        FetchFailed: there is no such file.
        SourceRefused: it is no regular file; it is not opened to find out.
    """

    can_resume = False

    def __init__(self, url: str, allowed_roots: tuple[Path, ...]) -> None:
        shown = show_address(url)
        self._roots = tuple(root.resolve() for root in allowed_roots)
        try:
            self._path = Path(file_path(url)).resolve(strict=True)
            mode = self._path.lstat().st_mode
        except (OSError, RuntimeError, ValueError) as error:
            raise FetchFailed(
                f"The image {shown} cannot be read on this host: {error}.", {"url": shown}
            ) from error
        if not self._is_allowed(self._path):
            roots = ", ".join(str(root) for root in allowed_roots) or "none"
            raise InvalidRequest(
                f"The image {shown} does not lie below a directory this host takes images from"
                f" ({roots}).",
                {"problems": [{"path": "image", "message": "outside the allowed directories"}]},
            )
        # Opening a device may already do something.
        if not stat.S_ISREG(mode):
            raise SourceRefused(
                f"The image {shown} is {_kind(mode)}, not a regular file.",
                {"url": shown, "reason": "not a regular file"},
            )

    @contextmanager
    def open(
        self,
        offset_bytes: int,  # noqa: ARG002 -- copying again costs less than trusting a rest
        *,
        resume: str,  # noqa: ARG002
        known: str,
    ) -> Iterator[Delivery]:
        """See ImageSource; a local file always starts anew."""
        try:
            # The path is resolved: a link here now was put there to deceive.
            number = os.open(self._path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError as error:
            raise TransferRefused(str(error)) from error
        with os.fdopen(number, "rb") as file:
            about = os.fstat(file.fileno())
            opened = Path(os.readlink(f"/proc/self/fd/{number}"))
            if not stat.S_ISREG(about.st_mode) or not self._is_allowed(opened):
                raise TransferRefused("the path leads elsewhere than a moment ago")
            validator = f"{about.st_dev}:{about.st_ino}:{about.st_size}:{about.st_mtime_ns}"
            yield Delivery(
                chunks=_read(file),
                offset_bytes=0,
                total_bytes=about.st_size,
                validator=validator,
                is_unchanged=bool(known) and known == validator,
            )

    def _is_allowed(self, path: Path) -> bool:
        return any(path.is_relative_to(root) for root in self._roots)


def _read(file: BinaryIO) -> Iterator[bytes]:
    size_bytes = FIRST_CHUNK_BYTES
    try:
        while chunk := file.read(size_bytes):
            yield chunk
            size_bytes = CHUNK_BYTES
    except OSError as error:
        raise TransferBroken(str(error)) from error


def _kind(mode: int) -> str:
    kinds = (
        (stat.S_ISDIR, "a directory"),
        (stat.S_ISFIFO, "a pipe"),
        (stat.S_ISBLK, "a block device"),
        (stat.S_ISCHR, "a character device"),
        (stat.S_ISSOCK, "a socket"),
    )
    return next((name for is_kind, name in kinds if is_kind(mode)), "something else")


def file_path(url: str) -> str:
    """Return the path of a ``file://`` URL or of an absolute path.

    Raises:
        InvalidRequest: neither.
    """
    if url.startswith("/"):
        return url
    try:
        parts = urlsplit(url)
        path = unquote(parts.path)
    except ValueError:
        parts, path = None, ""
    if (
        parts is None
        or parts.scheme != "file"
        or parts.netloc not in ("", "localhost")
        or not path.startswith("/")
    ):
        raise InvalidRequest(
            f"The image {show_address(url)} is neither a path nor a file, http or https URL.",
            {"problems": [{"path": "image", "message": "unknown kind of address"}]},
        )
    return path


def is_http(url: str) -> bool:
    """Return whether an address is for HttpSource."""
    return url.partition("://")[0].lower() in ("http", "https")
