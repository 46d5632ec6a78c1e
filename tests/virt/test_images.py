"""The image cache against a real HTTP server, broken transfers, races and hostile images."""

import hashlib
import json
import multiprocessing
import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from innkeeper.errors import (
    Cancelled,
    DigestMismatch,
    FetchFailed,
    FormatMismatch,
    ImageTooLarge,
    InvalidRequest,
    UnsafeImage,
)
from tests.virt.image_server import Server
from tests.waiting import PATIENCE_S, wait_until
from virt.images import CachedImage, ImageCache

MIB = 1 << 20


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield running
        running.shutdown()


@pytest.fixture
def cache(tmp_path: Path) -> ImageCache:
    (tmp_path / "images").mkdir()
    return ImageCache(
        tmp_path / "cache",
        allowed_file_roots=(tmp_path / "images",),
        max_bytes=64 * MIB,
        attempts=3,
    )


def qemu_img(*argv: object) -> None:
    subprocess.run(["qemu-img", *map(str, argv)], check=True, capture_output=True)


def make_qcow2(path: Path, *, virtual: str = "16M", data_mib: int = 4) -> Path:
    raw = path.with_suffix(".seed")
    raw.write_bytes(os.urandom(data_mib * MIB))
    qemu_img("convert", "-f", "raw", "-O", "qcow2", raw, path)
    qemu_img("resize", "-f", "qcow2", path, virtual)
    return path


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def leftovers(cache: ImageCache) -> list[str]:
    return sorted(
        str(path.relative_to(cache.root))
        for path in cache.root.rglob("*")
        if path.is_file() and path.parent.name != ".locks"
    )


def test_a_file_is_fetched_once(cache: ImageCache, tmp_path: Path) -> None:
    source = make_qcow2(tmp_path / "images" / "a.qcow2")
    digest = sha256(source.read_bytes())
    told: list[tuple[int, int | None]] = []
    image = cache.ensure(
        f"file://{source}", digest, "qcow2", on_progress=lambda *now: told.append(now)
    )
    assert image.was_fetched
    assert image.path == cache.path_for(digest, "qcow2")
    assert image.path.read_bytes() == source.read_bytes()
    assert image.path.stat().st_mode & 0o777 == 0o444
    assert image.virtual_size_bytes == 16 * MIB
    assert told[-1] == (source.stat().st_size, source.stat().st_size)
    again = cache.ensure(str(source), digest, "qcow2")
    assert not again.was_fetched
    assert [found.digest for found in cache.list()] == [digest]
    assert cache.remove(digest) > 0
    assert cache.remove(digest) == 0
    assert leftovers(cache) == []


def test_without_a_digest_the_version_decides(
    cache: ImageCache, tmp_path: Path, server: Server
) -> None:
    source = make_qcow2(tmp_path / "images" / "a.qcow2")
    server.files["/a"] = source.read_bytes()
    for url in (f"file://{source}", server.url("/a")):
        first = cache.ensure(url, None, "qcow2")
        assert first.digest == sha256(source.read_bytes())
        assert not cache.ensure(url, None, "qcow2").was_fetched
    make_qcow2(source)
    server.files["/a"] = source.read_bytes()
    for url in (f"file://{source}", server.url("/a")):
        assert cache.ensure(url, None, "qcow2").digest == sha256(source.read_bytes())


def test_a_raw_disk_stays_sparse(cache: ImageCache, tmp_path: Path) -> None:
    source = tmp_path / "images" / "disk.raw"
    with source.open("wb") as file:
        file.write(b"x" * 1000)
        file.truncate(40 * MIB)
    image = cache.ensure(str(source), None, "raw")
    assert image.virtual_size_bytes == 40 * MIB
    assert image.path.stat().st_size == 40 * MIB
    assert image.path.stat().st_blocks * 512 < 4 * MIB
    assert image.digest == sha256(source.read_bytes())


