"""Images from http and https servers that may be slow, wrong or hostile.

Every wait has an end: connecting, the answer's headers in all, each silence, and a body that only
drips. Redirects are followed by hand, because each next address must be one that is allowed.
"""

import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from innkeeper.addresses import has_secret, hide_secrets
from virt.image_source import (
    CHUNK_BYTES,
    FIRST_CHUNK_BYTES,
    Delivery,
    TransferBroken,
    TransferRefused,
)

if TYPE_CHECKING:
    import httpx

MAX_REDIRECTS = 5
_ERROR_BODY_BYTES = 4096
_PIECE_BYTES = 1 << 16
_HOLD_S = 0.25


@dataclass(frozen=True, kw_only=True)
class Patience:
    """How long a server may take.

    Args:
        connect_s: for a connection.
        answer_s: for everything until the headers of the last answer are here.
        silence_s: between two pieces of the body.
        window_s: over how much waiting the least rate is measured.
        least_bytes_per_s: below it the transfer is given up.
    """

    connect_s: float = 10.0
    answer_s: float = 30.0
    silence_s: float = 10.0
    window_s: float = 15.0
    least_bytes_per_s: int = 4096


class HttpSource:
    """An http or https URL, fetched with Range requests where a transfer broke.

    Args:
        url: the address.
        client: made by ``http_client``.
        patience: bounds of time.
        max_redirects: how many are followed.
    """

    can_resume = True

    def __init__(
        self,
        url: str,
        client: "httpx.Client",
        patience: Patience,
        *,
        max_redirects: int = MAX_REDIRECTS,
    ) -> None:
        self._url = url
        self._client = client
        self._patience = patience
        self._max_redirects = max_redirects

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
        response: httpx.Response | None = None
        try:
            with _AnswerLimit(self._patience.answer_s) as limit:
                response = self._follow(headers, limit)
                delivery = self._delivery(response, offset_bytes)
            yield delivery
        except (httpx.UnsupportedProtocol, httpx.InvalidURL) as error:
            raise TransferRefused(hide_secrets(str(error))) from error
        except (httpx.HTTPError, httpx.StreamError) as error:
            raise TransferBroken(hide_secrets(str(error)) or type(error).__name__) from error
        finally:
            if response is not None:
                response.close()

    def _follow(self, headers: dict[str, str], limit: "_AnswerLimit") -> "httpx.Response":
        request = self._client.build_request(
            "GET", self._url, headers=headers, extensions={"trace": limit.trace}
        )
        seen = set()
        while True:
            seen.add(str(request.url))
            response = self._client.send(request, stream=True, follow_redirects=False)
            following = response.next_request
            if following is None:
                return response
            response.close()
            _refuse_redirect(request.url, following.url)
            if str(following.url) in seen:
                raise TransferRefused("its redirects lead in a circle")
            if len(seen) > self._max_redirects:
                raise TransferRefused(f"more than {self._max_redirects} redirects")
            request = following

    def _delivery(self, response: "httpx.Response", offset_bytes: int) -> Delivery:
        status = response.status_code
        if status == HTTPStatus.NOT_MODIFIED:
            return Delivery(
                chunks=iter(()), offset_bytes=0, total_bytes=None, validator="", is_unchanged=True
            )
        if status >= 500 or status in (408, 425, 429):
            raise TransferBroken(f"the server answered {status}")
        if status not in (200, 206):
            raise self._refusal(response)
        encoding = response.headers.get("Content-Encoding", "identity").strip().lower()
        if encoding not in ("", "identity"):
            raise TransferRefused(
                f"the server sends it compressed ({encoding[:40]}), which nobody asked for"
            )
        length = response.headers.get("Content-Length", "")
        begins_at = _range_start(response) if status == 206 else 0
        if begins_at not in (0, offset_bytes):
            raise TransferRefused(f"the server sent bytes from {begins_at}, not {offset_bytes}")
        total = int(length) + begins_at if length.isascii() and length.isdigit() else None
        return Delivery(
            chunks=_gathered(_paced(response.iter_raw(), self._patience)),
            offset_bytes=begins_at,
            total_bytes=total,
            validator=_validator(response),
        )

    def _refusal(self, response: "httpx.Response") -> TransferRefused:
        status = response.status_code
        said = b""
        for piece in response.iter_raw():
            said += piece
            if len(said) >= _ERROR_BODY_BYTES:
                break
        # Only the code: the rest of such an answer repeats the signature.
        code = re.search(rb"<Code>([A-Za-z]{1,64})</Code>", said[:_ERROR_BODY_BYTES])
        reason = f"the server answered {status}" + (f" ({code[1].decode()})" if code else "")
        if status in (401, 403, 410) and has_secret(self._url):
            return TransferRefused(
                f"{reason}; its signature or its password is wrong or has expired",
                status=status,
                hint="Ask again with a freshly signed address; what was fetched so far is kept"
                " when the request has a digest.",
            )
        return TransferRefused(reason, status=status)


