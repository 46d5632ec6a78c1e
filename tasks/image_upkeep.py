"""One host's image caches: files and rows brought together, limits kept, bytes looked after."""

import threading
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import structlog
from sqlalchemy.orm import Session

from innkeeper.errors import InnkeeperError
from models.cached_images import Copy, adopt_copy, forget_copy, list_copies
from models.image_leases import list_holders
from models.queries import record_event
from models.session import Database
from tasks.context import HostServices, Pool
from tasks.image_eviction import enforce, evict
from tasks.image_holding import describe
from tasks.image_scrub import choose_due, condemn_file, heal, note_missing, scrub
from virt.image_files import ImageFile, digest_lock, discard_aside, list_files, parse_name

log = structlog.get_logger(__name__)


@dataclass
class UpkeepReport:
    """What one upkeep did, in numbers of images."""

    adopted: int = 0
    forgotten: int = 0
    evicted: int = 0
    rotten: int = 0
    healed: int = 0
    scrubbed: int = 0


@dataclass
class ImageUpkeep:
    """The upkeep of one host; one at a time per process, and one process per host.

    Args:
        database: where the rows are.
        services: the host's pools, limits and scrubber.
    """

    database: Database
    services: HostServices
    _alone: threading.Lock = field(default_factory=threading.Lock)

    def run(self) -> UpkeepReport | None:
        """Look after every pool once; None when another upkeep is at it."""
        if not self._alone.acquire(blocking=False):
            return None
        try:
            report = UpkeepReport()
            for pool in self.services.pools.values():
                self._bring_together(pool, report)
                self._mend(pool, report)
                removed = enforce(self.database, self._host, pool, self.services.image_limits)
                report.evicted += len(removed)
                discard_aside(pool.images)
            self._scrub(report)
            return report
        finally:
            self._alone.release()

    @property
    def _host(self) -> str:
        return self.services.name

    def _bring_together(self, pool: Pool, report: UpkeepReport) -> None:
        """Give every file its row, and take the row of what is gone."""
        # Rows first: a file that comes in between has its row soon, by whoever brought it.
        copies = {copy.sha256: copy for copy in self._copies(pool)}
        files = {file.digest: file for file in list_files(pool.images)}
        for digest in files.keys() - copies.keys():
            report.adopted += self._adopt(pool, files[digest])
        missing = copies.keys() - files.keys()
        held = self._held(pool) if missing else frozenset()
        for digest in missing:
            file = _as_file(copies[digest])
            if file is not None and digest in held:
                note_missing(self.database, self._host, pool, file)
            else:
                report.forgotten += self._forget(pool, digest, copies[digest].path)

    def _adopt(self, pool: Pool, file: ImageFile) -> bool:
        """Write a row for a file that somebody put there, or whose fetch died before its record.

        It counts as used just now, and as never verified: the scrub comes to it first.
        """
        if file.is_condemned:
            return False
        try:
            image = (
                pool.images.find_blob(file.digest)
                if file.format == "blob"
                else pool.images.find(file.digest, file.format)
            )
        except InnkeeperError as error:
            log.warning("a file in the cache is refused", path=str(file.path), error=error.message)
            return False
        if image is None:
            return False
        found = describe(image)

        def adopt(session: Session) -> bool:
            is_new = adopt_copy(session, pool.place_on(self._host), found)
            if is_new:
                self._tell(session, "image.adopted", pool, file.digest)
            return is_new

        return self.database.run(adopt)

    def _forget(self, pool: Pool, digest: str, path: str) -> bool:
        with digest_lock(pool.images, digest, timeout_s=None):
            if Path(path).exists():
                return False

            def forget(session: Session) -> None:
                forget_copy(session, pool.place_on(self._host), digest)
                self._tell(session, "image.forgotten", pool, digest)

            self.database.run(forget)
        return True

    def _mend(self, pool: Pool, report: UpkeepReport) -> None:
        """Bring rotten and missing copies anew; what cannot be had and nobody needs goes."""
        rotten = [copy for copy in self._copies(pool) if copy.state == "rotten"]
        for copy in rotten:
            file = _as_file(copy)
            if file is None:
                continue
            # Its finder may have died before it had put the file out of use.
            condemn_file(self.database, self._host, pool, file)
            if heal(self.database, self._host, pool, file, copy.source):
                report.healed += 1
            elif evict(
                self.database, self._host, pool, file, "it is rotten and cannot be had anew"
            ):
                report.evicted += 1

    def _scrub(self, report: UpkeepReport) -> None:
        scrubber = self.services.scrubber
        if not scrubber.is_on:
            return
        pace = scrubber.begin_slice(self.services.scrub_slice_s)
        for pool in self.services.pools.values():
            files = {file.digest: file for file in list_files(pool.images)}
            due = choose_due(self._copies(pool), interval_s=self.services.scrub_interval_s)
            done, rotten = scrub(
                self.database,
                self._host,
                pool,
                scrubber,
                pace,
                [files[digest] for digest in due if digest in files],
            )
            report.scrubbed += done
            report.rotten += len(rotten)
            if rotten:
                self._mend(pool, report)

    def _copies(self, pool: Pool) -> list[Copy]:
        return self.database.run(partial(list_copies, place=pool.place_on(self._host)))

    def _held(self, pool: Pool) -> frozenset[str]:
        return frozenset(self.database.run(partial(list_holders, place=pool.place_on(self._host))))

    def _tell(self, session: Session, kind: str, pool: Pool, digest: str) -> None:
        record_event(session, kind, host=self._host, data={"pool": pool.name, "sha256": digest})


def _as_file(copy: Copy) -> ImageFile | None:
    """Return a row's file as it was, or would be; None for a row of an unknown kind of file."""
    path = Path(copy.path)
    parsed = parse_name(path.name)
    if parsed is None:
        return None
    return ImageFile(
        path=path,
        digest=copy.sha256,
        format=parsed[1],
        allocated_bytes=copy.size_bytes,
        is_condemned=False,
    )
