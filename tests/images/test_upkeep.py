"""The upkeep of a cache: rows and files brought together, rot found and mended."""

import os
import shutil
from pathlib import Path

import pytest
from sqlalchemy import select, text

from models.image import CachedImage as Row
from models.image import Image
from tasks.image_policy import CacheLimits
from tasks.image_upkeep import UpkeepReport
from tests.images.conftest import CacheHost
from virt.image_files import is_condemned, list_files
from virt.images import CachedImage


def run(host: CacheHost) -> UpkeepReport:
    report = host.upkeep().run()
    assert report is not None
    return report


def row(host: CacheHost, digest: str) -> Row | None:
    with host.database.transaction() as session:
        return session.scalar(select(Row).where(Row.sha256 == digest, Row.host == host.name))


def flip_a_byte(path: Path) -> None:
    """Change one byte in the middle, as a dying disk would; the size stays."""
    with open(path, "r+b") as file:
        file.seek(path.stat().st_size // 2)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 1]))


def kinds(host: CacheHost) -> list[str]:
    return [kind for kind, _ in host.events()]


def test_nothing_is_done_where_nothing_is_to_be_done(host: CacheHost) -> None:
    host.fill(*host.make_image())
    before = kinds(host)
    assert run(host) == UpkeepReport()
    assert kinds(host) == before


def test_a_file_without_a_row_is_adopted_and_stays(host: CacheHost) -> None:
    source, digest = host.make_image()
    path = host.pool.images.path_for(digest, "qcow2")
    shutil.copy(source, path)
    host.limits = CacheLimits(max_age_s=60, min_age_s=0)
    assert run(host).adopted == 1
    assert run(host) == UpkeepReport()
    adopted = row(host, digest)
    assert adopted is not None
    assert (adopted.path, adopted.state, adopted.verified_at) == (str(path), "ready", None)
    assert adopted.size_bytes == path.stat().st_size
    assert kinds(host)[-1] == "image.adopted"
    with host.database.transaction() as session:
        session.execute(text("UPDATE cached_images SET last_used_at = now() - interval '1 hour'"))
    assert run(host).evicted == 1
    assert not path.exists()


def test_what_is_no_image_is_left_alone_and_not_adopted(host: CacheHost) -> None:
    strange = host.pool.images.root / f"{'0' * 64}.qcow2"
    strange.write_bytes(b"not a qcow2 at all" * 1000)
    (host.pool.images.root / "readme.txt").write_text("hello")
    assert run(host) == UpkeepReport()
    assert strange.exists()


def test_a_row_without_a_file_is_forgotten(host: CacheHost) -> None:
    image = host.fill(*host.make_image())
    image.path.unlink()
    assert run(host).forgotten == 1
    assert row(host, image.digest) is None
    assert kinds(host)[-1] == "image.forgotten"


def test_a_file_that_guests_need_and_that_is_gone_is_brought_back(host: CacheHost) -> None:
    image = host.hold(host.begin_step(), *host.make_image())
    image.path.unlink()
    assert run(host).healed == 1
    assert image.path.exists()
    assert kinds(host)[-2:] == ["image.missing", "image.healed"]
    brought = row(host, image.digest)
    assert brought is not None
    assert brought.state == "ready"


def test_what_a_dead_process_set_aside_is_discarded(host: CacheHost) -> None:
    aside = host.pool.images.root / ".aside"
    aside.mkdir()
    (aside / "left").write_bytes(b"x")
    run(host)
    assert list(aside.iterdir()) == []


def test_one_upkeep_at_a_time(host: CacheHost) -> None:
    upkeep = host.upkeep()
    with upkeep._alone:
        assert upkeep.run() is None
    assert upkeep.run() is not None


@pytest.fixture
def scrubbed(host: CacheHost) -> CacheHost:
    host.scrub_mib_s = 1000
    return host


def test_a_scrub_verifies_and_comes_back_only_after_the_interval(scrubbed: CacheHost) -> None:
    host = scrubbed
    image = host.fill(*host.make_image())
    first = row(host, image.digest)
    assert run(host).scrubbed == 1
    second = row(host, image.digest)
    assert first is not None
    assert second is not None
    assert first.verified_at is not None
    assert second.verified_at is not None
    assert second.verified_at > first.verified_at
    host.scrub_interval_s = 3600
    assert run(host).scrubbed == 0


def test_rot_is_found_told_and_healed_under_a_guest(scrubbed: CacheHost) -> None:
    host = scrubbed
    context = host.begin_step()
    source, digest = host.make_image()
    image = host.hold(context, source, digest)
    flip_a_byte(image.path)
    with open(image.path, "rb") as running_guest:
        report = run(host)
        assert (report.rotten, report.healed) == (1, 1)
        assert running_guest.read() != source.read_bytes(), "what is open stays what it was"
    assert image.path.read_bytes() == source.read_bytes()
    told = dict(host.events())
    assert told["image.rotten"]["held_by"] == [f"spawn {context.operation.id}"]
    assert "stopped and started" in told["image.healed"]["meaning"]
    healed = row(host, digest)
    assert healed is not None
    assert healed.state == "ready"


def test_rot_that_cannot_be_mended_stays_under_its_guests_but_serves_nobody_else(
    scrubbed: CacheHost,
) -> None:
    host = scrubbed
    context = host.begin_step()
    source, digest = host.make_image()
    image = host.hold(context, source, digest)
    hidden = source.rename(source.with_suffix(".away"))
    flip_a_byte(image.path)
    assert run(host).rotten == 1
    rotten = row(host, digest)
    assert rotten is not None
    assert rotten.state == "rotten"
    assert image.path.exists()
    assert is_condemned(image.path)
    assert host.pool.images.find(digest, "qcow2") is None
    assert kinds(host).count("image.rotten") == 1
    run(host)
    assert kinds(host).count("image.rotten") == 1, "told once"
    hidden.rename(source)
    assert host.hold(host.begin_step(), source, digest).was_fetched
    assert image.path.read_bytes() == source.read_bytes()
    mended = row(host, digest)
    assert mended is not None
    assert mended.state == "ready"


def test_rot_that_cannot_be_mended_and_that_nobody_needs_goes(scrubbed: CacheHost) -> None:
    host = scrubbed
    source, digest = host.make_image()
    image = host.fill(source, digest)
    source.unlink()
    flip_a_byte(image.path)
    report = run(host)
    assert (report.rotten, report.healed, report.evicted) == (1, 0, 1)
    assert not image.path.exists()
    assert row(host, digest) is None


def test_a_file_that_is_replaced_while_it_is_read_is_not_condemned(host: CacheHost) -> None:
    source, digest = host.make_image(size_kib=4096)
    image = host.fill(source, digest)
    flip_a_byte(image.path)
    host.scrub_mib_s = 2
    scrubber = host.services.scrubber
    assert scrubber.read_on(image.path, scrubber.begin_slice(1.0)) is None
    replacement = image.path.with_suffix(".new")
    shutil.copy(source, replacement)
    replacement.rename(image.path)
    read = None
    while read is None:
        read = scrubber.read_on(image.path, scrubber.begin_slice(1.0))
    assert read == (digest, image.path.stat().st_ino)


def test_a_large_file_is_read_in_slices_at_the_pace(host: CacheHost) -> None:
    source, digest = host.make_image(size_kib=4096)
    image: CachedImage = host.fill(source, digest)
    host.scrub_mib_s = 4
    scrubber = host.services.scrubber
    slices = 1
    while scrubber.read_on(image.path, scrubber.begin_slice(0.5)) is None:
        slices += 1
    assert slices >= 2
    assert [file.digest for file in list_files(host.pool.images)] == [digest]


def test_the_source_of_an_adopted_image_is_learned_from_its_next_fetch(host: CacheHost) -> None:
    source, digest = host.make_image()
    path = host.pool.images.path_for(digest, "qcow2")
    shutil.copy(source, path)
    run(host)
    path.unlink()
    host.fill(source, digest)
    with host.database.transaction() as session:
        assert session.scalar(select(Image.source).where(Image.sha256 == digest)) == str(source)
