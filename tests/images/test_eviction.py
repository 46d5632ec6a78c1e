"""Images leave a cache when nobody needs them, and never while somebody does: races included."""

import multiprocessing
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from innkeeper.errors import HostUnsuitable
from models.cached_images import list_copies
from models.image_leases import list_holders
from models.session import Database
from tasks import image_eviction
from tasks.context import Pool
from tasks.image_eviction import enforce, evict, make_room
from tasks.image_policy import CacheLimits
from tests.images.conftest import HOST, MIB, CacheHost
from tests.waiting import PATIENCE_S, wait_until
from virt import image_files
from virt.disks import create_overlay
from virt.image_files import list_files
from virt.images import CachedImage, ImageCache

ALL_GO = CacheLimits(max_age_s=0.001, min_age_s=0)


def rows(host: CacheHost) -> list[str]:
    place = host.pool.place_on(host.name)
    return [c.sha256 for c in host.database.run(lambda session: list_copies(session, place))]


def drop(host: CacheHost) -> list[str]:
    return enforce(host.database, host.name, host.pool, ALL_GO)


def test_what_nobody_holds_goes_with_its_row_and_an_event(host: CacheHost) -> None:
    image = host.fill(*host.make_image())
    allocated = list_files(host.pool.images)[0].allocated_bytes
    assert rows(host) == [image.digest]
    assert drop(host) == [image.digest]
    assert rows(host) == []
    assert [path for path in host.pool.images.root.rglob("*") if path.is_file()] == [
        host.pool.images.root / ".locks" / image.digest
    ]
    kind, data = host.events()[-1]
    assert kind == "image.evicted"
    assert data["size_bytes"] == allocated > 0
    assert "nobody has used it" in data["why"]


def test_what_a_step_holds_stays_until_its_operation_has_ended(host: CacheHost) -> None:
    context = host.begin_step()
    image = host.hold(context, *host.make_image())
    assert drop(host) == []
    assert make_room(host.database, HOST, host.pool, host.limits, wanted_bytes=None) == []
    assert image.path.exists()
    host.end(context)
    assert drop(host) == [image.digest]


def test_an_image_without_a_promised_digest_is_held_too(host: CacheHost) -> None:
    source, digest = host.make_image()
    context = host.begin_step()
    image = host.hold(context, source, None)
    assert image.digest == digest
    place = host.pool.place_on(HOST)
    holders = host.database.run(lambda session: list_holders(session, place))
    assert holders == {digest: [f"spawn {context.operation.id}"]}
    assert drop(host) == []


