"""The host's image cache: content-addressed files that are fetched once, judged, and never written.

Below its root::

    SHA256.FORMAT         the image, mode 0444
    SHA256.FORMAT.json    what was found out about it
    .sources/KEY.json     the digest and the version an address without a digest gave last
    .partial/KEY          a transfer that broke and can go on
    .locks/KEY            single flight, across threads and processes
"""

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import get_args

import structlog

from innkeeper.errors import DigestMismatch, FetchFailed, InnkeeperError
from virt.guest_lock import file_lock
from virt.identity import sync_directory
from virt.image_facts import (
    ImageFacts,
    facts_path,
    read_facts,
    read_json,
    write_facts,
    write_json,
)
from virt.image_source import FileSource, HttpSource, ImageSource, http_client, is_http
from virt.image_transfer import Transfer
from virt.inspect_image import RULES_VERSION, inspect_file, refuse_larger
from virt.qemu_img import ImageFormat

log = structlog.get_logger(__name__)

Check = Callable[[], None]
OnProgress = Callable[[int, int | None], None]


@dataclass(frozen=True, kw_only=True)
class CachedImage:
    """An image in the cache.

    Args:
        path: the file; must never be written.
        digest: SHA-256 of its bytes.
        format: as declared and verified.
        size_bytes: of the file.
        virtual_size_bytes: of the disk a guest would see.
        was_fetched: whether this call brought it here.
    """

    path: Path
    digest: str
    format: ImageFormat
    size_bytes: int
    virtual_size_bytes: int
    was_fetched: bool = False


