"""Bringing the verified image of an instantly booted guest into its host's cache."""

import time
from collections.abc import Callable

from sqlalchemy.orm import Session

from models.image_place import ImagePlace
from models.remote_disks import Wanted
from tasks.context import Pool, StepContext
from tasks.image_holding import Origin, hold_image, record_held
from virt.images import CachedImage

LONGEST_PAUSE_S = 1.0


class Pace:
    """Holds a transfer back to so many bytes a second.

    Args:
        mib_s: the cap; 0 for none.
        clock: monotonic seconds.
        sleep: waits so many seconds.
    """

    def __init__(
        self,
        mib_s: int,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._bytes_s = mib_s * 2**20
        self._clock = clock
        self._sleep = sleep
        self._began: tuple[float, int] | None = None

    def keep(self, done_bytes: int) -> None:
        """Wait until it was right to have come so far, at most a second at a time."""
        if not self._bytes_s:
            return
        now = self._clock()
        if self._began is None or done_bytes < self._began[1]:
            self._began = (now, done_bytes)
        began_at, began_bytes = self._began
        early_s = began_at + (done_bytes - began_bytes) / self._bytes_s - now
        if early_s > 0:
            self._sleep(min(early_s, LONGEST_PAUSE_S))


def fetch_base(
    context: StepContext,
    pool: Pool,
    wanted: Wanted,
    *,
    check: Callable[[], None],
) -> CachedImage:
    """Bring a raw image into the cache, its digest verified, and hold it for the operation.

    Args:
        context: the step; its progress is shown.
        pool: where the cache is.
        wanted: the source and the promised digest.
        check: called often; may raise to stop.

    Raises:
        FetchFailed: the source does not deliver now.
        ImageError: these are other bytes than promised.
    """
    pace = Pace(context.host.remote.hydration_mib_s)

    def show(done_bytes: int, total_bytes: int | None) -> None:
        fraction = done_bytes / total_bytes if total_bytes else 0.0
        context.progress(
            fraction,
            f"fetching the image, {done_bytes / 2**20:.0f} MiB",
            done_bytes=done_bytes,
            total_bytes=total_bytes,
        )
        pace.keep(done_bytes)

    return hold_image(context, pool, _origin(wanted), "raw", on_progress=show, check=check)


def record_base(session: Session, image: CachedImage, wanted: Wanted) -> None:
    """Write that an image is in a host's cache."""
    # Whether others see the pool too makes no difference to a row.
    place = ImagePlace(wanted.host, wanted.pool, is_shared=False)
    record_held(session, place, image, _origin(wanted))


def _origin(wanted: Wanted) -> Origin:
    return Origin(url=wanted.url, sha256=wanted.sha256, sha512=wanted.sha512)
