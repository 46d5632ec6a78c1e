"""One image brought from the first source that delivers it: peers, then its own address."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import structlog

from innkeeper.addresses import show_address
from innkeeper.errors import DigestMismatch, ImageError
from innkeeper.remote_source import parse_remote_source
from virt.image_digests import require_digest
from virt.image_http import HttpSource, Patience, http_client
from virt.image_source import FileSource, ImageSource, is_http
from virt.image_transfer import Fetched, Transfer
from virt.inspect_image import BlobJudge, Judge, StreamJudge
from virt.remote_nbd import NbdSource

log = structlog.get_logger(__name__)

StoredFormat = Literal["qcow2", "raw", "blob"]

# A peer is near, or it is not worth waiting for.
PEER_PATIENCE = Patience(connect_s=2.0, answer_s=5.0, silence_s=5.0, window_s=5.0)


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What is to be fetched, and who is told of it.

    Args:
        url: its own address.
        sha256: what its bytes must have; None to take what comes.
        sha512: likewise.
        format: what it must be.
        max_bytes: the file may not be larger.
        max_virtual_size_bytes: nor its disk; None for no limit.
        on_progress: told (bytes done, bytes in all or None).
        check: called often; may raise to stop.
    """

    url: str
    sha256: str | None
    sha512: str | None
    format: StoredFormat
    max_bytes: int
    max_virtual_size_bytes: int | None
    on_progress: Callable[[int, int | None], None]
    check: Callable[[], None]

    @property
    def has_digest(self) -> bool:
        """Whether wrong bytes would be noticed."""
        return self.sha256 is not None or self.sha512 is not None


@dataclass(frozen=True, kw_only=True)
class Fetch:
    """Brings one wanted thing into one file.

    Args:
        wanted: what.
        partial: the file.
        allowed_roots: where ``file://`` addresses may lead.
        attempts: how often a broken transfer from its own address is taken up again at once.
        patience: with the server of its own address.
    """

    wanted: Wanted
    partial: Path
    allowed_roots: tuple[Path, ...]
    attempts: int
    patience: Patience

    def run(self, peers: Sequence[str], *, known: str = "") -> Fetched:
        """Fetch it; the digests are those that were promised.

        Args:
            peers: addresses tried first; only for what has a digest.
            known: validator of a version the caller has already.

        Raises:
            InvalidRequest: its address is of no allowed kind.
            ImageError: neither a peer nor its own address gave what was promised.
        """
        if self.wanted.has_digest:
            for peer in peers:
                fetched = self._find_at(peer)
                if fetched is not None:
                    return fetched
        with self._source(self.wanted.url) as source:
            transfer = self._transfer(source)
            fetched = transfer.run(known=known)
            try:
                self._verify(fetched, transfer)
            except DigestMismatch:
                if not fetched.was_resumed:
                    raise
                # What an earlier attempt left may have suffered, or be of another version.
                log.warning("a continued transfer has the wrong digest; it begins anew")
                fetched = transfer.run()
                self._verify(fetched, transfer)
        return fetched

    def _find_at(self, peer: str) -> Fetched | None:
        """Return what a peer gave; None when it gave nothing of use, whatever the reason."""
        if not is_http(peer):
            log.warning("a peer's address is not used", peer=show_address(peer))
            return None
        with http_client(PEER_PATIENCE) as client:
            transfer = replace(
                self._transfer(HttpSource(peer, client, PEER_PATIENCE, max_redirects=0)),
                url=peer,
                # Never the bytes that its own address goes on from.
                partial=self.partial.with_name(f"{self.partial.name}.peer"),
                attempts=1,
            )
            try:
                fetched = transfer.run()
                self._verify(fetched, transfer)
            except ImageError as error:
                transfer.forget()
                log.info(
                    "a peer did not deliver the image",
                    peer=show_address(peer),
                    code=error.code,
                    reason=error.message,
                )
                return None
        return fetched

    def _transfer(self, source: ImageSource) -> Transfer:
        wanted = self.wanted
        return Transfer(
            source=source,
            url=wanted.url,
            partial=self.partial,
            judge=self._judge,
            with_sha512=wanted.sha512 is not None,
            max_bytes=wanted.max_bytes,
            attempts=self.attempts,
            on_progress=wanted.on_progress,
            check=wanted.check,
        )

    def _judge(self) -> Judge:
        if self.wanted.format == "blob":
            return BlobJudge()
        return StreamJudge(self.wanted.format, self.wanted.max_virtual_size_bytes)

    def _verify(self, fetched: Fetched, transfer: Transfer) -> None:
        if fetched.is_unchanged:
            return
        shown = show_address(transfer.url)
        try:
            for name in ("sha256", "sha512"):
                require_digest(
                    name,
                    shown=shown,
                    expected=getattr(self.wanted, name),
                    actual=getattr(fetched, name),
                )
        except ImageError:
            transfer.forget()
            raise

    @contextmanager
    def _source(self, url: str) -> Iterator[ImageSource]:
        if url.partition("://")[0].lower() == "nbd":
            yield NbdSource(parse_remote_source(url))
            return
        if not is_http(url):
            yield FileSource(url, self.allowed_roots)
            return
        with http_client(self.patience) as client:
            yield HttpSource(url, client, self.patience)
