"""One image on its way from its source to a file: counted, hashed and judged while it streams."""

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import structlog
import tenacity

from innkeeper.errors import FetchFailed, ImageTooLarge, InnkeeperError
from virt.image_source import (
    CHUNK_BYTES,
    Delivery,
    ImageSource,
    TransferBroken,
    TransferRefused,
)
from virt.inspect_image import StreamJudge
from virt.qemu_img import ImageFormat

log = structlog.get_logger(__name__)

_ZEROS = bytes(CHUNK_BYTES)
PAUSE_MAX_S = 5.0


@dataclass(frozen=True, kw_only=True)
class Fetched:
    """A finished transfer.

    Args:
        path: the file; the caller moves or removes it.
        digest: SHA-256 of the bytes.
        validator: which version of the object it was.
        is_unchanged: the source still has the version that was known; there is no file.
    """

    path: Path
    digest: str = ""
    validator: str = ""
    is_unchanged: bool = False


class Transfer:
    """Fetches one image into one file.

    Args:
        source: delivers the bytes.
        url: for messages.
        partial: the file; what it holds of an earlier, broken transfer is used.
        image_format: what the image claims to be.
        max_bytes: the file may not be larger.
        max_virtual_size_bytes: nor its disk; None for no limit.
        attempts: how often to try.
        on_progress: told (bytes done, bytes in all or None).
        check: called for each chunk and while pausing; may raise.
    """

    def __init__(
        self,
        source: ImageSource,
        *,
        url: str,
        partial: Path,
        image_format: ImageFormat,
        max_bytes: int,
        max_virtual_size_bytes: int | None,
        attempts: int,
        on_progress: Callable[[int, int | None], None],
        check: Callable[[], None],
    ) -> None:
        self._source = source
        self._url = url
        self._partial = partial
        self._format: ImageFormat = image_format
        self._max_bytes = max_bytes
        self._max_virtual_size_bytes = max_virtual_size_bytes
        self._attempts = attempts
        self._on_progress = on_progress
        self._check = check

    def run(self, *, known: str = "") -> Fetched:
        """Fetch the image.

        Only a transfer that broke, from a source that can go on, leaves its file behind.

        Args:
            known: validator of a version the caller has already.

        Raises:
            FetchFailed: the source did not deliver.
            ImageError: the image was refused while it streamed.
        """
        retry = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(TransferBroken),
            stop=tenacity.stop_after_attempt(self._attempts),
            wait=tenacity.wait_exponential(multiplier=0.2, max=PAUSE_MAX_S),
            sleep=self._pause,
            reraise=True,
        )
        try:
            return retry(self._attempt, known)
        except TransferBroken as error:
            if not self._source.can_resume:
                self._forget()
            raise FetchFailed(
                f"The image {self._url} was not delivered in {self._attempts} attempts: {error}.",
                {"url": self._url, "attempts": self._attempts},
            ) from error
        except TransferRefused as error:
            self._forget()
            raise FetchFailed(
                f"The image {self._url} is not delivered: {error}.", {"url": self._url}
            ) from error
        except (InnkeeperError, OSError):
            self._forget()
            raise

    def _attempt(self, known: str) -> Fetched:
        self._check()
        have_bytes, resume = self._find_partial()
        with self._source.open(have_bytes, resume=resume, known=known) as delivery:
            if delivery.is_unchanged:
                return Fetched(path=self._partial, is_unchanged=True)
            self._refuse_more(delivery.total_bytes or 0)
            self._note().write_text(json.dumps({"validator": delivery.validator}))
            with self._partial.open("r+b" if delivery.offset_bytes else "w+b") as file:
                digest = self._store(delivery, file)
        self._note().unlink(missing_ok=True)
        return Fetched(path=self._partial, digest=digest, validator=delivery.validator)

    def _store(self, delivery: Delivery, file: BinaryIO) -> str:
        judge = StreamJudge(self._format, self._max_virtual_size_bytes)
        digest = hashlib.sha256()
        done_bytes = 0
        # What an earlier attempt left is read again, to be hashed and judged like the rest.
        while done_bytes < delivery.offset_bytes:
            chunk = file.read(min(CHUNK_BYTES, delivery.offset_bytes - done_bytes))
            digest.update(chunk)
            judge.feed(chunk)
            done_bytes += len(chunk)
        try:
            for chunk in delivery.chunks:
                self._check()
                done_bytes += len(chunk)
                self._refuse_more(done_bytes)
                judge.feed(chunk)
                digest.update(chunk)
                if chunk == _ZEROS[: len(chunk)]:
                    file.seek(len(chunk), os.SEEK_CUR)
                else:
                    file.write(chunk)
                self._on_progress(done_bytes, delivery.total_bytes)
        finally:
            # A hole at the end has no length of its own.
            file.truncate(file.tell())
        if delivery.total_bytes is not None and done_bytes < delivery.total_bytes:
            raise TransferBroken(f"it ended after {done_bytes} of {delivery.total_bytes} bytes")
        judge.finish()
        file.flush()
        os.fdatasync(file.fileno())
        return digest.hexdigest()

    def _find_partial(self) -> tuple[int, str]:
        try:
            validator = str(json.loads(self._note().read_text())["validator"])
            size_bytes = self._partial.stat().st_size
        except (OSError, ValueError, KeyError, TypeError):
            return 0, ""
        return (size_bytes, validator) if validator and self._source.can_resume else (0, "")

    def _refuse_more(self, size_bytes: int) -> None:
        if size_bytes > self._max_bytes:
            raise ImageTooLarge(
                f"The image {self._url} has more than the {self._max_bytes} bytes this host takes.",
                {"url": self._url, "max_bytes": self._max_bytes, "size_bytes": size_bytes},
            )

    def _note(self) -> Path:
        return self._partial.with_name(f"{self._partial.name}.json")

    def _forget(self) -> None:
        self._partial.unlink(missing_ok=True)
        self._note().unlink(missing_ok=True)

    def _pause(self, pause_s: float) -> None:
        log.info("image transfer broke; it goes on", url=self._url, pause_s=round(pause_s, 2))
        self._check()
        tenacity.nap.sleep(pause_s)