def test_the_lease_stands_before_the_cache_is_looked_into(
    host: CacheHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, digest = host.make_image()
    host.fill(source, digest)
    seen: list[bool] = []
    ensure = ImageCache.ensure

    def look_first(self: ImageCache, *args: Any, **kwargs: Any) -> CachedImage:
        place = host.pool.place_on(HOST)
        seen.append(digest in host.database.run(lambda session: list_holders(session, place)))
        return ensure(self, *args, **kwargs)

    monkeypatch.setattr(ImageCache, "ensure", look_first)
    host.hold(host.begin_step(), source, digest)
    assert seen == [True]


def test_a_spawn_that_comes_while_an_image_is_going_fetches_it_again(
    host: CacheHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, digest = host.make_image()
    host.fill(source, digest)
    context = host.begin_step()
    decided, go_on = threading.Event(), threading.Event()

    def set_aside_late(cache: ImageCache, path: Path) -> None:
        decided.set()
        assert go_on.wait(PATIENCE_S)
        image_files.set_aside(cache, path)

    monkeypatch.setattr(image_eviction, "set_aside", set_aside_late)
    removal = threading.Thread(target=drop, args=(host,))
    removal.start()
    assert decided.wait(PATIENCE_S)
    held: list[CachedImage] = []
    spawn = threading.Thread(target=lambda: held.append(host.hold(context, source, digest)))
    spawn.start()
    wait_until(lambda: waits_for_lock(host.database), what="the spawn waits for the removal")
    assert held == []
    go_on.set()
    removal.join(PATIENCE_S)
    spawn.join(PATIENCE_S)
    assert held[0].was_fetched
    assert held[0].path.exists()
    assert drop(host) == []


def waits_for_lock(database: Database) -> bool:
    with database.engine.connect() as connection:
        waiting = connection.exec_driver_sql(
            "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
        )
        return bool(waiting.scalar_one())


def test_an_image_that_goes_between_its_fetch_and_its_lease_is_fetched_again(
    host: CacheHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a promised digest, what is to be leased is known only when it is there."""
    source, digest = host.make_image()
    ensure, gone = ImageCache.ensure, list[bool]()

    def ensure_and_lose(self: ImageCache, *args: Any, **kwargs: Any) -> CachedImage:
        image = ensure(self, *args, **kwargs)
        if not gone:
            gone.append(evict(host.database, HOST, host.pool, list_files(self)[0], "a test"))
        return image

    monkeypatch.setattr(ImageCache, "ensure", ensure_and_lose)
    image = host.hold(host.begin_step(), source, None)
    assert gone == [True]
    assert (image.digest, image.path.exists()) == (digest, True)


def evict_for_ever(
    url: str, root: Path, allowed: Path, evicted: Any, begun: Any, stop: Any
) -> None:
    database = Database(url, application_name="evictor")
    cache = ImageCache(root / "images", allowed_file_roots=(allowed,), max_bytes=64 * MIB)
    pool = Pool("local", root, False, False, cache)
    while not stop.is_set():
        removed = enforce(database, HOST, pool, ALL_GO)
        begun.release()
        with evicted.get_lock():
            evicted.value += len(removed)
    database.dispose()


@contextmanager
def evictors(host: CacheHost, url: str, count: int) -> Iterator[Any]:
    """Let other processes remove whatever they may, as fast as they can."""
    spawned = multiprocessing.get_context("spawn")
    evicted, begun, stop = spawned.Value("i", 0), spawned.Semaphore(0), spawned.Event()
    arguments = (url, host.pool.path, host.sources, evicted, begun, stop)
    processes = [spawned.Process(target=evict_for_ever, args=arguments) for _ in range(count)]
    for process in processes:
        process.start()
    try:
        assert begun.acquire(timeout=2 * PATIENCE_S)
        yield evicted
    finally:
        stop.set()
        for process in processes:
            process.join(PATIENCE_S)


def test_no_overlay_ever_loses_its_base(host: CacheHost, fresh_url: str) -> None:
    """Spawns and removals of the same images race, in several threads and processes."""
    images = [host.make_image() for _ in range(4)]
    problems: list[str] = []

    def spawn(number: int, evicted: Any) -> None:
        give_up_at, turn = time.monotonic() + PATIENCE_S, 0
        while evicted.value < 6 and time.monotonic() < give_up_at:
            turn += 1
            source, digest = images[(number + turn) % 4]
            context = host.begin_step()
            image = host.hold(context, source, digest if turn % 2 else None)
            overlay = host.pool.path / f"{context.instance.id}.qcow2"
            create_overlay(
                overlay,
                backing_path=image.path,
                backing_format="qcow2",
                size_bytes=image.virtual_size_bytes,
            )
            if subprocess.run(["qemu-img", "check", "-q", overlay]).returncode != 0:
                problems.append(f"{overlay.name} has lost its base")
            host.end(context)

    with evictors(host, fresh_url, 2) as evicted:
        threads = [threading.Thread(target=spawn, args=(number, evicted)) for number in (0, 2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(2 * PATIENCE_S)
    assert problems == []
    assert evicted.value >= 6, "there were removals to race with"
    assert len(list(host.pool.path.glob("*.qcow2"))) >= 2


@pytest.fixture
def small_disk(host: CacheHost) -> Iterator[CacheHost]:
    """The host with its cache on a file system of three MiB."""
    root = host.pool.images.root
    mount = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(root)]
    subprocess.run(mount, check=True)
    ImageCache(root, allowed_file_roots=(), max_bytes=1)
    yield host
    subprocess.run(["umount", "--lazy", str(root)], check=True)


def test_a_full_disk_makes_room_by_removing_what_nobody_holds(small_disk: CacheHost) -> None:
    host = small_disk
    unused = host.fill(*host.make_image(1024))
    kept = host.hold(host.begin_step(), *host.make_image(512))
    context = host.begin_step()
    image = host.hold(context, *host.make_image(1536))
    assert image.path.exists()
    assert kept.path.exists()
    assert not unused.path.exists()
    assert rows(host) == sorted([kept.digest, image.digest])


def test_a_disk_that_stays_full_is_this_hosts_own_fault(small_disk: CacheHost) -> None:
    host = small_disk
    kept = host.hold(host.begin_step(), *host.make_image(1536))
    with pytest.raises(HostUnsuitable, match="cannot store") as caught:
        host.hold(host.begin_step(), *host.make_image(2048))
    assert caught.value.details["reason"] == "ENOSPC"
    assert kept.path.exists()
    assert [file.digest for file in list_files(host.pool.images)] == [kept.digest]
