"""The host's image cache: content-addressed files that are fetched once, judged, and never written.

Below its root::

    SHA256.FORMAT         the image, mode 0444; FORMAT is blob for what is no disk
    SHA256.FORMAT.json    what was found out about it
    .sources/KEY.json     the digest and the version an address without a digest gave last,
                          and the SHA-256 of what is known by its SHA-512
    .partial/KEY          a transfer that broke and can go on
    .locks/KEY            single flight, across threads and processes
"""

import errno
import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import cast, get_args

import structlog

from innkeeper.errors import FetchFailed, HostUnsuitable, InnkeeperError
from virt.cage import Cage, get_cage
from virt.guest_lock import file_lock
from virt.identity import sync_directory
from virt.image_digests import digest_file, require_digest
from virt.image_facts import (
    ImageFacts,
    facts_path,
    read_facts,
    read_json,
    write_facts,
    write_json,
)
from virt.image_fetch import Fetch, StoredFormat, Wanted
from virt.image_http import Patience
from virt.image_transfer import Fetched
from virt.inspect_image import RULES_VERSION, inspect_beginning, inspect_file, refuse_larger
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


@dataclass(frozen=True, kw_only=True)
class CachedBlob:
    """A kernel, a RAM disk or the like in the cache: bytes that no program here looks into.

    Args:
        path: the file; must never be written.
        digest: SHA-256 of its bytes.
        size_bytes: of the file.
        was_fetched: whether this call brought it here.
    """

    path: Path
    digest: str
    size_bytes: int
    was_fetched: bool = False


@dataclass(frozen=True, kw_only=True)
class _Stored:
    path: Path
    digest: str
    format: StoredFormat
    facts: ImageFacts
    was_fetched: bool = False

    def as_image(self) -> CachedImage:
        return CachedImage(
            path=self.path,
            digest=self.digest,
            format=cast(ImageFormat, self.format),
            size_bytes=self.facts.size_bytes,
            virtual_size_bytes=self.facts.virtual_size_bytes,
            was_fetched=self.was_fetched,
        )

    def as_blob(self) -> CachedBlob:
        return CachedBlob(
            path=self.path,
            digest=self.digest,
            size_bytes=self.facts.size_bytes,
            was_fetched=self.was_fetched,
        )


