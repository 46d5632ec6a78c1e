"""One image on its way from its source to a file: counted, hashed and judged while it streams."""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import structlog
import tenacity

from innkeeper.addresses import show_address
from innkeeper.errors import FetchFailed, ImageError, ImageTooLarge, InnkeeperError, SourceRefused
from virt.image_digests import Digests
from virt.image_source import (
    CHUNK_BYTES,
    Delivery,
    ImageSource,
    TransferBroken,
    TransferRefused,
)
from virt.inspect_image import Judge

log = structlog.get_logger(__name__)

_ZEROS = bytes(CHUNK_BYTES)
PAUSE_MAX_S = 5.0


# Refusals after which the same bytes may be had with another signature.
_UNAUTHORISED = (401, 403, 410)
_RANGE_NOT_SATISFIABLE = 416


@dataclass(frozen=True, kw_only=True)
class Fetched:
    """A finished transfer.

    Args:
        path: the file; the caller moves or removes it.
        sha256: of the bytes.
        sha512: of the bytes; None where nobody wants it.
        virtual_size_bytes: of the disk, as judged while it streamed.
        validator: which version of the object it was.
        is_unchanged: the source still has the version that was known; there is no file.
        was_resumed: its beginning is of an earlier attempt.
    """

    path: Path
    sha256: str = ""
    sha512: str | None = None
    virtual_size_bytes: int = 0
    validator: str = ""
    is_unchanged: bool = False
    was_resumed: bool = False


