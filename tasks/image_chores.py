"""The periodic tasks of the image caches: the fan-out, and the upkeep on each host."""

from collections.abc import Callable
from dataclasses import asdict
from threading import Lock
from typing import Any

from celery import Celery
from sqlalchemy.orm import Session

from innkeeper.errors import InnkeeperError
from models.advisory import try_lock
from models.claims import HOST_IS_UP_S
from models.hosts import list_hosts_to_sync
from tasks.engine import Engine
from tasks.image_upkeep import ImageUpkeep
from tasks.workflow import queue_for

FAN_OUT_IMAGE_UPKEEP = "innkeeper.image.fan_out"
KEEP_IMAGES = "innkeeper.image.upkeep"


def register_image_chores(app: Celery, engine: Callable[[], Engine]) -> None:
    """Register the periodic tasks of the image caches.

    Args:
        app: the Celery application.
        engine: returns this process's engine.
    """
    upkeeps: list[ImageUpkeep] = []
    first = Lock()

    def upkeep_here() -> ImageUpkeep:
        parts = engine()
        if parts.services is None:
            raise RuntimeError("the image upkeep was sent to a worker without a hypervisor")
        with first:
            if not upkeeps:
                upkeeps.append(ImageUpkeep(parts.database, parts.services))
        return upkeeps[0]

    def fan_out_upkeep(**_: Any) -> int:
        """Ask every living host to look after its cached images.

        Queue: control; milliseconds.
        Idempotency: an advisory lock lets one at a time through.
        Undo: none.
        On crash: the next one does it.
        Retries: the next beat.
        """
        names = engine().database.run(_list_living)
        for name in names:
            app.send_task(KEEP_IMAGES, queue=queue_for(name), ignore_result=True, kwargsrepr=name)
        return len(names)

    def keep_images(**_: Any) -> dict[str, int]:
        """Bring rows and files of this host's image caches together, evict, and scrub a little.

        Queue: host.<host>; milliseconds, and a few seconds for a slice of the scrub.
        Idempotency: one at a time per host; a second one has nothing left to do.
        Undo: none; only what nobody holds is removed, and it can be fetched anew.
        On crash: the next one does it; what was set aside and not removed is removed then.
        Retries: the next beat.
        """
        report = upkeep_here().run()
        return {"skipped": 1} if report is None else asdict(report)

    for name, body in ((FAN_OUT_IMAGE_UPKEEP, fan_out_upkeep), (KEEP_IMAGES, keep_images)):
        app.task(
            name=name, ignore_result=True, shared=False, send_events=False, throws=(InnkeeperError,)
        )(body)


def _list_living(session: Session) -> list[str]:
    if not try_lock(session, FAN_OUT_IMAGE_UPKEEP):
        return []
    return list_hosts_to_sync(session, up_s=HOST_IS_UP_S)
