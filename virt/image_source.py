"""Where an image's bytes come from: a file below an allowed root, or an HTTP server.

A source delivers from an offset, so that a broken transfer goes on where it stopped; it says when
the object has changed meanwhile.
"""

import os
import stat
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Protocol
from urllib.parse import unquote, urlsplit

from innkeeper.errors import FetchFailed, InvalidRequest

if TYPE_CHECKING:
    import httpx

CHUNK_BYTES = 1 << 20
MAX_REDIRECTS = 5
CONNECT_TIMEOUT_S = 10.0
READ_TIMEOUT_S = 10.0


class TransferBroken(Exception):
    """The transfer ended early or could not begin; another try may go on."""


class TransferRefused(Exception):
    """The source will not deliver, however often it is asked."""


@dataclass(frozen=True, kw_only=True)
class Delivery:
    """What a source hands over.

    Args:
        chunks: the bytes, from ``offset`` on; raises TransferBroken.
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
        InvalidRequest: it lies outside all of them, or is no regular file.
        FetchFailed: there is no such file.
    """

    can_resume = False

    def __init__(self, url: str, allowed_roots: tuple[Path, ...]) -> None:
        self._url = url
        path = Path(file_path(url))
        try:
            self._path = path.resolve(strict=True)
        except (OSError, RuntimeError) as error:
            raise FetchFailed(
                f"The image {url} cannot be read on this host: {error}.", {"url": url}
            ) from error
        if not any(self._path.is_relative_to(root.resolve()) for root in allowed_roots):
            roots = ", ".join(str(root) for root in allowed_roots) or "none"
            raise InvalidRequest(
                f"The image {url} does not lie below a directory this host takes images from"
                f" ({roots}).",
                {"problems": [{"path": "image", "message": "outside the allowed directories"}]},
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
            if not stat.S_ISREG(about.st_mode):
                raise TransferRefused("not a regular file")
            validator = f"{about.st_dev}:{about.st_ino}:{about.st_size}:{about.st_mtime_ns}"
            yield Delivery(
                chunks=_read(file),
                offset_bytes=0,
                total_bytes=about.st_size,
                validator=validator,
                is_unchanged=bool(known) and known == validator,
            )


def _read(file: BinaryIO) -> Iterator[bytes]:
    try:
        while chunk := file.read(CHUNK_BYTES):
            yield chunk
    except OSError as error:
        raise TransferBroken(str(error)) from error


class HttpSource:
    """An http or https URL, fetched with Range requests where a transfer broke."""

    can_resume = True

    def __init__(self, url: str, client: "httpx.Client") -> None:
        self._url = url
        self._client = client

    @contextmanager
    def open(self, offset_bytes: int, *, resume: str, known: str) -> Iterator[Delivery]:
        """See ImageSource."""
        import httpx

        # The bytes as they are: a transport encoding would hide their number and their digest.
        headers = {"Accept-Encoding": "identity"}
        if offset_bytes and resume:
            headers |= {"Range": f"bytes={offset_bytes}-", "If-Range": resume}
        elif known:
            headers |= {"If-None-Match": known} if _is_tag(known) else {"If-Modified-Since": known}
        try:
            with self._client.stream("GET", self._url, headers=headers) as response:
                yield self._delivery(response, offset_bytes)
        except httpx.TooManyRedirects as error:
            raise TransferRefused(f"more than {MAX_REDIRECTS} redirects") from error
        except (httpx.UnsupportedProtocol, httpx.InvalidURL) as error:
            raise TransferRefused(str(error)) from error
        except httpx.HTTPError as error:
            raise TransferBroken(str(error) or type(error).__name__) from error

    def _delivery(self, response: "httpx.Response", offset_bytes: int) -> Delivery:
        status = response.status_code
        if status == HTTPStatus.NOT_MODIFIED:
            return Delivery(
                chunks=iter(()), offset_bytes=0, total_bytes=None, validator="", is_unchanged=True
            )
        if status >= 500 or status in (408, 425, 429):
            raise TransferBroken(f"the server answered {status}")
        if status not in (200, 206):
            raise TransferRefused(f"the server answered {status}")
        length = response.headers.get("Content-Length", "")
        begins_at = _range_start(response) if status == 206 else 0
        if begins_at not in (0, offset_bytes):
            raise TransferRefused(f"the server sent bytes from {begins_at}, not {offset_bytes}")
        total = int(length) + begins_at if length.isdigit() else None
        return Delivery(
            chunks=response.iter_raw(CHUNK_BYTES),
            offset_bytes=begins_at,
            total_bytes=total,
            validator=_validator(response),
        )


def http_client() -> "httpx.Client":
    """Return a client with our bounds on time and redirects."""
    # Only here and where it is used: every worker would take a tenth of a second longer to start.
    import httpx

    return httpx.Client(
        follow_redirects=True,
        max_redirects=MAX_REDIRECTS,
        timeout=httpx.Timeout(READ_TIMEOUT_S, connect=CONNECT_TIMEOUT_S),
    )


def file_path(url: str) -> str:
    """Return the path of a ``file://`` URL or of an absolute path.

    Raises:
        InvalidRequest: neither.
    """
    if url.startswith("/"):
        return url
    parts = urlsplit(url)
    if parts.scheme != "file" or parts.netloc not in ("", "localhost"):
        raise InvalidRequest(
            f"The image {url} is neither a path nor a file, http or https URL.",
            {"problems": [{"path": "image", "message": "unknown kind of address"}]},
        )
    return unquote(parts.path)


def is_http(url: str) -> bool:
    """Return whether an address is for HttpSource."""
    return urlsplit(url).scheme in ("http", "https")


def _validator(response: "httpx.Response") -> str:
    tag: str = response.headers.get("ETag", "")
    # If-Range takes no weak tags.
    return tag if tag and not tag.startswith("W/") else response.headers.get("Last-Modified", "")


def _is_tag(validator: str) -> bool:
    return validator.startswith('"')


def _range_start(response: "httpx.Response") -> int:
    said = response.headers.get("Content-Range", "")
    first = said.removeprefix("bytes ").split("-")[0]
    return int(first) if first.isdigit() else -1