def test_a_broken_transfer_goes_on_where_it_stopped(
    cache: ImageCache, tmp_path: Path, server: Server
) -> None:
    data = make_qcow2(tmp_path / "a.qcow2").read_bytes()
    server.files["/a"] = data
    server.break_after = [2 * MIB, 3 * MIB]
    image = cache.ensure(server.url("/a"), sha256(data), "qcow2")
    assert image.path.read_bytes() == data
    assert server.requests[0][1] is None
    assert all(wanted for _, wanted in server.requests[1:])
    assert server.sent_bytes < len(data) + MIB


def test_what_was_fetched_survives_giving_up(
    cache: ImageCache, tmp_path: Path, server: Server
) -> None:
    data = make_qcow2(tmp_path / "a.qcow2").read_bytes()
    server.files["/a"] = data
    server.break_after = [MIB, 2 * MIB, 3 * MIB]
    with pytest.raises(FetchFailed) as failed:
        cache.ensure(server.url("/a"), sha256(data), "qcow2")
    assert failed.value.details["attempts"] == 3
    assert cache.list() == []
    sent = server.sent_bytes
    assert cache.ensure(server.url("/a"), sha256(data), "qcow2").was_fetched
    assert server.sent_bytes - sent < len(data) - 2 * MIB
    assert not any(".partial" in name for name in leftovers(cache))


def test_a_changed_object_is_fetched_anew(
    cache: ImageCache, tmp_path: Path, server: Server
) -> None:
    server.files["/a"] = make_qcow2(tmp_path / "a.qcow2").read_bytes()
    server.break_after = [MIB, MIB, MIB]
    data = make_qcow2(tmp_path / "b.qcow2").read_bytes()
    with pytest.raises(FetchFailed):
        cache.ensure(server.url("/a"), sha256(data), "qcow2")
    server.files["/a"] = data
    assert cache.ensure(server.url("/a"), sha256(data), "qcow2").path.read_bytes() == data