@dataclass(frozen=True, kw_only=True)
class Transfer:
    """Fetches one image into one file.

    Args:
        source: delivers the bytes.
        url: where from; only what may be shown of it is said.
        partial: the file; what it holds of an earlier, broken transfer is used.
        judge: makes a judge of the bytes, for each attempt.
        with_sha512: whether SHA-512 is wanted beside SHA-256.
        max_bytes: the file may not be larger.
        attempts: how often to try.
        on_progress: told (bytes done, bytes in all or None).
        check: called for each chunk and while pausing; may raise.
    """

    source: ImageSource
    url: str
    partial: Path
    judge: Callable[[], Judge]
    with_sha512: bool
    max_bytes: int
    attempts: int
    on_progress: Callable[[int, int | None], None]
    check: Callable[[], None]

    def run(self, *, known: str = "") -> Fetched:
        """Fetch the image.

        Its file is left behind only by a transfer that may go on: one that broke, or that the
        source refused to continue with this address.

        Args:
            known: validator of a version the caller has already.

        Raises:
            FetchFailed: the source did not deliver.
            SourceRefused: the source will not deliver.
            ImageError: the image was refused while it streamed.
        """
        retry = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(TransferBroken),
            stop=tenacity.stop_after_attempt(self.attempts),
            wait=tenacity.wait_exponential(multiplier=0.2, max=PAUSE_MAX_S),
            sleep=self._pause,
            reraise=True,
        )
        shown = show_address(self.url)
        try:
            return retry(self._attempt, known)
        except TransferBroken as error:
            if not self.source.can_resume:
                self.forget()
            raise FetchFailed(
                f"The image {shown} was not delivered in {self.attempts} attempts: {error}.",
                {"url": shown, "attempts": self.attempts, "reason": str(error)},
            ) from error
        except TransferRefused as error:
            if error.status not in _UNAUTHORISED:
                self.forget()
            details: dict[str, object] = {"url": shown, "reason": str(error)}
            details |= {"status": error.status} if error.status is not None else {}
            details |= {"hint": error.hint} if error.hint is not None else {}
            raise SourceRefused(f"The image {shown} is not delivered: {error}.", details) from error
        except (InnkeeperError, OSError):
            self.forget()
            raise

    def forget(self) -> None:
        """Remove what was fetched."""
        self.partial.unlink(missing_ok=True)
        self._note().unlink(missing_ok=True)

    def _attempt(self, known: str) -> Fetched:
        self.check()
        have_bytes, resume = self._find_partial()
        try:
            with self.source.open(have_bytes, resume=resume, known=known) as delivery:
                return self._receive(delivery)
        except TransferRefused as error:
            if error.status != _RANGE_NOT_SATISFIABLE:
                raise
            self.forget()
            raise TransferBroken("the object is shorter than it was") from error

    def _receive(self, delivery: Delivery) -> Fetched:
        if delivery.is_unchanged:
            return Fetched(path=self.partial, is_unchanged=True)
        judge, digests = self.judge(), Digests(with_sha512=self.with_sha512)
        if delivery.total_bytes is not None:
            self._refuse_more(delivery.total_bytes)
            judge.expect(delivery.total_bytes)
        self._note().write_text(json.dumps({"validator": delivery.validator}))
        with self.partial.open("r+b" if delivery.offset_bytes else "w+b") as file:
            try:
                self._read_again(file, delivery.offset_bytes, judge, digests)
            except ImageError as error:
                # It passed before: the file has suffered, or the limit is another now.
                self.forget()
                raise TransferBroken(f"what there was is of no use: {error}") from error
            size_bytes = self._store(delivery, file, judge, digests)
        self._note().unlink(missing_ok=True)
        return Fetched(
            path=self.partial,
            sha256=digests.sha256,
            sha512=digests.sha512,
            virtual_size_bytes=judge.virtual_size_bytes or size_bytes,
            validator=delivery.validator,
            was_resumed=delivery.offset_bytes > 0,
        )

    def _read_again(self, file: BinaryIO, end: int, judge: Judge, digests: Digests) -> None:
        # What an earlier attempt left is hashed and judged like the rest.
        while file.tell() < end:
            self.check()
            chunk = file.read(min(CHUNK_BYTES, end - file.tell()))
            digests.update(chunk)
            judge.feed(chunk)

    def _store(self, delivery: Delivery, file: BinaryIO, judge: Judge, digests: Digests) -> int:
        done_bytes = delivery.offset_bytes
        try:
            for chunk in delivery.chunks:
                self.check()
                done_bytes += len(chunk)
                self._refuse_more(done_bytes)
                judge.feed(chunk)
                digests.update(chunk)
                if chunk == _ZEROS[: len(chunk)]:
                    file.seek(len(chunk), os.SEEK_CUR)
                else:
                    file.write(chunk)
                self.on_progress(done_bytes, delivery.total_bytes)
        finally:
            # A hole at the end has no length of its own.
            file.truncate(file.tell())
        if delivery.total_bytes is not None and done_bytes < delivery.total_bytes:
            raise TransferBroken(f"it ended after {done_bytes} of {delivery.total_bytes} bytes")
        judge.finish()
        file.flush()
        os.fdatasync(file.fileno())
        return done_bytes

    def _find_partial(self) -> tuple[int, str]:
        try:
            validator = str(json.loads(self._note().read_text())["validator"])
            size_bytes = self.partial.stat().st_size
        except (OSError, ValueError, KeyError, TypeError):
            return 0, ""
        if not validator or not self.source.can_resume:
            return 0, ""
        # One byte again: to a transfer that lacks none a server has nothing to answer.
        return max(size_bytes - 1, 0), validator

    def _refuse_more(self, size_bytes: int) -> None:
        if size_bytes > self.max_bytes:
            shown = show_address(self.url)
            raise ImageTooLarge(
                f"The image {shown} has more than the {self.max_bytes} bytes this host takes.",
                {"url": shown, "max_bytes": self.max_bytes, "size_bytes": size_bytes},
            )

    def _note(self) -> Path:
        return self.partial.with_name(f"{self.partial.name}.json")

    def _pause(self, pause_s: float) -> None:
        log.info(
            "image transfer broke; it goes on",
            url=show_address(self.url),
            pause_s=round(pause_s, 2),
        )
        self.check()
        tenacity.nap.sleep(pause_s)