def http_client(patience: Patience) -> "httpx.Client":
    """Return a client with our bounds on time, which follows nothing by itself."""
    # Only here and where it is used: every worker would take a tenth of a second longer to start.
    import httpx

    return httpx.Client(
        follow_redirects=False,
        timeout=httpx.Timeout(patience.silence_s, connect=patience.connect_s),
        # A connection that is kept would not be seen by the limit on an answer's time.
        limits=httpx.Limits(max_keepalive_connections=0),
    )


class _AnswerLimit:
    """Cuts the connections of one request when its answer is not here in time.

    The client's own timeouts are per read: headers that drip would pass them for hours.
    """

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._sockets: list[socket.socket] = []
        self._is_late = False
        self._lock = threading.Lock()
        self._timer = threading.Timer(limit_s, self._cut)
        self._timer.daemon = True

    def __enter__(self) -> "_AnswerLimit":
        self._timer.start()
        return self

    def __exit__(self, _kind: object, error: object, _trace: object) -> None:
        self._timer.cancel()
        with self._lock:
            for held in self._sockets:
                held.close()
            self._sockets.clear()
        if self._is_late:
            raise TransferBroken(f"no whole answer within {self._limit_s:g} s")

    def trace(self, name: str, info: dict[str, Any]) -> None:
        """See httpcore's extension ``trace``."""
        if name != "connection.connect_tcp.complete":
            return
        made = info["return_value"].get_extra_info("socket")
        with self._lock:
            # A descriptor of our own: the client may close its one meanwhile, and the number be
            # another file's.
            self._sockets.append(made.dup())
        if self._is_late:
            self._cut()

    def _cut(self) -> None:
        with self._lock:
            self._is_late = True
            for held in self._sockets:
                with suppress(OSError):
                    held.shutdown(socket.SHUT_RDWR)


def _paced(chunks: Iterator[bytes], patience: Patience) -> Iterator[bytes]:
    """Pass bytes on, and give up a server that keeps us waiting for hardly anything."""
    waited_s, got_bytes = 0.0, 0
    while True:
        begun_s = time.monotonic()
        chunk = next(chunks, None)
        waited_s += time.monotonic() - begun_s
        if chunk is None:
            return
        got_bytes += len(chunk)
        if waited_s >= patience.window_s:
            if got_bytes < waited_s * patience.least_bytes_per_s:
                raise TransferBroken(
                    f"only {got_bytes} bytes came within {waited_s:.1f} s; the least is"
                    f" {patience.least_bytes_per_s} bytes/s"
                )
            waited_s, got_bytes = 0.0, 0
        yield chunk


def _gathered(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """Pass the first pieces on at once, for the judge, then larger ones, which cost less.

    None is held back for long: a server that drips must not keep us from looking around.
    """
    import httpx

    passed_bytes, held, since_s = 0, bytearray(), time.monotonic()
    broken: Exception | None = None
    while broken is None:
        try:
            piece = next(pieces, None)
        except (TransferBroken, httpx.HTTPError, httpx.StreamError) as error:
            broken, piece = error, None
        if piece is None:
            break
        held += piece
        is_first = passed_bytes < FIRST_CHUNK_BYTES
        is_much = len(held) > CHUNK_BYTES - _PIECE_BYTES
        if is_first or is_much or time.monotonic() - since_s > _HOLD_S:
            yield bytes(held)
            passed_bytes, held, since_s = passed_bytes + len(held), bytearray(), time.monotonic()
    if held:
        yield bytes(held)
    if broken is not None:
        raise broken


def _refuse_redirect(before: "httpx.URL", after: "httpx.URL") -> None:
    if after.scheme not in ("http", "https"):
        raise TransferRefused(f"it redirects to an address of the kind {after.scheme[:20]!r}")
    if before.scheme == "https" and after.scheme == "http":
        raise TransferRefused("it redirects from https to http")


def _validator(response: "httpx.Response") -> str:
    tag: str = response.headers.get("ETag", "")
    # If-Range takes no weak tags.
    if not tag or tag.startswith("W/"):
        tag = response.headers.get("Last-Modified", "")
    # It goes back to the server in a header.
    return tag if tag.isascii() and tag.isprintable() and len(tag) < 1024 else ""


def _is_tag(validator: str) -> bool:
    return validator.startswith('"')


def _range_start(response: "httpx.Response") -> int:
    said = response.headers.get("Content-Range", "")
    first = said.removeprefix("bytes ").split("-")[0]
    return int(first) if first.isascii() and first.isdigit() else -1