def test_threads_fetch_once(cache: ImageCache, tmp_path: Path, server: Server) -> None:
    data = make_qcow2(tmp_path / "a.qcow2").read_bytes()
    server.files["/a"] = data
    server.pause_s = 0.002
    images: list[CachedImage] = []
    threads = [
        threading.Thread(
            target=lambda: images.append(cache.ensure(server.url("/a"), sha256(data), "qcow2"))
        )
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(server.requests) == 1
    assert sorted(image.was_fetched for image in images) == [False] * 7 + [True]


def _fetch(root: Path, url: str, digest: str, answers: "multiprocessing.Queue[bool]") -> None:
    cache = ImageCache(root, allowed_file_roots=(), max_bytes=64 * MIB)
    answers.put(cache.ensure(url, digest, "qcow2").was_fetched)


def test_processes_fetch_once_even_when_the_first_is_killed(
    cache: ImageCache, tmp_path: Path, server: Server
) -> None:
    data = make_qcow2(tmp_path / "a.qcow2").read_bytes()
    server.files["/a"] = data
    # Slow enough that the first is killed long before it is done.
    server.pause_s = 0.1
    spawn = multiprocessing.get_context("spawn")
    answers = spawn.Queue()
    arguments = (cache.root, server.url("/a"), sha256(data), answers)
    first = spawn.Process(target=_fetch, args=arguments)
    first.start()
    wait_until(lambda: server.sent_bytes >= MIB, what="the first is at work")
    others = [spawn.Process(target=_fetch, args=arguments) for _ in range(2)]
    for other in others:
        other.start()
    first.kill()
    first.join()
    server.pause_s = 0.002
    for other in others:
        other.join(PATIENCE_S)
    assert sorted(answers.get(timeout=PATIENCE_S) for _ in others) == [False, True]
    assert [found.digest for found in cache.list()] == [sha256(data)]


def test_a_fetch_can_be_stopped(cache: ImageCache, tmp_path: Path, server: Server) -> None:
    data = make_qcow2(tmp_path / "a.qcow2").read_bytes()
    server.files["/a"] = data
    calls = []

    def check() -> None:
        calls.append(1)
        if len(calls) > 2:
            raise Cancelled("Somebody cancelled.")

    with pytest.raises(Cancelled):
        cache.ensure(server.url("/a"), sha256(data), "qcow2", check=check)
    assert leftovers(cache) == []


def refused(cache: ImageCache, url: str, error: type[Exception], **arguments: object) -> str:
    image_format = arguments.pop("image_format", "qcow2")
    digest = arguments.pop("sha256", None)
    with pytest.raises(error) as raised:
        cache.ensure(url, digest, image_format, **arguments)  # type: ignore[arg-type]
    assert leftovers(cache) == []
    return str(raised.value)


def test_other_bytes_than_promised(cache: ImageCache, tmp_path: Path) -> None:
    source = make_qcow2(tmp_path / "images" / "a.qcow2")
    refused(cache, str(source), DigestMismatch, sha256="0" * 64)


def test_images_that_reach_outside(cache: ImageCache, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"TOP SECRET" * 100_000)
    images = tmp_path / "images"
    qemu_img("create", "-f", "qcow2", "-F", "raw", "-b", secret, images / "backing.qcow2", "8M")
    qemu_img(
        *("create", "-f", "qcow2", "-o", f"data_file={tmp_path / 'data'},data_file_raw=on"),
        *(images / "data.qcow2", "8M"),
    )
    assert "backing" in refused(cache, str(images / "backing.qcow2"), UnsafeImage)
    refused(cache, str(images / "data.qcow2"), UnsafeImage)
    # The same bytes under the other name.
    refused(cache, str(images / "backing.qcow2"), FormatMismatch, image_format="raw")
    (images / "flat.vmdk").write_text(
        "# Disk DescriptorFile\nversion=1\nCID=12345678\nparentCID=ffffffff\n"
        f'createType="monolithicFlat"\nRW 2048 FLAT "{secret}" 0\n' + " " * 1024
    )
    refused(cache, str(images / "flat.vmdk"), FormatMismatch)
    refused(cache, str(images / "flat.vmdk"), FormatMismatch, image_format="raw")


def make_luks(path: Path) -> None:
    """Make an encrypted image; qemu-img times its own hashing, and gives up on a busy machine."""
    secret = ["--object", "secret,id=s,data=x", "-o", "key-secret=s,iter-time=10"]
    for is_last in (False, False, False, False, True):
        try:
            qemu_img("create", "-f", "luks", *secret, path, "8M")
        except subprocess.CalledProcessError:
            if is_last:
                raise
        else:
            return


@pytest.mark.parametrize("other", ["vmdk", "vdi", "qed", "vhdx", "luks"])
def test_formats_we_do_not_take(cache: ImageCache, tmp_path: Path, other: str) -> None:
    path = tmp_path / "images" / f"x.{other}"
    if other == "luks":
        make_luks(path)
    else:
        qemu_img("create", "-f", other, path, "8M")
    for image_format in ("qcow2", "raw"):
        refused(cache, str(path), FormatMismatch, image_format=image_format)


def test_a_bad_image_stops_the_transfer_at_its_first_bytes(
    cache: ImageCache, tmp_path: Path, server: Server
) -> None:
    huge = make_qcow2(tmp_path / "huge.qcow2", virtual="1T", data_mib=16)
    server.files["/huge"] = huge.read_bytes()
    server.files["/text"] = b"no image at all " * MIB
    # What it sends before the client has looked must be less than what the test allows.
    server.pause_s = 0.02
    refused(cache, server.url("/huge"), ImageTooLarge, max_virtual_size_bytes=1 << 30)
    refused(cache, server.url("/text"), FormatMismatch)
    refused(cache, server.url("/huge"), FormatMismatch, image_format="raw")
    assert server.sent_bytes < 12 * MIB


def test_sizes_are_bounded_whatever_the_server_says(cache: ImageCache, server: Server) -> None:
    server.files["/big"] = bytes(70 * MIB)
    refused(cache, server.url("/big"), ImageTooLarge, image_format="raw")
    assert server.sent_bytes < 8 * MIB
    server.says_length = False
    refused(cache, server.url("/big"), ImageTooLarge, image_format="raw")
    server.files["/small"] = bytes(8 * MIB)
    refused(
        cache,
        server.url("/small"),
        ImageTooLarge,
        image_format="raw",
        max_virtual_size_bytes=4 * MIB,
    )


def test_addresses_that_are_not_taken(cache: ImageCache, tmp_path: Path, server: Server) -> None:
    secret = tmp_path / "secret.qcow2"
    make_qcow2(secret)
    refused(cache, str(secret), InvalidRequest)
    refused(cache, f"file://{tmp_path}/images/../secret.qcow2", InvalidRequest)
    (tmp_path / "images" / "link").symlink_to(secret)
    refused(cache, f"file://{tmp_path}/images/link", InvalidRequest)
    refused(cache, "ftp://example.org/a", InvalidRequest)
    refused(cache, "json:{}", InvalidRequest)
    refused(cache, str(tmp_path / "images" / "none"), FetchFailed)
    os.mkfifo(tmp_path / "images" / "pipe")
    refused(cache, str(tmp_path / "images" / "pipe"), FetchFailed)
    server.redirects["/loop"] = "/loop"
    server.redirects["/out"] = f"file://{secret}"
    assert "redirects" in refused(cache, server.url("/loop"), FetchFailed)
    refused(cache, server.url("/out"), FetchFailed)
    assert "404" in refused(cache, server.url("/none"), FetchFailed)
    refused(cache, "http://127.0.0.1:9/none", FetchFailed)


def test_a_damaged_cached_image_is_fetched_again(cache: ImageCache, tmp_path: Path) -> None:
    source = make_qcow2(tmp_path / "images" / "a.qcow2")
    image = cache.ensure(str(source), None, "qcow2")
    image.path.chmod(0o644)
    image.path.write_bytes(b"damaged")
    assert cache.find(image.digest, "qcow2") is None
    assert cache.list() == []
    mended = cache.ensure(str(source), image.digest, "qcow2")
    assert mended.was_fetched
    assert mended.path.read_bytes() == source.read_bytes()


def test_an_image_judged_by_older_rules_is_judged_again(cache: ImageCache, tmp_path: Path) -> None:
    image = cache.ensure(str(make_qcow2(tmp_path / "images" / "a.qcow2")), None, "qcow2")
    facts = image.path.with_name(f"{image.path.name}.json")
    judged = json.loads(facts.read_text())
    facts.write_text(json.dumps({**judged, "rules_version": 0, "virtual_size_bytes": 1}))
    assert cache.find(image.digest, "qcow2") == image.__class__(
        **{**vars(image), "was_fetched": False}
    )
    hostile = tmp_path / "hostile.qcow2"
    qemu_img("create", "-f", "qcow2", "-F", "raw", "-b", tmp_path / "images", hostile, "8M", "-u")
    digest = sha256(hostile.read_bytes())
    hostile.rename(cache.path_for(digest, "qcow2"))
    with pytest.raises(UnsafeImage):
        cache.ensure(str(hostile), digest, "qcow2")


def test_old_partials_are_pruned(cache: ImageCache, tmp_path: Path, server: Server) -> None:
    data = make_qcow2(tmp_path / "a.qcow2").read_bytes()
    server.files["/a"] = data
    server.break_after = [MIB, MIB, MIB]
    with pytest.raises(FetchFailed):
        cache.ensure(server.url("/a"), sha256(data), "qcow2")
    assert cache.prune_partials(3600) == 0
    assert cache.prune_partials(-1) > 0
    assert leftovers(cache) == []