class ImageCache:
    """The cached images of one host.

    Args:
        root: a directory of this host, made when missing.
        allowed_file_roots: where ``file://`` images may lie.
        max_bytes: no image file may be larger.
        attempts: how often a broken transfer is taken up again, at once and with pauses.
        cage: where qemu-img looks at images; by default the tightest this host allows.
        patience: with servers.
    """

    def __init__(
        self,
        root: Path,
        *,
        allowed_file_roots: tuple[Path, ...],
        max_bytes: int,
        attempts: int = 4,
        cage: Cage | None = None,
        patience: Patience | None = None,
    ) -> None:
        self.root = root
        self._allowed_roots = tuple(allowed_file_roots)
        self._max_bytes = max_bytes
        self._attempts = attempts
        self._cage = cage
        self._patience = patience or Patience()
        for name in (".sources", ".partial", ".locks"):
            (root / name).mkdir(parents=True, exist_ok=True)

    @property
    def cage(self) -> Cage:
        """Where qemu-img looks at images, and converts them."""
        return self._cage or get_cage()

    def ensure(
        self,
        url: str,
        sha256: str | None,
        image_format: ImageFormat,
        *,
        sha512: str | None = None,
        peers: Sequence[str] = (),
        max_virtual_size_bytes: int | None = None,
        on_progress: OnProgress = lambda _done, _total: None,
        check: Check = lambda: None,
    ) -> CachedImage:
        """Return the image, fetching it when the cache does not have it.

        Args:
            url: http(s)://, file:// or an absolute path.
            sha256: the digest the bytes must have; None to take what comes.
            image_format: what the image must be.
            sha512: the same by SHA-512; both may be given.
            peers: http(s) addresses of hosts that may have it, tried before ``url``. Nothing they
                do can spoil the outcome. Not used for an image without a digest.
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
            HostUnsuitable: this host cannot store it, for want of space for example.
        """
        wanted = Wanted(
            url=url,
            sha256=sha256,
            sha512=sha512,
            format=image_format,
            max_bytes=self._max_bytes,
            max_virtual_size_bytes=max_virtual_size_bytes,
            on_progress=on_progress,
            check=check,
        )
        return self._ensure(wanted, peers).as_image()

    def ensure_blob(
        self,
        url: str,
        sha256: str | None,
        *,
        sha512: str | None = None,
        peers: Sequence[str] = (),
        max_bytes: int | None = None,
        on_progress: OnProgress = lambda _done, _total: None,
        check: Check = lambda: None,
    ) -> CachedBlob:
        """Return bytes that are no disk image, a kernel for example; see ``ensure``.

        They are hashed and counted; neither an inspector nor qemu-img reads them.

        Args:
            url: http(s)://, file:// or an absolute path.
            sha256: the digest the bytes must have; None to take what comes.
            sha512: the same by SHA-512; both may be given.
            peers: http(s) addresses of hosts that may have it.
            max_bytes: the file may not be larger; None for the cache's own limit.
            on_progress: told (bytes done, bytes in all or None).
            check: called often; may raise to stop.

        Raises:
            InvalidRequest, FetchFailed, DigestMismatch, ImageTooLarge, HostUnsuitable.
        """
        wanted = Wanted(
            url=url,
            sha256=sha256,
            sha512=sha512,
            format="blob",
            max_bytes=min(self._max_bytes, max_bytes or self._max_bytes),
            max_virtual_size_bytes=None,
            on_progress=on_progress,
            check=check,
        )
        return self._ensure(wanted, peers).as_blob()

    def path_for(self, digest: str, image_format: StoredFormat) -> Path:
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
        stored = self._find(digest, image_format)
        return stored.as_image() if stored is not None else None

    def find_blob(self, digest: str) -> CachedBlob | None:
        """Return a cached blob; None when it is not there."""
        stored = self._find(digest, "blob")
        return stored.as_blob() if stored is not None else None

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

    def list_blobs(self) -> tuple[CachedBlob, ...]:
        """Return all cached blobs."""
        found = (self.find_blob(path.stem) for path in sorted(self.root.glob("*.blob")))
        return tuple(blob for blob in found if blob is not None)

    def remove(self, digest: str) -> int:
        """Remove what has a digest, in all its formats; the caller knows that no disk needs it.

        Returns:
            The bytes of the files removed; 0 when there were none.
        """
        freed = 0
        with self._alone(digest, lambda: None):
            for image_format in get_args(StoredFormat):
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
        # Beside broken transfers: facts that were being written when a process died.
        for path in [*(self.root / ".partial").iterdir(), *self.root.glob(".*.json.*")]:
            with suppress(FileNotFoundError):
                if now_s - path.stat().st_mtime > older_than_s:
                    path.unlink()
                    removed += 1
        return removed

    def _ensure(self, wanted: Wanted, peers: Sequence[str]) -> _Stored:
        with self._own_failures_told():
            found = self._find_wanted(wanted)
            if found is not None:
                return found
            key = _key_of(wanted)
            with self._alone(key, wanted.check):
                # Whoever held the lock may have fetched it.
                return self._find_wanted(wanted) or self._fetch(wanted, peers, key)

    def _find_wanted(self, wanted: Wanted) -> _Stored | None:
        digest = wanted.sha256
        if digest is None and wanted.sha512 is not None:
            digest = self._find_by_sha512(wanted.sha512)
        found = self._find(digest, wanted.format) if digest is not None else None
        if found is None:
            return None
        refuse_larger(found.facts.virtual_size_bytes, wanted.max_virtual_size_bytes)
        if wanted.sha512 is not None:
            sha512 = self._ensure_sha512_known(found, wanted.check)
            require_digest("sha512", shown=found.digest, expected=wanted.sha512, actual=sha512)
        return found

    def _find(self, digest: str, stored_format: StoredFormat) -> _Stored | None:
        path = self.path_for(digest, stored_format)
        try:
            size_bytes = path.stat().st_size
        except FileNotFoundError:
            return None
        facts = read_facts(path)
        if facts is not None and facts.size_bytes != size_bytes:
            log.error("a cached image has changed", path=str(path), size_bytes=size_bytes)
            return None
        if facts is None or facts.rules_version != RULES_VERSION:
            facts = self._judge_again(path, stored_format, facts)
        return _Stored(path=path, digest=digest, format=stored_format, facts=facts)

    def _judge_again(
        self, path: Path, stored_format: StoredFormat, before: ImageFacts | None
    ) -> ImageFacts:
        virtual_size_bytes = 0
        if stored_format != "blob":
            inspect_beginning(path, stored_format)
            virtual_size_bytes = inspect_file(path, stored_format, cage=self.cage)
        sha512 = before.sha512 if before is not None else None
        facts = ImageFacts(path.stat().st_size, virtual_size_bytes, RULES_VERSION, sha512)
        write_facts(path, facts)
        return facts

    def _ensure_sha512_known(self, stored: _Stored, check: Check) -> str:
        if stored.facts.sha512 is not None:
            return stored.facts.sha512
        sha512 = digest_file(stored.path, with_sha512=True, check=check).sha512 or ""
        write_facts(stored.path, replace(stored.facts, sha512=sha512))
        return sha512

    def _fetch(self, wanted: Wanted, peers: Sequence[str], key: str) -> _Stored:
        known = None if wanted.has_digest else self._find_source(key, wanted.format)
        fetched = Fetch(
            wanted=wanted,
            partial=self.root / ".partial" / key,
            allowed_roots=self._allowed_roots,
            attempts=self._attempts,
            patience=self._patience,
        ).run(peers, known=known[1] if known else "")
        if fetched.is_unchanged and known is not None:
            refuse_larger(known[0].facts.virtual_size_bytes, wanted.max_virtual_size_bytes)
            return known[0]
        try:
            stored = self._publish(fetched, wanted)
        except (InnkeeperError, OSError):
            fetched.path.unlink(missing_ok=True)
            raise
        if wanted.sha256 is None and wanted.sha512 is not None:
            write_json(self._by_sha512(wanted.sha512), {"digest": stored.digest})
        elif not wanted.has_digest and fetched.validator:
            said = {"digest": stored.digest, "validator": fetched.validator}
            write_json(self.root / ".sources" / f"{key}.json", said)
        return stored

    def _publish(self, fetched: Fetched, wanted: Wanted) -> _Stored:
        # Also the cage's user may read it now, and nobody may write it any more.
        fetched.path.chmod(0o444)
        virtual_size_bytes = 0
        if wanted.format != "blob":
            virtual_size_bytes = inspect_file(
                fetched.path,
                wanted.format,
                cage=self.cage,
                judged_bytes=fetched.virtual_size_bytes,
            )
            refuse_larger(virtual_size_bytes, wanted.max_virtual_size_bytes)
        path = self.path_for(fetched.sha256, wanted.format)
        facts = ImageFacts(
            fetched.path.stat().st_size, virtual_size_bytes, RULES_VERSION, fetched.sha512
        )
        write_facts(path, facts)
        os.replace(fetched.path, path)
        sync_directory(self.root)
        return _Stored(
            path=path, digest=fetched.sha256, format=wanted.format, facts=facts, was_fetched=True
        )

    @contextmanager
    def _alone(self, key: str, check: Check) -> Iterator[None]:
        with file_lock(
            self.root / ".locks" / key,
            timeout_s=None,
            check=check,
            busy=lambda: FetchFailed("The image is being fetched by another process.", {}),
        ):
            yield

    @contextmanager
    def _own_failures_told(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            is_full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            hint = "Free space there" if is_full else "Look at that file system"
            raise HostUnsuitable(
                f"This host cannot store the image in {self.root}: {error.strerror or error}.",
                {
                    "reason": errno.errorcode.get(error.errno or 0, "unknown"),
                    "path": str(self.root),
                    "hint": f"{hint}, or let another host be chosen.",
                },
            ) from error

    def _find_source(self, key: str, stored_format: StoredFormat) -> tuple[_Stored, str] | None:
        said = read_json(self.root / ".sources" / f"{key}.json")
        if said is None:
            return None
        found = self._find(str(said.get("digest")), stored_format)
        return (found, str(said.get("validator"))) if found is not None else None

    def _find_by_sha512(self, sha512: str) -> str | None:
        said = read_json(self._by_sha512(sha512))
        return str(said.get("digest")) if said is not None else None

    def _by_sha512(self, sha512: str) -> Path:
        return self.root / ".sources" / f"{sha512}.json"


def _key_of(wanted: Wanted) -> str:
    """Return what is fetched by one at a time.

    With a digest its address does not matter: a signed one is another each time.
    """
    if wanted.has_digest:
        return wanted.sha256 or wanted.sha512 or ""
    return hashlib.sha256(f"{wanted.format} {wanted.url}".encode()).hexdigest()