class ImageCache:
    """The cached images of one host.

    Args:
        root: a directory of this host, made when missing.
        allowed_file_roots: where ``file://`` images may lie.
        max_bytes: no image file may be larger.
        attempts: how often a broken transfer is taken up again, at once and with pauses.
    """

    def __init__(
        self,
        root: Path,
        *,
        allowed_file_roots: tuple[Path, ...],
        max_bytes: int,
        attempts: int = 4,
    ) -> None:
        self.root = root
        self._allowed_roots = tuple(allowed_file_roots)
        self._max_bytes = max_bytes
        self._attempts = attempts
        for name in (".sources", ".partial", ".locks"):
            (root / name).mkdir(parents=True, exist_ok=True)

    def ensure(
        self,
        url: str,
        sha256: str | None,
        image_format: ImageFormat,
        *,
        max_virtual_size_bytes: int | None = None,
        on_progress: OnProgress = lambda _done, _total: None,
        check: Check = lambda: None,
    ) -> CachedImage:
        """Return the image, fetching it when the cache does not have it.

        Args:
            url: http(s)://, file:// or an absolute path.
            sha256: the digest the bytes must have; None to take what comes.
            image_format: what the image must be.
            max_virtual_size_bytes: the disk's size; None for no limit.
            on_progress: told (bytes done, bytes in all or None).
            check: called often; may raise to stop.

        Raises:
            InvalidRequest: the address is of no allowed kind.
            FetchFailed: the source did not deliver.
            DigestMismatch: other bytes came.
            UnsafeImage: see virt.inspect_image.
            FormatMismatch: see virt.inspect_image.
            ImageTooLarge: the file or its disk exceeds a limit.
        """
        if sha256 is not None:
            found = self._find_within(sha256, image_format, max_virtual_size_bytes)
            if found is not None:
                return found
        key = sha256 or hashlib.sha256(f"{image_format} {url}".encode()).hexdigest()
        with self._alone(key, check):
            # Whoever held the lock may have fetched it.
            if sha256 is not None:
                found = self._find_within(sha256, image_format, max_virtual_size_bytes)
                if found is not None:
                    return found
            return self._fetch(
                url, sha256, image_format, key, max_virtual_size_bytes, on_progress, check
            )

    def path_for(self, digest: str, image_format: ImageFormat) -> Path:
        """Return where an image lies or would lie."""
        return self.root / f"{digest}.{image_format}"

    def find(self, digest: str, image_format: ImageFormat) -> CachedImage | None:
        """Return a cached image; None when it is not there.

        One that was judged by older rules is judged again; one whose size has changed is damaged
        and counts as not there.

        Raises:
            UnsafeImage: today's rules refuse it.
            FormatMismatch: today's rules refuse it.
        """
        path = self.path_for(digest, image_format)
        try:
            size_bytes = path.stat().st_size
        except FileNotFoundError:
            return None
        facts = read_facts(path)
        if facts is not None and facts.size_bytes != size_bytes:
            log.error("a cached image has changed", path=str(path), size_bytes=size_bytes)
            return None
        if facts is None or facts.rules_version != RULES_VERSION:
            facts = self._judge(path, image_format)
        return CachedImage(
            path=path,
            digest=digest,
            format=image_format,
            size_bytes=size_bytes,
            virtual_size_bytes=facts.virtual_size_bytes,
        )

    def list(self) -> list[CachedImage]:
        """Return all cached images; one that today's rules refuse is left out."""
        images = []
        for image_format in get_args(ImageFormat):
            for path in sorted(self.root.glob(f"*.{image_format}")):
                try:
                    found = self.find(path.stem, image_format)
                except InnkeeperError as error:
                    log.warning("a cached image is refused", path=str(path), error=error.message)
                    continue
                if found is not None:
                    images.append(found)
        return images

    def remove(self, digest: str) -> int:
        """Remove an image in all its formats; the caller knows that no disk needs it.

        Returns:
            The bytes of the files removed; 0 when there were none.
        """
        freed = 0
        with self._alone(digest, lambda: None):
            for image_format in get_args(ImageFormat):
                path = self.path_for(digest, image_format)
                if path.exists():
                    freed += path.stat().st_blocks * 512
                    path.unlink()
                facts_path(path).unlink(missing_ok=True)
        return freed

    def prune_partials(self, older_than_s: float) -> int:
        """Remove what broken transfers left behind a while ago; return how many there were.

        Ages are told by the file system's own clock: this host's may be off by hours.
        """
        removed = 0
        with NamedTemporaryFile(dir=self.root / ".locks") as fresh:
            now_s = os.stat(fresh.name).st_mtime
        for path in (self.root / ".partial").iterdir():
            with suppress(FileNotFoundError):
                if now_s - path.stat().st_mtime > older_than_s:
                    path.unlink()
                    removed += 1
        return removed

    def _find_within(
        self, digest: str, image_format: ImageFormat, max_virtual_size_bytes: int | None
    ) -> CachedImage | None:
        found = self.find(digest, image_format)
        if found is not None:
            refuse_larger(found.virtual_size_bytes, max_virtual_size_bytes)
        return found

    def _fetch(
        self,
        url: str,
        sha256: str | None,
        image_format: ImageFormat,
        key: str,
        max_virtual_size_bytes: int | None,
        on_progress: OnProgress,
        check: Check,
    ) -> CachedImage:
        known = self._find_source(key, image_format) if sha256 is None else None
        with self._source(url) as source:
            transfer = Transfer(
                source,
                url=url,
                partial=self.root / ".partial" / key,
                image_format=image_format,
                max_bytes=self._max_bytes,
                max_virtual_size_bytes=max_virtual_size_bytes,
                attempts=self._attempts,
                on_progress=on_progress,
                check=check,
            )
            done = transfer.run(known=known[1] if known else "")
        if done.is_unchanged and known is not None:
            refuse_larger(known[0].virtual_size_bytes, max_virtual_size_bytes)
            return known[0]
        try:
            if sha256 is not None and done.digest != sha256:
                raise DigestMismatch(
                    f"The image {url} has the SHA-256 {done.digest}; promised was {sha256}.",
                    {"url": url, "expected": sha256, "actual": done.digest},
                )
            image = self._publish(done.path, done.digest, image_format, max_virtual_size_bytes)
        except InnkeeperError:
            done.path.unlink(missing_ok=True)
            raise
        if sha256 is None and done.validator:
            self._remember_source(key, done.digest, done.validator)
        return image

    def _publish(
        self, fetched: Path, digest: str, image_format: ImageFormat, max_bytes: int | None
    ) -> CachedImage:
        facts = self._judge(fetched, image_format, facts_of=self.path_for(digest, image_format))
        refuse_larger(facts.virtual_size_bytes, max_bytes)
        path = self.path_for(digest, image_format)
        fetched.chmod(0o444)
        os.replace(fetched, path)
        sync_directory(self.root)
        return CachedImage(
            path=path,
            digest=digest,
            format=image_format,
            size_bytes=facts.size_bytes,
            virtual_size_bytes=facts.virtual_size_bytes,
            was_fetched=True,
        )

    def _judge(
        self, path: Path, image_format: ImageFormat, facts_of: Path | None = None
    ) -> ImageFacts:
        info = inspect_file(path, image_format)
        facts = ImageFacts(path.stat().st_size, info.virtual_size_bytes, RULES_VERSION)
        write_facts(facts_of or path, facts)
        return facts

    @contextmanager
    def _source(self, url: str) -> Iterator[ImageSource]:
        if not is_http(url):
            yield FileSource(url, self._allowed_roots)
            return
        with http_client() as client:
            yield HttpSource(url, client)

    @contextmanager
    def _alone(self, key: str, check: Check) -> Iterator[None]:
        with file_lock(
            self.root / ".locks" / key,
            timeout_s=None,
            check=check,
            busy=lambda: FetchFailed("The image is being fetched by another process.", {}),
        ):
            yield

    def _find_source(self, key: str, image_format: ImageFormat) -> tuple[CachedImage, str] | None:
        said = read_json(self.root / ".sources" / f"{key}.json")
        if said is None:
            return None
        found = self.find(str(said.get("digest")), image_format)
        return (found, str(said.get("validator"))) if found is not None else None

    def _remember_source(self, key: str, digest: str, validator: str) -> None:
        write_json(
            self.root / ".sources" / f"{key}.json", {"digest": digest, "validator": validator}
        )
