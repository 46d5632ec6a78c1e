"""A look at an image where it lies: whether a guest can boot from there, and how large it is.

Raw images only: QEMU interprets nothing in raw bytes, so a server that shows us one beginning and
QEMU another gains nothing by it.
"""

import re
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING

from innkeeper.errors import FetchFailed, InvalidRequest
from innkeeper.remote_source import RemoteSource
from virt.image_source import TransferBroken, TransferRefused
from virt.inspect_image import StreamJudge, refuse_larger
from virt.remote_nbd import NbdExport

if TYPE_CHECKING:
    import httpx

HEAD_BYTES = 64 * 1024
SECTOR_BYTES = 512
ANSWER_TIMEOUT_S = 5.0


@dataclass(frozen=True, kw_only=True)
class RemoteFacts:
    """What a look at a remote image has shown; ``size_bytes`` is the disk's, in whole sectors."""

    size_bytes: int


def probe_remote(source: RemoteSource, *, max_virtual_size_bytes: int | None) -> RemoteFacts:
    """Look at an image's size and beginning.

    Args:
        source: where it is.
        max_virtual_size_bytes: the disk's size; None for no limit.

    Raises:
        FetchFailed: the source does not answer now.
        InvalidRequest: it cannot be booted from: no ranges, redirects, no such image.
        FormatMismatch: its beginning is not that of a raw image.
        ImageTooLarge: its disk would not fit.
    """
    try:
        size_bytes, head = _look(source, HEAD_BYTES)
    except TransferBroken as error:
        raise FetchFailed(
            f"The source {source.url} does not answer: {error}.", {"url": source.url}
        ) from error
    except TransferRefused as error:
        raise InvalidRequest(
            f"A guest cannot boot from {source.url} at once: {error}.",
            {
                "problems": [{"path": "image", "message": str(error)}],
                "hint": "Use delivery: fetch, or another server.",
            },
        ) from error
    size_bytes = -(-size_bytes // SECTOR_BYTES) * SECTOR_BYTES
    refuse_larger(size_bytes, max_virtual_size_bytes)
    judge = StreamJudge("raw", max_virtual_size_bytes)
    judge.feed(head)
    judge.finish()
    return RemoteFacts(size_bytes=size_bytes)


def answers(source: RemoteSource) -> bool:
    """Return whether the source delivers its first sector."""
    try:
        _look(source, SECTOR_BYTES)
    except (TransferBroken, TransferRefused):
        return False
    return True


def _look(source: RemoteSource, head_bytes: int) -> tuple[int, bytes]:
    if source.scheme == "nbd":
        with NbdExport(source, timeout_s=ANSWER_TIMEOUT_S) as export:
            return export.size_bytes, export.read(0, min(head_bytes, export.size_bytes))
    return _look_by_http(source, head_bytes)


def _look_by_http(source: RemoteSource, head_bytes: int) -> tuple[int, bytes]:
    import httpx

    # No redirects: the address that was allowed is the one that is read.
    with httpx.Client(follow_redirects=False, timeout=ANSWER_TIMEOUT_S, trust_env=False) as client:
        try:
            about = client.head(source.url, headers={"Accept-Encoding": "identity"})
            _refuse_unless_ok(about, HTTPStatus.OK)
            if about.headers.get("Accept-Ranges", "").strip().lower() != "bytes":
                raise TransferRefused("its server does not say that it delivers ranges")
            wanted = {"Range": f"bytes=0-{head_bytes - 1}", "Accept-Encoding": "identity"}
            with client.stream("GET", source.url, headers=wanted) as response:
                _refuse_unless_ok(response, HTTPStatus.PARTIAL_CONTENT)
                return _total_bytes(response), _read_most(response, head_bytes)
        except httpx.HTTPError as error:
            raise TransferBroken(str(error) or type(error).__name__) from error


def _refuse_unless_ok(response: "httpx.Response", expected: HTTPStatus) -> None:
    status = response.status_code
    if status >= 500 or status in (408, 425, 429):
        raise TransferBroken(f"the server answered {status}")
    if status != expected:
        raise TransferRefused(f"its server answered {status} where {expected.value} was expected")


def _total_bytes(response: "httpx.Response") -> int:
    found = re.fullmatch(r"bytes 0-\d+/(\d+)", response.headers.get("Content-Range", ""))
    if found is None or int(found[1]) == 0:
        raise TransferRefused("its server does not tell the image's size")
    return int(found[1])


def _read_most(response: "httpx.Response", most_bytes: int) -> bytes:
    got = b""
    for chunk in response.iter_raw():
        got += chunk
        if len(got) >= most_bytes:
            break
    return got[:most_bytes]
